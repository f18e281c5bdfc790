// fc1 and an activation whose gate and up go by turns on Hopper in fp16.
#include "hopper_glu.cuh"

HOPPER_GLU_KERNEL(pairs_out_in_fp16_128, __half, PAIRS, 128, true, false, false)
HOPPER_GLU_KERNEL(pairs_out_in_fp16_256, __half, PAIRS, 256, false, false, false)
HOPPER_GLU_KERNEL(pairs_in_out_fp16_128, __half, PAIRS, 128, true, true, false)
HOPPER_GLU_KERNEL(pairs_in_out_fp16_256, __half, PAIRS, 256, false, true, false)
HOPPER_GLU_KERNEL(pairs_gathered_out_in_fp16_128, __half, PAIRS, 128, true, false, true)
HOPPER_GLU_KERNEL(pairs_gathered_out_in_fp16_256, __half, PAIRS, 256, false, false, true)
HOPPER_GLU_KERNEL(pairs_gathered_in_out_fp16_128, __half, PAIRS, 128, true, true, true)
HOPPER_GLU_KERNEL(pairs_gathered_in_out_fp16_256, __half, PAIRS, 256, false, true, true)
