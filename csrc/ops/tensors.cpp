// What the operations share. Each registers itself, schema and kernels, in the file of its name.
#include "tensors.h"

#ifdef __SANITIZE_THREAD__
#include <algorithm>
#include <thread>
#include <vector>
#endif

namespace fusion3d {

Dtype dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half: return Dtype::kFloat16;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    case ScalarType::Float: return Dtype::kFloat32;
    case ScalarType::Double: return Dtype::kFloat64;
    default: break;
  }
  STD_TORCH_CHECK(false, "fusion3d: ", name, " must be float16, bfloat16, float32 or float64");
  return Dtype::kFloat32;
}

void check_kind(const Tensor& tensor, const char* name, int64_t dims, ScalarType dtype, const Tensor& like) {
  STD_TORCH_CHECK(tensor.dim() == dims, "fusion3d: ", name, " has ", tensor.dim(), " dimensions, expected ", dims);
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, "fusion3d: ", name, " has the wrong dtype");
  STD_TORCH_CHECK(
      tensor.is_cuda() == like.is_cuda() && tensor.get_device_index() == like.get_device_index(),
      "fusion3d: ", name, " must be on the device of the other tensors");
}

void check(const Tensor& tensor, const char* name, int64_t dims, ScalarType dtype, const Tensor& like) {
  check_kind(tensor, name, dims, dtype, like);
  STD_TORCH_CHECK(tensor.is_contiguous(), "fusion3d: ", name, " must be contiguous");
}

Tensor new_scratch(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
}

#ifndef __SANITIZE_THREAD__
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Range& range) {
  torch::stable::parallel_for(begin, end, grain, [&](int64_t b, int64_t e) { range(b, e); });
}
#else
// ThreadSanitizer sees these threads begin and end; of those of torch's OpenMP it would take every hand-over for a race.
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Range& range) {
  const int64_t most = std::max<int64_t>(1, (end - begin) / std::max<int64_t>(1, grain));
  const int64_t count = std::min<int64_t>(most, torch::stable::get_num_threads());
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = begin + (end - begin) * i / count, last = begin + (end - begin) * (i + 1) / count;
    if (first < last) threads.emplace_back([&range, first, last] { range(first, last); });
  }
  for (std::thread& thread : threads) thread.join();
}
#endif

}  // namespace fusion3d

#ifdef FUSION3D_WITH_CUDA
void fusion3d::check_launch(int error, const char* op) {
  STD_TORCH_CHECK(error == 0, "fusion3d: ", op, " did not start: ", cuda_error_name(error));
}

// Of libtorch_cuda: weak, so that one library loads with every build of torch.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

cudaStream_t fusion3d::current_stream(const Tensor& tensor) {
  STD_TORCH_CHECK(
      aoti_torch_get_current_cuda_stream != nullptr, "fusion3d: this build of torch has no CUDA streams");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}
#endif
