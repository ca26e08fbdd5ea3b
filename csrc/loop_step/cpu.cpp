#include "scratch.h"
#include "tasks.h"

namespace openmythos::cpu::OPENMYTHOS_ISA {

namespace {

// Row: a row whose type is known at compile time. AnyRow: for calls of mixed dtypes.
template <class T>
struct Row {
    T* p;
    static Row of(const Matrix& x, int64_t n) { return {static_cast<T*>(x.data) + n * x.stride}; }
    OPENMYTHOS_INLINE_MEMBER vec get(int64_t i, int64_t n) const { return load_upto(p + i, n); }
    OPENMYTHOS_INLINE_MEMBER void put(int64_t i, vec x, int64_t n) const { store_upto(p + i, x, n); }
    OPENMYTHOS_INLINE_MEMBER void put_streaming(int64_t i, vec x) const { stream(p + i, x); }
    // Prefetches column i of a later row, `ahead` elements away.
    OPENMYTHOS_INLINE_MEMBER void prefetch(int64_t i, int64_t ahead) const {
        _mm_prefetch((const char*)(p + i + ahead), _MM_HINT_T1);
        if (sizeof(T) * VL == 64) _mm_prefetch((const char*)(p + i + VL + ahead), _MM_HINT_T1);
    }
};

struct AnyRow {
    Matrix x;
    static AnyRow of(const Matrix& x, int64_t n) {
        return {{static_cast<char*>(x.data) + n * x.stride * size_of(x.type), x.stride, x.type, 0}};
    }
    vec get(int64_t i, int64_t n) const {
        return x.type == Type::float32 ? load_upto(static_cast<float*>(x.data) + i, n)
                                       : load_upto(static_cast<bf16*>(x.data) + i, n);
    }
    void put(int64_t i, vec y, int64_t n) const {
        x.type == Type::float32 ? store_upto(static_cast<float*>(x.data) + i, y, n)
                                : store_upto(static_cast<bf16*>(x.data) + i, y, n);
    }
    void put_streaming(int64_t i, vec y) const { put(i, y, VL); }
    void prefetch(int64_t, int64_t) const {}
};

template <int N>
struct Count {};

struct Embeddings {
    const double* frequency;  // ceil(loop_dim / 2)
    float* table;  // row t - first: the embedding of loop t + 1; unused, with count 0, if loops are far apart
    int64_t first, count;
};
constexpr int64_t MAX_EMBEDDINGS = 1024;

void embed(const LoopStepArgs& args, const double* frequency, int64_t t, float* row) {
    int64_t half = ceil_div(int64_t(args.loop_dim), 2);
    for (int64_t i = 0; i < half; i++) {
        double angle = double(t) * frequency[i];
        row[i] = float(__builtin_sin(angle));
        if (half + i < int64_t(args.loop_dim)) row[half + i] = float(__builtin_cos(angle));
    }
}

// Streaming stores skip the read for ownership. They pay for large outputs that are not in cache and not read soon.
bool streams(const LoopStepArgs& args, const Matrix& out, const Matrix& source) {
    if (!out.data || out.data == source.data || args.n * int64_t(args.d) < (1 << 20) || int64_t(args.d) % VL)
        return false;
    int64_t size = out.type == Type::float32 ? 4 : 2;
    return reinterpret_cast<uintptr_t>(out.data) % 64 == 0 && out.stride * size % 64 == 0;
}

struct Step {
    const LoopStepArgs& args;
    Embeddings embeddings;
    bool stream_h, stream_h_out, stream_next;

    // low[r][k] = (block_out[r] . lora_down[k]) * lora_scale, four rows by four ranks per sweep.
    template <class R, int N>
    void low_rank(const R (&block_out)[N], int64_t first, float* low) const {
        const int64_t d = int64_t(args.d);
        for (int64_t k = 0; k < int64_t(args.rank); k += 4) {
            const float* down[4];
            for (int j = 0; j < 4; j++) down[j] = args.lora_down + min_of(k + j, int64_t(args.rank) - 1) * d;
            vec acc[N][4];
#pragma GCC unroll 4
            for (int r = 0; r < N; r++) {
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) acc[r][j] = zero();
            }
            auto sweep = [&](int64_t i, int64_t n) __attribute__((always_inline)) {
                vec x[N];
#pragma GCC unroll 4
                for (int r = 0; r < N; r++) x[r] = block_out[r].get(i, n);
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) {
                    vec w = load_upto(down[j] + i, n);
#pragma GCC unroll 4
                    for (int r = 0; r < N; r++) acc[r][j] = fma(x[r], w, acc[r][j]);
                }
            };
            int64_t i = 0;
            for (; i + 2 * VL <= d; i += 2 * VL) {
                for (int r = 0; N == 4 && k == 0 && r < N; r++) block_out[r].prefetch(i, N * args.block_out.stride);
                sweep(i, VL);
                sweep(i + VL, VL);
            }
            for (; i + VL <= d; i += VL) sweep(i, VL);
            if (i < d) sweep(i, d - i);
#pragma GCC unroll 4
            for (int r = 0; r < N; r++) {
                float sums[4];
                _mm_storeu_ps(sums, sum4(acc[r][0], acc[r][1], acc[r][2], acc[r][3]));
                const float* scale =
                    args.lora_scale + min_of(depth(first + r), int64_t(args.scale_rows) - 1) * int64_t(args.rank);
                for (int64_t j = 0; j < min_of(4, int64_t(args.rank) - k); j++)
                    low[r * int64_t(args.rank) + k + j] = sums[j] * scale[k + j];
            }
        }
    }

