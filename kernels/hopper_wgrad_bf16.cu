// The gradient of weights on Hopper in bf16.
#include "hopper_wgrad.cuh"

HOPPER_WGRAD_KERNEL(bf16_128, __nv_bfloat16, 128, true, false, false)
HOPPER_WGRAD_KERNEL(bf16_192, __nv_bfloat16, 192, true, false, false)
HOPPER_WGRAD_KERNEL(bf16_256, __nv_bfloat16, 256, false, false, false)
HOPPER_WGRAD_KERNEL(gathered_bf16_128, __nv_bfloat16, 128, true, true, false)
HOPPER_WGRAD_KERNEL(gathered_bf16_192, __nv_bfloat16, 192, true, true, false)
HOPPER_WGRAD_KERNEL(gathered_bf16_256, __nv_bfloat16, 256, false, true, false)
