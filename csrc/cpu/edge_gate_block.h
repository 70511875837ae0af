// Blocks of voxels between tensors and the caches: any type and memory format there, here one row
// a channel in the accumulation type.
#pragma once

#include "matrix.h"
#include "stream.h"

namespace egcnn::EGCNN_ISA {

// n voxels of one sample, filled up to whole panels with zeros.
struct Block {
  int64_t batch, voxel, n, filled;
};

// n elements in a run. Meanwhile those at `next` set out from memory: at the start of each channel
// the hardware would only begin to see where to go.
template <class T, class Acc>
static inline void load_run(const T* in, int64_t n, const T* next, Acc* __restrict out) {
  constexpr int64_t line = 64 / sizeof(T);
  int64_t i = 0;
  for (; i + line <= n; i += line) {
    __builtin_prefetch(next + i, 0, 2);
    if constexpr (std::is_same<T, Acc>()) {
      std::memcpy(out + i, in + i, 64);
    } else {
      for (int64_t k = 0; k < line; ++k) out[i + k] = widen<Acc>(in[i + k]);
    }
  }
  for (; i < n; ++i) out[i] = widen<Acc>(in[i]);
}

// Sends for a panel of the block behind `b`: the one `v` voxels from its start. Inlined, or GCC finds
// that it changes nothing and drops it.
template <class Acc>
__attribute__((always_inline)) static inline void prefetch_panel(const Tensor& t, int64_t channels,
                                                                 const Block& b, int64_t v) {
  const int64_t size = float_bytes(t.dtype), bytes = kPanel<Acc> * size;
  const bool apart = t.voxel_stride == 1;
  const char* start = static_cast<const char*>(t.data) +
                      offset(t, b.batch, 0, b.voxel + b.n + v) * size;
  const int64_t step = t.channel_stride * size;
  const int64_t rows = apart ? channels : 1, run = apart ? bytes : bytes * channels;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < run; i += 64) __builtin_prefetch(start + r * step + i, 0, 2);
  }
}

template <class T, class Acc>
static inline void store_run(const Acc* __restrict in, int64_t n, bool stream, T* out) {
  int64_t i = 0;
  if (stream) {
    constexpr int64_t line = 64 / sizeof(T);
    const int64_t first = -(reinterpret_cast<uintptr_t>(out) / sizeof(T)) % line;
    for (; i < first && i < n; ++i) out[i] = narrow(in[i], out);
    for (; i + line <= n; i += line) {
      T values[line];
      for (int64_t k = 0; k < line; ++k) values[k] = narrow(in[i + k], out);
      stream_line(reinterpret_cast<uint8_t*>(out + i), reinterpret_cast<const uint8_t*>(values));
    }
  }
  for (; i < n; ++i) out[i] = narrow(in[i], out);
}

// In channels_last_3d a block is one run of memory. It passes through `staging`, of a vector of voxels
// and one vector, to be turned over in the registers.
template <class Acc>
EGCNN_OUT_OF_LINE void load_block(const Tensor& t, int64_t channels, const Block& b, Acc* staging,
                                  Acc* out, int64_t pitch) {
  constexpr int lanes = kLanes<Acc>;
  const int64_t n = b.n;
  with_float(t.dtype, [&](auto* type) {
    const auto* in = static_cast<decltype(type)>(t.data) + offset(t, b.batch, 0, b.voxel);
    if (t.voxel_stride == 1) {
      for (int64_t c = 0; c < channels; ++c) {
        const auto* row = in + c * t.channel_stride;
        load_run(row, n, c + 1 < channels ? row + t.channel_stride : in + n, out + c * pitch);
      }
    } else {
      for (int64_t v = 0; v < n; v += lanes) {
        const int64_t voxels = n - v < lanes ? n - v : lanes;
        const auto* run = in + v * channels;
        load_run(run, voxels * channels, run + 2 * lanes * channels, staging);
        for (int64_t c = 0; c < channels; c += lanes) {
          transpose(staging + c, channels, voxels, out + c * pitch + v, pitch, channels - c);
        }
      }
    }
  });
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t v = n; v < b.filled; ++v) out[c * pitch + v] = 0;
  }
}

template <class Acc>
EGCNN_OUT_OF_LINE void store_block(const Tensor& t, int64_t channels, const Block& b, bool stream,
                                   Acc* staging, const Acc* in, int64_t pitch) {
  constexpr int lanes = kLanes<Acc>;
  const int64_t n = b.n;
  with_float(t.dtype, [&](auto* type) {
    auto* out = static_cast<decltype(type)>(t.data) + offset(t, b.batch, 0, b.voxel);
    if (t.voxel_stride == 1) {
      for (int64_t c = 0; c < channels; ++c) {
        store_run(in + c * pitch, n, stream, out + c * t.channel_stride);
      }
      return;
    }
    for (int64_t v = 0; v < n; v += lanes) {
      const int64_t voxels = n - v < lanes ? n - v : lanes;
      // Backwards: the last channels' vectors spill into the next voxels' first channels.
      for (int64_t c = (channels - 1) / lanes * lanes; c >= 0; c -= lanes) {
        transpose(in + c * pitch + v, pitch, channels - c, staging + c, channels, voxels);
      }
      store_run(staging, voxels * channels, stream, out + v * channels);
    }
  });
}

}  // namespace egcnn::EGCNN_ISA
