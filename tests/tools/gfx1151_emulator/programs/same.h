// Arithmetic whose result does not depend on the machine: host and emulator must agree bit for bit. F is the functions'
// declaration specifier; the compiler must not contract a * b + c.
typedef unsigned u32;
typedef unsigned long long u64;
typedef long long i64;
typedef _Float16 half;

template <class To, class From>
static F To bits_of(From value) {
    To bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value < sizeof bits ? sizeof value : sizeof bits);
    return bits;
}

// Appends results to a row of words.
struct Out {
    u32* at;
    F void word(u32 value) { *at++ = value; }
    F void operator()(u32 value) { word(value); }
    F void operator()(int value) { word((u32)value); }
    F void operator()(float value) { word(bits_of<u32>(value)); }
    F void operator()(half value) { word(bits_of<u32>(value)); }
    F void operator()(u64 value) {
        word((u32)value);
        word((u32)(value >> 32));
    }
    F void operator()(i64 value) { (*this)((u64)value); }
    F void operator()(double value) { (*this)(bits_of<u64>(value)); }
};

static F void words(Out& out, u32 a, u32 b, u32 c) {
    int p = (int)a, q = (int)b, r = (int)c;
    u32 shift = b & 31;
    out(a + b * c), out(a - b), out((a << shift) | (a >> ((32 - shift) & 31))), out(p >> shift);
    out(a / (b | 1)), out(a % (b | 1)), out(p / ((q >> 9) | 1)), out(p % ((q >> 9) | 1));
    out(p < q ? r : q), out(a > b ? a : c), out((a & b) | (~a & c)), out(a ^ b ^ c);
    out(__builtin_popcount(a)), out(a ? __builtin_clz(a) : 32), out(a ? __builtin_ctz(a) : 32);
    out(__builtin_bitreverse32(a)), out(__builtin_bswap32(a));
    out((u32)(((u64)a * b) >> 32)), out((u32)(((i64)p * q) >> 32));
    out((a >> 5) & 0x3ff), out((int)(a << 9) >> 20), out((u32)(signed char)a), out((u32)(short)b);
    out((a & 0xff) * (b & 0xffff) + c), out((u32)(unsigned char)(a + b)), out((u32)(unsigned short)(a * 3 - c));
    out((p > q) + 2 * (a < b) + 4 * (p == q)), out(a + b < a ? 1 : 0), out(a < 1000 ? 0 : a - 1000);
}

static F void long_words(Out& out, u32 a, u32 b, u32 c) {
    u64 x = (u64)a << 32 | b, y = (u64)c << 20 | a;
    i64 z = (i64)(x ^ (u64)c << 7), w = (i64)y - (i64)(x >> 3);
    u32 shift = (b & 31) + 5;
    out(x + y), out(x - y), out(x * y), out(x << shift), out(x >> shift), out(z >> shift);
    out(x / (y | 1)), out(z % (w | 1)), out(z < w ? x : y), out(8 * (z > w) + 16 * (x <= y));
    out(__builtin_popcountll(x)), out(__builtin_clzll(x | 1)), out(__builtin_ctzll(x | (1ull << 63)));
    out((float)z), out((float)x), out((double)z);
}

static F void floats(Out& out, u32 a, u32 b, u32 c) {
    int p = (int)a, q = (int)b;
    float f = (float)(p >> 8) / 64.0f, g = (float)(q >> 12) / 1024.0f + 0.3f;
    float e = bits_of<float>((c & 0x807fffff) | 0x3f800000);
    out(f + g), out(f - g), out(f * g), out(f / g), out(1.0f / e), out(__builtin_sqrtf(f < 0 ? -f : f));
    out(__builtin_fmaf(f, g, e)), out(__builtin_floorf(f)), out(__builtin_ceilf(f)), out(__builtin_truncf(f));
    // rounding to even: halves, next to one half, negative zero, above 2**23
    out(__builtin_rintf(f)), out(__builtin_rintf(0.49999997f * (p < 0 ? -1 : 1)));
    out(__builtin_rintf(-0.0f * (float)(a & 1))), out(__builtin_rintf((float)(p >> 7)));
    out(__builtin_fabsf(f)), out(-g), out(f < g ? f : g), out((int)f), out((u32)__builtin_fabsf(g));
    out((float)p), out((float)a), out(__builtin_fminf(f, g)), out(__builtin_fmaxf(__builtin_fminf(f, 1.0f), 0.0f));
    out((f < g) + 2 * (f >= e) + 4 * (f != f)), out(__builtin_copysignf(e, g)), out((i64)(f * 100000.0f));
    out(__builtin_ldexpf(e, (int)(b & 31) - 16)), out((float)(unsigned char)(a >> 8));
}

static F void doubles_and_halves(Out& out, u32 a, u32 b, u32 c) {
    int p = (int)a;
    float f = (float)(p >> 8) / 64.0f, g = (float)((int)b >> 12) / 1024.0f + 0.3f;
    double d = (double)p * 0.001, k = (double)(i64)((u64)c << 20 | a) * 1e-9 + 0.1;
    out(d + k), out(d * k), out(d / k), out(__builtin_sqrt(k < 0 ? -k : k)), out(__builtin_fma(d, k, 1.5));
    out(__builtin_floor(d)), out(__builtin_rint(d)), out((double)f), out((float)d), out((int)d), out((i64)k);
    out((d < k) + 2 * (k > 0.5));
    half m = (half)(f / 300.0f), v = (half)g, t = (half)bits_of<float>((c & 0x807fffff) | 0x3f800000);
    out((half)(m + v)), out((half)(m * v)), out((half)(m - t)), out((float)m * (float)v), out((half)(float)(p >> 20));
    out((int)t), out(m < v ? m : v), out((half)__builtin_rintf((float)v));
}

static F void control(Out& out, u32 a, u32 b, u32 c) {
    // a private array with an index that is not known, a divergent loop, a switch
    u32 table[16], sum = 0, steps = 0;
    for (int j = 0; j < 16; j++) table[j] = a * j + b;
    for (int j = 0; j < 20; j++) table[(a >> j) & 15] ^= table[(b >> j) & 15] + j;
    for (int j = 0; j < 16; j++) sum = sum * 31 + table[j];
    for (u32 v = a % 97 + 1; v != 1 && steps < 60; steps++) v = v & 1 ? 3 * v + 1 : v / 2;
    out(sum), out(steps);
    switch (a % 5) {
        case 0:
            out(b);
            break;
        case 1:
            out(c * 3);
            break;
        case 2:
            out(~b);
            break;
        default:
            out(a + 1);
    }
}

// Row i of `to`, of `slots` words, from three of the n words of `from`.
static F void same(int i, const u32* from, u32* to, int n, int slots) {
    u32 a = from[i], b = from[(i + 7) % n], c = from[(i + 13) % n];
    Out out{to + i * slots};
    words(out, a, b, c);
    long_words(out, a, b, c);
    floats(out, a, b, c);
    doubles_and_halves(out, a, b, c);
    control(out, a, b, c);
}
