// Grouped GEMM on Hopper in fp16: forward from rows that an index names.
#include "hopper_linear.cuh"

HOPPER_LINEAR_KERNEL(gathered_out_in_fp16_128, __half, 128, true, false, true)
HOPPER_LINEAR_KERNEL(gathered_out_in_fp16_176, __half, 176, true, false, true)
HOPPER_LINEAR_KERNEL(gathered_out_in_fp16_192, __half, 192, true, false, true)
HOPPER_LINEAR_KERNEL(gathered_out_in_fp16_256, __half, 256, false, false, true)
HOPPER_LINEAR_KERNEL(gathered_in_out_fp16_128, __half, 128, true, true, true)
HOPPER_LINEAR_KERNEL(gathered_in_out_fp16_192, __half, 192, true, true, true)
HOPPER_LINEAR_KERNEL(gathered_in_out_fp16_256, __half, 256, false, true, true)
