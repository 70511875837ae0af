// Blocks of voxels between tensors of any type and memory format, and cached rows, one per channel,
// in the accumulation type.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../../math/common.h"
#include "../../ops.h"
#include "../simd/elements.h"
#include "../simd/isa.h"
#include "../simd/pages.h"
#include "../simd/stream.h"
#include "../simd/vectors.h"
#include "matmul.h"
#include "plan.h"
#include "prefetch.h"

namespace egcnn::EGCNN_ISA {

// n voxels of one sample from `voxel` on, padded to whole panels with zeros. Blocks follow each
// other up to voxel `end`.
struct Block {
  int64_t batch, voxel, n, padded, end;
};

template <class Acc>
static inline Block block_from(const EdgeGatePlan& plan, int64_t batch, int64_t voxel,
                               int64_t end) {
  const int64_t n = std::min(end - voxel, plan.block);
  return {batch, voxel, n, round_up(n, kPanel<Acc>), end};
}

template <class Acc>
static inline Block block_at(const EdgeGatePlan& plan, const Size& size, int64_t job) {
  return block_from<Acc>(plan, job / plan.blocks, job % plan.blocks * plan.block, size.voxels());
}

// Loads n consecutive elements and hands each vector to use(position, vector), the last one padded
// with zeros. Prefetches a line with each line.
template <class T, class Acc, class Use>
static inline void load_run(const T* in, int64_t n, PrefetchQueue::Lines next, Acc* __restrict out,
                            Use&& use) {
  constexpr int64_t line = kLine / sizeof(T), lanes = kLanes<Acc>;
  const auto emit = [&](int64_t i, const Acc* values) __attribute__((always_inline)) {
    for (int64_t k = 0; k < line; k += lanes) {
      const Vector<Acc> x = load_vector(values + k);
      store_vector(out + i + k, x);
      use(i + k, x);
    }
  };
  int64_t i = 0;
  for (; i + line <= n; i += line) {
    if (i < next.count * line) __builtin_prefetch(next.from + i * sizeof(T), 0, 2);
    if constexpr (std::is_same<T, Acc>()) {
      emit(i, in + i);
    } else {
      Acc values[line];
      for (int64_t k = 0; k < line; ++k) values[k] = widen<Acc>(in[i + k]);
      emit(i, values);
    }
  }
  if (i < n) {
    Acc values[line] = {};
    for (int64_t k = 0; k < n - i; ++k) values[k] = widen<Acc>(in[i + k]);
    emit(i, values);
  }
}

// Queues the block after `b`. Past the end of a sample, prefetching does no harm.
static inline void add_next(PrefetchQueue& queue, const Tensor& t, int64_t channels, const Block& b,
                            PrefetchQueue::Destination to = {}) {
  const int64_t size = float_bytes(t.dtype), bytes = b.n * size;
  const bool in_rows = t.voxel_stride == 1;
  const char* start = static_cast<const char*>(t.data) + t.offset(b.batch, 0, b.voxel + b.n) * size;
  queue.add(start, in_rows ? channels : 1, t.channel_stride * size,
            in_rows ? bytes : bytes * channels, to);
}

// Stores n consecutive elements, each vector from make(position).
template <class T, class Acc, class Make>
static inline void store_run(int64_t n, bool stream, T* out, Make&& make) {
  constexpr int64_t line = kLine / sizeof(T), lanes = kLanes<Acc>;
  const auto narrow_line = [&](int64_t i, T* to) __attribute__((always_inline)) {
    Acc values[line];
    for (int64_t k = 0; k < line; k += lanes) store_vector(values + k, make(i + k));
    for (int64_t k = 0; k < line; ++k) to[k] = narrow(values[k], out);
  };
  const auto store_part = [&](int64_t i, int64_t count) {
    T values[line];
    narrow_line(i, values);
    std::memcpy(out + i, values, count * sizeof(T));
  };
  int64_t i = 0;
  if (stream) {
    // Lines that other runs share are written through the caches.
    const int64_t begin = int64_t(reinterpret_cast<uintptr_t>(out) % kLine / sizeof(T));
    if (begin > 0) i = std::min(line - begin, n), store_part(0, i);
    for (; i + line <= n; i += line) {
      T values[line];  // here, so that a line need not leave the registers
      narrow_line(i, values);
      stream_line(reinterpret_cast<uint8_t*>(out + i), reinterpret_cast<const uint8_t*>(values));
    }
  } else {
    for (; i + line <= n; i += line) narrow_line(i, out + i);
  }
  if (i < n) store_part(i, n - i);
}

// Loads row c of a block and hands its vectors to `use`.
template <class Acc, class Use>
EGCNN_OUT_OF_LINE void load_row(const Tensor& t, int64_t c, const Block& b, PrefetchQueue& queue,
                                Acc* out, Use use) {
  with_float_of<Acc>(t.dtype, [&](auto* type) {
    constexpr int64_t line = kLine / sizeof(*type);
    load_run(static_cast<decltype(type)>(t.data) + t.offset(b.batch, c, b.voxel), b.n,
             queue.take(divide_up(b.n, line)), out, use);
  });
  constexpr int64_t lanes = kLanes<Acc>;
  for (int64_t v = round_up(b.n, lanes); v < b.padded; v += lanes) {
    store_vector(out + v, Vector<Acc>{});
  }
}

template <class Acc, class Make>
EGCNN_OUT_OF_LINE void store_row(const Tensor& t, int64_t c, const Block& b, bool stream,
                                 Make make) {
  with_float_of<Acc>(t.dtype, [&](auto* type) {
    store_run<std::remove_pointer_t<decltype(type)>, Acc>(
        b.n, stream, static_cast<decltype(type)>(t.data) + t.offset(b.batch, c, b.voxel), make);
  });
}

// Loads all rows of a block. In channels_last_3d it is one run of memory, converted in `transit` (a
// vector of voxels and one vector) and transposed in registers.
template <class Acc>
EGCNN_OUT_OF_LINE void load_block(const Tensor& t, int64_t channels, const Block& b,
                                  PrefetchQueue& queue, Acc* transit, Acc* out, int64_t pitch) {
  constexpr int lanes = kLanes<Acc>;
  const int64_t n = b.n;
  const auto nothing = [](int64_t, Vector<Acc>) {};
  if (t.voxel_stride == 1) {
    for (int64_t c = 0; c < channels; ++c) load_row(t, c, b, queue, out + c * pitch, nothing);
    return;
  }
  with_float_of<Acc>(t.dtype, [&](auto* type) {
    constexpr int64_t line = kLine / sizeof(*type);
    const auto* in = static_cast<decltype(type)>(t.data) + t.offset(b.batch, 0, b.voxel);
    for (int64_t v = 0; v < n; v += lanes) {
      const int64_t voxels = n - v < lanes ? n - v : lanes;
      load_run(in + v * channels, voxels * channels, queue.take(divide_up(voxels * channels, line)),
               transit, nothing);
      for (int64_t c = 0; c < channels; c += lanes) {
        transpose(transit + c, channels, voxels, out + c * pitch + v, pitch, channels - c);
      }
    }
  });
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t v = n; v < b.padded; ++v) out[c * pitch + v] = 0;
  }
}

