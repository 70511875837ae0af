// Sobel edge targets and the Sobel magnitude with its gradient (section 2.1). Gradients of a mask
// are small whole numbers, so that edges of masks and labels are a matter of bits. The magnitude,
// and edges of floats, are computed voxel by voxel.
#include <algorithm>

#include "../math/sobel.h"
#include "bit_sliced.cuh"
#include "launch.cuh"

namespace egcnn::cuda {
namespace {

constexpr int kThreads = 128;

// The length of one part of n, cut into as few parts of at most `most` as can be.
int64_t equal_part(int64_t n, int64_t most) { return divide_up(n, divide_up(n, most)); }

// How many of n rows or planes a thread marches over, if it takes `blocks` to march over all: many,
// because two more are read each time, but so few that no multiprocessor is idle.
int64_t march(int64_t n, int64_t blocks, const Resources& resources) {
  const int64_t parts = divide_up<int64_t>(6 * multiprocessors(resources.device), blocks);
  return equal_part(n, std::clamp<int64_t>(n / parts, 8, 32));
}

__device__ __forceinline__ int64_t clamp(int64_t i, int64_t n) {
  return min(max(i, int64_t(0)), n - 1);
}

// --- Edges of masks and labels -------------------------------------------------------------------

// A lane holds 32 voxels of a row, four along x in the bytes of a word by eight along z in the bits
// of a byte, and marches along y. The outer lanes of a warp only lend theirs to their neighbours.
constexpr int kWord = 4, kPlanes = 8;
constexpr int kInnerLanes = 30, kBlockColumns = kThreads / 32 * kInnerLanes;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr uint32_t kLowBits = 0x01010101u, kHighBits = 0x80808080u;  // of the bytes of a word

// Regions in one launch: each has a bit of a byte.
constexpr int kRegions = 8;

struct LabelEdges {
  Tensor labels;  // bytes
  Tensor edges;
  Size size;                // its channels are the regions of this launch
  uint8_t regions_of[256];  // bit r of a label's entry: it belongs to region r
  int least;                // squared gradient that makes an edge
  int64_t words;            // in a row
  int64_t columns;          // of words, eight planes deep
  unsigned groups;          // of columns: one to a block
  unsigned parts;           // of the rows: one to a lane
  int64_t rows;             // in a part
};

// How labels and edges lie in memory: in rows that begin at a multiple of four bytes and are as
// long, in rows of any beginning and length, or with other channels between the voxels.
enum class Layout { words, bytes, strided };

// What one row tells of the gradient at the rows beside it: the mask smoothed along z and x, and
// its difference along the one, smoothed along the other.
struct Row {
  BitSliced<5> smooth;
  BitSliced<4> difference_z, difference_x;
};

// `inside` holds ones where the mask is, in a lane's planes and the planes before and after. The
// selectors tell which bytes of the word before and this one, or of this one and the word after,
// are the neighbours along x.
__device__ __forceinline__ Row make_row(const uint32_t (&inside)[kPlanes + 2],
                                        unsigned select_before, unsigned select_after) {
  uint32_t mask = 0;
#pragma unroll
  for (int k = 0; k < kPlanes; ++k) mask += inside[k + 1] << k;
  const BitSliced<1> z[3] = {{(mask << 1 & ~kLowBits) | inside[0]},
                             {mask},
                             {(mask >> 1 & ~kHighBits) | inside[kPlanes + 1] << (kPlanes - 1)}};
  BitSliced<1> before[3], after[3];  // along x
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const uint32_t word = z[i][0];
    before[i] = {__byte_perm(__shfl_up_sync(kAllLanes, word, 1), word, select_before)};
    after[i] = {__byte_perm(word, __shfl_down_sync(kAllLanes, word, 1), select_after)};
  }
  const BitSliced<3> smooth_before = smooth(before[0], before[1], before[2]);
  const BitSliced<3> smooth_after = smooth(after[0], after[1], after[2]);
  return {smooth(smooth_before, smooth(z[0], z[1], z[2]), smooth_after),
          smooth(difference(before[0], before[2]), difference(z[0], z[2]),
                 difference(after[0], after[2])),
          difference(smooth_before, smooth_after)};
}

// kNonZero: every gradient but 0 makes an edge, so that nothing need be squared.
template <bool kNonZero>
__device__ __forceinline__ uint32_t find_edges(const Row& before, const Row& at, const Row& after,
                                               int least) {
  const BitSliced<6> gz = smooth(before.difference_z, at.difference_z, after.difference_z);
  const BitSliced<6> gy = difference(before.smooth, after.smooth);
  const BitSliced<6> gx = smooth(before.difference_x, at.difference_x, after.difference_x);
  // A difference of N bits adds 2^N - 1, and each smoothing after it makes four of that.
  constexpr int kZeroZ = 1 * 4 * 4, kZeroY = 31, kZeroX = 7 * 4;
  if constexpr (kNonZero) {
    return differs(gz, kZeroZ) | differs(gy, kZeroY) | differs(gx, kZeroX);
  } else {
    return at_least(squared_distance(gz, kZeroZ) + squared_distance(gy, kZeroY) +
                        squared_distance(gx, kZeroX),
                    least);
  }
}

template <Layout kLayout, bool kNonZero>
__global__ void __launch_bounds__(kThreads) label_edges_kernel(LabelEdges p) {
  __shared__ uint8_t inside[256];
  const Size size = p.size;
  // The regions of one place come one after the other, so that its labels come from memory once.
  unsigned job = blockIdx.x;
  const unsigned region = job % unsigned(size.channels);
  job /= unsigned(size.channels);
  const unsigned group = job % p.groups;
  job /= p.groups;
  const int64_t y = job % p.parts * p.rows, batch = job / p.parts;

  for (int i = threadIdx.x; i < 256; i += kThreads) inside[i] = p.regions_of[i] >> region & 1;
  __syncthreads();
  const bool ones_are_inside = !inside[0] && inside[1];

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t wanted = int64_t(group) * kBlockColumns + warp * kInnerLanes + lane - 1;
  const bool inner = lane > 0 && lane <= kInnerLanes && wanted < p.columns;
  const int64_t column = clamp(wanted, p.columns);
  const int64_t x = column % p.words * kWord, z = column / p.words * kPlanes;
  const int last = int(min(size.width - 1 - x, int64_t(kWord)));  // of the row: 4 if it is further
  const int planes = inner ? int(min(size.depth - z, int64_t(kPlanes))) : 0;
  const unsigned select_before = x > 0 ? 0x6543 : 0x6544;
  unsigned select_after = 0;
#pragma unroll
  for (int i = 0; i < kWord; ++i) select_after |= min(i + 1, last) << 4 * i;

  const auto stride = [](const Tensor& t) {
    return kLayout == Layout::strided ? t.voxel_stride : int64_t(1);
  };
  const auto start = [&](const Tensor& t, int64_t row) {
    return static_cast<uint8_t*>(t.data) + offset(t, batch, region, row * size.width + x);
  };
  const auto load = [&](const uint8_t* at) {
    if constexpr (kLayout == Layout::words) return *reinterpret_cast<const uint32_t*>(at);
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < kWord; ++i) {
      if (i <= last) word |= uint32_t(at[i * stride(p.labels)]) << 8 * i;
    }
    return word;
  };
  const auto store = [&](uint8_t* at, uint32_t word) {
    if constexpr (kLayout == Layout::words) {
      *reinterpret_cast<uint32_t*>(at) = word;
    } else {
#pragma unroll
      for (int i = 0; i < kWord; ++i) {
        if (i <= last) at[i * stride(p.edges)] = uint8_t(word >> 8 * i);
      }
    }
  };
  const uint8_t* labels = start(p.labels, 0);
  uint8_t* to = start(p.edges, y);
  int64_t from_plane[kPlanes + 2], to_plane[kPlanes + 2];
#pragma unroll
  for (int k = 0; k < kPlanes + 2; ++k) {
    const int64_t plane = clamp(z + k - 1, size.depth) * size.height * size.width;
    from_plane[k] = plane * stride(p.labels), to_plane[k] = plane * stride(p.edges);
  }

