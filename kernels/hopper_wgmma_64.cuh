// wgmma of 64 columns, for few experts; its wider forms are in hopper_wgmma.cuh.
#pragma once

#include "hopper_wgmma.cuh"

namespace hopper {

#define MOE_D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])

template <bool A_IS_ACROSS, bool B_IS_ACROSS>
__device__ inline void wgmma(float (&d)[32], uint64_t a, uint64_t b, __nv_bfloat16) {
  asm volatile("{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
               "%32, %33, add, 1, 1, %34, %35;\n}"
               : MOE_D8(0), MOE_D8(8), MOE_D8(16), MOE_D8(24)
               : "l"(a), "l"(b), "n"(int(A_IS_ACROSS)), "n"(int(B_IS_ACROSS)));
}

#undef MOE_D8

}  // namespace hopper
