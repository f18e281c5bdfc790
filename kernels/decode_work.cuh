// How few rows through many weights are divided among blocks: granules of outputs, numbered through all groups that
// have rows, in as many equal runs as there are blocks. A block takes its run in tiles of up to 128 outputs.
#pragma once

#include "activation.cuh"
#include "params/decode.h"
#include "rows.cuh"

namespace decode {

constexpr int THREADS = DECODE_MULTIPLIERS + DECODE_LOADERS;
constexpr int WARPS = THREADS / 32;

// A group that has rows. Its granules are numbered up to `upto`.
struct alignas(16) Entry {
  int upto;
  int group;
  int begin;
  int rows;
};

struct Tile {
  int group;
  // Rows of a, from the first.
  int first;
  int tokens;
  // The first granule, and how many.
  int granule;
  int count;
};

// `combine` over the values of the threads up to this one, and of those before it; `all`: of the block. 0 is neutral.
template <class Value, class Combine>
__device__ inline void scan(Value value, Value &upto, Value &before, Value &all, Value *room, const Combine &combine) {
  upto = value;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const Value below = __shfl_up_sync(WARP, upto, distance);
    if (threadIdx.x % 32 >= distance) upto = combine(upto, below);
  }
  before = __shfl_up_sync(WARP, upto, 1);
  if (threadIdx.x % 32 == 0) before = 0;
  if (threadIdx.x % 32 == 31) room[threadIdx.x / 32] = upto;
  __syncthreads();
  all = 0;
#pragma unroll
  for (int warp = 0; warp < WARPS; ++warp) {
    if (warp == threadIdx.x / 32) upto = combine(upto, all), before = combine(before, all);
    all = combine(all, room[warp]);
  }
}

__device__ inline bool is_present(const Grouped &weight, int group) {
  return weight.pointers == nullptr || weight.pointers[group] != nullptr;
}

__device__ inline int clamped(int64_t offset, int low, int high, int place, moe_device_report_t *report) {
  if (offset < low || offset > high) record_fault(report, MOE_FAULT_GROUP_OFFSET, place, offset);
  return static_cast<int>(min(max(offset, int64_t(low)), int64_t(high)));
}

// The run of a block. ACROSS: weights lie [k, outputs], and are read by 64 of them, not 16.
template <bool ACTIVATES, bool ACROSS> struct Work {
  // Outputs of a granule, and granules of a tile.
  static constexpr int OUTPUTS = ACROSS ? 64 : 16;
  static constexpr int CAPACITY = 128 / OUTPUTS;

  int entry = 0;
  int item;
  int end;

  // Columns of c that a granule makes.
  __device__ static int columns(const DecodeParams &p) { return ACTIVATES && p.formula.gated ? OUTPUTS / 2 : OUTPUTS; }

  // Of a group and the rows that go through its weights at a time.
  __device__ static int granules(const DecodeParams &p) { return (p.n + columns(p) - 1) / columns(p); }

  // Behind the slots.
  __device__ static Entry *table(const DecodeParams &p) {
    extern __shared__ __align__(128) uint8_t shared[];
    return reinterpret_cast<Entry *>(shared + p.slots * (DECODE_WEIGHTS + DECODE_TOKEN * p.token_room));
  }

  // Reads the groups, clamps and reports as groups.cuh does. All threads of the block call together.
  __device__ explicit Work(const DecodeParams &p) {
    Entry *const entries = table(p);
    const int of_pass = granules(p);
    __shared__ int highest_of_warp[WARPS];
    __shared__ int64_t items_of_warp[WARPS];
    __shared__ int first_entry;
    const int rows_max = static_cast<int>(p.groups.rows_max), groups = static_cast<int>(p.groups.count);
    int reached = clamped(p.groups.offsets[0], 0, rows_max, 0, p.report);
    int total = 0, used = 0;
    for (int next = 0; next < groups; next += THREADS) {
      const int group = next + threadIdx.x;
      const bool here = group < groups;
      const int64_t offset = here ? p.groups.offsets[group + 1] : 0;
      const int64_t size = here && p.groups.sizes != nullptr ? p.groups.sizes[group] : 0;
      const bool present = here && is_present(p.weight, group) && is_present(p.up, group);
      // Where the next group begins is raised to where this one does, and lowered to the rows there are.
      const int within = static_cast<int>(min(max(offset, int64_t(0)), int64_t(rows_max)));
      int behind, begin, highest;
      scan(within, behind, begin, highest, highest_of_warp, [](int a, int b) { return max(a, b); });
      behind = max(behind, reached);
      begin = max(begin, reached);
      if (here) clamped(offset, begin, rows_max, group + 1, p.report);
      int rows = behind - begin;
      if (here && p.groups.sizes != nullptr) {
        if (size < 0 || size > rows) record_fault(p.report, MOE_FAULT_GROUP_SIZE, group, size);
        rows = static_cast<int>(min(max(size, int64_t(0)), int64_t(rows)));
      }
      // Granules, and above them entries.
      const bool has_work = present && rows > 0;
      const int64_t own = has_work ? int64_t(1) << 32 | (rows + p.tokens - 1) / p.tokens * of_pass : 0;
      int64_t upto, before, all;
      scan(own, upto, before, all, items_of_warp, [](int64_t a, int64_t b) { return a + b; });
      if (has_work) {
        entries[used + static_cast<int>(before >> 32)] = {total + static_cast<int>(upto), group, begin, rows};
      }
      reached = max(reached, highest);
      total += static_cast<int>(all);
      used += static_cast<int>(all >> 32);
    }
    item = static_cast<int>(int64_t(total) * blockIdx.x / gridDim.x);
    end = static_cast<int>(int64_t(total) * (blockIdx.x + 1) / gridDim.x);
    __syncthreads();
    for (int i = threadIdx.x; i < used; i += THREADS) {
      if (item < entries[i].upto && (i == 0 || entries[i - 1].upto <= item)) first_entry = i;
    }
    __syncthreads();
    if (item < end) entry = first_entry;
  }

  // The next tile; false behind the last. What is left of a pass over a group is cut evenly.
  __device__ bool next(const DecodeParams &p, Tile &tile) {
    if (item >= end) return false;
    const Entry *const entries = table(p);
    Entry from = entries[entry];
    if (from.upto <= item) from = entries[++entry];
    const int of_pass = granules(p);
    const int passes = (from.rows + p.tokens - 1) / p.tokens;
    const int place = item - (from.upto - passes * of_pass);
    const int pass = place / of_pass;
    const int first = from.rows * pass / passes;
    tile.group = from.group;
    tile.first = from.begin + first;
    tile.tokens = from.rows * (pass + 1) / passes - first;
    tile.granule = place - pass * of_pass;
    int left = min(of_pass - tile.granule, end - item);
    // Columns of one block of a gate follow each other, and so do those of its up half.
    if (ACTIVATES && !ACROSS && p.block > 1 && p.block < p.n) left = min(left, p.block / 8 - tile.granule % (p.block / 8));
    const int tiles = (left + CAPACITY - 1) / CAPACITY;
    tile.count = (left + tiles - 1) / tiles;
    item += tile.count;
    return true;
  }
};

// What the outputs of a tile are.
struct Outputs {
  const DecodeParams &p;

  // Where column i of act has its halves in a row of h.
  __device__ int gate_column(int i) const {
    const int column = p.block < p.n ? i / p.block * 2 * p.block + i % p.block : i;
    return column + (p.up_first ? p.block : 0);
  }

  __device__ int up_column(int i) const { return gate_column(i) + (p.up_first ? -p.block : p.block); }
};

}  // namespace decode
