#include <atomic>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>

#include "cpu_features.h"
#include "kernels.h"

namespace openmythos::cpu {

#define OPENMYTHOS_DECLARE(isa) \
    namespace isa {             \
    extern const Kernels table; \
    }
OPENMYTHOS_FOR_EACH_ISA(OPENMYTHOS_DECLARE)

const Variant* variants() {
    static Variant found[4] = {};
    static std::once_flag once;
    std::call_once(once, [] {
        int count = 0;
#define OPENMYTHOS_ADD(isa) \
    if (can_run(#isa)) found[count++] = {#isa, &isa::table};
        OPENMYTHOS_FOR_EACH_ISA(OPENMYTHOS_ADD)
    });
    return found;
}

static const Variant& find_variant(const char* name, const char* what) {
    std::string allowed;
    for (const Variant* v = variants(); v->name; v++) {
        if (std::string(name) == v->name) return *v;
        allowed += (allowed.empty() ? "" : ", ") + std::string(v->name);
    }
    throw std::runtime_error(std::string(what) + " is '" + name +
                             "', but this CPU and build allow: " + (allowed.empty() ? "none" : allowed) + ".");
}

static std::atomic<const Variant*> chosen{nullptr};
// Read when the library is loaded, so that later changes of the environment have no effect.
static const std::string requested = [] {
    const char* value = std::getenv("OPENMYTHOS_CPU_ISA");
    return std::string(value ? value : "");
}();

const Variant& current_variant() {
    if (const Variant* variant = chosen.load(std::memory_order_acquire)) return *variant;
    const Variant* best = variants();
    if (!requested.empty())
        best = &find_variant(requested.c_str(), "OPENMYTHOS_CPU_ISA");
    else if (!best->name)
        throw std::runtime_error("The native CPU kernels need a CPU with AVX2, FMA and F16C; this one lacks them.");
    chosen.store(best, std::memory_order_release);
    return *best;
}

void set_variant(const char* name) { chosen.store(&find_variant(name, "isa"), std::memory_order_release); }

}  // namespace openmythos::cpu
