// From the run-time element type and mode to a C++ type.

#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "pixel_shuffle.h"

namespace dimr {

template <class T_, Mode MODE_>
struct Kind {
  using T = T_;
  static constexpr Mode MODE = MODE_;
};

// Calls f with a Kind. Copies only need the element's size.
template <class F>
void with_kind(Element element, Mode mode, const F& f) {
  if (mode == Mode::add) {
    if (element == Element::float32) return f(Kind<float, Mode::add>{});
    if (element == Element::float16) return f(Kind<c10::Half, Mode::add>{});
    return f(Kind<c10::BFloat16, Mode::add>{});
  }
  if (mode == Mode::shuffle) {
    if (element == Element::float32) return f(Kind<uint32_t, Mode::shuffle>{});
    return f(Kind<uint16_t, Mode::shuffle>{});
  }
  if (element == Element::float32) return f(Kind<uint32_t, Mode::unshuffle>{});
  f(Kind<uint16_t, Mode::unshuffle>{});
}

}  // namespace dimr
