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
      for (int i = 0; i < 2; ++i) {
        dots[i] += __shfl_xor_sync(WARP, dots[i], 1);
        dots[i] += __shfl_xor_sync(WARP, dots[i], 2);
        const int r = row + lane / 4 + 8 * i;
        if (lane % 4 == 0 && r < tile.rows) {
          p.dots[int64_t(tile.begin + tile.row + r) * p.dots_of_row + tile.column / COLUMNS] = dots[i];
        }
      }
    }
  }

private:
  template <bool SWIGLU>
  __device__ void finish_strips(const Tile &tile, int row, const float *sums, uint32_t staging, const float (&weights)[2],
                                float (&dots)[2]) const {
    const int lane = threadIdx.x % 32, columns = p.formula.ffn - tile.column;
    const bool gated = SWIGLU || p.formula.gated;
#pragma unroll
    for (int strip = 0; strip < STRIPS; ++strip) {
      const uint32_t h = staging + strip * (2 * HALF_BYTES);
      // Of this strip and the one behind it, the first has come.
      cp_async_wait<STRIPS - 1>();
      __syncwarp();
      uint32_t acts[STRIP / 16][4];
#pragma unroll
      for (int block = 0; block < STRIP / 8; block += 2) {
        const int left = columns - strip * STRIP - block * 8;
        differentiate<SWIGLU>(h, block, sums + 4 * (strip * STRIP / 8 + block), left, weights, dots, acts[block / 2]);
      }
      __syncwarp();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (half == 1 && !gated) continue;
        store(p.dh, tile, row, h_column(tile, strip, half), h_columns(half), h + half * HALF_BYTES);
      }
      if (p.weighted_act.data != nullptr) {
        __syncwarp();
#pragma unroll
        for (int block = 0; block < STRIP / 8; block += 2) {
          stmatrix(staged<LANES>(h, lane % 16, lane / 16) ^ block << 4, acts[block / 2]);
        }
        __syncwarp();
        store(p.weighted_act, tile, row, tile.column + strip * STRIP, p.formula.ffn, h);
      }
      __syncwarp();
      // The same strip of the warp's other rows.
      fetch(tile, row + 64, strip, staging);
    }
  }

  // A lane's 16 bytes of each fourth of a strip's 16 rows.
  __device__ static int line() { return threadIdx.x % 32 / LANES; }
  __device__ static int chunk() { return threadIdx.x % LANES; }

  // Where 64 columns of h begin, and where the columns end that they belong to.
  __device__ int h_column(const Tile &tile, int strip, int half) const {
    if (PAIRS) return 2 * (tile.column + strip * STRIP) + half * STRIP;
    return (half == 0 ? p.gate_at : p.up_at) + tile.column + strip * STRIP;
  }
  __device__ int h_columns(int half) const {
    if (PAIRS) return 2 * p.formula.ffn;
    return (half == 0 ? p.gate_at : p.up_at) + p.formula.ffn;
  }

  // The lane's first 16 bytes of rows `row` and on, in the 64 columns from `column` on.
  __device__ T *place(const Matrix &matrix, const Tile &tile, int row, int column) const {
    return reinterpret_cast<T *>(matrix.data) + (tile.begin + tile.row + row + line()) * matrix.pitch + column + chunk() * 8;
  }

  // Begins to copy a strip of h, rows `row` and on; what does not exist becomes zero. One group of copies.
  __device__ void fetch(const Tile &tile, int row, int strip, uint32_t staging) const {
    // A tile's last rows are followed by those of another tile, or by none.
    if (row < min(tile.rows, TILE_ROWS)) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (half == 1 && !p.formula.gated) continue;
        const int column = h_column(tile, strip, half);
        const bool exists = column + chunk() * 8 < h_columns(half);
        const uint32_t to = staging + (2 * strip + half) * HALF_BYTES;
        const T *const from = place(p.h, tile, row, column);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t valid = exists && row + line() + 4 * i < tile.rows ? 16 : 0;
          cp_async_16(staged<LANES>(to, line() + 4 * i, chunk()), from + 4 * i * p.h.pitch, valid);
        }
      }
    }
    cp_async_commit();
  }

  // 16 columns of 16 rows, of which `left` columns exist, from block `block` of 8 on: h becomes its gradient.
  template <bool SWIGLU>
  __device__ void differentiate(uint32_t h, int block, const float *dact, int left, const float (&weights)[2],
                                float (&dots)[2], uint32_t (&acts)[4]) const {
    constexpr int N = 8;
    Floats<N> gate, up = {}, act;
    read<SWIGLU>(h, block, gate, up);
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
    for (int i = 0; i < 4; ++i) acts[i] = pack_pair<T>(act[2 * i], act[2 * i + 1]);
    write<SWIGLU>(h, block, gate, up);
  }

  // Four matrices of 8 x 8 at that block: elements 2i, 2i + 1 are of matrix i, as ldmatrix deals them out.
  __device__ static uint32_t matrices(uint32_t strip, int block) {
    const int lane = threadIdx.x % 32;
    return staged<LANES>(strip, lane % 16, lane / 16) ^ block << 4;
  }

  // By turns: the same two columns of matrix i, gate and up of each.
  __device__ static uint32_t pairs(uint32_t strip, int block, int i) {
    const int lane = threadIdx.x % 32, t = lane % 4, of_strip = block + i / 2;
    const uint32_t half = strip + of_strip / 4 * HALF_BYTES;
    return staged<LANES>(half, lane / 4 + i % 2 * 8, of_strip % 4 * 2 + t / 2) + t % 2 * 8;
  }

  template <bool GATED> __device__ void read(uint32_t h, int block, Floats<8> &gate, Floats<8> &up) const {
    if constexpr (PAIRS) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint2 bits = load_shared_8(pairs(h, block, i));
        const float2 first = unpack_pair<T>(bits.x), second = unpack_pair<T>(bits.y);
        gate[2 * i] = first.x, up[2 * i] = first.y;
        gate[2 * i + 1] = second.x, up[2 * i + 1] = second.y;
      }
    } else {
      uint32_t bits[4];
      ldmatrix(bits, matrices(h, block));
      unpack<T>(gate, uint4{bits[0], bits[1], bits[2], bits[3]});
      if (!GATED && !p.formula.gated) return;
      ldmatrix(bits, matrices(h + HALF_BYTES, block));
      unpack<T>(up, uint4{bits[0], bits[1], bits[2], bits[3]});
    }
  }

  template <bool GATED> __device__ void write(uint32_t h, int block, const Floats<8> &gate, const Floats<8> &up) const {
    if constexpr (PAIRS) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint2 bits = {pack_pair<T>(gate[2 * i], up[2 * i]), pack_pair<T>(gate[2 * i + 1], up[2 * i + 1])};
        store_shared_8(pairs(h, block, i), bits);
      }
    } else {
      uint32_t bits[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) bits[i] = pack_pair<T>(gate[2 * i], gate[2 * i + 1]);
      stmatrix(matrices(h, block), bits);
      if (!GATED && !p.formula.gated) return;
#pragma unroll
      for (int i = 0; i < 4; ++i) bits[i] = pack_pair<T>(up[2 * i], up[2 * i + 1]);
      stmatrix(matrices(h + HALF_BYTES, block), bits);
    }
  }

  // 16 rows of 64 columns that lie at `from`, into those from `column` on, of which there are some up to `columns`.
  __device__ void store(const Matrix &to, const Tile &tile, int row, int column, int columns, uint32_t from) const {
    const bool exists = column + chunk() * 8 < columns;
    T *const out = place(to, tile, row, column);
    uint4 bits[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) bits[i] = load_shared_16(staged<LANES>(from, line() + 4 * i, chunk()));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (exists && row + line() + 4 * i < tile.rows) *reinterpret_cast<uint4 *>(out + 4 * i * to.pitch) = bits[i];
    }
  }
};

}  // namespace hopper

#define HOPPER_GLU_BWD_KERNEL(NAME, T, ACROSS, GATHERED, PAIRS)                                                      \
  extern "C" __global__ void __launch_bounds__(hopper::GEMM_THREADS, 1)                                              \
      hopper_glu_bwd_##NAME(const __grid_constant__ HopperGluBwdParams p) {                                          \
    MOE_HOPPER_ONLY(hopper::run(hopper::GluBwd<T, ACROSS, GATHERED, PAIRS>(p)));                                     \
  }
