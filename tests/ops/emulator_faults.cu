// Kernels that err on purpose, and some that do not, for test_emulator.py: `program KIND` runs one of them.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>
#include <mma.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "tensor_cores.cuh"

constexpr int kSize = 96;
constexpr unsigned kAll = 0xffffffffu;

template <bool kWaits>
__global__ void turn_around(const int* in, int* out) {
  __shared__ int held[kSize];
  held[threadIdx.x] = in[threadIdx.x];
  if (kWaits) __syncthreads();
  out[threadIdx.x] = held[kSize - 1 - threadIdx.x];
}

// Shuffles give values to other lanes, but no promise of what those have written.
template <bool kSyncs>
__global__ void pass_on(int* out) {
  __shared__ int held[32];
  held[threadIdx.x] = threadIdx.x;
  const int next = __shfl_sync(kAll, int(threadIdx.x + 1) % 32, threadIdx.x);
  if (kSyncs) __syncwarp();
  out[threadIdx.x] = held[next];
}

__global__ void unwritten(float* out) {
  __shared__ float held[kSize];
  out[threadIdx.x] = held[threadIdx.x];
}

__global__ void past_the_end(int* out, int past_shared, int past_global) {
  __shared__ int held[kSize], other[kSize];
  int* at = held + threadIdx.x + past_shared;
  *at = other[threadIdx.x] = 1;
  out[threadIdx.x + past_global] = *at;
}

__global__ void apart(int part) {
  if (threadIdx.x < part) __syncthreads();
}

__global__ void elsewhere(int part) {
  if (threadIdx.x < part)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void leave_early(int* out) {
  if (threadIdx.x % 3 == 0) return;
  __syncthreads();
  out[threadIdx.x] = __popc(__ballot_sync(kAll, 1));
}

__global__ void ask(int* out, unsigned mask, int source) {
  if (threadIdx.x < 8) out[threadIdx.x] = __shfl_sync(mask, int(threadIdx.x), source);
  else __syncthreads();
}

__global__ void __launch_bounds__(64) bounded() {}

__global__ void dynamic(int* out) {
  extern __shared__ __align__(16) int held[];
  held[threadIdx.x] = 7;
  out[threadIdx.x] = held[threadIdx.x];
}

__global__ void count_blocks(int* order, int* count) {
  if (threadIdx.x == 0) order[blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z)] = atomicAdd(count, 1);
}

__global__ void fetch(const int* in, int* out, bool waits) {
  __shared__ int held[kSize];
  __pipeline_memcpy_async(held + threadIdx.x, in + threadIdx.x, 4);
  __pipeline_commit();
  if (waits) __pipeline_wait_prior(0);
  out[threadIdx.x] = held[threadIdx.x];
}

// 16 x 16 times 16 x 16, of whole numbers.
__global__ void multiply(const __half* a, const __half* b, float* wide, float* narrow) {
  namespace wmma = nvcuda::wmma;
  __shared__ __align__(32) __half left[256], right[256];
  for (int i = threadIdx.x; i < 256; i += 32) left[i] = a[i], right[i] = b[i];
  __syncthreads();
  wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> x;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::col_major> y;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> z;
  wmma::fill_fragment(z, 0.0f);
  wmma::load_matrix_sync(x, left, 16);
  wmma::load_matrix_sync(y, right, 16);
  wmma::mma_sync(z, x, y, z);
  wmma::store_matrix_sync(wide, z, 16, wmma::mem_row_major);
  const int group = threadIdx.x / 4, pair = threadIdx.x % 4 * 2;
  const auto two = [](const __half* at) {
    unsigned bits;
    memcpy(&bits, at, 4);
    return bits;
  };
  const __half* row = left + group * 16 + pair;
  const unsigned registers[4] = {two(row), two(row + 8 * 16), two(row + 8), two(row + 8 * 16 + 8)};
  for (int half = 0; half < 2; ++half) {
    const __half* column = right + (half * 8 + group) * 16 + pair;
    float sum[4] = {};
    fusion3d::mma(sum, registers, two(column), two(column + 8), __half());
    for (int i = 0; i < 4; ++i) narrow[(group + i / 2 * 8) * 16 + half * 8 + pair + i % 2] = sum[i];
  }
}

const char* name(int error) { return cudaGetErrorName(static_cast<cudaError_t>(error)); }

