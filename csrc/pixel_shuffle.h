// Pixel shuffle: the index map, and the work of one CUDA thread, both compiled for host and device.
//
// A low-resolution image of C*r*r channels and a high-resolution image of C channels hold the same numbers:
// low (b, h, w, c, i, j) is high (b, h*r + i, w*r + j, c), for i, j < r. The work is cut into tiles of `planes` runs of
// `vector` elements. One side of a tile is dense (its planes*vector elements lie together, and tile follows tile), the
// other is gathered: each plane is a contiguous run, and the runs lie where the map says.
//
//   layout            dense   planes   a run goes along
//   nhwc  (r, r, C)   low     1        j and c, which are adjacent on both sides
//   nchw  (C, r, r)   high    r        w: plane j is channel (c, i, j); the row of `high` interleaves the planes
//   channels_last     low     r*r      c: plane (i, j) is pixel (h*r + i, w*r + j); the channels of `low` interleave them
//   any, one by one   high    1        a single element

#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define DIMR_HOST_DEVICE __host__ __device__ __forceinline__
#define DIMR_UNROLL _Pragma("unroll")
#else
#define DIMR_HOST_DEVICE inline
#define DIMR_UNROLL
#endif

namespace dimr {

// The numbers are part of the Python interface (ops/pixel_shuffle.py, tests/support/pixel_shuffle.py).
enum class Layout : int { nhwc = 0, nchw = 1, channels_last = 2 };
enum class Mode : int { add = 0, shuffle = 1, unshuffle = 2 };
enum class Element : int { float32 = 0, float16 = 1, bfloat16 = 2 };

// Of the low-resolution image; it has channels * factor * factor channels.
struct Shape {
  int64_t batch, channels, height, width, factor;
  Layout layout;

  Shape(int64_t batch, int64_t channels, int64_t height, int64_t width, int64_t factor, Layout layout)
      : batch(batch), channels(channels), height(height), width(width), factor(factor), layout(layout) {
    if (factor == 1 && layout != Layout::nhwc) *this = Shape(1, channels * height * width, 1, batch, 1, Layout::nhwc);
  }

  int64_t numel() const { return batch * channels * height * width * factor * factor; }
};

constexpr int kRank = 5;  // coordinates of a tile, outermost first

struct TileMap {
  int64_t tiles;
  int64_t size[kRank];
  int64_t step[kRank];  // elements of the gathered side per step of a coordinate
  int64_t plane_row, plane_column;  // and per step of i and of j
  int64_t vector, planes, factor;
  bool dense_high;
};

inline int64_t longest_run(const Shape& s) {
  if (s.layout == Layout::nhwc) return s.factor * s.channels;
  return s.layout == Layout::nchw ? s.width : s.channels;
}

// Tiles of runs of `vector` elements, which must divide longest_run(s).
inline TileMap run_map(const Shape& s, int64_t vector) {
  const int64_t r = s.factor, rr = r * r, area = s.height * s.width, rows = s.batch * s.height;
  const int64_t C = s.channels, W = s.width, runs = longest_run(s) / vector, tiles = s.numel() / vector;
  switch (s.layout) {
    case Layout::nhwc:
      return {tiles, {1, rows, W, r, runs}, {0, W * rr * C, r * C, W * r * C, vector}, 0, 0, vector, 1, r, false};
    case Layout::nchw:
      return {tiles / r, {1, s.batch * C, s.height, r, runs}, {0, rr * area, W, r * area, vector},
              0, area, vector, r, r, true};
    default:
      return {tiles / rr, {1, 1, rows, W, runs}, {0, 0, rr * W * C, r * C, vector}, r * W * C, C, vector, rr, r, false};
  }
}

// One element a tile, in the order of the high-resolution image: for any shape and alignment.
inline TileMap element_map(const Shape& s) {
  const int64_t r = s.factor, rr = r * r, area = s.height * s.width, rows = s.batch * s.height;
  const int64_t C = s.channels, W = s.width;
  switch (s.layout) {
    case Layout::nhwc:
      return {s.numel(), {1, rows, r, W, r * C}, {0, W * rr * C, r * C, rr * C, 1}, 0, 0, 1, 1, 1, true};
    case Layout::nchw:
      return {s.numel(), {s.batch * C, s.height, r, W, r}, {rr * area, W, r * area, 1, area}, 0, 0, 1, 1, 1, true};
    default:
      return {s.numel(), {rows, r, W, r, C}, {W * rr * C, r, rr * C, 1, rr}, 0, 0, 1, 1, 1, true};
  }
}

// Where a tile's elements are: at dense + (0 .. planes*vector) on one side, on the other plane k at gathered + plane(k).
template <class Index>
struct TileAddress {
  Index dense, gathered, plane_row, plane_column, factor;

