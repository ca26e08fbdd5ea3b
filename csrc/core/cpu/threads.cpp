#include "threads.h"

#include <sys/mman.h>
#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <new>

namespace openmythos::cpu {

namespace {

// Larger blocks are freed after use; smaller ones are kept, which saves the next call its page faults.
constexpr int64_t KEPT_BYTES = int64_t(256) << 20;
constexpr int64_t HUGE_PAGE = int64_t(2) << 20;

struct Scratch {
    void* data = nullptr;
    int64_t size = 0;
    ~Scratch() { std::free(data); }

    void* take(int64_t bytes) {
        if (bytes <= size) return data;
        std::free(data);
        size = 0;
        int64_t rounded = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
        data = std::aligned_alloc(HUGE_PAGE, rounded);
        if (!data) throw std::bad_alloc();
        madvise(data, rounded, MADV_HUGEPAGE);
        size = rounded;
        return data;
    }
    void trim() {
        if (size <= KEPT_BYTES) return;
        std::free(data);
        data = nullptr;
        size = 0;
    }
};
thread_local Scratch scratch;

void run(int64_t workers, void (*body)(void*, int64_t), void* context) {
    if (workers == 1) return body(context, 0);
    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
        for (int64_t worker = begin; worker < end; worker++) body(context, worker);
    });
}

}  // namespace

Workspace::Workspace()
    : threads{int64_t(torch::stable::get_num_threads()), run, [](int64_t bytes) { return scratch.take(bytes); }} {}

Workspace::~Workspace() { scratch.trim(); }

}  // namespace openmythos::cpu
