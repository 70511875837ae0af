// Blocks of voxels between tensors and the caches: any type and memory format there, here one row
// a channel in the accumulation type.
#pragma once

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "matrix.h"

namespace egcnn::EGCNN_ISA {

// One cache line past the caches, to an aligned address.
static inline void stream_line(char* to, const char* from) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
#elif defined(__SSE2__)
  for (int i = 0; i < 64; i += 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
  }
#else
  std::memcpy(to, from, 64);
#endif
}

// Makes streamed stores visible to other threads.
static inline void end_streaming() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

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

// Sends for n voxels of every channel. Inlined, or GCC finds that it changes nothing and drops it.
__attribute__((always_inline)) static inline void prefetch_block(const Tensor& t, int64_t channels,
                                                                 int64_t batch, int64_t voxel,
                                                                 int64_t n) {
  const int size = t.dtype == DType::f64 ? 8 : t.dtype == DType::f32 ? 4 : 2;
  const bool apart = t.voxel_stride == 1;
  const char* start = static_cast<const char*>(t.data) + offset(t, batch, 0, voxel) * size;
  const int64_t rows = apart ? channels : 1, bytes = n * size * (apart ? 1 : channels);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t b = 0; b < bytes; b += 64) {
      __builtin_prefetch(start + r * t.channel_stride * size + b, 0, 2);
    }
  }
}

template <class T, class Acc>
static inline void store_run(const Acc* __restrict in, int64_t n, bool stream, T* out) {
  int64_t i = 0;
  if (stream) {
    constexpr int64_t line = 64 / sizeof(T);
    const int64_t past = reinterpret_cast<uintptr_t>(out) / sizeof(T) % line;
    const int64_t head = past ? line - past : 0;
    for (; i < head && i < n; ++i) out[i] = narrow(in[i], out);
    for (; i + line <= n; i += line) {
      alignas(64) T values[line];
      for (int64_t k = 0; k < line; ++k) values[k] = narrow(in[i + k], out);
      stream_line(reinterpret_cast<char*>(out + i), reinterpret_cast<const char*>(values));
    }
  }
  for (; i < n; ++i) out[i] = narrow(in[i], out);
}

// In channels_last_3d a block is one run of memory. It passes through `staging`, of a vector of
// voxels and one vector, to be turned over in the registers.
template <class Acc>
EGCNN_OUT_OF_LINE void load_block(const Tensor& t, int64_t channels, int64_t batch, int64_t voxel,
                                  int64_t n, int64_t filled, Acc* staging, Acc* out,
                                  int64_t pitch) {
  constexpr int lanes = kLanes<Acc>;
  with_float(t.dtype, [&](auto* type) {
    const auto* in = static_cast<decltype(type)>(t.data) + offset(t, batch, 0, voxel);
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
    for (int64_t v = n; v < filled; ++v) out[c * pitch + v] = 0;
  }
}

template <class Acc>
EGCNN_OUT_OF_LINE void store_block(const Tensor& t, int64_t channels, int64_t batch, int64_t voxel,
                                   int64_t n, bool stream, Acc* staging, const Acc* in,
                                   int64_t pitch) {
  constexpr int lanes = kLanes<Acc>;
  with_float(t.dtype, [&](auto* type) {
    auto* out = static_cast<decltype(type)>(t.data) + offset(t, batch, 0, voxel);
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
        const int64_t rows = channels - c < lanes ? channels - c : lanes;
        transpose(in + c * pitch + v, pitch, rows, staging + c, channels, voxels);
      }
      store_run(staging, voxels * channels, stream, out + v * channels);
    }
  });
}

}  // namespace egcnn::EGCNN_ISA
