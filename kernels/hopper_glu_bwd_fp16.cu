// Back through fc2 and the activation on Hopper in fp16.
#include "hopper_glu_bwd.cuh"

HOPPER_GLU_BWD_KERNEL(out_in_fp16, __half, false, false, false)
HOPPER_GLU_BWD_KERNEL(in_out_fp16, __half, true, false, false)
HOPPER_GLU_BWD_KERNEL(gathered_out_in_fp16, __half, false, true, false)
HOPPER_GLU_BWD_KERNEL(gathered_in_out_fp16, __half, true, true, false)
HOPPER_GLU_BWD_KERNEL(pairs_out_in_fp16, __half, false, false, true)
HOPPER_GLU_BWD_KERNEL(pairs_in_out_fp16, __half, true, false, true)
HOPPER_GLU_BWD_KERNEL(pairs_gathered_out_in_fp16, __half, false, true, true)
HOPPER_GLU_BWD_KERNEL(pairs_gathered_in_out_fp16, __half, true, true, true)
