// The effect of single instructions on registers: matrix products, lane exchanges, addresses, halves.
#pragma once
#include <stdint.h>
#include <string.h>

typedef uint32_t u32;
typedef int32_t i32;
typedef uint64_t u64;
typedef u32 Vector[32];

// The order of native.Kind.
enum {
    MISS,
    RUN,
    END,
    BARRIER,
    SKIP,
    DPP,
    BUFFER,
    D16,
    WMMA,
    PERMLANE16,
    PERMLANEX16,
    BPERMUTE,
    PERMUTE,
    SWIZZLE,
    DENORM,
    CALL,
    FLAT,
    APERTURE
};
enum { OUT_OF_CODE = 100, BUDGET = 101 };
// The bits of native.Flag: copies of the registers to read from, one at a time, sets the program counter itself, and
// the half of the destination that a 16-bit load replaces.
enum { SNAPSHOT = 1, LOCK = 2, JUMPS = 4, LOW = 8, HIGH = 16 };
enum { EXEC = 126, PROGRAM_COUNTER = 256, SCRATCH_STRIDE = 259, SCALAR_BYTES = 1040 };
// High words of generic pointers to LDS and to private memory.
enum { LDS_APERTURE = 0x40000001, PRIVATE_APERTURE = 0x40000002 };

typedef struct {
    void (*function)(u64, u64, u64, u64, u64, u64, u64, u64);
    u64 replacement;
    u32 kind, size, flags, spare, target, cleared;
    uint8_t argument[8];
} Op;

typedef struct {
    u64 buffer[8];  // scalar registers, vector registers, memory, LDS, scratch, vector registers, old vectors, old
                    // scalars
    u64 vector_bytes, steps, matrix, flush;
} Wave;

