// Few rows through many weights: c[rows, n] = a[rows, k] * w_g^T, with weights as the first operand of mma.sync, so
// that a tile is 128 outputs by as few as 8 rows. What counts is that weights stream: two warps of each block keep its run
// of them in flight, slot behind slot, whatever the four that multiply are at; and the launch behind begins to read its
// own while this one ends.
#pragma once

#include "decode_ring.cuh"
#include "decode_store.cuh"

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

  // `halves`: 8 outputs of a gate and those of its up half make 16. `rows`: that are multiplied.
  __device__ Fragments(int shift, bool halves, int rows) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warps = 4 >> shift, m = warp % warps, piece = warp / warps;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int sixteen = 2 * m + i;
      if constexpr (ACROSS) {
        const int second = lane / 8 % 2;
        const int unit = halves ? sixteen / 4 * 8 + second * 4 + sixteen % 4 : 2 * sixteen + second;
        weights[i] = swizzled(64 * piece + lane / 16 * 8 + lane % 8, unit, 256 >> shift);
      } else {
        const int line = !halves ? 16 * sixteen + lane % 16 : 8 * sixteen + lane % 8 + (lane / 8 % 2 == 0 ? 0 : 64);
        weights[i] = piece * piece_bytes(halves) + swizzled(line, lane / 16, LINE);
      }
    }
    next_k = 16 * (256 >> shift);
    tokens = DECODE_WEIGHTS + piece * rows * LINE + swizzled(lane % 8, lane / 8, LINE);
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
        ldmatrix(b, slot + (tokens ^ (half * 4 * UNIT)) + j * 8 * LINE);
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

// Puts a warp's sums of rows Exchange::ROWS * round and on where an exchange holds them.
template <int N> __device__ inline void put(const Exchange &exchange, const Sums<N> &sums, int round) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = exchange.outputs / 32, pitch = exchange.pitch();
  float *const to = exchange.room + (warp / warps * Exchange::ROWS + lane % 4 * 2) * pitch + warp % warps * 32 + lane / 4;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    if (j / 4 != round) continue;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float *const at = to + j % 4 * 8 * pitch + 16 * i;
      at[0] = sums[i][j][0];
      at[pitch] = sums[i][j][1];
      at[8] = sums[i][j][2];
      at[pitch + 8] = sums[i][j][3];
    }
  }
}

// Adds the sums of the second piece of k to those of the first, whose warps then have all.
template <int N> __device__ inline void join_pieces(float4 *room, Sums<N> &sums, int tokens) {
  const bool second = threadIdx.x >= DECODE_MULTIPLIERS / 2;
  room += threadIdx.x % (DECODE_MULTIPLIERS / 2);
#pragma unroll
  for (int turn = 0; turn < 2; ++turn) {
    wait_for_multipliers();
    if (second != (turn == 0)) continue;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        if (8 * j >= tokens) break;
        float4 &at = room[(i * N + j) * (DECODE_MULTIPLIERS / 2)];
        float(&own)[4] = sums[i][j];
        if (turn == 0) {
          at = float4{own[0], own[1], own[2], own[3]};
        } else {
          const float4 other = at;
          own[0] += other.x, own[1] += other.y, own[2] += other.z, own[3] += other.w;
        }
      }
    }
  }
}

template <class T, bool ACTIVATES, bool ACROSS, int N>
__device__ inline void multiply(const DecodeParams &p, Work<ACTIVATES, ACROSS> work, const Slots &slots) {
  const bool halves = ACTIVATES && p.formula.gated && p.block != 1;
  const bool quick = QuickEpilogue<T, ACTIVATES, ACROSS>::takes(p);
  if (p.early) wait_for_launch_ahead();
  Place place;
  Tile tile;
#pragma unroll 1
  while (work.next(p, tile)) {
    const int shift = shift_of<ACROSS, N>(tile, slots.room), warps = 4 >> shift, sixteens = tile.count * (ACROSS ? 4 : 1);
    const int first = threadIdx.x / 32 % warps * 2;
    const bool works = first < sixteens;
    const Fragments<ACROSS> fragments(shift, halves, padded<N>(tile.tokens));
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
      slots.release(place.slot);
      place.advance(slots.count);
    }

    // Sums that go through shared memory take the slot that was read last.
    uint8_t *const room = slots.data(p, place.slot);
    if (quick) {
      if (shift > 0) {
        join_pieces<N>(reinterpret_cast<float4 *>(room), sums, tile.tokens);
        if (p.boxed) fence_copies();
      }
      slots.release(place.slot);
      // Of two pieces of k the first two warps have the sums.
      const int last = threadIdx.x / 32 < warps ? sixteens : 0;
      QuickEpilogue<T, ACTIVATES, ACROSS>{p}.template store<N>(tile, first, last, sums);
    } else {
      const Exchange exchange{reinterpret_cast<float *>(room), 128 >> shift, 1 << shift};
      const Epilogue<T, ACTIVATES, ACROSS> epilogue{p, tile};
#pragma unroll
      for (int round = 0; round < (N + 3) / 4; ++round) {
        if (Exchange::ROWS * round >= tile.tokens) break;
        wait_for_multipliers();
        if (works) put<N>(exchange, sums, round);
        wait_for_multipliers();
        epilogue.store_rows(exchange, Exchange::ROWS * round);
      }
      // The copy engine may write behind what was written here.
      if (p.boxed) fence_copies();
      slots.release(place.slot);
    }
    place.advance(slots.count);
  }
}

// N: rows that go through weights at a time, in eights.
template <class T, bool ACTIVATES, bool ACROSS, int N> __device__ inline void run(const DecodeParams &p) {
  // Of boxes the bytes are counted by one arrival.
  begin(p, p.boxed ? 32 + 1 : DECODE_LOADERS);
  const Work<ACTIVATES, ACROSS> work(p);
  const Slots slots(p, room_for<N>(work));
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
