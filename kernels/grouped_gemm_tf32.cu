// Grouped GEMM of fp32 operands that are rounded to TF32.
#include "grouped_gemm.cuh"

#define MATH(A_ACROSS, B_ACROSS) gemm::MatrixMath<float, A_ACROSS, B_ACROSS>
GROUPED_GEMM_KERNELS(tf32, MATH)