template <class Acc>
EGCNN_OUT_OF_LINE void store_block(const Tensor& t, int64_t channels, const Block& b, bool stream,
                                   Acc* transit, const Acc* in, int64_t pitch) {
  constexpr int lanes = kLanes<Acc>;
  const int64_t n = b.n;
  if (t.voxel_stride == 1) {
    for (int64_t c = 0; c < channels; ++c) {
      const auto row = [=](int64_t i) { return load_vector(in + c * pitch + i); };
      store_row<Acc>(t, c, b, stream, row);
    }
    return;
  }
  with_float_of<Acc>(t.dtype, [&](auto* type) {
    auto* out = static_cast<decltype(type)>(t.data) + t.offset(b.batch, 0, b.voxel);
    for (int64_t v = 0; v < n; v += lanes) {
      const int64_t voxels = n - v < lanes ? n - v : lanes;
      // Backwards, since the last channels' vectors spill into the next voxel's first channels.
      for (int64_t c = (channels - 1) / lanes * lanes; c >= 0; c -= lanes) {
        transpose(in + c * pitch + v, pitch, channels - c, transit + c, channels, voxels);
      }
      const auto run = [&](int64_t i) { return load_vector(transit + i); };
      store_run<std::remove_pointer_t<decltype(type)>, Acc>(voxels * channels, stream,
                                                            out + v * channels, run);
    }
  });
}

