#pragma once

namespace openmythos::runtime {

// Torch's current stream on the device, as the driver's handle.
void* current_stream(int device);

}  // namespace openmythos::runtime
