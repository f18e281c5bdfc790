// The router's GEMM: jitter, and tiles of 16-bit elements in shared memory, which all of its kernels share.
#pragma once

#include "count.cuh"
#include "dtype.cuh"
#include "mma.cuh"
#include "params/logits.h"
#include "philox.cuh"

namespace gate {

constexpr int STEP = GATE_STEP;

// What jitter multiplies an element by: 1 + eps*(2u - 1), as src/cpu/router/logits.rs rounds it.
__device__ inline float jitter_of(float eps, uint32_t bits) {
  return __fadd_rn(1.0f, __fmul_rn(eps, __fmaf_rn(2.0f, uniform(bits), -1.0f)));
}

// Jitter's factors of elements first .. first + N - 1 of x, N a power of two up to 4.
template <int N> __device__ inline void factors(const Philox &random, float eps, uint64_t first, float (&to)[N]) {
  if (first % N == 0) {
    const uint4 four = random.four(first / 4);
    const uint32_t bits[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const uint32_t low = N == 4 ? bits[i] : first % 4 < N ? bits[i] : bits[(4 - N) + i];
      to[i] = jitter_of(eps, low);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = jitter_of(eps, random.element(first + i));
}

// Where a chunk of 16 bytes lies in a tile whose rows are 64 elements: chunks of eight rows that are read at once are in
// different banks.
__device__ inline uint32_t place(int row, int chunk) { return row * (2 * STEP) + ((chunk ^ (row & 7)) << 4); }

// Copies rows x 64 elements of a matrix from (row, column) on; zeros behind `rows_end` and `columns_end`.
template <class T, int ROWS, int THREADS>
__device__ inline void load_tile(uint32_t to, const Matrix &from, int64_t row, int64_t rows_end, int64_t column,
                                 int64_t columns_end) {
  const T *const data = reinterpret_cast<const T *>(from.data);
#pragma unroll
  for (int i = threadIdx.x; i < ROWS * 8; i += THREADS) {
    const int64_t at = row + i / 8, first = column + i % 8 * 8;
    const int64_t valid = at < rows_end ? min(max(columns_end - first, int64_t(0)), int64_t(8)) : 0;
    cp_async_16(to + place(i / 8, i % 8), valid > 0 ? data + at * from.pitch + first : data, 2 * static_cast<uint32_t>(valid));
  }
}

// Multiplies a chunk of eight elements of x by their jitter; `first` is the number of its first element.
template <class T> __device__ inline void jitter_chunk(T (&chunk)[8], const Philox &random, float eps, uint64_t first) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float by[4];
    factors<4>(random, eps, first + 4 * half, by);
#pragma unroll
    for (int i = 0; i < 4; ++i) chunk[4 * half + i] = from_float<T>(__fmul_rn(to_float(chunk[4 * half + i]), by[i]));
  }
}

}  // namespace gate
