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

// Raises unless the tensor is contiguous, on the device of `like`, and has this number of dimensions and this dtype.
void check(const Tensor& tensor, const char* name, int64_t dims, ScalarType dtype, const Tensor& like);

// The threads of torch, for kernels of several passes.
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Range& range);

// Raises unless a launch returned 0.
void check_launch(int error, const char* op);

// The stream that torch uses now on the tensor's device.
cudaStream_t current_stream(const Tensor& tensor);

}  // namespace fusion3d
