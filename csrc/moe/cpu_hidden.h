#pragma once

#include "gemm.h"
#include "tasks.h"

// The first half of a SwiGLU, H = silu(X gate^T) * (X up^T), for a list of experts, each with a contiguous range of
// sorted rows. A dense SwiGLU is one expert with every row.

namespace openmythos::cpu::OPENMYTHOS_ISA {

template <class T>
struct Expert {
    const T *gate, *up, *down;
    int64_t gate_stride, up_stride, down_stride;
    int64_t first, rows;  // its range of sorted rows
    Split split;
    int64_t first_group, first_rest, first_task;  // of H
    int64_t first_x_group;                        // of X, which experts with the same rows share
};

template <class T>
struct Hidden {
    const Expert<T>* experts;
    int64_t count, d, i;
    int64_t owners;    // the first `owners` experts own the packed groups of X, in order
    const T** x_rows;  // one pointer per sorted row
    // X and H of all groups, then H of the remainders in rows.
    float *x_packed, *h_packed;
    T* h_rest;
    const T** h_rows;  // one pointer per row of h_rest
    float* scratch;    // hidden_scratch() floats per worker

    int64_t x_group() const { return packed_floats<T>(d); }
    int64_t h_group() const { return packed_floats<T>(i); }
    // Whole cache lines, so that no two rows share one.
    int64_t h_stride() const { return round_up(i, 64 / int64_t(sizeof(T))); }
};

// Bytes of weights that a task streams if each weight serves only a few rows.
constexpr int64_t STREAM_BYTES = 393216;
constexpr int64_t HIDDEN_ROWS = 96;
OPENMYTHOS_INLINE int64_t hidden_scratch() { return 3 * padded_rows(HIDDEN_ROWS) * BLOCK_GROUPS * VL; }

// Assigns each expert's groups and remainder rows their places, and returns the totals.
template <class T>
static Split lay_out(Expert<T>* experts, int64_t count) {
    Split total{0, 0, 0};
    for (int64_t e = 0; e < count; e++) {
        Expert<T>& expert = experts[e];
        expert.split = split_tokens(expert.rows);
        expert.first_group = expert.first_x_group = total.groups, expert.first_rest = total.rest;
        total.groups += expert.split.groups, total.rest += expert.split.rest;
    }
    return total;
}

template <class T>
static const Expert<T>& find_expert(const Expert<T>* experts, int64_t count, int64_t at, int64_t Expert<T>::* first) {
    int64_t low = 0, high = count;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        (experts[middle].*first <= at ? low : high) = middle;
    }
    return experts[low];
}

template <class T>
static void activate(const float* gate, const float* up, float* h, int64_t count) {
    for (int64_t i = 0; i < count; i += VL) {
        int64_t n = min_of(VL, count - i);
        store_upto(h + i, silu(load_upto(gate + i, n)) * load_upto(up + i, n), n);
    }
}

