// fc1 and a gated activation on Hopper in bf16.
#include "hopper_glu.cuh"

HOPPER_GLU_KERNEL(out_in_bf16_128, __nv_bfloat16, HALVES, 128, true, false, false)
HOPPER_GLU_KERNEL(out_in_bf16_176, __nv_bfloat16, HALVES, 176, true, false, false)
HOPPER_GLU_KERNEL(out_in_bf16_192, __nv_bfloat16, HALVES, 192, true, false, false)
HOPPER_GLU_KERNEL(out_in_bf16_256, __nv_bfloat16, HALVES, 256, false, false, false)
HOPPER_GLU_KERNEL(in_out_bf16_128, __nv_bfloat16, HALVES, 128, true, true, false)
HOPPER_GLU_KERNEL(in_out_bf16_256, __nv_bfloat16, HALVES, 256, false, true, false)
