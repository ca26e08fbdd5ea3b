#include "cpu_fold.h"
#include "cpu_softmax.h"
#include "scratch.h"
#include "tasks.h"

namespace openmythos::cpu::OPENMYTHOS_ISA {

namespace {

constexpr int64_t BATCH_BYTES = int64_t(64) << 20;

// Every (token, head) is a query row of width dc + dr; all share one key, the latent row itself. With few rows the
// keys are split over the threads, and the splits are merged exactly.
template <class T>
struct Absorbed {
    const MlaArgs& args;
    const MlaSizes size{args};
    int64_t rows = 0, q_stride = 0, ldo = 0, splits = 0, chunks = 0;
    bool one_buffer = false;   // k_rope follows the latent in memory, so one dot product covers both
    T* q = nullptr;            // (batch, rows, q_stride): folded q_nope, then q_rope
    float* partial = nullptr;  // (batch, splits, rows, ldo)
    float* state = nullptr;    // (batch, splits, 2, rows): maximum and sum

    // q_nope w_uk for the tokens of one head.
    void fold_queries(int64_t b, int64_t slot, int64_t h, int64_t first, float* packed, float* o) const {
        int64_t count = min_of(TILE, size.t - first), group = packed_floats<T>(size.dn);
        for (int64_t g = 0; g < ceil_div(count, VL); g++) {
            const T* source[VL];
            for (int64_t l = 0; l < VL; l++)
                source[l] = q_nope_row<T>(args, b, first + min_of(g * VL + l, count - 1), h);
            pack_group(source, min_of(VL, count - g * VL), size.dn, packed + g * group);
        }
        fold(packed, group, count, w_uk_row<T>(args, h, 0), args.w_uk_n, size.dn, size.dc,
             static_cast<const float*>(nullptr), o, ldo);
        for (int64_t i = 0; i < count; i++) {
            T* to = q + (slot * rows + (first + i) * size.h + h) * q_stride;
            store_row(o + i * ldo, to, size.dc);
            memcpy(to + size.dc, q_rope_row<T>(args, b, first + i, h), size_t(size.dr) * sizeof(T));
        }
    }

    int64_t attend_bytes() const {
        ScratchLayout measure;
        lay_out_attend(measure);
        return measure.used;
    }
    struct Buffers {
        Online* online;
        float *q, *q_rope, *scores, *p;
    };
    Buffers lay_out_attend(ScratchLayout& layout) const {
        return {layout.array<Online>(1), layout.array<float>(TILE_GROUPS * packed_floats<T>(size.dc + size.dr)),
                layout.array<float>(TILE_GROUPS * packed_floats<T>(size.dr)),
                layout.array<float>(padded_rows(KEY_BLOCK) * TILE),
                layout.array<float>(TILE_GROUPS * packed_floats<T>(KEY_BLOCK))};
    }

