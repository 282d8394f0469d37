// Norms of rows on a CPU, scaled and shifted by tables, forward and backward: the time-dependent norms, and the
// cascade's way up, whose rows are gathered by a pixel shuffle's index map and added to another tensor.
//
// A row is worked on as float32 in place, or in a copy where its elements are shorter; it stays in the cache between
// the passes over it.

#include "cpu_kernels.h"
#include "vec.h"

namespace dimr {
namespace DIMR_SET {
namespace {

DIMR_ALWAYS_INLINE void prefetch_group(const float* p, int64_t elements) {
  prefetch_at(p, elements * static_cast<int64_t>(sizeof(float)));
}

struct RowPlace {
  int64_t sample, row;  // row of the sample
};

DIMR_ALWAYS_INLINE int64_t offset_of(const RowSet& rows, const RowPlace& at) {
  return at.sample * rows.sample + at.row * rows.row;
}

DIMR_ALWAYS_INLINE int64_t offset_of(const RowSet& rows, const RowPlace& at, const Shuffle& shuffle, int64_t D) {
  if (shuffle.factor == 0) return offset_of(rows, at);
  const int64_t r = shuffle.factor, width = r * shuffle.width;
  const int64_t h = at.row / width, w = at.row % width;
  const int64_t pixel = h / r * shuffle.width + w / r, slot = h % r * r + w % r;
  return at.sample * rows.sample + pixel * rows.row + slot * D;
}

// The row at `offset` as float32: its own memory, or `buffer`.
DIMR_ALWAYS_INLINE const float* as_floats(const RowSet& rows, int64_t offset, float* buffer, int64_t D) {
  if (rows.type == Type::float32) return static_cast<const float*>(rows.data) + offset;
  const auto widen_row = [&](auto type) {
    const auto* from = static_cast<const decltype(type)*>(rows.data) + offset;
    for_vectors(D, [&](int64_t i, auto lanes) {
      prefetch_ahead(from + i);
      store(buffer + i, load(from + i, lanes), lanes);
    });
  };
  rows.type == Type::bfloat16 ? widen_row(BFloat16{}) : widen_row(Float16{});
  return buffer;
}

template <class A, class B>
struct Sum {
  using type = float;
};
template <class A>
struct Sum<A, A> {
  using type = A;
};

// x + residual, stored in `total` and, as rounded there, as float32: in total's own memory or in `buffer`.
template <class A, class B>
const float* add_rows(const A* x, const B* residual, typename Sum<A, B>::type* total, float* buffer, int64_t D) {
  using T = typename Sum<A, B>::type;
  constexpr bool is_float = sizeof(T) == sizeof(float);
  for_vectors(D, [&](int64_t i, auto lanes) {
    prefetch_ahead(x + i);
    prefetch_ahead(residual + i);
    const Vec sum = load(x + i, lanes) + load(residual + i, lanes);
    if constexpr (is_float) {
      store(total + i, sum, lanes);
    } else {
      const Halves rounded = narrow(sum, T{});
      store_raw(reinterpret_cast<uint16_t*>(total + i), rounded, lanes);
      store(buffer + i, widen(rounded, T{}), lanes);
    }
  });
  if constexpr (is_float) {
    return total;
  } else {
    return buffer;
  }
}

DIMR_ALWAYS_INLINE const float* input_row(const NormForward& task, const RowPlace& at, float* buffer) {
  const int64_t D = task.D, x_at = offset_of(task.x, at, task.shuffle, D);
  const float* row = nullptr;
  if (task.residual.data == nullptr) {
    row = as_floats(task.x, x_at, buffer, D);
  } else {
    with_type(task.x.type, [&](auto a) {
      with_type(task.residual.type, [&](auto b) {
        using T = typename Sum<decltype(a), decltype(b)>::type;
        row = add_rows(
            static_cast<const decltype(a)*>(task.x.data) + x_at,
            static_cast<const decltype(b)*>(task.residual.data) + offset_of(task.residual, at),
            static_cast<T*>(task.total.data) + offset_of(task.total, at), buffer, D);
      });
    });
  }
  if (task.offset == nullptr) return row;
  for_vectors(D, [&](int64_t i, auto lanes) {
    store(buffer + i, load(row + i, lanes) + load(task.offset + i, lanes), lanes);
  });
  return buffer;
}

struct Statistics {
  float mean, scale;  // scale: reciprocal deviation, or root mean square
};

DIMR_ALWAYS_INLINE Statistics statistics_of(const float* row, int64_t D, float eps, bool rms) {
  float sum[1];
  if (rms) {
    sum_vectors(D, sum, [&](int64_t i, auto lanes, Vec* sums) {
      prefetch_ahead(row + i);
      const Vec x = load(row + i, lanes);
      sums[0] += x * x;
    });
    return {0.f, __builtin_sqrtf(sum[0] / static_cast<float>(D))};
  }
  sum_vectors(D, sum, [&](int64_t i, auto lanes, Vec* sums) {
    prefetch_ahead(row + i);
    sums[0] += load(row + i, lanes);
  });
  const float mean = sum[0] / static_cast<float>(D);
  sum_vectors(D, sum, [&](int64_t i, auto lanes, Vec* sums) {  // a second pass: a large mean does not cancel
    const Vec centred = kept(load(row + i, lanes) - mean, lanes);
    sums[0] += centred * centred;
  });
  return {mean, 1.f / __builtin_sqrtf(sum[0] / static_cast<float>(D) + eps)};
}

DIMR_ALWAYS_INLINE float factor_of(float scale, float eps, bool rms) { return rms ? 1.f / (scale + eps) : scale; }

template <class Y, bool SHIFT, bool ADD>
void write_row(
    const float* row, float mean, float factor, const float* gamma, const float* beta, const float* addend, Y* y,
    int64_t D) {
  for_vectors(D, [&](int64_t i, auto lanes) {
    Vec out = (load(row + i, lanes) - mean) * factor * load(gamma + i, lanes);
    if constexpr (SHIFT) out += load(beta + i, lanes);
    if constexpr (ADD) out += load(addend + i, lanes);
    store(y + i, out, lanes);
  });
}

// ROWS rows of one timestep, as float32.
template <int ROWS>
struct RowGroup {
  const float *x[ROWS], *dy[ROWS];
  Vec mean[ROWS], factor[ROWS];
  float along_xhat[ROWS], plain[ROWS];  // sums over a row of gamma * dy * xhat and gamma * dy
};

// The sums over each row, and what the rows add to the gradients of gamma and beta; in blocks of columns, whose sums
// are joined in double.
template <int ROWS, bool RMS, bool PARTIAL, bool SHIFT>
void gather(RowGroup<ROWS>& rows, const float* gamma, float* dgamma, float* dbeta, int64_t D) {
  double joined_along[ROWS] = {}, joined_plain[ROWS] = {};
  for (int64_t start = 0; start < D; start += kSumBlock) {
    Vec along[ROWS] = {}, plain[ROWS] = {};
    for_vectors(D - start < kSumBlock ? D - start : kSumBlock, [&](int64_t offset, auto lanes) {
      const int64_t i = start + offset;
      const Vec scale = load(gamma + i, lanes);
      Vec gamma_sum = {}, beta_sum = {};
      DIMR_UNROLL_WHOLE
      for (int r = 0; r < ROWS; ++r) {
        prefetch_group(rows.x[r] + i, ROWS * D);
        prefetch_group(rows.dy[r] + i, ROWS * D);
        const Vec dy = load(rows.dy[r] + i, lanes), x = load(rows.x[r] + i, lanes);
        const Vec xhat = RMS ? x * rows.factor[r] : (x - rows.mean[r]) * rows.factor[r];
        const Vec product = dy * xhat;
        if constexpr (PARTIAL) gamma_sum += product;
        if constexpr (PARTIAL && SHIFT) beta_sum += dy;
        along[r] += product * scale;
        if constexpr (!RMS) plain[r] += dy * scale;
      }
      if constexpr (PARTIAL) store(dgamma + i, load(dgamma + i, lanes) + gamma_sum, lanes);
      if constexpr (PARTIAL && SHIFT) store(dbeta + i, load(dbeta + i, lanes) + beta_sum, lanes);
    });
    for (int r = 0; r < ROWS; ++r) {
      joined_along[r] += total(along[r]);
      if constexpr (!RMS) joined_plain[r] += total(plain[r]);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    rows.along_xhat[r] = static_cast<float>(joined_along[r]);
    rows.plain[r] = static_cast<float>(joined_plain[r]);
  }
}

template <class X, bool TOTAL>
void write_dx(
    const float* x, const float* dy, const float* gamma, const float* dtotal, float mean, float factor, float c,
    float average, X* dx, int64_t D) {
  for_vectors(D, [&](int64_t i, auto lanes) {
    const Vec xhat = (load(x + i, lanes) - mean) * factor;
    const Vec weighted = rounded(load(dy + i, lanes) * load(gamma + i, lanes));  // of one column it is the average
    Vec out = (weighted - average - xhat * c) * factor;
    if constexpr (TOTAL) out += load(dtotal + i, lanes);
    store(dx + i, out, lanes);
  });
}

template <int ROWS>
DIMR_ALWAYS_INLINE void gather_rows(
    const NormBackward& task, RowGroup<ROWS>& rows, const float* gamma, float* dgamma, float* dbeta) {
  const auto run = [&](auto kernel) { kernel(rows, gamma, dgamma, dbeta, task.D); };
  if (task.rms) {
    if (dgamma == nullptr) return run(gather<ROWS, true, false, false>);
    return dbeta == nullptr ? run(gather<ROWS, true, true, false>) : run(gather<ROWS, true, true, true>);
  }
  if (dgamma == nullptr) return run(gather<ROWS, false, false, false>);
  dbeta == nullptr ? run(gather<ROWS, false, true, false>) : run(gather<ROWS, false, true, true>);
}

// Rows first .. first + ROWS, counted over all samples.
template <int ROWS>
void backward_rows(
    const NormBackward& task, int64_t first, const float* gamma, float* dgamma, float* dbeta, float* scratch) {
  const int64_t D = task.D, buffer = D + 16, count = task.B * task.N;
  RowGroup<ROWS> rows;
  RowPlace at[ROWS];
  float mean[ROWS], scale[ROWS], factor[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    const int64_t row = first + r;
    at[r] = {row / task.N, row % task.N};
    rows.x[r] = as_floats(task.x, offset_of(task.x, at[r], task.shuffle, D), scratch + 2 * r * buffer, D);
    rows.dy[r] = as_floats(task.dy, offset_of(task.dy, at[r]), scratch + (2 * r + 1) * buffer, D);
    mean[r] = task.rms ? 0.f : task.stats[row];
    scale[r] = task.stats[task.rms ? row : count + row];
    factor[r] = factor_of(scale[r], task.eps, task.rms);
    rows.mean[r] = splat(mean[r]);
    rows.factor[r] = splat(factor[r]);
  }
  gather_rows(task, rows, gamma, dgamma, dbeta);
  if (task.dx.data == nullptr) return;
  for (int r = 0; r < ROWS; ++r) {
    float c = rows.along_xhat[r] / static_cast<float>(D);
    if (task.rms && scale[r] > 0.f) c /= scale[r] * factor[r];  // the derivative of a zero row's norm is taken as zero
    const float average = task.rms ? 0.f : rows.plain[r] / static_cast<float>(D);
    const float* dtotal = task.dtotal.data == nullptr
        ? nullptr
        : as_floats(task.dtotal, offset_of(task.dtotal, at[r]), scratch + 2 * ROWS * buffer, D);
    with_type(task.dx.type, [&](auto type) {
      using X = decltype(type);
      X* dx = static_cast<X*>(task.dx.data) + offset_of(task.dx, at[r], task.shuffle, D);
      const auto write = dtotal == nullptr ? write_dx<X, false> : write_dx<X, true>;
      write(rows.x[r], rows.dy[r], gamma, dtotal, mean[r], factor[r], c, average, dx, D);
    });
  }
}

}  // namespace

void norm_forward(const NormForward& task, int64_t begin, int64_t end, float* scratch) {
  const int64_t D = task.D, count = task.B * task.N;
  float* addend_buffer = scratch + D + 16;
  for (int64_t unit = begin; unit < end; ++unit) {
    const RowPlace at{unit / task.N, unit % task.N};
    const float* row = input_row(task, at, scratch);
    const Statistics found = statistics_of(row, D, task.eps, task.rms);
    if (task.stats != nullptr) {
      task.stats[unit] = task.rms ? found.scale : found.mean;
      if (!task.rms) task.stats[count + unit] = found.scale;
    }
    const float factor = factor_of(found.scale, task.eps, task.rms);
    const float *gamma = task.table + at.sample * task.table_stride, *beta = gamma + D;
    const float* addend = task.addend.data == nullptr
        ? nullptr
        : as_floats(task.addend, offset_of(task.addend, at), addend_buffer, D);
    with_type(task.y.type, [&](auto type) {
      using Y = decltype(type);
      Y* y = static_cast<Y*>(task.y.data) + offset_of(task.y, at);
      const auto shifted = addend == nullptr ? write_row<Y, true, false> : write_row<Y, true, true>;
      const auto scaled = addend == nullptr ? write_row<Y, false, false> : write_row<Y, false, true>;
      const auto write = task.shift ? shifted : scaled;
      write(row, found.mean, factor, gamma, beta, addend, y, D);
    });
  }
}

void norm_backward(const NormBackward& task, int64_t begin, int64_t end, float* scratch) {
  const int64_t D = task.D, kinds = task.shift ? 2 : 1, group_rows = task.B * task.N / task.groups;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t group = unit / task.chunks;
    const int64_t from = unit % task.chunks * task.rows_per_chunk;
    const int64_t rows = group_rows - from < task.rows_per_chunk ? group_rows - from : task.rows_per_chunk;
    float *dgamma = nullptr, *dbeta = nullptr;
    if (task.partials != nullptr) {
      dgamma = task.partials + unit * kinds * D;
      dbeta = task.shift ? dgamma + D : nullptr;
      for_vectors(kinds * D, [&](int64_t i, auto lanes) { store(dgamma + i, Vec{}, lanes); });
    }
    const float* gamma = task.table + group * task.table_stride;
    const int64_t first = group * group_rows + from;
    int64_t r = 0;
    for (; r + NormBackward::kRows <= rows; r += NormBackward::kRows) {
      backward_rows<NormBackward::kRows>(task, first + r, gamma, dgamma, dbeta, scratch);
    }
    for (; r < rows; ++r) backward_rows<1>(task, first + r, gamma, dgamma, dbeta, scratch);
  }
}

}  // namespace DIMR_SET
}  // namespace dimr
