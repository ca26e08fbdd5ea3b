#include <algorithm>
#include <cmath>

#include "plan.h"

namespace openmythos::runtime {

Planned<LoopStepArgs> plan(LoopStepArgs p, int multiprocessors) {
    constexpr double THETA = 10000.;
    double frequency = p.loop_dim ? -2. * std::log2(THETA) / p.loop_dim : 0.;
    p.frequency_hi = float(frequency), p.frequency_lo = float(frequency - p.frequency_hi);

    bool fast = p.d % VEC == 0 && is_aligned(p.h_out) && is_aligned(p.h_out_new);
    for (const Matrix* x : {&p.h, &p.e, &p.block_out, &p.h_new, &p.x_next})
        if (x->data) fast = fast && x->type == p.h.type && is_aligned(*x);
    for_each_wide_parameter(p, [&](const float* x) { fast = fast && is_aligned(x); });
    p.aligned = fast;

    constexpr int64_t THREADS = 512, VECTORS = 4;  // VECTORS: rows per block times vectors per thread
    const int64_t table = p.x_next.data ? int64_t(p.loop_dim) * 4 : 0;
    int rows = 1;
    if (fast) {
        // More rows per block read the low-rank matrices less often, but every multiprocessor should have a block.
        for (int each : {4, 2}) {
            if (p.d > THREADS * VEC * VECTORS / each || p.n < int64_t(each) * multiprocessors) continue;
            if (p.t_rows && table * each > MAX_LOOP_DIM * 4) continue;
            rows = each;
            break;
        }
    }
    constexpr const char* names[TYPES][3] = {
        {"openmythos_loop_step_f32_rows1", "openmythos_loop_step_f32_rows2", "openmythos_loop_step_f32_rows4"},
        {"openmythos_loop_step_bf16_rows1", "openmythos_loop_step_bf16_rows2", "openmythos_loop_step_bf16_rows4"},
        {"openmythos_loop_step_f16_rows1", "openmythos_loop_step_f16_rows2", "openmythos_loop_step_f16_rows4"}};
    const char* kernel = fast ? names[int(p.h.type)][rows / 2] : "openmythos_loop_step_any_rows1";
    int64_t wanted = ceil_div(p.d, VEC), threads = std::min(THREADS, ceil_div(wanted, 32) * 32);
    const unsigned table_bytes = unsigned(table * (p.t_rows ? rows : 1));
    return {p, {"loop_step", kernel, {unsigned(ceil_div(p.n, rows)), 1, 1, unsigned(threads), table_bytes}}};
}

}  // namespace openmythos::runtime
