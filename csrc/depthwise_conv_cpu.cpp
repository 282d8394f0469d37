// The depthwise convolution on a CPU: forward, and all gradients.
//
// Of one block of channels the last K rows are kept as float32, with zeros on both sides, in the fastest cache. A tile
// of neighbouring outputs stays in registers while the taps of one kernel row and one input at a time pass by. Read in
// place, the inputs would lie a pixel's channels apart, for many widths in the same few lines of the cache.

#include "cpu_kernels.h"
#include "vec.h"

namespace dimr {
namespace DIMR_SET {
namespace {

constexpr int kVectors = kChannelBlock / kLanes;
constexpr int kWidest = kLanes == 16 ? 16 : 8;  // a tile's outputs, the taps of a row and an input fill the registers

DIMR_ALWAYS_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// f(v, lanes) for the vectors of a block of which `channels` exist.
template <class F>
DIMR_ALWAYS_INLINE void for_block(int64_t channels, const F& f) {
  DIMR_UNROLL_WHOLE
  for (int v = 0; v < kVectors; ++v) {
    const int64_t left = channels - v * kLanes;
    if (left >= kLanes) {
      f(v, Whole{});
    } else if (left > 0) {
      f(v, Part{static_cast<int>(left)});
    }
  }
}

// Where a unit works: `channels` from `channel` on, rows top .. bottom of an image.
struct Place {
  int64_t image, channel, channels, top, bottom;
};

DIMR_ALWAYS_INLINE Place place(const DepthwiseShape& s, int64_t image, int64_t band, int64_t block) {
  const int64_t top = band * s.band(), channel = block * kChannelBlock;
  return {image, channel, smaller(s.C - channel, kChannelBlock), top, smaller(top + s.band(), s.H)};
}

void clear(float* p, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) store(p + i, Vec{});
}

// The K rows around an output row, topmost first.
template <int K>
class Rows {
 public:
  static constexpr int R = K / 2;

  // `memory`: K rows of the padded width, cleared.
  DIMR_ALWAYS_INLINE Rows(const DepthwiseShape& shape, float* memory) : shape_(shape) {
    for (int k = 0; k < K; ++k) row_[k] = memory + k * shape.padded_width() * kChannelBlock;
  }

  // Makes the next call of `advance` arrive at row at.top.
  template <class X>
  DIMR_ALWAYS_INLINE void start(const Image& x, const Place& at) {
    for (int64_t h = at.top - R; h < at.top + R; ++h) copy_row<X>(x, at, h, row_[h - at.top + R + 1]);
  }

  template <class X>
  DIMR_ALWAYS_INLINE void advance(const Image& x, const Place& at, int64_t h) {
    float* const oldest = row_[0];
    for (int k = 0; k + 1 < K; ++k) row_[k] = row_[k + 1];
    row_[K - 1] = oldest;
    copy_row<X>(x, at, h + R, oldest);
  }

  const float* operator[](int k) const { return row_[k]; }

 private:
  template <class X>
  DIMR_ALWAYS_INLINE void copy_row(const Image& x, const Place& at, int64_t h, float* to) {
    to += R * kChannelBlock;
    if (h < 0 || h >= shape_.H) return clear(to, shape_.W * kChannelBlock);
    const X* from = static_cast<const X*>(x.data) + at.image * x.sample + h * x.row + at.channel;
    for (int64_t w = 0; w < shape_.W; ++w, from += x.column, to += kChannelBlock) {
      prefetch_at(from, x.row * static_cast<int64_t>(sizeof(X)));  // the row after this one
      if (at.channels == kChannelBlock) {
        DIMR_UNROLL_WHOLE
        for (int v = 0; v < kVectors; ++v) store(to + v * kLanes, load(from + v * kLanes));
      } else {
        for_block(at.channels, [&](int v, auto lanes) { store(to + v * kLanes, load(from + v * kLanes, lanes)); });
      }
    }
  }

