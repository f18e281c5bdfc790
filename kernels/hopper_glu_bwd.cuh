// Back through fc2 and the activation in one, on Hopper. With dact = dy W2 and w a row's weight: dh = w act'(h) dact,
// w act(h), and of each row <dact, act(h)>.
//
// A tile is 128 columns of act. What its epilogue reads of h is copied while its products are under way, into the
// place where the gradients are laid out to be written. h has the gate's columns, then up's (or the gate alone), or
// both by turns (PAIRS).
#pragma once

#include "activation.cuh"
#include "hopper_rows.cuh"
#include "params/fused.h"
#include "rows.cuh"

namespace hopper {

template <class T, bool ACROSS, bool GATHERED, bool PAIRS> struct GluBwd : Rows<T, 128, true, ACROSS, GATHERED> {
  static constexpr int COLUMNS = 128;
  static constexpr bool PREPARES = true;
  static constexpr bool ROLLED = true;
  // Of act; of h there are 16 rows of twice as many, 64 and then 64.
  static constexpr int STRIP = 64;
  static constexpr int STRIPS = COLUMNS / STRIP;
  static constexpr int HALF_BYTES = 16 * STRIP * 2;
  static constexpr int STAGING = STRIPS * 2 * HALF_BYTES;
  // That have a line of 64 columns together.
  static constexpr int LANES = 8;

  const HopperGluBwdParams &p;

  __device__ explicit GluBwd(const HopperGluBwdParams &p) : p(p) {}

  __device__ const Groups &groups() const { return p.groups; }
  __device__ moe_device_report_t *report() const { return p.report; }
  __device__ const Gather &gather() const { return p.gather; }
  __device__ const Matrix &a_matrix() const { return p.a; }

  __device__ int units(const Span &span) const {
    return has_boxes(p.b_boxes, span.group) ? this->units_of_rows(span, p.formula.ffn, COLUMNS) : 0;
  }

  __device__ Tile tile(const Work &work, int unit, int rank) const {
    return this->tile_of_rows(work, unit, rank, p.formula.ffn, COLUMNS, p.k);
  }

  __device__ void acquire(const Tile &tile) const { hopper::acquire(p.b_boxes, tile.group); }

  __device__ Box a(const Tile &tile) const { return {&p.a_boxes, tile.begin + tile.row, 0, 0}; }
  __device__ Box b(const Tile &tile, int column) const { return {&p.b_boxes, tile.column + column, 0, tile.group}; }

  // The weight of one of the warp's rows: lane l has row l of its first 16 rows, and of those 64 rows on.
  __device__ float prepare(const Tile &tile, int row, uint32_t staging) const {
    const int lane = threadIdx.x % 32, own = row + lane / 16 * 64 + lane % 16;
    const int64_t place = tile.begin + tile.row + own;
    // What the index says comes while copies are issued.
    const int64_t from = own < tile.rows ? weight_place(p.row_weights, place) : -1;
#pragma unroll
    for (int strip = 0; strip < STRIPS; ++strip) fetch(tile, row, strip, staging);
    return own < tile.rows ? weight_at(p.row_weights, from, place, p.report) : 0.0f;
  }

  __device__ void finish(const Tile &tile, int row, float (&sums)[COLUMNS / 2], uint32_t staging, float weight) const {
    const int lane = threadIdx.x % 32;
    float weights[2], dots[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) weights[i] = __shfl_sync(WARP, weight, row / 64 * 16 + lane / 4 + 8 * i);
    if (!PAIRS && is_swiglu(p.formula)) {
      finish_strips<!PAIRS>(tile, row, sums, staging, weights, dots);
    } else {
      finish_strips<false>(tile, row, sums, staging, weights, dots);
    }
    if (p.dots != nullptr) {
#pragma unroll
      for (int distance = 1; distance <= 2; ++distance) {
#pragma unroll
        for (int i = 0; i < 2; ++i) dots[i] += __shfl_xor_sync(WARP, dots[i], distance);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int r = row + lane / 4 + 8 * i;
        if (lane % 4 == 0 && r < tile.rows) {
          p.dots[int64_t(tile.begin + tile.row + r) * p.dots_of_row + tile.column / COLUMNS] = dots[i];
        }
      }
    }
  }

private:
  // 16 columns of 16 rows of h: a lane's elements of gate and up as they are read.
  using Block = uint32_t[8];

  // A block is read before the one in front of it is laid out, which it cannot pass afterwards, and overlaps with it.
  template <bool SWIGLU>
  __device__ void finish_strips(const Tile &tile, int row, const float *sums, uint32_t staging, const float (&weights)[2],
                                float (&dots)[2]) const {
    const bool gated = SWIGLU || p.formula.gated, acts_wanted = p.weighted_act.data != nullptr;
    const uint32_t matrices = matrices_of(staging), first = PAIRS ? pairs_of(staging) : matrices, line_place = lines_of(staging);
    const int columns = p.formula.ffn - tile.column, rows = tile.rows - row - line();
    T *const dh = place(p.dh, tile, row, h_column(tile, 0, 0));
    T *const weighted_act = place(p.weighted_act, tile, row, tile.column);
    const int64_t up_from_gate = h_column(tile, 0, 1) - h_column(tile, 0, 0);
#pragma unroll
    for (int strip = 0; strip < STRIPS; ++strip) {
      const int left = columns - strip * STRIP;
      // Of this strip and the one behind it, the first has come.
      cp_async_wait<STRIPS - 1>();
      __syncwarp();
      Block h[STRIP / 16];
      uint32_t acts[STRIP / 16][4];
      read<SWIGLU>(first, strip, 0, h[0]);
#pragma unroll
      for (int block = 0; block < STRIP / 16; ++block) {
        if (block + 1 < STRIP / 16) read<SWIGLU>(first, strip, block + 1, h[block + 1]);
        differentiate<SWIGLU>(h[block], sums + 8 * (strip * STRIP / 16 + block), left - 16 * block, weights, dots, acts[block]);
        write<SWIGLU>(first, strip, block, h[block]);
      }
      __syncwarp();
      // All in registers of their own: a load into those of a store would wait until it is gone.
      uint4 gates[4], ups[4], weighted[4];
      load_lines(gates, line_place + 2 * strip * HALF_BYTES);
      if (gated) load_lines(ups, line_place + (2 * strip + 1) * HALF_BYTES);
      __syncwarp();
      if (acts_wanted) {
#pragma unroll
        for (int block = 0; block < STRIP / 16; ++block) {
          stmatrix((matrices ^ block << 5) + 2 * strip * HALF_BYTES, acts[block]);
        }
        __syncwarp();
        load_lines(weighted, line_place + 2 * strip * HALF_BYTES);
        __syncwarp();
      }
      store_lines(dh + strip * H_STRIP, p.dh.pitch, exists(left, 0) ? rows : 0, gates);
      if (gated) store_lines(dh + up_from_gate + strip * H_STRIP, p.dh.pitch, exists(left, 1) ? rows : 0, ups);
      if (acts_wanted) {
        store_lines(weighted_act + strip * STRIP, p.weighted_act.pitch, chunk() * 8 < left ? rows : 0, weighted);
      }
      // The same strip of the warp's other rows.
      fetch(tile, row + 64, strip, staging);
    }
  }

  // A lane's 16 bytes of each fourth of a strip's 16 rows.
  __device__ static int line() { return threadIdx.x % 32 / LANES; }
  __device__ static int chunk() { return threadIdx.x % LANES; }

  // From the columns of h that belong to a strip to those of the next.
  static constexpr int H_STRIP = PAIRS ? 2 * STRIP : STRIP;

  // Where 64 columns of h begin.
  __device__ int h_column(const Tile &tile, int strip, int half) const {
    if (PAIRS) return 2 * (tile.column + strip * STRIP) + half * STRIP;
    return (half == 0 ? p.gate_at : p.up_at) + tile.column + strip * STRIP;
  }
  // Whether there is the lane's part of them, where `left` columns of act are left.
  __device__ static bool exists(int left, int half) {
    return PAIRS ? half * STRIP + chunk() * 8 < 2 * left : chunk() * 8 < left;
  }

  // The lane's first 16 bytes of rows `row` and on, in the 64 columns from `column` on.
  __device__ T *place(const Matrix &matrix, const Tile &tile, int row, int column) const {
    return reinterpret_cast<T *>(matrix.data) + (tile.begin + tile.row + row + line()) * matrix.pitch + column + chunk() * 8;
  }

  // Begins to copy a strip of h, rows `row` and on; what does not exist becomes zero. One group of copies.
  __device__ void fetch(const Tile &tile, int row, int strip, uint32_t staging) const {
    // A tile's last rows are followed by those of another tile, or by none.
    if (row < min(tile.rows, TILE_ROWS)) {
      const uint32_t to = lines_of(staging) + 2 * strip * HALF_BYTES;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (half == 1 && !p.formula.gated) continue;
        const int rows = exists(p.formula.ffn - tile.column - strip * STRIP, half) ? tile.rows - row - line() : 0;
        const T *const from = place(p.h, tile, row, h_column(tile, strip, half));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          cp_async_16(fourth(to + half * HALF_BYTES, i), from + 4 * i * p.h.pitch, 4 * i < rows ? 16 : 0);
        }
      }
    }
    cp_async_commit();
  }

  // 16 columns of 16 rows, of which `left` columns exist: h becomes its gradient.
  template <bool SWIGLU>
  __device__ void differentiate(Block &h, const float *dact, int left, const float (&weights)[2], float (&dots)[2],
                                uint32_t (&acts)[4]) const {
    constexpr int N = 8;
    Floats<N> gate, up, act;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      // By turns, a word is gate and up of an element.
      const float2 a = unpack_pair<T>(h[PAIRS ? 2 * i : i]), b = unpack_pair<T>(h[PAIRS ? 2 * i + 1 : N / 2 + i]);
      gate[2 * i] = a.x, gate[2 * i + 1] = PAIRS ? b.x : a.y;
      up[2 * i] = PAIRS ? a.y : b.x, up[2 * i + 1] = b.y;
    }
    if constexpr (SWIGLU) {
      swiglu_gradient<N>(gate, up, act);
    } else {
      activate_gradient<N>(p.formula, gate, up, act);
    }
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const float weight = weights[e / 2 % 2], slope = weight * dact[e];
      // Behind the last column there are zeros, but zero times a row's infinity is none.
      if (e / 4 * 8 < left) dots[e / 2 % 2] += dact[e] * act[e];
      gate[e] *= slope;
      up[e] *= slope;
      act[e] *= weight;
    }
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      acts[i] = pack_pair<T>(act[2 * i], act[2 * i + 1]);
      h[PAIRS ? 2 * i : i] = PAIRS ? pack_pair<T>(gate[2 * i], up[2 * i]) : pack_pair<T>(gate[2 * i], gate[2 * i + 1]);
      h[PAIRS ? 2 * i + 1 : N / 2 + i] =
          PAIRS ? pack_pair<T>(gate[2 * i + 1], up[2 * i + 1]) : pack_pair<T>(up[2 * i], up[2 * i + 1]);
    }
  }

  // Where a lane's first 16 bytes lie, in fourths of 16 lines; block 0 of four matrices of 8 x 8, elements 2i, 2i + 1 of
  // matrix i, as ldmatrix deals them out; by turns, the first of those same two columns, gate and up of each.
  __device__ static uint32_t lines_of(uint32_t staging) { return staged<LANES>(staging, line(), chunk()); }
  __device__ static uint32_t matrices_of(uint32_t staging) {
    const int lane = threadIdx.x % 32;
    return staged<LANES>(staging, lane % 16, lane / 16);
  }
  __device__ static uint32_t pairs_of(uint32_t staging) {
    const int lane = threadIdx.x % 32, t = lane % 4;
    return staged<LANES>(staging, lane / 4, t / 2) + t % 2 * 8;
  }

  // Every other fourth has the swizzle's upper half.
  __device__ static uint32_t fourth(uint32_t lines, int i) { return (i % 2 == 0 ? lines : lines ^ 64) + i * 512; }

  // Matrix i of 16 columns, by turns.
  __device__ static uint32_t pairs(uint32_t first, int strip, int block, int i) {
    const int eight = 2 * block + i / 2;
    return (first ^ eight % 4 << 5) + (2 * strip + eight / 4) * HALF_BYTES + i % 2 * 1024;
  }

  template <bool GATED> __device__ void read(uint32_t first, int strip, int block, Block &h) const {
    if constexpr (PAIRS) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint2 bits = load_shared_8(pairs(first, strip, block, i));
        h[2 * i] = bits.x, h[2 * i + 1] = bits.y;
      }
    } else {
      const uint32_t at = (first ^ block << 5) + 2 * strip * HALF_BYTES;
      uint32_t gate[4], up[4] = {};
      ldmatrix(gate, at);
      if (GATED || p.formula.gated) ldmatrix(up, at + HALF_BYTES);
#pragma unroll
      for (int i = 0; i < 4; ++i) h[i] = gate[i], h[4 + i] = up[i];
    }
  }

  template <bool GATED> __device__ void write(uint32_t first, int strip, int block, const Block &h) const {
    if constexpr (PAIRS) {
#pragma unroll
      for (int i = 0; i < 4; ++i) store_shared_8(pairs(first, strip, block, i), uint2{h[2 * i], h[2 * i + 1]});
    } else {
      const uint32_t at = (first ^ block << 5) + 2 * strip * HALF_BYTES;
      stmatrix(at, {h[0], h[1], h[2], h[3]});
      if (GATED || p.formula.gated) stmatrix(at + HALF_BYTES, {h[4], h[5], h[6], h[7]});
    }
  }

  // 16 rows of 64 columns, of which the lane has those of `rows` rows, every fourth, from its first on.
  __device__ static void load_lines(uint4 (&bits)[4], uint32_t lines) {
#pragma unroll
    for (int i = 0; i < 4; ++i) bits[i] = load_shared_16(fourth(lines, i));
  }
  __device__ static void store_lines(T *to, int64_t pitch, int rows, const uint4 (&bits)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) store_global_16(to + 4 * i * pitch, bits[i], 4 * i < rows);
  }
};

}  // namespace hopper

#define HOPPER_GLU_BWD_KERNEL(NAME, T, ACROSS, GATHERED, PAIRS)                                                      \
  extern "C" __global__ void __launch_bounds__(hopper::GEMM_THREADS, 1)                                              \
      hopper_glu_bwd_##NAME(const __grid_constant__ HopperGluBwdParams p) {                                          \
    MOE_HOPPER_ONLY(hopper::run(hopper::GluBwd<T, ACROSS, GATHERED, PAIRS>(p)));                                     \
  }
