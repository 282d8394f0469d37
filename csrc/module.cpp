// The Python module around the operators. Compiled without torch's headers, which bring a pybind11 of their own.

#include <pybind11/pybind11.h>

#include <stdexcept>

#include "cpu_kernels.h"
#include "pixel_shuffle.h"

namespace py = pybind11;

namespace {

using dimr::Shape;

Shape make_shape(int64_t batch, int64_t channels, int64_t height, int64_t width, int64_t factor, int layout) {
  if (layout < 0 || layout > 2) throw std::invalid_argument("layout must be 0 (nhwc), 1 (nchw) or 2 (channels_last)");
  return Shape(batch, channels, height, width, factor, static_cast<dimr::Layout>(layout));
}

py::dict launch_geometry(const Shape& shape, int64_t element_bytes, bool aligned) {
  const dimr::Launch launch = dimr::plan_launch(shape, element_bytes, aligned);
  py::dict geometry;
  geometry["tiles"] = launch.map.tiles;
  geometry["blocks"] = launch.blocks;
  geometry["threads"] = dimr::kThreads;
  geometry["vector"] = launch.map.vector;
  geometry["planes"] = launch.map.planes;
  geometry["dense_high"] = launch.map.dense_high;
  geometry["wide"] = launch.wide;
  return geometry;
}

template <class Index>
py::tuple offsets(const dimr::TileMap& map, int64_t tile) {
  const dimr::TileAddress<Index> at(map, static_cast<Index>(tile));
  py::list planes;
  for (int64_t k = 0; k < map.planes; ++k) planes.append(at.gathered + at.plane(static_cast<Index>(k)));
  return py::make_tuple(at.dense, planes);
}

// (offset on the dense side, offset of each plane on the gathered side), in the launch's own index type.
py::tuple tile_offsets(const Shape& shape, int64_t element_bytes, bool aligned, int64_t tile) {
  const dimr::Launch launch = dimr::plan_launch(shape, element_bytes, aligned);
  return launch.wide ? offsets<uint64_t>(launch.map, tile) : offsets<uint32_t>(launch.map, tile);
}

void run_on_host(
    const Shape& shape, int mode, int element, uintptr_t source, uintptr_t addend, uintptr_t target) {
  dimr::run_cuda_threads_on_host(
      {shape, static_cast<dimr::Mode>(mode), static_cast<dimr::Element>(element),
       reinterpret_cast<const void*>(source), reinterpret_cast<const void*>(addend),
       reinterpret_cast<void*>(target)});
}

py::dict build_information() {
  py::dict info;
  info["torch_headers"] = DIMR_TORCH_VERSION;
  info["nvcc"] = DIMR_NVCC_VERSION;
  info["architectures"] = DIMR_ARCHITECTURES;
  info["compiler"] = DIMR_COMPILER;
  info["cuda_missing"] = DIMR_CUDA_MISSING;
  return info;
}

constexpr const char* kCapabilities[] = {"baseline", "avx2", "avx512"};

py::list cpu_capabilities() {
  py::list names;
  for (int i = 0; i < 3; ++i) {
    if (dimr::has_capability(static_cast<dimr::Capability>(i))) names.append(kCapabilities[i]);
  }
  return names;
}

void set_cpu_capability(const std::string& name) {
  for (int i = 0; i < 3; ++i) {
    if (name == kCapabilities[i] && dimr::set_cpu_capability(static_cast<dimr::Capability>(i))) return;
  }
  throw std::invalid_argument("this machine does not have " + name);
}

double multiply_adds(int64_t steps) {
  double operations = 0;
  float sum;
  dimr::multiply_adds_kernel()({steps, &operations}, 0, 1, &sum);
  return operations;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled operators of dimr_kernels. torch must be imported first.";
#ifdef DIMR_WITH_CUDA
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif
  m.attr("build_information") = build_information();
  py::class_<dimr::CpuLimits>(m, "CpuLimits", "What the CPU operators go by, as found on this machine; tests change it.")
      .def_readwrite("avx2", &dimr::CpuLimits::avx2)
      .def_readwrite("cache_bytes", &dimr::CpuLimits::cache_bytes);
  m.def("cpu_limits", &dimr::cpu_limits, py::return_value_policy::reference);
  m.def("cpu_capabilities", &cpu_capabilities, "Instruction sets that the CPU operators can run with here.");
  m.def("cpu_capability", [] { return kCapabilities[static_cast<int>(dimr::cpu_capability())]; });
  m.def("set_cpu_capability", &set_cpu_capability, py::arg("name"), "For tests.");
  m.def("multiply_adds", &multiply_adds, py::arg("steps"), py::call_guard<py::gil_scoped_release>(),
        "Multiply and add in registers for a while, and return the number of floating-point operations; for benchmarks.");
  py::class_<Shape>(m, "PixelShuffleShape", "Low-resolution image of channels * factor**2 channels.")
      .def(py::init(&make_shape), py::arg("batch"), py::arg("channels"), py::arg("height"), py::arg("width"),
           py::arg("factor"), py::arg("layout"));
  m.def("pixel_shuffle_launch", &launch_geometry, py::arg("shape"), py::arg("element_bytes"), py::arg("aligned"));
  m.def("pixel_shuffle_offsets", &tile_offsets, py::arg("shape"), py::arg("element_bytes"), py::arg("aligned"),
        py::arg("tile"));
  m.def("pixel_shuffle_on_host", &run_on_host, py::arg("shape"), py::arg("mode"), py::arg("element"),
        py::arg("source"), py::arg("addend"), py::arg("target"),
        "Run every thread of the CUDA kernel on the host over its launch geometry; pointers are addresses.");
}
