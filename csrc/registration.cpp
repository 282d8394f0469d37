// The operators' CPU and CUDA implementations, for the schemas that dimr_kernels/ops/pixel_shuffle.py defines.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "pixel_shuffle.h"

namespace dimr {
namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Layout parse_layout(const std::string& name) {
  if (name == "nhwc") return Layout::nhwc;
  if (name == "nchw") return Layout::nchw;
  STD_TORCH_CHECK(name == "channels_last", "layout must be nhwc, nchw or channels_last, got ", name);
  return Layout::channels_last;
}

Element parse_element(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Element::float32;
    case ScalarType::Half: return Element::float16;
    case ScalarType::BFloat16: return Element::bfloat16;
    default: STD_TORCH_CHECK(false, "pixel shuffle takes float32, float16 or bfloat16");
  }
}

MemoryFormat memory_format(Layout layout) {
  return layout == Layout::channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

Tensor in_layout(const Tensor& x, Layout layout) { return torch::stable::contiguous(x, memory_format(layout)); }

struct Sizes {
  int64_t batch, channels, height, width;
};

Sizes sizes_of(const Tensor& x, Layout layout) {
  STD_TORCH_CHECK(x.dim() == 4, "pixel shuffle takes 4 dimensions, got ", x.dim());
  const auto size = x.sizes();
  if (layout == Layout::nhwc) return {size[0], size[3], size[1], size[2]};
  return {size[0], size[1], size[2], size[3]};
}

Tensor empty_like(const Tensor& x, Sizes s, Layout layout) {
  const std::vector<int64_t> size = layout == Layout::nhwc
      ? std::vector<int64_t>{s.batch, s.height, s.width, s.channels}
      : std::vector<int64_t>{s.batch, s.channels, s.height, s.width};
  return torch::stable::empty(
      IntHeaderOnlyArrayRef(size.data(), size.size()), x.scalar_type(), std::nullopt, x.device(), std::nullopt,
      memory_format(layout));
}

void run(const Task& task, const Tensor& x) {
  if (task.shape.numel() == 0) return;
  if (x.is_cpu()) return run_cpu(task);
#ifdef DIMR_WITH_CUDA
  run_cuda(task, x.get_device_index());
#endif
}

Tensor pixel_shuffle_add(Tensor x, std::optional<Tensor> y, int64_t factor, std::string layout_name) {
  const Layout layout = parse_layout(layout_name);
  const Sizes low = sizes_of(x, layout);
  STD_TORCH_CHECK(
      factor >= 1 && low.channels % (factor * factor) == 0, "pixel_shuffle_add: ", low.channels,
      " channels cannot be shuffled by ", factor);
  const Sizes high{low.batch, low.channels / (factor * factor), low.height * factor, low.width * factor};
  Tensor out = empty_like(x, high, layout);
  if (y.has_value()) {
    const Sizes found = sizes_of(*y, layout);
    STD_TORCH_CHECK(
        found.batch == high.batch && found.channels == high.channels && found.height == high.height &&
            found.width == high.width && y->scalar_type() == x.scalar_type() && y->device() == x.device(),
        "pixel_shuffle_add: y must have the output's shape, and x's dtype and device");
    y = in_layout(*y, layout);
  }
  x = in_layout(x, layout);
  const Shape shape(low.batch, high.channels, low.height, low.width, factor, layout);
  run({shape, y ? Mode::add : Mode::shuffle, parse_element(x), x.const_data_ptr(),
       y ? y->const_data_ptr() : nullptr, out.mutable_data_ptr()}, x);
  return out;
}

Tensor pixel_unshuffle(Tensor x, int64_t factor, std::string layout_name) {
  const Layout layout = parse_layout(layout_name);
  const Sizes high = sizes_of(x, layout);
  STD_TORCH_CHECK(
      factor >= 1 && high.height % factor == 0 && high.width % factor == 0, "pixel_unshuffle: ", high.height, " x ",
      high.width, " pixels cannot be unshuffled by ", factor);
  const Sizes low{high.batch, high.channels * factor * factor, high.height / factor, high.width / factor};
  Tensor out = empty_like(x, low, layout);
  x = in_layout(x, layout);
  const Shape shape(low.batch, high.channels, low.height, low.width, factor, layout);
  run({shape, Mode::unshuffle, parse_element(x), x.const_data_ptr(), nullptr, out.mutable_data_ptr()}, x);
  return out;
}

}  // namespace
}  // namespace dimr

STABLE_TORCH_LIBRARY_IMPL(dimr_kernels, CPU, m) {
  m.impl("pixel_shuffle_add", TORCH_BOX(&dimr::pixel_shuffle_add));
  m.impl("pixel_unshuffle", TORCH_BOX(&dimr::pixel_unshuffle));
}

#ifdef DIMR_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(dimr_kernels, CUDA, m) {
  m.impl("pixel_shuffle_add", TORCH_BOX(&dimr::pixel_shuffle_add));
  m.impl("pixel_unshuffle", TORCH_BOX(&dimr::pixel_unshuffle));
}
#endif
