// Element types as the CPU operators' loops see them, without torch's headers.

#pragma once

#include <cstdint>

namespace dimr {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

enum class Type : int { float32, bfloat16, float16 };

inline int64_t bytes_of(Type type) { return type == Type::float32 ? 4 : 2; }

}  // namespace dimr
