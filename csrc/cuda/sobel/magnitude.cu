// The Sobel magnitude (section 2.1).
#include "magnitude.cuh"

namespace egcnn::cuda {

size_t sobel_magnitude_workspace(const SobelMagnitude&) { return 0; }

void sobel_magnitude_launch(const SobelMagnitude& p) {
  if (p.size.empty()) return;
  with_float(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch_magnitude<T, T>("sobel_magnitude", p.x, p.out, p.size, 0, p.resources);
  });
}

}  // namespace egcnn::cuda
