// What the CPU has, for the choice of an instruction set.

#pragma once

#if defined(__x86_64__)
#include <cpuid.h>

namespace dimr {

// AVX2, FMA and F16C. Clang before 15 does not know the last one's name for __builtin_cpu_supports.
inline bool cpu_has_avx2() {
  unsigned eax, ebx, ecx, edx;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &eax, &ebx, &ecx, &edx) &&
         (ecx & bit_F16C) != 0;
}

}  // namespace dimr
#endif
