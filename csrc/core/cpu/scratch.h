#pragma once

#include "vec.h"

namespace openmythos::cpu::OPENMYTHOS_ISA {

// Splits one scratch block into arrays that start on cache lines. Run it twice: without a base it only adds up the
// bytes.
struct ScratchLayout {
    char* base = nullptr;
    int64_t used = 0;
    template <class T>
    T* array(int64_t count) {
        T* p = reinterpret_cast<T*>(base + used);
        used += round_up(count * int64_t(sizeof(T)), 64);
        return base ? p : nullptr;
    }
};

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