  const DepthwiseShape& shape_;
  float* row_[K];
};

// sums[i] += the convolution at pixel i, whose window begins `at` floats into the rows.
template <int K, int TILE>
DIMR_ALWAYS_INLINE void convolve(const Rows<K>& rows, int64_t at, const float* taps, Vec (&sums)[TILE]) {
  for (int kh = 0; kh < K; ++kh, taps += K * kChannelBlock) {
    const float* in = rows[kh] + at;
    Vec tap[K];
    DIMR_UNROLL_WHOLE
    for (int k = 0; k < K; ++k) tap[k] = load(taps + k * kChannelBlock);
    DIMR_UNROLL_WHOLE
    for (int j = 0; j < TILE + K - 1; ++j) {
      const Vec x = load(in + j * kChannelBlock);
      DIMR_UNROLL_WHOLE
      for (int i = 0; i < TILE; ++i) {
        if (j - i >= 0 && j - i < K) sums[i] += x * tap[j - i];
      }
    }
  }
}

// Sums of a tap's gradient that grow side by side, as the registers allow: one alone would wait for each addition.
template <int K>
constexpr int kChains = 2 * K + kWidest < (kLanes == 16 ? 32 : 16) ? 2 : 1;

// sums[..][k] += the products of TILE gradients with the inputs k columns on.
template <int K, int TILE>
DIMR_ALWAYS_INLINE void correlate(const float* x, const float* grad, Vec (&sums)[kChains<K>][K]) {
  Vec g[TILE];
  DIMR_UNROLL_WHOLE
  for (int i = 0; i < TILE; ++i) g[i] = load(grad + i * kChannelBlock);
  DIMR_UNROLL_WHOLE
  for (int j = 0; j < TILE + K - 1; ++j) {
    const Vec in = load(x + j * kChannelBlock);
    DIMR_UNROLL_WHOLE
    for (int i = 0; i < TILE; ++i) {
      if (j - i >= 0 && j - i < K) sums[i % kChains<K>][j - i] += in * g[i];
    }
  }
}

template <int N>
struct Number {
  static constexpr int value = N;
};

// f(w, tile) for the tiles of a row, each as wide as it has to be.
template <class F>
DIMR_ALWAYS_INLINE void for_tiles(int64_t W, const F& f) {
  int64_t w = 0;
  while (W - w > kWidest / 2) {
    f(w, Number<kWidest>{});
    w += kWidest;
  }
  if (w < W) f(w, Number<kWidest / 2>{});
}

struct Target {
  void* data;
  int64_t sample, row, column;
};

// Where a tile's outputs go, `channels` to a pixel; `pixel` and `residual_pixel` are elements from one to the next.
struct Outputs {
  void* data;
  const void* residual;  // or null
  int64_t pixel, residual_pixel, count, channels;
};

// What a tile made, [count, kChannelBlock] float32, plus the residual.
template <class X>
void finish_tile(const float* made, const Outputs& to) {
  for (int64_t i = 0; i < to.count; ++i) {
    for_block(to.channels, [&](int v, auto lanes) {
      Vec y = load(made + i * kChannelBlock + v * kLanes);
      if (to.residual != nullptr) {
        y += load(static_cast<const X*>(to.residual) + i * to.residual_pixel + v * kLanes, lanes);
      }
      store(static_cast<X*>(to.data) + i * to.pixel + v * kLanes, y, lanes);
    });
  }
}

// The tile whose windows begin at pixel w of the rows: into `target`, so many floats from pixel to pixel.
template <int K, int TILE>
__attribute__((noinline)) void make_tile(
    const Rows<K>& rows, int64_t w, const float* taps, const float* bias, float* target, int64_t pixel) {
  for (int v = 0; v < kVectors; ++v) {
    const int64_t first = v * kLanes;
    const Vec start = bias == nullptr ? Vec{} : load(bias + first);
    Vec sums[TILE];
    DIMR_UNROLL_WHOLE
    for (int i = 0; i < TILE; ++i) sums[i] = start;
    convolve<K, TILE>(rows, w * kChannelBlock + first, taps + first, sums);
    DIMR_UNROLL_WHOLE
    for (int i = 0; i < TILE; ++i) store(target + i * pixel + first, sums[i]);
  }
}

// Output row h.
template <class X, int K>
void convolve_row(
    const DepthwiseShape& s, const Place& at, int64_t h, const Rows<K>& rows, const float* taps, const float* bias,
    const Image& residual, const Target& out) {
  X* to_row = static_cast<X*>(out.data) + at.image * out.sample + h * out.row + at.channel;
  const X* residual_row = residual.data == nullptr
      ? nullptr
      : static_cast<const X*>(residual.data) + at.image * residual.sample + h * residual.row + at.channel;
  for_tiles(s.W, [&](int64_t w, auto tile) {
    constexpr int TILE = decltype(tile)::value;
    X* to = to_row + w * out.column;
    const int64_t count = smaller(s.W - w, TILE);
    for (int64_t i = 0; i < count; ++i) __builtin_prefetch(to + i * out.column, 1);  // pixels lie far apart here
    if constexpr (sizeof(X) == sizeof(float)) {
      if (residual_row == nullptr && count == TILE && at.channels == kChannelBlock) {
        return make_tile<K, TILE>(rows, w, taps, bias, to, out.column);
      }
    }
    float made[TILE * kChannelBlock];
    make_tile<K, TILE>(rows, w, taps, bias, made, kChannelBlock);
    const X* addend = residual_row == nullptr ? nullptr : residual_row + w * residual.column;
    finish_tile<X>(made, {to, addend, out.column, residual.column, count, at.channels});
  });
}

// Adds a row's share of the gradients of taps and bias to `partial`.
template <int K>
__attribute__((noinline)) void gather_row(
    const DepthwiseShape& s, const Rows<K>& grads, const Rows<K>& inputs, float* partial) {
  const float* grad = grads[K / 2] + K / 2 * kChannelBlock;
  for (int v = 0; v < kVectors; ++v) {
    const int64_t first = v * kLanes;
    for (int kh = 0; kh < K; ++kh) {
      Vec sums[kChains<K>][K] = {};  // of this row alone, which keeps the error of long sums small
      for_tiles(s.W, [&](int64_t w, auto tile) {
        const int64_t at = w * kChannelBlock + first;
        correlate<K, decltype(tile)::value>(inputs[kh] + at, grad + at, sums);
      });
      float* to = partial + kh * K * kChannelBlock + first;
      DIMR_UNROLL_WHOLE
      for (int k = 0; k < K; ++k) {
        Vec sum = load(to + k * kChannelBlock);
        DIMR_UNROLL_WHOLE
        for (int chain = 0; chain < kChains<K>; ++chain) sum += sums[chain][k];
        store(to + k * kChannelBlock, sum);
      }
    }
    Vec sum = {};
    for (int64_t w = 0; w < s.W; ++w) sum += load(grad + w * kChannelBlock + first);
    float* to = partial + K * K * kChannelBlock + first;
    store(to, load(to) + sum);
  }
}

template <class X, int K>
void forward(const DepthwiseForward& task, int64_t begin, int64_t end, float* scratch) {
  const DepthwiseShape& s = task.shape;
  const int64_t blocks = s.blocks(), bands = s.bands();
  clear(scratch, task.scratch());
  const Target out{task.out, task.out_sample, task.out_row, task.out_column};
  Rows<K> rows(s, scratch);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t block = unit % blocks, pair = unit / blocks;
    const Place at = place(s, pair / bands, pair % bands, block);
    const float* taps = task.taps + block * K * K * kChannelBlock;
    const float* bias = task.bias == nullptr ? nullptr : task.bias + block * kChannelBlock;
    rows.template start<X>(task.x, at);
    for (int64_t h = at.top; h < at.bottom; ++h) {
      rows.template advance<X>(task.x, at, h);
      convolve_row<X, K>(s, at, h, rows, taps, bias, task.residual, out);
    }
  }
}

template <class X, int K>
void backward(const DepthwiseBackward& task, int64_t begin, int64_t end, float* scratch) {
  const DepthwiseShape& s = task.shape;
  const int64_t blocks = s.blocks(), bands = s.bands(), pairs = s.B * bands, sums = (K * K + 1) * kChannelBlock;
  clear(scratch, task.scratch());
  const Target dx{task.dx, s.H * s.W * s.C, s.W * s.C, s.C};
  Rows<K> grads(s, scratch), inputs(s, scratch + s.padded_floats());
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t block = unit % blocks, split = unit / blocks;
    float* partial = task.partials == nullptr ? nullptr : task.partials + unit * sums;
    if (partial != nullptr) clear(partial, sums);
    for (int64_t pair = split * pairs / task.splits; pair < (split + 1) * pairs / task.splits; ++pair) {
      const Place at = place(s, pair / bands, pair % bands, block);
      const float* taps = task.taps + block * K * K * kChannelBlock;
      grads.template start<X>(task.grad, at);
      if (partial != nullptr) inputs.template start<X>(task.x, at);
      for (int64_t h = at.top; h < at.bottom; ++h) {
        grads.template advance<X>(task.grad, at, h);
        if (task.dx != nullptr) convolve_row<X, K>(s, at, h, grads, taps, nullptr, Image{}, dx);
        if (partial == nullptr) continue;
        inputs.template advance<X>(task.x, at, h);
        gather_row<K>(s, grads, inputs, partial);
      }
    }
  }
}

template <class F>
DIMR_ALWAYS_INLINE void with_size(int64_t K, const F& f) {
  if (K == 3) return f(Number<3>{});
  if (K == 5) return f(Number<5>{});
  f(Number<7>{});
}

}  // namespace

void depthwise_forward(const DepthwiseForward& task, int64_t begin, int64_t end, float* scratch) {
  with_size(task.shape.K, [&](auto size) {
    constexpr int K = decltype(size)::value;
    with_type(task.type, [&](auto type) { forward<decltype(type), K>(task, begin, end, scratch); });
  });
}

void depthwise_backward(const DepthwiseBackward& task, int64_t begin, int64_t end, float* scratch) {
  with_size(task.shape.K, [&](auto size) {
    constexpr int K = decltype(size)::value;
    with_type(task.type, [&](auto type) { backward<decltype(type), K>(task, begin, end, scratch); });
  });
}

}  // namespace DIMR_SET
}  // namespace dimr
