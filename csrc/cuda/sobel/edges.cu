// Sobel edge targets (section 2.1): masks and labels as bits, floats by their magnitude.
#include <string>

#include "labels.cuh"
#include "magnitude.cuh"
#include "regions.cuh"

namespace egcnn::cuda {
namespace {

bool is_byte(DType dtype) { return dtype == DType::u8 || dtype == DType::i8; }

template <class T>
Tensor channels_from(Tensor tensor, int64_t first) {
  tensor.data = static_cast<T*>(tensor.data) + first * tensor.channel_stride;
  return tensor;
}

template <class T>
void launch_region_bits(const Tensor& labels, const Tensor& bits, const Size& size, bool masks,
                        const RegionLabels& known, const Resources& resources, int64_t first) {
  launch("sobel_edges", resources, size.batch * divide_up(size.voxels(), kThreads), kThreads, 0,
         region_bits_kernel<T>, channels_from<T>(labels, first), bits, size, masks, known);
}

template <Layout kLayout>
void launch_label_edges(LabelEdges p, const Resources& resources) {
  const auto kernel =
      p.least == 1 ? label_edges_kernel<kLayout, true> : label_edges_kernel<kLayout, false>;
  p.part_rows = march_length(p.size.height, p.size.batch * p.size.channels * p.groups,
                             resident_blocks(resources.device, kernel, kThreads));
  p.parts = unsigned(divide_up(p.size.height, p.part_rows));
  launch("sobel_edges", resources, p.size.batch * p.parts * p.groups * p.size.channels, kThreads, 0,
         kernel, p);
}

void launch_label_edges(LabelEdges p, const Resources& resources) {
  const Size& size = p.size;
  p.row_words = divide_up(size.width, kWord);
  p.columns = p.row_words * divide_up(size.depth, kPlanes);
  p.groups = unsigned(divide_up(p.columns, kBlockColumns));
  const auto aligned = [](const Tensor& tensor) {
    return reinterpret_cast<uintptr_t>(tensor.data) % kWord == 0;
  };
  if (p.labels.voxel_stride != 1 || p.edges.voxel_stride != 1) {
    launch_label_edges<Layout::strided>(p, resources);
  } else if (size.width % kWord == 0 && aligned(p.labels) && aligned(p.edges)) {
    launch_label_edges<Layout::words>(p, resources);
  } else {
    launch_label_edges<Layout::bytes>(p, resources);
  }
}

// Collects the labels of the regions from `first` on, as many as fit in one launch, and advances
// `values` past them. Returns the number of regions.
int collect_regions(const SobelEdges& p, int64_t first, const int64_t*& values,
                    RegionLabels& known) {
  int regions = 0;
  for (; regions < kRegions && first + regions < p.size.channels; ++regions) {
    if (p.region_counts == nullptr) continue;
    const int64_t count = p.region_counts[first + regions];
    if (!add_region(known, regions, values, count, p.labels.dtype)) break;
    values += count;
  }
  if (regions == 0) {
    throw std::runtime_error("egcnn: region " + std::to_string(first) + " has more than " +
                             std::to_string(RegionLabels::kMost) +
                             " labels, the most that a region may have on the GPU");
  }
  return regions;
}

void label_edges(const SobelEdges& p) {
  const bool masks = p.region_counts == nullptr, bytes = is_byte(p.labels.dtype);
  const Tensor bits{p.resources.workspace, DType::u8, p.size.voxels(), 0, 1};
  Tensor labels = p.labels;
  if (!masks) labels.channel_stride = 0;  // all regions read the same channel
  const int64_t* values = p.region_values;
  LabelEdges part{};
  part.least = math::sobel_largest_below(float(p.threshold)) + 1;
  part.size = p.size;
  for (int64_t first = 0; first < p.size.channels; first += part.size.channels) {
    RegionLabels known{};
    part.size.channels = collect_regions(p, first, values, known);
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

}  // namespace

size_t sobel_edges_workspace(const SobelEdges& p) {
  const bool bytes_or_floats = is_byte(p.labels.dtype) || is_float(p.labels.dtype);
  return bytes_or_floats ? 0 : size_t(p.size.batch * p.size.voxels());
}

void sobel_edges_launch(const SobelEdges& p) {
  if (p.size.empty()) return;
  if (!is_float(p.labels.dtype)) return label_edges(p);
  with_float(p.labels.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch_magnitude<T, uint8_t>("sobel_edges", p.labels, p.edges, p.size, p.threshold,
                                 p.resources);
  });
}

}  // namespace egcnn::cuda
