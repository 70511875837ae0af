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

// with_float for the types whose sums are made in Acc.
template <class Acc, class Body>
static inline void with_volume(DType dtype, Body&& body) {
  if constexpr (sizeof(Acc) == 8) {
    body(static_cast<double*>(nullptr));
  } else {
    switch (dtype) {
      case DType::f16: return body(static_cast<Half*>(nullptr));
      case DType::bf16: return body(static_cast<BFloat16*>(nullptr));
      default: return body(static_cast<float*>(nullptr));
    }
  }
}

// n elements in a run, vector after vector handed to use(position, vector) too, the last one filled
// up with zeros. Meanwhile what is ahead sets out from memory.
template <class T, class Acc, class Use>
static inline void load_run(const T* in, int64_t n, Ahead::Lines ahead, Acc* __restrict out,
                            Use&& use) {
  constexpr int64_t line = 64 / sizeof(T), lanes = kLanes<Acc>;
  const auto take = [&](int64_t i, const Acc* values) __attribute__((always_inline)) {
    for (int64_t k = 0; k < line; k += lanes) {
      const Vector<Acc> x = load_vector(values + k);
      store_vector(out + i + k, x);
      use(i + k, x);
    }
  };
  int64_t i = 0;
  for (; i + line <= n; i += line) {
    if (i < ahead.count * line) __builtin_prefetch(ahead.at + i * sizeof(T), 0, 2);
    if constexpr (std::is_same<T, Acc>()) {
      take(i, in + i);
    } else {
      Acc values[line];
      for (int64_t k = 0; k < line; ++k) values[k] = widen<Acc>(in[i + k]);
      take(i, values);
    }
  }
  if (i < n) {
    Acc values[line] = {};
    for (int64_t k = 0; k < n - i; ++k) values[k] = widen<Acc>(in[i + k]);
    take(i, values);
  }
}

// The block behind `b` will be wanted, in rows of `to` if that is given. Past the end of a sample
// there is something else or nothing, and no harm in bringing that nearer.
static inline void add_next(Ahead& ahead, const Tensor& t, int64_t channels, const Block& b,
                            void* to = nullptr, int64_t to_step = 0) {
  const int64_t size = float_bytes(t.dtype), bytes = b.n * size;
  const bool apart = t.voxel_stride == 1;
  const char* start =
      static_cast<const char*>(t.data) + offset(t, b.batch, 0, b.voxel + b.n) * size;
  ahead.add(start, apart ? channels : 1, t.channel_stride * size, apart ? bytes : bytes * channels,
            to, to_step);
}

// n elements in a run, each vector from make(position).
template <class T, class Acc, class Make>
static inline void store_run(int64_t n, bool stream, T* out, Make&& make) {
  constexpr int64_t line = 64 / sizeof(T), lanes = kLanes<Acc>;
  const auto narrow_line = [&](int64_t i, T* to) __attribute__((always_inline)) {
    Acc values[line];
    for (int64_t k = 0; k < line; k += lanes) store_vector(values + k, make(i + k));
    for (int64_t k = 0; k < line; ++k) to[k] = narrow(values[k], out);
  };
  const auto part = [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    T values[line];
    narrow_line(i, values);
    for (int64_t k = 0; k < count; ++k) out[i + k] = values[k];
  };
  int64_t i = 0;
  if (stream) {
    const int64_t first = -(reinterpret_cast<uintptr_t>(out) / sizeof(T)) % line;
    i = first < n ? first : n;
    if (i > 0) part(0, i);
    for (; i + line <= n; i += line) {
      T values[line];
      narrow_line(i, values);
      stream_line(reinterpret_cast<uint8_t*>(out + i), reinterpret_cast<const uint8_t*>(values));
    }
  }
  for (; i + line <= n; i += line) narrow_line(i, out + i);
  if (i < n) part(i, n - i);
}

// Row c of a block, handed to use as well.
template <class Acc, class Use>
EGCNN_OUT_OF_LINE void load_row(const Tensor& t, int64_t c, const Block& b, Ahead& ahead, Acc* out,
                                Use use) {
  with_volume<Acc>(t.dtype, [&](auto* type) {
    constexpr int64_t line = 64 / sizeof(*type);
    load_run(static_cast<decltype(type)>(t.data) + offset(t, b.batch, c, b.voxel), b.n,
             ahead.take((b.n + line - 1) / line), out, use);
  });
  constexpr int64_t lanes = kLanes<Acc>;
  for (int64_t v = (b.n + lanes - 1) / lanes * lanes; v < b.filled; v += lanes) {
    store_vector(out + v, Vector<Acc>{});
  }
}

template <class Acc, class Make>
EGCNN_OUT_OF_LINE void store_row(const Tensor& t, int64_t c, const Block& b, bool stream,
                                 Make make) {
  with_volume<Acc>(t.dtype, [&](auto* type) {
    store_run<std::remove_pointer_t<decltype(type)>, Acc>(
        b.n, stream, static_cast<decltype(type)>(t.data) + offset(t, b.batch, c, b.voxel), make);
  });
}

// In channels_last_3d a block is one run of memory. It passes through `staging`, of a vector of voxels
// and one vector, to be turned over in the registers.
template <class Acc>
EGCNN_OUT_OF_LINE void load_block(const Tensor& t, int64_t channels, const Block& b, Ahead& ahead,
                                  Acc* staging, Acc* out, int64_t pitch) {
  constexpr int lanes = kLanes<Acc>;
  const int64_t n = b.n;
  const auto nothing = [](int64_t, Vector<Acc>) {};
  if (t.voxel_stride == 1) {
    for (int64_t c = 0; c < channels; ++c) load_row(t, c, b, ahead, out + c * pitch, nothing);
    return;
  }
  with_volume<Acc>(t.dtype, [&](auto* type) {
    constexpr int64_t line = 64 / sizeof(*type);
    const auto* in = static_cast<decltype(type)>(t.data) + offset(t, b.batch, 0, b.voxel);
    for (int64_t v = 0; v < n; v += lanes) {
      const int64_t voxels = n - v < lanes ? n - v : lanes;
      load_run(in + v * channels, voxels * channels,
               ahead.take((voxels * channels + line - 1) / line), staging, nothing);
      for (int64_t c = 0; c < channels; c += lanes) {
        transpose(staging + c, channels, voxels, out + c * pitch + v, pitch, channels - c);
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
  if (t.voxel_stride == 1) {
    for (int64_t c = 0; c < channels; ++c) {
      const auto row = [=](int64_t i) { return load_vector(in + c * pitch + i); };
      store_row<Acc>(t, c, b, stream, row);
    }
    return;
  }
  with_volume<Acc>(t.dtype, [&](auto* type) {
    auto* out = static_cast<decltype(type)>(t.data) + offset(t, b.batch, 0, b.voxel);
    for (int64_t v = 0; v < n; v += lanes) {
      const int64_t voxels = n - v < lanes ? n - v : lanes;
      // Backwards: the last channels' vectors spill into the next voxels' first channels.
      for (int64_t c = (channels - 1) / lanes * lanes; c >= 0; c -= lanes) {
        transpose(in + c * pitch + v, pitch, channels - c, staging + c, channels, voxels);
      }
      const auto run = [&](int64_t i) { return load_vector(staging + i); };
      store_run<std::remove_pointer_t<decltype(type)>, Acc>(voxels * channels, stream,
                                                            out + v * channels, run);
    }
  });
}

}  // namespace egcnn::EGCNN_ISA
