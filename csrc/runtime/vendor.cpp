#include "vendor.h"

namespace openmythos::runtime {

extern const Vendor CUDA, ROCM;

namespace {

const Vendor* const VENDORS[] = {&CUDA, &ROCM};

}  // namespace

std::span<const Vendor* const> vendors() { return VENDORS; }

const Vendor* find_vendor(std::string_view name) {
    for (const Vendor* vendor : VENDORS)
        if (name == vendor->name) return vendor;
    return nullptr;
}

}  // namespace openmythos::runtime
