// The depthwise convolution on a CPU: forward, and all gradients.
//
// A block of channels of a band of rows is copied into float32 with zeros around it; a tile of neighbouring outputs then
// stays in registers while the taps of one kernel row and one input at a time pass by. The copy turns reads that lie a
// pixel's channels apart into dense ones, which for many widths would otherwise fall into few lines of the cache.

#include "cpu_kernels.h"
#include "vec.h"

namespace dimr {
namespace DIMR_SET {
namespace {

constexpr int kVectors = kChannelBlock / kLanes;
constexpr int kWidest = kLanes == 16 ? 16 : 8;  // a tile's outputs, the taps of a row and an input fill the registers
constexpr int64_t kPrefetchPixels = 12;

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

// The rows of `at` and K / 2 more on both sides into the inner columns of `padded`; zeros beyond the image's rows.
template <class X>
void copy_band(const DepthwiseShape& s, const Image& x, const Place& at, float* padded) {
  const int64_t R = s.K / 2, width = s.padded_width() * kChannelBlock;
  for (int64_t h = at.top - R; h < at.bottom + R; ++h) {
    float* to = padded + (h - (at.top - R)) * width + R * kChannelBlock;
    if (h < 0 || h >= s.H) {
      for (int64_t i = 0; i < s.W * kChannelBlock; i += kLanes) store(to + i, Vec{});
      continue;
    }
    const X* from = static_cast<const X*>(x.data) + at.image * x.sample + h * x.row + at.channel;
    for (int64_t w = 0; w < s.W; ++w, from += x.column, to += kChannelBlock) {
      __builtin_prefetch(reinterpret_cast<const void*>(
          reinterpret_cast<uintptr_t>(from) + static_cast<uintptr_t>(kPrefetchPixels * x.column) * sizeof(X)));
      if (at.channels == kChannelBlock) {
        DIMR_UNROLL_WHOLE
        for (int v = 0; v < kVectors; ++v) store(to + v * kLanes, load(from + v * kLanes));
      } else {
        for_block(at.channels, [&](int v, auto lanes) { store(to + v * kLanes, load(from + v * kLanes, lanes)); });
      }
    }
  }
}

void clear(float* p, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) store(p + i, Vec{});
}

// sums[i] += the convolution at pixel i; `in` is the padded pixel at the upper left corner of the first one's window.
template <int K, int TILE>
DIMR_ALWAYS_INLINE void convolve(const float* in, int64_t in_row, const float* taps, Vec (&sums)[TILE]) {
  for (int kh = 0; kh < K; ++kh, in += in_row, taps += K * kChannelBlock) {
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

// sums[k] += the products of TILE gradients with the inputs k columns on.
template <int K, int TILE>
DIMR_ALWAYS_INLINE void correlate(const float* x, const float* grad, Vec (&sums)[K]) {
  Vec g[TILE];
  DIMR_UNROLL_WHOLE
  for (int i = 0; i < TILE; ++i) g[i] = load(grad + i * kChannelBlock);
  DIMR_UNROLL_WHOLE
  for (int j = 0; j < TILE + K - 1; ++j) {
    const Vec in = load(x + j * kChannelBlock);
    DIMR_UNROLL_WHOLE
    for (int i = 0; i < TILE; ++i) {
      if (j - i >= 0 && j - i < K) sums[j - i] += in * g[i];
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

// One band of a convolution; `padded` holds its input.
template <class X, int K>
void convolve_band(
    const DepthwiseShape& s, const Place& at, const float* padded, const float* taps, const float* bias,
    const Image& residual, const Target& out) {
  const int64_t in_row = s.padded_width() * kChannelBlock;
  const bool whole = at.channels == kChannelBlock;
  for (int64_t h = at.top; h < at.bottom; ++h) {
    const float* in = padded + (h - at.top) * in_row;
    X* to_row = static_cast<X*>(out.data) + at.image * out.sample + h * out.row + at.channel;
    const X* residual_row = residual.data == nullptr
        ? nullptr
        : static_cast<const X*>(residual.data) + at.image * residual.sample + h * residual.row + at.channel;
    for_tiles(s.W, [&](int64_t w, auto tile) {
      constexpr int TILE = decltype(tile)::value;
      const int64_t count = smaller(s.W - w, TILE);
      for (int v = 0; v < kVectors; ++v) {
        const int64_t first = v * kLanes;
        if (first >= at.channels) return;
        const Vec start = bias == nullptr ? Vec{} : load(bias + first);
        Vec sums[TILE];
        DIMR_UNROLL_WHOLE
        for (int i = 0; i < TILE; ++i) sums[i] = start;
        convolve<K, TILE>(in + w * kChannelBlock + first, in_row, taps + first, sums);
        X* to = to_row + w * out.column + first;
        const X* addend = residual_row == nullptr ? nullptr : residual_row + w * residual.column + first;
        const auto finish = [&](int64_t n, auto lanes) {
          DIMR_UNROLL_WHOLE
          for (int i = 0; i < TILE; ++i) {
            if (i >= n) return;
            const Vec y = addend == nullptr ? sums[i] : sums[i] + load(addend + i * residual.column, lanes);
            store(to + i * out.column, y, lanes);
          }
        };
        if (whole && count == TILE) {
          finish(TILE, Whole{});
        } else if (at.channels - first >= kLanes) {
          finish(count, Whole{});
        } else {
          finish(count, Part{static_cast<int>(at.channels - first)});
        }
      }
    });
  }
}

// Adds a band's share of the gradients of taps and bias to `partial`; `grad` and `x` are its padded copies.
template <int K>
void gather_band(const DepthwiseShape& s, const Place& at, const float* grad, const float* x, float* partial) {
  constexpr int R = K / 2;
  const int64_t row = s.padded_width() * kChannelBlock;
  for (int64_t h = 0; h < at.bottom - at.top; ++h) {
    const float* g = grad + (h + R) * row + R * kChannelBlock;
    for (int v = 0; v < kVectors; ++v) {
      const int64_t first = v * kLanes;
      for (int kh = 0; kh < K; ++kh) {
        const float* in = x + (h + kh) * row;
        Vec sums[K] = {};  // of this row alone, which keeps the error of long sums small
        for_tiles(s.W, [&](int64_t w, auto tile) {
          correlate<K, decltype(tile)::value>(in + w * kChannelBlock + first, g + w * kChannelBlock + first, sums);
        });
        float* to = partial + kh * K * kChannelBlock + first;
        DIMR_UNROLL_WHOLE
        for (int k = 0; k < K; ++k) store(to + k * kChannelBlock, load(to + k * kChannelBlock) + sums[k]);
      }
      Vec sum = {};
      for (int64_t w = 0; w < s.W; ++w) sum += load(g + w * kChannelBlock + first);
      float* to = partial + K * K * kChannelBlock + first;
      store(to, load(to) + sum);
    }
  }
}

template <class X, int K>
void forward(const DepthwiseForward& task, int64_t begin, int64_t end, float* padded) {
  const DepthwiseShape& s = task.shape;
  const int64_t blocks = s.blocks(), bands = s.bands();
  clear(padded, task.scratch());
  const Target out{task.out, task.out_sample, task.out_row, task.out_column};
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t block = unit % blocks, pair = unit / blocks;
    const Place at = place(s, pair / bands, pair % bands, block);
    copy_band<X>(s, task.x, at, padded);
    const float* bias = task.bias == nullptr ? nullptr : task.bias + block * kChannelBlock;
    convolve_band<X, K>(s, at, padded, task.taps + block * K * K * kChannelBlock, bias, task.residual, out);
  }
}

template <class X, int K>
void backward(const DepthwiseBackward& task, int64_t begin, int64_t end, float* scratch) {
  const DepthwiseShape& s = task.shape;
  const int64_t blocks = s.blocks(), bands = s.bands(), pairs = s.B * bands, sums = (K * K + 1) * kChannelBlock;
  float *grad = scratch, *x = scratch + s.padded_floats();
  clear(scratch, task.scratch());
  const Target dx{task.dx, s.H * s.W * s.C, s.W * s.C, s.C};
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t block = unit % blocks, split = unit / blocks;
    float* partial = task.partials == nullptr ? nullptr : task.partials + unit * sums;
    if (partial != nullptr) clear(partial, sums);
    for (int64_t pair = split * pairs / task.splits; pair < (split + 1) * pairs / task.splits; ++pair) {
      const Place at = place(s, pair / bands, pair % bands, block);
      copy_band<X>(s, task.grad, at, grad);
      if (task.dx != nullptr) {
        convolve_band<X, K>(s, at, grad, task.taps + block * K * K * kChannelBlock, nullptr, Image{}, dx);
      }
      if (partial == nullptr) continue;
      copy_band<X>(s, task.x, at, x);
      gather_band<K>(s, at, grad, x, partial);
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
