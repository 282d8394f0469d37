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

// A row of the backward, as float32, and what its gradient needs.
struct BackwardRow {
  const float *x, *dy;
  float mean, factor;
  float along_xhat, plain;  // sums over the row of gamma * dy * xhat and gamma * dy
};

// The sums over the row, and what it adds to the gradients of gamma and beta. One row at a time: several at once would
// load those gradients less often, but the hardware prefetches two long streams, not many short ones.
template <bool RMS, bool PARTIAL, bool SHIFT>
void gather(BackwardRow& row, const float* gamma, float* dgamma, float* dbeta, int64_t D) {
  float sums[RMS ? 1 : 2];
  sum_vectors(D, sums, [&](int64_t i, auto lanes, Vec* sum) {
    prefetch_ahead(row.x + i);
    prefetch_ahead(row.dy + i);
    const Vec dy = load(row.dy + i, lanes), x = load(row.x + i, lanes), scale = load(gamma + i, lanes);
    const Vec product = dy * (RMS ? x * row.factor : (x - row.mean) * row.factor);
    if constexpr (PARTIAL) store(dgamma + i, load(dgamma + i, lanes) + product, lanes);
    if constexpr (PARTIAL && SHIFT) store(dbeta + i, load(dbeta + i, lanes) + dy, lanes);
    sum[0] += product * scale;
    if constexpr (!RMS) sum[1] += dy * scale;
  });
  row.along_xhat = sums[0];
  row.plain = RMS ? 0.f : sums[RMS ? 0 : 1];
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

DIMR_ALWAYS_INLINE void gather_row(
    const NormBackward& task, BackwardRow& row, const float* gamma, float* dgamma, float* dbeta) {
  const auto run = [&](auto kernel) { kernel(row, gamma, dgamma, dbeta, task.D); };
  if (task.rms) {
    if (dgamma == nullptr) return run(gather<true, false, false>);
    return dbeta == nullptr ? run(gather<true, true, false>) : run(gather<true, true, true>);
  }
  if (dgamma == nullptr) return run(gather<false, false, false>);
  dbeta == nullptr ? run(gather<false, true, false>) : run(gather<false, true, true>);
}

// Row `index`, counted over all samples.
void backward_row(
    const NormBackward& task, int64_t index, const float* gamma, float* dgamma, float* dbeta, float* scratch) {
  const int64_t D = task.D, buffer = D + 16, count = task.B * task.N;
  const RowPlace at{index / task.N, index % task.N};
  const float scale = task.stats[task.rms ? index : count + index];
  BackwardRow row;
  row.x = as_floats(task.x, offset_of(task.x, at, task.shuffle, D), scratch, D);
  row.dy = as_floats(task.dy, offset_of(task.dy, at), scratch + buffer, D);
  row.mean = task.rms ? 0.f : task.stats[index];
  row.factor = factor_of(scale, task.eps, task.rms);
  gather_row(task, row, gamma, dgamma, dbeta);
  if (task.dx.data == nullptr) return;
  float c = row.along_xhat / static_cast<float>(D);
  if (task.rms && scale > 0.f) c /= scale * row.factor;  // the derivative of a zero row's norm is taken as zero
  const float average = row.plain / static_cast<float>(D);
  const float* dtotal = task.dtotal.data == nullptr
      ? nullptr
      : as_floats(task.dtotal, offset_of(task.dtotal, at), scratch + 2 * buffer, D);
  with_type(task.dx.type, [&](auto type) {
    using X = decltype(type);
    X* dx = static_cast<X*>(task.dx.data) + offset_of(task.dx, at, task.shuffle, D);
    const auto write = dtotal == nullptr ? write_dx<X, false> : write_dx<X, true>;
    write(row.x, row.dy, gamma, dtotal, row.mean, row.factor, c, average, dx, D);
  });
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
    for (int64_t r = 0; r < rows; ++r) backward_row(task, first + r, gamma, dgamma, dbeta, scratch);
  }
}

}  // namespace DIMR_SET
}  // namespace dimr
