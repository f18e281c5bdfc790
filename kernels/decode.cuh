// Few rows through many weights: c[rows, n] = a[rows, k] * w_g^T, with weights as the first operand of mma.sync, so
// that a tile is 128 outputs by as few as 8 rows. What counts is that weights stream: four warps of each block keep its
// run of them in flight, slot behind slot, whatever the eight that multiply are at; and the launch behind begins to read
// its own while this one ends.
#pragma once

#include "decode_load.cuh"
#include "overlap.cuh"

namespace decode {

// Sums of a warp: 32 outputs, of each the products with 8 * N rows. Lane 4g + t has outputs g and g + 8 of 16, rows 2t
// and 2t + 1 of 8.
template <int N> using Sums = float[2][N][4];

// Addresses of a warp's fragments in a slot: of 32 outputs or 16, and of 64 along k.
template <bool ACROSS> struct Fragments {
  // Of 16 outputs each, for the first 16 of k.
  uint32_t weights[2];
  // From those to the next 16, where they lie across.
  uint32_t next_k;
  // Of 8 rows, for the first 32 of k.
  uint32_t tokens;
  uint32_t token_step;

  // HALVES: across, the 8 outputs of a gate and those of its up half make 16.
  __device__ Fragments(int shift, bool halves) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warps = 4 >> shift, m = warp % warps, piece = warp / warps;
    const int bytes = DECODE_TOKEN << shift;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int sixteen = 2 * m + i;
      if constexpr (ACROSS) {
        const int second = lane / 8 % 2;
        const int unit = halves ? sixteen / 4 * 8 + second * 4 + sixteen % 4 : 2 * sixteen + second;
        weights[i] = swizzled(64 * piece + lane / 16 * 8 + lane % 8, unit, 256 >> shift);
      } else {
        weights[i] = piece * HALF + swizzled(16 * sixteen + lane % 16, lane / 16, LINE);
      }
    }
    next_k = 16 * (256 >> shift);
    tokens = DECODE_WEIGHTS + swizzled(lane % 8, 8 * piece + lane / 8, bytes);
    token_step = 8 * bytes;
  }

  // The products with the first 8 * N rows.
  template <class T, int N, int MOST> __device__ void multiply(Sums<MOST> &sums, uint32_t slot) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[2][2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          if constexpr (ACROSS) {
            ldmatrix_transposed(a[i][h], slot + weights[i] + (2 * half + h) * next_k);
          } else {
            ldmatrix(a[i][h], slot + (weights[i] ^ ((2 * half + h) * 2 * UNIT)));
          }
        }
      }
#pragma unroll
      for (int j = 0; j < N; ++j) {
        uint32_t b[4];
        ldmatrix(b, slot + (tokens ^ (half * 4 * UNIT)) + j * token_step);
        const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          mma(sums[i][j], a[i][0], first, T{});
          mma(sums[i][j], a[i][1], second, T{});
        }
      }
    }
  }
};

// The sums of a tile over the pieces of k, 32 rows at a time, in a slot: rows [outputs and 4] of one piece, then of the
// next.
struct Exchange {
  static constexpr int ROWS = 32;

  float *room;
  int outputs;
  int pieces;

  __device__ Exchange(uint8_t *slot, int shift)
      : room(reinterpret_cast<float *>(slot)), outputs(128 >> shift), pieces(1 << shift) {}

  __device__ int pitch() const { return outputs + 4; }

  // A warp's sums of rows ROWS * round and on.
  template <int N> __device__ void put(const Sums<N> &sums, int round) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = outputs / 32;
    float *const to = room + (warp / warps * ROWS + lane % 4 * 2) * pitch() + warp % warps * 32 + lane / 4;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (j / 4 != round) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float *const at = to + j % 4 * 8 * pitch() + 16 * i;
        at[0] = sums[i][j][0];
        at[pitch()] = sums[i][j][1];
        at[8] = sums[i][j][2];
        at[pitch() + 8] = sums[i][j][3];
      }
    }
  }

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

  // Column `place` of the tile's part of c, of row `row` of the exchange, row `own` of the tile.
  __device__ void store(const Exchange &exchange, int place, int row, int own) const {
    const bool gated = ACTIVATES && p.formula.gated;
    const int column = Work<ACTIVATES, ACROSS>::columns(p) * tile.granule + place;
    if (column >= p.n || own >= tile.tokens) return;
    const int64_t at = int64_t(tile.first) + own;
    if constexpr (ACTIVATES) {
      float gate[1], up[1] = {0.0f}, act[1];
      if (gated) {
        const bool alternate = p.block == 1;
        const int output = alternate ? 2 * place : ACROSS ? place / 8 * 16 + place % 8 : place;
        const Outputs h{p};
        gate[0] = exchange.sum(row, output) + bias(h.gate_column(column));
        up[0] = exchange.sum(row, output + (alternate ? 1 : ACROSS ? 8 : 8 * tile.count)) + bias(h.up_column(column));
      } else {
        gate[0] = exchange.sum(row, place) + bias(column);
      }
      activate<1>(p.formula, gate, up, act);
      row_of<T>(p.c, at)[column] = from_float<T>(act[0] * row_weight(p.row_weights, at, p.report));
    } else {
      float value = p.alpha * exchange.sum(row, place) + bias(column);
      const int64_t to = at * p.c.pitch + column;
      if (adds(p.mode)) value += p.beta * load_float(p.c, to);
      store_float(p.c, to, value);
    }
  }
};

