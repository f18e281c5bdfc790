// The gradient of weights on Hopper in fp16, added to fp32 values that are in part copied ahead.
#include "hopper_wgrad.cuh"

HOPPER_WGRAD_KERNEL(ahead_fp16_192, __half, 192, true, false, true)
HOPPER_WGRAD_KERNEL(ahead_gathered_fp16_192, __half, 192, true, true, true)
