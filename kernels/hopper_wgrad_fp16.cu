// The gradient of weights on Hopper in fp16.
#include "hopper_wgrad.cuh"

HOPPER_WGRAD_KERNEL(fp16_128, __half, 128, true, false, false)
HOPPER_WGRAD_KERNEL(fp16_192, __half, 192, true, false, false)
HOPPER_WGRAD_KERNEL(fp16_256, __half, 256, false, false, false)
HOPPER_WGRAD_KERNEL(gathered_fp16_128, __half, 128, true, true, false)
HOPPER_WGRAD_KERNEL(gathered_fp16_192, __half, 192, true, true, false)
HOPPER_WGRAD_KERNEL(gathered_fp16_256, __half, 256, false, true, false)
