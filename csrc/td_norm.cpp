// The operators around td_norm_cpu.cpp.

#include "cpu_gates.h"

namespace dimr {
namespace {

constexpr int64_t kWork = 4;  // a norm's work per element, against that of an addition

// The part of a forward that norms with and without shuffle share.
void run_norm(NormForward& task, const Gates& gates, float eps, bool rms, float* stats) {
  const Floats table = gates.table();
  task.table = table.get();
  task.table_stride = gates.T() == 1 ? 0 : gates.kinds() * task.D;
  task.stats = stats;
  task.eps = eps;
  task.rms = rms;
  task.shift = gates.shift();
  run_units(norm_forward_kernel(), task, grain_of(kWork * task.B * task.N * task.D, task.units()));
}

// The input's gradient into task.dx, and those of t and the gates that `needs` names from its entry `first` on.
void run_norm_backward(
    NormBackward& task, const Gates& gates, const std::vector<bool>& needs, size_t first, std::vector<Tensor>& found) {
  const bool needs_gates = std::find(needs.begin() + first, needs.end(), true) != needs.end();
  const int64_t rows = task.B * task.N;
  if (rows == 0) {
    if (needs_gates) gates.append_gradients(found, nullptr, 0, 1, needs, first);
    return;
  }
  const Chunks chunks(rows, gates.T());
  const Floats table = gates.table();
  const Floats partials(needs_gates ? chunks.groups * chunks.chunks * gates.kinds() * task.D : 0);
  task.table = table.get();
  task.table_stride = gates.kinds() * task.D;
  task.shift = gates.shift();
  task.partials = partials.get();
  task.groups = chunks.groups;
  task.chunks = chunks.chunks;
  task.rows_per_chunk = chunks.rows;
  if (task.dx.data != nullptr || needs_gates) {
    run_units(norm_backward_kernel(), task, grain_of(kWork * rows * task.D, task.units()));
  }
  if (needs_gates) gates.append_gradients(found, partials.get(), chunks.chunks, gates.kinds(), needs, first);
}

Tensor normalized(
    Tensor x, MaybeTensor residual, const Tensor* total, const MaybeTensor& offset, const Gates& gates, double eps,
    bool rms, float* stats) {
  Tensor y = empty(to_vector(x.sizes()), x.scalar_type());
  if (x.numel() == 0) return y;
  x = with_rows(x);
  const RowGeometry g = geometry_of(x);
  STD_TORCH_CHECK(gates.T() == 1 || gates.T() == g.B, "t must have 1 or ", g.B, " values, got ", gates.T());
  NormForward task{};
  task.B = g.B, task.N = g.N, task.D = g.D;
  task.x = rows_of(x);
  task.y = rows_into(y);
  if (residual) {
    residual = with_rows(*residual);
    task.residual = rows_of(*residual);
    task.total = rows_into(*total);
  }
  std::optional<Parameter> added;
  if (offset) {
    added.emplace(*offset);
    task.offset = added->data();
  }
  run_norm(task, gates, static_cast<float>(eps), rms, stats);
  return y;
}

int64_t width_of(const Tensor& x) {
  const auto sizes = x.sizes();
  STD_TORCH_CHECK(sizes.size() >= 2, "the norm takes [B, ..., D], got ", sizes.size(), " dimensions");
  return sizes[sizes.size() - 1];
}

std::vector<Tensor> td_norm_cpp(
    Tensor x, MaybeTensor residual, Tensor t, DIMR_GATE_PARAMETERS, double eps, bool rms, bool statistics) {
  const int64_t D = width_of(x);
  const Gates gates(t, D, DIMR_GATE_ARGUMENTS);
  std::vector<Tensor> found(1);
  if (residual) found.push_back(empty(to_vector(x.sizes()), promoted(x.scalar_type(), residual->scalar_type())));
  float* stats = nullptr;
  if (statistics) {
    found.push_back(empty({rms ? 1 : 2, x.numel() / D}, ScalarType::Float));
    stats = static_cast<float*>(found.back().mutable_data_ptr());
  }
  found[0] = normalized(x, residual, residual ? &found[1] : nullptr, std::nullopt, gates, eps, rms, stats);
  return found;
}

Tensor td_norm_cpp_into(
    Tensor x, MaybeTensor residual, MaybeTensor total, MaybeTensor offset, Tensor t, DIMR_GATE_PARAMETERS, double eps,
    bool rms) {
  const Gates gates(t, width_of(x), DIMR_GATE_ARGUMENTS);
  STD_TORCH_CHECK(residual.has_value() == total.has_value(), "td_norm_cpp_into: total goes with residual");
  if (total) {
    STD_TORCH_CHECK(
        total->scalar_type() == promoted(x.scalar_type(), residual->scalar_type()) && total->numel() == x.numel() &&
            geometry_of(*total).regular,
        "td_norm_cpp_into: total must have x's shape, the sum's dtype, and whole rows at equal distances");
  }
  return normalized(x, residual, total ? &*total : nullptr, offset, gates, eps, rms, nullptr);
}

std::vector<Tensor> td_norm_cpp_backward(
    Tensor dy, MaybeTensor dtotal, Tensor x, Tensor stats, Tensor t, DIMR_GATE_PARAMETERS, double eps, bool rms,
    std::vector<bool> needs) {
  STD_TORCH_CHECK(needs.size() == 10, "td_norm_cpp_backward: needs must have 10 entries");
  const Gates gates(t, width_of(x), DIMR_GATE_ARGUMENTS);
  std::vector<Tensor> found;
  NormBackward task{};
  task.eps = static_cast<float>(eps);
  task.rms = rms;
  if (needs[0]) {
    found.push_back(empty(to_vector(x.sizes()), x.scalar_type()));
    task.dx = rows_into(found[0]);
  }
  x = with_rows(x);
  dy = with_rows(dy);
  const RowGeometry g = geometry_of(x);
  task.B = g.B, task.N = g.N, task.D = g.D;
  task.x = rows_of(x);
  task.dy = rows_of(dy);
  if (dtotal && needs[0]) {
    dtotal = with_rows(*dtotal);
    task.dtotal = rows_of(*dtotal);
  }
  task.stats = static_cast<const float*>(stats.const_data_ptr());
  run_norm_backward(task, gates, needs, 1, found);
  return found;
}

// ---- The cascade's way up: y + norm(shuffle(x)) ----

struct Shuffled {
  int64_t B, N, C, H, W;  // of x [B, H, W, factor * factor * C]; N pixels of the result to a sample

