// The loops of the CPU operators: what they take, and the choice of the instruction set that they run with.
//
// A kernel does the units begin .. end of a task; the task says what a unit is. Units may be dealt out to threads in
// any way: what is summed up over units goes through partial sums of the task's own making; results never depend
// on it.

#pragma once

#include <cstdint>

#include "cpu_types.h"

#define DIMR_INLINED __attribute__((always_inline)) inline

namespace dimr {

enum class Capability : int { baseline, avx2, avx512 };

// The best that this machine has, or what DIMR_KERNELS_CPU_CAPABILITY asked for when it was first needed.
Capability cpu_capability();
// For tests. False, and nothing changed, where this machine or this build lacks it.
bool set_cpu_capability(Capability wanted);
bool has_capability(Capability wanted);

#if defined(DIMR_X86_SETS)
#define DIMR_KERNEL(NAME, TASK)                                                     \
  namespace baseline { void NAME(const TASK&, int64_t, int64_t, float*); }          \
  namespace avx2 { void NAME(const TASK&, int64_t, int64_t, float*); }              \
  namespace avx512 { void NAME(const TASK&, int64_t, int64_t, float*); }            \
  inline auto NAME##_kernel() {                                                     \
    const Capability set = cpu_capability();                                        \
    if (set == Capability::avx512) return &avx512::NAME;                            \
    return set == Capability::avx2 ? &avx2::NAME : &baseline::NAME;                 \
  }
#else
#define DIMR_KERNEL(NAME, TASK)                                            \
  namespace baseline { void NAME(const TASK&, int64_t, int64_t, float*); } \
  inline auto NAME##_kernel() { return &baseline::NAME; }
#endif

// ---- The ceiling of the arithmetic, for benchmarks ----

// Unit: `steps` multiply-adds of each of some independent vectors.
struct MultiplyAdds {
  int64_t steps;
  double* operations;  // floating-point operations of a unit, or null

  DIMR_INLINED int64_t units() const { return 1; }
  DIMR_INLINED int64_t scratch() const { return 1; }
};
DIMR_KERNEL(multiply_adds, MultiplyAdds)

// ---- Depthwise convolution ----

constexpr int64_t kChannelBlock = 16;  // channels that are convolved together: a cache line of float32

// Elements between samples, rows and columns; channels lie side by side.
struct Image {
  const void* data;
  int64_t sample, row, column;
};

struct DepthwiseShape {
  int64_t B, H, W, C, K;

  // Inlined always: these are compiled for every instruction set, and the linker keeps one copy of what is not.
  DIMR_INLINED int64_t blocks() const { return (C + kChannelBlock - 1) / kChannelBlock; }
  // Of a row's copy in float32: columns with zeros on both sides, rounded up to the widest tile.
  DIMR_INLINED int64_t padded_width() const { return (W + 15) / 16 * 16 + K - 1; }
  DIMR_INLINED int64_t padded_floats() const { return padded_width() * K * kChannelBlock; }
  // Rows of an image that a unit takes: all, or less where that leaves few units. A band reads K - 1 rows of others.
  DIMR_INLINED int64_t band() const {
    const int64_t wanted = (kUnits + B * blocks() - 1) / (B * blocks());
    const int64_t rows = (H + wanted - 1) / wanted;
    const int64_t longer = rows < kShortestBand ? kShortestBand : rows;
    return longer < H ? longer : H;
  }
  DIMR_INLINED int64_t bands() const { return (H + band() - 1) / band(); }

  static constexpr int64_t kUnits = 32, kShortestBand = 16;
};

// Unit: a band of rows of one image, of one block of channels.
struct DepthwiseForward {
  DepthwiseShape shape;
  Type type;  // of x, residual and out
  Image x, residual;  // residual.data may be null
  void* out;
  int64_t out_sample, out_row, out_column;
  const float* taps;  // [blocks, K * K, kChannelBlock]
  const float* bias;  // [blocks, kChannelBlock] or null

