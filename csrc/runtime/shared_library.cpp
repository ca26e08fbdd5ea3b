#include "shared_library.h"

#include <dlfcn.h>
#include <link.h>

#include "driver.h"

namespace openmythos::runtime {

namespace {

struct Search {
    const std::string& prefix;
    std::string found;
};

int visit(dl_phdr_info* info, size_t, void* data) {
    auto& search = *static_cast<Search*>(data);
    std::string path = info->dlpi_name ? info->dlpi_name : "";
    std::string name = path.substr(path.rfind('/') + 1);
    if (name.compare(0, search.prefix.size(), search.prefix) != 0) return 0;
    search.found = path;
    return 1;
}

}  // namespace

SharedLibrary::SharedLibrary(const std::string& prefix, const std::vector<std::string>& names) {
    Search search{prefix, ""};
    dl_iterate_phdr(&visit, &search);
    std::vector<std::string> candidates = names;
    if (!search.found.empty()) candidates.insert(candidates.begin(), search.found);
    std::string tried;
    for (const std::string& name : candidates) {
        handle_ = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (handle_) {
            path_ = name;
            return;
        }
        const char* error = dlerror();
        tried += (tried.empty() ? "" : "; ") + std::string(error ? error : name);
    }
    throw DriverError("no GPU driver was found (" + tried + ")");
}

void* SharedLibrary::symbol(const char* name, bool required) const {
    void* found = dlsym(handle_, name);
    if (!found && required)
        throw DriverError("the driver " + path_ + " has no function " + name + "; it is too old, or not a GPU driver");
    return found;
}

}  // namespace openmythos::runtime
