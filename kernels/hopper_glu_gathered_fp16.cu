// fc1 and a gated activation on Hopper in fp16, from rows that an index names.
#include "hopper_glu.cuh"

HOPPER_GLU_KERNEL(gathered_out_in_fp16_128, __half, HALVES, 128, true, false, true)
HOPPER_GLU_KERNEL(gathered_out_in_fp16_176, __half, HALVES, 176, true, false, true)
HOPPER_GLU_KERNEL(gathered_out_in_fp16_192, __half, HALVES, 192, true, false, true)
HOPPER_GLU_KERNEL(gathered_out_in_fp16_256, __half, HALVES, 256, false, false, true)
HOPPER_GLU_KERNEL(gathered_in_out_fp16_128, __half, HALVES, 128, true, true, true)
HOPPER_GLU_KERNEL(gathered_in_out_fp16_256, __half, HALVES, 256, false, true, true)
