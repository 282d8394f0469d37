// Pixel shuffle on the CPU: the same index map, with whole runs as tiles.

#include <torch/csrc/stable/ops.h>

#include "elements.h"

namespace dimr {
namespace {

constexpr int64_t kGrain = 32768;  // elements, as in torch's own element-wise operators

// Walks the tiles in order without a division per tile.
class Cursor {
 public:
  Cursor(const TileMap& map, int64_t tile) : map_(map) {
    for (int d = kRank - 1; d >= 0; --d) {
      coordinate_[d] = d > 0 ? tile % map.size[d] : tile;
      if (d > 0) tile /= map.size[d];
      gathered += coordinate_[d] * map.step[d];
    }
  }

  void advance() {
    for (int d = kRank - 1; d >= 0; --d) {
      gathered += map_.step[d];
      if (++coordinate_[d] < map_.size[d] || d == 0) return;
      gathered -= map_.step[d] * map_.size[d];
      coordinate_[d] = 0;
    }
  }

  int64_t gathered = 0;

 private:
  const TileMap& map_;
  int64_t coordinate_[kRank];
};

template <class T, Mode MODE>
inline T combine(T value, T addend) {
  if constexpr (MODE == Mode::add) {
    return static_cast<T>(static_cast<float>(value) + static_cast<float>(addend));
  } else {
    return value;
  }
}

// One tile. `dense` and `gathered` are the source and the target, in the order that TARGET_DENSE says; the addend
// lies like the target. PLANES 0 takes their number from the map.
template <class T, Mode MODE, bool TARGET_DENSE, int PLANES>
void run_tile(
    const TileMap& map, const int64_t* plane, const T* __restrict source, const T* __restrict addend,
    T* __restrict target) {
  const int64_t n = map.vector;
  if constexpr (PLANES > 0) {
    for (int64_t v = 0; v < n; ++v) {
      for (int k = 0; k < PLANES; ++k) {
        const int64_t dense = v * PLANES + k, gathered = plane[k] + v;
        const int64_t to = TARGET_DENSE ? dense : gathered, from = TARGET_DENSE ? gathered : dense;
        target[to] = combine<T, MODE>(source[from], MODE == Mode::add ? addend[to] : T{});
      }
    }
  } else {
    for (int64_t k = 0; k < map.planes; ++k) {
      for (int64_t v = 0; v < n; ++v) {
        const int64_t dense = v * map.planes + k, gathered = plane[k] + v;
        const int64_t to = TARGET_DENSE ? dense : gathered, from = TARGET_DENSE ? gathered : dense;
        target[to] = combine<T, MODE>(source[from], MODE == Mode::add ? addend[to] : T{});
      }
    }
  }
}

template <class T, Mode MODE, bool TARGET_DENSE, int PLANES>
void run_tiles(const TileMap& map, const Task& task, int64_t begin, int64_t end) {
  const auto* source = static_cast<const T*>(task.source);
  const auto* addend = static_cast<const T*>(task.addend);
  auto* target = static_cast<T*>(task.target);
  std::vector<int64_t> plane(map.planes);
  const TileAddress<int64_t> first(map, 0);
  for (int64_t k = 0; k < map.planes; ++k) plane[k] = first.plane(k);
  Cursor cursor(map, begin);
  for (int64_t tile = begin; tile < end; ++tile, cursor.advance()) {
    const int64_t dense = tile * map.vector * map.planes;
    const int64_t to = TARGET_DENSE ? dense : cursor.gathered, from = TARGET_DENSE ? cursor.gathered : dense;
    run_tile<T, MODE, TARGET_DENSE, PLANES>(
        map, plane.data(), source + from, MODE == Mode::add ? addend + to : nullptr, target + to);
  }
}

template <class T, Mode MODE, bool TARGET_DENSE>
void run_parallel(const TileMap& map, const Task& task) {
  const int64_t grain = std::max<int64_t>(1, kGrain / (map.vector * map.planes));
  torch::stable::parallel_for(0, map.tiles, grain, [&](int64_t begin, int64_t end) {
    if (map.planes == 1) return run_tiles<T, MODE, TARGET_DENSE, 1>(map, task, begin, end);
    if (map.planes == 2) return run_tiles<T, MODE, TARGET_DENSE, 2>(map, task, begin, end);
    if (map.planes == 4) return run_tiles<T, MODE, TARGET_DENSE, 4>(map, task, begin, end);
    run_tiles<T, MODE, TARGET_DENSE, 0>(map, task, begin, end);
  });
}

}  // namespace

void run_cpu(const Task& task) {
  const TileMap map = run_map(task.shape, longest_run(task.shape));
  with_kind(task.element, task.mode, [&](auto kind) {
    using Kind = decltype(kind);
    const bool target_dense = map.dense_high == (Kind::MODE != Mode::unshuffle);
    if (target_dense) return run_parallel<typename Kind::T, Kind::MODE, true>(map, task);
    run_parallel<typename Kind::T, Kind::MODE, false>(map, task);
  });
}

void run_cuda_threads_on_host(const Task& task) {
  const Launch launch = plan_launch(task);
  with_kind(task.element, task.mode, [&](auto kind) {
    using T = typename decltype(kind)::T;
    with_variant<T>(launch, [&](auto variant) {
      using V = decltype(variant);
      for (uint32_t block = 0; block < launch.blocks; ++block) {
        for (uint32_t thread = 0; thread < kThreads; ++thread) {
          run_thread<T, V::VECTOR, V::PLANES, V::DENSE_HIGH, decltype(kind)::MODE, typename V::Index>(
              launch.map, static_cast<const T*>(task.source), static_cast<const T*>(task.addend),
              static_cast<T*>(task.target), block, thread);
        }
      }
    });
  });
}

}  // namespace dimr
