// The time gate on a CPU: scale and shift, and the gradients of all that made them.

#include "cpu_kernels.h"
#include "vec.h"

namespace dimr {
namespace DIMR_SET {
namespace {

template <class Lanes>
struct PairAt {
  Vec first, second, weight;
  Shares shares;

  DIMR_ALWAYS_INLINE PairAt(const GatedPair& pair, float t, int64_t c, Lanes lanes) {
    first = load(pair.first + c, lanes);
    second = load(pair.second + c, lanes);
    weight = pair.gate_stride == 0 ? splat(pair.weight[0]) : load(pair.weight + c, lanes);
    const Vec offset = pair.gate_stride == 0 ? splat(pair.offset[0]) : load(pair.offset + c, lanes);
    shares = sigmoid_shares(weight * t + offset);
  }
};

constexpr int64_t kGroup = 32;  // partial sums that are added up before they join the others: a smaller error

template <class Lanes>
DIMR_ALWAYS_INLINE Vec chunk_sum(const float* p, int64_t chunks, int64_t stride, Lanes lanes) {
  Vec sum = {};
  for (int64_t start = 0; start < chunks; start += kGroup) {
    const int64_t end = chunks - start < kGroup ? chunks : start + kGroup;
    Vec group = {};
    for (int64_t k = start; k < end; ++k) group += load(p + k * stride, lanes);
    sum += group;
  }
  return sum;
}

}  // namespace

void gate_table(const GateTable& task, int64_t begin, int64_t end, float*) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const GatedPair& pair = task.pair[unit % task.kinds];
    const float t = task.t[unit / task.kinds];
    float* to = task.table + unit * task.D;
    for_vectors(task.D, [&](int64_t c, auto lanes) {
      const PairAt at(pair, t, c, lanes);
      store(to + c, at.second + at.shares.open * (at.first - at.second), lanes);
    });
  }
}

void gate_gradients(const GateGradients& task, int64_t begin, int64_t end, float* dt_lanes) {
  const int64_t D = task.D, blocks = task.blocks(), stride = task.partial_kinds * D;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t kind = unit / blocks, start = unit % blocks * GateGradients::kColumns;
    const int64_t columns = D - start < GateGradients::kColumns ? D - start : GateGradients::kColumns;
    const GatedPair& pair = task.pair[kind];
    if (task.dt != nullptr) {
      for (int64_t i = 0; i < task.T * kLanes; ++i) dt_lanes[i] = 0.f;
    }
    for_vectors(columns, [&](int64_t i, auto lanes) {
      const int64_t c = start + i;
      Vec first = {}, second = {}, weight = {}, offset = {};
      for (int64_t k = 0; k < task.T; ++k) {
        const float t = task.t[k];
        const PairAt at(pair, t, c, lanes);
        const float* of_timestep = task.partials + k * task.chunks * stride + kind * D + c;
        const Vec g = chunk_sum(of_timestep, task.chunks, stride, lanes);
        const Vec open = at.shares.open * g;
        const Vec gate = open * at.shares.shut * (at.first - at.second);
        first += open;
        second += at.shares.shut * g;
        weight += gate * t;
        offset += gate;
        if (task.dt != nullptr) {
          float* to = dt_lanes + k * kLanes;
          store(to, load(to) + kept(at.weight * gate, lanes));
        }
      }
      float* sums = task.sums + kind * 4 * D + c;
      store(sums, first, lanes);
      store(sums + D, second, lanes);
      store(sums + 2 * D, weight, lanes);
      store(sums + 3 * D, offset, lanes);
    });
    for (int64_t k = 0; task.dt != nullptr && k < task.T; ++k) {
      task.dt[unit * task.T + k] = total(load(dt_lanes + k * kLanes));
    }
  }
}

}  // namespace DIMR_SET
}  // namespace dimr
