// Rows through each group's weight, on Hopper: C_g[M_g, N] = A_g[M_g, K] * B_g, B_g [N, K] or, across, [K, N].
#pragma once

#include "hopper_boxes.cuh"
#include "hopper_rows.cuh"

namespace hopper {

template <class T, int WIDTH, bool TURNS, bool ACROSS, bool GATHERED> struct Linear : Rows<T, WIDTH, TURNS, ACROSS, GATHERED> {
  static constexpr int COLUMNS = WIDTH;
  // The epilogue of other outputs does not fit: the host knows.
  static constexpr bool NARROW = Linear::CROWDED;

  static constexpr bool BOXES = true;
  // The widest by turns leave room for one.
  static constexpr int PLACES = WIDTH == 192 ? 1 : HOPPER_BOX_PLACES;

  const HopperLinearParams &p;

  __device__ const Groups &groups() const { return p.linear.groups; }
  __device__ moe_device_report_t *report() const { return p.linear.report; }
  __device__ const Gather &gather() const { return p.linear.gather; }
  __device__ const Matrix &a_matrix() const { return p.linear.a; }

  __device__ explicit Linear(const HopperLinearParams &p) : p(p) {}

  __device__ int units(const Span &span) const {
    if (!has_boxes(p.b_boxes, span.group)) return 0;
    return this->units_of_rows(span, static_cast<int>(p.linear.n), COLUMNS);
  }

  __device__ Tile tile(const Work &work, int unit, int rank) const {
    return this->tile_of_rows(work, unit, rank, static_cast<int>(p.linear.n), COLUMNS, static_cast<int>(p.linear.k));
  }

  __device__ void acquire(const Tile &tile) const { hopper::acquire(p.b_boxes, tile.group); }

  __device__ Box a(const Tile &tile) const { return {&p.a_boxes, tile.begin + tile.row, 0, 0}; }
  __device__ Box b(const Tile &tile, int column) const { return {&p.b_boxes, tile.column + column, 0, tile.group}; }

  __device__ void finish(const Tile &tile, int row, float (&sums)[COLUMNS / 2], uint32_t staging) const {
    const Matrix &c = p.linear.c, &bias = p.linear.bias;
    const int size = c.dtype == MOE_DTYPE_FP32 ? 4 : 2;
    Target to;
    to.data = c.data + ((tile.begin + tile.row) * c.pitch + tile.column) * size;
    to.pitch = c.pitch;
    to.rows = tile.rows;
    to.columns = static_cast<int>(p.linear.n) - tile.column;
    to.alpha = p.linear.alpha;
    to.beta = p.linear.beta;
    to.narrow = size == 2;
    to.add = adds(p.linear.mode);
    to.packed = reinterpret_cast<uint64_t>(to.data) % 16 == 0 && c.pitch * size % 16 == 0;
    to.bias = bias.data == nullptr
                  ? nullptr
                  : bias.data + (tile.group * bias.pitch + tile.column) * (bias.dtype == MOE_DTYPE_FP32 ? 4 : 2);
    to.bias_dtype = bias.dtype;
    const StoredBoxes boxes = {p.boxed ? &p.c_boxes : nullptr, tile.column, tile.begin + tile.row};
    if constexpr (NARROW) {
      store_boxed<T, COLUMNS / 2, PLACES>(to, boxes, row, sums, staging);
    } else if (to.narrow && !to.add) {
      store_boxed<T, COLUMNS / 2, PLACES>(to, boxes, row, sums, staging);
    } else {
      part(to, row, staging);
      store<T>(to, row, sums, staging);
    }
  }
};

}  // namespace hopper

// A kernel for one width of tiles; TURNS: the teams take turns.
#define HOPPER_LINEAR_KERNEL(NAME, T, WIDTH, TURNS, ACROSS, GATHERED)                                                \
  extern "C" __global__ void __launch_bounds__(hopper::GEMM_THREADS, 1)                                              \
      hopper_linear_##NAME(const __grid_constant__ HopperLinearParams p) {                                           \
    MOE_HOPPER_ONLY(hopper::run(hopper::Linear<T, WIDTH, TURNS, ACROSS, GATHERED>(p)));                              \
  }
