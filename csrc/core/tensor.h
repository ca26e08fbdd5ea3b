#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

// The argument types of op functions. torch::stable::Tensor calls torch for each size and stride, finds a dtype by
// calling one function per known dtype, and counts references, which together take a quarter of a call's time.

namespace openmythos {

using torch::headeronly::ScalarType;

// A tensor that the call owns; its sizes, strides, dtype and device are read once.
class Tensor {
public:
    explicit Tensor(AtenTensorHandle handle) : handle_(handle) {
        int64_t *sizes = nullptr, *strides = nullptr;
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle, &dim_));
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle, &sizes));
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle, &strides));
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(handle, &dtype_));
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(handle, &device_type_));
        sizes_ = sizes, strides_ = strides;
    }

    int64_t dim() const { return dim_; }
    int64_t size(int64_t axis) const { return sizes_[axis]; }
    int64_t stride(int64_t axis) const { return strides_[axis]; }

    int64_t numel() const {
        int64_t product = 1;
        for (int64_t axis = 0; axis < dim_; axis++) product *= sizes_[axis];
        return product;
    }

    bool is_contiguous() const {
        int64_t expected = 1;
        for (int64_t axis = dim_ - 1; axis >= 0; axis--) {
            if (sizes_[axis] != 1 && strides_[axis] != expected) return numel() == 0;
            expected *= sizes_[axis];
        }
        return true;
    }

    ScalarType scalar_type() const {
        // The most frequent ones first.
        static const std::pair<int32_t, ScalarType> known[] = {{aoti_torch_dtype_float32(), ScalarType::Float},
                                                               {aoti_torch_dtype_bfloat16(), ScalarType::BFloat16},
                                                               {aoti_torch_dtype_float16(), ScalarType::Half},
                                                               {aoti_torch_dtype_int32(), ScalarType::Int},
                                                               {aoti_torch_dtype_int64(), ScalarType::Long}};
        for (const auto& [code, type] : known)
            if (code == dtype_) return type;
        return torch::stable::detail::to<ScalarType>(torch::stable::detail::from(dtype_));
    }

    bool is_cpu() const { return device_type_ == aoti_torch_device_type_cpu(); }
    bool is_cuda() const { return device_type_ == aoti_torch_device_type_cuda(); }
    int get_device_index() const {
        int32_t index = 0;
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(handle_.get(), &index));
        return index;
    }

    void* data_ptr() const {
        void* data = nullptr;
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle_.get(), &data));
        return data;
    }

    // The same tensor, for calls of torch's functions.
    torch::stable::Tensor stable() const {
        AtenTensorHandle another = nullptr;
        TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(handle_.get(), &another));
        return torch::stable::Tensor(another);
    }

private:
    struct Delete {
        void operator()(AtenTensorHandle handle) const { aoti_torch_delete_tensor_object(handle); }
    };

    std::unique_ptr<AtenTensorOpaque, Delete> handle_;
    const int64_t *sizes_ = nullptr, *strides_ = nullptr;  // torch's
    int64_t dim_ = 0;
    int32_t dtype_ = 0, device_type_ = 0;
};

// Converts a value passed by torch to T and takes ownership of it.
template <class T>
struct Taken {
    static T from(StableIValue value) { return torch::stable::detail::to<T>(value); }
};

template <>
struct Taken<Tensor> {
    static Tensor from(StableIValue value) { return Tensor(torch::stable::detail::to<AtenTensorHandle>(value)); }
};

template <>
struct Taken<std::optional<Tensor>> {
    static std::optional<Tensor> from(StableIValue value) {
        auto handle = torch::stable::detail::to<std::optional<AtenTensorHandle>>(value);
        if (!handle) return std::nullopt;
        return std::optional<Tensor>(std::in_place, *handle);
    }
};

template <>
struct Taken<std::vector<Tensor>> {
    static std::vector<Tensor> from(StableIValue value) {
        std::vector<Tensor> tensors;
        for (AtenTensorHandle handle : torch::stable::detail::to<std::vector<AtenTensorHandle>>(value))
            tensors.emplace_back(handle);
        return tensors;
    }
};

template <auto function>
struct Boxed;

template <class Result, class... Arguments, Result (*function)(Arguments...)>
struct Boxed<function> {
    static void call(StableIValue* stack, uint64_t arguments, uint64_t results) {
        STD_TORCH_CHECK(arguments == sizeof...(Arguments) && results == (std::is_void_v<Result> ? 0 : 1),
                        "the schema has ", arguments, " arguments and ", results, " results, the kernel others");
        unpack(stack, std::index_sequence_for<Arguments...>());
    }

private:
    template <size_t... I>
    static void unpack(StableIValue* stack, std::index_sequence<I...>) {
        if constexpr (std::is_void_v<Result>)
            function(Taken<std::remove_cvref_t<Arguments>>::from(stack[I])...);
        else
            stack[0] = torch::stable::detail::from(function(Taken<std::remove_cvref_t<Arguments>>::from(stack[I])...));
    }
};

// Adapts a function of Tensor, std::optional<Tensor>, std::vector<Tensor> and plain values to torch's calling
// convention.
template <auto function>
constexpr void (*boxed)(StableIValue*, uint64_t, uint64_t) = &Boxed<function>::call;

}  // namespace openmythos
