// What fills the slots of a pipeline: weights of a tile, and the rows that go through them. A slot holds 16 KiB of
// weights: 128 or 64 outputs (shift 0 or 1) of 64 or 128 elements along k, and as many of each row. Lines of 16-byte
// units are swizzled by their number, so that ldmatrix meets no bank twice.
#pragma once

#include "cache.cuh"
#include "decode_work.cuh"
#include "mma.cuh"

namespace decode {

constexpr int UNIT = 16;
constexpr int UNIT_ELEMENTS = 8;

// Copies 16 bytes, or zeros, through the L2 cache that they leave first: weights are read once.
__device__ inline void cp_async_16_once(uint32_t to, const void *from, uint32_t valid, uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from),
               "r"(valid), "l"(policy)
               : "memory");
}

// Where unit `unit` of line `line` lies, of lines of `bytes`.
__device__ inline uint32_t swizzled(int line, int unit, int bytes) { return line * bytes + ((unit ^ (line & 7)) * UNIT); }

// How a tile is cut: fewer outputs take longer pieces of k.
template <bool ACROSS> __device__ inline int shift_of(const DecodeParams &p, const Tile &tile) {
  const int outputs = tile.count * (ACROSS ? 64 : 16), tokens = (tile.tokens + 7) & -8;
  return outputs <= 64 && 2 * tokens <= p.token_room;
}

