// The gradient of weights on Hopper in bf16, added to fp32 values that are in part copied ahead.
#include "hopper_wgrad.cuh"

HOPPER_WGRAD_KERNEL(ahead_bf16_192, __nv_bfloat16, 192, true, false, true)
HOPPER_WGRAD_KERNEL(ahead_gathered_bf16_192, __nv_bfloat16, 192, true, true, true)