  DIMR_INLINED int64_t units() const { return shape.B * shape.bands() * shape.blocks(); }
  DIMR_INLINED int64_t scratch() const { return shape.padded_floats(); }
};
DIMR_KERNEL(depthwise_forward, DepthwiseForward)

// Unit: one block of channels of a range of (image, band) pairs.
struct DepthwiseBackward {
  DepthwiseShape shape;
  Type type;  // of grad, x and dx
  Image grad, x;  // x.data is null where the weight wants no gradient
  void* dx;  // contiguous, or null
  const float* taps;  // turned around
  float* partials;  // [splits, blocks, K * K + 1, kChannelBlock]: of the weight's and bias's gradients; null without x
  int64_t splits;

  DIMR_INLINED int64_t units() const { return splits * shape.blocks(); }
  DIMR_INLINED int64_t scratch() const { return 2 * shape.padded_floats(); }
};
DIMR_KERNEL(depthwise_backward, DepthwiseBackward)

// ---- Scale and shift that a gate of the timestep mixes (DiMR eq. (5)) ----

// A pair of parameters [D] and their gate, whose weight and offset are [D] (stride 1) or [1] (stride 0).
struct GatedPair {
  const float *first, *second, *weight, *offset;
  int64_t gate_stride;
};

// Unit: one of the `kinds` (scale, shift) for one timestep.
struct GateTable {
  const float* t;
  GatedPair pair[2];
  int64_t T, kinds, D;
  float* table;  // [T, kinds, D]

  DIMR_INLINED int64_t units() const { return T * kinds; }
  DIMR_INLINED int64_t scratch() const { return 0; }
};
DIMR_KERNEL(gate_table, GateTable)

// Unit: a block of columns of one of the kinds.
struct GateGradients {
  const float* t;
  GatedPair pair[2];
  int64_t T, kinds, D;
  const float* partials;  // [T, chunks, partial_kinds, D]: of the gradients of scale, shift
  int64_t chunks, partial_kinds;
  float* sums;  // [kinds, 4, D]: of first, second, weight and offset, by column
  float* dt;  // [kinds, blocks, T], or null

  static constexpr int64_t kColumns = 256;
  DIMR_INLINED int64_t blocks() const { return (D + kColumns - 1) / kColumns; }
  DIMR_INLINED int64_t units() const { return kinds * blocks(); }
  DIMR_INLINED int64_t scratch() const { return 2 * T; }
};
DIMR_KERNEL(gate_gradients, GateGradients)

// ---- Norms of rows ----

// Rows of D elements that lie side by side, N to a sample; elements between samples and rows. No data: absent.
struct RowSet {
  void* data;
  Type type;
  int64_t sample, row;
};

// Row n of a sample is pixel (n / (factor * width), n % (factor * width)) of an image that a pixel shuffle made; it is
// read from [H, width, factor * factor * D], where pixels lie a RowSet's `row` apart. factor 0: no shuffle.
struct Shuffle {
  int64_t factor, width;
};

// Unit: a row.
struct NormForward {
  int64_t B, N, D;
  RowSet x, residual, total, addend, y;  // total: x + residual, of the type that torch's promotion gives
  Shuffle shuffle;  // of x
  const float* offset;  // [D] or null: added before the norm, not part of the total
  const float* table;  // [T, kinds, D]
  int64_t table_stride;  // between samples, 0 for one timestep
  float* stats;  // [1 (rms) or 2, B * N] or null: root mean square; or mean and reciprocal deviation
  float eps;
  bool rms, shift;

  DIMR_INLINED int64_t units() const { return B * N; }
  DIMR_INLINED int64_t scratch() const { return 2 * (D + 16); }
};
DIMR_KERNEL(norm_forward, NormForward)

// Unit: a chunk of rows of one timestep.
struct NormBackward {
  int64_t B, N, D;
  RowSet x, dy, dtotal, dx;
  Shuffle shuffle;  // of x and dx
  const float* table;
  int64_t table_stride, kinds;  // kinds: of the table
  const float* stats;
  float* partials;  // [groups * chunks, 1 or 2, D] or null
  int64_t groups, chunks, rows_per_chunk;  // groups: timesteps
  float eps;
  bool rms, shift;

