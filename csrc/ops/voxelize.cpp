// Voxelization between torch and the kernels: checks, output tensors, scratch, threads, stream.
#include "fusion3d/voxelize.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace fusion3d {
namespace {

typedef std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> Voxels;           // coords, counts, voxel, rank, num_voxels
typedef std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> Means;    // and before them the means

VoxelGrid grid_of(const std::vector<double>& size, const std::vector<double>& low, const std::vector<int64_t>& cells) {
  STD_TORCH_CHECK(
      size.size() == 3 && low.size() == 3 && cells.size() == 3, "fusion3d: a grid has three sizes, edges and counts");
  VoxelGrid grid;
  double product = 1;
  for (int i = 0; i < 3; ++i) {
    grid.size[i] = float(size[i]);
    grid.low[i] = float(low[i]);
    STD_TORCH_CHECK(grid.size[i] > 0 && cells[i] > 0 && cells[i] < 1 << 24, "fusion3d: the grid is out of range");
    grid.cells[i] = int32_t(cells[i]);
    product *= double(cells[i]);
  }
  STD_TORCH_CHECK(product < 4294967295.0, "fusion3d: the grid must have fewer than 2^32 - 1 cells");
  return grid;
}

Voxelize voxelize_args(
    const Tensor& points, const std::optional<Tensor>& batch_ptr, const VoxelGrid& grid, int64_t max_points,
    int64_t max_voxels, bool by_key, Voxels& out) {
  check(points, "points", 2, points.scalar_type(), points);
  STD_TORCH_CHECK(points.size(1) >= 3, "fusion3d: points must have at least x, y, z");
  STD_TORCH_CHECK(points.size(0) < INT32_MAX, "fusion3d: points must be fewer than 2^31 - 1");
  STD_TORCH_CHECK(max_points >= 1 && max_voxels >= 1, "fusion3d: max_points and max_voxels must be at least 1");
  if (batch_ptr) {
    check(*batch_ptr, "batch_ptr", 1, ScalarType::Long, points);
    STD_TORCH_CHECK(batch_ptr->numel() >= 1, "fusion3d: batch_ptr must have one entry more than there are samples");
  }
  const int64_t rows = points.size(0), samples = batch_ptr ? batch_ptr->numel() - 1 : 1;
  const int64_t most = std::min(max_voxels, rows);  // of a sample
  const int64_t capacity = samples && most > rows / samples ? rows : most * samples;
  const auto make = [&](std::vector<int64_t> size) { return torch::stable::new_empty(points, size, ScalarType::Int); };
  auto& [coords, counts, voxel, rank, num_voxels] = out;
  coords = make({capacity, 4});
  counts = make({capacity});
  voxel = make({rows});
  rank = make({rows});
  num_voxels = make({1});
  Voxelize args = {};
  args.dtype = dtype_of(points, "points");
  args.rows = rows;
  args.stride = points.size(1);
  args.points = points.const_data_ptr();
  args.samples = samples;
  args.batch_ptr = batch_ptr ? batch_ptr->const_data_ptr<int64_t>() : nullptr;
  args.grid = grid;
  args.max_points = max_points;
  args.max_voxels = max_voxels;
  args.by_key = by_key;
  args.capacity = capacity;
  args.coords = coords.mutable_data_ptr<int32_t>();
  args.counts = counts.mutable_data_ptr<int32_t>();
  args.voxel = voxel.mutable_data_ptr<int32_t>();
  args.rank = rank.mutable_data_ptr<int32_t>();
  args.num_voxels = num_voxels.mutable_data_ptr<int32_t>();
  return args;
}

Tensor add_features(const Tensor& features, const Tensor& points, Voxelize& args) {
  check(features, "features", 2, features.scalar_type(), points);
  STD_TORCH_CHECK(features.size(0) == args.rows, "fusion3d: features must have one row for each point");
  const Tensor means = torch::stable::new_empty(features, {args.capacity, features.size(1)});
  args.feature_dtype = dtype_of(features, "features");
  args.channels = features.size(1);
  args.features = args.rows ? features.const_data_ptr() : nullptr;
  args.means = means.mutable_data_ptr();
  return means;
}

void run_cpu(const Voxelize& args) {
  int64_t before = 0;
  for (int64_t b = 0; args.batch_ptr && b <= args.samples; ++b) {
    const int64_t bound = args.batch_ptr[b];
    STD_TORCH_CHECK(
        bound >= before && bound <= args.rows && (b > 0 || bound == 0) && (b < args.samples || bound == args.rows),
        "fusion3d: batch_ptr must ascend from 0 to the number of points");
    before = bound;
  }
  voxelize_cpu(args, parallel_for);
}

Voxels voxelize_cpu_op(
    const Tensor& points, std::optional<Tensor> batch_ptr, std::vector<double> size, std::vector<double> low,
    std::vector<int64_t> cells, int64_t max_points, int64_t max_voxels, bool by_key) {
  Voxels out;
  run_cpu(voxelize_args(points, batch_ptr, grid_of(size, low, cells), max_points, max_voxels, by_key, out));
  return out;
}

Means voxelize_mean_cpu_op(
    const Tensor& points, const Tensor& features, std::optional<Tensor> batch_ptr, std::vector<double> size,
    std::vector<double> low, std::vector<int64_t> cells, int64_t max_points, int64_t max_voxels, bool by_key) {
  Voxels out;
  Voxelize args = voxelize_args(points, batch_ptr, grid_of(size, low, cells), max_points, max_voxels, by_key, out);
  const Tensor means = add_features(features, points, args);
  run_cpu(args);
  return std::tuple_cat(std::make_tuple(means), out);
}

VoxelGather gather_args(
    const Tensor& values, const Tensor& voxel, const Tensor& rank, int64_t voxels, int64_t max_points, Tensor& out) {
  check(values, "values", 2, values.scalar_type(), values);
  check(voxel, "voxel", 1, ScalarType::Int, values);
  check(rank, "rank", 1, ScalarType::Int, values);
  STD_TORCH_CHECK(
      voxel.numel() == values.size(0) && rank.numel() == values.size(0),
      "fusion3d: values must have one row for each point");
  STD_TORCH_CHECK(voxels >= 0 && max_points >= 0, "fusion3d: voxels and max_points must not be negative");
  out = torch::stable::new_empty(values, {voxels, max_points, values.size(1)});
  return {
      dtype_of(values, "values"),
      values.size(0),
      values.size(1),
      voxels,
      max_points,
      values.const_data_ptr(),
      voxel.const_data_ptr<int32_t>(),
      rank.const_data_ptr<int32_t>(),
      out.mutable_data_ptr(),
  };
}

Tensor voxel_gather_cpu_op(
    const Tensor& values, const Tensor& voxel, const Tensor& rank, int64_t voxels, int64_t max_points) {
  Tensor out;
  const VoxelGather args = gather_args(values, voxel, rank, voxels, max_points, out);
  if (out.numel()) voxel_gather_cpu(args, parallel_for);
  return out;
}

#ifdef FUSION3D_WITH_CUDA
Tensor voxel_gather_cuda_op(
    const Tensor& values, const Tensor& voxel, const Tensor& rank, int64_t voxels, int64_t max_points) {
  const torch::stable::accelerator::DeviceGuard guard(values.get_device_index());
  Tensor out;
  const VoxelGather args = gather_args(values, voxel, rank, voxels, max_points, out);
  check_launch(voxel_gather_cuda(args, current_stream(values)), "voxel_gather");
  return out;
}

void run_cuda(const Voxelize& args, const Tensor& points) {
  const cudaStream_t stream = current_stream(points);
  launch_with_scratch(points, "voxelize", [&](void* scratch, size_t* bytes) {
    return voxelize_cuda(args, scratch, bytes, stream);
  });
}

Voxels voxelize_cuda_op(
    const Tensor& points, std::optional<Tensor> batch_ptr, std::vector<double> size, std::vector<double> low,
    std::vector<int64_t> cells, int64_t max_points, int64_t max_voxels, bool by_key) {
  const torch::stable::accelerator::DeviceGuard guard(points.get_device_index());
  Voxels out;
  run_cuda(voxelize_args(points, batch_ptr, grid_of(size, low, cells), max_points, max_voxels, by_key, out), points);
  return out;
}

Means voxelize_mean_cuda_op(
    const Tensor& points, const Tensor& features, std::optional<Tensor> batch_ptr, std::vector<double> size,
    std::vector<double> low, std::vector<int64_t> cells, int64_t max_points, int64_t max_voxels, bool by_key) {
  const torch::stable::accelerator::DeviceGuard guard(points.get_device_index());
  Voxels out;
  Voxelize args = voxelize_args(points, batch_ptr, grid_of(size, low, cells), max_points, max_voxels, by_key, out);
  const Tensor means = add_features(features, points, args);
  run_cuda(args, points);
  return std::tuple_cat(std::make_tuple(means), out);
}
#endif

}  // namespace
}  // namespace fusion3d

