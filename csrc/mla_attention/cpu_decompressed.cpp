#include "cpu_softmax.h"
#include "scratch.h"
#include "tasks.h"

namespace openmythos::cpu::OPENMYTHOS_ISA {

namespace {

constexpr int64_t KEYS_BYTES = int64_t(64) << 20;  // rebuilt keys and values of the heads computed at a time
constexpr int64_t REBUILD = BLOCK_GROUPS * VL;     // keys rebuilt by one task

// Rebuilds K (S, dn + dr) and V^T (dv, S) of some heads of one sequence, then attends head by head.
template <class T>
struct Decompressed {
    const MlaArgs& args;
    const MlaSizes size{args};
    int64_t b = 0, length = 0;
    int64_t k_stride = 0, v_stride = 0, latent_group = 0, q_group = 0, p_group = 0;
    int64_t ld_rebuilt = 0, rebuild_floats = 0, attend_floats = 0;
    float* latent = nullptr;               // packed, lanes are keys
    T *keys = nullptr, *values = nullptr;  // of the heads computed at a time
    float* scratch = nullptr;

    int64_t per_worker() const { return max_of(rebuild_floats, attend_floats); }

    void rebuild(int64_t h, T* k, T* v, int64_t first, float* c) const {
        float* t = c + padded_rows(max_of(size.dn, size.dv)) * REBUILD;
        int64_t count = min_of(REBUILD, length - first), groups = ceil_div(count, VL), ldc = groups * VL;
        const float* a = latent + first / VL * latent_group;
        auto uk = [&](int64_t i) { return w_uk_row<T>(args, h, i); };
        auto uv = [&](int64_t i) { return w_uv_row<T>(args, h, i); };
        gemm_packed<T>(a, latent_group, groups, uk, size.dn, size.dc, c, ldc, false);
        transpose_block(c, ldc, size.dn, count, t, ld_rebuilt);
        for (int64_t j = 0; j < count; j++) {
            T* to = k + (first + j) * k_stride;
            store_row(t + j * ld_rebuilt, to, size.dn);
            memcpy(to + size.dn, k_rope_row<T>(args, b, first + j), size_t(size.dr) * sizeof(T));
        }
        gemm_packed<T>(a, latent_group, groups, uv, size.dv, size.dc, c, ldc, false);
        for (int64_t i = 0; i < size.dv; i++) store_row(c + i * ldc, v + i * v_stride + first, count);
    }

