// The C++ operators without torch: every path of the CPU form and the CUDA form's threads, on buffers of exactly their
// size, against the index map written out. Compiled with sanitizers by test_sanitizers.py.

#include <sys/mman.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "pixel_shuffle_cpu.cpp"

// What the operators call of libtorch: two threads, so that the thread sanitizer has something to see.
extern "C" AOTITorchError torch_parallel_for(
    int64_t begin, int64_t end, int64_t grain, void (*f)(int64_t, int64_t, void*), void* context) {
  const int64_t middle = end - begin > grain ? begin + (end - begin) / 2 : end;
  std::thread other([=] { if (middle < end) f(middle, end, context); });
  if (begin < middle) f(begin, middle, context);
  other.join();
  return 0;
}

namespace dimr {
namespace {

void require(bool holds, const char* what, const Shape& s) {
  if (holds) return;
  std::fprintf(stderr, "WRONG: %s, B=%ld C=%ld H=%ld W=%ld r=%ld layout=%d\n", what, long(s.batch), long(s.channels),
               long(s.height), long(s.width), long(s.factor), int(s.layout));
  std::exit(1);
}

// Calls f(low, high) with every pair of offsets that belong together.
template <class F>
void each_pair(int64_t B, int64_t C, int64_t H, int64_t W, int64_t r, Layout layout, const F& f) {
  for (int64_t b = 0; b < B; ++b)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t w = 0; w < W; ++w)
        for (int64_t c = 0; c < C; ++c)
          for (int64_t i = 0; i < r; ++i)
            for (int64_t j = 0; j < r; ++j) {
              const int64_t y = h * r + i, x = w * r + j;
              if (layout == Layout::nchw) {
                f((((b * C + c) * r + i) * r + j) * H * W + h * W + w, ((b * C + c) * H * r + y) * W * r + x);
              } else {
                const int64_t channel = layout == Layout::nhwc ? (i * r + j) * C + c : (c * r + i) * r + j;
                f(((b * H + h) * W + w) * C * r * r + channel, ((b * H * r + y) * W * r + x) * C + c);
              }
            }
}

template <class T>
T number(int64_t i) { return static_cast<T>(float((i * 37) % 201 - 100)); }

template <class T>
void check(const Shape& named, Layout layout, Element element, int64_t shift) {
  const int64_t B = named.batch, C = named.channels, H = named.height, W = named.width, r = named.factor;
  const Shape shape(B, C, H, W, r, layout);
  const int64_t n = shape.numel();
  // Exactly as large as the data, so that the address sanitizer's red zones begin right after it.
  const std::unique_ptr<T[]> low(new T[n + shift]), high(new T[n + shift]), out(new T[n + shift]);
  for (int64_t i = 0; i < n + shift; ++i) low[i] = number<T>(i), high[i] = number<T>(3 * i + 1);
  for (const Mode mode : {Mode::add, Mode::shuffle, Mode::unshuffle}) {
    const T* source = (mode == Mode::unshuffle ? high : low).get() + shift;
    const T* addend = mode == Mode::add ? high.get() + shift : nullptr;
    T* target = out.get() + shift;
    const Task task{shape, mode, element, source, addend, target};
    for (const bool on_cuda : {false, true}) {
      for (int64_t i = 0; i < n; ++i) target[i] = T(12345);
      on_cuda ? run_cuda_threads_on_host(task) : run_cpu(task);
      each_pair(B, C, H, W, r, layout, [&](int64_t at_low, int64_t at_high) {
        const int64_t from = mode == Mode::unshuffle ? at_high : at_low, to = mode == Mode::unshuffle ? at_low : at_high;
        const float sum = float(source[from]) + (addend ? float(addend[to]) : 0.f);
        require(float(target[to]) == float(static_cast<T>(sum)), on_cuda ? "CUDA's threads" : "CPU", named);
      });
    }
  }
}

void check_all() {
  const bool has_avx2 = cpu_limits().avx2;
  const int64_t sizes[][4] = {{2, 3, 5, 7}, {3, 1, 1, 5}, {2, 8, 3, 8}, {1, 24, 1, 16}, {1, 67, 1, 5}, {1, 160, 1, 3}};
  for (const bool avx2 : {false, true}) {
    if (avx2 && !has_avx2) continue;
    for (const int64_t cache : {int64_t{0}, int64_t{1} << 40}) {  // targets written past the caches, or not
      cpu_limits() = {avx2, cache};
      for (const auto& [B, C, H, W] : sizes)
        for (int64_t r = 1; r <= 5; ++r)
          for (const Layout layout : {Layout::nhwc, Layout::nchw, Layout::channels_last})
            for (const int64_t shift : {0, 1}) {
              Shape named(B, C, H, W, 2, layout);
              named.factor = r;
              check<float>(named, layout, Element::float32, shift);
              check<c10::Half>(named, layout, Element::float16, shift);
              check<c10::BFloat16>(named, layout, Element::bfloat16, shift);
            }
    }
  }
}

// Zeros that take no memory until they are touched.
uint16_t* promised(int64_t elements) {
  void* p = mmap(nullptr, elements * 2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) std::exit(77);
  return static_cast<uint16_t*>(p);
}

// The last tiles and the last blocks of tensors with more than 2**32 elements: only their own pages are touched.
void check_huge() {
  const int64_t B = 70001, C = 16, H = 32, W = 32, r = 2;
  for (const Layout layout : {Layout::nhwc, Layout::nchw, Layout::channels_last}) {
    const Shape shape(B, C, H, W, r, layout);
    const int64_t n = shape.numel(), image = n / B;
    uint16_t *low = promised(n), *out = promised(n);
    for (int64_t i = 0; i < image; ++i) low[n - image + i] = static_cast<uint16_t>(i);
    const auto require_last_image = [&](const char* what) {
      each_pair(1, C, H, W, r, layout, [&](int64_t at_low, int64_t at_high) {
        require(out[n - image + at_high] == static_cast<uint16_t>(at_low), what, shape);
        out[n - image + at_high] = 1;
      });
      require(out[0] == 0 && out[n - image - 1] == 0, "memory before the last image", shape);
    };
    const Task task{shape, Mode::shuffle, Element::float16, low, nullptr, out};
    const TileMap map = run_map(shape, longest_run(shape));
    const int64_t begin = map.tiles - image / (map.vector * map.planes);
    if (map.dense_high) {
      run_tiles<uint16_t, Mode::shuffle, true>(map, task, false, begin, map.tiles);
    } else {
      run_tiles<uint16_t, Mode::shuffle, false>(map, task, false, begin, map.tiles);
    }
    require_last_image("CPU, huge");
    const Launch launch = plan_launch(task);
    require(launch.wide, "64-bit offsets", shape);
    with_variant<uint16_t>(launch, [&](auto variant) {
      using V = decltype(variant);
      const int64_t blocks = image / (V::VECTOR * V::PLANES * kThreads);
      for (uint32_t block = launch.blocks - uint32_t(blocks) - 1; block < launch.blocks; ++block)
        for (uint32_t thread = 0; thread < kThreads; ++thread)
          run_thread<uint16_t, V::VECTOR, V::PLANES, V::DENSE_HIGH, Mode::shuffle, typename V::Index>(
              launch.map, low, nullptr, out, block, thread);
    });
    for (int64_t i = 1; i <= 64 * kThreads; ++i) out[n - image - i] = 0;  // a block begins in the image before
    require_last_image("CUDA's threads, huge");
    munmap(low, n * 2), munmap(out, n * 2);
  }
}

}  // namespace
}  // namespace dimr

int main(int, char** arguments) {
  arguments[1] ? dimr::check_huge() : dimr::check_all();
  std::puts("clean");
}
