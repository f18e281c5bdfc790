// How the sums of a tile become elements of c: what most models ask for out of registers, all else 32 rows at a time
// through a slot.
#pragma once

#include <type_traits>

#include "decode_work.cuh"

namespace decode {

// The multiplying warps wait for each other.
__device__ inline void wait_for_multipliers() { asm volatile("bar.sync 1, %0;" ::"n"(DECODE_MULTIPLIERS) : "memory"); }

// Sums as rows [outputs and 4] of one piece of k, then of the next.
struct Exchange {
  static constexpr int ROWS = 32;

  float *room;
  int outputs;
  int pieces;

  __device__ int pitch() const { return outputs + 4; }

  // In the order of the pieces.
  __device__ float sum(int row, int output) const {
    float sum = 0.0f;
    for (int piece = 0; piece < pieces; ++piece) sum += room[(piece * ROWS + row) * pitch() + output];
    return sum;
  }
};

// Where the sums of a tile go.
template <class T, bool ACTIVATES, bool ACROSS> struct Epilogue {
  const DecodeParams &p;
  const Tile &tile;

  __device__ float bias(int column) const {
    return p.bias.data == nullptr ? 0.0f : load_float(p.bias, tile.group * p.bias.pitch + column);
  }

  // Column `place` of the tile's part of c, of row `row` of the exchange, row `at` of c.
  __device__ void store(const Exchange &exchange, int place, int row, int64_t at, float weight) const {
    const int column = Work<ACTIVATES, ACROSS>::columns(p) * tile.granule + place;
    if (column >= p.n) return;
    if constexpr (ACTIVATES) {
      float gate[1], up[1] = {0.0f}, act[1];
      if (p.formula.gated) {
        const bool alternate = p.block == 1;
        const int output = alternate ? 2 * place : place / 8 * 16 + place % 8;
        const Outputs h{p};
        gate[0] = exchange.sum(row, output) + bias(h.gate_column(column));
        up[0] = exchange.sum(row, output + (alternate ? 1 : 8)) + bias(h.up_column(column));
      } else {
        gate[0] = exchange.sum(row, place) + bias(column);
      }
      activate<1>(p.formula, gate, up, act);
      row_of<T>(p.c, at)[column] = from_float<T>(act[0] * weight);
    } else {
      float value = p.alpha * exchange.sum(row, place) + bias(column);
      const int64_t to = at * p.c.pitch + column;
      if (adds(p.mode)) value += p.beta * load_float(p.c, to);
      store_float(p.c, to, value);
    }
  }

  // Rows `first` and on of the tile, as many as the exchange holds: a warp takes 32 columns of a row at a time.
  __device__ void store_rows(const Exchange &exchange, int first) const {
    const int rows = min(Exchange::ROWS, tile.tokens - first);
    const int columns = Work<ACTIVATES, ACROSS>::columns(p) * tile.count;
    const int strips = (columns + 31) & -32;
    int row = 0, place = threadIdx.x;
#pragma unroll 1
    for (;; place += DECODE_MULTIPLIERS) {
      while (place >= strips) place -= strips, ++row;
      if (row >= rows) break;
      const int64_t at = int64_t(tile.first) + first + row;
      if (place < columns) store(exchange, place, row, at, ACTIVATES ? row_weight(p.row_weights, at, p.report) : 1.0f);
    }
  }
};

__device__ inline uint32_t pack(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t &>(pair);
}

__device__ inline uint32_t pack(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const uint32_t &>(pair);
}

// The same straight out of the registers of mma.sync, whose lane 4g + t has a column of c in two rows, 2t and 2t + 1 of
// 8: neighbours trade, so that each has two columns of one row.
template <class T, bool ACTIVATES, bool ACROSS> struct QuickEpilogue {
  const DecodeParams &p;

  // silu(gate) * up of weights in two blocks, or plain sums; to c's own 16 bits, without a bias.
  __device__ static bool takes(const DecodeParams &p) {
    const bool pairs = p.c.pitch % 2 == 0 && reinterpret_cast<uint64_t>(p.c.data) % 4 == 0 && p.bias.data == nullptr;
    if constexpr (ACTIVATES) return pairs && is_swiglu(p.formula) && p.block != 1;
    const bool own = p.c.dtype == (std::is_same_v<T, __half> ? MOE_DTYPE_FP16 : MOE_DTYPE_BF16);
    return pairs && own && !p.mode.add && p.mode.device == nullptr;
  }

  // A warp's sums of 16 outputs and of the next 16, from the `first` 16 of the tile on, of which there are `last`.
  template <int N> __device__ void store(const Tile &tile, int first, int last, const float (&sums)[2][N][4]) const {
    constexpr int OWN = ACTIVATES ? 8 : 16;
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, odd = g % 2;
    const int column = Work<ACTIVATES, ACROSS>::columns(p) * tile.granule + OWN * first + g - odd;
    int row = 2 * t + odd;
    T *to = row_of<T>(p.c, int64_t(tile.first) + row) + column;
#pragma unroll
    for (int j = 0; j < N; ++j, row += 8, to += 8 * p.c.pitch) {
      if (8 * j >= tile.tokens) break;
      const bool here = row < tile.tokens;
      float factor = p.alpha;
      if (ACTIVATES) factor = here ? row_weight(p.row_weights, int64_t(tile.first) + row, p.report) : 0.0f;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (first + i >= last) break;
        const float(&own)[4] = sums[i][j];
        const bool inside = here && column + OWN * i < p.n;
        if constexpr (ACTIVATES) {
          const float gate[2] = {own[0], own[1]}, up[2] = {own[2], own[3]};
          float act[2];
          swiglu<2>(gate, up, act);
          trade(to + OWN * i, act[0], act[1], factor, odd, inside);
        } else {
          trade(to + OWN * i, own[0], own[1], factor, odd, inside);
          trade(to + OWN * i + 8, own[2], own[3], factor, odd, inside && column + OWN * i + 8 < p.n);
        }
      }
    }
  }

private:
  // `first` and `second`: of the lane's column, in the two rows, of which it keeps the `odd` one.
  __device__ static void trade(T *to, float first, float second, float factor, bool odd, bool here) {
    const float other = __shfl_xor_sync(WARP, odd ? first : second, 4);
    const float low = odd ? other : first, high = odd ? second : other;
    if (here) *reinterpret_cast<uint32_t *>(to) = pack(low * factor, high * factor, T{});
  }
};

}  // namespace decode
