// The ring of slots between the warps that fill them and those that multiply.
#pragma once

#include "decode_load.cuh"
#include "overlap.cuh"

namespace decode {

// The slots, and for each a barrier that completes when it is full and one when it is empty again. `room`: rows for
// which a slot has room, as many as the block's run needs.
struct Slots {
  int room;
  int count;

  __device__ Slots(const DecodeParams &p, int rows) : room(rows) { count = min(p.room / bytes(), DECODE_SLOTS); }

  // Before any slot is used: `arrivals` make one full.
  __device__ static void init(const DecodeParams &p, int arrivals) {
    if (threadIdx.x < DECODE_SLOTS) {
      mbarrier_init(full(threadIdx.x), arrivals);
      mbarrier_init(empty(threadIdx.x), DECODE_MULTIPLIERS / 32);
      if (p.boxed) fence_barriers();
    }
  }

  __device__ uint8_t *data(const DecodeParams &p, int slot) const {
    extern __shared__ __align__(1024) uint8_t shared[];
    return shared + p.table + slot * bytes();
  }

  __device__ static uint32_t barriers() {
    __shared__ uint64_t barrier[2 * DECODE_SLOTS];
    return shared_address(barrier);
  }

  __device__ int bytes() const { return DECODE_WEIGHTS + DECODE_TOKEN * room; }
  __device__ static uint32_t full(int slot) { return barriers() + 16 * slot; }
  __device__ static uint32_t empty(int slot) { return barriers() + 16 * slot + 8; }
  __device__ uint32_t address(const DecodeParams &p, int slot) const { return shared_address(data(p, slot)); }

  // A warp has read it.
  __device__ void release(int slot) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(empty(slot));
  }
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
  bool waits = p.early && rows_too;
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
    if (waits) {
      wait_for_launch_ahead();
      let_next_launch_begin();
      waits = false;
    }
    const uint32_t slot = slots.address(p, place.slot), full = slots.full(place.slot);
    if (number >= slots.count) mbarrier_wait(slots.empty(place.slot), place.parity ^ 1);
    if (weights_too && number >= issued) weights.issue(p, slot, full, k);
    if (rows_too) tokens.issue(p, slot, k);
    if (rows_too || !Source::COUNTS_BYTES) mbarrier_arrive_behind_copies(full);
    place.advance(slots.count);
  }
  if (waits) wait_for_launch_ahead();
  cp_async_commit();
  cp_async_wait<0>();
}

// Begins a launch with what depends on nothing; what is not early then waits for all that is ahead. `arrivals` make a slot
// full.
__device__ inline void begin(const DecodeParams &p, int arrivals) {
  Slots::init(p, arrivals);
  if (p.early) return;
  wait_for_launch_ahead();
  let_next_launch_begin();
}

// Rows for which slots need room; N: at most, in eights.
template <int N, class Work> __device__ inline int room_for(const Work &work) { return max(padded<N>(work.tokens), 16); }

}  // namespace decode
