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
  // What a block that begins a group loses by its narrower tiles, in granules: runs count so many before each group.
  static constexpr int BEGINNING = ACROSS ? 0 : 2;

  int entry = 0;
  int item;
  int end;
  // The most rows that go through weights at a time in this run.
  int tokens = 0;

  // Columns of c that a granule makes, and the power of two that they are.
  __device__ static int columns(const DecodeParams &p) { return 1 << columns_log2(p); }
  __device__ static int columns_log2(const DecodeParams &p) { return (ACROSS ? 6 : 4) - (ACTIVATES && p.formula.gated ? 1 : 0); }

  // Of a group and the rows that go through its weights at a time.
  __device__ static int granules(const DecodeParams &p) { return (p.n + columns(p) - 1) >> columns_log2(p); }

  // Before the slots.
  __device__ static Entry *table() {
    extern __shared__ __align__(1024) uint8_t shared[];
    return reinterpret_cast<Entry *>(shared);
  }

  // How often a group's weights are read for so many rows.
  __device__ static int passes(const DecodeParams &p, int rows) {
    return rows <= p.tokens ? rows > 0 : (rows + p.tokens - 1) / p.tokens;
  }

  // Where the run of a block begins.
  __device__ static int begin_of(unsigned total, unsigned block) {
    if (total < 1u << 20) return total * block / gridDim.x;
    return static_cast<int>(uint64_t(total) * block / gridDim.x);
  }

  // Reads the groups. All threads of the block call together.
  __device__ explicit Work(const DecodeParams &p) {
    const Entry *const entries = table();
    __shared__ int first_entry, most;
    if (threadIdx.x == 0) most = 0;
    int total, used;
    if (!list(p, total, used)) list_clamped(p, total, used);
    total += BEGINNING * used;
    item = begin_of(total, blockIdx.x);
    end = begin_of(total, blockIdx.x + 1);
    __syncthreads();
    for (int i = threadIdx.x; i < used; i += THREADS) {
      const int from = i == 0 ? 0 : upto_of(i - 1), upto = upto_of(i), rows = entries[i].rows, count = passes(p, rows);
      if (item < upto && from <= item) first_entry = i;
      if (item < upto && from < end) atomicMax(&most, (rows + count - 1) / count);
    }
    __syncthreads();
    if (item < end) entry = first_entry;
    tokens = most;
  }

  // The next tile; false behind the last. All but the last of a pass are whole: a block's share of the bandwidth is what it has
  // under way, and a slot holds a whole tile or half of one.
  __device__ bool next(const DecodeParams &p, Tile &tile) {
    if (item >= end) return false;
    if (upto_of(entry) <= item) ++entry;
    const Entry from = table()[entry];
    const int of_pass = granules(p);
    const int count = passes(p, from.rows);
    const int first_item = upto_of(entry) - count * of_pass;
    item = max(item, first_item);
    if (item >= end) return false;
    const int place = item - first_item;
    const int pass = count == 1 ? 0 : place / of_pass;
    const int first = count == 1 ? 0 : from.rows * pass / count;
    tile.group = from.group;
    tile.first = from.begin + first;
    tile.tokens = count == 1 ? from.rows : from.rows * (pass + 1) / count - first;
    tile.granule = place - pass * of_pass;
    int left = min(of_pass - tile.granule, end - item);
    // Columns of one block of a gate follow each other, and so do those of its up half.
    if (ACTIVATES && !ACROSS && p.block > 1 && p.block < p.n) left = min(left, p.block / 8 - tile.granule % (p.block / 8));
    tile.count = min(left, CAPACITY);
    item += tile.count;
    return true;
  }

private:
  // The items of a group end there.
  __device__ static int upto_of(int entry) { return table()[entry].upto + BEGINNING * (entry + 1); }

  // Of some groups: their granules, and how many have rows; -1: something of them cannot be.
  struct Part {
    int granules;
    int listed;
  };

  // Lists the groups that have rows, with granules and entries before them; false: some offset or size cannot be.
  __device__ static bool list(const DecodeParams &p, int &total, int &used) {
    Entry *const entries = table();
    const int of_pass = granules(p), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    __shared__ Part of_warp[2][WARPS];
    const int64_t rows_max = p.groups.rows_max;
    const int groups = static_cast<int>(p.groups.count);
    total = used = 0;
    for (int next = 0, turn = 0; next < groups; next += THREADS, turn ^= 1) {
      const int group = next + threadIdx.x;
      const bool here = group < groups;
      const int64_t begin = here ? p.groups.offsets[group] : 0, behind = here ? p.groups.offsets[group + 1] : 0;
      const int64_t size = here && p.groups.sizes != nullptr ? p.groups.sizes[group] : behind - begin;
      const bool present = here && is_present(p.weight, group) && is_present(p.up, group);
      const bool sound = begin >= 0 && begin <= behind && behind <= rows_max && size >= 0 && size <= behind - begin;
      const int rows = sound && present ? static_cast<int>(size) : 0, own = passes(p, rows) * of_pass;
      const unsigned listed = __ballot_sync(WARP, rows > 0);
      int upto = own;
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const int below = __shfl_up_sync(WARP, upto, distance);
        if (lane >= distance) upto += below;
      }
      const bool all_sound = __ballot_sync(WARP, sound) == WARP;
      if (lane == 31) of_warp[turn][warp] = {upto, all_sound ? __popc(listed) : -1};
      __syncthreads();
      bool faulty = false;
      int place = used + __popc(listed & ((1u << lane) - 1));
      upto += total;
#pragma unroll
      for (int other = 0; other < WARPS; ++other) {
        const Part part = of_warp[turn][other];
        if (other < warp) upto += part.granules, place += part.listed;
        total += part.granules;
        used += part.listed;
        faulty |= part.listed < 0;
      }
      if (faulty) return false;
      if (rows > 0) entries[place] = {upto, group, static_cast<int>(begin), rows};
    }
    return true;
  }

  // The same where something has to be clamped and reported, as groups.cuh does: by one thread.
  __device__ static void list_clamped(const DecodeParams &p, int &total, int &used) {
    __shared__ Part sums;
    if (threadIdx.x == 0) {
      const int rows_max = static_cast<int>(p.groups.rows_max), groups = static_cast<int>(p.groups.count);
      int begin = clamped(p.groups.offsets[0], 0, rows_max, 0, p.report);
      sums = {0, 0};
      for (int group = 0; group < groups; ++group) {
        const int behind = clamped(p.groups.offsets[group + 1], begin, rows_max, group + 1, p.report);
        int rows = behind - begin;
        if (p.groups.sizes != nullptr) {
          const int64_t size = p.groups.sizes[group];
          if (size < 0 || size > rows) record_fault(p.report, MOE_FAULT_GROUP_SIZE, group, size);
          rows = static_cast<int>(min(max(size, int64_t(0)), int64_t(rows)));
        }
        if (rows > 0 && is_present(p.weight, group) && is_present(p.up, group)) {
          sums.granules += passes(p, rows) * granules(p);
          table()[sums.listed++] = {sums.granules, group, begin, rows};
        }
        begin = behind;
      }
    }
    __syncthreads();
    total = sums.granules;
    used = sums.listed;
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
