// The gradient of each group's weight, on Hopper: out_g[M, N] = left_g^T * right_g, summed over the group's rows.
#pragma once

#include "hopper_accumulate.cuh"
#include "hopper_gemm.cuh"

namespace hopper {

// AHEAD: to add to fp32 values, part of which are copied while a tile's products are under way.
template <class T, int WIDTH, bool TURNS, bool GATHERED, bool AHEAD> struct Wgrad {
  using Element = T;
  static constexpr int COLUMNS = WIDTH;
  static constexpr bool PINGPONG = TURNS;
  static constexpr bool A_ACROSS = true;
  static constexpr bool B_ACROSS = true;
  static constexpr bool GATHERS = GATHERED;
  static constexpr bool LARGEST_FIRST = true;
  static constexpr bool MASKS = true;
  static constexpr bool PREPARES = AHEAD;
  static constexpr bool ROLLED = false;
  static constexpr bool BOXES = false;
  static constexpr int STAGING = HOPPER_STAGING;
  // Strips that a warp has room for.
  static constexpr int PLACES = AHEAD ? HOPPER_PLACES : 1;

  const HopperWgradParams &p;

  __device__ const Groups &groups() const { return p.wgrad.groups; }
  __device__ moe_device_report_t *report() const { return p.wgrad.report; }
  __device__ const Gather &gather() const { return p.wgrad.left_gather; }
  __device__ const Matrix &a_matrix() const { return p.wgrad.left; }

  __device__ int units(const Span &span) const {
    if (out(span.group) == nullptr) return 0;
    // What is kept as it is needs no work.
    if (span.rows == 0 && p.wgrad.beta == 1.0f && adds(p.wgrad.mode)) return 0;
    return units_of(tile_rows(), tile_columns());
  }

  __device__ Tile tile(const Work &work, int unit, int rank) const {
    const Place place = place_of(unit, tile_rows(), tile_columns(), rank);
    const int row = place.row * TILE_ROWS, column = place.column * COLUMNS;
    const int rows = place.column < tile_columns() ? this->rows() - row : 0;
    return {work.group, work.begin, row, column, rows, work.rows, place.shared};
  }

  __device__ void acquire(const Tile &) const {}

  __device__ Box a(const Tile &tile) const { return {&p.a_boxes, tile.row, tile.begin, 0}; }
  __device__ Box b(const Tile &tile, int column) const { return {&p.b_boxes, tile.column + column, tile.begin, 0}; }

  __device__ float prepare(const Tile &tile, int row, uint32_t staging) const {
    const Target to = target(tile);
    if (swapped()) {
      prepare<true>(to, row, staging);
    } else {
      prepare<false>(to, row, staging);
    }
    return 0.0f;
  }

  __device__ void finish(const Tile &tile, int row, float (&sums)[COLUMNS / 2], uint32_t staging, float = 0.0f) const {
    Target to = target(tile);
    if (!swapped()) {
      if (accumulate<false>(to, row, sums, staging)) return;
      part(to, row, staging);
      return store<T>(to, row, sums, staging);
    }
    part(to, row, staging);
    if (to.narrow && !to.add) return store_transposed_narrow<T>(to, row, sums, staging);
    part(to, row, staging);
    if (accumulate<true>(to, row, sums, staging)) return;
    part(to, row, staging);
    store_transposed<T>(to, row, sums, staging);
  }

private:
  template <bool SWAPPED, int PLACES> using Added = Accumulation<SWAPPED, COLUMNS, PLACES>;

  __device__ bool swapped() const { return GATHERED && p.transposed; }

  template <bool SWAPPED> __device__ void prepare(const Target &to, int row, uint32_t staging) const {
    if (Added<SWAPPED, PLACES>::takes(to)) Added<SWAPPED, PLACES>{to, staging}.prepare(row);
  }

  // Whether the tile was added to old values, a whole one: out of shared memory in part, or transposed in whole lines.
  template <bool SWAPPED>
  __device__ bool accumulate(const Target &to, int row, const float (&sums)[COLUMNS / 2], uint32_t staging) const {
    if constexpr (PLACES > 1) {
      if (Added<SWAPPED, PLACES>::takes(to)) {
        Added<SWAPPED, PLACES>{to, staging}.finish(row, sums);
        return true;
      }
    }
    if constexpr (SWAPPED) {
      if (Added<SWAPPED, 0>::takes(to)) {
        Added<SWAPPED, 0>{to, staging}.finish(row, sums);
        return true;
      }
    }
    return false;
  }

  __device__ Target target(const Tile &tile) const {
    const Grouped &all = p.wgrad.out;
    const int size = all.dtype == MOE_DTYPE_FP32 ? 4 : 2;
    const int64_t first = swapped() ? tile.column : tile.row, second = swapped() ? tile.row : tile.column;
    Target to;
    to.data = out(tile.group) + (first * all.pitch + second) * size;
    to.pitch = all.pitch;
    to.rows = swapped() ? columns() - tile.column : tile.rows;
    to.columns = swapped() ? tile.rows : columns() - tile.column;
    to.alpha = p.wgrad.alpha;
    to.beta = p.wgrad.beta;
    to.narrow = size == 2;
    to.add = adds(p.wgrad.mode);
    to.packed = reinterpret_cast<uint64_t>(to.data) % 16 == 0 && all.pitch * size % 16 == 0;
    to.bias = nullptr;
    return to;
  }

  __device__ int rows() const { return static_cast<int>(p.wgrad.rows); }
  __device__ int columns() const { return static_cast<int>(p.wgrad.columns); }
  __device__ int tile_rows() const { return blocks(rows(), TILE_ROWS); }
  __device__ int tile_columns() const { return blocks(columns(), COLUMNS); }

  __device__ uint8_t *out(int64_t g) const {
    return p.wgrad.out.dtype == MOE_DTYPE_FP32 ? reinterpret_cast<uint8_t *>(group_data<float>(p.wgrad.out, g))
                                               : reinterpret_cast<uint8_t *>(group_data<T>(p.wgrad.out, g));
  }
};

}  // namespace hopper

#define HOPPER_WGRAD_KERNEL(NAME, T, WIDTH, TURNS, GATHERED, AHEAD)                                                  \
  extern "C" __global__ void __launch_bounds__(hopper::GEMM_THREADS, 1)                                              \
      hopper_wgrad_##NAME(const __grid_constant__ HopperWgradParams p) {                                             \
    MOE_HOPPER_ONLY(hopper::run(hopper::Wgrad<T, WIDTH, TURNS, GATHERED, AHEAD>{p}));                                       \
  }