// The slots, and for each a barrier that completes when it is full and one when it is empty again. `room`: rows for
// which a slot has room, as many as the block's run needs.
struct Slots {
  int room;
  int count;

  __device__ Slots(const DecodeParams &p, int rows) : room(rows) {
    count = min(p.room / bytes(), DECODE_SLOTS);
  }

  __device__ static uint8_t *data(const DecodeParams &p) {
    extern __shared__ __align__(1024) uint8_t shared[];
    return shared + p.table;
  }

  __device__ static uint32_t barriers() {
    __shared__ uint64_t barrier[2 * DECODE_SLOTS];
    return shared_address(barrier);
  }

  __device__ int bytes() const { return DECODE_WEIGHTS + DECODE_TOKEN * room; }
  __device__ static uint32_t full(int slot) { return barriers() + 16 * slot; }
  __device__ static uint32_t empty(int slot) { return barriers() + 16 * slot + 8; }
  __device__ uint32_t address(const DecodeParams &p, int slot) const { return shared_address(data(p)) + slot * bytes(); }
};

// A place in the ring of slots.
struct Place {
  int slot = 0;
  uint32_t parity = 0;

  __device__ void advance(int slots) {
    if (++slot < slots) return;
    slot = 0;
    parity ^= 1;
  }
};

// Fills the slots. Two warps do, of which one may load weights alone and the other rows alone, each slot behind slot as
// they become empty. Weights may be read early. Source: how they are copied.
template <class T, bool ACTIVATES, bool ACROSS, int N, class Source>
__device__ inline void load(const DecodeParams &p, Work<ACTIVATES, ACROSS> work, const Slots &slots, bool weights_too, bool rows_too) {
  Work<ACTIVATES, ACROSS> ahead = work;
  Source weights;
  Tile tile;
  int shift = 0, issued = 0;
#pragma unroll 1
  for (int k = p.k; p.early && weights_too && issued < slots.count; ++issued, k += 64 << shift) {
    if (k >= p.k) {
      if (!ahead.next(p, tile)) break;
      shift = shift_of<ACROSS, N>(tile, slots.room);
      weights.begin(p, tile, shift);
      k = 0;
    }
    weights.issue(p, slots.address(p, issued), slots.full(issued), k);
  }
  if (p.early && rows_too) {
    wait_for_launch_ahead();
    let_next_launch_begin();
  }
  const int sources = static_cast<int>(true_count(p.gather.rows, p.report));
  Tokens<T, N> tokens;
  Place place;
  int first = -1;
#pragma unroll 1
  for (int number = 0, k = p.k;; ++number, k += 64 << shift) {
    if (k >= p.k) {
      if (!work.next(p, tile)) break;
      const int before = shift;
      shift = shift_of<ACROSS, N>(tile, slots.room);
      if (weights_too) weights.begin(p, tile, shift);
      if (rows_too && (tile.first != first || shift != before)) tokens.begin(p, tile, shift, sources);
      first = tile.first;
      k = 0;
    }
    const uint32_t slot = slots.address(p, place.slot), full = slots.full(place.slot);
    if (number >= slots.count) mbarrier_wait(slots.empty(place.slot), place.parity ^ 1);
    if (weights_too && number >= issued) weights.issue(p, slot, full, k);
    if (rows_too) tokens.issue(p, slot, k);
    if (rows_too || !Source::COUNTS_BYTES) mbarrier_arrive_behind_copies(full);
    place.advance(slots.count);
  }
  cp_async_commit();
  cp_async_wait<0>();
}

// The multiplying warps wait for each other.
__device__ inline void wait_for_multipliers() { asm volatile("bar.sync 1, %0;" ::"n"(DECODE_MULTIPLIERS) : "memory"); }

template <class T, bool ACTIVATES, bool ACROSS, int N>
__device__ inline void multiply(const DecodeParams &p, Work<ACTIVATES, ACROSS> work, const Slots &slots) {
  const bool gated = ACTIVATES && p.formula.gated;
  if (p.early) wait_for_launch_ahead();
  const auto release = [&](int slot) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(slots.empty(slot));
  };
  Place place;
  Tile tile;
