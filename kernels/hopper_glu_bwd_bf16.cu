// Back through fc2 and the activation on Hopper in bf16.
#include "hopper_glu_bwd.cuh"

HOPPER_GLU_BWD_KERNEL(out_in_bf16, __nv_bfloat16, false, false)
HOPPER_GLU_BWD_KERNEL(in_out_bf16, __nv_bfloat16, true, false)
HOPPER_GLU_BWD_KERNEL(gathered_out_in_bf16, __nv_bfloat16, false, true)
HOPPER_GLU_BWD_KERNEL(gathered_in_out_bf16, __nv_bfloat16, true, true)
