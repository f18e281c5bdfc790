// sm_90a's wgmma: a warp group multiplies 64 x 16 by 16 x N out of shared memory into registers.
//
// Of warp w's lane 4g + t are rows 16w + g and 16w + g + 8; d[4b + 2h + e] is row 16w + g + 8h, column 8b + 2t + e.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace hopper {

// An operand in shared memory with the 128-byte swizzle, beginning at a multiple of 1024 bytes.
//
// Along: [rows][64 elements of the reduction]. Across: blocks of [64 of the reduction][64 rows]. Both in lines of 128
// bytes, eight of which make the swizzle's pattern.
constexpr int LINE = 128;
constexpr int BLOCK = 64 * LINE;

template <bool ACROSS> struct Operand {
  static constexpr uint32_t NEXT_PATTERN = 8 * LINE / 16;
  static constexpr uint32_t NEXT_BLOCK = ACROSS ? BLOCK / 16 : 1;
  // From one step of 16 elements of the reduction to the next, and from 64 rows to the next, in units of 16 bytes.
  static constexpr uint32_t STEP = (ACROSS ? 16 * LINE : 32) / 16;
  static constexpr uint32_t ROWS_64 = BLOCK / 16;

  // Of a cluster's other blocks the address has high bits that do not belong here.
  __device__ static uint64_t descriptor(uint32_t address) {
    constexpr uint64_t fixed = uint64_t(NEXT_BLOCK) << 16 | uint64_t(NEXT_PATTERN) << 32 | uint64_t(1) << 62;
    return fixed | (address & 0x3ffff) >> 4;
  }
};

// Before the first wgmma that uses registers that other instructions wrote.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `PENDING` of the committed groups are under way.
template <int PENDING> __device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// The registers' content is final here: keeps the compiler from moving their use above the wait.
template <int N> __device__ inline void wgmma_settle(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define MOE_D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define MOE_D32(i) MOE_D8(i), MOE_D8(i + 8), MOE_D8(i + 16), MOE_D8(i + 24)

#define MOE_REGISTERS_0_64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MOE_REGISTERS_64_88 \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87"
#define MOE_REGISTERS_64_96 MOE_REGISTERS_64_88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define MOE_REGISTERS_96_128 \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// A, B: descriptors' operand numbers. Operands that lie across are the transposed ones. Without `add` sums begin anew.
#define MOE_WGMMA(N, KIND, REGISTERS, A, B, A_ACROSS, B_ACROSS, ADD, ...)                                              \
  asm volatile("{\n.reg .pred add;\nsetp.ne.u32 add, %" #ADD ", 0;\n"                                                  \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." KIND "." KIND " {" REGISTERS "}, %" #A ", %" #B       \
               ", add, 1, 1, %" #A_ACROSS ", %" #B_ACROSS ";\n}"                                                       \
               : __VA_ARGS__                                                                                           \
               : "l"(a), "l"(b), "n"(int(A_IS_ACROSS)), "n"(int(B_IS_ACROSS)), "r"(uint32_t(add)))

template <bool A_IS_ACROSS, bool B_IS_ACROSS>
__device__ inline void wgmma(float (&d)[64], uint64_t a, uint64_t b, __nv_bfloat16, bool add = true) {
  MOE_WGMMA(128, "bf16", MOE_REGISTERS_0_64, 64, 65, 66, 67, 68, MOE_D32(0), MOE_D32(32));
}
template <bool A_IS_ACROSS, bool B_IS_ACROSS>
__device__ inline void wgmma(float (&d)[88], uint64_t a, uint64_t b, __nv_bfloat16, bool add = true) {
  MOE_WGMMA(176, "bf16", MOE_REGISTERS_0_64 ", " MOE_REGISTERS_64_88, 88, 89, 90, 91, 92, MOE_D32(0), MOE_D32(32), MOE_D8(64),
            MOE_D8(72), MOE_D8(80));
}
template <bool A_IS_ACROSS, bool B_IS_ACROSS>
__device__ inline void wgmma(float (&d)[96], uint64_t a, uint64_t b, __nv_bfloat16, bool add = true) {
  MOE_WGMMA(192, "bf16", MOE_REGISTERS_0_64 ", " MOE_REGISTERS_64_96, 96, 97, 98, 99, 100, MOE_D32(0), MOE_D32(32), MOE_D32(64));
}
template <bool A_IS_ACROSS, bool B_IS_ACROSS>
__device__ inline void wgmma(float (&d)[128], uint64_t a, uint64_t b, __nv_bfloat16, bool add = true) {
  MOE_WGMMA(256, "bf16", MOE_REGISTERS_0_64 ", " MOE_REGISTERS_64_96 ", " MOE_REGISTERS_96_128, 128, 129, 130, 131, 132,
            MOE_D32(0), MOE_D32(32), MOE_D32(64), MOE_D32(96));
}
template <bool A_IS_ACROSS, bool B_IS_ACROSS>
__device__ inline void wgmma(float (&d)[64], uint64_t a, uint64_t b, __half, bool add = true) {
  MOE_WGMMA(128, "f16", MOE_REGISTERS_0_64, 64, 65, 66, 67, 68, MOE_D32(0), MOE_D32(32));
}
template <bool A_IS_ACROSS, bool B_IS_ACROSS>
__device__ inline void wgmma(float (&d)[88], uint64_t a, uint64_t b, __half, bool add = true) {
  MOE_WGMMA(176, "f16", MOE_REGISTERS_0_64 ", " MOE_REGISTERS_64_88, 88, 89, 90, 91, 92, MOE_D32(0), MOE_D32(32), MOE_D8(64),
            MOE_D8(72), MOE_D8(80));
}
template <bool A_IS_ACROSS, bool B_IS_ACROSS>
__device__ inline void wgmma(float (&d)[96], uint64_t a, uint64_t b, __half, bool add = true) {
  MOE_WGMMA(192, "f16", MOE_REGISTERS_0_64 ", " MOE_REGISTERS_64_96, 96, 97, 98, 99, 100, MOE_D32(0), MOE_D32(32), MOE_D32(64));
}
template <bool A_IS_ACROSS, bool B_IS_ACROSS>
__device__ inline void wgmma(float (&d)[128], uint64_t a, uint64_t b, __half, bool add = true) {
  MOE_WGMMA(256, "f16", MOE_REGISTERS_0_64 ", " MOE_REGISTERS_64_96 ", " MOE_REGISTERS_96_128, 128, 129, 130, 131, 132,
            MOE_D32(0), MOE_D32(32), MOE_D32(64), MOE_D32(96));
}

#undef MOE_WGMMA
#undef MOE_REGISTERS_0_64
#undef MOE_REGISTERS_64_88
#undef MOE_REGISTERS_64_96
#undef MOE_REGISTERS_96_128
#undef MOE_D32
#undef MOE_D8

}  // namespace hopper