  Shuffled(const Tensor& x, int64_t factor) {
    const auto size = x.sizes();
    STD_TORCH_CHECK(
        size.size() == 4 && factor >= 1 && size[3] % (factor * factor) == 0,
        "shuffle_norm_add takes [B, H, W, factor * factor * C]");
    B = size[0], H = size[1], W = size[2];
    C = size[3] / (factor * factor);
    N = H * W * factor * factor;
  }
};

// `out` may be y.
void run_shuffle_norm_add(
    Tensor x, const Tensor& y, const Tensor& out, const Tensor& t, int64_t factor, double eps, float* stats,
    DIMR_GATE_PARAMETERS) {
  const Shuffled s(x, factor);
  const Gates gates(t, s.C, DIMR_GATE_ARGUMENTS);
  STD_TORCH_CHECK(y.numel() == s.B * s.N * s.C, "shuffle_norm_add: y must have the result's shape");
  if (x.numel() == 0) return;
  x = with_rows(x);
  NormForward task{};
  task.B = s.B, task.N = s.N, task.D = s.C;
  task.x = rows_of(x);
  task.shuffle = {factor, s.W};
  task.addend = rows_of(y);
  task.y = rows_into(out);
  run_norm(task, gates, static_cast<float>(eps), false, stats);
}

std::vector<Tensor> shuffle_norm_add_cpp(
    Tensor x, Tensor y, Tensor t, int64_t factor, DIMR_GATE_PARAMETERS, double eps, bool statistics) {
  std::vector<Tensor> found{empty(to_vector(y.sizes()), promoted(x.scalar_type(), y.scalar_type()))};
  float* stats = nullptr;
  if (statistics) {
    const Shuffled s(x, factor);
    found.push_back(empty({2, s.B * s.N}, ScalarType::Float));
    stats = static_cast<float*>(found[1].mutable_data_ptr());
  }
  run_shuffle_norm_add(x, with_rows(y), found[0], t, factor, eps, stats, DIMR_GATE_ARGUMENTS);
  return found;
}

void shuffle_norm_add_cpp_(Tensor x, Tensor y, Tensor t, int64_t factor, DIMR_GATE_PARAMETERS, double eps) {
  STD_TORCH_CHECK(geometry_of(y).regular, "shuffle_norm_add_cpp_: y's pixels must lie at equal distances");
  run_shuffle_norm_add(x, y, y, t, factor, eps, nullptr, DIMR_GATE_ARGUMENTS);
}

std::vector<Tensor> shuffle_norm_add_cpp_backward(
    Tensor grad, Tensor x, Tensor stats, Tensor t, int64_t factor, DIMR_GATE_PARAMETERS, std::vector<bool> needs) {
  STD_TORCH_CHECK(needs.size() == 10, "shuffle_norm_add_cpp_backward: needs must have 10 entries");
  const Shuffled s(x, factor);
  const Gates gates(t, s.C, DIMR_GATE_ARGUMENTS);
  std::vector<Tensor> found;
  NormBackward task{};
  if (needs[0]) {
    found.push_back(empty(to_vector(x.sizes()), x.scalar_type()));
    task.dx = rows_into(found[0]);
  }
  x = with_rows(x), grad = with_rows(grad);
  task.B = s.B, task.N = s.N, task.D = s.C;
  task.x = rows_of(x);
  task.dy = rows_of(grad);
  task.shuffle = {factor, s.W};
  task.stats = static_cast<const float*>(stats.const_data_ptr());
  run_norm_backward(task, gates, needs, 1, found);
  return found;
}

}  // namespace
}  // namespace dimr

