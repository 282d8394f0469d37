// The loops of the CPU operators without torch: every family, forward and backward, on buffers of exactly their size,
// by one thread and with the units dealt out to three. Compiled with sanitizers by test_sanitizers.py, together with
// csrc's *_cpu.cpp files, for which DIMR_SET is baseline whatever the compiler's flags are.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "cpu_kernels.h"

namespace dimr {
namespace {

constexpr int kThreads = 3;

// Heap memory without a byte to spare, so that the address sanitizer's red zones begin right after it.
class Buffer {
 public:
  Buffer(int64_t elements, Type type)
      : elements_(elements), type_(type), bytes_(new unsigned char[elements * bytes_of(type)]) {
    poison();
  }

  // Numbers between 0.5 and 2, every other one negative if they are signed.
  Buffer& numbers(bool has_sign = true) {
    for (int64_t i = 0; i < elements_; ++i) {
      const float value = (0.5f + static_cast<float>(i * 37 % 97) / 64.f) * (has_sign && i % 2 ? -1.f : 1.f);
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      const uint16_t upper = static_cast<uint16_t>(bits >> 16);
      // Of float16: sign, exponent and the first ten digits; all numbers here are normal in it.
      const uint16_t half = static_cast<uint16_t>(
          (bits >> 16 & 0x8000u) | (((bits >> 13 & 0x3ffffu) - (112u << 10)) & 0x7fffu));
      if (type_ == Type::float32) std::memcpy(&bytes_[4 * i], &value, 4);
      if (type_ == Type::bfloat16) std::memcpy(&bytes_[2 * i], &upper, 2);
      if (type_ == Type::float16) std::memcpy(&bytes_[2 * i], &half, 2);
    }
    return *this;
  }

  void poison() { std::memset(bytes_.get(), 0xff, size()); }

  void* data() const { return bytes_.get(); }
  float* floats() const { return reinterpret_cast<float*>(bytes_.get()); }
  std::vector<unsigned char> copy() const { return {bytes_.get(), bytes_.get() + size()}; }
  size_t size() const { return static_cast<size_t>(elements_ * bytes_of(type_)); }
  Type type() const { return type_; }

 private:
  int64_t elements_;
  Type type_;
  std::unique_ptr<unsigned char[]> bytes_;
};

Buffer numbers(int64_t elements, Type type = Type::float32, bool has_sign = true) {
  Buffer buffer(elements, type);
  buffer.numbers(has_sign);
  return buffer;
}

// Rows of D elements with `gap` elements between them, but not behind the last.
struct Rows {
  Buffer buffer;
  RowSet set;
};

Rows rows_of(int64_t B, int64_t N, int64_t D, Type type, int64_t gap = 0) {
  Buffer buffer(B * N * (D + gap) - gap, type);
  const RowSet set{buffer.data(), type, N * (D + gap), D + gap};
  return {std::move(buffer), set};
}

Rows random_rows(int64_t B, int64_t N, int64_t D, Type type, int64_t gap = 0) {
  Rows rows = rows_of(B, N, D, type, gap);
  rows.buffer.numbers();
  return rows;
}

[[noreturn]] void fail(const char* what, const char* kernel) {
  std::fprintf(stderr, "WRONG: %s: %s\n", kernel, what);
  std::exit(1);
}

bool is_poisoned(const Buffer& buffer) {
  const std::vector<unsigned char> bytes = buffer.copy();
  const size_t width = static_cast<size_t>(bytes_of(buffer.type()));
  for (size_t i = 0; i < bytes.size(); i += width) {
    bool whole = true;
    for (size_t k = 0; k < width; ++k) whole = whole && bytes[i + k] == 0xff;
    if (whole) return true;
  }
  return false;
}

// Runs all units at once, then one by one on several threads: everything is written, and the same both times, but for
// what `forget` overwrites after each run.
template <class Task, class Forget>
void check(
    const char* name, void (*kernel)(const Task&, int64_t, int64_t, float*), const Task& task,
    const std::vector<Buffer*>& outputs, const Forget& forget) {
  const auto scratch = [&] { return numbers(task.scratch()); };
  for (Buffer* out : outputs) out->poison();
  kernel(task, 0, task.units(), scratch().floats());
  forget();
  std::vector<std::vector<unsigned char>> first;
  for (Buffer* out : outputs) {
    if (is_poisoned(*out)) fail("an element was not written", name);
    first.push_back(out->copy());
    out->poison();
  }
  std::vector<std::thread> threads;
  for (int64_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      const Buffer own = scratch();
      for (int64_t unit = thread; unit < task.units(); unit += kThreads) kernel(task, unit, unit + 1, own.floats());
    });
  }
  for (std::thread& thread : threads) thread.join();
  forget();
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i]->copy() != first[i]) fail("other bits with three threads", name);
  }
}

