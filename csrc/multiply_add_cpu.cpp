// Multiply-adds on registers alone: the ceiling of the arithmetic, which benchmarks hold the operators against.

#include "cpu_kernels.h"
#include "vec.h"

namespace dimr {
namespace DIMR_SET {

void multiply_adds(const MultiplyAdds& task, int64_t begin, int64_t end, float* sums) {
  constexpr int kChains = kLanes == 16 ? 16 : 12;  // enough to hide the latency, and they fit the registers
  Vec factor = splat(0.999f);
  const Vec addend = splat(0.01f);
  for (int64_t unit = begin; unit < end; ++unit) {
    Vec chain[kChains];
    for (int k = 0; k < kChains; ++k) chain[k] = splat(static_cast<float>(k));
    for (int64_t step = 0; step < task.steps; ++step) {
      DIMR_UNROLL_WHOLE
      for (int k = 0; k < kChains; ++k) chain[k] = chain[k] * factor + addend;
      factor = rounded(factor);  // no step is computed ahead
    }
    Vec sum = {};
    DIMR_UNROLL_WHOLE
    for (int k = 0; k < kChains; ++k) sum += chain[k];
    sums[0] = total(sum);
  }
  if (task.operations != nullptr) *task.operations = 2.0 * kChains * kLanes * static_cast<double>(task.steps);
}

}  // namespace DIMR_SET
}  // namespace dimr