STABLE_TORCH_LIBRARY_FRAGMENT(fusion3d, m) {
  m.def(
      "voxelize(Tensor points, Tensor? batch_ptr, float[] size, float[] low, int[] cells, SymInt max_points, SymInt "
      "max_voxels, bool by_key) -> (Tensor coords, Tensor counts, Tensor voxel, Tensor rank, Tensor num_voxels)");
  m.def(
      "voxelize_mean(Tensor points, Tensor features, Tensor? batch_ptr, float[] size, float[] low, int[] cells, "
      "SymInt max_points, SymInt max_voxels, bool by_key) -> (Tensor means, Tensor coords, Tensor counts, Tensor voxel, "
      "Tensor rank, Tensor num_voxels)");
  m.def("voxel_gather(Tensor values, Tensor voxel, Tensor rank, SymInt voxels, SymInt max_points) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fusion3d, CPU, m) {
  m.impl("voxelize", TORCH_BOX(&fusion3d::voxelize_cpu_op));
  m.impl("voxelize_mean", TORCH_BOX(&fusion3d::voxelize_mean_cpu_op));
  m.impl("voxel_gather", TORCH_BOX(&fusion3d::voxel_gather_cpu_op));
}

#ifdef FUSION3D_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusion3d, CUDA, m) {
  m.impl("voxelize", TORCH_BOX(&fusion3d::voxelize_cuda_op));
  m.impl("voxelize_mean", TORCH_BOX(&fusion3d::voxelize_mean_cuda_op));
  m.impl("voxel_gather", TORCH_BOX(&fusion3d::voxel_gather_cuda_op));
}
#endif
