// From a stage in shared memory to sums in registers: what a warp of the portable GEMM multiplies, by element type.
//
// Eight warps share a tile of 128 x 256, two along its rows and four along its columns, 64 x 64 each. A stage holds
// 64 bytes of the reduction: two steps of mma.sync. An operand whose lines run along the reduction lies there as
// [outer][64 bytes], one whose lines run along the tile (`ACROSS`) as [reduced][outer]; 16-byte chunks are swizzled so
// that neither ldmatrix nor cp.async has bank conflicts (scripts/check_gemm_layout.py proves it).
//
// Of lane 4g + t are rows 16i + 8h + g and columns 32q + 8t + e of the warp's 64 x 64; the sum of such a place is
// sums[i][4q + e/2][2h + e%2]. With B across, mma.sync puts columns 32q + 8j + 2t + e there instead, e < 2, as
// sums[i][4q + j][2h + e]; `row_of_sums` trades them within the quad.
#pragma once

#include "mma.cuh"

namespace gemm {

constexpr int THREADS = 256;
constexpr int STAGES = 4;
constexpr int ROWS = 128;
constexpr int COLUMNS = 256;
// Bytes of the reduction in a stage.
constexpr int LINE = 64;
constexpr int STAGE_A = ROWS * LINE;
constexpr int STAGE = STAGE_A + COLUMNS * LINE;
constexpr int SHARED = STAGES * STAGE;

// Where a chunk of 16 bytes goes: `outer` x 64 bytes, A and B each with the swizzle that their readers need.
__device__ inline uint32_t place_a(int outer, int chunk) { return outer * LINE + ((chunk ^ (outer >> 1 & 3)) << 4); }
__device__ inline uint32_t place_b(int outer, int chunk) { return outer * LINE + ((chunk ^ (outer >> 3 & 3)) << 4); }

// The same for lines across: `reduced` x (`OUTER` elements of T).
template <class T, int OUTER> __device__ inline uint32_t place_across(int reduced, int chunk) {
  const int swizzle = sizeof(T) == 2 ? reduced & 7 : (reduced & 3) << 1;
  return reduced * (OUTER * static_cast<int>(sizeof(T))) + ((chunk ^ swizzle) << 4);
}

using Sums = float[4][8][4];

// mma.sync on 16-bit elements, or on fp32 rounded to TF32.
template <class T, bool A_ACROSS, bool B_ACROSS> struct MatrixMath {
  using Element = T;
  // Whether lanes must trade columns.
  static constexpr bool TRADES = B_ACROSS;
  // Whether operands are loaded a step ahead.
  static constexpr bool AHEAD = true;

  struct Fragments {
    uint32_t a[4][4];
    uint32_t b[8][2];
  };

  // Where this lane reads in a stage's A and B, first step.
  uint32_t a_at;
  uint32_t b_at;

  __device__ MatrixMath() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = warp % 2 * 64, column = warp / 2 * 64;
    if constexpr (!A_ACROSS) {
      a_at = place_a(row + lane % 16, lane / 16);
    } else if constexpr (sizeof(T) == 2) {
      a_at = place_across<T, ROWS>(lane % 8 + lane / 16 * 8, row / 8 + lane / 8 % 2);
    } else {
      const int g = lane / 4, t = lane % 4;
      a_at = place_across<T, ROWS>(t, (row + g) / 4) + g % 4 * 4;
    }
    if constexpr (!B_ACROSS) {
      // Columns 0, 1, 8, 9, 16, 17, 24, 25 make the first fragment, so that a lane's sums are neighbours.
      b_at = place_b(column + lane % 8 / 2 * 8 + lane / 16 * 2 + lane % 2, lane / 8 % 2);
    } else if constexpr (sizeof(T) == 2) {
      b_at = place_across<T, COLUMNS>(lane % 16, column / 8 + lane / 16);
    } else {
      const int g = lane / 4, t = lane % 4;
      b_at = place_across<T, COLUMNS>(t, (column + g) / 4) + g % 4 * 4;
    }
    b_at += STAGE_A;
  }

  __device__ void load(Fragments &to, uint32_t stage, int step) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (!A_ACROSS) {
        ldmatrix(to.a[i], stage + (a_at ^ (step << 5)) + i * 16 * LINE);
      } else if constexpr (sizeof(T) == 2) {
        ldmatrix_transposed(to.a[i], stage + (a_at ^ (i << 5)) + step * 16 * (ROWS * 2));
      } else {
        const uint32_t at = stage + step * 8 * (ROWS * 4);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          to.a[i][r] = __float_as_uint(load_shared(at + (a_at ^ (i << 6) ^ (r % 2 << 5)) + r / 2 * 4 * (ROWS * 4)));
        }
      }
    }
