// The operators around geglu_cpu.cpp.

#include "cpu_tensors.h"

namespace dimr {
namespace {

constexpr int64_t kWork = 8;  // GeGLU's work per element, against that of an addition

struct EvenRows {
  int64_t rows, D, row;
  bool regular;
};

// A tensor [..., D] as rows at equal distances.
EvenRows even_rows(const Tensor& x) {
  const auto sizes = x.sizes(), strides = x.strides();
  STD_TORCH_CHECK(sizes.size() >= 1, "geglu takes at least one dimension");
  const size_t last = sizes.size() - 1;
  EvenRows e{1, sizes[last], sizes[last], sizes[last] <= 1 || strides[last] == 1};
  bool has_row = false;
  for (size_t d = last; d-- > 0;) {
    if (sizes[d] != 1) {
      if (has_row && strides[d] != e.row * e.rows) e.regular = false;
      if (!has_row) e.row = strides[d];
      has_row = true;
    }
    e.rows *= sizes[d];
  }
  return e;
}

Tensor with_even_rows(const Tensor& x) {
  return x.is_contiguous() || even_rows(x).regular ? x : dense(x);
}

RowSet whole(const Tensor& x, void* data, const EvenRows& e) { return {data, type_of(x.scalar_type()), 0, e.row}; }

void* data_of(const Tensor& x) { return const_cast<void*>(x.const_data_ptr()); }

// The halves of a row of 2 D.
struct Halves {
  RowSet gate, value;
};

Halves halves(const RowSet& packed, int64_t D, bool gate_first) {
  Halves h{packed, packed};
  RowSet& second = gate_first ? h.value : h.gate;
  second.data = static_cast<char*>(packed.data) + D * bytes_of(packed.type);
  return h;
}

template <class Task, class Kernel>
void run(Kernel kernel, const Task& task) {
  if (task.rows * task.D > 0) run_units(kernel, task, grain_of(kWork * task.rows * task.D, task.units()));
}

bool is_tanh(const std::string& approximate) {
  STD_TORCH_CHECK(
      approximate == "none" || approximate == "tanh", "approximate must be none or tanh, got ", approximate);
  return approximate == "tanh";
}

void check_pair(const Tensor& gate, const Tensor& value) {
  STD_TORCH_CHECK(
      gate.scalar_type() == value.scalar_type() && gate.numel() == value.numel(),
      "geglu: gate and value must have the same shape and dtype");
}

std::vector<int64_t> halved(const Tensor& h) {
  std::vector<int64_t> size = to_vector(h.sizes());
  STD_TORCH_CHECK(!size.empty() && size.back() % 2 == 0, "geglu: the last dimension must be even");
  size.back() /= 2;
  return size;
}

Tensor forward(const Halves& h, const std::vector<int64_t>& size, int64_t rows, ScalarType dtype, bool tanh) {
  Tensor out = empty(size, dtype);
  const int64_t D = size.back();
  const RowSet to{out.mutable_data_ptr(), h.gate.type, 0, D};
  run(geglu_forward_kernel(), GegluForward{rows, D, h.gate, h.value, to, tanh});
  return out;
}

void backward(const Tensor& grad, const Halves& h, const Halves& dh, int64_t rows, int64_t D, bool tanh) {
  const Tensor dense = with_even_rows(grad);
  STD_TORCH_CHECK(
      type_of(dense.scalar_type()) == h.gate.type && dense.numel() == rows * D,
      "geglu: grad must have the output's shape and dtype");
  const RowSet g = whole(dense, data_of(dense), even_rows(dense));
  run(geglu_backward_kernel(), GegluBackward{rows, D, g, h.gate, h.value, dh.gate, dh.value, tanh});
}

Tensor geglu_pair_cpp(Tensor gate, Tensor value, std::string approximate) {
  check_pair(gate, value);
  gate = with_even_rows(gate), value = with_even_rows(value);
  const EvenRows e = even_rows(gate);
  const Halves h{whole(gate, data_of(gate), e), whole(value, data_of(value), even_rows(value))};
  return forward(h, to_vector(gate.sizes()), e.rows, gate.scalar_type(), is_tanh(approximate));
}

Tensor geglu_packed_cpp(Tensor h, std::string approximate, bool gate_first) {
  const std::vector<int64_t> size = halved(h);
  h = with_even_rows(h);
  const EvenRows e = even_rows(h);
  const Halves parts = halves(whole(h, data_of(h), e), size.back(), gate_first);
  return forward(parts, size, e.rows, h.scalar_type(), is_tanh(approximate));
}

std::tuple<Tensor, Tensor> geglu_pair_cpp_backward(Tensor grad, Tensor gate, Tensor value, std::string approximate) {
  check_pair(gate, value);
  Tensor dgate = empty(to_vector(gate.sizes()), gate.scalar_type());
  Tensor dvalue = empty(to_vector(gate.sizes()), gate.scalar_type());
  gate = with_even_rows(gate), value = with_even_rows(value);
  const EvenRows e = even_rows(gate), dense = even_rows(dgate);
  const Halves h{whole(gate, data_of(gate), e), whole(value, data_of(value), even_rows(value))};
  const Halves dh{whole(dgate, dgate.mutable_data_ptr(), dense), whole(dvalue, dvalue.mutable_data_ptr(), dense)};
  backward(grad, h, dh, e.rows, e.D, is_tanh(approximate));
  return {dgate, dvalue};
}

Tensor geglu_packed_cpp_backward(Tensor grad, Tensor h, std::string approximate, bool gate_first) {
  const int64_t D = halved(h).back();
  Tensor dh = empty(to_vector(h.sizes()), h.scalar_type());
  h = with_even_rows(h);
  const EvenRows e = even_rows(h);
  const Halves parts = halves(whole(h, data_of(h), e), D, gate_first);
  const Halves gradients = halves(whole(dh, dh.mutable_data_ptr(), even_rows(dh)), D, gate_first);
  backward(grad, parts, gradients, e.rows, D, is_tanh(approximate));
  return dh;
}

}  // namespace
}  // namespace dimr

STABLE_TORCH_LIBRARY_FRAGMENT(dimr_kernels_cpp, m) {
  // As geglu_pair, geglu_packed and their backward.
  m.def("geglu_pair_cpp(Tensor gate, Tensor value, str approximate) -> Tensor");
  m.def("geglu_pair_cpp_backward(Tensor grad, Tensor gate, Tensor value, str approximate) -> (Tensor, Tensor)");
  m.def("geglu_packed_cpp(Tensor h, str approximate, bool gate_first) -> Tensor");
  m.def("geglu_packed_cpp_backward(Tensor grad, Tensor h, str approximate, bool gate_first) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(dimr_kernels_cpp, CPU, m) {
  m.impl("geglu_pair_cpp", TORCH_BOX(&dimr::geglu_pair_cpp));
  m.impl("geglu_pair_cpp_backward", TORCH_BOX(&dimr::geglu_pair_cpp_backward));
  m.impl("geglu_packed_cpp", TORCH_BOX(&dimr::geglu_packed_cpp));
  m.impl("geglu_packed_cpp_backward", TORCH_BOX(&dimr::geglu_packed_cpp_backward));
}
