// Which instruction set the CPU operators run with.

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <string>

#include "cpu_features.h"
#include "cpu_kernels.h"

namespace dimr {
namespace {

Capability named(const std::string& name) {
  if (name == "baseline") return Capability::baseline;
  if (name == "avx2") return Capability::avx2;
  STD_TORCH_CHECK(
      name == "avx512", "DIMR_KERNELS_CPU_CAPABILITY must be baseline, avx2 or avx512, got '", name, "'");
  return Capability::avx512;
}

Capability choose() {
  if (const char* name = std::getenv("DIMR_KERNELS_CPU_CAPABILITY"); name != nullptr && *name != '\0') {
    const Capability wanted = named(name);
    STD_TORCH_CHECK(has_capability(wanted), "DIMR_KERNELS_CPU_CAPABILITY=", name, ", but this CPU does not have it");
    return wanted;
  }
  for (const Capability set : {Capability::avx512, Capability::avx2}) {
    if (has_capability(set)) return set;
  }
  return Capability::baseline;
}

Capability& current() {
  static Capability capability = choose();
  return capability;
}

}  // namespace

bool has_capability([[maybe_unused]] Capability wanted) {
#if defined(DIMR_X86_SETS)
  const bool avx2 = cpu_has_avx2();
  if (wanted == Capability::avx2) return avx2;
  if (wanted == Capability::avx512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  }
#endif
  return wanted == Capability::baseline;
}

Capability cpu_capability() { return current(); }

bool set_cpu_capability(Capability wanted) {
  if (!has_capability(wanted)) return false;
  current() = wanted;
  return true;
}

}  // namespace dimr
