// Grouped GEMM in fp32 throughout.
#include "grouped_gemm.cuh"

#define MATH(A_ACROSS, B_ACROSS) gemm::ScalarMath<A_ACROSS, B_ACROSS>
GROUPED_GEMM_KERNELS(fp32, MATH)
