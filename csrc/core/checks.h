#pragma once

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"
#include "tensor.h"

// Argument checks whose message is one sentence: the op, the argument, its value and what is allowed.

namespace openmythos {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream message;
    (message << ... << parts);
    throw std::runtime_error(message.str());
}

enum class Where { cpu, gpu };

class Checks {
public:
    explicit Checks(const char* op, Where where = Where::cpu) : op_(op), where_(where) {}

    template <class... Parts>
    void require(bool ok, const Parts&... parts) const {
        if (!ok) fail("openmythos_native::", op_, ": ", parts..., ".");
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
        // The texts are made for a message only: they cost more than everything else that a call does here.
        if (!ok) require(false, name, " has shape ", text(x), ", expected ", text(sizes));
        same_device(x, name);
        const int64_t last = x.dim() - 1;
        require(last < 0 || x.stride(last) == 1 || x.size(last) <= 1 || x.numel() == 0, name, " has innermost stride ",
                last < 0 ? 1 : x.stride(last), ", expected 1");
    }

    // On the op's kind of device, and where that of the first tensor was: there may be several GPUs.
    void same_device(const Tensor& x, const char* name) const {
        if (where_ == Where::cpu) {
            require(x.is_cpu(), name, " is on another device, expected the CPU");
            return;
        }
        require(x.is_cuda(), name, " is on another device, expected a CUDA or ROCm one");
        if (device_ < 0) device_ = x.get_device_index();
        require(x.get_device_index() == device_, name, " is on cuda:", int(x.get_device_index()),
                ", expected cuda:", device_, " as the tensors before it");
    }
    // Index of the GPU that the tensors are on; 0 where they are on the CPU.
    int device() const { return device_ < 0 ? 0 : device_; }

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

    cpu::Type kernel_type(const Tensor& x, const char* name) const {
        dtype(x, name, {ScalarType::Float, ScalarType::BFloat16});
        return x.scalar_type() == ScalarType::Float ? cpu::Type::float32 : cpu::Type::bfloat16;
    }

    void same_type(const Tensor& x, const char* name, const Tensor& like, const char* like_name) const {
        require(x.scalar_type() == like.scalar_type(), name, " has dtype ", type_name(x.scalar_type()), ", expected ",
                type_name(like.scalar_type()), " as ", like_name);
    }

    cpu::Matrix matrix(const Tensor& x, const char* name, int64_t rows, int64_t columns) const {
        shape(x, name, {rows, columns});
        return {x.data_ptr(), x.stride(0), kernel_type(x, name)};
    }

    // A contiguous float32 tensor.
    const float* floats(const Tensor& x, const char* name, std::initializer_list<int64_t> sizes) const {
        shape(x, name, sizes);
        contiguous(x, name);
        dtype(x, name, {ScalarType::Float});
        return static_cast<const float*>(x.data_ptr());
    }

    cpu::Tensor4 tensor(const Tensor& x, const char* name, std::initializer_list<int64_t> sizes, const Tensor& like,
                        const char* like_name) const {
        shape(x, name, sizes);
        same_type(x, name, like, like_name);
        cpu::Tensor4 view{x.data_ptr(), {0, 0, 0}};
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
    Where where_;
    mutable int device_ = -1;
};

}  // namespace openmythos