  const int64_t end = min(y + p.rows, size.height);
  int empty_rows = 0;
  Row before{}, at{};
  for (int64_t row = y - 1; row <= end; ++row) {
    const uint8_t* from = labels + clamp(row, size.height) * size.width * stride(p.labels);
    uint32_t word[kPlanes + 2], any = 0, edges = 0;
#pragma unroll
    for (int k = 0; k < kPlanes + 2; ++k) word[k] = load(from + from_plane[k]);
#pragma unroll
    for (int k = 0; k < kPlanes + 2; ++k) any |= word[k];

    // There is no edge amid three rows that are empty throughout the warp, and the first two have
    // made `before` and `at` what the third would make of them.
    empty_rows = __all_sync(kAllLanes, any == 0) ? empty_rows + 1 : 0;
    if (empty_rows < 3) {
      if (!ones_are_inside || (any & ~kLowBits) != 0) {
#pragma unroll
        for (int k = 0; k < kPlanes + 2; ++k) {
          const uint32_t label = word[k];
          word[k] = inside[label & 255] | inside[label >> 8 & 255] << 8 |
                    inside[label >> 16 & 255] << 16 | uint32_t(inside[label >> 24]) << 24;
        }
      }
      const Row after = make_row(word, select_before, select_after);
      edges = find_edges<kNonZero>(before, at, after, p.least);
      before = at;
      at = after;
    }
    if (row > y) {
#pragma unroll
      for (int k = 0; k < kPlanes; ++k) {
        if (k < planes) store(to + to_plane[k + 1], edges >> k & kLowBits);
      }
      to += size.width * stride(p.edges);
    }
  }
}

