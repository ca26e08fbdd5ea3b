#pragma once

namespace openmythos::runtime {

// The stream on which torch would launch now on the device, as the driver knows it.
void* current_stream(int device);

}  // namespace openmythos::runtime