#define CHECK(NAME, TASK, ...) check(#NAME, NAME##_kernel(), TASK, {__VA_ARGS__}, [] {})

void check_depthwise(int64_t B, int64_t H, int64_t W, int64_t C, int64_t K, Type type) {
  const DepthwiseShape s{B, H, W, C, K};
  const int64_t elements = B * H * W * C;
  const Buffer x = numbers(elements, type), grad = numbers(elements, type);
  const Buffer taps = numbers(s.blocks() * K * K * kChannelBlock), bias = numbers(s.blocks() * kChannelBlock);
  const auto image = [&](const Buffer& of) { return Image{of.data(), H * W * C, W * C, C}; };
  Buffer out(elements, type);
  DepthwiseForward forward{s, type, image(x), image(grad), out.data(), H * W * C, W * C, C, taps.floats(), nullptr};
  CHECK(depthwise_forward, forward, &out);
  forward.residual.data = nullptr;
  forward.bias = bias.floats();
  CHECK(depthwise_forward, forward, &out);
  const int64_t splits = B * s.bands();
  Buffer partials(splits * s.blocks() * (K * K + 1) * kChannelBlock, Type::float32);
  const DepthwiseBackward backward{
      s, type, image(grad), image(x), out.data(), taps.floats(), partials.floats(), splits};
  // The sums of the channels that fill up the last block are never read.
  const auto forget = [&] {
    for (int64_t i = 0; i < splits * s.blocks() * (K * K + 1) * kChannelBlock; ++i) {
      const int64_t block = i / kChannelBlock / (K * K + 1) % s.blocks();
      if (block * kChannelBlock + i % kChannelBlock >= C) partials.floats()[i] = 0.f;
    }
  };
  check("depthwise_backward", depthwise_backward_kernel(), backward, {&out, &partials}, forget);
}

void check_gates(int64_t T, int64_t D, int64_t kinds, int64_t gate_width) {
  const Buffer t = numbers(T), first = numbers(D), second = numbers(D);
  const Buffer weight = numbers(gate_width), offset = numbers(gate_width);
  const GatedPair pair{first.floats(), second.floats(), weight.floats(), offset.floats(), gate_width == D};
  Buffer table(T * kinds * D, Type::float32);
  const GateTable forward{t.floats(), {pair, pair}, T, kinds, D, table.floats()};
  CHECK(gate_table, forward, &table);
  const int64_t chunks = 3;
  const Buffer partials = numbers(T * chunks * kinds * D);
  Buffer sums(kinds * 4 * D, Type::float32);
  GateGradients backward{
      t.floats(), {pair, pair}, T, kinds, D, partials.floats(), chunks, kinds, sums.floats(), nullptr};
  Buffer dt(kinds * backward.blocks() * T, Type::float32);
  CHECK(gate_gradients, backward, &sums);
  backward.dt = dt.floats();
  CHECK(gate_gradients, backward, &sums, &dt);
}

Type sum_of(Type a, Type b) { return a == b ? a : Type::float32; }

void check_norm(int64_t B, int64_t N, int64_t D, Type type, Type other, bool rms, int64_t gap) {
  const Rows x = random_rows(B, N, D, type, gap), residual = random_rows(B, N, D, other, gap);
  const Buffer table = numbers(B * 2 * D), offset = numbers(D);
  Rows y = rows_of(B, N, D, type), total = rows_of(B, N, D, sum_of(type, other));
  Buffer stats((rms ? 1 : 2) * B * N, Type::float32);
  NormForward forward{};
  forward.B = B, forward.N = N, forward.D = D;
  forward.x = x.set, forward.y = y.set;
  forward.table = table.floats(), forward.table_stride = 2 * D;
  forward.stats = stats.floats();
  forward.eps = 1e-5f, forward.rms = rms, forward.shift = true;
  CHECK(norm_forward, forward, &y.buffer, &stats);
  forward.residual = residual.set, forward.total = total.set;
  forward.offset = offset.floats();
  CHECK(norm_forward, forward, &y.buffer, &stats, &total.buffer);

  const Rows dy = random_rows(B, N, D, type, gap), dtotal = random_rows(B, N, D, type);
  const Buffer known = numbers((rms ? 1 : 2) * B * N, Type::float32, false);
  const int64_t rows_per_chunk = 3, chunks = (N + rows_per_chunk - 1) / rows_per_chunk;
  Buffer partials(B * chunks * 2 * D, Type::float32);
  NormBackward backward{};
  backward.B = B, backward.N = N, backward.D = D;
  backward.x = x.set, backward.dy = dy.set, backward.dx = y.set;
  backward.table = table.floats(), backward.table_stride = 2 * D, backward.kinds = 2;
  backward.stats = known.floats();
  backward.groups = B, backward.chunks = chunks, backward.rows_per_chunk = rows_per_chunk;
  backward.eps = 1e-5f, backward.rms = rms, backward.shift = true;
  CHECK(norm_backward, backward, &y.buffer);
  backward.dtotal = dtotal.set, backward.partials = partials.floats();
  CHECK(norm_backward, backward, &y.buffer, &partials);
}

