// The group norm of channels-last images on a CPU: the passes over pixels. td_group_norm.cpp joins them.
//
// A chunk of pixels is walked one vector of channels at a time, whose sums stay in registers; chunks are short enough
// for the cache that a core has to itself.

#include "cpu_kernels.h"
#include "vec.h"

namespace dimr {
namespace DIMR_SET {
namespace {

constexpr int64_t kNextBytes = 128;  // of the channels that a chunk's pixels are read for next

template <class T>
DIMR_ALWAYS_INLINE T* pixel(const RowSet& rows, const GroupNormShape& s, int64_t unit) {
  return static_cast<T*>(rows.data) + unit / s.chunks * rows.sample + s.first(unit) * rows.row;
}

template <class T>
void moments(const GroupNormMoments& task, int64_t unit) {
  const GroupNormShape& s = task.shape;
  const T* x = pixel<T>(task.x, s, unit);
  const int64_t pixels = s.count(unit), step = task.x.row;
  float* to = task.moments + unit * 2 * s.C;
  for_vectors(s.C, [&](int64_t c, auto lanes) {
    Vec sum = {}, squares = {};
    for (int64_t n = 0; n < pixels; ++n) {
      prefetch_at(x + n * step + c, kNextBytes);
      sum += load(x + n * step + c, lanes);
    }
    const Vec mean = sum * (1.f / static_cast<float>(pixels));
    for (int64_t n = 0; n < pixels; ++n) {  // a second pass: a large mean does not cancel
      const Vec centred = load(x + n * step + c, lanes) - mean;
      squares += centred * centred;
    }
    store(to + c, mean, lanes);
    store(to + s.C + c, squares, lanes);
  });
}

template <class T>
void sums(const GroupNormSums& task, int64_t unit) {
  const GroupNormShape& s = task.shape;
  const T *x = pixel<T>(task.x, s, unit), *dy = pixel<T>(task.dy, s, unit);
  const float* channels = task.channels + unit / s.chunks * 2 * s.C;
  float* to = task.sums + unit * 2 * s.C;
  const int64_t pixels = s.count(unit);
  for_vectors(s.C, [&](int64_t c, auto lanes) {
    const Vec mean = load(channels + c, lanes), deviation = load(channels + s.C + c, lanes);
    Vec along = {}, plain = {};
    for (int64_t n = 0; n < pixels; ++n) {
      prefetch_at(x + n * task.x.row + c, kNextBytes);
      prefetch_at(dy + n * task.dy.row + c, kNextBytes);
      const Vec g = load(dy + n * task.dy.row + c, lanes);
      along += g * (load(x + n * task.x.row + c, lanes) - mean);
      plain += g;
    }
    store(to + c, along * deviation, lanes);
    store(to + s.C + c, plain, lanes);
  });
}

template <class T>
void forward(const GroupNormForward& task, int64_t unit) {
  const GroupNormShape& s = task.shape;
  const T* x = pixel<T>(task.x, s, unit);
  T* y = pixel<T>(task.y, s, unit);
  const float* channels = task.channels + unit / s.chunks * 3 * s.C;
  for (int64_t n = 0; n < s.count(unit); ++n, x += task.x.row, y += task.y.row) {
    for_vectors(s.C, [&](int64_t c, auto lanes) {
      prefetch_ahead(x + c);
      const Vec centred = load(x + c, lanes) - load(channels + c, lanes);
      store(y + c, centred * load(channels + s.C + c, lanes) + load(channels + 2 * s.C + c, lanes), lanes);
    });
  }
}

template <class T>
void backward(const GroupNormBackward& task, int64_t unit) {
  const GroupNormShape& s = task.shape;
  const T *x = pixel<T>(task.x, s, unit), *dy = pixel<T>(task.dy, s, unit);
  T* dx = pixel<T>(task.dx, s, unit);
  const float* channels = task.channels + unit / s.chunks * 4 * s.C;
  for (int64_t n = 0; n < s.count(unit); ++n, x += task.x.row, dy += task.dy.row, dx += task.dx.row) {
    for_vectors(s.C, [&](int64_t c, auto lanes) {
      prefetch_ahead(x + c);
      prefetch_ahead(dy + c);
      const Vec centred = load(x + c, lanes) - load(channels + c, lanes);
      const Vec scaled = load(dy + c, lanes) * load(channels + s.C + c, lanes);
      const Vec along = centred * load(channels + 2 * s.C + c, lanes);
      store(dx + c, scaled - along - load(channels + 3 * s.C + c, lanes), lanes);
    });
  }
}

}  // namespace

#define DIMR_UNITS(NAME, TASK, LOOP)                                       \
  void NAME(const TASK& task, int64_t begin, int64_t end, float*) {        \
    with_type(task.x.type, [&](auto type) {                                \
      for (int64_t unit = begin; unit < end; ++unit) LOOP<decltype(type)>(task, unit); \
    });                                                                    \
  }

DIMR_UNITS(group_norm_moments, GroupNormMoments, moments)
DIMR_UNITS(group_norm_sums, GroupNormSums, sums)
DIMR_UNITS(group_norm_forward, GroupNormForward, forward)
DIMR_UNITS(group_norm_backward, GroupNormBackward, backward)

}  // namespace DIMR_SET
}  // namespace dimr
