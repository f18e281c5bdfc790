// What fills the slots of a pipeline: weights of a tile, and the rows that go through them. A slot holds 16 KiB of
// weights: 128 or 64 outputs (shift 0 or 1) of 64 or 128 elements along k, and as many of each row. Lines of 16-byte
// units are swizzled by their number, so that ldmatrix meets no bank twice.
#pragma once

#include "cache.cuh"
#include "decode_work.cuh"
#include "hopper_ptx.cuh"
#include "mbarrier.cuh"

namespace decode {

constexpr int UNIT = 16;
constexpr int UNIT_ELEMENTS = 8;
// Of weights that lie [outputs, k] a line has 64 elements.
constexpr int LINE = 128;
constexpr int HALF = DECODE_WEIGHTS / 2;
// Of the smallest box; each size is twice the one before.
constexpr int BOX_LINES = 8;

// Copies 16 bytes, or zeros, through the L2 cache that they leave first: weights are read once.
__device__ inline void cp_async_16_once(uint32_t to, const void *from, uint32_t valid, uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from),
               "r"(valid), "l"(policy)
               : "memory");
}

// The same of a box, whose bytes the barrier counts.
__device__ inline void copy_box_once(uint32_t to, const TensorMap *map, uint32_t barrier, int x, int y, int z, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, %5}], "
      "[%2], %6;" ::"r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "l"(policy) : "memory");
}

// The same element by element where they are not aligned.
template <class T, bool ALIGNED> __device__ inline void copy(uint32_t to, const uint8_t *from, bool inside, uint64_t policy) {
  if constexpr (ALIGNED) {
    cp_async_16_once(to, from, inside ? UNIT : 0, policy);
  } else {
#pragma unroll 1
    for (int e = 0; e < UNIT_ELEMENTS; ++e) {
      store_shared(to + sizeof(T) * e, inside ? reinterpret_cast<const uint16_t *>(from)[e] : uint16_t(0));
    }
    __threadfence_block();
  }
}

// Makes initialised barriers visible to the copy engine.
__device__ inline void fence_barriers() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  hopper::barrier_init_fence();
#endif
}

// Orders what this thread wrote into shared memory before what the copy engine will.
__device__ inline void fence_copies() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  hopper::fence_async();
#endif
}

// Where unit `unit` of line `line` lies, of lines of `bytes`.
__device__ inline uint32_t swizzled(int line, int unit, int bytes) { return line * bytes + ((unit ^ (line & 7)) * UNIT); }

// How many rows are multiplied where there are so many; N: at most, in eights.
template <int N> __device__ inline int padded(int tokens) {
  return tokens <= 8 ? 8 : tokens <= 16 ? 16 : N == 4 || tokens <= 32 ? 32 : tokens <= 48 ? 48 : 64;
}

// Of weights that lie [outputs, k], from the first 64 along k to the others. Where there are a gate and its up half, lines
// of the latter begin in the middle of the slot.
__device__ inline uint32_t piece_bytes(bool halves) { return halves ? HALF / 2 : HALF; }

// How a tile is cut: fewer outputs take longer pieces of k. `room`: rows for which a slot has room.
template <bool ACROSS, int N> __device__ inline int shift_of(const Tile &tile, int room) {
  return tile.count * (ACROSS ? 64 : 16) <= 64 && 2 * padded<N>(tile.tokens) <= room;
}

// The outputs of a tile as rows of weights that lie [outputs, k]: one run of them, or the gate's and then the up half's.
template <bool ACTIVATES> struct Runs {
  int first[2];
  int lines;
  bool halves;
  // The second is of weights of its own.
  bool split;

  __device__ void begin(const DecodeParams &p, const Tile &tile) {
    const bool gated = ACTIVATES && p.formula.gated;
    halves = gated && p.block != 1;
    split = ACTIVATES && (p.up.data != nullptr || p.up.pointers != nullptr);
    const Outputs h{p};
    first[0] = !halves ? 16 * tile.granule : split ? 8 * tile.granule : h.gate_column(8 * tile.granule);
    first[1] = !halves || split ? first[0] : h.up_column(8 * tile.granule);
    lines = halves ? 8 * tile.count : gated ? 16 * tile.count : min(16 * tile.count, p.n - 16 * tile.granule);
  }
};

