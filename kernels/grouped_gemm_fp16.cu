// Grouped GEMM in fp16.
#include "grouped_gemm.cuh"

#define MATH(A_ACROSS, B_ACROSS) gemm::MatrixMath<__half, A_ACROSS, B_ACROSS>
GROUPED_GEMM_KERNELS(fp16, MATH)
