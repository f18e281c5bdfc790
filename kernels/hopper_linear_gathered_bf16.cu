// Grouped GEMM on Hopper in bf16: forward from rows that an index names.
#include "hopper_linear.cuh"

HOPPER_LINEAR_KERNEL(gathered_out_in_bf16_128, __nv_bfloat16, 128, true, false, true)
HOPPER_LINEAR_KERNEL(gathered_out_in_bf16_176, __nv_bfloat16, 176, true, false, true)
HOPPER_LINEAR_KERNEL(gathered_out_in_bf16_192, __nv_bfloat16, 192, true, false, true)
HOPPER_LINEAR_KERNEL(gathered_out_in_bf16_256, __nv_bfloat16, 256, false, false, true)
HOPPER_LINEAR_KERNEL(gathered_in_out_bf16_128, __nv_bfloat16, 128, true, true, true)
HOPPER_LINEAR_KERNEL(gathered_in_out_bf16_192, __nv_bfloat16, 192, true, true, true)
HOPPER_LINEAR_KERNEL(gathered_in_out_bf16_256, __nv_bfloat16, 256, false, true, true)
