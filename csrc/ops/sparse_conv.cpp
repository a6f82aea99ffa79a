// Sparse convolution between torch and the kernels: checks, output tensors, threads, stream.
#include "fusion3d/sparse_conv.h"

#include <optional>

#include "tensors.h"

namespace fusion3d {
namespace {

// With `adjoint` the convolution's transpose: from rows like its outputs to rows like its inputs.
SparseConv forward_args(
    const Tensor& features, const Tensor& weight, const Tensor& table, const std::optional<Tensor>& transposed,
    bool adjoint, Tensor& out) {
  const ScalarType dtype = features.scalar_type();
  check(features, "features", 2, dtype, features);
  check(weight, "weight", 3, dtype, features);
  check(table, "table", 2, ScalarType::Int, features);
  if (transposed) {
    check(*transposed, "transposed", 2, ScalarType::Int, features);
    STD_TORCH_CHECK(transposed->size(0) == table.size(0), "fusion3d: the tables must have as many taps");
  }
  // What is read, and what is written: outputs and inputs of the convolution, or the other way round.
  const Tensor& reads = adjoint && transposed ? *transposed : table;
  const Tensor& read = adjoint || !transposed ? table : *transposed;
  STD_TORCH_CHECK(weight.size(1) == table.size(0), "fusion3d: weight must be [out, taps, in] with the taps of table");
  STD_TORCH_CHECK(
      features.size(1) == weight.size(adjoint ? 0 : 2), "fusion3d: features must have the channels of weight");
  STD_TORCH_CHECK(features.size(0) == read.size(1), "fusion3d: features must have a row for each that the table knows");
  const int64_t num_out = reads.size(1), out_channels = weight.size(adjoint ? 2 : 0);
  out = torch::stable::new_empty(features, {num_out, out_channels});
  return {
      dtype_of(features, "features"),
      num_out,
      table.size(0),
      features.size(1),
      out_channels,
      adjoint,
      adjoint && !transposed,
      features.const_data_ptr(),
      weight.const_data_ptr(),
      reads.const_data_ptr<int32_t>(),
      out.mutable_data_ptr(),
  };
}

SparseWeightGrad weight_args(const Tensor& grad, const Tensor& features, const Tensor& table, Tensor& out) {
  const ScalarType dtype = features.scalar_type();
  check(features, "features", 2, dtype, features);
  check(grad, "grad", 2, dtype, features);
  check(table, "table", 2, ScalarType::Int, features);
  STD_TORCH_CHECK(grad.size(0) == table.size(1), "fusion3d: grad must have a row for each column of table");
  out = torch::stable::new_empty(features, {grad.size(1), table.size(0), features.size(1)});
  return {
      dtype_of(features, "features"),
      grad.size(0),
      table.size(0),
      features.size(1),
      grad.size(1),
      grad.const_data_ptr(),
      features.const_data_ptr(),
      table.const_data_ptr<int32_t>(),
      out.mutable_data_ptr(),
  };
}

Tensor sparse_conv_cpu_op(
    const Tensor& features, const Tensor& weight, const Tensor& table, std::optional<Tensor> transposed, bool adjoint) {
  Tensor out;
  sparse_conv_cpu(forward_args(features, weight, table, transposed, adjoint, out), parallel_for);
  return out;
}

Tensor sparse_weight_grad_cpu_op(const Tensor& grad, const Tensor& features, const Tensor& table) {
  Tensor out;
  sparse_weight_grad_cpu(weight_args(grad, features, table, out), parallel_for);
  return out;
}

#ifdef FUSION3D_WITH_CUDA
Tensor sparse_conv_cuda_op(
    const Tensor& features, const Tensor& weight, const Tensor& table, std::optional<Tensor> transposed, bool adjoint) {
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  Tensor out;
  const SparseConv args = forward_args(features, weight, table, transposed, adjoint, out);
  check_launch(sparse_conv_cuda(args, current_stream(features)), "sparse_conv");
  return out;
}

Tensor sparse_weight_grad_cuda_op(const Tensor& grad, const Tensor& features, const Tensor& table) {
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  Tensor out;
  const SparseWeightGrad args = weight_args(grad, features, table, out);
  Tensor scratch = new_scratch(features, sparse_weight_grad_scratch_cuda(args));
  check_launch(
      sparse_weight_grad_cuda(args, scratch.mutable_data_ptr(), current_stream(features)), "sparse_weight_grad");
  return out;
}
#endif

}  // namespace
}  // namespace fusion3d

STABLE_TORCH_LIBRARY_FRAGMENT(fusion3d, m) {
  m.def(
      "sparse_conv(Tensor features, Tensor weight, Tensor table, Tensor? transposed, bool adjoint=False) -> Tensor");
  m.def("sparse_weight_grad(Tensor grad, Tensor features, Tensor table) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fusion3d, CPU, m) {
  m.impl("sparse_conv", TORCH_BOX(&fusion3d::sparse_conv_cpu_op));
  m.impl("sparse_weight_grad", TORCH_BOX(&fusion3d::sparse_weight_grad_cpu_op));
}

#ifdef FUSION3D_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusion3d, CUDA, m) {
  m.impl("sparse_conv", TORCH_BOX(&fusion3d::sparse_conv_cuda_op));
  m.impl("sparse_weight_grad", TORCH_BOX(&fusion3d::sparse_weight_grad_cuda_op));
}
#endif
