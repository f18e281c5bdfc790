// fc1 and the activation in one, on Hopper: act[R, f] = weight * act(x W1^T + b1), and h where it is kept.
//
// A thread has all that an element of act is made of. HALVES: a tile's B is so many columns of the gate and the same
// columns of up. PAIRS: gate and up by turns. SINGLE: there is no gate.
#pragma once

#include "activation.cuh"
#include "hopper_rows.cuh"
#include "params/fused.h"
#include "rows.cuh"

namespace hopper {

enum GluForm { HALVES, PAIRS, SINGLE };

template <class T, GluForm FORM, int WIDTH, bool TURNS, bool ACROSS, bool GATHERED>
struct Glu : Rows<T, WIDTH, TURNS, ACROSS, GATHERED> {
  static constexpr int COLUMNS = WIDTH;
  // Columns of act.
  static constexpr int OUT = FORM == SINGLE ? WIDTH : WIDTH / 2;
  // A thread's elements in 16 rows: of h, of a half of them, of act.
  static constexpr int ALL = WIDTH / 2;
  static constexpr int HALF = WIDTH / 4;
  static constexpr int ACTS = OUT / 2;
  // The loop takes registers that the widest has not.
  static constexpr bool ROLLED = WIDTH == 128;
  // A bias does not fit: the host knows.
  static constexpr bool BIASED = !Glu::CROWDED;
  // Elements whose activation is computed together.
  static constexpr int AT_ONCE = Glu::CROWDED ? 4 : 8;

  const HopperGluParams &p;

  __device__ const Groups &groups() const { return p.groups; }
  __device__ moe_device_report_t *report() const { return p.report; }
  __device__ const Gather &gather() const { return p.gather; }
  __device__ const Matrix &a_matrix() const { return p.a; }

  __device__ explicit Glu(const HopperGluParams &p) : p(p) {}

  __device__ int units(const Span &span) const {
    if (!has_boxes(p.gate_boxes, span.group) || !has_boxes(p.up_boxes, span.group)) return 0;
    return this->units_of_rows(span, p.formula.ffn, OUT);
  }

  __device__ Tile tile(const Work &work, int unit, int rank) const {
    return this->tile_of_rows(work, unit, rank, p.formula.ffn, OUT, p.k);
  }

  __device__ void acquire(const Tile &tile) const {
    hopper::acquire(p.gate_boxes, tile.group);
    hopper::acquire(p.up_boxes, tile.group);
  }

  __device__ Box a(const Tile &tile) const { return {&p.a_boxes, tile.begin + tile.row, 0, 0}; }
  __device__ Box b(const Tile &tile, int column) const {
    if (FORM != HALVES) return {&p.gate_boxes, h_column(tile) + column, 0, tile.group};
    const int place = tile.column + column;
    if (column < OUT) return {&p.gate_boxes, p.gate_outer + place, 0, tile.group};
    return {&p.up_boxes, p.up_outer + place - OUT, 0, tile.group};
  }

  __device__ void finish(const Tile &tile, int row, float (&sums)[COLUMNS / 2], uint32_t staging) const {
    const int columns = p.formula.ffn - tile.column, lane = threadIdx.x % 32;
    if (BIASED && p.bias.data != nullptr) {
      if constexpr (FORM == HALVES) {
        add_bias<HALF>(sums, tile, p.gate_at + tile.column, columns, lane);
        add_bias<HALF>(sums + HALF, tile, p.up_at + tile.column, columns, lane);
      } else {
        add_bias<ALL>(sums, tile, h_column(tile), h_columns(columns), lane);
      }
    }
    if (p.h.data != nullptr) {
      if constexpr (FORM == HALVES) {
        store_narrow<T, HALF>(this->plain_target(p.h, tile, p.gate_at + tile.column, columns), row, sums, staging);
        part(row, staging);
        store_narrow<T, HALF>(this->plain_target(p.h, tile, p.up_at + tile.column, columns), row, sums + HALF, staging);
      } else {
        store_narrow<T, ALL>(this->plain_target(p.h, tile, h_column(tile), h_columns(columns)), row, sums, staging);
      }
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
    if (FORM == HALVES && is_swiglu(p.formula)) {
      activate_all<FORM == HALVES>(sums, weights, lane);
    } else {
      activate_all<false>(sums, weights, lane);
    }
    store_narrow<T, ACTS>(this->plain_target(p.act, tile, tile.column, columns), row, sums, staging);
  }

private:
  // act, in place of the sums that come first.
  template <bool SWIGLU> __device__ void activate_all(float *sums, const float (&weights)[2], int lane) const {
#pragma unroll
    for (int i = 0; i < ACTS; i += AT_ONCE) {
      Floats<AT_ONCE> gate, up, act;
#pragma unroll
      for (int e = 0; e < AT_ONCE; ++e) {
        gate[e] = FORM == PAIRS ? sums[2 * (i + e)] : sums[i + e];
        up[e] = FORM == PAIRS ? sums[2 * (i + e) + 1] : FORM == HALVES ? sums[HALF + i + e] : 0.0f;
      }
      if constexpr (SWIGLU) {
        swiglu<AT_ONCE>(gate, up, act);
      } else {
        activate<AT_ONCE>(p.formula, gate, up, act);
      }
      if constexpr (FORM == PAIRS) {
#pragma unroll
        for (int e = 0; e < AT_ONCE; ++e) act[e] *= weights[e % 2];
#pragma unroll
        for (int e = 0; e < AT_ONCE; e += 4) neighbours(sums + i + e, act + e, lane);
      } else {
#pragma unroll
        for (int e = 0; e < AT_ONCE; ++e) sums[i + e] = act[e] * weights[e / 2 % 2];
      }
    }
  }

  // Where the tile's columns of h begin, and how many there are of so many columns of act; not of HALVES.
  __device__ static int h_column(const Tile &tile) { return FORM == PAIRS ? 2 * tile.column : tile.column; }
  __device__ static int h_columns(int columns) { return FORM == PAIRS ? 2 * columns : columns; }

  // Of eight columns of act lane t has t and 4 + t of rows g and g + 8 (from); it gets 2t and 2t + 1 (to).
  __device__ static void neighbours(float *to, const float *from, int lane) {
    const int source = lane / 4 * 4 + lane % 2 * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t mine = pack_pair<T>(from[i], from[2 + i]);
      const float2 x = unpack_pair<T>(__shfl_sync(WARP, mine, source));
      const float2 y = unpack_pair<T>(__shfl_sync(WARP, mine, source + 1));
      to[2 * i] = lane % 4 < 2 ? x.x : x.y;
      to[2 * i + 1] = lane % 4 < 2 ? y.x : y.y;
    }
  }

  // Columns `first` and on of the bias.
  template <int N> __device__ void add_bias(float *sums, const Tile &tile, int first, int columns, int lane) const {
    const int64_t at = tile.group * p.bias.pitch + first;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      if (column < columns) sums[i] += load_float(p.bias, at + column);
    }
  }
};

}  // namespace hopper

#define HOPPER_GLU_KERNEL(NAME, T, FORM, WIDTH, TURNS, ACROSS, GATHERED)                                             \
  extern "C" __global__ void __launch_bounds__(hopper::GEMM_THREADS, 1)                                              \
      hopper_glu_##NAME(const __grid_constant__ HopperGluParams p) {                                                 \
    MOE_HOPPER_ONLY(hopper::run(hopper::Glu<T, hopper::FORM, WIDTH, TURNS, ACROSS, GATHERED>(p)));                   \
  }
