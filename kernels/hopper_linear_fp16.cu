// Grouped GEMM on Hopper in fp16: forward and dgrad.
#include "hopper_linear.cuh"

HOPPER_LINEAR_KERNEL(out_in_fp16_128, __half, 128, true, false, false)
HOPPER_LINEAR_KERNEL(out_in_fp16_176, __half, 176, true, false, false)
HOPPER_LINEAR_KERNEL(out_in_fp16_192, __half, 192, true, false, false)
HOPPER_LINEAR_KERNEL(out_in_fp16_256, __half, 256, false, false, false)
HOPPER_LINEAR_KERNEL(in_out_fp16_128, __half, 128, true, true, false)
HOPPER_LINEAR_KERNEL(in_out_fp16_192, __half, 192, true, true, false)
HOPPER_LINEAR_KERNEL(in_out_fp16_256, __half, 256, false, true, false)