    int64_t depth(int64_t row) const { return args.t_rows ? args.t_rows[row] : int64_t(args.t); }

    template <class R, int N>
    void rows(int64_t first, float* scratch) const {
        const int64_t d = int64_t(args.d), rank = int64_t(args.rank), row = round_up(d, VL);
        float *h_exact = scratch, *low = h_exact + 4 * row, *own = low + round_up(4 * rank, VL);
        const bool next = args.x_next.data != nullptr;
        R h[N], e[N], block_out[N], h_new[N];
        const float* embedding[N];
#pragma GCC unroll 4
        for (int r = 0; r < N; r++) {
            h[r] = R::of(args.h, first + r), e[r] = R::of(args.e, first + r);
            block_out[r] = R::of(args.block_out, first + r), h_new[r] = R::of(args.h_new, first + r);
            int64_t t = depth(first + r) - embeddings.first;
            embedding[r] = embeddings.count ? embeddings.table + t * int64_t(args.loop_dim)
                                            : own + r * round_up(int64_t(args.loop_dim), VL);
            if (next && !embeddings.count)
                embed(args, embeddings.frequency, depth(first + r) + 1, own + r * round_up(int64_t(args.loop_dim), VL));
        }
        low_rank(block_out, first, low);

        vec halt[N], squares[N];
#pragma GCC unroll 4
        for (int r = 0; r < N; r++) halt[r] = squares[r] = zero();
        auto with_embedding = [&](int r, vec x, int64_t i, int64_t n) __attribute__((always_inline)) {
            int64_t left = next ? int64_t(args.loop_dim) - i : 0;
            return left > 0 ? x + load_upto(embedding[r] + i, min_of(left, n)) : x;
        };
        Row<float> h_out[N];
        for (int r = 0; r < N; r++) h_out[r] = Row<float>::of(args.h_out, first + r);
        // C vectors of columns share every broadcast of `low`; the last one has n elements.
        auto sweep = [&]<int C>(Count<C>, int64_t i, int64_t n) __attribute__((always_inline)) {
            vec x[N][C];
#pragma GCC unroll 4
            for (int r = 0; r < N; r++) {
#pragma GCC unroll 2
                for (int c = 0; c < C; c++) x[r][c] = block_out[r].get(i + c * VL, n);
                if (C == 2 && N == 4) {
                    h[r].prefetch(i, N * args.h.stride);
                    e[r].prefetch(i, N * args.e.stride);
                    h_out[r].prefetch(i, 0);
                }
            }
            for (int64_t k = 0; k < rank; k++) {
                vec b[C];
#pragma GCC unroll 2
                for (int c = 0; c < C; c++) b[c] = load_upto(args.lora_b + k * d + i + c * VL, n);
#pragma GCC unroll 4
                for (int r = 0; r < N; r++) {
                    vec l = set1(low[r * rank + k]);
#pragma GCC unroll 2
                    for (int c = 0; c < C; c++) x[r][c] = fma(l, b[c], x[r][c]);
                }
            }
#pragma GCC unroll 2
            for (int c = 0; c < C; c++) {
                int64_t at = i + c * VL;
                vec a = load_upto(args.a + at, n), b = load_upto(args.b + at, n), w = load_upto(args.halt_w + at, n);
#pragma GCC unroll 4
                for (int r = 0; r < N; r++) {
                    vec injected = e[r].get(at, n);
                    vec y = fma(a, h[r].get(at, n), fma(b, injected, x[r][c]));
                    store(h_exact + r * row + at, y);
                    stream_h ? h_new[r].put_streaming(at, y) : h_new[r].put(at, y, n);
                    halt[r] = fma(y, w, halt[r]);
                    vec z = with_embedding(r, y + injected, at, n);
                    squares[r] = fma(z, z, squares[r]);
                }
            }
        };
        int64_t i = 0;
        for (; i + 2 * VL <= d; i += 2 * VL) sweep(Count<2>(), i, VL);
        for (; i + VL <= d; i += VL) sweep(Count<1>(), i, VL);
        if (i < d) sweep(Count<1>(), i, d - i);

        for (int r = 0; r < N; r++) {
            float p = 1.f / (1.f + exp(-(sum(halt[r]) + args.halt_b[0]))), before = args.cum_p[first + r];
            bool running = before < args.threshold;
            float left = 1.f - before > 0.f ? 1.f - before : 0.f;
            float weight = running ? (before + p >= args.threshold ? left : p) : 0.f;
            args.cum_p_new[first + r] = before + (running ? p : 0.f);

            const float *y = h_exact + r * row,
                        *from = static_cast<float*>(args.h_out.data) + (first + r) * args.h_out.stride;
            float* to = static_cast<float*>(args.h_out_new.data) + (first + r) * args.h_out_new.stride;
            vec w = set1(weight);
            vec scale = set1(1.f / __builtin_sqrtf(sum(squares[r]) / float(d) + args.eps));
            R x_next = next ? R::of(args.x_next, first + r) : R{};
            auto write = [&](int64_t i, int64_t n) __attribute__((always_inline)) {
                vec exact = load(y + i), z = fma(w, exact, load_upto(from + i, n));
                stream_h_out ? stream(to + i, z) : store_upto(to + i, z, n);
                if (!next) return;
                z = with_embedding(r, exact + e[r].get(i, n), i, n) * scale * load_upto(args.norm_w + i, n);
                stream_next ? x_next.put_streaming(i, z) : x_next.put(i, z, n);
            };
            int64_t i = 0;
            for (; i + VL <= d; i += VL) write(i, VL);
            if (i < d) write(i, d - i);
        }
    }
};