    void attend(int64_t h, const T* k, const T* v, int64_t first, float* own) const {
        int64_t queries = min_of(TILE, size.t - first), groups = ceil_div(queries, VL), ldc = groups * VL;
        ScratchLayout layout{reinterpret_cast<char*>(own)};
        Online& online = *layout.array<Online>(1);
        T* rows = layout.array<T>(TILE * k_stride);
        float* q = layout.array<float>(TILE_GROUPS * q_group);
        float* scores = layout.array<float>(padded_rows(KEY_BLOCK) * TILE);
        float* p = layout.array<float>(TILE_GROUPS * p_group);
        float* o = layout.array<float>(padded_rows(size.dv) * TILE);  // O^T
        float* out = layout.array<float>(TILE * padded_rows(size.dv));
        for (int64_t i = 0; i < queries; i++) {
            online.limit[i] = int32_t(visible_keys(args, b, first + i));
            memcpy(rows + i * k_stride, q_nope_row<T>(args, b, first + i, h), size_t(size.dn) * sizeof(T));
            memcpy(rows + i * k_stride + size.dn, q_rope_row<T>(args, b, first + i, h), size_t(size.dr) * sizeof(T));
        }
        online.start(queries, groups);
        int64_t width = size.dn + size.dr;
        for (int64_t g = 0; g < groups; g++) {
            const T* source[VL];
            for (int64_t l = 0; l < VL; l++) source[l] = rows + min_of(g * VL + l, queries - 1) * k_stride;
            pack_group(source, min_of(VL, queries - g * VL), width, q + g * q_group);
        }
        memset(o, 0, size_t(padded_rows(size.dv) * ldc) * 4);
        for (int64_t begin = 0; begin < online.max_limit; begin += KEY_BLOCK) {
            int64_t count = min_of(KEY_BLOCK, online.max_limit - begin);
            gemm_packed<T>(
                q, q_group, groups, [&](int64_t j) { return k + (begin + j) * k_stride; }, count, width, scores, ldc,
                false);
            softmax_block<T>(online, scores, begin, count, groups, args.scale, p, p_group);
            if (begin)
                for (int64_t i = 0; i < size.dv; i++)
                    for (int64_t l = 0; l < ldc; l += VL)
                        store(o + i * ldc + l, load(o + i * ldc + l) * load(online.rescale + l));
            gemm_packed<T>(
                p, p_group, groups, [&](int64_t i) { return v + i * v_stride + begin; }, size.dv, count, o, ldc, true);
        }
        int64_t ld_out = padded_rows(size.dv);
        transpose_block(o, ldc, size.dv, queries, out, ld_out);
        for (int64_t i = 0; i < queries; i++) {
            float sum = online.sum[i];
            vec inverse = set1(sum == 0 ? 0.f : 1.f / sum);
            T* to = out_row<T>(args, b, first + i, h);
            for (int64_t c = 0; c < size.dv; c += VL)
                store_upto(to + c, load(out + i * ld_out + c) * inverse, size.dv - c);
            set_lse(args, b, h, first + i, online.top[i], sum);
        }
    }
};

template <class T>
void run(const Threads& threads, const MlaArgs& args) {
    const MlaSizes size{args};
    Decompressed<T> d{args};
    int64_t longest = 0;
    for (int64_t b = 0; b < size.b; b++) longest = max_of(longest, sequence_length(args, b));
    constexpr int64_t LINE = 64 / int64_t(sizeof(T));
    d.k_stride = round_up(size.dn + size.dr, LINE), d.v_stride = round_up(max_of(longest, 1), LINE);
    d.latent_group = packed_floats<T>(size.dc), d.q_group = packed_floats<T>(size.dn + size.dr);
    d.p_group = packed_floats<T>(KEY_BLOCK), d.ld_rebuilt = padded_rows(size.dn);
    d.rebuild_floats = padded_rows(max_of(size.dn, size.dv)) * REBUILD + REBUILD * d.ld_rebuilt;
    ScratchLayout measure;
    measure.array<Online>(1), measure.array<T>(TILE * d.k_stride), measure.array<float>(TILE_GROUPS * d.q_group);
    measure.array<float>(padded_rows(KEY_BLOCK) * TILE + 64), measure.array<float>(TILE_GROUPS * d.p_group);
    measure.array<float>(2 * padded_rows(size.dv) * TILE + 64);
    d.attend_floats = measure.used / 4;
    int64_t head = longest * d.k_stride + size.dv * d.v_stride;
    int64_t wave = min_of(size.h, max_of(threads.count, KEYS_BYTES / max_of(head * int64_t(sizeof(T)), 1)));
    int64_t worker_floats = round_up(d.per_worker(), 16);
    ScratchLayout layout;
    auto divide = [&] {
        layout.used = 0;
        d.latent = layout.array<float>(ceil_div(longest, VL) * d.latent_group);
        d.keys = layout.array<T>(wave * longest * d.k_stride);
        d.values = layout.array<T>(wave * size.dv * d.v_stride);
        d.scratch = layout.array<float>(threads.count * worker_floats);
    };
    divide();
    layout.base = static_cast<char*>(threads.scratch(layout.used));
    divide();
    for (int64_t b = 0; b < size.b; b++) {
        d.b = b, d.length = sequence_length(args, b);
        for_tasks(threads, ceil_div(d.length, VL), [&](int64_t g, int64_t) {
            const T* rows[VL];
            for (int64_t l = 0; l < VL; l++) rows[l] = latent_row<T>(args, b, min_of(g * VL + l, d.length - 1));
            pack_group(rows, min_of(VL, d.length - g * VL), size.dc, d.latent + g * d.latent_group);
        });
        int64_t blocks = ceil_div(d.length, REBUILD), tiles = ceil_div(size.t, TILE);
        for (int64_t h = 0; h < size.h; h += wave) {
            int64_t heads = min_of(wave, size.h - h);
            auto keys = [&](int64_t i) { return d.keys + i * longest * d.k_stride; };
            auto values = [&](int64_t i) { return d.values + i * size.dv * d.v_stride; };
            for_tasks(threads, heads * blocks, [&](int64_t task, int64_t worker) {
                int64_t i = task / blocks;
                d.rebuild(h + i, keys(i), values(i), task % blocks * REBUILD, d.scratch + worker * worker_floats);
            });
            for_tasks(threads, heads * tiles, [&](int64_t task, int64_t worker) {
                int64_t i = task / tiles;
                // Longest first: later causal tiles see more keys.
                d.attend(h + i, keys(i), values(i), (tiles - 1 - task % tiles) * TILE,
                         d.scratch + worker * worker_floats);
            });
        }
    }
}

}  // namespace

void mla_decompressed(const Threads& threads, const MlaArgs& args) {
    if (args.b == 0 || args.t == 0 || args.h == 0) return;
    args.type == Type::float32 ? run<float>(threads, args) : run<bf16>(threads, args);
}

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
