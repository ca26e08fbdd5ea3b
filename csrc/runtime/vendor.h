#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "../core/gpu/vendors.h"
#include "driver.h"

namespace openmythos::runtime {

// What the host knows about a GPU vendor. To add one: a file like cuda.cpp with its driver and its Vendor, an entry in
// the table of vendor.cpp, and the device code that core/gpu/vendors.h lists.
struct Vendor {
    const char* name;  // in manifests and messages
    // Throws DriverError if this machine has no such driver.
    std::unique_ptr<Driver> (*open_driver)();
    gpu::SharedTiles tiles;  // of its device code
    // How well a code object for `have` suits a device of type `want`: higher is better, 0 if it cannot run there.
    int (*match)(const std::string& have, const std::string& want);
};

std::span<const Vendor* const> vendors();
// Null if there is no vendor of this name.
const Vendor* find_vendor(std::string_view name);

}  // namespace openmythos::runtime
