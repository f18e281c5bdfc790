#include "decode.cuh"

DECODE_KERNELS(linear_out_in_bf16, __nv_bfloat16, false, false)
DECODE_KERNELS(linear_in_out_bf16, __nv_bfloat16, false, true)
DECODE_KERNELS(activate_out_in_bf16, __nv_bfloat16, true, false)
DECODE_KERNELS(activate_in_out_bf16, __nv_bfloat16, true, true)
