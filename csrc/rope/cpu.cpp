#include "tasks.h"

namespace openmythos::cpu::OPENMYTHOS_ISA {

// x and cos_sin hold pairs (x0, x1) and (c, s); the result is (x0 c - x1 s, x1 c + x0 s).
OPENMYTHOS_INLINE vec rotate(vec x, vec cos_sin) {
#ifdef __AVX512F__
    return _mm512_fmaddsub_ps(x, _mm512_moveldup_ps(cos_sin), _mm512_permute_ps(x, 0xb1) * _mm512_movehdup_ps(cos_sin));
#else
    return _mm256_fmaddsub_ps(x, _mm256_moveldup_ps(cos_sin), _mm256_permute_ps(x, 0xb1) * _mm256_movehdup_ps(cos_sin));
#endif
}

template <class T>
static void rotate_token(const RopeArgs& args, int64_t token) {
    int64_t b = token / args.t, t = token % args.t;
    const T* x = static_cast<const T*>(args.x.data) + b * args.x.strides[0] + t * args.x.strides[1];
    T* out = static_cast<T*>(args.out.data) + b * args.out.strides[0] + t * args.out.strides[1];
    const float* cos_sin = args.cos_sin + t * args.cos_sin_stride;
    for (int64_t h = 0; h < args.h; h++, x += args.x.strides[2], out += args.out.strides[2])
        for (int64_t i = 0; i < args.d; i += VL) {
            int64_t n = min_of(VL, args.d - i);
            store_upto(out + i, rotate(load_upto(x + i, n), load_upto(cos_sin + i, n)), n);
        }
}

// A single token is less work than scheduling a task.
constexpr int64_t TOKENS = 32;

template <class T>
static void rope_typed(const Threads& threads, const RopeArgs& args) {
    const int64_t tokens = args.b * args.t;
    for_tasks(threads, (tokens + TOKENS - 1) / TOKENS, [&](int64_t task, int64_t) {
        for (int64_t token = task * TOKENS; token < min_of(tokens, (task + 1) * TOKENS); token++)
            rotate_token<T>(args, token);
    });
}

void rope(const Threads& threads, const RopeArgs& args) {
    args.type == Type::float32 ? rope_typed<float>(threads, args) : rope_typed<bf16>(threads, args);
}

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
