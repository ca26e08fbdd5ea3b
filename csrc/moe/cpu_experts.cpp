#include "../linear/cpu.h"
#include "cpu_hidden.h"
#include "scratch.h"

namespace openmythos::cpu::OPENMYTHOS_ISA {

// Chunks bound the scratch memory; in one of this size every expert has enough rows to be compute-bound.
constexpr int64_t CHUNK_TOKENS = 4096;

// The slots of one chunk in the order of (expert, token, slot).
struct Sorted {
    int32_t* token;
    float* weight;
};

template <class T>
static int64_t sort_by_expert(const MoeExpertsArgs& args, int64_t begin, int64_t n, int64_t* start, Expert<T>* experts,
                              const Sorted& sorted) {
    for (int64_t e = 0; e <= args.experts; e++) start[e] = 0;
    auto id = [&](int64_t r, int64_t j) { return expert_id(args, begin + r, j); };
    for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < args.k; j++) start[id(r, j) + 1]++;
    for (int64_t e = 0; e < args.experts; e++) start[e + 1] += start[e];
    int64_t active = 0;
    for (int64_t e = 0; e < args.experts; e++) {
        if (start[e] == start[e + 1]) continue;
        Expert<T> expert{};
        const ExpertWeights weights = expert_weights(args, e);
        expert.gate = static_cast<const T*>(weights.gate.data), expert.gate_stride = weights.gate.stride;
        expert.up = static_cast<const T*>(weights.up.data), expert.up_stride = weights.up.stride;
        expert.down = static_cast<const T*>(weights.down.data), expert.down_stride = weights.down.stride;
        expert.first = start[e], expert.rows = start[e + 1] - start[e];
        experts[active++] = expert;
    }
    for (int64_t r = 0; r < n; r++) {
        for (int64_t j = 0; j < args.k; j++) {
            int64_t at = start[id(r, j)]++;
            sorted.token[at] = int32_t(r);
            sorted.weight[at] = args.weights[(begin + r) * args.weights_stride + j];
        }
    }
    return active;
}

// out[token] (n values) += weight * y[token], both in float32.
static void accumulate(const float* y, float weight, float* out, int64_t n) {
    vec w = set1(weight);
    for (int64_t i = 0; i < n; i += VL) {
        int64_t m = min_of(VL, n - i);
        store_upto(out + i, fma(w, load_upto(y + i, m), load_upto(out + i, m)), m);
    }
}

constexpr int64_t COMBINE_ROWS = 96;

OPENMYTHOS_INLINE int64_t combine_scratch(int64_t tokens) {
    return (2 * BLOCK_GROUPS * VL + 2 * tokens) * padded_rows(COMBINE_ROWS);
}

// sum[token] += weight * down_e H_e for `n` output channels from `begin` on, experts in ascending order.
template <class T>
static void add_experts(const Hidden<T>& hidden, const Sorted& sorted, int64_t from, int64_t to, int64_t begin,
                        int64_t n, float* sum, float* c, float* t) {
    int64_t ld = padded_rows(COMBINE_ROWS);
    for (int64_t e = from; e < to; e++) {
        const Expert<T>& expert = hidden.experts[e];
        Split split = expert.split;
        auto row = [&](int64_t i) { return expert.down + (begin + i) * expert.down_stride; };
        auto finish = [&](int64_t first, int64_t m, int64_t ldc) {
            if (ldc > 1) transpose_block(c, ldc, n, m, t, ld);
            for (int64_t j = 0; j < m; j++)
                accumulate(ldc > 1 ? t + j * ld : c, sorted.weight[first + j], sum + sorted.token[first + j] * ld, n);
        };
        for (int64_t g = 0; g < split.groups; g += BLOCK_GROUPS) {
            int64_t block = min_of(BLOCK_GROUPS, split.groups - g);
            const Expert<T>* other = e + 1 < to && g + block == split.groups ? &expert + 1 : nullptr;
            const T* after = other && n >= PANEL ? other->down + begin * other->down_stride : nullptr;
            gemm_packed<T>(hidden.h_packed + (expert.first_group + g) * hidden.h_group(), hidden.h_group(), block, row,
                           n, hidden.i, c, block * VL, false, after, other ? other->down_stride : 0);
            finish(expert.first + g * VL, min_of(block * VL, split.packed - g * VL), block * VL);
        }
        if (split.rest) {
            const T* after =
                e + 1 < to ? hidden.experts[e + 1].down + begin * hidden.experts[e + 1].down_stride : nullptr;
            gemm_dot(hidden.h_rows + expert.first_rest, split.rest, row, n, hidden.i, c, rest_stride(split.rest),
                     after);
            finish(expert.first + split.packed, split.rest, rest_stride(split.rest));
        }
    }
}

// Blocks of output channels. Routed and shared experts are summed separately, so that every other block can take the
// shared ones first: one worker multiplies while another waits for the routed weights.
template <class T>
static void combine(const Threads& threads, const Hidden<T>& hidden, int64_t routed, const Sorted& sorted,
                    int64_t tokens, T* out, int64_t ld_out, int64_t groups, float* scratch) {
    int64_t rows = groups ? COMBINE_ROWS : ceil_div(STREAM_BYTES, max_of(hidden.i, 1) * int64_t(sizeof(T)));
    rows = min_of(rows, ceil_div(hidden.d, (groups ? 4 : 16) * threads.count));
    rows = min_of(COMBINE_ROWS, round_up(max_of(rows, 1), 24));
    for_tasks(threads, ceil_div(hidden.d, rows), [&](int64_t task, int64_t worker) {
        int64_t ld = padded_rows(COMBINE_ROWS), part = BLOCK_GROUPS * VL * ld;
        float* c = scratch + worker * combine_scratch(tokens);
        float *t = c + part, *sum = t + part, *shared_sum = sum + tokens * ld;
        int64_t begin = task * rows, n = min_of(rows, hidden.d - begin);
        bool shared = routed < hidden.count;
        for (int64_t j = 0; j < (shared ? 2 : 1) * tokens; j++) memset(sum + j * ld, 0, size_t(n) * 4);
        if (task % 2) add_experts(hidden, sorted, routed, hidden.count, begin, n, shared_sum, c, t);
        add_experts(hidden, sorted, 0, routed, begin, n, sum, c, t);
        if (task % 2 == 0) add_experts(hidden, sorted, routed, hidden.count, begin, n, shared_sum, c, t);
        for (int64_t j = 0; j < tokens; j++) {
            if (shared) accumulate(shared_sum + j * ld, 1.f, sum + j * ld, n);
            store_row(sum + j * ld, out + j * ld_out + begin, n);
        }
    });
}

