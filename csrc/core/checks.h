#pragma once

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "tensor.h"
#include "types.h"

// Argument checks. A message is one sentence: the op, the argument, its value and what is allowed.

// tools/recording_driver builds the ops so that CPU tensors take the GPU path, on a driver that records every call.
#ifdef OPENMYTHOS_RECORDING
#define OPENMYTHOS_LIBRARY openmythos_fake
constexpr bool OPENMYTHOS_CPU_TENSORS_STAND_FOR_GPU = true;
#else
#define OPENMYTHOS_LIBRARY openmythos_native
constexpr bool OPENMYTHOS_CPU_TENSORS_STAND_FOR_GPU = false;
#endif

namespace openmythos {

// run: the op computes. ask: it only returns the reason why it cannot.
enum class Mode { run, ask };

class Checks {
public:
    // `first`, the op's first tensor, decides on which device the op runs.
    Checks(const char* op, const Tensor& first, Mode mode = Mode::run)
        : op_(op), mode_(mode), on_gpu_(OPENMYTHOS_CPU_TENSORS_STAND_FOR_GPU || first.is_cuda()) {
        require(first.is_cpu() || on_gpu_, "the tensors are on neither a CPU nor a CUDA or ROCm device");
        if (first.is_cuda()) device_ = first.get_device_index();
    }

    bool on_gpu() const { return on_gpu_; }
    bool asks() const { return mode_ == Mode::ask; }

    // Takes parts, so that the message is only built if the check fails.
    template <class... Parts>
    void require(bool ok, const Parts&... parts) const {
        if (ok) [[likely]]
            return;
        std::ostringstream message;
        if (!asks()) message << "openmythos_native::" << op_ << ": ";
        (message << ... << parts);
        if (!asks()) message << ".";
        throw std::runtime_error(message.str());
    }

    // A size of -1 accepts anything.
    void shape(const Tensor& x, const char* name, std::initializer_list<int64_t> sizes) const {
        bool ok = x.dim() == int64_t(sizes.size());
        int64_t axis = 0;
        for (int64_t size : sizes) {
            if (!ok) break;
            ok = size < 0 || x.size(axis) == size;
            axis++;
        }
        // Formatting the shapes costs more than all checks of a call, so only a failure pays for it.
        if (!ok) require(false, name, " has shape ", text(x), ", expected ", text(sizes));
        same_device(x, name);
        const int64_t last = x.dim() - 1;
        require(last < 0 || x.stride(last) == 1 || x.size(last) <= 1 || x.numel() == 0, name, " has innermost stride ",
                last < 0 ? 1 : x.stride(last), ", expected 1");
    }

    void same_device(const Tensor& x, const char* name) const {
        if (!on_gpu_ || OPENMYTHOS_CPU_TENSORS_STAND_FOR_GPU) {
            require(x.is_cpu(), name, " is on another device, expected the CPU");
            return;
        }
        require(x.is_cuda() && x.get_device_index() == device_, name, " is on another device, expected cuda:", device_);
    }
    // Index of the tensors' GPU; 0 if they are on the CPU.
    int device() const { return device_; }

    void contiguous(const Tensor& x, const char* name) const {
        require(x.is_contiguous(), name, " is not contiguous, expected a contiguous tensor");
    }

    void dtype(const Tensor& x, const char* name, std::initializer_list<ScalarType> allowed) const {
        const ScalarType found = x.scalar_type();
        if (std::find(allowed.begin(), allowed.end(), found) != allowed.end()) return;
        std::string names;
        for (ScalarType type : allowed) names += (names.empty() ? "" : " or ") + std::string(type_name(type));
        require(false, name, " has dtype ", type_name(found), ", expected ", names);
    }

    // float32, bfloat16 and, on GPUs, float16.
    Type kernel_type(const Tensor& x, const char* name) const {
        switch (x.scalar_type()) {
            case ScalarType::Float:
                return Type::float32;
            case ScalarType::BFloat16:
                return Type::bfloat16;
            case ScalarType::Half:
                if (on_gpu_) return Type::float16;
                [[fallthrough]];
            default:
                require(false, name, " has dtype ", type_name(x.scalar_type()), ", expected float32",
                        on_gpu_ ? ", bfloat16 or float16" : " or bfloat16");
                return Type::float32;
        }
    }

    void same_type(const Tensor& x, const char* name, const Tensor& like, const char* like_name) const {
        require(x.scalar_type() == like.scalar_type(), name, " has dtype ", type_name(x.scalar_type()), ", expected ",
                type_name(like.scalar_type()), " as ", like_name);
    }

    Matrix matrix(const Tensor& x, const char* name, int64_t rows, int64_t columns) const {
        shape(x, name, {rows, columns});
        return {x.data_ptr(), x.stride(0), kernel_type(x, name), 0};
    }

    // A contiguous float32 tensor.
    const float* floats(const Tensor& x, const char* name, std::initializer_list<int64_t> sizes) const {
        shape(x, name, sizes);
        contiguous(x, name);
        dtype(x, name, {ScalarType::Float});
        return static_cast<const float*>(x.data_ptr());
    }

    // Integers of 32 or 64 bits; `wide` tells which.
    const void* indices(const Tensor& x, const char* name, std::initializer_list<int64_t> sizes, int32_t& wide) const {
        shape(x, name, sizes);
        dtype(x, name, {ScalarType::Int, ScalarType::Long});
        wide = x.scalar_type() == ScalarType::Long;
        return x.data_ptr();
    }

    // Requires every row to be 16-byte aligned.
    void aligned(const Tensor& x, const char* name) const {
        bool ok = reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0;
        const int64_t size = x.scalar_type() == ScalarType::Float ? 4 : 2;
        for (int64_t axis = 0; axis + 1 < x.dim(); axis++)
            ok = ok && (x.size(axis) <= 1 || x.stride(axis) * size % 16 == 0);
        require(ok || x.numel() == 0, "rows of ", name, " must be 16-byte aligned");
    }

    Tensor4 tensor(const Tensor& x, const char* name, std::initializer_list<int64_t> sizes, const Tensor& like,
                   const char* like_name) const {
        shape(x, name, sizes);
        same_type(x, name, like, like_name);
        Tensor4 view{x.data_ptr(), {0, 0, 0}};
        for (int64_t axis = 0; axis + 1 < x.dim(); axis++) view.strides[axis] = x.stride(axis);
        return view;
    }

    static const char* type_name(ScalarType type) {
        switch (type) {
            case ScalarType::Float:
                return "float32";
            case ScalarType::BFloat16:
                return "bfloat16";
            case ScalarType::Half:
                return "float16";
            case ScalarType::Double:
                return "float64";
            case ScalarType::Int:
                return "int32";
            case ScalarType::Long:
                return "int64";
            case ScalarType::Bool:
                return "bool";
            default:
                return "another dtype";
        }
    }

private:
    static std::string text(const Tensor& x) {
        std::string s;
        for (int64_t i = 0; i < x.dim(); i++) s += (i ? ", " : "") + std::to_string(x.size(i));
        return "(" + s + ")";
    }
    static std::string text(std::initializer_list<int64_t> sizes) {
        std::string s;
        for (int64_t size : sizes)
            s += (s.empty() ? "" : ", ") + (size < 0 ? std::string("any") : std::to_string(size));
        return "(" + s + ")";
    }

    const char* op_;
    Mode mode_;
    bool on_gpu_;
    int device_ = 0;
};

}  // namespace openmythos
