// fc1 and an activation whose gate and up go by turns on Hopper in bf16.
#include "hopper_glu.cuh"

HOPPER_GLU_KERNEL(pairs_out_in_bf16_128, __nv_bfloat16, PAIRS, 128, true, false, false)
HOPPER_GLU_KERNEL(pairs_out_in_bf16_256, __nv_bfloat16, PAIRS, 256, false, false, false)
HOPPER_GLU_KERNEL(pairs_in_out_bf16_128, __nv_bfloat16, PAIRS, 128, true, true, false)
HOPPER_GLU_KERNEL(pairs_in_out_bf16_256, __nv_bfloat16, PAIRS, 256, false, true, false)
HOPPER_GLU_KERNEL(pairs_gathered_out_in_bf16_128, __nv_bfloat16, PAIRS, 128, true, false, true)
HOPPER_GLU_KERNEL(pairs_gathered_out_in_bf16_256, __nv_bfloat16, PAIRS, 256, false, false, true)
HOPPER_GLU_KERNEL(pairs_gathered_in_out_bf16_128, __nv_bfloat16, PAIRS, 128, true, true, true)
HOPPER_GLU_KERNEL(pairs_gathered_in_out_bf16_256, __nv_bfloat16, PAIRS, 256, false, true, true)