template <class R>
void run(const Threads& threads, const Step& step, float* scratch, int64_t per_worker) {
    constexpr int64_t TASK = 16;
    const int64_t n = step.args.n;
    // With few rows, tasks are smaller so that every thread gets some.
    int64_t task_rows = n >= TASK * threads.count ? TASK : max_of(1, n / max_of(threads.count, 1));
    for_tasks(threads, ceil_div(n, task_rows), [&](int64_t task, int64_t worker) {
        float* own = scratch + worker * per_worker;
        int64_t row = task * task_rows, end = min_of(n, row + task_rows);
        for (; row + 4 <= end; row += 4) step.rows<R, 4>(row, own);
        for (; row < end; row++) step.rows<R, 1>(row, own);
        // Streaming stores are weakly ordered: make them visible before the task ends.
        _mm_sfence();
    });
}

}  // namespace

void loop_step(const Threads& threads, const LoopStepArgs& args) {
    if (args.n == 0) return;
    int64_t low = args.t, high = args.t;
    if (args.t_rows) {
        low = high = args.t_rows[0];
        for (int64_t n = 1; n < args.n; n++) low = min_of(low, args.t_rows[n]), high = max_of(high, args.t_rows[n]);
    }
    bool next = args.x_next.data != nullptr;
    Embeddings embeddings{nullptr, nullptr, low, next ? high - low + 1 : 0};
    if (embeddings.count > min_of(MAX_EMBEDDINGS, max_of(args.n, 1))) embeddings.count = 0;
    int64_t half = ceil_div(int64_t(args.loop_dim), 2);
    int64_t per_worker = 4 * (round_up(int64_t(args.d), VL) + round_up(int64_t(args.loop_dim), VL)) +
                         round_up(4 * int64_t(args.rank), VL) + VL;
    ScratchLayout layout;
    double* frequency;
    float* scratch;
    auto divide = [&] {
        layout.used = 0;
        frequency = layout.array<double>(half);
        embeddings.table = layout.array<float>(embeddings.count * int64_t(args.loop_dim));
        scratch = layout.array<float>(threads.count * per_worker);
    };
    divide();
    layout.base = static_cast<char*>(threads.scratch(layout.used));
    divide();
    embeddings.frequency = frequency;
    for (int64_t i = 0; next && i < half; i++)
        frequency[i] = __builtin_pow(10000., -2. * double(i) / double(args.loop_dim));
    for (int64_t t = 0; t < embeddings.count; t++)
        embed(args, frequency, low + t + 1, embeddings.table + t * int64_t(args.loop_dim));

    Step step{args, embeddings, streams(args, args.h_new, args.h), streams(args, args.h_out_new, args.h_out),
              streams(args, args.x_next, args.block_out)};
    Type type = args.h.type;
    bool uniform = args.e.type == type && args.block_out.type == type && args.h_new.type == type &&
                   (!next || args.x_next.type == type);
    if (!uniform)
        run<AnyRow>(threads, step, scratch, per_worker);
    else if (type == Type::float32)
        run<Row<float>>(threads, step, scratch, per_worker);
    else
        run<Row<bf16>>(threads, step, scratch, per_worker);
}

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
