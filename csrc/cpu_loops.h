// The inner loops of the CPU operators, compiled twice: for any CPU, and for x86 with AVX2.

#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "pixel_shuffle.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define DIMR_X86
#define DIMR_AVX2 __attribute__((target("avx2,f16c")))
#include <immintrin.h>
#else
#define DIMR_AVX2
#endif

#define DIMR_INLINE __attribute__((always_inline)) inline

namespace dimr {

// ---- target = a + b, computed in float32, or target = a, over contiguous runs ----

constexpr int64_t kLineBytes = 64;  // a cache line, and one step of the loops

// Inputs are asked for this far ahead of their use. The hardware's own prefetch starts anew in every page and after
// every jump, which left half of the memory's speed unused. Past the end of a run lie the runs of the next tiles.
constexpr int64_t kAheadBytes = 4096;

template <class T>
DIMR_INLINE void prefetch_ahead(const T* p) {
  // Not arithmetic on p: the address may lie beyond the tensor, where a prefetch does nothing.
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + kAheadBytes));
}

template <class T>
DIMR_INLINE void prefetch_run_ahead(const T* p, int64_t n) {
  for (int64_t i = 0; i < n; i += kLineBytes / sizeof(T)) prefetch_ahead(p + i);
}

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

// b is not read unless ADD, here and below.
template <class T, bool ADD>
DIMR_INLINE void one_by_one(const T* __restrict a, const T* __restrict b, T* __restrict target, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (ADD) {
      target[i] = rounded_sum(a[i], b[i]);
    } else {
      target[i] = a[i];
    }
  }
}

template <class T, bool ADD>
void run(const T* a, const T* b, T* target, int64_t n) {
  constexpr int64_t line = kLineBytes / sizeof(T);
  int64_t i = 0;
  for (; i + line <= n; i += line) {
    prefetch_ahead(a + i);
    if (ADD) prefetch_ahead(b + i);
    one_by_one<T, ADD>(a + i, b + i, target + i, line);
  }
  one_by_one<T, ADD>(a + i, b + i, target + i, n - i);
}

#ifdef DIMR_X86

DIMR_AVX2 DIMR_INLINE __m256i load_vector(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

DIMR_AVX2 DIMR_INLINE __m256 widen(const c10::BFloat16* p) {
  const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(packed), 16));
}

DIMR_AVX2 DIMR_INLINE __m256 widen(const c10::Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// The upper halves of 8 sums, rounded to the nearest even, in the lower halves of 32 bits.
DIMR_AVX2 DIMR_INLINE __m256i round_bfloat16(__m256 sum) {
  const __m256i bits = _mm256_castps_si256(sum);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  return _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
}

// The first 32 bytes of a + b.
DIMR_AVX2 DIMR_INLINE __m256i sum_vector(const float* a, const float* b) {
  return _mm256_castps_si256(_mm256_add_ps(_mm256_loadu_ps(a), _mm256_loadu_ps(b)));
}

DIMR_AVX2 DIMR_INLINE __m256i sum_vector(const c10::BFloat16* a, const c10::BFloat16* b) {
  const __m256i low = round_bfloat16(_mm256_add_ps(widen(a), widen(b)));
  const __m256i high = round_bfloat16(_mm256_add_ps(widen(a + 8), widen(b + 8)));
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
}

DIMR_AVX2 DIMR_INLINE __m256i sum_vector(const c10::Half* a, const c10::Half* b) {
  const __m128i low = _mm256_cvtps_ph(_mm256_add_ps(widen(a), widen(b)), _MM_FROUND_TO_NEAREST_INT);
  const __m128i high = _mm256_cvtps_ph(_mm256_add_ps(widen(a + 8), widen(b + 8)), _MM_FROUND_TO_NEAREST_INT);
  return _mm256_set_m128i(high, low);
}

// STREAM: whole lines of the target go to memory past the caches, which then need not read them first.
template <class T, bool ADD, bool STREAM>
DIMR_AVX2 void run_avx2(const T* a, const T* b, T* target, int64_t n) {
  constexpr int64_t line = kLineBytes / sizeof(T), vector = line / 2;
  int64_t i = 0;
  if (STREAM) {
    const uintptr_t past = reinterpret_cast<uintptr_t>(target) % kLineBytes;
    i = past == 0 ? 0 : std::min<int64_t>(n, (kLineBytes - past) / sizeof(T));
    one_by_one<T, ADD>(a, b, target, i);
  }
  for (; i + line <= n; i += line) {
    prefetch_ahead(a + i);
    if (ADD) prefetch_ahead(b + i);
    for (int64_t j = i; j < i + line; j += vector) {
      __m256i value;
      if constexpr (ADD) {
        value = sum_vector(a + j, b + j);
      } else {
        value = load_vector(a + j);
      }
      if (STREAM) {
        _mm256_stream_si256(reinterpret_cast<__m256i*>(target + j), value);
      } else {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + j), value);
      }
    }
  }
  one_by_one<T, ADD>(a + i, b + i, target + i, n - i);
}

// Makes streamed stores visible to other threads before anything that this one does next.
inline void finish_stream() { _mm_sfence(); }

#else

inline void finish_stream() {}

#endif

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
using Run = void (*)(const T*, const T*, T*, int64_t);
template <class Bits>
using PermuteTile = void (*)(const Bits*, Bits*, const int64_t*, int64_t, int64_t);

template <class T, bool ADD>
Run<T> run_for_this_cpu([[maybe_unused]] bool stream) {
#ifdef DIMR_X86
  if (cpu_limits().avx2) return stream ? run_avx2<T, ADD, true> : run_avx2<T, ADD, false>;
#endif
  return run<T, ADD>;
}

template <class Bits, bool TO_DENSE, int PLANES>
PermuteTile<Bits> permute_with() {
  return cpu_limits().avx2 ? permute_avx2<Bits, TO_DENSE, PLANES> : permute<Bits, TO_DENSE, PLANES>;
}

// Numbers of planes that have a loop of their own: factors 2 and 4, and 2 and 3 where all of them are planes.
template <class Bits, bool TO_DENSE>
PermuteTile<Bits> permute_for_this_cpu(int64_t planes) {
  if (planes == 2) return permute_with<Bits, TO_DENSE, 2>();
  if (planes == 4) return permute_with<Bits, TO_DENSE, 4>();
  return permute_with<Bits, TO_DENSE, 0>();
}

}  // namespace dimr