  DIMR_HOST_DEVICE TileAddress(const TileMap& map, Index tile)
      : dense(tile * static_cast<Index>(map.vector) * static_cast<Index>(map.planes)),
        gathered(0),
        plane_row(static_cast<Index>(map.plane_row)),
        plane_column(static_cast<Index>(map.plane_column)),
        factor(static_cast<Index>(map.factor)) {
    for (int d = kRank - 1; d > 0; --d) {
      const Index size = static_cast<Index>(map.size[d]);
      const Index outer = tile / size;
      gathered += (tile - outer * size) * static_cast<Index>(map.step[d]);
      tile = outer;
    }
    gathered += tile * static_cast<Index>(map.step[0]);
  }

  DIMR_HOST_DEVICE Index plane(Index k) const {
    const Index row = k / factor;
    return row * plane_row + (k - row * factor) * plane_column;
  }
};

// ---- What one CUDA thread does ----

constexpr uint32_t kThreads = 256;
constexpr int64_t kAccessBytes = 16;

// Launch geometry, chosen on the host. Offsets fit 32 bits unless `wide`.
struct Launch {
  TileMap map;
  uint32_t blocks;
  bool wide;
};

// Planes that have a kernel with 16-byte accesses; each needs a constant number of registers.
inline bool has_vector_kernel(int64_t planes, bool dense_high) {
  return dense_high ? planes <= 4 : planes == 1 || planes == 4 || planes == 9;
}

// 16-byte accesses where runs are multiples of 16 bytes and every pointer is aligned, else one element at a time.
inline Launch plan_launch(const Shape& s, int64_t element_bytes, bool aligned) {
  const int64_t vector = kAccessBytes / element_bytes;
  Launch launch{element_map(s), 0, s.numel() >= (int64_t{1} << 31)};
  if (aligned && longest_run(s) % vector == 0) {
    const TileMap runs = run_map(s, vector);
    if (has_vector_kernel(runs.planes, runs.dense_high)) launch.map = runs;
  }
  launch.blocks = static_cast<uint32_t>((launch.map.tiles + kThreads - 1) / kThreads);
  return launch;
}

template <class T, int VECTOR>
struct alignas(sizeof(T) * VECTOR) Pack {
  T lane[VECTOR];
};

// A tile in registers: element v*PLANES + k is element v of plane k.
template <class T, int VECTOR, int PLANES, class Index>
struct Tile {
  T value[VECTOR * PLANES];

  template <bool DENSE>
  static DIMR_HOST_DEVICE Index offset(const TileAddress<Index>& at, int k) {
    return DENSE ? at.dense + static_cast<Index>(k * VECTOR) : at.gathered + at.plane(static_cast<Index>(k));
  }

  template <bool DENSE>
  static constexpr DIMR_HOST_DEVICE int position(int k, int v) {
    return DENSE ? k * VECTOR + v : v * PLANES + k;
  }

  template <bool DENSE>
  DIMR_HOST_DEVICE void load(const T* base, const TileAddress<Index>& at) {
    DIMR_UNROLL
    for (int k = 0; k < PLANES; ++k) {
      const auto pack = *reinterpret_cast<const Pack<T, VECTOR>*>(base + offset<DENSE>(at, k));
      DIMR_UNROLL
      for (int v = 0; v < VECTOR; ++v) value[position<DENSE>(k, v)] = pack.lane[v];
    }
  }

