// What the glue asks torch about devices: there is one, with one stream. The library's own answers come before torch's.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

extern "C" {

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}
}