static float half_to_float(u32 bits) {
    _Float16 value;
    uint16_t low = (uint16_t)bits;
    memcpy(&value, &low, 2);
    return (float)value;
}
static u32 float_to_half(float value) {
    _Float16 half = (_Float16)value;
    uint16_t bits;
    memcpy(&bits, &half, 2);
    return bits;
}
static float as_float(u32 bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static u32 as_bits(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    return bits;
}
static u32 float_to_bfloat(float value) {
    u32 bits = as_bits(value);
    return value != value ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
static int bit(u32 word, int index) { return (word >> index) & 1; }
static u32 field(u32 word, int low, int width) { return (word >> low) & ((1u << width) - 1); }

// D = A B + C on 16x16 tiles. A: lane = row, B: lane = column, packed along k (lanes 16..31 repeat 0..15). C and D:
// register r of lane l holds row 2r + l/16, column l%16; 16-bit results use one half of each register.
static void wmma(const u32* ip, u32* s, Vector* v) {
    u32 op = field(ip[0], 16, 7), target = field(ip[0], 0, 8), clamp = bit(ip[0], 15), high = bit(ip[0], 13);
    u32 source[3] = {field(ip[1], 0, 9), field(ip[1], 9, 9), field(ip[1], 18, 9)};
    u32 negate = ip[1] >> 29, negate_high = field(ip[0], 8, 3);
    int integer = op >= 68, half = op == 66 || op == 67, bfloat = op == 65 || op == 67;
    static __thread float reals[2][16][16];
    static __thread i32 integers[2][16][16];
    Vector out[8];
    for (int o = 0; o < 2; o++) {
        Vector* from = v + (source[o] - 256);
        for (int i = 0; i < 16; i++) {
            for (int k = 0; k < 16; k++) {
                if (integer) {
                    int bits = op == 68 ? 8 : 4, per = 32 / bits;
                    int x = (int)field(from[k / per][i], k % per * bits, bits);
                    integers[o][i][k] = bit(negate, o) && (x >> (bits - 1)) ? x - (1 << bits) : x;
                } else {
                    u32 x = field(from[k / 2][i], k % 2 * 16, 16);
                    if (bit(k % 2 ? negate_high : negate, o)) x ^= 0x8000;
                    reals[o][i][k] = bfloat ? as_float(x << 16) : half_to_float(x);
                }
            }
        }
    }
    for (int r = 0; r < 8; r++) {
        for (int l = 0; l < 32; l++) {
            int row = 2 * r + l / 16, column = l % 16;
            u32 c = source[2] >= 256 ? v[source[2] - 256 + r][l] : source[2] == 255 ? ip[2] : s[source[2]];
            if (integer) {
                int64_t sum = (i32)c;
                for (int k = 0; k < 16; k++) sum += integers[0][row][k] * integers[1][column][k];
                if (clamp) sum = sum > INT32_MAX ? INT32_MAX : sum < INT32_MIN ? INT32_MIN : sum;
                out[r][l] = (u32)sum;
                continue;
            }
            u32 part = high ? c >> 16 : c;
            float sum = !half || source[2] < 256 ? as_float(c) : bfloat ? as_float(part << 16) : half_to_float(part);
            if (negate_high & 4) sum = __builtin_fabsf(sum);
            if (negate & 4) sum = -sum;
            for (int k = 0; k < 16; k++) sum = __builtin_fmaf(reals[0][row][k], reals[1][column][k], sum);
            u32 old = v[target + r][l], x = half ? (bfloat ? float_to_bfloat(sum) : float_to_half(sum)) : 0;
            out[r][l] = !half ? as_bits(sum) : high ? (old & 0xffff) | (x << 16) : (old & 0xffff0000) | x;
        }
    }
    memcpy(v[target], out, sizeof out);
}

// The source lane of lane `lane` of a DPP16 operand; -1 if its row has no such lane, -2 if it does not take part.
static int dpp16_source(u32 word, int lane) {
    int row = lane & 16, i = lane & 15;
    u32 control = field(word, 8, 9), n = control & 15;
    if (!bit(word, 28 + (lane >> 4)) || !bit(word, 24 + (i >> 2))) return -2;  // row_mask, bank_mask
    if (control < 0x100) return (lane & 28) | (int)field(control, 2 * (lane & 3), 2);
    switch (control >> 4) {
        case 0x10:
            return i + (int)n < 16 ? row + i + (int)n : -1;  // row_shl
        case 0x11:
            return i >= (int)n ? row + i - (int)n : -1;  // row_shr
        case 0x12:
            return row + ((i - (int)n) & 15);  // row_ror
        case 0x14:
            return n ? (lane & 24) | (7 - (lane & 7)) : row + 15 - i;  // row_half_mirror, row_mirror
        case 0x15:
            return row + (int)n;  // row_share
        case 0x16:
            return row + (i ^ (int)n);  // row_xmask
        default:
            return -1;
    }
}

// Permutes src0's lanes into a spare register; returns the lanes that take part. A lane whose source does not exist or
// is switched off gets 0 if the instruction says so, and otherwise keeps its destination.
static u32 dpp(u32 word, u32 dpp8, u32 exec, Vector* v, u32* to) {
    Vector old;
    memcpy(old, v[word & 255], sizeof old);
    u32 on = 0, inactive_reads = dpp8 ? dpp8 == 0xEA : bit(word, 18), zero = dpp8 ? 1 : bit(word, 19);
    for (int lane = 0; lane < 32; lane++) {
        int from = dpp8 ? (lane & 24) | (int)field(word, 8 + 3 * (lane & 7), 3) : dpp16_source(word, lane);
        if (from == -2) continue;
        int valid = from >= 0 && (inactive_reads || bit(exec, from));
        if (!valid && !zero) continue;
        to[lane] = valid ? old[from] : 0;
        on |= 1u << lane;
    }
    return on & exec;
}

// Raw buffer access: writes each lane's address to a spare register pair; returns the lanes inside the buffer.
static u32 buffer_addresses(const u32* ip, u32* s, Vector* v, u32 bytes, u32 exec, Vector* to) {
    u32 offset = field(ip[0], 0, 12), address = field(ip[1], 0, 8), resource = field(ip[1], 16, 5) * 4,
        scalar = ip[1] >> 24;
    u32 offset_enabled = bit(ip[1], 22), index_enabled = bit(ip[1], 23), on = 0;
    u64 base = s[resource] | (u64)(s[resource + 1] & 0xffff) << 32, stride = field(s[resource + 1], 16, 14);
    base = (u64)((int64_t)(base << 16) >> 16);
    u64 added = scalar == 124 ? 0 : s[scalar];
    for (int lane = 0; lane < 32; lane++) {
        u64 index = index_enabled ? v[address][lane] : 0;
        u64 inner = (u64)offset + (offset_enabled ? v[address + index_enabled][lane] : 0);
        u64 at = base + added + inner + stride * index;
        if (stride ? index < s[resource + 2] : inner + bytes <= s[resource + 2]) on |= 1u << lane;
        to[0][lane] = (u32)at;
        to[1][lane] = (u32)(at >> 32);
    }
    return on & exec;
}

// A generic pointer's high word says whether it means LDS, private or global memory.
static void flat_addresses(Wave* w, u32 address, Vector* v, Vector* to) {
    u32* s = (u32*)w->buffer[0];
    for (int lane = 0; lane < 32; lane++) {
        u64 at = v[address][lane], high = v[address + 1][lane];
        if (high == LDS_APERTURE)
            at += w->buffer[3];
        else if (high == PRIVATE_APERTURE)
            at += w->buffer[4] + (u64)lane * s[SCRATCH_STRIDE];
        else
            at |= high << 32;
        to[0][lane] = (u32)at;
        to[1][lane] = (u32)(at >> 32);
    }
}

// Put the 16-bit value just loaded into the third spare register into its half of the destination.
static void merge_half(Op* o, u32 exec, Vector* v) {
    for (int lane = 0; lane < 32; lane++) {
        if (!bit(exec, lane)) continue;
        u32 x = v[o->spare + 2][lane], *to = &v[o->target][lane];
        if (o->flags & LOW) *to = (*to & 0xffff0000) | (x & 0xffff);
        if (o->flags & HIGH) *to = (*to & 0xffff) | (x << 16);
    }
}

static void permlane16(Op* o, const u32* ip, u32* s, Vector* v, u32 exec) {
    Vector old;
    u32 select[2], source[2] = {field(ip[1], 9, 9), field(ip[1], 18, 9)};
    for (int k = 0; k < 2; k++)
        select[k] = source[k] >= 256 ? v[source[k] - 256][0] : source[k] == 255 ? ip[2] : s[source[k]];
    memcpy(old, v[(ip[1] & 511) - 256], sizeof old);
    for (int lane = 0; lane < 32; lane++) {
        if (!bit(exec, lane)) continue;
        int from =
            ((lane & 16) ^ (o->kind == PERMLANEX16 ? 16 : 0)) | (int)field(select[bit(lane, 3)], 4 * (lane & 7), 4);
        if (bit(exec, from) || bit(ip[0], 11))
            v[ip[0] & 255][lane] = old[from];
        else if (bit(ip[0], 12))
            v[ip[0] & 255][lane] = 0;
    }
}

static void lds_permute(Op* o, const u32* ip, Vector* v, u32 exec) {
    Vector out;
    u32 address = field(ip[1], 0, 8), data = field(ip[1], 8, 8), offset = ip[0] & 0xffff;
    memset(out, 0, sizeof out);
    for (u32 lane = 0; lane < 32; lane++) {
        if (!bit(exec, lane)) continue;
        u32 x = ((v[address][lane] + offset) >> 2) & 31;
        if (o->kind == SWIZZLE)
            x = offset & 0x8000 ? (lane & 28) | field(offset, 2 * (lane & 3), 2)
                                : (((lane & offset) | (offset >> 5)) ^ (offset >> 10)) & 31;
        if (o->kind == PERMUTE)
            out[x] = v[data][lane];
        else
            out[lane] = bit(exec, x) ? v[o->kind == SWIZZLE ? address : data][x] : 0;
    }
    for (int lane = 0; lane < 32; lane++)
        if (bit(exec, lane)) v[ip[1] >> 24][lane] = out[lane];
}

// s_call, s_getpc, s_setpc, s_swappc: the next program counter.
static u64 call_target(const u32* ip, u32* s, u64 pc) {
    u64 next = pc + 4, to;
    u32 op = field(ip[0], 8, 8), target = field(ip[0], 16, 7);
    if (ip[0] >> 28 == 0xB && ip[0] >> 23 != 0x17D) {
        op = 73;
        to = next + (u64)((int64_t)(int16_t)ip[0] * 4);
    } else {
        to = op == 71 ? next : s[ip[0] & 127] | (u64)s[(ip[0] & 127) + 1] << 32;
    }
    if (op != 72) {
        s[target] = (u32)next;
        s[target + 1] = (u32)(next >> 32);
    }
    return to;
}
