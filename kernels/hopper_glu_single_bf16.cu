// fc1 and an activation without a gate on Hopper in bf16.
#include "hopper_glu.cuh"

HOPPER_GLU_KERNEL(single_out_in_bf16_128, __nv_bfloat16, SINGLE, 128, true, false, false)
HOPPER_GLU_KERNEL(single_out_in_bf16_256, __nv_bfloat16, SINGLE, 256, false, false, false)
HOPPER_GLU_KERNEL(single_in_out_bf16_128, __nv_bfloat16, SINGLE, 128, true, true, false)
HOPPER_GLU_KERNEL(single_in_out_bf16_256, __nv_bfloat16, SINGLE, 256, false, true, false)
HOPPER_GLU_KERNEL(single_gathered_out_in_bf16_128, __nv_bfloat16, SINGLE, 128, true, false, true)
HOPPER_GLU_KERNEL(single_gathered_out_in_bf16_256, __nv_bfloat16, SINGLE, 256, false, false, true)
HOPPER_GLU_KERNEL(single_gathered_in_out_bf16_128, __nv_bfloat16, SINGLE, 128, true, true, true)
HOPPER_GLU_KERNEL(single_gathered_in_out_bf16_256, __nv_bfloat16, SINGLE, 256, false, true, true)