// Weights that lie [outputs, k], copied by boxes of one warp: the largest that fit, a lane each.
template <bool ACTIVATES> struct Boxes {
  static constexpr bool COUNTS_BYTES = true;

  const TensorMap *map;
  int row;
  int group;
  int k_own;
  uint32_t to;
  uint32_t bytes;
  bool copies;
  uint64_t policy = evict_first();

  __device__ void begin(const DecodeParams &p, const Tile &tile, int shift) {
    Runs<ACTIVATES> runs;
    runs.begin(p, tile);
    const int eights = runs.lines / BOX_LINES, boxes = (eights >> 3) + __popc(eights & 7);
    const int lane = threadIdx.x % 32, part = lane / boxes, run = part & runs.halves, half = part >> runs.halves;
    int place = 0, size = 0;
    for (int ahead = lane - part * boxes, left = eights;; --ahead) {
      size = left >= 8 ? 3 : left >= 4 ? 2 : left >= 2 ? 1 : 0;
      if (ahead == 0) break;
      place += 1 << size;
      left -= 1 << size;
    }
    map = p.boxes[run & runs.split] + size;
    row = (run == 0 ? runs.first[0] : runs.first[1]) + place * BOX_LINES;
    group = tile.group;
    k_own = 64 * half;
    to = half * piece_bytes(runs.halves) + run * HALF + place * BOX_LINES * LINE;
    bytes = runs.lines * LINE << (shift + runs.halves);
    copies = half <= shift;
  }

  __device__ void issue(const DecodeParams &, uint32_t slot, uint32_t full, int k) const {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    if (threadIdx.x % 32 == 0) hopper::barrier_expect(full, bytes);
    __syncwarp();
    if (copies) copy_box_once(slot + to, map, full, k + k_own, row, group, policy);
#endif
  }
};

// The same by 16 bytes.
template <class T, bool ACTIVATES> struct Lines {
  static constexpr bool COUNTS_BYTES = false;

  Runs<ACTIVATES> runs;
  // The thread's first piece of each run, and from one to the next, eight lines behind.
  const uint8_t *from[2];
  int64_t step[2];
  int shift;
  bool aligned;
  uint64_t policy = evict_first();

  __device__ void begin(const DecodeParams &p, const Tile &tile, int cut) {
    runs.begin(p, tile);
    shift = cut;
    const int thread = threadIdx.x % DECODE_LOADERS;
    aligned = true;
#pragma unroll
    for (int run = 0; run < 2; ++run) {
      const bool own = run == 1 && runs.split;
      const T *const weight = group_data<T>(own ? p.up : p.weight, tile.group);
      const int64_t pitch = own ? p.up.pitch : p.weight.pitch;
      aligned &= reinterpret_cast<uint64_t>(weight) % UNIT == 0;
      from[run] = reinterpret_cast<const uint8_t *>(weight + (runs.first[run] + thread / 8) * pitch + thread % 8 * UNIT_ELEMENTS);
      step[run] = 8 * pitch * sizeof(T);
    }
  }

  __device__ void issue(const DecodeParams &p, uint32_t slot, uint32_t, int k) const {
    if (aligned) {
      issue<true, 8>(p, slot, k);
    } else {
      issue<false, 1>(p, slot, k);
    }
  }

private:
  template <bool ALIGNED, int UNROLL> __device__ void issue(const DecodeParams &p, uint32_t slot, int k) const {
    const int thread = threadIdx.x % DECODE_LOADERS, unit = thread % 8;
#pragma unroll 1
    for (int half = 0; half <= shift; ++half) {
      const int at = k + 64 * half;
      const bool inside = at + unit * UNIT_ELEMENTS < p.k;
#pragma unroll
      for (int run = 0; run < (ACTIVATES ? 2 : 1); ++run) {
        if (run > runs.halves) break;
        const uint8_t *piece = from[run] + at * int64_t(sizeof(T));
        uint32_t to = slot + half * piece_bytes(runs.halves) + run * HALF + swizzled(thread / 8, unit, LINE);
#pragma unroll UNROLL
        for (int line = 0; line < runs.lines; line += 8) {
          copy<T, ALIGNED>(to, piece, inside, policy);
          to += 8 * LINE;
          piece += step[run];
        }
      }
    }
  }
};