void check_shuffle_norm_add(int64_t B, int64_t H, int64_t W, int64_t C, int64_t r, Type type) {
  const int64_t N = H * W * r * r;
  const Rows x = random_rows(B, H * W, r * r * C, type, 2), addend = random_rows(B, N, C, type);
  const Buffer table = numbers(2 * C);
  Rows y = rows_of(B, N, C, type), dx = rows_of(B, H * W, r * r * C, type);
  Buffer stats(2 * B * N, Type::float32);
  NormForward forward{};
  forward.B = B, forward.N = N, forward.D = C;
  forward.x = x.set, forward.addend = addend.set, forward.y = y.set;
  forward.shuffle = {r, W};
  forward.table = table.floats();
  forward.stats = stats.floats();
  forward.eps = 1e-5f, forward.shift = true;
  CHECK(norm_forward, forward, &y.buffer, &stats);
  const Buffer known = numbers(2 * B * N, Type::float32, false);
  Buffer partials(B * N * 2 * C, Type::float32);
  NormBackward backward{};
  backward.B = B, backward.N = N, backward.D = C;
  backward.x = x.set, backward.dy = addend.set, backward.dx = dx.set;
  backward.shuffle = {r, W};
  backward.table = table.floats(), backward.kinds = 2;
  backward.stats = known.floats();
  backward.partials = partials.floats();
  backward.groups = 1, backward.chunks = B * N, backward.rows_per_chunk = 1;
  backward.eps = 1e-5f, backward.shift = true;
  CHECK(norm_backward, backward, &dx.buffer, &partials);
}

void check_geglu(int64_t rows, int64_t D, Type type, bool tanh, int64_t gap) {
  const Rows gate = random_rows(1, rows, D, type, gap), value = random_rows(1, rows, D, type, gap);
  const Rows grad = random_rows(1, rows, D, type);
  Rows out = rows_of(1, rows, D, type), other = rows_of(1, rows, D, type);
  const GegluForward forward{rows, D, gate.set, value.set, out.set, tanh};
  CHECK(geglu_forward, forward, &out.buffer);
  const GegluBackward backward{rows, D, grad.set, gate.set, value.set, out.set, other.set, tanh};
  CHECK(geglu_backward, backward, &out.buffer, &other.buffer);
}

void check_group_norm(int64_t B, int64_t N, int64_t C, Type type, int64_t gap) {
  const int64_t pixels = 4, chunks = (N + pixels - 1) / pixels;
  const GroupNormShape s{B, N, C, 1, chunks, pixels};
  const Rows x = random_rows(B, N, C, type, gap), dy = random_rows(B, N, C, type, gap);
  const Buffer channels = numbers(B * 4 * C);
  Rows out = rows_of(B, N, C, type);
  Buffer sums(B * chunks * 2 * C, Type::float32);
  const GroupNormMoments moments{s, x.set, sums.floats()};
  CHECK(group_norm_moments, moments, &sums);
  const GroupNormForward forward{s, x.set, out.set, channels.floats()};
  CHECK(group_norm_forward, forward, &out.buffer);
  const GroupNormSums gathered{s, x.set, dy.set, channels.floats(), sums.floats()};
  CHECK(group_norm_sums, gathered, &sums);
  const GroupNormBackward backward{s, x.set, dy.set, out.set, channels.floats()};
  CHECK(group_norm_backward, backward, &out.buffer);
}

void check_all() {
  for (const Type type : {Type::float32, Type::bfloat16, Type::float16}) {
    for (const int64_t K : {3, 5, 7}) {
      check_depthwise(2, 5, 19, 21, K, type);
      check_depthwise(1, 1, 1, 1, K, type);
      check_depthwise(1, 35, 9, 40, K, type);
    }
    for (const int64_t D : {1, 5, 16, 37, 131}) {
      for (const bool second : {false, true}) {
        check_norm(2, 5, D, type, second ? Type::float32 : type, second, second ? 3 : 0);
        check_geglu(4, D, type, second, second ? 7 : 0);
      }
      check_group_norm(2, 11, D, type, D % 2);
      for (const int64_t r : {1, 2, 3}) check_shuffle_norm_add(2, 2, 3, D, r, type);
    }
    check_geglu(2, GegluForward::kColumns + 17, type, false, 1);
    check_norm(1, 3, 4096 + 33, type, type, false, 0);  // more than a block of a sum
  }
  for (const int64_t D : {1, 37, 300}) {
    check_gates(3, D, 2, D);
    check_gates(1, D, 1, 1);
  }
}

}  // namespace
}  // namespace dimr

int main() {
  dimr::check_all();
  std::puts("clean");
}
