// Grouped GEMM on Hopper in bf16: forward and dgrad.
#include "hopper_linear.cuh"

HOPPER_LINEAR_KERNEL(out_in_bf16_128, __nv_bfloat16, 128, true, false, false)
HOPPER_LINEAR_KERNEL(out_in_bf16_176, __nv_bfloat16, 176, true, false, false)
HOPPER_LINEAR_KERNEL(out_in_bf16_192, __nv_bfloat16, 192, true, false, false)
HOPPER_LINEAR_KERNEL(out_in_bf16_256, __nv_bfloat16, 256, false, false, false)
HOPPER_LINEAR_KERNEL(in_out_bf16_128, __nv_bfloat16, 128, true, true, false)
HOPPER_LINEAR_KERNEL(in_out_bf16_192, __nv_bfloat16, 192, true, true, false)
HOPPER_LINEAR_KERNEL(in_out_bf16_256, __nv_bfloat16, 256, false, true, false)