// What the loading warps do. ACROSS: weights lie [k, outputs]. N: rows at a time, in eights.
template <class T, bool ACTIVATES, bool ACROSS, int N> struct Stream {
  static constexpr int PIECES = DECODE_WEIGHTS / UNIT / DECODE_LOADERS;
  static constexpr int TOKEN_PIECES = N * 8 * DECODE_TOKEN / UNIT / DECODE_LOADERS;
  static constexpr uint32_t NEXT_PIECE = UNIT * DECODE_LOADERS;

  Work<ACTIVATES, ACROSS> work;
  int thread = threadIdx.x - DECODE_MULTIPLIERS;
  // Of the thread's weights; null: none. Across, all pieces are of one output.
  const uint8_t *weights[ACROSS ? 1 : PIECES];
  const uint8_t *tokens[TOKEN_PIECES];
  // Where a slot's first units go.
  uint32_t weights_to;
  uint32_t tokens_to;
  // What that differs by for every other piece, where pieces are four lines apart.
  uint32_t weights_flip;
  uint32_t tokens_flip;
  // The next piece of k: its first element.
  int k;
  int shift = -1;
  int first = -1;
  // A bit each for tokens: rows that there are, and those of zeros.
  unsigned here;
  unsigned zeros;
  bool active;
  bool aligned;

  __device__ explicit Stream(const Work<ACTIVATES, ACROSS> &work) : work(work) {}

  __device__ void issue_weights(const DecodeParams &p, uint32_t slot, uint64_t policy) const {
    const int unit_k = k + thread % (8 << shift) * UNIT_ELEMENTS;
#pragma unroll
    for (int i = 0; i < PIECES; ++i) {
      const uint8_t *const first = weights[ACROSS ? 0 : i];
      if (first == nullptr) continue;
      const int line = ACROSS ? k + (thread + i * DECODE_LOADERS) / (16 >> shift) : unit_k;
      const int64_t step = ACROSS ? p.weight.pitch * int64_t(sizeof(T)) : sizeof(T);
      copy(slot + (i % 2 == 0 ? weights_to : weights_to ^ weights_flip) + i * NEXT_PIECE, first + line * step, line < p.k, policy);
    }
  }

  __device__ void issue_tokens(const DecodeParams &p, uint32_t slot) const {
    const int unit_k = k + thread % (8 << shift) * UNIT_ELEMENTS;
#pragma unroll
    for (int i = 0; i < TOKEN_PIECES; ++i) {
      if ((here >> i & 1) == 0) continue;
      const bool inside = unit_k < p.k && (zeros >> i & 1) == 0;
      const uint32_t to = i % 2 == 0 ? tokens_to : tokens_to ^ tokens_flip;
      cp_async_16(slot + to + i * NEXT_PIECE, tokens[i] + unit_k * int64_t(sizeof(T)), inside ? UNIT : 0);
    }
  }

  // Goes on to the next slot, and where it is of another tile to that.
  __device__ void advance(const DecodeParams &p, bool of_tokens, int sources) {
    k += 64 << shift;
    if (k >= p.k) begin(p, of_tokens, sources);
  }

  // The next tile; inactive behind the last.
  __device__ void begin(const DecodeParams &p, bool of_tokens, int sources) {
    Tile tile;
    active = work.next(p, tile);
    if (!active) return;
    const int now = shift_of<ACROSS>(p, tile);
    if (of_tokens && (now != shift || tile.first != first)) {
      first = tile.first;
      find_tokens(p, tile, now, sources);
    }
    shift = now;
    k = 0;
    const T *const weight = group_data<T>(p.weight, tile.group);
    const bool split = p.up.data != nullptr || p.up.pointers != nullptr;
    const T *const up = split ? group_data<T>(p.up, tile.group) : weight;
    aligned = (reinterpret_cast<uint64_t>(weight) | reinterpret_cast<uint64_t>(up)) % UNIT == 0;
    if constexpr (ACROSS) {
      const int units = 16 >> shift, unit = thread % units;
      weights_to = swizzled(thread / units, unit, units * UNIT);
      weights_flip = flip(units);
      weights[0] = address(p, split, weight, up, tile, 8 * unit);
    } else {
      const int units = 8 << shift;
      weights_to = swizzled(thread / units, thread % units, units * UNIT);
      weights_flip = flip(units);
#pragma unroll
      for (int i = 0; i < PIECES; ++i) {
        weights[i] = address(p, split, weight, up, tile, thread / units + i * (DECODE_LOADERS / units));
      }
    }
  }

private:
  // Lines of so many units: four or more a piece.
  __device__ static uint32_t flip(int units) { return DECODE_LOADERS / units == 4 ? 4 * UNIT : 0; }

  // The weights of output `output` of a tile, or null. Of 16 outputs of a gated activation the first 8 are the gate's;
  // across, of 64 the first 32, unless gate and up alternate.
  __device__ static const uint8_t *address(const DecodeParams &p, bool split, const T *weight, const T *up, const Tile &tile,
                                           int output) {
    constexpr int GRANULE = Work<ACTIVATES, ACROSS>::OUTPUTS, HALF = GRANULE / 2;
    const int64_t step = ACROSS ? 1 : p.weight.pitch;
    if (output >= GRANULE * tile.count) return nullptr;
    if (!ACTIVATES || !p.formula.gated || (ACROSS && p.block == 1)) {
      const int at = GRANULE * tile.granule + output;
      const int outputs = ACTIVATES && p.formula.gated ? 2 * p.n : p.n;
      return at < outputs ? reinterpret_cast<const uint8_t *>(weight + at * step) : nullptr;
    }
    const Outputs h{p};
    const int column = HALF * (tile.granule + output / GRANULE) + output % HALF;
    const bool is_up = output % GRANULE >= HALF;
    if (column >= p.n) return nullptr;
    if (split) {
      return reinterpret_cast<const uint8_t *>((is_up ? up : weight) + column * (ACROSS || !is_up ? step : p.up.pitch));
    }
    return reinterpret_cast<const uint8_t *>(weight + (is_up ? h.up_column(column) : h.gate_column(column)) * step);
  }

  __device__ void find_tokens(const DecodeParams &p, const Tile &tile, int shift, int sources) {
    const int units = 8 << shift, line = thread / units;
    tokens_to = DECODE_WEIGHTS + swizzled(line, thread % units, units * UNIT);
    tokens_flip = flip(units);
    here = zeros = 0;
#pragma unroll
    for (int i = 0; i < TOKEN_PIECES; ++i) {
      const int row = line + i * (DECODE_LOADERS / units);
      tokens[i] = p.a.data;
      if (row >= tile.tokens) continue;
      here |= 1u << i;
      const int64_t source = source_row(p.gather, sources, tile.first + row, p.report);
      if (source < 0) {
        zeros |= 1u << i;
      } else {
        tokens[i] = reinterpret_cast<const uint8_t *>(row_of<T>(p.a, source));
      }
    }
  }

  __device__ void copy(uint32_t to, const uint8_t *from, bool inside, uint64_t policy) const {
    if (aligned) return cp_async_16_once(to, from, inside ? UNIT : 0, policy);
#pragma unroll 1
    for (int e = 0; e < UNIT_ELEMENTS; ++e) {
      store_shared(to + 2 * e, inside ? reinterpret_cast<const uint16_t *>(from)[e] : uint16_t(0));
    }
  }
};

}  // namespace decode