// A shared expert is cut into slices of a routed expert's width, which is exact since a SwiGLU is elementwise in its
// hidden units.
static int64_t shared_slices(const MoeExpertsArgs& args) { return args.width ? args.shared_width / args.width : 0; }

// Appends the slices to the routed experts; all slices share one set of packed rows. Returns the number of experts that
// own packed rows.
template <class T>
static int64_t append_shared(const MoeExpertsArgs& args, int64_t n, int64_t routed, Expert<T>* experts,
                             const Sorted& sorted) {
    const int64_t first = n * args.k, width = args.width;
    Expert<T>* slice = experts + routed;
    for (int64_t s = 0; s < args.shared_count; s++) {
        const MoeShared& shared = args.shared[s];
        for (int64_t unit = 0; unit < shared.width; unit += width, slice++) {
            *slice = {};
            slice->gate = static_cast<const T*>(shared.gate) + unit * shared.gate_stride;
            slice->up = static_cast<const T*>(shared.up) + unit * shared.up_stride;
            slice->down = static_cast<const T*>(shared.down) + unit;
            slice->gate_stride = shared.gate_stride, slice->up_stride = shared.up_stride;
            slice->down_stride = shared.down_stride;
            slice->first = first, slice->rows = n;
        }
    }
    const bool any = slice != experts + routed;
    for (int64_t r = 0; r < n && any; r++) sorted.token[first + r] = int32_t(r), sorted.weight[first + r] = 1;
    return routed + any;
}

template <class T>
static void moe_experts_chunk(const Threads& threads, const MoeExpertsArgs& args, int64_t begin, int64_t n) {
    Hidden<T> hidden{};
    const int64_t k = args.k, slices = shared_slices(args);
    hidden.d = args.d, hidden.i = args.width;
    Sorted sorted{};
    ScratchLayout layout;
    int64_t routed_rows = n * k, rows = routed_rows + (slices ? n : 0);
    // Upper bounds: every expert may have one padded group, and the exact counts are known only after sorting, which
    // itself needs memory.
    int64_t max_experts = min_of(routed_rows, int64_t(args.experts));
    int64_t max_groups = min_of(routed_rows / VL + max_experts, 2 * routed_rows / (DOT_REST + 1));
    int64_t max_rest = min_of(routed_rows, max_experts * DOT_REST);
    Split all = split_tokens(n);
    int64_t x_groups = max_groups + (slices ? all.groups : 0);
    int64_t h_groups = max_groups + slices * all.groups, h_rest = max_rest + slices * all.rest;
    int64_t per_worker = max_of(hidden_scratch(), combine_scratch(n));
    Expert<T>* experts;
    int64_t* start;
    auto divide = [&] {
        layout.used = 0;
        experts = layout.array<Expert<T>>(max_experts + slices);
        start = layout.array<int64_t>(int64_t(args.experts) + 1);
        sorted.token = layout.array<int32_t>(rows);
        sorted.weight = layout.array<float>(rows);
        hidden.x_rows = layout.array<const T*>(rows);
        hidden.h_rows = layout.array<const T*>(h_rest);
        hidden.scratch = layout.array<float>(threads.count * per_worker);
        hidden.x_packed = layout.array<float>(x_groups * hidden.x_group());
        hidden.h_packed = layout.array<float>(h_groups * hidden.h_group());
        hidden.h_rest = layout.array<T>(h_rest * hidden.h_stride());
    };
    divide();
    layout.base = static_cast<char*>(threads.scratch(layout.used));
    divide();
    int64_t routed = sort_by_expert(args, begin, n, start, experts, sorted);
    hidden.experts = experts, hidden.count = routed + slices;
    hidden.owners = append_shared(args, n, routed, experts, sorted);
    Split total = lay_out(experts, hidden.count);
    for (int64_t s = 1; s < slices; s++) experts[routed + s].first_x_group = experts[routed].first_x_group;
    const T* x = static_cast<const T*>(args.x.data) + begin * args.x.stride;
    for (int64_t r = 0; r < rows; r++) hidden.x_rows[r] = x + sorted.token[r] * args.x.stride;
    compute_hidden(threads, hidden, experts);
    combine(threads, hidden, routed, sorted, n, static_cast<T*>(args.out.data) + begin * args.out.stride,
            args.out.stride, total.groups, hidden.scratch);
}

void moe_experts(const Threads& threads, const MoeExpertsArgs& args) {
    for (int64_t begin = 0; begin < args.rows; begin += CHUNK_TOKENS) {
        int64_t n = min_of(CHUNK_TOKENS, args.rows - begin);
        args.x.type == Type::float32 ? moe_experts_chunk<float>(threads, args, begin, n)
                                     : moe_experts_chunk<bf16>(threads, args, begin, n);
    }
}

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
