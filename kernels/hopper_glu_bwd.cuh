// Back through fc2 and the activation in one, on Hopper. With dact = dy W2 and w a row's weight: dh = w act'(h) dact,
// w act(h), and of each row <dact, act(h)>.
//
// A tile is 128 columns of act. What its epilogue reads of h is copied while its products are under way, into the
// place where the gradients are laid out to be written.
#pragma once

#include "activation.cuh"
#include "hopper_rows.cuh"
#include "params/fused.h"
#include "rows.cuh"

namespace hopper {

template <class T, bool ACROSS, bool GATHERED> struct GluBwd : Rows<T, 128, true, ACROSS, GATHERED> {
  static constexpr int COLUMNS = 128;
  static constexpr bool PREPARES = true;
  static constexpr bool ROLLED = true;
  // Of h, 16 rows of a strip of 64 columns: the gate's, then up's.
  static constexpr int STRIP = 64;
  static constexpr int STRIPS = COLUMNS / STRIP;
  static constexpr int HALF_BYTES = 16 * STRIP * 2;
  static constexpr int STAGING = STRIPS * 2 * HALF_BYTES;
  static constexpr int LANES = 8;

  const HopperGluBwdParams &p;

  __device__ explicit GluBwd(const HopperGluBwdParams &p) : p(p) {}

  __device__ const Groups &groups() const { return p.groups; }
  __device__ moe_device_report_t *report() const { return p.report; }
  __device__ const Gather &gather() const { return p.gather; }
  __device__ const Matrix &a_matrix() const { return p.a; }

  __device__ int units(const Span &span) const { return this->units_of_rows(span, p.formula.ffn, COLUMNS); }

  __device__ Tile tile(const Work &work, int unit, int rank) const {
    Tile tile = this->tile_of_rows(work, unit, rank, p.formula.ffn, COLUMNS, p.k);
    tile.inner[0] = inner_of(p.b_boxes, tile.group);
    return tile;
  }

  __device__ void acquire(const Tile &tile) const { hopper::acquire(p.b_boxes, tile.group); }

  __device__ Box a(const Tile &tile) const { return box_of(p.a_boxes, tile.begin + tile.row, 0); }
  __device__ Box b(const Tile &tile, int column) const {
    return box_of(p.b_boxes, tile.column + column, tile.group, tile.inner[0]);
  }

  __device__ void prepare(const Tile &tile, int row, uint32_t staging) const {
#pragma unroll
    for (int strip = 0; strip < STRIPS; ++strip) fetch(tile, row, strip, staging);
  }

  __device__ void finish(const Tile &tile, int row, float (&sums)[COLUMNS / 2], uint32_t staging) const {
    const int lane = threadIdx.x % 32, columns = p.formula.ffn - tile.column;
    float weights[2], dots[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = row + lane / 4 + 8 * i;
      weights[i] = r < tile.rows ? row_weight(p.row_weights, tile.begin + tile.row + r, p.report) : 0.0f;
    }
#pragma unroll
    for (int strip = 0; strip < STRIPS; ++strip) {
      const uint32_t gate = staging + strip * (2 * HALF_BYTES), up = gate + HALF_BYTES;
      // Of this strip and the one behind it, the first has come.
      cp_async_wait<STRIPS - 1>();
      __syncwarp();
      uint32_t acts[STRIP / 16][4];
#pragma unroll
      for (int block = 0; block < STRIP / 8; block += 2) {
        const uint32_t at = staged<LANES>(gate, lane % 16, lane / 16) ^ block << 4;
        const int left = columns - strip * STRIP - block * 8;
        differentiate(at, sums + 4 * (strip * STRIP / 8 + block), left, weights, dots, acts[block / 2]);
      }
      __syncwarp();
      store(p.dh, tile, row, p.gate_at, strip, gate);
      if (p.formula.gated) store(p.dh, tile, row, p.up_at, strip, up);
      if (p.weighted_act.data != nullptr) {
        __syncwarp();
#pragma unroll
        for (int block = 0; block < STRIP / 8; block += 2) {
          stmatrix(staged<LANES>(gate, lane % 16, lane / 16) ^ block << 4, acts[block / 2]);
        }
        __syncwarp();
        store(p.weighted_act, tile, row, 0, strip, gate);
      }
      __syncwarp();
      // The same strip of the warp's other rows.
      fetch(tile, row + 64, strip, staging);
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
  // A lane's 16 bytes of each fourth of a strip's 16 rows.
  __device__ static int line() { return threadIdx.x % 32 / LANES; }
  __device__ static int chunk() { return threadIdx.x % LANES; }

  __device__ T *place(const Matrix &matrix, const Tile &tile, int row, int first, int strip) const {
    const int64_t column = first + tile.column + strip * STRIP + chunk() * 8;
    return reinterpret_cast<T *>(matrix.data) + (tile.begin + tile.row + row + line()) * matrix.pitch + column;
  }

  // Begins to copy a strip of h, rows `row` and on; what does not exist becomes zero. One group of copies.
  __device__ void fetch(const Tile &tile, int row, int strip, uint32_t staging) const {
    const bool exists = tile.column + strip * STRIP + chunk() * 8 < p.formula.ffn;
    const uint32_t to = staging + strip * (2 * HALF_BYTES);
    // A tile's last rows are followed by those of another tile, or by none.
    if (row < min(tile.rows, TILE_ROWS)) {
      const T *const gate = place(p.h, tile, row, p.gate_at, strip);
      const T *const up = place(p.h, tile, row, p.up_at, strip);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t valid = exists && row + line() + 4 * i < tile.rows ? 16 : 0;
        const uint32_t at = staged<LANES>(to, line() + 4 * i, chunk());
        cp_async_16(at, gate + 4 * i * p.h.pitch, valid);
        if (p.formula.gated) cp_async_16(at + HALF_BYTES, up + 4 * i * p.h.pitch, valid);
      }
    }
    cp_async_commit();
  }

  // 16 columns of 16 rows, of which `left` columns exist: h at `at` and up's half behind it become their gradients.
  __device__ void differentiate(uint32_t at, const float *dact, int left, const float (&weights)[2], float (&dots)[2],
                                uint32_t (&acts)[4]) const {
    constexpr int N = 8;
    Floats<N> gate, up = {}, act;
    uint32_t bits[4];
    ldmatrix(bits, at);
    unpack<T>(gate, uint4{bits[0], bits[1], bits[2], bits[3]});
    if (p.formula.gated) {
      ldmatrix(bits, at + HALF_BYTES);
      unpack<T>(up, uint4{bits[0], bits[1], bits[2], bits[3]});
    }
    activate_gradient<N>(p.formula, gate, up, act);
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
    for (int i = 0; i < 4; ++i) {
      bits[i] = pack_pair<T>(gate[2 * i], gate[2 * i + 1]);
      acts[i] = pack_pair<T>(act[2 * i], act[2 * i + 1]);
    }
    stmatrix(at, bits);
    if (p.formula.gated) {
#pragma unroll
      for (int i = 0; i < 4; ++i) bits[i] = pack_pair<T>(up[2 * i], up[2 * i + 1]);
      stmatrix(at + HALF_BYTES, bits);
    }
  }

  // 16 rows of a strip that lies at `from`, into the columns from `first` on.
  __device__ void store(const Matrix &to, const Tile &tile, int row, int first, int strip, uint32_t from) const {
    const bool exists = tile.column + strip * STRIP + chunk() * 8 < p.formula.ffn;
    T *const out = place(to, tile, row, first, strip);
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

#define HOPPER_GLU_BWD_KERNEL(NAME, T, ACROSS, GATHERED)                                                             \
  extern "C" __global__ void __launch_bounds__(hopper::GEMM_THREADS, 1)                                              \
      hopper_glu_bwd_##NAME(const __grid_constant__ HopperGluBwdParams p) {                                          \
    MOE_HOPPER_ONLY(hopper::run(hopper::GluBwd<T, ACROSS, GATHERED>(p)));                                            \
  }
