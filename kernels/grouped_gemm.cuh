// Grouped GEMM's problems for the portable template: rows through each group's weight, and the weights' gradient.
#pragma once

#include "gemm_portable.cuh"
#include "gemm_store.cuh"
#include "params/grouped_gemm.h"

namespace gemm {

__device__ inline int64_t blocks(int64_t length, int64_t size) { return (length + size - 1) / size; }

template <class T>
__device__ inline Store<T> store(uint8_t *data, Dtype dtype, int64_t pitch, int64_t rows, int64_t columns,
                                 const Tile &tile, float alpha, float beta, bool add) {
  const int size = dtype == MOE_DTYPE_FP32 ? 4 : 2;
  uint8_t *const at = data + (tile.row * pitch + tile.column) * size;
  const bool packed = reinterpret_cast<uint64_t>(at) % 16 == 0 && pitch * size % 16 == 0;
  return {at, pitch, rows - tile.row, columns - tile.column, alpha, beta, size != sizeof(float), add, packed, {}};
}

// C_g[M_g, N] = A_g[M_g, K] * B_g, B_g [N, K] or, across, [K, N].
template <class MathOfProblem, bool ACROSS> struct Linear {
  using Math = MathOfProblem;
  using T = typename Math::Element;
  static constexpr bool A_ACROSS = false;
  static constexpr bool B_ACROSS = ACROSS;
  static constexpr bool A_GATHERS = true;
  static constexpr bool B_GATHERS = false;
  static constexpr int BOXES = 1;
  static constexpr int SIZE = sizeof(T);

  const LinearParams &p;

  __device__ const Groups &groups() const { return p.groups; }
  __device__ moe_device_report_t *report() const { return p.report; }
  __device__ const Gather *a_gather() const { return &p.gather; }
  __device__ const Gather *b_gather() const { return nullptr; }
  __device__ int64_t depth(const Tile &) const { return p.k; }

  __device__ int64_t tiles(const Span &span) const {
    if (span.rows == 0 || group_data<T>(p.b, span.group) == nullptr) return 0;
    return blocks(span.rows, ROWS) * blocks(p.n, COLUMNS);
  }

  __device__ Tile tile(const Span &span, int64_t place) const {
    int64_t row, column;
    raster(place, blocks(span.rows, ROWS), blocks(p.n, COLUMNS), row, column);
    return {span.group, span.begin, span.rows, row * ROWS, column * COLUMNS};
  }

  __device__ Lines a(const Tile &tile) const {
    return {p.a.data, nullptr, p.a.pitch * SIZE, tile.begin + tile.row, tile.rows - tile.row, 0};
  }

  __device__ Lines b(const Tile &tile) const {
    const uint8_t *const weight = reinterpret_cast<const uint8_t *>(group_data<T>(p.b, tile.group));
    const int64_t columns = p.n - tile.column;
    if (ACROSS) return {weight + tile.column * SIZE, nullptr, p.b.pitch * SIZE, 0, p.k, columns * SIZE};
    return {weight, nullptr, p.b.pitch * SIZE, tile.column, columns, 0};
  }

  __device__ Store<T> epilogue(const Tile &tile, int column) const {
    const int size = p.c.dtype == MOE_DTYPE_FP32 ? 4 : 2;
    uint8_t *const rows = p.c.data + tile.begin * p.c.pitch * size;
    Store<T> out = store<T>(rows, p.c.dtype, p.c.pitch, tile.rows, p.n, tile, p.alpha, p.beta, adds(p.mode));
    if (p.bias.data != nullptr) {
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const int64_t n = tile.column + column + i / 8 * 32 + i % 8;
        if (n < p.n) out.bias[i / 8][i % 8] = load_float(p.bias, tile.group * p.bias.pitch + n);
      }
    }
    return out;
  }
};

// out_g[rows, columns] = left_g^T * right_g, summed over the group's rows of both: the gradient of a weight.
template <class MathOfProblem> struct Wgrad {
  using Math = MathOfProblem;
  using T = typename Math::Element;
  static constexpr bool A_ACROSS = true;
  static constexpr bool B_ACROSS = true;
  static constexpr bool A_GATHERS = true;
  static constexpr bool B_GATHERS = true;
  static constexpr int BOXES = 1;
  static constexpr int SIZE = sizeof(T);

  const WgradParams &p;

  __device__ const Groups &groups() const { return p.groups; }
  __device__ moe_device_report_t *report() const { return p.report; }
  __device__ const Gather *a_gather() const { return &p.left_gather; }
  __device__ const Gather *b_gather() const { return &p.right_gather; }
  __device__ int64_t depth(const Tile &tile) const { return tile.rows; }

  __device__ int64_t tiles(const Span &span) const {
    if (out(span.group) == nullptr) return 0;
    // What is kept as it is needs no work.
    if (span.rows == 0 && p.beta == 1.0f && adds(p.mode)) return 0;
    return blocks(p.rows, ROWS) * blocks(p.columns, COLUMNS);
  }

  __device__ Tile tile(const Span &span, int64_t place) const {
    int64_t row, column;
    raster(place, blocks(p.rows, ROWS), blocks(p.columns, COLUMNS), row, column);
    return {span.group, span.begin, span.rows, row * ROWS, column * COLUMNS};
  }

  __device__ Lines a(const Tile &tile) const { return lines(p.left, tile, tile.row, p.rows); }
  __device__ Lines b(const Tile &tile) const { return lines(p.right, tile, tile.column, p.columns); }

  __device__ Store<T> epilogue(const Tile &tile, int) const {
    return store<T>(out(tile.group), p.out.dtype, p.out.pitch, p.rows, p.columns, tile, p.alpha, p.beta, adds(p.mode));
  }

private:
  __device__ uint8_t *out(int64_t g) const {
    return p.out.dtype == MOE_DTYPE_FP32 ? reinterpret_cast<uint8_t *>(group_data<float>(p.out, g))
                                         : reinterpret_cast<uint8_t *>(group_data<T>(p.out, g));
  }

  __device__ Lines lines(const Matrix &matrix, const Tile &tile, int64_t column, int64_t columns) const {
    return {matrix.data + column * SIZE, nullptr, matrix.pitch * SIZE, tile.begin, tile.rows, (columns - column) * SIZE};
  }
};

}  // namespace gemm

// The three kernels of one kind of multiplication.
#define GROUPED_GEMM_KERNELS(NAME, MATH)                                                                             \
  extern "C" __global__ void __launch_bounds__(gemm::THREADS, 1)                                                     \
      grouped_gemm_out_in_##NAME(const __grid_constant__ LinearParams p) {                                           \
    gemm::run(gemm::Linear<MATH(false, false), false>{p});                                                           \
  }                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(gemm::THREADS, 1)                                                     \
      grouped_gemm_in_out_##NAME(const __grid_constant__ LinearParams p) {                                           \
    gemm::run(gemm::Linear<MATH(false, true), true>{p});                                                             \
  }                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(gemm::THREADS, 1)                                                     \
      grouped_gemm_wgrad_##NAME(const __grid_constant__ WgradParams p) {                                             \
    gemm::run(gemm::Wgrad<MATH(true, true)>{p});                                                                     \
  }
