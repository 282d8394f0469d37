// Pixel shuffle on the GPU: launches of the thread function in pixel_shuffle.h.

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/Exception.h>

#include "elements.h"

// libtorch_cuda's; weak, so that the library also loads where torch was built without CUDA.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace dimr {
namespace {

template <class T, int VECTOR, int PLANES, bool DENSE_HIGH, Mode MODE, class Index>
__global__ void __launch_bounds__(kThreads) pixel_shuffle_kernel(
    const __grid_constant__ TileMap map, const T* __restrict__ source, const T* __restrict__ addend,
    T* __restrict__ target) {
  run_thread<T, VECTOR, PLANES, DENSE_HIGH, MODE, Index>(map, source, addend, target, blockIdx.x, threadIdx.x);
}

cudaStream_t current_stream(int device_index) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "dimr_kernels: this torch was built without CUDA");
  void* stream = nullptr;
  STD_TORCH_CHECK(
      aoti_torch_get_current_cuda_stream(device_index, &stream) == 0, "dimr_kernels: no current CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

}  // namespace

void run_cuda(const Task& task, int device_index) {
  const torch::stable::accelerator::DeviceGuard guard(device_index);
  const cudaStream_t stream = current_stream(device_index);
  const Launch launch = plan_launch(task);
  with_kind(task.element, task.mode, [&](auto kind) {
    using Kind = decltype(kind);
    using T = typename Kind::T;
    with_variant<T>(launch, [&](auto variant) {
      using V = decltype(variant);
      pixel_shuffle_kernel<T, V::VECTOR, V::PLANES, V::DENSE_HIGH, Kind::MODE, typename V::Index>
          <<<launch.blocks, kThreads, 0, stream>>>(
              launch.map, static_cast<const T*>(task.source), static_cast<const T*>(task.addend),
              static_cast<T*>(task.target));
    });
  });
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "dimr_kernels: pixel shuffle launch failed: ", cudaGetErrorString(error));
}

}  // namespace dimr