// Weights that lie [k, outputs], by 16 bytes.
template <class T, bool ACTIVATES> struct Across {
  static constexpr bool COUNTS_BYTES = false;

  // The first piece, at k, which is line `line` of the slot and unit `unit` of that; and from one to the next.
  const uint8_t *from;
  int64_t step;
  int line;
  int unit;
  // None for a thread whose outputs are not there.
  int lines;
  int shift;
  bool aligned;
  uint64_t policy = evict_first();

  __device__ void begin(const DecodeParams &p, const Tile &tile, int cut) {
    shift = cut;
    const int thread = threadIdx.x % DECODE_LOADERS, units = 16 >> shift;
    const T *const weight = group_data<T>(p.weight, tile.group);
    const bool split = p.up.data != nullptr || p.up.pointers != nullptr;
    const T *const up = split ? group_data<T>(p.up, tile.group) : weight;
    const bool gated = ACTIVATES && p.formula.gated, halves = gated && p.block != 1;
    const Outputs h{p};
    aligned = (reinterpret_cast<uint64_t>(weight) | reinterpret_cast<uint64_t>(up)) % UNIT == 0;
    line = thread / units;
    unit = thread % units;
    // Of the 64 outputs of a granule the first 32 are the gate's, or both alternate.
    const bool is_up = halves && unit % 8 >= 4;
    const int column = (halves ? 32 : 64) * (tile.granule + unit / 8) + unit % (halves ? 4 : 8) * UNIT_ELEMENTS;
    const int columns = gated && !halves ? 2 * p.n : p.n;
    const int at = !halves || split ? column : is_up ? h.up_column(column) : h.gate_column(column);
    lines = unit < 8 * tile.count && column < columns ? 64 << shift : 0;
    from = reinterpret_cast<const uint8_t *>((is_up ? up : weight) + (line * p.weight.pitch + at));
    step = (4 << shift) * p.weight.pitch * sizeof(T);
  }

  __device__ void issue(const DecodeParams &p, uint32_t slot, uint32_t, int k) const {
    if (aligned) {
      issue<true, 8>(p, slot, k);
    } else {
      issue<false, 1>(p, slot, k);
    }
  }

private:
  template <bool ALIGNED, int UNROLL> __device__ void issue(const DecodeParams &p, uint32_t slot, int k) const {
    const uint8_t *piece = from + k * p.weight.pitch * int64_t(sizeof(T));
#pragma unroll UNROLL
    for (int at = line; at < lines; at += 4 << shift, piece += step) {
      copy<T, ALIGNED>(slot + swizzled(at, unit, 256 >> shift), piece, k + at < p.k, policy);
    }
  }
};

// The rows that go through them, by 16 bytes of one warp. N: at a time, in eights.
template <class T, int N> struct Tokens {
  static constexpr int PIECES = N * 8 * DECODE_TOKEN / UNIT / 32;

  const uint8_t *from[PIECES];
  uint32_t to;
  // From a piece to the next, which is 4 lines behind or 2; swizzled by the parity of its number and of half of it.
  uint32_t next;
  uint32_t flip;
  // Pieces that some lane has; a bit each: the lane's that there are, and those that are not zeros.
  int pieces;
  unsigned here;
  unsigned values;
  int k_own;

  // All loading threads call together.
  __device__ void begin(const DecodeParams &p, const Tile &tile, int shift, int sources) {
    __shared__ int source_of[8 * N];
    const int lane = threadIdx.x % 32;
    const int units = 8 << shift, unit = lane % units, line = lane / units, lines = 32 / units;
    __syncwarp();
    for (int row = lane; row < tile.tokens; row += 32) {
      source_of[row] = static_cast<int>(source_row(p.gather, sources, tile.first + row, p.report));
    }
    __syncwarp();
    // Of two pieces of k the rows of one lie behind those of the other.
    to = DECODE_WEIGHTS + unit / 8 * padded<N>(tile.tokens) * LINE + swizzled(line, unit % 8, LINE);
    next = lines * LINE;
    flip = lines * UNIT;
    k_own = unit * UNIT_ELEMENTS;
    pieces = (tile.tokens + lines - 1) / lines;
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
    const int64_t along = k * int64_t(sizeof(T));
    const uint32_t upper = flip == 4 * UNIT ? 0 : 4 * UNIT;
#pragma unroll
    for (int i = 0; i < PIECES; ++i) {
      if (i >= pieces) break;
      if ((here >> i & 1) == 0) continue;
      const uint32_t line = (i & 1 ? flip : 0) ^ (i & 2 ? upper : 0);
      cp_async_16((slot + i * next) + (to ^ line), from[i] + along, inside && (values >> i & 1) ? UNIT : 0);
    }
  }
};

}  // namespace decode
