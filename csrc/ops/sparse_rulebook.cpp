// Rulebooks of sparse convolutions between torch and the kernels: checks, output tensors, threads, stream.
#include "fusion3d/sparse_rulebook.h"

#include <limits>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace fusion3d {
namespace {

typedef std::vector<int64_t> Ints;

constexpr int64_t kLimit = 1 << 24;                    // of a size, stride or padding: sums of them stay in 32 bits
constexpr int64_t kCells = int64_t(1) << 40;           // cells of a grid: one bit for 64 of them is kept
constexpr int64_t kRows = std::numeric_limits<int32_t>::max();

void fill(const Ints& values, const char* name, int64_t low, int32_t* out) {
  STD_TORCH_CHECK(values.size() == 3, "fusion3d: ", name, " has ", values.size(), " numbers, expected 3");
  for (int axis = 0; axis < 3; ++axis) {
    STD_TORCH_CHECK(
        values[axis] >= low && values[axis] < kLimit, "fusion3d: ", name, " is ", values[axis], ", expected [", low,
        ", ", kLimit, ")");
    out[axis] = int32_t(values[axis]);
  }
}

SparseRulebook read(
    const Tensor& coords, int64_t batch_size, const Ints& shape, const Ints& kernel, const Ints& stride,
    const Ints& padding, const Ints& dilation) {
  check(coords, "coords", 2, ScalarType::Int, coords);
  STD_TORCH_CHECK(coords.size(1) == 4, "fusion3d: coords must be [N, 4]");
  STD_TORCH_CHECK(coords.size(0) < kRows, "fusion3d: coords must have less than 2^31 rows");
  STD_TORCH_CHECK(batch_size >= 0 && batch_size < kLimit, "fusion3d: batch_size is ", batch_size);
  SparseRulebook args = {};
  SparseGeometry& g = args.geometry;
  g.batch = int32_t(batch_size);
  fill(shape, "shape", 0, g.in_shape);
  fill(kernel, "kernel", 1, g.kernel);
  fill(stride, "stride", 1, g.stride);
  fill(padding, "padding", 0, g.padding);
  fill(dilation, "dilation", 1, g.dilation);
  double cells = double(batch_size), outputs = cells, taps = 1;
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t reach = int64_t(g.dilation[axis]) * (g.kernel[axis] - 1) + 1;
    const int64_t room = int64_t(g.in_shape[axis]) + 2 * int64_t(g.padding[axis]) - reach;
    STD_TORCH_CHECK(reach < kLimit, "fusion3d: the kernel reaches over ", reach, " cells, expected less than ", kLimit);
    g.out_shape[axis] = room < 0 ? 0 : int32_t(room / g.stride[axis] + 1);
    cells *= g.in_shape[axis];
    outputs *= g.out_shape[axis];
    taps *= g.kernel[axis];
  }
  STD_TORCH_CHECK(
      cells < double(kCells) && outputs < double(kCells), "fusion3d: the grid has more than 2^40 cells");
  STD_TORCH_CHECK(taps < double(kLimit), "fusion3d: the kernel has more than 2^24 taps");
  args.num_in = coords.size(0);
  args.coords = coords.const_data_ptr<int32_t>();
  return args;
}

int64_t num_taps(const SparseRulebook& args) {
  return int64_t(args.geometry.kernel[0]) * args.geometry.kernel[1] * args.geometry.kernel[2];
}

SparseRulebook read_submanifold(
    const Tensor& coords, int64_t batch_size, const Ints& shape, const Ints& kernel, const Ints& dilation,
    Tensor& table) {
  Ints padding(kernel.size());
  for (size_t axis = 0; axis < kernel.size() && axis < dilation.size(); ++axis) {
    STD_TORCH_CHECK(kernel[axis] % 2 == 1, "fusion3d: a submanifold convolution has a centre: kernel must be odd");
    padding[axis] = kernel[axis] / 2 * dilation[axis];
  }
  SparseRulebook args = read(coords, batch_size, shape, kernel, {1, 1, 1}, padding, dilation);
  args.num_out = args.num_in;
  table = torch::stable::new_empty(coords, {num_taps(args), args.num_in});
  args.table = table.mutable_data_ptr<int32_t>();
  return args;
}

void make_tables(const Tensor& coords, SparseRulebook& args, Tensor& out_coords, Tensor& table, Tensor& transposed) {
  STD_TORCH_CHECK(args.num_out < kRows, "fusion3d: the convolution has more than 2^31 output rows");
  out_coords = torch::stable::new_empty(coords, {args.num_out, 4});
  table = torch::stable::new_empty(coords, {num_taps(args), args.num_out});
  transposed = torch::stable::new_empty(coords, {num_taps(args), args.num_in});
  args.out_coords = out_coords.mutable_data_ptr<int32_t>();
  args.table = table.mutable_data_ptr<int32_t>();
  args.transposed = transposed.mutable_data_ptr<int32_t>();
}

