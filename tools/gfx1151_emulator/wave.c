// Runs the waves of a gfx1151 kernel: the fetch loop, which calls tinygrad's functions and those of instructions.h.
//
// `Op` is one decoded instruction, `Wave` the state of one wave. Most instructions are functions generated from AMD's
// pseudo-code (translate.py). An Op with `replacement` runs the instruction at that address instead of its own bytes,
// with lanes, addresses or halves moved into place before and after (rewrite.py).
#include "instructions.h"

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
static uint64_t float_mode(void) { return _mm_getcsr(); }
static void set_float_mode(uint64_t mode) { _mm_setcsr((unsigned)mode); }
#define FLUSH_DENORMALS 0x8040u
#else
static uint64_t float_mode(void) {
    uint64_t mode;
    __asm__ volatile("mrs %0,fpcr" : "=r"(mode));
    return mode;
}
static void set_float_mode(uint64_t mode) { __asm__ volatile("msr fpcr,%0" ::"r"(mode)); }
#define FLUSH_DENORMALS (1ull << 24)
#endif

static char memory_lock;

static void run_function(Op* o, Wave* w) {
    if (o->flags & SNAPSHOT) {
        memcpy((void*)w->buffer[6], (void*)w->buffer[1], w->vector_bytes);
        memcpy((void*)w->buffer[7], (void*)w->buffer[0], SCALAR_BYTES);
        if (o->replacement)
            memcpy((Vector*)w->buffer[6] + o->spare, (Vector*)w->buffer[1] + o->spare, 3 * sizeof(Vector));
    }
    if (o->flags & LOCK)
        while (__atomic_test_and_set(&memory_lock, __ATOMIC_ACQUIRE));
#define ARGUMENT(i) w->buffer[o->argument[i]]
    o->function(ARGUMENT(0), ARGUMENT(1), ARGUMENT(2), ARGUMENT(3), ARGUMENT(4), ARGUMENT(5), ARGUMENT(6), ARGUMENT(7));
    if (o->flags & LOCK) __atomic_clear(&memory_lock, __ATOMIC_RELEASE);
}

static void run_dpp(Op* o, Wave* w, const u32* ip, u32* s, Vector* v, u64* pc, u32 exec) {
    u32 kind = ip[o->size == 12] & 511;
    u32 on = s[EXEC] = dpp(ip[o->size / 4 - 1], kind == 250 ? 0 : kind, exec, v, v[o->spare]);
    *pc = o->replacement;
    if (on) run_function(o, w);
    if (s[EXEC] == on) s[EXEC] = exec;  // v_cmpx_* writes exec itself
}

static void run_buffer(Op* o, Wave* w, const u32* ip, u32* s, Vector* v, u64* pc, u32 exec) {
    u32 on = s[EXEC] = buffer_addresses(ip, s, v, o->cleared >> 16, exec, v + o->spare);
    for (u32 d = 0; d < (o->cleared & 15); d++)  // loads outside the buffer give 0
        for (int lane = 0; lane < 32; lane++)
            if (bit(exec & ~on, lane)) v[o->target + d][lane] = 0;
    memset(v[o->spare + 2], 0, sizeof(Vector));
    *pc = o->replacement;
    if (on) run_function(o, w);
    s[EXEC] = exec;
    merge_half(o, exec, v);
}

// Runs one wave until it ends, reaches a barrier or an instruction that is not translated yet, or has used up `budget`.
int run(Wave* w, Op* ops, u64 base, u64 count, u64 budget) {
    u32* s = (u32*)w->buffer[0];
    Vector* v = (Vector*)w->buffer[1];
    u64 *pcp = (u64*)(s + PROGRAM_COUNTER), saved = float_mode();
    set_float_mode(w->flush ? saved | FLUSH_DENORMALS : saved & ~(u64)FLUSH_DENORMALS);
    int result = BUDGET;
    for (; budget; budget--, w->steps++) {
        u64 pc = *pcp, index = (pc - base) >> 2;
        if (index >= count) {
            result = OUT_OF_CODE;
            break;
        }
        Op* o = ops + index;
        const u32* ip = (const u32*)pc;
        u32 exec = s[EXEC];
        if (o->kind == MISS || o->kind == END) {
            result = (int)o->kind;
            break;
        }
        if (o->kind == BARRIER) {
            *pcp = pc + 4;
            w->steps++;
            result = BARRIER;
            break;
        }
        Vector kept[3];
        if (o->replacement) memcpy(kept, v[o->spare], sizeof kept);
        switch (o->kind) {
            case RUN:
                run_function(o, w);
                if (o->flags & JUMPS) continue;
                break;
            case DPP:
                run_dpp(o, w, ip, s, v, pcp, exec);
                break;
            case BUFFER:
                run_buffer(o, w, ip, s, v, pcp, exec);
                break;
            case FLAT:
                flat_addresses(w, ip[1] & 255, v, v + o->spare);
                *pcp = o->replacement;
                run_function(o, w);
                merge_half(o, exec, v);
                break;
            case D16:
                *pcp = o->replacement;
                run_function(o, w);
                merge_half(o, exec, v);
                break;
            case APERTURE:
                s[field(ip[0], 16, 7)] = 0;
                s[field(ip[0], 16, 7) + 1] = (ip[0] & 255) == 235 ? LDS_APERTURE : PRIVATE_APERTURE;
                break;
            case WMMA:
                wmma(ip, s, v);
                w->matrix++;
                break;
            case PERMLANE16:
            case PERMLANEX16:
                permlane16(o, ip, s, v, exec);
                break;
            case BPERMUTE:
            case PERMUTE:
            case SWIZZLE:
                lds_permute(o, ip, v, exec);
                break;
            case DENORM:
                set_float_mode((ip[0] & 3) == 0 ? saved | FLUSH_DENORMALS : saved & ~(u64)FLUSH_DENORMALS);
                break;
            case CALL:
                *pcp = call_target(ip, s, pc);
                continue;
            default:
                break;  // SKIP
        }
        if (o->replacement) memcpy(v[o->spare], kept, sizeof kept);
        *pcp = pc + o->size;
    }
    set_float_mode(saved);
    return result;
}