// The labels of up to kRegions regions, handed over by value.
struct RegionLabels {
  static constexpr int kMost = 256;
  int64_t label[kMost];
  uint8_t regions[kMost];  // bit r: the label is in region r
  int count;
};

// Makes bytes of wider labels, or of masks, one to a channel: bit r tells whether the voxel lies in
// region r.
template <class T>
__global__ void __launch_bounds__(kThreads)
    region_bits_kernel(Tensor labels, Tensor bits, Size size, bool masks, RegionLabels known) {
  const int64_t voxels = size.depth * size.height * size.width;
  const unsigned blocks = unsigned(divide_up<int64_t>(voxels, kThreads));
  const int64_t batch = blockIdx.x / blocks;
  const int64_t voxel = int64_t(blockIdx.x % blocks) * kThreads + threadIdx.x;
  if (voxel >= voxels) return;
  const auto label = [&](int64_t channel) {
    return int64_t(static_cast<const T*>(labels.data)[offset(labels, batch, channel, voxel)]);
  };
  unsigned regions = 0;
  if (masks) {
    for (int r = 0; r < size.channels; ++r) regions |= unsigned(label(r) != 0) << r;
  } else {
    const int64_t value = label(0);
    for (int i = 0; i < known.count; ++i) {
      if (value == known.label[i]) regions |= known.regions[i];
    }
  }
  static_cast<uint8_t*>(bits.data)[offset(bits, batch, 0, voxel)] = uint8_t(regions);
}

// --- Magnitude, and edges of floats --------------------------------------------------------------

// A thread works on a few rows of one channel at one x, and marches along z.
constexpr int kRows = 4, kMostTogether = 16;

struct Column {
  int64_t batch, channel, z, y, x;  // of its first voxel
};

// All columns, in an order in which neighbours are neighbours in memory.
struct Columns {
  Size size;
  int64_t planes;    // of a column
  int64_t together;  // channels that lie side by side; the next column along x is as far away

  Columns(const Size& size, const Tensor& like, const Resources& resources)
      : size(size),
        planes(size.depth),
        together(like.voxel_stride == 1 ? 1 : equal_part(size.channels, kMostTogether)) {
    planes = march(size.depth, divide_up<int64_t>(count(), kThreads), resources);
  }

  __host__ __device__ int64_t count() const {
    return size.batch * divide_up(size.channels, together) * divide_up(size.depth, planes) *
           divide_up<int64_t>(size.height, kRows) * size.width * together;
  }

  // The channel may be one too many.
  __device__ Column operator[](int64_t i) const {
    const auto digit = [&](int64_t base) {
      const int64_t value = i % base;
      i /= base;
      return value;
    };
    Column c;
    c.channel = digit(together);
    c.x = digit(size.width);
    c.y = digit(divide_up<int64_t>(size.height, kRows)) * kRows;
    c.z = digit(divide_up(size.depth, planes)) * planes;
    c.channel += digit(divide_up(size.channels, together)) * together;
    c.batch = i;
    return c;
  }
};

