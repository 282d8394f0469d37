// Vectors of float32 for the CPU operators, and the functions on them. Written once, compiled once per instruction set.
//
// A file that includes this holds an operator's loops. CMake compiles it once for any CPU of the platform (SSE2 on x86,
// NEON on Arm) and, on x86, again with the flags of AVX2 and of AVX-512; DIMR_SET, the name of the set, is also the
// name of the namespace that everything here lies in, so that the linker can never take a function of one set for
// another's.
// For the same reason these files include nothing of torch or of the standard library but types.
//
// The vectors are the compiler's own (GCC's vector extensions, which Clang has too). The alternatives: at::vec in
// torch's headers refuses to be compiled with TORCH_TARGET_VERSION, and so would tie the library to one version of
// torch; its exp and erf are calls to Sleef, which torch does not export. Intrinsics would be one text per set. Loops
// left to the auto-vectoriser keep neither sums nor a tile's weights in registers.

#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu_types.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

#ifndef DIMR_SET
#error "DIMR_SET names the instruction set that this file is compiled for"
#endif

#define DIMR_ALWAYS_INLINE __attribute__((always_inline)) inline
#if defined(__clang__)
#define DIMR_UNROLL_WHOLE _Pragma("clang loop unroll(full)")
#else
#define DIMR_UNROLL_WHOLE _Pragma("GCC unroll 64")
#endif

namespace dimr {
namespace DIMR_SET {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

// How many of a vector's lanes an access touches.
struct Whole {};
struct Part {
  int lanes;
};

// ---- Memory ----

template <class V, class T>
DIMR_ALWAYS_INLINE V load_raw(const T* p, Whole = {}) {
  V v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <class V, class T>
DIMR_ALWAYS_INLINE V load_raw(const T* p, Part part) {
  T buffer[sizeof(V) / sizeof(T)] = {};
  for (int i = 0; i < part.lanes; ++i) buffer[i] = p[i];
  return load_raw<V>(buffer);
}

template <class V, class T>
DIMR_ALWAYS_INLINE void store_raw(T* p, V v, Whole = {}) {
  __builtin_memcpy(p, &v, sizeof(v));
}

template <class V, class T>
DIMR_ALWAYS_INLINE void store_raw(T* p, V v, Part part) {
  T buffer[sizeof(V) / sizeof(T)];
  store_raw(buffer, v);
  for (int i = 0; i < part.lanes; ++i) p[i] = buffer[i];
}

template <class To, class From>
DIMR_ALWAYS_INLINE To as(From v) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  __builtin_memcpy(&to, &v, sizeof(to));
  return to;
}

// v as float32 can hold it: what is computed from it is not contracted with what it was computed by.
DIMR_ALWAYS_INLINE Vec rounded(Vec v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

DIMR_ALWAYS_INLINE Vec splat(float x) { return x - Vec{}; }
DIMR_ALWAYS_INLINE Vec select(Ints mask, Vec a, Vec b) { return mask ? a : b; }
DIMR_ALWAYS_INLINE Bits select(Ints mask, Bits a, Bits b) { return mask ? a : b; }
DIMR_ALWAYS_INLINE Vec absolute(Vec x) { return as<Vec>(as<Bits>(x) & 0x7fffffffu); }

// The address may lie beyond the tensor, where a prefetch does nothing.
template <class T>
DIMR_ALWAYS_INLINE void prefetch_at(const T* p, int64_t bytes) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes)));
}

// The hardware's own prefetch starts anew in every page.
template <class T>
DIMR_ALWAYS_INLINE void prefetch_ahead(const T* p) {
  prefetch_at(p, 4096);
}

// ---- 16-bit numbers ----

DIMR_ALWAYS_INLINE Vec widen(Halves h, BFloat16) { return as<Vec>(__builtin_convertvector(h, Bits) << 16); }

