// GeGLU on a CPU: one pass forward, one pass backward.

#include "cpu_kernels.h"
#include "vec.h"

namespace dimr {
namespace DIMR_SET {
namespace {

template <class T>
DIMR_ALWAYS_INLINE T* at(const RowSet& rows, int64_t row, int64_t column) {
  return static_cast<T*>(rows.data) + row * rows.row + column;
}

template <bool TANH>
DIMR_ALWAYS_INLINE GeluValue gelu(Vec a) {
  if constexpr (TANH) return gelu_tanh(a);
  return gelu_exact(a);
}

template <bool TANH>
DIMR_ALWAYS_INLINE Vec gelu_value(Vec a) {
  if constexpr (TANH) return gelu_tanh(a).value;
  return gelu_exact_value(a);
}

// f(row, column, columns) for the units begin .. end.
template <class Task, class F>
DIMR_ALWAYS_INLINE void for_units(const Task& task, int64_t begin, int64_t end, const F& f) {
  const int64_t blocks = task.blocks();
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t column = unit % blocks * GegluForward::kColumns, left = task.D - column;
    f(unit / blocks, column, left < GegluForward::kColumns ? left : GegluForward::kColumns);
  }
}

template <class T, bool TANH>
void forward(const GegluForward& task, int64_t begin, int64_t end) {
  for_units(task, begin, end, [&](int64_t row, int64_t column, int64_t columns) {
    const T *gate = at<T>(task.gate, row, column), *value = at<T>(task.value, row, column);
    T* out = at<T>(task.out, row, column);
    for_vectors(columns, [&](int64_t i, auto lanes) {
      prefetch_ahead(gate + i);
      prefetch_ahead(value + i);
      store(out + i, gelu_value<TANH>(load(gate + i, lanes)) * load(value + i, lanes), lanes);
    });
  });
}

template <class T, bool TANH>
void backward(const GegluBackward& task, int64_t begin, int64_t end) {
  for_units(task, begin, end, [&](int64_t row, int64_t column, int64_t columns) {
    const T *gate = at<T>(task.gate, row, column), *value = at<T>(task.value, row, column);
    const T* grad = at<T>(task.grad, row, column);
    T *dgate = at<T>(task.dgate, row, column), *dvalue = at<T>(task.dvalue, row, column);
    for_vectors(columns, [&](int64_t i, auto lanes) {
      prefetch_ahead(gate + i);
      prefetch_ahead(value + i);
      prefetch_ahead(grad + i);
      const GeluValue activated = gelu<TANH>(load(gate + i, lanes));
      const Vec g = load(grad + i, lanes);
      store(dgate + i, g * load(value + i, lanes) * activated.slope, lanes);
      store(dvalue + i, g * activated.value, lanes);
    });
  });
}

}  // namespace

void geglu_forward(const GegluForward& task, int64_t begin, int64_t end, float*) {
  with_type(task.gate.type, [&](auto type) {
    using T = decltype(type);
    task.tanh ? forward<T, true>(task, begin, end) : forward<T, false>(task, begin, end);
  });
}

void geglu_backward(const GegluBackward& task, int64_t begin, int64_t end, float*) {
  with_type(task.gate.type, [&](auto type) {
    using T = decltype(type);
    task.tanh ? backward<T, true>(task, begin, end) : backward<T, false>(task, begin, end);
  });
}

}  // namespace DIMR_SET
}  // namespace dimr
