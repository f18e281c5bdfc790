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

// The loading warps wait for each other.
__device__ inline void wait_for_loaders() { asm volatile("bar.sync 2, %0;" ::"n"(DECODE_LOADERS) : "memory"); }

// What a loading thread copies of a tile: 16 pieces, of 16 bytes, of a slot's weights. Their addresses are sums of three
// steps, and so are little to keep. ACROSS: weights lie [k, outputs].
template <class T, bool ACTIVATES, bool ACROSS> struct Weights {
  static constexpr int PIECES = DECODE_WEIGHTS / UNIT / DECODE_LOADERS;
  static constexpr uint32_t NEXT_PIECE = UNIT * DECODE_LOADERS;
  static_assert(PIECES == 16);

  // The first piece, at k; piece i is (i & 1) * step[0] + (i >> 1 & 1) * step[1] + (i >> 2) * step[2] bytes behind.
  const uint8_t *from;
  int64_t step[3];
  // Pieces that there are.
  int pieces;
  // Where the first goes, and what that differs by for every other where pieces are four lines apart.
  uint32_t to;
  uint32_t flip;
  // Elements of k before the thread's first; across, from one piece's to the next.
  int k_own;
  int k_step;
  bool aligned;

  __device__ void begin(const DecodeParams &p, const Tile &tile, int shift) {
    const int thread = threadIdx.x - DECODE_MULTIPLIERS;
    const int units = ACROSS ? 16 >> shift : 8 << shift, unit = thread % units, line = thread / units;
    const int lines = DECODE_LOADERS / units;
    const T *const weight = group_data<T>(p.weight, tile.group);
    const bool split = p.up.data != nullptr || p.up.pointers != nullptr;
    const T *const up = split ? group_data<T>(p.up, tile.group) : weight;
    const bool gated = ACTIVATES && p.formula.gated, halves = gated && !(ACROSS && p.block == 1);
    aligned = (reinterpret_cast<uint64_t>(weight) | reinterpret_cast<uint64_t>(up)) % UNIT == 0;
    to = swizzled(line, unit, units * UNIT);
    flip = lines == 4 ? 4 * UNIT : 0;
    const Outputs h{p};
    const int64_t pitch = p.weight.pitch;
    if constexpr (ACROSS) {
      // Of the 64 outputs of a granule the first 32 are the gate's, or both alternate.
      const bool is_up = halves && unit % 8 >= 4;
      const int column = (halves ? 32 : 64) * (tile.granule + unit / 8) + unit % (halves ? 4 : 8) * UNIT_ELEMENTS;
      const int columns = gated && !halves ? 2 * p.n : p.n;
      const int at = !halves || split ? column : is_up ? h.up_column(column) : h.gate_column(column);
      pieces = unit < 8 * tile.count && column < columns ? PIECES : 0;
      from = reinterpret_cast<const uint8_t *>((is_up ? up : weight) + (line * pitch + at));
      step[0] = lines * pitch * sizeof(T);
      step[1] = 2 * step[0];
      step[2] = 4 * step[0];
      k_own = line;
      k_step = lines;
    } else {
      k_own = unit * UNIT_ELEMENTS;
      k_step = 0;
      if (halves) {
        // Of 16 lines the first 8 are the gate's; the 8 columns behind are of the same block.
        const int column = 8 * tile.granule + line;
        const int gate = split ? column : h.gate_column(column);
        from = reinterpret_cast<const uint8_t *>(weight + (gate * pitch + k_own));
        const T *const other = up + ((split ? column : h.up_column(column)) * (split ? p.up.pitch : pitch) + k_own);
        const int64_t to_up = reinterpret_cast<const uint8_t *>(other) - from;
        const int64_t columns = (p.block == 1 ? 16 : 8) * pitch * sizeof(T);
        step[0] = shift == 0 ? to_up : columns / 2;
        step[1] = shift == 0 ? columns : to_up;
        step[2] = shift == 0 ? 2 * columns : columns;
        pieces = (2 << shift) * tile.count;
      } else {
        from = reinterpret_cast<const uint8_t *>(weight + ((16 * tile.granule + line) * pitch + k_own));
        step[0] = lines * pitch * sizeof(T);
        step[1] = 2 * step[0];
        step[2] = 4 * step[0];
        pieces = min(16 * tile.count, p.n - 16 * tile.granule) / lines;
      }
    }
  }

  // Copies what a slot takes from k on.
  __device__ void issue(const DecodeParams &p, uint32_t slot, int k, uint64_t policy) const {
    const uint8_t *first = from + k * (ACROSS ? p.weight.pitch : 1) * int64_t(sizeof(T));
    int line = k + k_own;
    if (!aligned) return issue_elements(p, slot, first, line);
    slot += to;
#pragma unroll
    for (int i = 0; i < PIECES; i += 4) {
      if (i < pieces) copy(p, slot, first, line, policy);
      if (i + 1 < pieces) copy(p, (slot ^ flip) + NEXT_PIECE, first + step[0], line + k_step, policy);
      if (i + 2 < pieces) copy(p, slot + 2 * NEXT_PIECE, first + step[1], line + 2 * k_step, policy);
      if (i + 3 < pieces) {
        copy(p, (slot ^ flip) + 3 * NEXT_PIECE, first + step[1] + step[0], line + 3 * k_step, policy);
      }
      first += step[2];
      slot += 4 * NEXT_PIECE;
      line += 4 * k_step;
    }
  }

private:
  __device__ static void copy(const DecodeParams &p, uint32_t to, const uint8_t *from, int line, uint64_t policy) {
    cp_async_16_once(to, from, line < p.k ? UNIT : 0, policy);
  }

  // The same element by element.
  __device__ void issue_elements(const DecodeParams &p, uint32_t slot, const uint8_t *first, int line) const {
#pragma unroll 1
    for (int i = 0; i < pieces; ++i) {
      const uint8_t *const from = first + (i & 1) * step[0] + (i >> 1 & 1) * step[1] + (i >> 2) * step[2];
      const bool inside = line + i * k_step < p.k;
#pragma unroll 1
      for (int e = 0; e < UNIT_ELEMENTS; ++e) {
        const uint16_t element = inside ? reinterpret_cast<const uint16_t *>(from)[e] : uint16_t(0);
        store_shared(slot + (to ^ (i & 1 ? flip : 0)) + i * NEXT_PIECE + sizeof(T) * e, element);
      }
    }
    __threadfence_block();
  }
};

