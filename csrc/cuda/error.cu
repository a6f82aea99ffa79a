// Names of CUDA errors, for the glue, which includes no CUDA header.
#include <cuda_runtime.h>

#include "fusion3d/dtype.h"

namespace fusion3d {

const char* cuda_error_name(int error) { return cudaGetErrorName(static_cast<cudaError_t>(error)); }

}  // namespace fusion3d
