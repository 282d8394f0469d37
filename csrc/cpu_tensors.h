// From tensors to what the CPU kernels take. Every call into libtorch costs some nanoseconds: what is needed twice is
// kept.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu_kernels.h"

namespace dimr {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline bool is_supported(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}

inline Type type_of(ScalarType dtype) {
  STD_TORCH_CHECK(is_supported(dtype), "the C++ form takes float32, bfloat16 or float16");
  if (dtype == ScalarType::Float) return Type::float32;
  return dtype == ScalarType::BFloat16 ? Type::bfloat16 : Type::float16;
}

// What torch's promotion gives.
inline ScalarType promoted(ScalarType a, ScalarType b) { return a == b ? a : ScalarType::Float; }

// A new tensor. The stable ABI loses the reason of an error, which is want of memory here.
template <class F>
Tensor allocated(const F& make) {
  try {
    return make();
  } catch (const std::exception& error) {
    throw std::runtime_error(std::string("the C++ form found no memory for a tensor: ") + error.what());
  }
}

inline Tensor empty(const std::vector<int64_t>& size, ScalarType dtype) {
  return allocated([&] { return torch::stable::empty(IntHeaderOnlyArrayRef(size.data(), size.size()), dtype); });
}

inline Tensor dense(const Tensor& x) {
  return allocated([&] { return torch::stable::contiguous(x); });
}

inline std::vector<int64_t> to_vector(IntHeaderOnlyArrayRef sizes) { return {sizes.begin(), sizes.end()}; }

// Float32 memory of its own, aligned to cache lines, not initialised.
class Floats {
 public:
  explicit Floats(int64_t n)
      : data_(n > 0 ? static_cast<float*>(::operator new(n * sizeof(float), std::align_val_t{64})) : nullptr) {}
  Floats(Floats&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  ~Floats() { ::operator delete(data_, std::align_val_t{64}); }

  float* get() const { return data_; }
  float& operator[](int64_t i) const { return data_[i]; }

 private:
  float* data_;
};

// Does a task's units on torch's threads. `grain`: units that are not worth a thread of their own.
template <class Task>
void run_units(void (*kernel)(const Task&, int64_t, int64_t, float*), const Task& task, int64_t grain) {
  torch::stable::parallel_for(0, task.units(), grain, [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    const Floats scratch(task.scratch());
    kernel(task, begin, end, scratch.get());
  });
}

// Of work that is `elements` elements in so many units, with torch's own idea of how little is worth a thread.
inline int64_t grain_of(int64_t elements, int64_t units) {
  constexpr int64_t kElements = 32768;
  return elements <= kElements ? units : std::max<int64_t>(1, units * kElements / elements);
}

template <class From, class To>
void convert(const From* from, To* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(from[i]);
}

template <class F>
void with_parameter_type(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Double: return f(double{});
    case ScalarType::BFloat16: return f(c10::BFloat16{});
    case ScalarType::Half: return f(c10::Half{});
    default: STD_TORCH_CHECK(false, "a parameter must be float32, float64, bfloat16 or float16");
  }
}

// A small tensor's numbers as contiguous float32: its own memory where it is that already.
class Parameter {
 public:
  explicit Parameter(const Tensor& tensor)
      : tensor_(tensor.is_contiguous() ? tensor : dense(tensor)),
        dtype(tensor_.scalar_type()),
        size(tensor_.numel()),
        copy_(dtype == ScalarType::Float ? 0 : size) {
    const void* data = tensor_.const_data_ptr();
    if (dtype == ScalarType::Float) {
      data_ = static_cast<const float*>(data);
      return;
    }
    with_parameter_type(dtype, [&](auto type) {
      convert(static_cast<const decltype(type)*>(data), copy_.get(), size);
    });
    data_ = copy_.get();
  }

  const float* data() const { return data_; }
  float operator[](int64_t i) const { return data_[i]; }

 private:
  Tensor tensor_;

 public:
  ScalarType dtype;
  int64_t size;

 private:
  Floats copy_;
  const float* data_;
};

// A tensor of `size` and `dtype` that holds the numbers.
inline Tensor from_floats(const float* values, int64_t n, const std::vector<int64_t>& size, ScalarType dtype) {
  Tensor out = empty(size, dtype);
  void* data = out.mutable_data_ptr();
  with_parameter_type(dtype, [&](auto type) { convert(values, static_cast<decltype(type)*>(data), n); });
  return out;
}

}  // namespace dimr
