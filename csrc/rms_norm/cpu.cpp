#include "tasks.h"

namespace openmythos::cpu::OPENMYTHOS_ISA {

// Calls body with a pointer to row n of the matrix's type.
template <class Body>
OPENMYTHOS_INLINE void with_row(const Matrix& x, int64_t n, const Body& body) {
    if (x.type == Type::float32)
        body(static_cast<float*>(x.data) + n * x.stride);
    else
        body(static_cast<bf16*>(x.data) + n * x.stride);
}

template <class Body>
OPENMYTHOS_INLINE void for_lanes(int64_t d, const Body& body) {
    int64_t i = 0;
    for (; i + VL <= d; i += VL) body(i, VL);
    if (i < d) body(i, d - i);
}

void rms_norm(const Threads& threads, const RmsNormArgs& args) {
    int64_t d = args.d, row = round_up(d, VL);
    float* weight = static_cast<float*>(threads.scratch((1 + threads.count) * row * 4));
    with_row(Matrix{const_cast<void*>(args.weight), 0, args.weight_type, 0}, 0, [&](auto* w) {
        for_lanes(d, [&](int64_t i, int64_t n) { store_upto(weight + i, load_upto(w + i, n), n); });
    });
    // About 64 KB of input a task.
    int64_t rows = max_of(1, 32768 / max_of(d, 1));
    for_tasks(threads, ceil_div(args.n, rows), [&](int64_t task, int64_t worker) {
        float* s = weight + (1 + worker) * row;
        for (int64_t r = task * rows; r < min_of(args.n, (task + 1) * rows); r++) {
            with_row(args.x, r, [&](auto* x) {
                for_lanes(d, [&](int64_t i, int64_t n) { store_upto(s + i, load_upto(x + i, n), n); });
            });
            if (args.residual.data)
                with_row(args.residual, r, [&](auto* x) {
                    for_lanes(d, [&](int64_t i, int64_t n) {
                        store_upto(s + i, load_upto(s + i, n) + load_upto(x + i, n), n);
                    });
                });
            if (args.sum.data)
                with_row(args.sum, r, [&](auto* to) {
                    for_lanes(d, [&](int64_t i, int64_t n) { store_upto(to + i, load_upto(s + i, n), n); });
                });
            vec squares[4] = {zero(), zero(), zero(), zero()};
            int64_t i = 0;
            for (; i + 4 * VL <= d; i += 4 * VL) {
#pragma GCC unroll 4
                for (int u = 0; u < 4; u++) {
                    vec x = load(s + i + u * VL);
                    squares[u] = fma(x, x, squares[u]);
                }
            }
            for (; i < d; i += VL) {
                vec x = load_upto(s + i, d - i);
                squares[0] = fma(x, x, squares[0]);
            }
            float mean = sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / float(d);
            vec scale = set1(1.f / __builtin_sqrtf(mean + args.eps));
            with_row(args.out, r, [&](auto* to) {
                for_lanes(d, [&](int64_t i, int64_t n) {
                    store_upto(to + i, load_upto(s + i, n) * scale * load_upto(weight + i, n), n);
                });
            });
        }
    });
}

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
