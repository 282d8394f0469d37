// Pixel shuffle on the CPU: the same index map, with whole runs as tiles.

#include <torch/csrc/stable/ops.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fstream>

#include "cpu_features.h"
#include "cpu_loops.h"
#include "elements.h"

namespace dimr {
namespace {

template <class T>
auto as_bits(T* p) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
  return reinterpret_cast<std::conditional_t<std::is_const_v<T>, const Bits, Bits>*>(p);
}

constexpr int64_t kGrain = 32768;  // elements, as in torch's own element-wise operators
constexpr int64_t kShortestStream = 256;  // bytes; a shorter run is mostly lines that are not wholly its own

bool has_avx2() {
#ifdef DIMR_X86
  return cpu_has_avx2();
#else
  return false;
#endif
}

// Of the cache that this core shares. (sysconf names all such caches of the socket together on some machines.)
int64_t last_level_cache() {
  int64_t kibibytes = 0;  // the file holds, for example, 32768K
  std::ifstream("/sys/devices/system/cpu/cpu0/cache/index3/size") >> kibibytes;
  return kibibytes > 0 ? kibibytes << 10 : 32 << 20;
}

// Whether the memory at p has been written since it was allocated. Its pages are cleared, in the caches, when they are.
bool is_mapped(const void* p) {
  const uintptr_t page = sysconf(_SC_PAGESIZE);
  unsigned char resident = 0;
  mincore(reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(p) / page * page), 1, &resident);
  return resident & 1;
}

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

// Whether to write the target past the caches, which saves reading it first. Measured together with a reader of the
// target, that pays from about a quarter of the last-level cache; and not where new pages bring it there anyway.
bool should_stream(const TileMap& map, const Task& task) {
  const int64_t element = element_bytes(task.element), bytes = task.shape.numel() * element;
  return map.vector * element >= kShortestStream && bytes > cpu_limits().cache_bytes / 4 &&
         is_mapped(static_cast<const char*>(task.target) + bytes / 2);
}

// The tiles begin .. end of one call. TO_DENSE: the target is the dense side.
template <class T, Mode MODE, bool TO_DENSE>
void run_tiles(const TileMap& map, const Task& task, bool stream, int64_t begin, int64_t end) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
  const auto* source = static_cast<const T*>(task.source);
  const auto* addend = static_cast<const T*>(task.addend);
  auto* target = static_cast<T*>(task.target);
  const int64_t n = map.vector, planes = map.planes, elements = n * planes;
  const auto permute = permute_for_this_cpu<Bits, TO_DENSE>(planes);
  const auto run = run_for_this_cpu<T, MODE == Mode::add>(stream);
  std::vector<int64_t> plane(planes), packed(planes);
  for (int64_t k = 0; k < planes; ++k) {
    plane[k] = TileAddress<int64_t>(map, 0).plane(k);
    packed[k] = k * n;
  }
  std::vector<T> buffer(MODE == Mode::add && planes > 1 ? elements : 0);
  Cursor cursor(map, begin);
  for (int64_t tile = begin; tile < end; ++tile, cursor.advance()) {
    const int64_t dense = tile * elements;
    const T* from = source + (TO_DENSE ? cursor.gathered : dense);
    const int64_t to = TO_DENSE ? dense : cursor.gathered;
    if (planes > 1) {  // else `run` does it
      for (int64_t k = 0; k < planes; ++k) prefetch_run_ahead(from + (TO_DENSE ? plane[k] : k * n), n);
    }
    if constexpr (MODE != Mode::add) {
      if (planes == 1) {
        run(from, from, target + to, n);
      } else {
        permute(as_bits(from), as_bits(target + to), plane.data(), planes, n);
      }
    } else {
      // Permute into the cache first: the sum then runs over contiguous elements, whatever their type.
      if (planes == 1) {
        run(addend + to, from, target + to, n);
      } else if (TO_DENSE) {
        permute(as_bits(from), as_bits(buffer.data()), plane.data(), planes, n);
        run(addend + to, buffer.data(), target + to, elements);
      } else {
        permute(as_bits(from), as_bits(buffer.data()), packed.data(), planes, n);
        for (int64_t k = 0; k < planes; ++k) {
          run(addend + to + plane[k], buffer.data() + packed[k], target + to + plane[k], n);
        }
      }
    }
  }
  if (stream) finish_stream();
}

template <class T, Mode MODE>
void run_parallel(const TileMap& map, const Task& task) {
  const int64_t grain = std::max<int64_t>(1, kGrain / (map.vector * map.planes));
  const bool to_dense = map.dense_high == (MODE != Mode::unshuffle);
  const bool stream = should_stream(map, task);
  torch::stable::parallel_for(0, map.tiles, grain, [&](int64_t begin, int64_t end) {
    if (to_dense) return run_tiles<T, MODE, true>(map, task, stream, begin, end);
    run_tiles<T, MODE, false>(map, task, stream, begin, end);
  });
}

}  // namespace

CpuLimits& cpu_limits() {
  static CpuLimits limits{has_avx2(), last_level_cache()};
  return limits;
}

void run_cpu(const Task& task) {
  const TileMap map = run_map(task.shape, longest_run(task.shape));
  with_kind(task.element, task.mode, [&](auto kind) {
    run_parallel<typename decltype(kind)::T, decltype(kind)::MODE>(map, task);
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