  template <bool DENSE>
  DIMR_HOST_DEVICE void store(T* base, const TileAddress<Index>& at) const {
    DIMR_UNROLL
    for (int k = 0; k < PLANES; ++k) {
      Pack<T, VECTOR> pack;
      DIMR_UNROLL
      for (int v = 0; v < VECTOR; ++v) pack.lane[v] = value[position<DENSE>(k, v)];
      *reinterpret_cast<Pack<T, VECTOR>*>(base + offset<DENSE>(at, k)) = pack;
    }
  }
};

// `source` lies on the side that is read, `addend` (mode add) and `target` on the other.
template <class T, int VECTOR, int PLANES, bool DENSE_HIGH, Mode MODE, class Index>
DIMR_HOST_DEVICE void run_thread(
    const TileMap& map, const T* source, const T* addend, T* target, uint32_t block, uint32_t thread) {
  const Index index = static_cast<Index>(block) * kThreads + thread;
  if (index >= static_cast<Index>(map.tiles)) return;
  constexpr bool target_dense = DENSE_HIGH == (MODE != Mode::unshuffle);
  const TileAddress<Index> at(map, index);
  Tile<T, VECTOR, PLANES, Index> tile;
  tile.template load<!target_dense>(source, at);
  if constexpr (MODE == Mode::add) {
    Tile<T, VECTOR, PLANES, Index> other;
    other.template load<target_dense>(addend, at);
    DIMR_UNROLL
    for (int e = 0; e < VECTOR * PLANES; ++e) {
      tile.value[e] = static_cast<T>(static_cast<float>(tile.value[e]) + static_cast<float>(other.value[e]));
    }
  }
  tile.template store<target_dense>(target, at);
}

// ---- From run-time values to the kernel's template arguments ----

template <int VECTOR_, int PLANES_, bool DENSE_HIGH_, class Index_>
struct Variant {
  static constexpr int VECTOR = VECTOR_, PLANES = PLANES_;
  static constexpr bool DENSE_HIGH = DENSE_HIGH_;
  using Index = Index_;
};

template <int VECTOR, class Index, class F>
void with_planes(const TileMap& map, const F& f) {
  if (map.vector == 1) return f(Variant<1, 1, true, Index>{});
  if (map.planes == 1) return f(Variant<VECTOR, 1, false, Index>{});
  if (map.dense_high) {
    if (map.planes == 2) return f(Variant<VECTOR, 2, true, Index>{});
    if (map.planes == 3) return f(Variant<VECTOR, 3, true, Index>{});
    return f(Variant<VECTOR, 4, true, Index>{});
  }
  if (map.planes == 4) return f(Variant<VECTOR, 4, false, Index>{});
  return f(Variant<VECTOR, 9, false, Index>{});
}

// Calls f with the Variant that `launch` needs for elements of type T.
template <class T, class F>
void with_variant(const Launch& launch, const F& f) {
  constexpr int vector = static_cast<int>(kAccessBytes / sizeof(T));
  if (launch.wide) return with_planes<vector, uint64_t>(launch.map, f);
  with_planes<vector, uint32_t>(launch.map, f);
}

// Operands of one call, of any device.
struct Task {
  Shape shape;
  Mode mode;
  Element element;
  const void* source;
  const void* addend;
  void* target;
};

inline int64_t element_bytes(Element e) { return e == Element::float32 ? 4 : 2; }

inline Launch plan_launch(const Task& task) {
  const auto bits = reinterpret_cast<uintptr_t>(task.source) | reinterpret_cast<uintptr_t>(task.addend) |
                    reinterpret_cast<uintptr_t>(task.target);
  return plan_launch(task.shape, element_bytes(task.element), bits % kAccessBytes == 0);
}

// What the CPU operators go by, found on this machine; tests change it.
struct CpuLimits {
  bool avx2;
  int64_t cache_bytes;  // of the last level
};
CpuLimits& cpu_limits();

void run_cpu(const Task& task);
void run_cuda(const Task& task, int device_index);
// The CUDA kernel's threads, one after another on the host, over the geometry that run_cuda would launch.
void run_cuda_threads_on_host(const Task& task);

}  // namespace dimr
