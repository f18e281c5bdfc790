// fc1 and a gated activation in one, on Hopper: act[R, f] = weight * act(x W_gate^T, x W_up^T), and h where it is kept.
//
// A tile's B is so many columns of the gate and the same columns of up: a thread has both of an element of act.
#pragma once

#include "activation.cuh"
#include "hopper_rows.cuh"
#include "params/fused.h"
#include "rows.cuh"

namespace hopper {

template <class T, int WIDTH, bool TURNS, bool ACROSS, bool GATHERED> struct Glu : Rows<T, WIDTH, TURNS, ACROSS, GATHERED> {
  static constexpr int COLUMNS = WIDTH;
  // Columns of act, and a thread's elements of them in 16 rows.
  static constexpr int OUT = WIDTH / 2;
  static constexpr int HALF = WIDTH / 4;
  // What a bias takes does not fit the registers beside so many sums: the host knows.
  static constexpr bool BIASED = WIDTH != 192;
  // Elements whose activation is computed together, as registers allow.
  static constexpr int AT_ONCE = WIDTH == 192 ? 4 : 8;

  const HopperGluParams &p;

  __device__ const Groups &groups() const { return p.groups; }
  __device__ moe_device_report_t *report() const { return p.report; }
  __device__ const Gather &gather() const { return p.gather; }
  __device__ const Matrix &a_matrix() const { return p.a; }

  __device__ explicit Glu(const HopperGluParams &p) : p(p) {}

  __device__ int units(const Span &span) const { return this->units_of_rows(span, p.formula.ffn, OUT); }

  __device__ Tile tile(const Work &work, int unit, int rank) const {
    Tile tile = this->tile_of_rows(work, unit, rank, p.formula.ffn, OUT, p.k);
    tile.inner[0] = inner_of(p.gate_boxes, tile.group);
    tile.inner[1] = inner_of(p.up_boxes, tile.group);
    return tile;
  }

  __device__ void acquire(const Tile &tile) const {
    hopper::acquire(p.gate_boxes, tile.group);
    hopper::acquire(p.up_boxes, tile.group);
  }

  __device__ Box a(const Tile &tile) const { return box_of(p.a_boxes, tile.begin + tile.row, 0); }
  __device__ Box b(const Tile &tile, int column) const {
    const int place = tile.column + column;
    if (column < OUT) return box_of(p.gate_boxes, p.gate_outer + place, tile.group, tile.inner[0]);
    return box_of(p.up_boxes, p.up_outer + place - OUT, tile.group, tile.inner[1]);
  }

  __device__ void finish(const Tile &tile, int row, float (&sums)[COLUMNS / 2], uint32_t staging) const {
    const int columns = p.formula.ffn - tile.column, lane = threadIdx.x % 32;
    if (BIASED && p.bias.data != nullptr) {
      add_bias(sums, tile, p.gate_at, columns, lane);
      add_bias(sums + HALF, tile, p.up_at, columns, lane);
    }
    if (p.h.data != nullptr) {
      store_narrow<T, HALF>(this->plain_target(p.h, tile, p.gate_at, columns), row, sums, staging);
      part(row, staging);
      store_narrow<T, HALF>(this->plain_target(p.h, tile, p.up_at, columns), row, sums + HALF, staging);
    }
    part(row, staging);
    float weights[2] = {1.0f, 1.0f};
    if (p.row_weights.weights.data != nullptr) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int r = row + lane / 4 + 8 * i;
        if (r < tile.rows) weights[i] = row_weight(p.row_weights, tile.begin + tile.row + r, p.report);
      }
    }
#pragma unroll
    for (int i = 0; i < HALF; i += AT_ONCE) {
      Floats<AT_ONCE> gate, up, act;
#pragma unroll
      for (int e = 0; e < AT_ONCE; ++e) gate[e] = sums[i + e], up[e] = sums[HALF + i + e];
      activate<AT_ONCE>(p.formula, gate, up, act);
#pragma unroll
      for (int e = 0; e < AT_ONCE; ++e) sums[i + e] = act[e] * weights[e / 2 % 2];
    }
    store_narrow<T, HALF>(this->plain_target(p.act, tile, 0, columns), row, sums, staging);
  }

private:
  __device__ void add_bias(float *sums, const Tile &tile, int at, int columns, int lane) const {
    const int64_t first = tile.group * p.bias.pitch + at + tile.column;
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
      const int column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      if (column < columns) sums[i] += load_float(p.bias, first + column);
    }
  }
};

}  // namespace hopper

#define HOPPER_GLU_KERNEL(NAME, T, WIDTH, TURNS, ACROSS, GATHERED)                                                   \
  extern "C" __global__ void __launch_bounds__(hopper::GEMM_THREADS, 1)                                              \
      hopper_glu_##NAME(const __grid_constant__ HopperGluParams p) {                                                 \
    MOE_HOPPER_ONLY(hopper::run(hopper::Glu<T, WIDTH, TURNS, ACROSS, GATHERED>(p)));                                 \
  }
