#pragma once

#include "gemm.h"
#include "tasks.h"

// out (tokens, O) = A W^T for packed tokens: all of `linear`, and the second half of a SwiGLU.

namespace openmythos::cpu::OPENMYTHOS_ISA {

constexpr int64_t PROJECT_ROWS = 240;  // a multiple of every panel

// Floats per worker, for C^T and its transpose.
OPENMYTHOS_INLINE int64_t projection_scratch() { return 2 * padded_rows(PROJECT_ROWS) * BLOCK_GROUPS * VL; }

template <class T>
static void project(const Threads& threads, const Tokens<T>& tokens, const T* w, int64_t ldw, int64_t o, int64_t k,
                    T* out, int64_t ld_out, float* scratch) {
    Split split = tokens.split;
    int64_t blocks = ceil_div(split.groups, BLOCK_GROUPS);
    // Small enough to balance the threads, large enough that a worker streams whole pages of weights.
    int64_t rows = split.groups ? ceil_div(o * max_of(blocks, 1), threads.count * 6)
                                : ceil_div(int64_t(393216), k * int64_t(sizeof(T)));
    rows = min_of(PROJECT_ROWS, round_up(max_of(min_of(rows, ceil_div(o, threads.count)), 1), 24));
    int64_t row_blocks = ceil_div(o, rows);
    // The remainder runs with the last block, whose weights are then still in cache.
    for_tasks(threads, max_of(blocks, 1) * row_blocks, [&](int64_t task, int64_t worker) {
        float* c = scratch + worker * projection_scratch();
        float* t = c + projection_scratch() / 2;
        int64_t ldt = padded_rows(PROJECT_ROWS);
        int64_t block = task / row_blocks, begin = task % row_blocks * rows, n = min_of(rows, o - begin);
        auto row = [&](int64_t i) { return w + (begin + i) * ldw; };
        auto finish = [&](int64_t first_token, int64_t m, int64_t ldc) {
            if (ldc > 1) transpose_block(c, ldc, n, m, t, ldt);
            for (int64_t j = 0; j < m; j++)
                store_row(ldc > 1 ? t + j * ldt : c, out + (first_token + j) * ld_out + begin, n);
        };
        if (block < blocks) {
            int64_t g = block * BLOCK_GROUPS, groups = min_of(BLOCK_GROUPS, split.groups - g);
            const T* after = begin + n + PANEL <= o ? row(n) : nullptr;
            gemm_packed<T>(tokens.packed + g * tokens.group, tokens.group, groups, row, n, k, c, groups * VL, false,
                           after, ldw);
            finish(g * VL, min_of(groups * VL, split.packed - g * VL), groups * VL);
        }
        if (split.rest && block + 1 >= blocks) {
            gemm_dot(tokens.rest, split.rest, row, n, k, c, rest_stride(split.rest));
            finish(split.packed, split.rest, rest_stride(split.rest));
        }
    });
}

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