// N rows at one x, from row y on, and their neighbours in any plane. Borders replicate.
template <class T, int N>
struct Window {
  const T* corner;
  int64_t plane_stride, depth;
  int64_t row[N + 2], at, after;  // from the corner, where the row and the voxel before lie

  __device__ __forceinline__ Window(const Tensor& t, const Size& size, const Column& c, int64_t y) {
    const int64_t first = clamp(y - 1, size.height), before = clamp(c.x - 1, size.width);
    corner = static_cast<const T*>(t.data) +
             offset(t, c.batch, c.channel, first * size.width + before);
    plane_stride = size.height * size.width * t.voxel_stride;
    depth = size.depth;
#pragma unroll
    for (int j = 0; j < N + 2; ++j) {
      row[j] = (clamp(y + j - 1, size.height) - first) * size.width * t.voxel_stride;
    }
    at = (c.x - before) * t.voxel_stride;
    after = (clamp(c.x + 1, size.width) - before) * t.voxel_stride;
  }
};

// What one plane tells of the gradient at the planes beside it, at N rows: smoothed along y and x,
// and the difference along the one, smoothed along the other.
template <class Acc, int N>
struct Plane {
  Acc smooth[N], difference_y[N], difference_x[N];

  template <class T>
  __device__ __forceinline__ Plane(const Window<T, N>& window, int64_t z) {
    const T* from = window.corner + clamp(z, window.depth) * window.plane_stride;
    Acc smooth_x[N + 2], along_x[N + 2];
#pragma unroll
    for (int j = 0; j < N + 2; ++j) {
      const T* row = from + window.row[j];
      const Acc before = widen(row[0]), at = widen(row[window.at]);
      const Acc after = widen(row[window.after]);
      smooth_x[j] = math::smooth(before, at, after);
      along_x[j] = math::difference(before, after);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
      smooth[j] = math::smooth(smooth_x[j], smooth_x[j + 1], smooth_x[j + 2]);
      difference_y[j] = math::difference(smooth_x[j], smooth_x[j + 2]);
      difference_x[j] = math::smooth(along_x[j], along_x[j + 1], along_x[j + 2]);
    }
  }
};

template <class Acc>
struct Gradient {
  Acc z, y, x;

  template <int N>
  __device__ __forceinline__ Gradient(const Plane<Acc, N>& before, const Plane<Acc, N>& at,
                                      const Plane<Acc, N>& after, int row)
      : z(math::difference(before.smooth[row], after.smooth[row])),
        y(math::smooth(before.difference_y[row], at.difference_y[row], after.difference_y[row])),
        x(math::smooth(before.difference_x[row], at.difference_x[row], after.difference_x[row])) {}

  __device__ __forceinline__ Acc magnitude() const { return math::sobel_magnitude(z, y, x); }
  // math::sobel_slope(magnitude()), with one instruction for the root and its reciprocal.
  __device__ __forceinline__ Acc slope() const {
    const Acc squared = z * z + y * y + x * x;
    return squared > Acc(0) ? Acc(1.0 / 16) * Acc(rsqrt(squared)) : Acc(0);
  }
};

// Writes the magnitude, or whether it is above the threshold, as a byte. With four blocks at a time
// a thread has the registers it needs.
template <class T, class Out>
__global__ void __launch_bounds__(kThreads, 4)
    magnitude_kernel(Tensor x, Tensor out, Columns columns, double threshold) {
  using Acc = Accumulate<T>;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= columns.count()) return;
  const Size& size = columns.size;
  const Column c = columns[i];
  if (c.channel >= size.channels) return;
  const Window<T, kRows> window(x, size, c, c.y);
  const int64_t row_stride = size.width * out.voxel_stride;
  Out* to = static_cast<Out*>(out.data) +
            offset(out, c.batch, c.channel, (c.z * size.height + c.y) * size.width + c.x);
  const int planes = int(min(columns.planes, size.depth - c.z));
  const int rows = int(min(int64_t(kRows), size.height - c.y));
  Plane<Acc, kRows> before(window, c.z - 1), at(window, c.z);