// The same of the rows that go through them. N: at a time, in eights.
template <class T, int N> struct Tokens {
  static constexpr int PIECES = N * 8 * DECODE_TOKEN / UNIT / DECODE_LOADERS;
  static constexpr uint32_t NEXT_PIECE = UNIT * DECODE_LOADERS;

  const uint8_t *from[PIECES];
  uint32_t to;
  uint32_t flip;
  // A bit each: rows that there are, and those that are not zeros.
  unsigned here;
  unsigned values;
  int k_own;

  // All loading threads call together.
  __device__ void begin(const DecodeParams &p, const Tile &tile, int shift, int sources) {
    __shared__ int source_of[DECODE_LOADERS];
    const int thread = threadIdx.x - DECODE_MULTIPLIERS;
    const int units = 8 << shift, unit = thread % units, line = thread / units, lines = DECODE_LOADERS / units;
    wait_for_loaders();
    if (thread < tile.tokens) {
      source_of[thread] = static_cast<int>(source_row(p.gather, sources, tile.first + thread, p.report));
    }
    wait_for_loaders();
    to = DECODE_WEIGHTS + swizzled(line, unit, units * UNIT);
    flip = lines == 4 ? 4 * UNIT : 0;
    k_own = unit * UNIT_ELEMENTS;
    here = values = 0;
#pragma unroll
    for (int i = 0; i < PIECES; ++i) {
      const int row = line + i * lines;
      from[i] = p.a.data;
      if (row >= tile.tokens) continue;
      here |= 1u << i;
      const int source = source_of[row];
      if (source < 0) continue;
      values |= 1u << i;
      from[i] = reinterpret_cast<const uint8_t *>(row_of<T>(p.a, source) + k_own);
    }
  }

  __device__ void issue(const DecodeParams &p, uint32_t slot, int k) const {
    const bool inside = k + k_own < p.k;
#pragma unroll
    for (int i = 0; i < PIECES; ++i) {
      if ((here >> i & 1) == 0) continue;
      const uint32_t at = slot + (i % 2 == 0 ? to : to ^ flip) + i * NEXT_PIECE;
      cp_async_16(at, from[i] + k * int64_t(sizeof(T)), inside && (values >> i & 1) ? UNIT : 0);
    }
  }
};

}  // namespace decode
