#include "runtime.h"

#include <fstream>
#include <iterator>

#include "sha256.h"

namespace openmythos::runtime {

namespace {

// Dynamic shared memory that a CUDA kernel may use by default; more needs Driver::allow_shared().
constexpr unsigned DEFAULT_SHARED_LIMIT = 48 * 1024;

std::string name_of(int device) { return "cuda:" + std::to_string(device); }

std::string text(const Launch& launch) {
    auto number = [](unsigned x) { return std::to_string(x); };
    const Grid& g = launch.grid;
    return std::string(launch.kernel) + ", grid (" + number(g.x) + ", " + number(g.y) + ", " + number(g.z) + ") of " +
           number(g.threads) + " threads with " + number(g.shared) + " bytes of dynamic shared memory";
}

}  // namespace

Runtime::Runtime(const std::string& folder) : folder_(folder) {
    try {
        manifest_ = Manifest::read(folder);
        driver_ = manifest_.vendor->open_driver();
        devices_.resize(driver_->device_count());
    } catch (const std::exception& error) {
        error_ = error.what();
    }
}

Runtime::PerDevice& Runtime::device(int index) const {
    if (!error_.empty()) throw std::runtime_error(error_);
    if (index < 0 || index >= int(devices_.size()))
        throw std::runtime_error(name_of(index) + " does not exist: the driver shows " +
                                 std::to_string(devices_.size()) + " devices");
    {
        std::shared_lock<std::shared_mutex> lock(mutex_);
        if (devices_[index]) return *devices_[index];
    }
    std::unique_lock<std::shared_mutex> lock(mutex_);
    if (!devices_[index]) {
        auto found = std::make_unique<PerDevice>();
        found->info = driver_->device(index);
        const std::string& arch = found->info.arch;
        for (const CodeObject& object : manifest_.objects)
            if (!manifest_.find(object.op, arch))
                found->unsupported = "this build has GPU code for " + manifest_.archs() + ", and " + name_of(index) +
                                     " is " + arch + "; build from source on that machine";
        devices_[index] = std::move(found);
    }
    return *devices_[index];
}

std::string Runtime::why_not(int index) const {
    try {
        return device(index).unsupported;
    } catch (const std::exception& error) {
        return error.what();
    }
}

std::string Runtime::describe() const {
    if (!error_.empty()) return error_;
    return std::string(manifest_.vendor->name) + " " + manifest_.toolkit + ", code objects for " + manifest_.archs();
}

int Runtime::multiprocessors(int index) { return device(index).info.multiprocessors; }

std::string Runtime::read(const CodeObject& object) const {
    std::string path = folder_ + "/" + object.file;
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("the code object " + path + " is missing; reinstall openmythos");
    std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (bytes.size() != object.bytes || sha256(bytes) != object.sha256)
        throw std::runtime_error("the code object " + path +
                                 " differs from the manifest (sha256); reinstall openmythos");
    return bytes;
}

Runtime::Kernel Runtime::kernel(const Launch& launch, int index) {
    PerDevice& on = device(index);
    {
        std::shared_lock<std::shared_mutex> lock(mutex_);
        auto found = on.kernels.find(launch.kernel);
        if (found != on.kernels.end() && launch.grid.shared <= found->second.shared_allowed) return found->second;
    }
    std::unique_lock<std::shared_mutex> lock(mutex_);
    auto found = on.kernels.find(launch.kernel);
    if (found == on.kernels.end()) {
        const CodeObject* object = manifest_.find(launch.op, on.info.arch);
        if (!object)
            throw std::runtime_error("this build has no code object of " + std::string(launch.op) + " for " +
                                     on.info.arch + ", only for " + manifest_.archs());
        Module& module = on.modules[launch.op];
        if (!module) {
            std::string image = read(*object);
            try {
                module = driver_->load(index, image.c_str());
            } catch (const DriverError& error) {
                throw DriverError(object->file + " does not load: " + error.what() + "; it was built with " +
                                  manifest_.vendor->name + " " + manifest_.toolkit + ", and this machine has " +
                                  driver_->version());
            }
        }
        Kernel kernel{driver_->function(index, module, launch.kernel), DEFAULT_SHARED_LIMIT};
        found = on.kernels.emplace(launch.kernel, kernel).first;
    }
    if (launch.grid.shared > found->second.shared_allowed) {
        driver_->allow_shared(index, found->second.function, launch.grid.shared);
        found->second.shared_allowed = launch.grid.shared;
    }
    return found->second;
}

void Runtime::launch(const Launch& launch, const void* args, int index, void* stream) {
    try {
        Kernel found = kernel(launch, index);
        driver_->launch(index, found.function, launch.grid, stream, args);
    } catch (const std::exception& error) {
        std::string arch = index >= 0 && index < int(devices_.size()) && devices_[index]
                               ? " (" + devices_[index]->info.arch + ")"
                               : "";
        throw std::runtime_error("openmythos could not launch " + text(launch) + " on " + name_of(index) + arch + ": " +
                                 error.what() + ".");
    }
}

}  // namespace openmythos::runtime
