// What every operation needs of torch's stable ABI: checks that explain themselves, dtypes, the current CUDA stream.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "fusion3d/dtype.h"
#include "fusion3d/parallel.h"

namespace fusion3d {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Dtype dtype_of(const Tensor& tensor, const char* name);

// Raises unless the tensor is on the device of `like`, and has this number of dimensions and this dtype.
void check_kind(const Tensor& tensor, const char* name, int64_t dims, ScalarType dtype, const Tensor& like);

// And unless it is contiguous.
void check(const Tensor& tensor, const char* name, int64_t dims, ScalarType dtype, const Tensor& like);

// The threads of torch, for kernels of several passes.
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Range& range);

// Memory for a kernel to work in, on the device of `like`.
Tensor new_scratch(const Tensor& like, int64_t bytes);

// Raises unless a launch returned 0.
void check_launch(int error, const char* op);

// Of launches that ask for scratch memory: launch(null, &bytes) says how much, then launch(scratch, &bytes) does the work.
// Returns the scratch, for launches to follow.
template <typename Launch>
Tensor launch_with_scratch(const Tensor& like, const char* op, const Launch& launch) {
  size_t bytes = 0;
  check_launch(launch(nullptr, &bytes), op);
  const Tensor scratch = new_scratch(like, int64_t(bytes));
  check_launch(launch(scratch.mutable_data_ptr(), &bytes), op);
  return scratch;
}

// The stream that torch uses now on the tensor's device.
cudaStream_t current_stream(const Tensor& tensor);

}  // namespace fusion3d