template <class T>
static void hidden_task(const Hidden<T>& hidden, const Expert<T>& expert, int64_t block, int64_t begin, int64_t n,
                        float* c_gate) {
    Split split = expert.split;
    int64_t part = hidden_scratch() / 3;
    float *c_up = c_gate + part, *t = c_up + part;
    auto gate = [&](int64_t i) { return expert.gate + (begin + i) * expert.gate_stride; };
    auto up = [&](int64_t i) { return expert.up + (begin + i) * expert.up_stride; };
    int64_t g = block * BLOCK_GROUPS, groups = min_of(BLOCK_GROUPS, split.groups - g);
    if (groups > 0) {
        const float* x = hidden.x_packed + (expert.first_x_group + g) * hidden.x_group();
        float* h = hidden.h_packed + (expert.first_group + g) * hidden.h_group();
        int64_t ldc = groups * VL;
        const T* after = begin + n + PANEL <= hidden.i ? gate(n) : nullptr;
        gemm_packed<T>(x, hidden.x_group(), groups, gate, n, hidden.d, c_gate, ldc, false, n >= PANEL ? up(0) : nullptr,
                       expert.up_stride);
        gemm_packed<T>(x, hidden.x_group(), groups, up, n, hidden.d, c_up, ldc, false, after, expert.gate_stride);
        for (int64_t i = 0; i < n; i += 2) {
            for (int64_t j = 0; j < groups; j++) {
                int64_t at = i * ldc + j * VL;
                vec even = silu(load(c_gate + at)) * load(c_up + at);
                vec odd = i + 1 < n ? silu(load(c_gate + at + ldc)) * load(c_up + at + ldc) : zero();
                pack_two<T>(h + j * hidden.h_group(), begin + i, even, odd);
            }
        }
    }
    if (split.rest && g + BLOCK_GROUPS >= split.groups) {
        const T* const* x = hidden.x_rows + expert.first + split.packed;
        T* h = hidden.h_rest + expert.first_rest * hidden.h_stride() + begin;
        int64_t ldc = rest_stride(split.rest), ldt = padded_rows(HIDDEN_ROWS);
        gemm_dot(x, split.rest, gate, n, hidden.d, c_gate, ldc, up(0));
        gemm_dot(x, split.rest, up, n, hidden.d, c_up, ldc, gate(n));
        activate<T>(c_gate, c_up, c_gate, n * ldc);
        if (ldc > 1) transpose_block(c_gate, ldc, n, split.rest, t, ldt);
        for (int64_t j = 0; j < split.rest; j++)
            store_row(ldc > 1 ? t + j * ldt : c_gate, h + j * hidden.h_stride(), n);
    }
}

template <class T>
static void compute_hidden(const Threads& threads, const Hidden<T>& hidden, Expert<T>* experts) {
    int64_t groups = 0, x_groups = 0, rest = 0, tasks = 0;
    for (int64_t e = 0; e < hidden.count; e++) {
        groups += experts[e].split.groups, rest += experts[e].split.rest;
        if (e < hidden.owners) x_groups += experts[e].split.groups;
    }
    for_tasks(threads, x_groups, [&](int64_t task, int64_t) {
        const Expert<T>& expert = find_expert<T>(experts, hidden.owners, task, &Expert<T>::first_x_group);
        int64_t row = (task - expert.first_x_group) * VL;
        pack_group(hidden.x_rows + expert.first + row, min_of(VL, expert.split.packed - row), hidden.d,
                   hidden.x_packed + task * hidden.x_group());
    });
    for (int64_t r = 0; r < rest; r++) hidden.h_rows[r] = hidden.h_rest + r * hidden.h_stride();

    // Without groups each weight serves only a few rows: a task then streams STREAM_BYTES.
    int64_t rows = groups ? HIDDEN_ROWS : ceil_div(STREAM_BYTES, max_of(hidden.d, 1) * int64_t(sizeof(T)));
    rows = min_of(rows, ceil_div(hidden.i * max_of(hidden.count, 1), 4 * threads.count));
    rows = min_of(HIDDEN_ROWS, round_up(max_of(rows, 1), 24));
    int64_t row_blocks = ceil_div(hidden.i, rows);
    for (int64_t e = 0; e < hidden.count; e++) {
        experts[e].first_task = tasks;
        tasks += max_of(ceil_div(experts[e].split.groups, BLOCK_GROUPS), 1) * row_blocks;
    }
    for_tasks_from_both_ends(threads, tasks, [&](int64_t task, int64_t worker) {
        const Expert<T>& expert = find_expert<T>(experts, hidden.count, task, &Expert<T>::first_task);
        int64_t local = task - expert.first_task, begin = local % row_blocks * rows;
        hidden_task(hidden, expert, local / row_blocks, begin, min_of(rows, hidden.i - begin),
                    hidden.scratch + worker * hidden_scratch());
    });
}

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
