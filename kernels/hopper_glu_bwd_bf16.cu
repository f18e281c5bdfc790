// Back through fc2 and the activation on Hopper in bf16.
#include "hopper_glu_bwd.cuh"

HOPPER_GLU_BWD_KERNEL(out_in_bf16, __nv_bfloat16, false, false, false)
HOPPER_GLU_BWD_KERNEL(in_out_bf16, __nv_bfloat16, true, false, false)
HOPPER_GLU_BWD_KERNEL(gathered_out_in_bf16, __nv_bfloat16, false, true, false)
HOPPER_GLU_BWD_KERNEL(gathered_in_out_bf16, __nv_bfloat16, true, true, false)
HOPPER_GLU_BWD_KERNEL(pairs_out_in_bf16, __nv_bfloat16, false, false, true)
HOPPER_GLU_BWD_KERNEL(pairs_in_out_bf16, __nv_bfloat16, true, false, true)
HOPPER_GLU_BWD_KERNEL(pairs_gathered_out_in_bf16, __nv_bfloat16, false, true, true)
HOPPER_GLU_BWD_KERNEL(pairs_gathered_in_out_bf16, __nv_bfloat16, true, true, true)
