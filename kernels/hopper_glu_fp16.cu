// fc1 and a gated activation on Hopper in fp16.
#include "hopper_glu.cuh"

HOPPER_GLU_KERNEL(out_in_fp16_128, __half, HALVES, 128, true, false, false)
HOPPER_GLU_KERNEL(out_in_fp16_176, __half, HALVES, 176, true, false, false)
HOPPER_GLU_KERNEL(out_in_fp16_192, __half, HALVES, 192, true, false, false)
HOPPER_GLU_KERNEL(out_in_fp16_256, __half, HALVES, 256, false, false, false)
HOPPER_GLU_KERNEL(in_out_fp16_128, __half, HALVES, 128, true, true, false)
HOPPER_GLU_KERNEL(in_out_fp16_256, __half, HALVES, 256, false, true, false)
