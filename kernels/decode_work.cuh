// How few rows through many weights are divided among blocks: granules of outputs, numbered through all groups that
// have rows, in as many equal runs as there are blocks. A block takes its run in tiles of up to 128 outputs.
#pragma once

#include "activation.cuh"
#include "params/decode.h"
#include "rows.cuh"

namespace decode {

constexpr int THREADS = DECODE_THREADS;
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

// The sum of `value` over the threads up to this one; `all`: of the block. `room` holds WARPS numbers.
__device__ inline int inclusive_sum(int value, int &all, int *room) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int below = __shfl_up_sync(WARP, value, distance);
    if (threadIdx.x % 32 >= distance) value += below;
  }
  if (threadIdx.x % 32 == 31) room[threadIdx.x / 32] = value;
  __syncthreads();
  all = 0;
#pragma unroll
  for (int warp = 0; warp < WARPS; ++warp) {
    if (warp < threadIdx.x / 32) value += room[warp];
    all += room[warp];
  }
  __syncthreads();
  return value;
}

// The same for the largest.
__device__ inline int inclusive_max(int value, int &all, int *room) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int below = __shfl_up_sync(WARP, value, distance);
    if (threadIdx.x % 32 >= distance) value = max(value, below);
  }
  if (threadIdx.x % 32 == 31) room[threadIdx.x / 32] = value;
  __syncthreads();
  all = room[0];
#pragma unroll
  for (int warp = 0; warp < WARPS; ++warp) {
    if (warp < threadIdx.x / 32) value = max(value, room[warp]);
    all = max(all, room[warp]);
  }
  __syncthreads();
  return value;
}

__device__ inline bool is_present(const Grouped &weight, int group) {
  return weight.pointers == nullptr || weight.pointers[group] != nullptr;
}

__device__ inline int clamped(int64_t offset, int low, int high, int place, moe_device_report_t *report) {
  if (offset < low || offset > high) record_fault(report, MOE_FAULT_GROUP_OFFSET, place, offset);
  return static_cast<int>(min(max(offset, int64_t(low)), int64_t(high)));
}

// The run of a block.
struct Work {
  const Entry *entries;
  // Of a group and the rows that go through its weights at a time.
  int granules;
  int most_tokens;
  // Granules of a tile.
  int capacity;
  int entry;
  int item;
  int end;

  // Reads the groups, clamps and reports as groups.cuh does. All threads of the block call together.
  __device__ Work(const DecodeParams &p, Entry *table, int granules, int capacity)
      : entries(table), granules(granules), most_tokens(p.tokens), capacity(capacity), entry(0) {
    __shared__ int room[WARPS];
    __shared__ int first_entry;
    const int rows_max = static_cast<int>(p.groups.rows_max), groups = static_cast<int>(p.groups.count);
    int before = clamped(p.groups.offsets[0], 0, rows_max, 0, p.report);
    int total = 0, used = 0;
    for (int next = 0; next < groups; next += THREADS) {
      const int group = next + threadIdx.x;
      const bool here = group < groups;
      const int64_t offset = here ? p.groups.offsets[group + 1] : 0;
      const int64_t from = here ? p.groups.offsets[group] : 0;
      const int64_t size = here && p.groups.sizes != nullptr ? p.groups.sizes[group] : 0;
      const bool present = here && is_present(p.weight, group) && is_present(p.up, group);
      // Where the next group begins is raised to where this one does, and lowered to the rows there are.
      int highest, sum, entries_used;
      const int raised = static_cast<int>(min(max(offset, int64_t(0)), int64_t(rows_max)));
      const int behind = max(before, inclusive_max(here ? raised : 0, highest, room));
      const int own = static_cast<int>(min(max(from, int64_t(0)), int64_t(rows_max)));
      int ignored;
      const int begin = max(before, inclusive_max(here ? own : 0, ignored, room));
      if (here) clamped(offset, begin, rows_max, group + 1, p.report);
      int rows = behind - begin;
      if (here && p.groups.sizes != nullptr) {
        if (size < 0 || size > rows) record_fault(p.report, MOE_FAULT_GROUP_SIZE, group, size);
        rows = static_cast<int>(min(max(size, int64_t(0)), int64_t(rows)));
      }
      const bool has_work = present && rows > 0;
      const int items = has_work ? (rows + most_tokens - 1) / most_tokens * granules : 0;
      const int upto = total + inclusive_sum(items, sum, room);
      const int place = used + inclusive_sum(has_work, entries_used, room);
      if (has_work) table[place - 1] = {upto, group, begin, rows};
      before = max(before, highest);
      total += sum;
      used += entries_used;
    }
    item = static_cast<int>(int64_t(total) * blockIdx.x / gridDim.x);
    end = static_cast<int>(int64_t(total) * (blockIdx.x + 1) / gridDim.x);
    __syncthreads();
    for (int i = threadIdx.x; i < used; i += THREADS) {
      if (item < table[i].upto && (i == 0 || table[i - 1].upto <= item)) first_entry = i;
    }
    __syncthreads();
    if (item < end) entry = first_entry;
  }

  // The next tile; false behind the last. What is left of a pass over a group is cut evenly.
  __device__ bool next(Tile &tile) {
    if (item >= end) return false;
    Entry from = entries[entry];
    if (from.upto <= item) from = entries[++entry];
    const int passes = (from.rows + most_tokens - 1) / most_tokens;
    const int place = item - (from.upto - passes * granules);
    const int pass = place / granules;
    const int first = from.rows * pass / passes;
    tile.group = from.group;
    tile.first = from.begin + first;
    tile.tokens = from.rows * (pass + 1) / passes - first;
    tile.granule = place - pass * granules;
    const int left = min(granules - tile.granule, end - item);
    const int tiles = (left + capacity - 1) / capacity;
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