STABLE_TORCH_LIBRARY_FRAGMENT(dimr_kernels_cpp, m) {
  // x [B, ..., D], t [B] or [1] -> the norm; x + residual where there is a residual; statistics where they are wanted
  // ([1, rows], the root mean square, or [2, rows], mean and reciprocal deviation).
  m.def("td_norm_cpp(Tensor x, Tensor? residual, Tensor t, " DIMR_GATES
        ", float eps, bool rms, bool statistics) -> Tensor[]");
  // For inference: the sum goes into total, and offset [D] is added before the norm.
  m.def("td_norm_cpp_into(Tensor x, Tensor? residual, Tensor(a!)? total, Tensor? offset, Tensor t, " DIMR_GATES
        ", float eps, bool rms) -> Tensor");
  // The gradients that needs asks for, of (x or x + residual, t, the gates in their order).
  m.def("td_norm_cpp_backward(Tensor dy, Tensor? dtotal, Tensor x, Tensor stats, Tensor t, " DIMR_GATES
        ", float eps, bool rms, bool[] needs) -> Tensor[]");
  // y + norm(shuffle(x)), and statistics [2, rows] where wanted; in place of y; the gradients of (x, t, gates).
  m.def("shuffle_norm_add_cpp(Tensor x, Tensor y, Tensor t, int upscale_factor, " DIMR_GATES
        ", float eps, bool statistics) -> Tensor[]");
  m.def("shuffle_norm_add_cpp_(Tensor x, Tensor(a!) y, Tensor t, int upscale_factor, " DIMR_GATES
        ", float eps) -> ()");
  m.def("shuffle_norm_add_cpp_backward(Tensor grad, Tensor x, Tensor stats, Tensor t, int upscale_factor, " DIMR_GATES
        ", bool[] needs) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(dimr_kernels_cpp, CPU, m) {
  m.impl("td_norm_cpp", TORCH_BOX(&dimr::td_norm_cpp));
  m.impl("td_norm_cpp_into", TORCH_BOX(&dimr::td_norm_cpp_into));
  m.impl("td_norm_cpp_backward", TORCH_BOX(&dimr::td_norm_cpp_backward));
  m.impl("shuffle_norm_add_cpp", TORCH_BOX(&dimr::shuffle_norm_add_cpp));
  m.impl("shuffle_norm_add_cpp_", TORCH_BOX(&dimr::shuffle_norm_add_cpp_));
  m.impl("shuffle_norm_add_cpp_backward", TORCH_BOX(&dimr::shuffle_norm_add_cpp_backward));
}
