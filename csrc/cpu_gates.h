// The tensors of the time gate, and rows of tensors, for the operators that normalise with a scale and shift of the
// timestep.

#pragma once

#include "cpu_tensors.h"

namespace dimr {

// Schemas' arguments, in their order.
#define DIMR_GATES                                                                                              \
  "Tensor p1, Tensor p2, Tensor? p3, Tensor? p4, Tensor scale_gate_weight, Tensor scale_gate_offset, "           \
  "Tensor? shift_gate_weight, Tensor? shift_gate_offset"
#define DIMR_GATE_PARAMETERS                                                                          \
  Tensor p1, Tensor p2, MaybeTensor p3, MaybeTensor p4, Tensor scale_weight, Tensor scale_offset,     \
      MaybeTensor shift_weight, MaybeTensor shift_offset
#define DIMR_GATE_ARGUMENTS p1, p2, p3, p4, scale_weight, scale_offset, shift_weight, shift_offset

class Gates {
 public:
  Gates(const Tensor& t, int64_t D, DIMR_GATE_PARAMETERS) : t_(t), D_(D) {
    STD_TORCH_CHECK(
        p3.has_value() == p4.has_value() && p3.has_value() == shift_weight.has_value() &&
            p3.has_value() == shift_offset.has_value(),
        "p3, p4 and the shift's gate must all be given, or none");
    parameters_.reserve(8);
    add(p1, p2, scale_weight, scale_offset);
    if (p3) add(*p3, *p4, *shift_weight, *shift_offset);
  }

  int64_t T() const { return t_.size; }
  int64_t kinds() const { return static_cast<int64_t>(parameters_.size()) / 4; }
  bool shift() const { return kinds() == 2; }

  // gamma and beta [T, kinds, D].
  Floats table() const {
    Floats table(T() * kinds() * D_);
    GateTable task{t_.data(), {pair(0), pair(kinds() - 1)}, T(), kinds(), D_, table.get()};
    run_units(gate_table_kernel(), task, grain_of(T() * kinds() * D_, task.units()));
    return table;
  }

  // The gradients that `needs` (of t and of the parameters in the schema's order, from its entry `first` on) asks for,
  // from partial sums [T, chunks, partial_kinds, D] of those of gamma and beta.
  void append_gradients(
      std::vector<Tensor>& found, const float* partials, int64_t chunks, int64_t partial_kinds,
      const std::vector<bool>& needs, size_t first) const {
    const auto wants = [&](int i) { return needs[first + i]; };
    Floats sums(kinds() * 4 * D_);
    GateGradients task{t_.data(), {pair(0), pair(kinds() - 1)}, T(), kinds(), D_,
                       partials, chunks, partial_kinds, sums.get(), nullptr};
    const Floats dt(wants(0) ? task.kinds * task.blocks() * T() : 0);
    task.dt = dt.get();
    run_units(gate_gradients_kernel(), task, grain_of(kinds() * D_ * T() * (chunks + 4), task.units()));
    if (wants(0)) found.push_back(time_gradient(dt.get(), task.kinds * task.blocks()));
    constexpr int kOrder[] = {0, 1, 4, 5, 2, 3, 6, 7};  // of the schema's parameters in `parameters_`
    for (int i = 0; i < 8; ++i) {
      if (wants(i + 1)) found.push_back(gradient(sums.get(), kOrder[i]));
    }
  }

 private:
  void add(const Tensor& first, const Tensor& second, const Tensor& weight, const Tensor& offset) {
    for (const Tensor* v : {&first, &second, &weight, &offset}) {
      parameters_.emplace_back(*v);
      const int64_t size = parameters_.back().size;
      STD_TORCH_CHECK(
          size == D_ || (size == 1 && (v == &weight || v == &offset)), "a parameter of the norm has ", size,
          " elements, for rows of ", D_);
    }
    STD_TORCH_CHECK(
        parameters_.back().size == parameters_[parameters_.size() - 2].size,
        "a gate's weight and offset must have the same shape");
  }

  GatedPair pair(int64_t kind) const {
    const Parameter* of = &parameters_[4 * kind];
    return {of[0].data(), of[1].data(), of[2].data(), of[3].data(), of[2].size == D_ ? 1 : 0};
  }

  Tensor gradient(const float* sums, int i) const {
    const Parameter& parameter = parameters_[i];
    const float* values = sums + i * D_;  // [kinds, 4, D]
    if (parameter.size == D_) return from_floats(values, D_, {D_}, parameter.dtype);
    double total = 0;  // a scalar gate collects every channel's
    for (int64_t c = 0; c < D_; ++c) total += values[c];
    const float value = static_cast<float>(total);
    return from_floats(&value, 1, {1}, parameter.dtype);
  }

  Tensor time_gradient(const float* dt, int64_t rows) const {
    std::vector<float> sums(T());
    for (int64_t k = 0; k < T(); ++k) {
      double total = 0;
      for (int64_t row = 0; row < rows; ++row) total += dt[row * T() + k];
      sums[k] = static_cast<float>(total);
    }
    return from_floats(sums.data(), T(), {T()}, t_.dtype);
  }

  Parameter t_;
  int64_t D_;
  std::vector<Parameter> parameters_;  // by kind: first, second, weight, offset
};

// A tensor [B, ..., D] as B samples of N rows of D; not regular: the rows of a sample are not equally far apart.
struct RowGeometry {
  int64_t B, N, D, sample, row;
  bool regular;
};

inline RowGeometry geometry_of(const Tensor& x) {
  const auto sizes = x.sizes(), strides = x.strides();
  const size_t last = sizes.size() - 1;
  RowGeometry g{sizes[0], 1, sizes[last], 0, sizes[last], sizes[last] == 1 || strides[last] == 1};
  bool has_row = false;
  for (size_t d = last - 1; d >= 1; --d) {
    if (sizes[d] != 1) {
      if (has_row && strides[d] != g.row * g.N) g.regular = false;
      if (!has_row) g.row = strides[d];
      has_row = true;
    }
    g.N *= sizes[d];
  }
  g.sample = g.B > 1 ? strides[0] : g.N * g.row;
  return g;
}

// x itself, or a copy where its rows do not lie at equal distances inside a sample.
inline Tensor with_rows(const Tensor& x) {
  return x.is_contiguous() || geometry_of(x).regular ? x : dense(x);
}

// For x as with_rows gives it.
inline RowSet rows_of(const Tensor& x) {
  const RowGeometry g = geometry_of(x);
  return {const_cast<void*>(x.const_data_ptr()), type_of(x.scalar_type()), g.sample, g.row};
}

inline RowSet rows_into(const Tensor& out) {
  RowSet rows = rows_of(out);
  rows.data = out.mutable_data_ptr();
  return rows;
}

// How the rows of `groups` timesteps are cut into the chunks that partial sums are made of: by the shape alone.
struct Chunks {
  int64_t groups, chunks, rows;

  Chunks(int64_t all_rows, int64_t groups) : groups(groups) {
    constexpr int64_t kUnits = 64, kShortest = 8, kLongest = 256;
    const int64_t of_group = all_rows / groups;
    rows = std::clamp((all_rows + kUnits - 1) / kUnits, kShortest, kLongest);
    chunks = (of_group + rows - 1) / rows;
    rows = (of_group + chunks - 1) / chunks;
  }
};

}  // namespace dimr
