// Grouped GEMM in bf16.
#include "grouped_gemm.cuh"

#define MATH(A_ACROSS, B_ACROSS) gemm::MatrixMath<__nv_bfloat16, A_ACROSS, B_ACROSS>
GROUPED_GEMM_KERNELS(bf16, MATH)
