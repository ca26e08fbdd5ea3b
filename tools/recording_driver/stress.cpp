// Opens the launcher on folders with every kind of damage, and launches from several threads: for the sanitizers.
// Arguments: folders. Prints a line for each.

#include <cstdio>
#include <cstdlib>
#include <initializer_list>

extern "C" {
void* runtime_open(const char*);
void runtime_close(void*);
char* runtime_why_not(void*, int);
char* runtime_describe(void*);
char* runtime_launch(void*, const char*, const char*, unsigned, unsigned, unsigned, int, void*, const void*);
int runtime_launch_threads(void*, const char*, const char* const*, int, int, int);
}

int main(int count, char** folders) {
    const char* kernels[] = {"openmythos_first", "openmythos_second", "openmythos_third"};
    for (int i = 1; i < count; i++) {
        void* runtime = runtime_open(folders[i]);
        char* described = runtime_describe(runtime);
        char* reason = runtime_why_not(runtime, 0);
        int params = 0;
        char* launched = runtime_launch(runtime, "op", kernels[0], 1, 32, 65536, 1, nullptr, &params);
        char* absent = runtime_launch(runtime, "op", kernels[0], 1, 32, 0, 7, nullptr, &params);
        int failed = runtime_launch_threads(runtime, "op", kernels, 3, 4, 50);
        std::printf("%s|%s|%s|%s|%d\n", described, reason, launched, absent, failed);
        for (char* text : {described, reason, launched, absent}) std::free(text);
        runtime_close(runtime);
    }
}