#pragma unroll 1
  while (work.next(p, tile)) {
    const int shift = shift_of<ACROSS, N>(tile, slots.room), warps = 4 >> shift, sixteens = tile.count * (ACROSS ? 4 : 1);
    const bool works = threadIdx.x / 32 % warps * 2 < sixteens;
    const Fragments<ACROSS> fragments(shift, gated && p.block != 1);
    Sums<N> sums = {};
#pragma unroll 1
    for (int left = (p.k + (64 << shift) - 1) >> (6 + shift);;) {
      mbarrier_wait(slots.full(place.slot), place.parity);
      const uint32_t slot = slots.address(p, place.slot);
      if (works) {
        if (tile.tokens <= 8) {
          fragments.template multiply<T, 1, N>(sums, slot);
        } else if (tile.tokens <= 16) {
          fragments.template multiply<T, 2, N>(sums, slot);
        } else if (N == 4 || tile.tokens <= 32) {
          fragments.template multiply<T, 4, N>(sums, slot);
        } else if (tile.tokens <= 48) {
          fragments.template multiply<T, N == 8 ? 6 : N, N>(sums, slot);
        } else {
          fragments.template multiply<T, N, N>(sums, slot);
        }
      }
      if (--left == 0) break;
      release(place.slot);
      place.advance(slots.count);
    }

    // The slot that was read last is kept for the sums.
    const Exchange exchange(slots.data(p) + place.slot * slots.bytes(), shift);
    const Epilogue<T, ACTIVATES, ACROSS> epilogue{p, tile};
    const int columns = (gated ? 8 : 16) * sixteens;
#pragma unroll
    for (int round = 0; round < (N + 3) / 4; ++round) {
      if (Exchange::ROWS * round >= tile.tokens) break;
      wait_for_multipliers();
      if (works) exchange.put(sums, round);
      wait_for_multipliers();
      const int elements = min(Exchange::ROWS, tile.tokens - Exchange::ROWS * round) * columns;
#pragma unroll 1
      for (int i = threadIdx.x; i < elements; i += DECODE_MULTIPLIERS) {
        epilogue.store(exchange, i % columns, i / columns, Exchange::ROWS * round + i / columns);
      }
    }
    // The copy engine may write behind what was written here.
    if (p.boxed) fence_copies();
    release(place.slot);
    place.advance(slots.count);
  }
}

// N: rows that go through weights at a time, in eights.
template <class T, bool ACTIVATES, bool ACROSS, int N> __device__ inline void run(const DecodeParams &p) {
  if (!p.early) {
    wait_for_launch_ahead();
    let_next_launch_begin();
  }
  const Work<ACTIVATES, ACROSS> work(p);
  const Slots slots(p, max(padded<N>(work.tokens), 16));
  if (threadIdx.x < slots.count) {
    mbarrier_init(slots.full(threadIdx.x), p.boxed ? 32 + 1 : DECODE_LOADERS);
    mbarrier_init(slots.empty(threadIdx.x), DECODE_MULTIPLIERS / 32);
    if (p.boxed) fence_barriers();
  }
  __syncthreads();
  if (threadIdx.x >= DECODE_MULTIPLIERS) {
    const bool second = threadIdx.x >= DECODE_MULTIPLIERS + 32;
    if constexpr (ACROSS) {
      load<T, ACTIVATES, ACROSS, N, Across<T, ACTIVATES>>(p, work, slots, true, second);
    } else if (p.boxed) {
      load<T, ACTIVATES, ACROSS, N, Boxes<ACTIVATES>>(p, work, slots, !second, second);
    } else {
      load<T, ACTIVATES, ACROSS, N, Lines<T, ACTIVATES>>(p, work, slots, true, second);
    }
  } else {
    multiply<T, ACTIVATES, ACROSS, N>(p, work, slots);
  }
}

}  // namespace decode

// Up to 32 rows at a time; wide: up to 64. Two blocks share a multiprocessor: while a tile of one ends, the weights of the
// other stream.
#define DECODE_KERNELS(NAME, T, ACTIVATES, ACROSS)                                                                   \
  extern "C" __global__ void __launch_bounds__(decode::THREADS, 2)                                                   \
      decode_##NAME(const __grid_constant__ DecodeParams p) {                                                        \
    decode::run<T, ACTIVATES, ACROSS, 4>(p);                                                                         \
  }                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(decode::THREADS, 2)                                                   \
      decode_wide_##NAME(const __grid_constant__ DecodeParams p) {                                                   \
    decode::run<T, ACTIVATES, ACROSS, 8>(p);                                                                         \
  }