    void attend(int64_t b, int64_t slot, int64_t chunk, int64_t split, char* own) const {
        int64_t first = chunk * TILE, count = min_of(TILE, rows - first), groups = ceil_div(count, VL),
                ldc = groups * VL;
        ScratchLayout layout{own};
        Buffers buffers = lay_out_attend(layout);
        Online& online = *buffers.online;
        for (int64_t i = 0; i < count; i++) online.limit[i] = int32_t(visible_keys(args, b, (first + i) / size.h));
        online.start(count, groups);
        float* o = partial + ((slot * splits + split) * (rows + 8) + first) * ldo;
        int64_t split_keys = round_up(ceil_div(online.max_limit, splits), 16);
        int64_t begin = min_of(online.max_limit, split * split_keys),
                end = min_of(online.max_limit, begin + split_keys);
        int64_t width = one_buffer ? size.dc + size.dr : size.dc;
        int64_t q_group = packed_floats<T>(width), rope_group = packed_floats<T>(size.dr),
                p_group = packed_floats<T>(KEY_BLOCK);
        for (int64_t g = 0; begin < end && g < groups; g++) {
            const T *source[VL], *rope[VL];
            for (int64_t l = 0; l < VL; l++) {
                source[l] = q + (slot * rows + first + min_of(g * VL + l, count - 1)) * q_stride;
                rope[l] = source[l] + size.dc;
            }
            int64_t live = min_of(VL, count - g * VL);
            pack_group(source, live, width, buffers.q + g * q_group);
            if (!one_buffer) pack_group(rope, live, size.dr, buffers.q_rope + g * rope_group);
        }
        for (int64_t at = begin; at < end; at += KEY_BLOCK) {
            int64_t keys = min_of(KEY_BLOCK, end - at);
            auto latent = [&](int64_t j) { return latent_row<T>(args, b, at + j); };
            auto k_rope = [&](int64_t j) { return k_rope_row<T>(args, b, at + j); };
            gemm_packed<T>(buffers.q, q_group, groups, latent, keys, width, buffers.scores, ldc, false);
            if (!one_buffer && size.dr)
                gemm_packed<T>(buffers.q_rope, rope_group, groups, k_rope, keys, size.dr, buffers.scores, ldc, true);
            softmax_block<T>(online, buffers.scores, at, keys, groups, args.scale, buffers.p, p_group);
            fold(buffers.p, p_group, count, latent(0), args.latent_s, keys, size.dc,
                 at == begin ? nullptr : online.rescale, o, ldo);
        }
        if (begin >= end) memset(o, 0, size_t(count * ldo) * 4);
        float* top = state + (slot * splits + split) * 2 * rows + first;
        memcpy(top, online.top, size_t(count) * 4);
        memcpy(top + rows, online.sum, size_t(count) * 4);
    }