#pragma unroll 3  // in which `before`, `at` and `after` change places without a move
  for (int k = 0; k < planes; ++k) {
    const Plane<Acc, kRows> after(window, c.z + k + 1);
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      if (j >= rows) break;
      const Acc magnitude = Gradient<Acc>(before, at, after, j).magnitude();
      if constexpr (std::is_same_v<Out, T>) {
        to[j * row_stride] = narrow<T>(magnitude);
      } else {
        to[j * row_stride] = magnitude > Acc(threshold);
      }
    }
    to += size.height * row_stride;
    before = at;
    at = after;
  }
}

// The transposed stencil, applied to the loss's slopes q along (gz, gy, gx). Of s, which belongs to
// what the stencil smooths along an axis, and d, which belongs to its difference there, it makes
//   s[i - 1] + 2 s[i] + s[i + 1] + d[i - 1] - d[i + 1] = (s + d)[i - 1] + 2 s[i] + (s - d)[i + 1].
// Beyond a border it finds the border's s and -d: what is s + d there is s - d at the border.
//
// The outer threads of a block only lend to their neighbours along x, `together` threads away.
template <class T>
__global__ void __launch_bounds__(kThreads)
    magnitude_backward_kernel(Tensor grad, Tensor x, Tensor grad_x, Columns columns) {
  using Acc = Accumulate<T>;
  constexpr int N = kRows + 2;  // rows of q
  __shared__ Acc sums[2][kRows][kThreads], differences[2][kRows][kThreads];
  const Size& size = columns.size;
  const int thread = threadIdx.x, step = int(columns.together);
  const int64_t wanted = int64_t(blockIdx.x) * (kThreads - 2 * step) + thread - step;
  Column c = columns[clamp(wanted, columns.count())];
  const bool inner = thread >= step && thread < kThreads - step && wanted < columns.count() &&
                     c.channel < size.channels;
  c.channel = min(c.channel, size.channels - 1);

  const Window<T, N> window(x, size, c, c.y - 1);
  const int64_t grad_plane = size.height * size.width * grad.voxel_stride;
  const T* grad_from = static_cast<const T*>(grad.data) + offset(grad, c.batch, c.channel, c.x);
  int64_t grad_row[N];
#pragma unroll
  for (int j = 0; j < N; ++j) {
    grad_row[j] = clamp(c.y + j - 1, size.height) * size.width * grad.voxel_stride;
  }
  const int64_t row_stride = size.width * grad_x.voxel_stride;
  T* to = static_cast<T*>(grad_x.data) +
          offset(grad_x, c.batch, c.channel, (c.z * size.height + c.y) * size.width + c.x);
  const int height = int(min(int64_t(N), size.height - c.y));  // as far as it matters here
  const int rows = inner ? min(kRows, height) : 0;

  // Along z, d comes from qz and all else is s. What comes from qx is d along x, for which the sums
  // over the planes so far are kept, and s + d of the plane before.
  Acc sum_s[kRows] = {}, sum_d[kRows] = {}, before_yz[kRows] = {}, before_x[kRows] = {};
  Plane<Acc, N> before(window, c.z - 2), at(window, c.z - 1);
  for (int k = -1; k <= columns.planes; ++k) {
    const int64_t z = c.z + k;
    const Plane<Acc, N> after(window, z + 1);
    const T* grad_at = grad_from + clamp(z, size.depth) * grad_plane;
    Acc qz[N], qy[N], qx[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const Gradient<Acc> g(before, at, after, j);
      const Acc slope = widen(grad_at[grad_row[j]]) * g.slope();
      qz[j] = slope * g.z, qy[j] = slope * g.y, qx[j] = slope * g.x;
      if (j > 0 && j - 1 == height) qz[j] = qz[j - 1], qy[j] = -qy[j - 1], qx[j] = qx[j - 1];
    }
    if (c.y == 0) qz[0] = qz[1], qy[0] = -qy[1], qx[0] = qx[1];

    Acc s[kRows], sum[kRows], difference[kRows];
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const Acc from_z = math::smooth(qz[j], qz[j + 1], qz[j + 2]);
      const Acc from_y = math::difference(qy[j + 2], qy[j]);
      const Acc from_x = math::smooth(qx[j], qx[j + 1], qx[j + 2]);
      s[j] = sum_s[j] + (z == size.depth ? before_yz[j] : from_y - from_z);
      const Acc d = sum_d[j] + (z == size.depth ? before_x[j] : from_x);
      sum_s[j] = (z == 0 ? from_y - from_z : before_yz[j]) + Acc(2) * from_y;
      sum_d[j] = (z == 0 ? from_x : before_x[j]) + Acc(2) * from_x;
      before_yz[j] = from_y + from_z;
      before_x[j] = from_x;
      sums[k & 1][j][thread] = sum[j] = s[j] + d;
      differences[k & 1][j][thread] = difference[j] = s[j] - d;
    }
    __syncthreads();  // one will do, as the next plane is written to the other buffer
    if (k > 0 && z <= size.depth) {
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        if (j >= rows) break;
        const Acc left = c.x == 0 ? difference[j] : sums[k & 1][j][thread - step];
        const Acc right = c.x + 1 == size.width ? sum[j] : differences[k & 1][j][thread + step];
        to[j * row_stride] = narrow<T>(math::smooth(left, s[j], right));
      }
      to += size.height * row_stride;
    }
    before = at;
    at = after;
  }
}