void check_rows(const SparseRulebook& args) {
  const int64_t row = sparse_outside_cpu(args);
  if (row < 0) return;
  const int32_t *at = args.coords + 4 * row, *shape = args.geometry.in_shape;
  STD_TORCH_CHECK(
      false, "coords: row ", row, " is (", at[0], ", ", at[1], ", ", at[2], ", ", at[3], "); expected each in [0, ",
      args.geometry.batch, "), [0, ", shape[0], "), [0, ", shape[1], "), [0, ", shape[2], ")");
}

constexpr char kTwice[] = "coords: two rows have the same batch, z, y and x; expected each voxel once";

Tensor sparse_submanifold_cpu_op(
    const Tensor& coords, int64_t batch_size, Ints shape, Ints kernel, Ints dilation) {
  Tensor table;
  const SparseRulebook args = read_submanifold(coords, batch_size, shape, kernel, dilation, table);
  check_rows(args);
  STD_TORCH_CHECK(sparse_submanifold_cpu(args, parallel_for), kTwice);
  return table;
}

std::tuple<Tensor, Tensor, Tensor> sparse_strided_cpu_op(
    const Tensor& coords, int64_t batch_size, Ints shape, Ints kernel, Ints stride, Ints padding, Ints dilation) {
  SparseRulebook args = read(coords, batch_size, shape, kernel, stride, padding, dilation);
  check_rows(args);
  VoxelIndexStorage index;
  STD_TORCH_CHECK(sparse_outputs_cpu(args, index, parallel_for), kTwice);
  args.num_out = index.num_voxels;
  Tensor out_coords, table, transposed;
  make_tables(coords, args, out_coords, table, transposed);
  sparse_strided_cpu(args, index, parallel_for);
  return {out_coords, table, transposed};
}

#ifdef FUSION3D_WITH_CUDA
Tensor make_scratch(const Tensor& coords, const SparseRulebook& args, bool submanifold) {
  // Ranks are counted in 32 bits, and how many voxels there will be is not known before.
  STD_TORCH_CHECK(
      args.num_in <= kRows / most_outputs(args.geometry), "fusion3d: the convolution may have 2^31 output rows or more");
  return new_scratch(coords, sparse_scratch_cuda(args, submanifold));
}

Tensor sparse_submanifold_cuda_op(
    const Tensor& coords, int64_t batch_size, Ints shape, Ints kernel, Ints dilation) {
  const torch::stable::accelerator::DeviceGuard guard(coords.get_device_index());
  Tensor table;
  const SparseRulebook args = read_submanifold(coords, batch_size, shape, kernel, dilation, table);
  Tensor scratch = make_scratch(coords, args, true);
  check_launch(
      sparse_submanifold_cuda(args, scratch.mutable_data_ptr(), current_stream(coords)), "sparse_submanifold");
  return table;
}

std::tuple<Tensor, Tensor, Tensor> sparse_strided_cuda_op(
    const Tensor& coords, int64_t batch_size, Ints shape, Ints kernel, Ints stride, Ints padding, Ints dilation) {
  const torch::stable::accelerator::DeviceGuard guard(coords.get_device_index());
  SparseRulebook args = read(coords, batch_size, shape, kernel, stride, padding, dilation);
  Tensor scratch = make_scratch(coords, args, false), out_coords, table, transposed;
  const cudaStream_t stream = current_stream(coords);
  check_launch(sparse_outputs_cuda(args, scratch.mutable_data_ptr(), &args.num_out, stream), "sparse_strided");
  make_tables(coords, args, out_coords, table, transposed);
  check_launch(sparse_strided_cuda(args, scratch.mutable_data_ptr(), stream), "sparse_strided");
  return {out_coords, table, transposed};
}
#endif

}  // namespace
}  // namespace fusion3d

STABLE_TORCH_LIBRARY_FRAGMENT(fusion3d, m) {
  m.def("sparse_submanifold(Tensor coords, SymInt batch_size, int[] shape, int[] kernel, int[] dilation) -> Tensor");
  m.def(
      "sparse_strided(Tensor coords, SymInt batch_size, int[] shape, int[] kernel, int[] stride, int[] padding, "
      "int[] dilation) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fusion3d, CPU, m) {
  m.impl("sparse_submanifold", TORCH_BOX(&fusion3d::sparse_submanifold_cpu_op));
  m.impl("sparse_strided", TORCH_BOX(&fusion3d::sparse_strided_cpu_op));
}

#ifdef FUSION3D_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusion3d, CUDA, m) {
  m.impl("sparse_submanifold", TORCH_BOX(&fusion3d::sparse_submanifold_cuda_op));
  m.impl("sparse_strided", TORCH_BOX(&fusion3d::sparse_strided_cuda_op));
}
#endif
