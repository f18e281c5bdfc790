#include "decode.cuh"

DECODE_KERNELS(linear_out_in_fp16, __half, false, false)
DECODE_KERNELS(linear_in_out_fp16, __half, false, true)
DECODE_KERNELS(activate_out_in_fp16, __half, true, false)
DECODE_KERNELS(activate_in_out_fp16, __half, true, true)