// To the nearest even; NaN stays NaN.
DIMR_ALWAYS_INLINE Halves narrow(Vec x, BFloat16) {
  const Bits bits = as<Bits>(x);
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits nan = (bits >> 16) | 0x40u;
  return __builtin_convertvector(select(x != x, nan, rounded), Halves);
}

#if defined(__F16C__) && defined(__AVX512F__)  // masked: the headers of the plain ones make GCC warn
DIMR_ALWAYS_INLINE Vec widen(Halves h, Float16) { return as<Vec>(_mm512_maskz_cvtph_ps(0xffff, as<__m256i>(h))); }
DIMR_ALWAYS_INLINE Halves narrow(Vec x, Float16) {
  return as<Halves>(_mm512_maskz_cvtps_ph(0xffff, as<__m512>(x), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
DIMR_ALWAYS_INLINE Vec widen(Halves h, Float16) { return as<Vec>(_mm256_cvtph_ps(as<__m128i>(h))); }
DIMR_ALWAYS_INLINE Halves narrow(Vec x, Float16) {
  return as<Halves>(_mm256_cvtps_ph(as<__m256>(x), _MM_FROUND_TO_NEAREST_INT));
}
#else
// With a multiplication by a power of two, which also normalises what is subnormal.
DIMR_ALWAYS_INLINE Vec widen(Halves h, Float16) {
  const Bits bits = __builtin_convertvector(h, Bits), magnitude = bits & 0x7fffu;
  const Bits finite = as<Bits>(as<Vec>(magnitude << 13) * 0x1p112f);
  const Bits special = (magnitude << 13) | 0x7f800000u;
  return as<Vec>(select(magnitude >= 0x7c00u, special, finite) | ((bits & 0x8000u) << 16));
}

// Adding 2**13 units of the last place that float16 keeps lets the float32 addition do the rounding.
DIMR_ALWAYS_INLINE Halves narrow(Vec x, Float16) {
  const Bits bits = as<Bits>(x), magnitude = bits & 0x7fffffffu;
  const Vec value = as<Vec>(magnitude);
  const Bits exponent = magnitude & 0x7f800000u, smallest = Bits{} + 0x38800000u;  // 2**-14
  const Bits unit = select(exponent < smallest, smallest, exponent) + (13u << 23);
  const Bits rounded = as<Bits>(value + as<Vec>(unit)) - unit;  // in units of the last place
  const Bits biased = (((unit - (13u << 23)) - 0x38800000u) >> 13) + rounded;
  const Bits finite = select(biased > 0x7c00u, Bits{} + 0x7c00u, biased);
  const Bits large = select(value != value, Bits{} + 0x7e00u, Bits{} + 0x7c00u);
  return __builtin_convertvector(select(magnitude >= 0x47800000u, large, finite) | ((bits >> 16) & 0x8000u), Halves);
}
#endif

// A vector of `p`'s elements as float32; lanes beyond a part are zero.
DIMR_ALWAYS_INLINE Vec load(const float* p, Whole = {}) { return load_raw<Vec>(p); }
DIMR_ALWAYS_INLINE Vec load(const float* p, Part part) { return load_raw<Vec>(p, part); }
template <class T>
DIMR_ALWAYS_INLINE Vec load(const T* p, Whole = {}) {
  return widen(load_raw<Halves>(p), T{});
}
template <class T>
DIMR_ALWAYS_INLINE Vec load(const T* p, Part part) {
  return widen(load_raw<Halves>(reinterpret_cast<const uint16_t*>(p), part), T{});
}

DIMR_ALWAYS_INLINE void store(float* p, Vec v, Whole = {}) { store_raw(p, v); }
DIMR_ALWAYS_INLINE void store(float* p, Vec v, Part part) { store_raw(p, v, part); }
template <class T>
DIMR_ALWAYS_INLINE void store(T* p, Vec v, Whole = {}) {
  store_raw(p, narrow(v, T{}));
}
template <class T>
DIMR_ALWAYS_INLINE void store(T* p, Vec v, Part part) {
  store_raw(reinterpret_cast<uint16_t*>(p), narrow(v, T{}), part);
}

// Calls f with an object of the C++ type that `type` names.
template <class F>
DIMR_ALWAYS_INLINE void with_type(Type type, const F& f) {
  if (type == Type::float32) return f(float{});
  if (type == Type::bfloat16) return f(BFloat16{});
  f(Float16{});
}

// ---- Loops over a row ----

// Calls f(i, lanes) for the vectors of n elements.
template <class F>
DIMR_ALWAYS_INLINE void for_vectors(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, Whole{});
  if (i < n) f(i, Part{static_cast<int>(n - i)});
}

// v with zeros beyond a part.
DIMR_ALWAYS_INLINE Vec kept(Vec v, Whole) { return v; }
DIMR_ALWAYS_INLINE Vec kept(Vec v, Part part) {
  Ints lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return select(lane < part.lanes, v, Vec{});
}

DIMR_ALWAYS_INLINE float total(Vec v) {
  float lanes[kLanes];
  store_raw(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

constexpr int64_t kSumBlock = 4096;  // elements of a row that are added up in float32; beyond, in double

// Sums of SUMS kinds over n elements: f(i, lanes, sums) adds the vector at i to Vec sums[SUMS]. Four interleaved sums
// hide the addition's latency; blocks that are joined in double keep the error of long rows that of short ones.
template <int SUMS, class F>
DIMR_ALWAYS_INLINE void sum_vectors(int64_t n, float (&result)[SUMS], const F& f) {
  constexpr int kWays = 4;
  double joined[SUMS] = {};
  for (int64_t start = 0; start < n; start += kSumBlock) {
    const int64_t end = n - start < kSumBlock ? n : start + kSumBlock;
    Vec sums[kWays][SUMS] = {};
    int64_t i = start;
    for (; i + kWays * kLanes <= end; i += kWays * kLanes) {
      DIMR_UNROLL_WHOLE
      for (int way = 0; way < kWays; ++way) f(i + way * kLanes, Whole{}, sums[way]);
    }
    for (; i + kLanes <= end; i += kLanes) f(i, Whole{}, sums[0]);
    if (i < end) f(i, Part{static_cast<int>(end - i)}, sums[1]);
    DIMR_UNROLL_WHOLE
    for (int k = 0; k < SUMS; ++k) joined[k] += total((sums[0][k] + sums[1][k]) + (sums[2][k] + sums[3][k]));
  }
  for (int k = 0; k < SUMS; ++k) result[k] = static_cast<float>(joined[k]);
}

// ---- Functions ----

// exp(x) for x <= 0, 0 below the logarithm of the smallest normal number. Relative error at most 2e-7.
DIMR_ALWAYS_INLINE Vec exp_negative(Vec x) {
  const Vec low = splat(-87.3365f);
  const Vec bounded = select(x < low, low, x);
  const Vec shifted = bounded * 1.44269504f + 12582912.f;  // 1.5 * 2**23: the last bits are the nearest integer's
  const Vec n = shifted - 12582912.f;
  const Vec r = (bounded - n * 0.693145752f) - n * 1.42860677e-6f;  // in [-0.347, 0.347]
  Vec p = splat(0.00138142216f);
  p = p * r + 0.00836889911f;
  p = p * r + 0.0416684039f;
  p = p * r + 0.166665196f;
  p = p * r + 0.49999994f;
  p = (p * r) * r + r + 1.f;
  const Vec value = as<Vec>(as<Bits>(p) + (as<Bits>(shifted) << 23));
  return select(x < low, Vec{}, value);
}

struct Shares {
  Vec open, shut;  // s and 1 - s, both to their last digits, where a subtraction would lose some
};

DIMR_ALWAYS_INLINE Shares sigmoid_shares(Vec x) {
  const Vec e = exp_negative(-absolute(x));
  const Vec larger = 1.f / (1.f + e), smaller = e * larger;
  const Ints negative = x < 0.f;
  return {select(negative, smaller, larger), select(negative, larger, smaller)};
}

struct GeluValue {
  Vec value, slope;
};

// gelu(a) = max(a, 0) - |a| Phi(-|a|), and its derivative. Phi(-z) is exp(-z*z/2) times a polynomial in 1 / (1 + 0.4 z)
// with a relative error of at most 3e-7 up to z = 8.5, beyond which it is less than 1e-17.
DIMR_ALWAYS_INLINE GeluValue gelu_exact(Vec a) {
  const Vec magnitude = absolute(a);
  const Vec z = select(magnitude > 16.f, splat(16.f), magnitude);  // an infinity must not meet a zero
  const Vec density = exp_negative(z * z * -0.5f);
  const Vec t = 1.f / (z * 0.4f + 1.f), u = t - 0.75f;
  Vec p = splat(-0.0378315113f);
  p = p * u + -0.00651037833f;
  p = p * u + 0.0612544268f;
  p = p * u + -0.0426339023f;
  p = p * u + -0.107376829f;
  p = p * u + 0.15580602f;
  p = p * u + 0.441155732f;
  p = p * u + 0.38176161f;
  const Vec tail = density * (p * t);
  const Ints negative = a < 0.f;
  const Vec cdf = select(negative, tail, 1.f - tail);
  const Vec side = select(negative, -z, z);
  return {select(negative, Vec{}, a) - z * tail, cdf + side * density * 0.398942280f};
}

// The value alone, in two thirds of the instructions: Phi(-z) is 2**P(z). Absolute error at most 6e-8, relative error
// of Phi at most 5e-7 up to z = 1.5 and 7e-6 up to z = 5.6, beyond which Phi is less than 1e-8.
DIMR_ALWAYS_INLINE Vec gelu_exact_value(Vec a) {
  const Vec magnitude = absolute(a);
  const Vec z = select(magnitude > 12.f, splat(12.f), magnitude);
  Vec p = splat(-8.02303646e-9f);
  p = p * z + 3.04943512e-7f;
  p = p * z + -4.80655126e-6f;
  p = p * z + 3.92485126e-5f;
  p = p * z + -0.000146798979f;
  p = p * z + -0.000286809052f;
  p = p * z + 0.00731516769f;
  p = p * z + -0.0527074561f;
  p = p * z + -0.459124833f;
  p = p * z + -1.15111697f;
  p = p * z + -1.f;
  const Vec shifted = p + 12582912.f;  // see exp_negative
  const Vec r = p - (shifted - 12582912.f);
  Vec q = splat(0.00132647262f);
  q = q * r + 0.00967151299f;
  q = q * r + 0.0555073358f;
  q = q * r + 0.240222424f;
  q = q * r + 0.693147004f;
  q = q * r + 1.f;
  const Vec tail = as<Vec>(as<Bits>(q) + (as<Bits>(shifted) << 23));
  return select(a < 0.f, Vec{}, a) - z * tail;
}

// a s with s = sigmoid(2 u), u = sqrt(2/pi) (a + 0.044715 a^3): the same as 0.5 a (1 + tanh(u)).
DIMR_ALWAYS_INLINE GeluValue gelu_tanh(Vec a) {
  const Vec magnitude = absolute(a);
  const Vec bounded = select(magnitude > 16.f, select(a < 0.f, splat(-16.f), splat(16.f)), a);
  const Vec square = bounded * bounded;
  const Shares s = sigmoid_shares(bounded * (square * 0.0713548163f + 1.59576912f));
  const Vec slope = s.open + bounded * s.open * s.shut * (square * 0.214064449f + 1.59576912f);
  return {select(magnitude > 16.f, select(a < 0.f, Vec{}, a), a * s.open), slope};
}

}  // namespace DIMR_SET
}  // namespace dimr