void multiply_matrices() {
  __half a[256], b[256];
  alignas(32) float wide[256];
  float narrow[256];
  int wrong = 0;
  for (int i = 0; i < 256; ++i) a[i] = __float2half_rn(i * 7 % 13 - 6), b[i] = __float2half_rn(i * 5 % 11 - 5);
  multiply<<<1, 32>>>(a, b, wide, narrow);
  for (int i = 0; i < 256; ++i) {
    float sum = 0;
    for (int k = 0; k < 16; ++k) sum += __half2float(a[i / 16 * 16 + k]) * __half2float(b[i % 16 * 16 + k]);
    wrong += wide[i] != sum || narrow[i] != sum;
  }
  std::printf("%d wrong\n", wrong);
}

// All 2^16 numbers of 16 bits as floats; then floats, and what they are in 16 bits.
void convert() {
  for (unsigned i = 0; i < 1 << 16; ++i) {
    const float both[2] = {
        __half2float(__half{uint16_t(i)}), __bfloat162float(__nv_bfloat16{uint16_t(i)})};
    std::fwrite(both, 4, 2, stdout);
  }
  for (unsigned i = 0; i < 1 << 16; ++i) {
    const unsigned bits = i % 2 ? i * 65537u * 2654435761u : i << 16 | (i / 2 % 4 << 12);
    float value;
    memcpy(&value, &bits, 4);
    const uint16_t both[2] = {__float2half_rn(value).bits, __float2bfloat16_rn(value).bits};
    std::fwrite(&value, 4, 1, stdout);
    std::fwrite(both, 2, 2, stdout);
  }
}

void limits(int* out) {
  bounded<<<dim3(1, 65536), 1>>>();
  std::printf("%s ", name(cudaGetLastError()));
  bounded<<<0u, 1>>>();
  std::printf("%s ", name(cudaGetLastError()));
  bounded<<<1, 1025>>>();
  std::printf("%s ", name(cudaGetLastError()));
  dynamic<<<1, 1, 49153>>>(out);
  std::printf("%s ", name(cudaGetLastError()));
  std::printf("%s ", name(cudaFuncSetAttribute(dynamic, cudaFuncAttributeMaxDynamicSharedMemorySize, 232449)));
  cudaFuncSetAttribute(dynamic, cudaFuncAttributeMaxDynamicSharedMemorySize, 49153);
  dynamic<<<1, 1, 49153>>>(out);
  std::printf("%s %d\n", name(cudaGetLastError()), out[0]);
}

int main(int, char** arguments) {
  const char* kind = arguments[1];
  const auto is = [&](const char* other) { return std::strcmp(kind, other) == 0; };
  const std::unique_ptr<int[]> in(new int[kSize]), out(new int[kSize]());
  const std::unique_ptr<float[]> real(new float[kSize]);
  for (int i = 0; i < kSize; ++i) in[i] = i;
  if (is("waits")) turn_around<true><<<1, kSize>>>(in.get(), out.get());
  if (is("races")) turn_around<false><<<1, kSize>>>(in.get(), out.get());
  if (is("shuffles for order")) pass_on<false><<<1, 32>>>(out.get());
  if (is("syncs for order")) pass_on<true><<<1, 32>>>(out.get());
  if (is("past shared")) past_the_end<<<1, kSize>>>(out.get(), 1, 0);
  if (is("past global")) past_the_end<<<1, kSize>>>(out.get(), 0, 1);
  if (is("apart")) apart<<<1, kSize>>>(33);
  if (is("elsewhere")) elsewhere<<<1, kSize>>>(33);
  if (is("leaves")) leave_early<<<1, kSize>>>(out.get());
  if (is("asks all")) ask<<<1, kSize>>>(out.get(), kAll, 0);
  if (is("asks some")) ask<<<1, 8>>>(out.get(), 0xff, 7);
  if (is("asks absent")) ask<<<1, 8>>>(out.get(), 0xff, 9);
  if (is("asks for others")) ask<<<1, 8>>>(out.get(), 0x7f, 0);
  if (is("bounds")) bounded<<<1, 65>>>();
  if (is("fetches")) fetch<<<1, kSize>>>(in.get(), out.get(), true);
  if (is("hurries")) fetch<<<1, kSize>>>(in.get(), out.get(), false);
  if (is("blocks")) {
    int count = 0;
    count_blocks<<<dim3(4, 3, 8), 33>>>(out.get(), &count);
  }
  if (is("unwritten")) {
    unwritten<<<1, kSize>>>(real.get());
    for (int i = 0; i < kSize; ++i) out[i] = real[i] != real[i];
  }
  if (is("limits")) return limits(out.get()), 0;
  if (is("multiplies")) return multiply_matrices(), 0;
  if (is("converts")) return convert(), 0;
  for (int i = 0; i < kSize; ++i) std::printf("%d ", out[i]);
}
