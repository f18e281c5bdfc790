// fc1 and a gated activation on Hopper in bf16, from rows that an index names.
#include "hopper_glu.cuh"

HOPPER_GLU_KERNEL(gathered_out_in_bf16_128, __nv_bfloat16, HALVES, 128, true, false, true)
HOPPER_GLU_KERNEL(gathered_out_in_bf16_176, __nv_bfloat16, HALVES, 176, true, false, true)
HOPPER_GLU_KERNEL(gathered_out_in_bf16_192, __nv_bfloat16, HALVES, 192, true, false, true)
HOPPER_GLU_KERNEL(gathered_out_in_bf16_256, __nv_bfloat16, HALVES, 256, false, false, true)
HOPPER_GLU_KERNEL(gathered_in_out_bf16_128, __nv_bfloat16, HALVES, 128, true, true, true)
HOPPER_GLU_KERNEL(gathered_in_out_bf16_256, __nv_bfloat16, HALVES, 256, false, true, true)
