#pragma once

#include <cstring>

// What this CPU can run, for both the op library and the Python module. Compiles with baseline flags only.

namespace openmythos::cpu {

// Best first.
#define OPENMYTHOS_FOR_EACH_ISA(f) f(avx512bf16) f(avx512) f(avx2)

struct Features {
    bool avx2, fma, f16c, avx512f, avx512bw, avx512vl, avx512dq, avx512bf16;
};

inline Features cpu_features() {
    __builtin_cpu_init();
    // __builtin_cpu_supports also checks that the operating system saves the registers.
    Features f{};
    f.avx2 = __builtin_cpu_supports("avx2") != 0;
    f.fma = __builtin_cpu_supports("fma") != 0;
    f.f16c = __builtin_cpu_supports("f16c") != 0;
    f.avx512f = __builtin_cpu_supports("avx512f") != 0;
    f.avx512bw = __builtin_cpu_supports("avx512bw") != 0;
    f.avx512vl = __builtin_cpu_supports("avx512vl") != 0;
    f.avx512dq = __builtin_cpu_supports("avx512dq") != 0;
    f.avx512bf16 = __builtin_cpu_supports("avx512bf16") != 0;
    return f;
}

inline bool can_run(const char* isa) {
    Features f = cpu_features();
    bool avx2 = f.avx2 && f.fma && f.f16c && __builtin_cpu_supports("bmi2");
    bool avx512 = avx2 && f.avx512f && f.avx512bw && f.avx512vl && f.avx512dq;
    if (std::strcmp(isa, "avx2") == 0) return avx2;
    if (std::strcmp(isa, "avx512") == 0) return avx512;
    return std::strcmp(isa, "avx512bf16") == 0 && avx512 && f.avx512bf16;
}

}  // namespace openmythos::cpu