  DIMR_INLINED int64_t units() const { return groups * chunks; }
  DIMR_INLINED int64_t scratch() const { return 3 * (D + 16); }
};
DIMR_KERNEL(norm_backward, NormBackward)

// ---- GeGLU ----

// Rows of D gates and as many values, each a RowSet of one "sample". Unit: a row, or a block of columns of a long one.
struct GegluForward {
  int64_t rows, D;
  RowSet gate, value, out;  // of one type
  bool tanh;

  static constexpr int64_t kColumns = 4096;
  DIMR_INLINED int64_t blocks() const { return (D + kColumns - 1) / kColumns; }
  DIMR_INLINED int64_t units() const { return rows * blocks(); }
  DIMR_INLINED int64_t scratch() const { return 0; }
};
DIMR_KERNEL(geglu_forward, GegluForward)

struct GegluBackward {
  int64_t rows, D;
  RowSet grad, gate, value, dgate, dvalue;
  bool tanh;

  DIMR_INLINED int64_t blocks() const { return (D + GegluForward::kColumns - 1) / GegluForward::kColumns; }
  DIMR_INLINED int64_t units() const { return rows * blocks(); }
  DIMR_INLINED int64_t scratch() const { return 0; }
};
DIMR_KERNEL(geglu_backward, GegluBackward)

// ---- Group norm ----

// N pixels to a sample, C channels. Chunks of pixels are cut by the shape alone.
struct GroupNormShape {
  int64_t B, N, C, groups, chunks, pixels;  // pixels: of a chunk

  DIMR_INLINED int64_t units() const { return B * chunks; }
  DIMR_INLINED int64_t first(int64_t unit) const { return unit % chunks * pixels; }
  DIMR_INLINED int64_t count(int64_t unit) const {
    const int64_t left = N - first(unit);
    return left < pixels ? left : pixels;
  }
};

// Of a chunk, by channel: the mean and the sum of squared distances to it. Unit: a chunk.
struct GroupNormMoments {
  GroupNormShape shape;
  RowSet x;
  float* moments;  // [B * chunks, 2, C]

  DIMR_INLINED int64_t units() const { return shape.units(); }
  DIMR_INLINED int64_t scratch() const { return 0; }
};
DIMR_KERNEL(group_norm_moments, GroupNormMoments)

// y = (x - mean) * scale + shift, by channel. Unit: a chunk.
struct GroupNormForward {
  GroupNormShape shape;
  RowSet x, y;
  const float* channels;  // [B, 3, C]: mean, scale, shift

  DIMR_INLINED int64_t units() const { return shape.units(); }
  DIMR_INLINED int64_t scratch() const { return 0; }
};
DIMR_KERNEL(group_norm_forward, GroupNormForward)

// Of a chunk, by channel: the sums of dy * xhat and of dy. Unit: a chunk.
struct GroupNormSums {
  GroupNormShape shape;
  RowSet x, dy;
  const float* channels;  // [B, 2, C]: mean, reciprocal deviation
  float* sums;  // [B * chunks, 2, C]

  DIMR_INLINED int64_t units() const { return shape.units(); }
  DIMR_INLINED int64_t scratch() const { return 0; }
};
DIMR_KERNEL(group_norm_sums, GroupNormSums)

// dx = dy * scale - (x - mean) * along - average, by channel. Unit: a chunk.
struct GroupNormBackward {
  GroupNormShape shape;
  RowSet x, dy, dx;
  const float* channels;  // [B, 4, C]: mean, scale, along, average

  DIMR_INLINED int64_t units() const { return shape.units(); }
  DIMR_INLINED int64_t scratch() const { return 0; }
};
DIMR_KERNEL(group_norm_backward, GroupNormBackward)

}  // namespace dimr
