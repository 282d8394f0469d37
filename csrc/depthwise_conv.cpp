// The operators around depthwise_conv_cpu.cpp.
//
// dimr_kernels_cpp::depthwise_conv2d_cpp, depthwise_conv2d_cpp_, depthwise_conv2d_cpp_backward; see the schemas below.

#include <algorithm>

#include "cpu_tensors.h"

namespace dimr {
namespace {

// x itself, or a copy where its channels do not lie side by side.
Tensor dense_channels(const Tensor& x) {
  return x.size(3) == 1 || x.stride(3) == 1 ? x : dense(x);
}

Image image_of(const Tensor& x) {
  const auto strides = x.strides();
  return {x.const_data_ptr(), strides[0], strides[1], strides[2]};
}

DepthwiseShape shape_of(IntHeaderOnlyArrayRef x, int64_t K) {
  STD_TORCH_CHECK(x.size() == 4, "depthwise_conv2d takes [B, H, W, C], got ", x.size(), " dimensions");
  STD_TORCH_CHECK(K == 3 || K == 5 || K == 7, "depthwise_conv2d takes kernel sizes 3, 5 and 7, got ", K);
  return {x[0], x[1], x[2], x[3], K};
}

// The weight [C, 1, K, K] as [blocks, K * K, kChannelBlock], turned around and with 1 in the middle where asked for.
Floats arranged_taps(const Tensor& weight, const DepthwiseShape& s, bool add_input, bool flip) {
  const Parameter parameter(weight);
  const int64_t taps = s.K * s.K;
  STD_TORCH_CHECK(parameter.size == s.C * taps, "depthwise_conv2d: the weight must be [C, 1, K, K]");
  Floats arranged(s.blocks() * taps * kChannelBlock);
  for (int64_t block = 0; block < s.blocks(); ++block) {
    for (int64_t k = 0; k < taps; ++k) {
      float* to = arranged.get() + (block * taps + k) * kChannelBlock;
      for (int64_t lane = 0; lane < kChannelBlock; ++lane) {
        const int64_t c = block * kChannelBlock + lane;
        to[lane] = c < s.C ? parameter[c * taps + (flip ? taps - 1 - k : k)] : 0.f;
        if (add_input && k == taps / 2) to[lane] += 1.f;
      }
    }
  }
  return arranged;
}

void run_forward(
    Tensor x, const Tensor& weight, const MaybeTensor& bias, MaybeTensor residual, bool add_input, Tensor& out) {
  const DepthwiseShape s = shape_of(x.sizes(), weight.size(3));
  if (x.numel() == 0) return;
  x = dense_channels(x);
  DepthwiseForward task{};
  task.shape = s;
  task.type = type_of(x.scalar_type());
  task.x = image_of(x);
  if (residual) {
    residual = dense_channels(*residual);
    STD_TORCH_CHECK(residual->scalar_type() == x.scalar_type(), "depthwise_conv2d: residual must have x's dtype");
    task.residual = image_of(*residual);
  }
  const Image target = image_of(out);
  task.out = out.mutable_data_ptr();
  task.out_sample = target.sample, task.out_row = target.row, task.out_column = target.column;
  const Floats taps = arranged_taps(weight, s, add_input, false);
  task.taps = taps.get();
  const Floats padded_bias(bias ? s.blocks() * kChannelBlock : 0);
  if (bias) {
    const Parameter values(*bias);
    STD_TORCH_CHECK(values.size == s.C, "depthwise_conv2d: bias must be [C]");
    std::copy(values.data(), values.data() + s.C, padded_bias.get());
    std::fill(padded_bias.get() + s.C, padded_bias.get() + s.blocks() * kChannelBlock, 0.f);
    task.bias = padded_bias.get();
  }
  run_units(depthwise_forward_kernel(), task, grain_of(s.B * s.H * s.W * s.C * s.K, task.units()));
}

Tensor depthwise_conv2d_cpp(
    Tensor x, Tensor weight, MaybeTensor bias, MaybeTensor residual, bool add_input) {
  Tensor out = empty(to_vector(x.sizes()), x.scalar_type());
  run_forward(x, weight, bias, residual, add_input, out);
  return out;
}

void depthwise_conv2d_cpp_(Tensor x, Tensor weight, MaybeTensor bias, bool add_input, Tensor out) {
  STD_TORCH_CHECK(
      out.scalar_type() == x.scalar_type() && out.stride(3) == 1 && out.numel() == x.numel(),
      "depthwise_conv2d_cpp_: out must have x's shape and dtype, and its channels side by side");
  run_forward(x, weight, bias, std::nullopt, add_input, out);
}

// Partial sums are of so many image bands that every thread of a large machine has some, whatever this one has.
int64_t splits_of(const DepthwiseShape& s) {
  constexpr int64_t kUnits = 64;
  return std::min(s.B * s.bands(), (kUnits + s.blocks() - 1) / s.blocks());
}

struct Sums {
  std::vector<float> weight, bias;  // [C, K, K], [C]
};

Sums join(const float* partials, int64_t splits, const DepthwiseShape& s) {
  const int64_t taps = s.K * s.K, blocks = s.blocks();
  Sums sums{std::vector<float>(s.C * taps), std::vector<float>(s.C)};
  for (int64_t c = 0; c < s.C; ++c) {
    for (int64_t k = 0; k <= taps; ++k) {
      float total = 0.f;
      for (int64_t split = 0; split < splits; ++split) {
        const int64_t unit = split * blocks + c / kChannelBlock;
        total += partials[(unit * (taps + 1) + k) * kChannelBlock + c % kChannelBlock];
      }
      (k < taps ? sums.weight[c * taps + k] : sums.bias[c]) = total;
    }
  }
  return sums;
}

std::vector<Tensor> depthwise_conv2d_cpp_backward(
    Tensor grad, MaybeTensor x, MaybeTensor weight, int64_t kernel_size, bool add_input, ScalarType weight_dtype,
    ScalarType bias_dtype) {
  const std::vector<int64_t> size = to_vector(grad.sizes());
  const ScalarType dtype = grad.scalar_type();
  const DepthwiseShape s = shape_of(grad.sizes(), kernel_size);
  grad = dense_channels(grad);
  DepthwiseBackward task{};
  task.shape = s;
  task.type = type_of(dtype);
  task.grad = image_of(grad);
  std::vector<Tensor> found;
  const Floats taps = weight ? arranged_taps(*weight, s, add_input, true) : Floats(0);
  if (weight) {
    found.push_back(empty(size, dtype));
    task.taps = taps.get();
    task.dx = found[0].mutable_data_ptr();
  }
  const bool is_empty = s.B * s.H * s.W * s.C == 0;
  task.splits = is_empty ? 0 : splits_of(s);
  const int64_t sums = (s.K * s.K + 1) * kChannelBlock;
  const Floats partials(x ? task.units() * sums : 0);
  if (x) {
    STD_TORCH_CHECK(x->scalar_type() == dtype, "depthwise_conv2d: grad must have x's dtype");
    x = dense_channels(*x);
    task.x = image_of(*x);
    task.partials = partials.get();
  }
  if (!is_empty) {
    run_units(depthwise_backward_kernel(), task, grain_of(s.B * s.H * s.W * s.C * s.K, task.units()));
  }
  if (x) {
    const Sums joined = join(partials.get(), task.splits, s);
    found.push_back(from_floats(joined.weight.data(), s.C * s.K * s.K, {s.C, 1, s.K, s.K}, weight_dtype));
    found.push_back(from_floats(joined.bias.data(), s.C, {s.C}, bias_dtype));
  }
  return found;
}

}  // namespace
}  // namespace dimr

STABLE_TORCH_LIBRARY_FRAGMENT(dimr_kernels_cpp, m) {
  // x [B, H, W, C], weight [C, 1, K, K] -> conv(x) + bias + residual, and + x with add_input.
  m.def("depthwise_conv2d_cpp(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, bool add_input) -> Tensor");
  m.def("depthwise_conv2d_cpp_(Tensor x, Tensor weight, Tensor? bias, bool add_input, Tensor(a!) out) -> ()");
  // The gradients of x (where weight is given), of weight and bias (both, where x is given), in this order.
  m.def("depthwise_conv2d_cpp_backward(Tensor grad, Tensor? x, Tensor? weight, int kernel_size, bool add_input, "
        "ScalarType weight_dtype, ScalarType bias_dtype) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(dimr_kernels_cpp, CPU, m) {
  m.impl("depthwise_conv2d_cpp", TORCH_BOX(&dimr::depthwise_conv2d_cpp));
  m.impl("depthwise_conv2d_cpp_", TORCH_BOX(&dimr::depthwise_conv2d_cpp_));
  m.impl("depthwise_conv2d_cpp_backward", TORCH_BOX(&dimr::depthwise_conv2d_cpp_backward));
}