#pragma unroll
    for (int f = 0; f < 8; f += 2) {
      if constexpr (B_ACROSS && sizeof(T) == 4) {
        const uint32_t at = stage + step * 8 * (COLUMNS * 4);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const uint32_t chunk = b_at ^ ((f + r / 2) << 5);
          to.b[f + r / 2][r % 2] = __float_as_uint(load_shared(at + chunk + r % 2 * 4 * (COLUMNS * 4)));
        }
      } else {
        uint32_t pair[4];
        if constexpr (!B_ACROSS) {
          ldmatrix(pair, stage + (b_at ^ (step << 5)) + f / 4 * 32 * LINE + f % 4 * 2 * LINE);
        } else {
          ldmatrix_transposed(pair, stage + (b_at ^ (f << 4)) + step * 16 * (COLUMNS * 2));
        }
        to.b[f][0] = pair[0], to.b[f][1] = pair[1], to.b[f + 1][0] = pair[2], to.b[f + 1][1] = pair[3];
      }
    }
  }

  __device__ void multiply(Sums &sums, Fragments &fragments, uint32_t, int) const {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        fragments.a[i / 4][i % 4] = to_tf32(fragments.a[i / 4][i % 4]);
        fragments.b[i / 2][i % 2] = to_tf32(fragments.b[i / 2][i % 2]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      // Back and forth, so that an operand is used again at once.
      for (int f = 0; f < 8; ++f) {
        const int j = i % 2 == 0 ? f : 7 - f;
        mma(sums[i][j], fragments.a[i], fragments.b[j], T());
      }
    }
  }
};

// True fp32: multiply-adds, each lane its own 8 x 16.
template <bool A_ACROSS, bool B_ACROSS> struct ScalarMath {
  using Element = float;
  static constexpr bool TRADES = false;
  static constexpr bool AHEAD = false;

  struct Fragments {};

  int row;
  int column;

  __device__ ScalarMath() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    row = warp % 2 * 64 + lane / 4;
    column = warp / 2 * 64 + lane % 4 * 8;
  }

  __device__ void load(Fragments &, uint32_t, int) const {}

  // Half a stage: eight elements of the reduction, by fours. Not unrolled: loads that are hoisted far would spill.
  __device__ void multiply(Sums &sums, Fragments &, uint32_t stage, int step) const {
#pragma unroll 1
    for (int chunk = 2 * step; chunk < 2 * step + 2; ++chunk) {
      float a[8][4];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if constexpr (!A_ACROSS) {
          load_shared(a[i], stage + place_a(row + 8 * i, chunk));
        } else {
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const int outer = row + 8 * i;
            a[i][k] = load_shared(stage + place_across<float, ROWS>(4 * chunk + k, outer / 4) + outer % 4 * 4);
          }
        }
      }
#pragma unroll
      for (int part = 0; part < (B_ACROSS ? 4 : 16); ++part) {
        // A column's four elements of the reduction, or the four columns of one chunk.
        const int q = B_ACROSS ? part / 2 : part / 8, e = B_ACROSS ? part % 2 * 4 : part % 8;
        const int outer = column + 32 * q + e;
        if constexpr (!B_ACROSS) {
          float b[4];
          load_shared(b, stage + STAGE_A + place_b(outer, chunk));
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            float &sum = sums[i / 2][4 * q + e / 2][i % 2 * 2 + e % 2];
#pragma unroll
            for (int k = 0; k < 4; ++k) sum = fmaf(a[i][k], b[k], sum);
          }
        } else {
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            float b[4];
            load_shared(b, stage + STAGE_A + place_across<float, COLUMNS>(4 * chunk + k, outer / 4));
#pragma unroll
            for (int i = 0; i < 8; ++i) {
#pragma unroll
              for (int c = 0; c < 4; ++c) {
                float &sum = sums[i / 2][4 * q + (e + c) / 2][i % 2 * 2 + (e + c) % 2];
                sum = fmaf(a[i][k], b[c], sum);
              }
            }
          }
        }
      }
    }
  }
};

// Among the four lanes of a quad, lane t's pair j becomes lane j's pair t.
__device__ inline void trade(float2 (&pairs)[4]) {
#pragma unroll
  for (int distance = 1; distance < 4; distance *= 2) {
    const bool upper = threadIdx.x & distance;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j & distance) continue;
      float2 &low = pairs[j], &high = pairs[j + distance];
      const float2 sent = upper ? low : high;
      const float2 got = {__shfl_xor_sync(0xffffffff, sent.x, distance), __shfl_xor_sync(0xffffffff, sent.y, distance)};
      (upper ? low : high) = got;
    }
  }
}

// The lane's sums of row 16i + 8h + g: values[q][e] is column 32q + 8t + e. All lanes of a warp call together.
template <class Math> __device__ inline void row_of_sums(float (&values)[2][8], const Sums &sums, int i, int h) {
#pragma unroll
  for (int q = 0; q < 2; ++q) {
    float2 pairs[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) pairs[j] = {sums[i][4 * q + j][2 * h], sums[i][4 * q + j][2 * h + 1]};
    if constexpr (Math::TRADES) trade(pairs);
#pragma unroll
    for (int j = 0; j < 4; ++j) values[q][2 * j] = pairs[j].x, values[q][2 * j + 1] = pairs[j].y;
  }
}

}  // namespace gemm