// An output block. Large outputs are streamed.
struct Output {
  Tensor tensor;
  bool stream;

  Output(const Tensor& t, int64_t batch) : tensor(t) {
    const int64_t bytes = batch * t.batch_stride * float_bytes(t.dtype);
    advise_huge(t.data, bytes);
    stream = bytes > kStreamed;
  }
};

// Hands the vectors of a block's row c to use(c)(position, vector).
template <class Acc, class Use>
static inline void use_each(int64_t channels, const Block& block, const Acc* rows, int64_t pitch,
                            Use&& use) {
  for (int64_t c = 0; c < channels; ++c) {
    const Acc* row = rows + c * pitch;
    const auto with = use(c);
    for (int64_t i = 0; i < block.padded; i += kLanes<Acc>) with(i, load_vector(row + i));
  }
}

// Loads a block's rows and hands the vectors of row c to use(c)(position, vector).
template <class Acc, class Use>
static inline void load_each(const Tensor& t, int64_t channels, const Block& block,
                             PrefetchQueue& queue, Acc* transit, Acc* rows, int64_t pitch,
                             Use&& use) {
  if (t.voxel_stride != 1) {
    load_block(t, channels, block, queue, transit, rows, pitch);
    use_each(channels, block, rows, pitch, use);
    return;
  }
  for (int64_t c = 0; c < channels; ++c) load_row(t, c, block, queue, rows + c * pitch, use(c));
}

// Calls body(c, vector) for each row of a block, where vector(position) is make(c)(position) and
// prefetches the queue's lines.
template <class Acc, class Make, class Body>
static inline void prefetching_each(int64_t channels, const Block& block, PrefetchQueue& queue,
                                    Make&& make, Body&& body) {
  constexpr int64_t lanes = kLanes<Acc>;
  for (int64_t c = 0; c < channels; ++c) {
    const auto vector = make(c);
    const PrefetchQueue::Lines lines = queue.take(block.padded / lanes);
    body(c, [=](int64_t i) __attribute__((always_inline)) {
      if (i < lines.count * lanes) __builtin_prefetch(lines.from + i / lanes * kLine, 0, 2);
      return vector(i);
    });
  }
}

// Writes a block's rows, the vectors of row c from make(c)(position). Prefetches the queue's lines.
template <class Acc, class Make>
static inline void make_each(int64_t channels, const Block& block, PrefetchQueue& queue, Acc* rows,
                             int64_t pitch, Make&& make) {
  prefetching_each<Acc>(channels, block, queue, make, [&](int64_t c, auto vector) {
    Acc* row = rows + c * pitch;
    for (int64_t i = 0; i < block.padded; i += kLanes<Acc>) store_vector(row + i, vector(i));
  });
}

// The same, and stores them.
template <class Acc, class Make>
static inline void store_each(const Output& out, int64_t channels, const Block& block,
                              PrefetchQueue& queue, Acc* transit, Acc* rows, int64_t pitch,
                              Make&& make) {
  if (out.tensor.voxel_stride != 1) {
    make_each(channels, block, queue, rows, pitch, make);
    store_block(out.tensor, channels, block, out.stream, transit, rows, pitch);
    return;
  }
  prefetching_each<Acc>(channels, block, queue, make, [&](int64_t c, auto vector) {
    store_row<Acc>(out.tensor, c, block, out.stream, vector);
  });
}

}  // namespace egcnn::EGCNN_ISA