// --- Launches ------------------------------------------------------------------------------------

// The smallest squared gradient of a mask whose magnitude is above the threshold.
int least_edge(float threshold) {
  int squared = 0;
  while (squared <= 3 * 16 * 16 && !(math::sobel_magnitude(float(squared)) > threshold)) ++squared;
  return squared;
}

bool can_hold(DType dtype, int64_t label) {
  switch (dtype) {
    case DType::u8: return label == uint8_t(label);
    case DType::i8: return label == int8_t(label);
    case DType::i16: return label == int16_t(label);
    case DType::i32: return label == int32_t(label);
    default: return true;
  }
}

// Adds the labels of one region, those that can occur; false, with nothing added, where there is no
// room for them.
bool add_region(RegionLabels& known, int region, const int64_t* labels, int64_t count,
                DType dtype) {
  RegionLabels more = known;
  for (const int64_t* label = labels; label != labels + count; ++label) {
    if (!can_hold(dtype, *label)) continue;
    const int i = int(std::find(more.label, more.label + more.count, *label) - more.label);
    if (i == RegionLabels::kMost) return false;
    if (i == more.count) more.label[more.count++] = *label;
    more.regions[i] |= uint8_t(1 << region);
  }
  known = more;
  return true;
}

bool is_byte(DType dtype) { return dtype == DType::u8 || dtype == DType::i8; }

template <class T>
Tensor channels_from(Tensor tensor, int64_t first) {
  tensor.data = static_cast<T*>(tensor.data) + first * tensor.channel_stride;
  return tensor;
}

template <class T>
void launch_region_bits(const Tensor& labels, const Tensor& bits, const Size& size, bool masks,
                        const RegionLabels& known, const Resources& resources, int64_t first) {
  launch("sobel_edges", resources, size.batch * divide_up<int64_t>(size.voxels(), kThreads),
         kThreads, 0, region_bits_kernel<T>, channels_from<T>(labels, first), bits, size, masks,
         known);
}

template <Layout kLayout>
void launch_label_edges(const LabelEdges& p, const Resources& resources) {
  launch("sobel_edges", resources, p.size.batch * p.parts * p.groups * p.size.channels, kThreads, 0,
         p.least == 1 ? label_edges_kernel<kLayout, true> : label_edges_kernel<kLayout, false>, p);
}

void launch_label_edges(LabelEdges p, const Resources& resources) {
  const Size& size = p.size;
  p.words = divide_up<int64_t>(size.width, kWord);
  p.columns = p.words * divide_up<int64_t>(size.depth, kPlanes);
  p.groups = unsigned(divide_up<int64_t>(p.columns, kBlockColumns));
  p.rows = march(size.height, size.batch * size.channels * p.groups, resources);
  p.parts = unsigned(divide_up(size.height, p.rows));
  const auto starts_word = [](const Tensor& tensor) {
    return reinterpret_cast<uintptr_t>(tensor.data) % kWord == 0;
  };
  if (p.labels.voxel_stride != 1 || p.edges.voxel_stride != 1) {
    launch_label_edges<Layout::strided>(p, resources);
  } else if (size.width % kWord == 0 && starts_word(p.labels) && starts_word(p.edges)) {
    launch_label_edges<Layout::words>(p, resources);
  } else {
    launch_label_edges<Layout::bytes>(p, resources);
  }
}

