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

constexpr int64_t kGroup = 32;  // terms that are added up before their sum joins the others: a smaller error

// f(begin, end) for groups of n terms.
template <class F>
DIMR_ALWAYS_INLINE void for_groups(int64_t n, const F& f) {
  for (int64_t start = 0; start < n; start += kGroup) f(start, n - start < kGroup ? n : start + kGroup);
}

template <class Lanes>
DIMR_ALWAYS_INLINE Vec chunk_sum(const float* p, int64_t chunks, int64_t stride, Lanes lanes) {
  Vec sum = {};
  for_groups(chunks, [&](int64_t begin, int64_t end) {
    Vec group = {};
    for (int64_t k = begin; k < end; ++k) group += load(p + k * stride, lanes);
    sum += group;
  });
  return sum;
}

// Of the pair's parameters and gate.
struct PairSums {
  Vec first, second, weight, offset;
};

// The sums over the timesteps begin .. end at column c; dt[k] += what timestep k gets, where dt is wanted.
template <class Lanes>
DIMR_ALWAYS_INLINE PairSums
pair_sums(const GateGradients& task, int64_t kind, int64_t begin, int64_t end, int64_t c, double* dt, Lanes lanes) {
  const int64_t stride = task.partial_kinds * task.D;
  PairSums sums = {};
  for (int64_t k = begin; k < end; ++k) {
    const float t = task.t[k];
    const PairAt at(task.pair[kind], t, c, lanes);
    const float* of_timestep = task.partials + k * task.chunks * stride + kind * task.D + c;
    const Vec g = chunk_sum(of_timestep, task.chunks, stride, lanes);
    const Vec open = at.shares.open * g;
    const Vec gate = open * at.shares.shut * (at.first - at.second);
    sums.first += open;
    sums.second += at.shares.shut * g;
    sums.weight += gate * t;
    sums.offset += gate;
    if (task.dt != nullptr) dt[k] += total(kept(at.weight * gate, lanes));
  }
  return sums;
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

void gate_gradients(const GateGradients& task, int64_t begin, int64_t end, float* scratch) {
  auto* dt = reinterpret_cast<double*>(scratch);  // [T]: large terms of both signs meet here
  const int64_t D = task.D, blocks = task.blocks();
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t kind = unit / blocks, start = unit % blocks * GateGradients::kColumns;
    const int64_t columns = D - start < GateGradients::kColumns ? D - start : GateGradients::kColumns;
    for (int64_t k = 0; k < task.T; ++k) dt[k] = 0;
    for_vectors(columns, [&](int64_t i, auto lanes) {
      const int64_t c = start + i;
      PairSums sums = {};
      for_groups(task.T, [&](int64_t from, int64_t to) {
        const PairSums group = pair_sums(task, kind, from, to, c, dt, lanes);
        sums = {sums.first + group.first, sums.second + group.second, sums.weight + group.weight,
                sums.offset + group.offset};
      });
      float* to = task.sums + kind * 4 * D + c;
      store(to, sums.first, lanes);
      store(to + D, sums.second, lanes);
      store(to + 2 * D, sums.weight, lanes);
      store(to + 3 * D, sums.offset, lanes);
    });
    for (int64_t k = 0; task.dt != nullptr && k < task.T; ++k) {
      task.dt[unit * task.T + k] = static_cast<float>(dt[k]);
    }
  }
}

}  // namespace DIMR_SET
}  // namespace dimr