    // Merges the splits of one head and applies w_uv.
    void finish(int64_t b, int64_t slot, int64_t h, int64_t first, T* merged, float* packed, float* c, float* t) const {
        int64_t count = min_of(TILE, size.t - first);
        const T* source[TILE];
        for (int64_t i = 0; i < count; i++) {
            int64_t row = (first + i) * size.h + h;
            const float* tops = state + slot * splits * 2 * rows + row;
            float top = -__builtin_inff(), sum = 0;
            for (int64_t s = 0; s < splits; s++)
                if (tops[s * 2 * rows] > top) top = tops[s * 2 * rows];
            float origin = top == -__builtin_inff() ? 0.f : top;
            for (int64_t s = 0; s < splits; s++) sum += tops[(s * 2 + 1) * rows] * exp(tops[s * 2 * rows] - origin);
            T* to = merged + i * q_stride;
            source[i] = to;
            for (int64_t x = 0; x < size.dc; x += VL) {
                vec value = zero();
                for (int64_t s = 0; s < splits; s++) {
                    const float* o = partial + ((slot * splits + s) * (rows + 8) + row) * ldo;
                    float part = tops[(s * 2 + 1) * rows];
                    if (part != 0) value = fma(set1(exp(tops[s * 2 * rows] - origin) / sum), load(o + x), value);
                }
                store_upto(to + x, value, size.dc - x);
            }
            set_lse(args, b, h, first + i, top, sum);
        }
        auto uv = [&](int64_t i) { return w_uv_row<T>(args, h, i); };
        Split split = split_tokens(count);
        int64_t group = packed_floats<T>(size.dc), ldt = padded_rows(size.dv);
        auto put = [&](int64_t begin, int64_t m, int64_t ldc) {
            if (ldc > 1) transpose_block(c, ldc, size.dv, m, t, ldt);
            for (int64_t i = 0; i < m; i++)
                store_row(ldc > 1 ? t + i * ldt : c, out_row<T>(args, b, first + begin + i, h), size.dv);
        };
        if (split.groups) {
            for (int64_t g = 0; g < split.groups; g++)
                pack_group(source + g * VL, min_of(VL, split.packed - g * VL), size.dc, packed + g * group);
            gemm_packed<T>(packed, group, split.groups, uv, size.dv, size.dc, c, split.groups * VL, false);
            put(0, split.packed, split.groups * VL);
        }
        if (split.rest) {
            gemm_dot(source + split.packed, split.rest, uv, size.dv, size.dc, c, rest_stride(split.rest));
            put(split.packed, split.rest, rest_stride(split.rest));
        }
    }
};

// If there are fewer tasks than this, the keys are split. A constant, so that results do not depend on the number of
// threads.
constexpr int64_t PARTS = 16;

template <class T>
void run(const Threads& threads, const MlaArgs& args) {
    const MlaSizes size{args};
    Absorbed<T> a{args};
    int64_t longest = 0;
    for (int64_t b = 0; b < size.b; b++) longest = max_of(longest, sequence_length(args, b));
    a.rows = size.t * size.h, a.chunks = ceil_div(a.rows, TILE);
    a.q_stride = round_up(size.dc + size.dr, 64 / int64_t(sizeof(T))), a.ldo = round_up(size.dc, 2 * VL);
    a.one_buffer = static_cast<const T*>(args.latent) + size.dc == args.k_rope && args.latent_b == args.k_rope_b &&
                   args.latent_s == args.k_rope_s;
    a.splits = max_of(1, min_of(ceil_div(PARTS, size.b * a.chunks), longest / 64));

    int64_t sequence = a.rows * a.q_stride * int64_t(sizeof(T)) + a.splits * (a.rows + 8) * (a.ldo + 2) * 4;
    int64_t batch = max_of(1, min_of(size.b, BATCH_BYTES / sequence));
    int64_t group = packed_floats<T>(max_of(size.dn, size.dc)), c_floats = padded_rows(size.dv) * TILE;
    int64_t packed_bytes = round_up(TILE_GROUPS * group * 4, 64), o_bytes = (TILE + 8) * a.ldo * 4;
    int64_t merged_bytes = round_up(TILE * a.q_stride * int64_t(sizeof(T)), 64);
    int64_t finish_bytes = packed_bytes + merged_bytes + 2 * c_floats * 4;
    int64_t per_worker = round_up(max_of(max_of(packed_bytes + o_bytes, finish_bytes), a.attend_bytes()), 64);
    ScratchLayout layout;
    char* scratch;
    auto divide = [&] {
        layout.used = 0;
        a.q = layout.array<T>(batch * a.rows * a.q_stride);
        a.partial = layout.array<float>(batch * a.splits * (a.rows + 8) * a.ldo);
        a.state = layout.array<float>(batch * a.splits * 2 * a.rows);
        scratch = layout.array<char>(threads.count * per_worker);
    };
    divide();
    layout.base = static_cast<char*>(threads.scratch(layout.used));
    divide();
    int64_t tiles = ceil_div(size.t, TILE);
    for (int64_t b = 0; b < size.b; b += batch) {
        int64_t count = min_of(batch, size.b - b), heads = size.h * tiles, parts = a.chunks * a.splits;
        for_tasks(threads, count * heads, [&](int64_t task, int64_t worker) {
            char* own = scratch + worker * per_worker;
            int64_t slot = task / heads, h = task % heads / tiles, tile = task % tiles;
            a.fold_queries(b + slot, slot, h, tile * TILE, reinterpret_cast<float*>(own),
                           reinterpret_cast<float*>(own + packed_bytes));
        });
        // A block of rows writes up to 8 rows past its end. Within a task the next block overwrites them, and TILE is a
        // multiple of 8, so they stay only after a split's last block, where the buffer has room.
        for_tasks(threads, count * parts, [&](int64_t task, int64_t worker) {
            int64_t slot = task / parts, part = task % parts;
            a.attend(b + slot, slot, part / a.splits, part % a.splits, scratch + worker * per_worker);
        });
        for_tasks(threads, count * heads, [&](int64_t task, int64_t worker) {
            char* own = scratch + worker * per_worker;
            int64_t slot = task / heads, h = task % heads / tiles, tile = task % tiles;
            float* c = reinterpret_cast<float*>(own + packed_bytes + merged_bytes);
            a.finish(b + slot, slot, h, tile * TILE, reinterpret_cast<T*>(own + packed_bytes),
                     reinterpret_cast<float*>(own), c, c + c_floats);
        });
    }
}

}  // namespace

void mla_absorbed(const Threads& threads, const MlaArgs& args) {
    if (args.b == 0 || args.t == 0 || args.h == 0) return;
    args.type == Type::float32 ? run<float>(threads, args) : run<bf16>(threads, args);
}

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
