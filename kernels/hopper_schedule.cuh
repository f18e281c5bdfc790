// Which tiles a block of the Hopper GEMM computes, found from the group sizes on the device.
//
// Tiles have 128 rows. A cluster of two blocks takes a unit at a time: two tiles of the same columns, one above the
// other, which share B; or, of a group's last odd row of tiles, two neighbours, which share nothing. Units are numbered
// through, group after group; cluster c takes c, c + clusters, ... Groups may be ordered by size, largest first; then
// every second round runs backwards, so that each cluster gets about the same work.
#pragma once

#include <climits>

#include "groups.cuh"

namespace hopper {

constexpr int TILE_ROWS = 128;
constexpr int CLUSTER = 2;

__host__ __device__ constexpr int blocks(int length, int size) { return (length + size - 1) / size; }

// A group that has work.
struct alignas(16) Work {
  int group;
  int begin;
  int rows;
  // Its units and those of the groups before it.
  int units;
};

// Units of a matrix of so many tiles.
__device__ inline int units_of(int tile_rows, int tile_columns) {
  return tile_rows / 2 * tile_columns + tile_rows % 2 * blocks(tile_columns, CLUSTER);
}

struct Place {
  int row;
  int column;
  // The other block of the cluster multiplies with the same B.
  bool shared;
};

// Where the unit-th unit's tile for block `rank` of the cluster is; the column may lie outside.
//
// Pairs of tile rows go in bands, column by column, so that the tiles under way at one time share both operands in L2.
__device__ inline Place place_of(unsigned unit, int tile_rows, int tile_columns, int rank) {
  constexpr unsigned BAND = 8;
  const unsigned pairs = tile_rows / 2, paired = pairs * tile_columns;
  if (unit >= paired) return {tile_rows - 1, static_cast<int>(2 * (unit - paired) + rank), false};
  const unsigned band = unit / (BAND * tile_columns);
  const unsigned height = min(BAND, pairs - band * BAND);
  const unsigned rest = unit - band * BAND * tile_columns;
  const unsigned column = rest / height;
  return {static_cast<int>(2 * (band * BAND + rest - column * height) + rank), static_cast<int>(column), true};
}

// Room for the schedule of so many groups: the list, and what building it takes besides.
struct ScheduleRoom {
  Work *list;
  // Lent until the schedule is built: a second list, and the offsets and sizes.
  Work *unordered;
  int64_t *offsets;
  int64_t *sizes;
  int *count;
};

// Fills `room.list` and `*room.count`; all threads of the block call. `units(span)`: the units of a group.
template <class Units>
__device__ inline void build_schedule(const ScheduleRoom &room, const Groups &groups, bool largest_first,
                                      moe_device_report_t *report, const Units &units) {
  for (int g = threadIdx.x; g < groups.count; g += blockDim.x) {
    if (groups.offsets != nullptr) room.offsets[g] = groups.offsets[g];
    if (groups.sizes != nullptr) room.sizes[g] = groups.sizes[g];
  }
  if (threadIdx.x == 0 && groups.offsets != nullptr) room.offsets[groups.count] = groups.offsets[groups.count];
  __syncthreads();
  if (threadIdx.x < 32) {
    Groups local = groups;
    if (groups.offsets != nullptr) local.offsets = room.offsets;
    if (groups.sizes != nullptr) local.sizes = room.sizes;
    int found = 0;
    GroupScan().each(local, report, [&](const Span &span, bool exists) {
      const int count = exists ? units(span) : 0;
      const unsigned with_work = __ballot_sync(WARP, count > 0);
      if (count > 0) {
        const int place = found + __popc(with_work & ((1u << threadIdx.x) - 1));
        room.unordered[place] = {static_cast<int>(span.group), static_cast<int>(span.begin), static_cast<int>(span.rows), count};
      }
      found += __popc(with_work);
    });
    if (threadIdx.x == 0) *room.count = found;
  }
  __syncthreads();
  const int count = *room.count;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const Work mine = room.unordered[i];
    int rank = i;
    if (largest_first) {
      rank = 0;
      for (int j = 0; j < count; ++j) {
        const int rows = room.unordered[j].rows;
        rank += rows > mine.rows || (rows == mine.rows && j < i);
      }
    }
    room.list[rank] = mine;
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    int before = 0;
    for (int first = 0; first < count; first += 32) {
      const int i = first + static_cast<int>(threadIdx.x);
      int upto = i < count ? room.list[i].units : 0;
      for (int distance = 1; distance < 32; distance *= 2) {
        const int below = __shfl_up_sync(WARP, upto, distance);
        if (static_cast<int>(threadIdx.x) >= distance) upto += below;
      }
      if (i < count) room.list[i].units = before + upto;
      before += __shfl_sync(WARP, upto, 31);
    }
  }
  __syncthreads();
}

// Walks a cluster through its units, or through some of them.
struct Cursor {
  // The entry of the present unit, and the units before that entry.
  int entry = 0;
  int before = 0;

  // The cluster's unit of that round, behind those found before, by all lanes of a warp together: its number in the group
  // that `list[entry]` names; false behind the last. Looks at so many groups at once.
  __device__ bool find(const Work *list, int count, bool alternates, int round, int &unit) {
    const int clusters = gridDim.x / CLUSTER, mine = blockIdx.x / CLUSTER, lane = threadIdx.x % 32;
    const int number = round * clusters + (alternates && round % 2 == 1 ? clusters - 1 - mine : mine);
    while (entry < count) {
      const int upto = entry + lane < count ? list[entry + lane].units : INT_MAX;
      const unsigned behind = __ballot_sync(WARP, upto > number);
      const int passed = behind == 0 ? 32 : __ffs(behind) - 1;
      const int last = __shfl_sync(WARP, upto, max(passed - 1, 0));
      if (passed > 0) before = last;
      entry += passed;
      if (passed < 32) break;
    }
    unit = number - before;
    return entry < count;
  }
};

}  // namespace hopper
