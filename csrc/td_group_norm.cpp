// The operators around td_group_norm_cpu.cpp, and what joins its passes: the statistics of groups.

#include <cmath>

#include "cpu_gates.h"

namespace dimr {
namespace {

constexpr int64_t kWork = 2;  // a pass's work per element, against that of an addition

GroupNormShape shape_of(const RowGeometry& g, int64_t groups) {
  STD_TORCH_CHECK(groups >= 1 && g.D % groups == 0, "td_group_norm: num_groups must divide the channels");
  constexpr int64_t kChunkBytes = 96 << 10, kUnits = 32, kFewest = 4, kMost = 64;
  const int64_t cached = kChunkBytes / (4 * g.D), wanted = (g.B * g.N + kUnits - 1) / kUnits;
  const int64_t pixels = std::clamp(std::min(cached, wanted), kFewest, kMost);
  return {g.B, g.N, g.D, groups, (g.N + pixels - 1) / pixels, pixels};
}

template <class Task, class Kernel>
void run(Kernel kernel, const Task& task) {
  const GroupNormShape& s = task.shape;
  run_units(kernel, task, grain_of(kWork * s.B * s.N * s.C, task.units()));
}

// Chan's merge of the chunks' and channels' moments: stats [2, B * groups], mean and reciprocal deviation.
void join_moments(const GroupNormShape& s, const float* moments, double eps, float* stats) {
  const int64_t width = s.C / s.groups, groups = s.B * s.groups;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t b = group / s.groups, first = group % s.groups * width;
    const auto each = [&](const auto& f) {
      for (int64_t unit = b * s.chunks; unit < (b + 1) * s.chunks; ++unit) {
        const float* of_chunk = moments + unit * 2 * s.C + first;
        for (int64_t c = 0; c < width; ++c) f(static_cast<double>(s.count(unit)), of_chunk[c], of_chunk[s.C + c]);
      }
    };
    double sum = 0, squares = 0;
    each([&](double count, double mean, double) { sum += count * mean; });
    const double size = static_cast<double>(s.N) * static_cast<double>(width), mean = sum / size;
    each([&](double count, double of_chunk, double inside) {
      squares += inside + count * (of_chunk - mean) * (of_chunk - mean);
    });
    stats[group] = static_cast<float>(mean);
    stats[groups + group] = static_cast<float>(1 / std::sqrt(squares / size + eps));
  }
}

// f(b, c, group) for every sample and channel.
template <class F>
void for_channels(const GroupNormShape& s, const F& f) {
  const int64_t width = s.C / s.groups;
  for (int64_t b = 0; b < s.B; ++b) {
    for (int64_t c = 0; c < s.C; ++c) f(b, c, b * s.groups + c / width);
  }
}

std::vector<Tensor> td_group_norm_cpp(Tensor x, Tensor t, int64_t num_groups, DIMR_GATE_PARAMETERS, double eps) {
  STD_TORCH_CHECK(x.dim() >= 2, "td_group_norm takes [B, ..., C]");
  x = with_rows(x);
  const RowGeometry g = geometry_of(x);
  const Gates gates(t, g.D, DIMR_GATE_ARGUMENTS);
  const GroupNormShape s = shape_of(g, num_groups);
  std::vector<Tensor> found{
      empty(to_vector(x.sizes()), x.scalar_type()), empty({2, g.B * num_groups}, ScalarType::Float)};
  auto* stats = static_cast<float*>(found[1].mutable_data_ptr());
  const int64_t groups = s.B * s.groups;
  if (s.B * s.N == 0) {
    std::fill(stats, stats + 2 * groups, 0.f);
    return found;
  }
  STD_TORCH_CHECK(gates.T() == 1 || gates.T() == g.B, "t must have 1 or ", g.B, " values, got ", gates.T());
  const Floats moments(s.units() * 2 * s.C), table = gates.table(), channels(s.B * 3 * s.C);
  const RowSet rows = rows_of(x);
  run(group_norm_moments_kernel(), GroupNormMoments{s, rows, moments.get()});
  join_moments(s, moments.get(), eps, stats);
  for_channels(s, [&](int64_t b, int64_t c, int64_t group) {
    const float* gamma = table.get() + (gates.T() == 1 ? 0 : b) * gates.kinds() * s.C;
    float* to = channels.get() + b * 3 * s.C + c;
    to[0] = stats[group];
    to[s.C] = stats[groups + group] * gamma[c];
    to[2 * s.C] = gates.shift() ? gamma[s.C + c] : 0.f;
  });
  run(group_norm_forward_kernel(), GroupNormForward{s, rows, rows_into(found[0]), channels.get()});
  return found;
}

// A group's sums of gamma * dy * xhat and gamma * dy over its pixels and channels, by their number: [2, B * groups].
std::vector<float> group_averages(
    const GroupNormShape& s, const float* sums, const float* table, int64_t table_stride) {
  const int64_t groups = s.B * s.groups;
  std::vector<double> totals(2 * groups);
  for (int64_t unit = 0; unit < s.units(); ++unit) {
    const int64_t b = unit / s.chunks, width = s.C / s.groups;
    const float *gamma = table + b * table_stride, *of_chunk = sums + unit * 2 * s.C;
    for (int64_t c = 0; c < s.C; ++c) {
      const int64_t group = b * s.groups + c / width;
      totals[group] += static_cast<double>(gamma[c]) * of_chunk[c];
      totals[groups + group] += static_cast<double>(gamma[c]) * of_chunk[s.C + c];
    }
  }
  const double size = static_cast<double>(s.N) * static_cast<double>(s.C / s.groups);
  std::vector<float> averages(2 * groups);
  for (int64_t i = 0; i < 2 * groups; ++i) averages[i] = static_cast<float>(totals[i] / size);
  return averages;
}

std::vector<Tensor> td_group_norm_cpp_backward(
    Tensor grad, Tensor x, Tensor stats, Tensor t, int64_t num_groups, DIMR_GATE_PARAMETERS, std::vector<bool> needs) {
  STD_TORCH_CHECK(needs.size() == 10, "td_group_norm_cpp_backward: needs must have 10 entries");
  x = with_rows(x), grad = with_rows(grad);
  const RowGeometry g = geometry_of(x);
  const Gates gates(t, g.D, DIMR_GATE_ARGUMENTS);
  const GroupNormShape s = shape_of(g, num_groups);
  const bool needs_gates = std::find(needs.begin() + 1, needs.end(), true) != needs.end();
  std::vector<Tensor> found;
  if (needs[0]) found.push_back(empty(to_vector(x.sizes()), x.scalar_type()));
  if (s.B * s.N == 0) {
    if (needs_gates) gates.append_gradients(found, nullptr, 0, 2, needs, 1);
    return found;
  }
  const int64_t groups = s.B * s.groups;
  const auto* statistics = static_cast<const float*>(stats.const_data_ptr());
  const Floats sums(s.units() * 2 * s.C), channels(s.B * 4 * s.C);
  const RowSet rows = rows_of(x), dy = rows_of(grad);
  STD_TORCH_CHECK(dy.type == rows.type, "td_group_norm: grad must have x's dtype");
  for_channels(s, [&](int64_t b, int64_t c, int64_t group) {
    float* to = channels.get() + b * 2 * s.C + c;
    to[0] = statistics[group];
    to[s.C] = statistics[groups + group];
  });
  run(group_norm_sums_kernel(), GroupNormSums{s, rows, dy, channels.get(), sums.get()});
  if (needs[0]) {
    const Floats table = gates.table();
    const int64_t stride = gates.T() == 1 ? 0 : gates.kinds() * s.C;
    const std::vector<float> averages = group_averages(s, sums.get(), table.get(), stride);
    for_channels(s, [&](int64_t b, int64_t c, int64_t group) {
      const float deviation = statistics[groups + group];
      float* to = channels.get() + b * 4 * s.C + c;
      to[0] = statistics[group];
      to[s.C] = deviation * table[b * stride + c];
      to[2 * s.C] = deviation * deviation * averages[group];
      to[3 * s.C] = deviation * averages[groups + group];
    });
    run(group_norm_backward_kernel(), GroupNormBackward{s, rows, dy, rows_into(found[0]), channels.get()});
  }
  if (needs_gates) gates.append_gradients(found, sums.get(), s.units() / gates.T(), 2, needs, 1);
  return found;
}

}  // namespace
}  // namespace dimr

STABLE_TORCH_LIBRARY_FRAGMENT(dimr_kernels_cpp, m) {
  // As td_group_norm and its backward: the norm and statistics [2, B * groups]; the gradients of (x, t, gates).
  m.def("td_group_norm_cpp(Tensor x, Tensor t, int num_groups, " DIMR_GATES ", float eps) -> Tensor[]");
  m.def("td_group_norm_cpp_backward(Tensor grad, Tensor x, Tensor stats, Tensor t, int num_groups, " DIMR_GATES
        ", bool[] needs) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(dimr_kernels_cpp, CPU, m) {
  m.impl("td_group_norm_cpp", TORCH_BOX(&dimr::td_group_norm_cpp));
  m.impl("td_group_norm_cpp_backward", TORCH_BOX(&dimr::td_group_norm_cpp_backward));
}