void label_edges(const SobelEdges& p) {
  const bool masks = p.region_counts == nullptr, bytes = is_byte(p.labels.dtype);
  const Tensor bits{p.resources.workspace, DType::u8, p.size.voxels(), 0, 1};
  Tensor labels = p.labels;
  if (!masks) labels.channel_stride = 0;  // all regions read the one channel
  const int64_t* values = p.region_values;
  LabelEdges part{};
  part.least = least_edge(float(p.threshold));
  part.size = p.size;
  for (int64_t first = 0; first < p.size.channels; first += part.size.channels) {
    RegionLabels known{};
    int regions = 0;
    for (; regions < kRegions && first + regions < p.size.channels; ++regions) {
      if (masks) continue;
      const int64_t count = p.region_counts[first + regions];
      if (!add_region(known, regions, values, count, labels.dtype)) break;
      values += count;
    }
    if (regions == 0) {
      throw std::runtime_error("egcnn: region " + std::to_string(first) + " has more than " +
                               std::to_string(RegionLabels::kMost) +
                               " labels, which is the most that the GPU takes for one");
    }
    part.size.channels = regions;
    part.edges = channels_from<uint8_t>(p.edges, first);
    part.labels = bytes ? channels_from<uint8_t>(labels, first) : bits;
    for (int label = 0; label < 256; ++label) {
      part.regions_of[label] = !bytes ? label : masks && label != 0 ? 0xFF : 0;
    }
    for (int i = 0; i < known.count && bytes; ++i) {
      part.regions_of[uint8_t(known.label[i])] = known.regions[i];
    }
    const auto make_bits = labels.dtype == DType::i16   ? launch_region_bits<int16_t>
                           : labels.dtype == DType::i32 ? launch_region_bits<int32_t>
                                                        : launch_region_bits<int64_t>;
    if (!bytes) make_bits(labels, bits, part.size, masks, known, p.resources, first);
    launch_label_edges(part, p.resources);
  }
}

template <class T, class Out>
void launch_magnitude(const char* name, const Tensor& x, const Tensor& out, const Size& size,
                      double threshold, const Resources& resources) {
  const Columns columns(size, x, resources);
  launch(name, resources, divide_up<int64_t>(columns.count(), kThreads), kThreads, 0,
         magnitude_kernel<T, Out>, x, out, columns, threshold);
}

}  // namespace

size_t sobel_edges_workspace(const SobelEdges& p) {
  const bool bytes_or_floats = is_byte(p.labels.dtype) || is_float(p.labels.dtype);
  return bytes_or_floats ? 0 : size_t(p.size.batch * p.size.voxels());
}

void sobel_edges_launch(const SobelEdges& p) {
  if (p.size.empty()) return;
  const DeviceGuard guard(p.resources.device);
  if (!is_float(p.labels.dtype)) return label_edges(p);
  with_float(p.labels.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch_magnitude<T, uint8_t>("sobel_edges", p.labels, p.edges, p.size, p.threshold,
                                 p.resources);
  });
}

size_t sobel_magnitude_workspace(const SobelMagnitude&) { return 0; }

void sobel_magnitude_launch(const SobelMagnitude& p) {
  if (p.size.empty()) return;
  const DeviceGuard guard(p.resources.device);
  with_float(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch_magnitude<T, T>("sobel_magnitude", p.x, p.out, p.size, 0, p.resources);
  });
}

size_t sobel_magnitude_backward_workspace(const SobelMagnitudeBackward&) { return 0; }

void sobel_magnitude_backward_launch(const SobelMagnitudeBackward& p) {
  if (p.size.empty()) return;
  const DeviceGuard guard(p.resources.device);
  const Columns columns(p.size, p.x, p.resources);
  with_float(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch("sobel_magnitude_backward", p.resources,
           divide_up<int64_t>(columns.count(), kThreads - 2 * columns.together), kThreads, 0,
           magnitude_backward_kernel<T>, p.grad, p.x, p.grad_x, columns);
  });
}

}  // namespace egcnn::cuda
