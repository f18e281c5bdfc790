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

// A thread's chunks of tiles of ROWS rows x 64 elements: of one column of chunks, rows THREADS/8 apart; zeros behind the
// last row.
template <class T, int ROWS, int THREADS> struct Loader {
  static constexpr int APART = THREADS / 8, COUNT = (ROWS + APART - 1) / APART;
  const T *from;
  int64_t apart;
  int rows;

  __device__ Loader(const Matrix &matrix, int64_t row, int64_t rows_end)
      : from(reinterpret_cast<const T *>(matrix.data) + row * matrix.pitch), apart(APART * matrix.pitch),
        rows(static_cast<int>(min(rows_end - row, int64_t(ROWS))) - static_cast<int>(threadIdx.x / 8)) {
    // A thread without rows stays at the first, which is there.
    if (rows > 0) from += threadIdx.x / 8 * matrix.pitch;
  }

  // Columns from `column` on; zeros behind `columns_end`.
  __device__ void load(uint32_t to, int64_t column, int64_t columns_end) const {
    const int left = static_cast<int>(min(columns_end - column, int64_t(STEP))) - static_cast<int>(threadIdx.x % 8 * 8);
    const uint32_t valid = 2 * min(max(left, 0), 8);
    const T *const first = from + (valid > 0 ? column + threadIdx.x % 8 * 8 : 0);
    to += place(threadIdx.x / 8, threadIdx.x % 8);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (ROWS % APART != 0 && threadIdx.x / 8 + i * APART >= ROWS) continue;
      const bool here = i * APART < rows;
      cp_async_16(to + i * APART * 2 * STEP, here ? first + i * apart : from, here ? valid : 0);
    }
  }
};

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
