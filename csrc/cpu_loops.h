// The inner loops of the CPU operators, compiled twice: for any CPU, and for x86 with AVX2.

#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__) && defined(__GNUC__)
#define DIMR_AVX2 __attribute__((target("avx2,f16c")))
#include <immintrin.h>
#else
#define DIMR_AVX2
#endif

#define DIMR_INLINE __attribute__((always_inline)) inline

namespace dimr {

inline bool cpu_has_avx2() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  return has;
#else
  return false;
#endif
}

// ---- target = a + b, computed in float32 ----

template <class T>
DIMR_INLINE T rounded_sum(T a, T b) {
  return static_cast<T>(static_cast<float>(a) + static_cast<float>(b));
}

// To the nearest even. NaN needs no case of its own, which would keep the loop from being vectorised: the lower half of
// a sum of two bfloat16 that is NaN is zero, so rounding carries nothing into the upper half.
template <>
DIMR_INLINE c10::BFloat16 rounded_sum(c10::BFloat16 a, c10::BFloat16 b) {
  const uint32_t bits_a = uint32_t{a.x} << 16, bits_b = uint32_t{b.x} << 16;
  float x, y;
  std::memcpy(&x, &bits_a, sizeof(x));
  std::memcpy(&y, &bits_b, sizeof(y));
  const float sum = x + y;
  uint32_t bits;
  std::memcpy(&bits, &sum, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return c10::BFloat16(static_cast<uint16_t>(rounded), c10::BFloat16::from_bits());
}

template <class T>
DIMR_INLINE void add_loop(const T* __restrict a, const T* __restrict b, T* __restrict target, int64_t n) {
  for (int64_t i = 0; i < n; ++i) target[i] = rounded_sum(a[i], b[i]);
}

template <class T>
void add(const T* a, const T* b, T* target, int64_t n) {
  add_loop(a, b, target, n);
}

#if defined(__x86_64__) && defined(__GNUC__)

DIMR_AVX2 DIMR_INLINE __m256 widen_bfloat16(const c10::BFloat16* p) {
  const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(packed), 16));
}

// The upper halves of 8 sums, rounded to the nearest even, in the lower halves of 32 bits.
DIMR_AVX2 DIMR_INLINE __m256i round_bfloat16(__m256 sum) {
  const __m256i bits = _mm256_castps_si256(sum);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  return _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
}

DIMR_AVX2 inline int64_t add_vectors(const c10::BFloat16* a, const c10::BFloat16* b, c10::BFloat16* target, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256i low = round_bfloat16(_mm256_add_ps(widen_bfloat16(a + i), widen_bfloat16(b + i)));
    const __m256i high = round_bfloat16(_mm256_add_ps(widen_bfloat16(a + i + 8), widen_bfloat16(b + i + 8)));
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + i), packed);
  }
  return i;
}

DIMR_AVX2 inline int64_t add_vectors(const c10::Half* a, const c10::Half* b, c10::Half* target, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 x = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a + i)));
    const __m256 y = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b + i)));
    const __m128i sum = _mm256_cvtps_ph(_mm256_add_ps(x, y), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + i), sum);
  }
  return i;
}

#endif

// How many elements were done by hand; the compiler vectorises the loop over float itself.
template <class T>
DIMR_INLINE int64_t add_vectors(const T*, const T*, T*, int64_t) {
  return 0;
}

template <class T>
DIMR_AVX2 void add_avx2(const T* a, const T* b, T* target, int64_t n) {
  const int64_t done = add_vectors(a, b, target, n);
  add_loop(a + done, b + done, target + done, n - done);
}

// ---- target = source, permuted: one side holds planes[k][v], the other v * PLANES + k ----

template <class Bits, bool TO_DENSE, int PLANES>
DIMR_INLINE void permute_loop(
    const Bits* __restrict source, Bits* __restrict target, const int64_t* plane, int64_t planes, int64_t n) {
  if constexpr (PLANES > 0) {
    int64_t at[PLANES];
    for (int k = 0; k < PLANES; ++k) at[k] = plane[k];
    for (int64_t v = 0; v < n; ++v) {
      for (int k = 0; k < PLANES; ++k) {
        if constexpr (TO_DENSE) {
          target[v * PLANES + k] = source[at[k] + v];
        } else {
          target[at[k] + v] = source[v * PLANES + k];
        }
      }
    }
  } else {
    for (int64_t k = 0; k < planes; ++k) {
      for (int64_t v = 0; v < n; ++v) {
        if constexpr (TO_DENSE) {
          target[v * planes + k] = source[plane[k] + v];
        } else {
          target[plane[k] + v] = source[v * planes + k];
        }
      }
    }
  }
}

template <class Bits, bool TO_DENSE, int PLANES>
void permute(const Bits* source, Bits* target, const int64_t* plane, int64_t planes, int64_t n) {
  permute_loop<Bits, TO_DENSE, PLANES>(source, target, plane, planes, n);
}

template <class Bits, bool TO_DENSE, int PLANES>
DIMR_AVX2 void permute_avx2(const Bits* source, Bits* target, const int64_t* plane, int64_t planes, int64_t n) {
  permute_loop<Bits, TO_DENSE, PLANES>(source, target, plane, planes, n);
}

template <class T>
using AddRun = void (*)(const T*, const T*, T*, int64_t);
template <class Bits>
using PermuteTile = void (*)(const Bits*, Bits*, const int64_t*, int64_t, int64_t);

template <class T>
AddRun<T> add_for_this_cpu() {
  return cpu_has_avx2() ? add_avx2<T> : add<T>;
}

template <class Bits, bool TO_DENSE, int PLANES>
PermuteTile<Bits> permute_with() {
  return cpu_has_avx2() ? permute_avx2<Bits, TO_DENSE, PLANES> : permute<Bits, TO_DENSE, PLANES>;
}

// Numbers of planes that have a loop of their own: factors 2 and 4, and 2 and 3 where all of them are planes.
template <class Bits, bool TO_DENSE>
PermuteTile<Bits> permute_for_this_cpu(int64_t planes) {
  if (planes == 2) return permute_with<Bits, TO_DENSE, 2>();
  if (planes == 4) return permute_with<Bits, TO_DENSE, 4>();
  return permute_with<Bits, TO_DENSE, 0>();
}

}  // namespace dimr
