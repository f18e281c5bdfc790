// Rows sorted by group, as the device's offsets and sizes say: clamped and reported like src/cpu/groups.rs.
#pragma once

#include "count.cuh"
#include "dtype.cuh"
#include "report.cuh"

// The true rows of a group.
struct Span {
  int64_t group;
  int64_t begin;
  int64_t rows;
  // Where the group's padding ends.
  int64_t end;
};

constexpr unsigned WARP = 0xffffffff;

// Sum of the lanes up to this one.
__device__ inline int64_t sum_to_lane(int64_t value) {
  for (int distance = 1; distance < 32; distance *= 2) {
    const int64_t below = __shfl_up_sync(WARP, value, distance);
    if (threadIdx.x % 32 >= distance) value += below;
  }
  return value;
}

// Largest of the lanes up to this one.
__device__ inline int64_t max_to_lane(int64_t value) {
  for (int distance = 1; distance < 32; distance *= 2) {
    const int64_t below = __shfl_up_sync(WARP, value, distance);
    if (threadIdx.x % 32 >= distance) value = max(value, below);
  }
  return value;
}

// Walks a warp through the groups, 32 at a time. Work items are numbered through, group after group. Begins as zeros.
struct GroupScan {
  // The first of the 32.
  int64_t group;
  // Where the groups before it end.
  int64_t end;
  // Items of the groups before it.
  int64_t items;

  // The group of `item`, and the item's number in it; false behind the last. `items_of(span)` says how many a group
  // has. All lanes of a warp call together; items ascend from call to call.
  template <class ItemsOf>
  __device__ bool find(const Groups &groups, int64_t item, moe_device_report_t *report, const ItemsOf &items_of,
                       Span &found, int64_t &place) {
    for (; group < groups.count; group += 32) {
      const Span mine = lane_span(groups, report);
      const int64_t count = mine.group < groups.count ? items_of(mine) : 0;
      const int64_t upto = items + sum_to_lane(count);
      const unsigned later = __ballot_sync(WARP, item < upto);
      if (later != 0) {
        const int lane = __ffs(later) - 1;
        found.group = group + lane;
        found.begin = __shfl_sync(WARP, mine.begin, lane);
        found.rows = __shfl_sync(WARP, mine.rows, lane);
        found.end = __shfl_sync(WARP, mine.end, lane);
        place = item - __shfl_sync(WARP, upto - count, lane);
        return true;
      }
      items = __shfl_sync(WARP, upto, 31);
      end = __shfl_sync(WARP, mine.end, 31);
    }
    return false;
  }

  // Calls `take(span, exists)` for all groups, 32 at a time, one a lane.
  template <class Take> __device__ void each(const Groups &groups, moe_device_report_t *report, const Take &take) {
    for (; group < groups.count; group += 32) {
      const Span mine = lane_span(groups, report);
      take(mine, mine.group < groups.count);
      end = __shfl_sync(WARP, mine.end, 31);
    }
  }

private:
  // The lane's group. Where the next begins is raised to where this one does, and lowered to the rows there are.
  __device__ Span lane_span(const Groups &groups, moe_device_report_t *report) const {
    const int lane = threadIdx.x % 32;
    const int64_t g = group + lane;
    const bool here = g < groups.count;
    const int64_t size = here && groups.sizes != nullptr ? groups.sizes[g] : 0;
    int64_t before = end;
    int64_t behind;
    if (groups.offsets != nullptr) {
      if (group == 0) before = clamped_offset(groups, 0, 0, report);
      const int64_t offset = here ? groups.offsets[g + 1] : 0;
      behind = max(before, max_to_lane(min(max(offset, int64_t(0)), groups.rows_max)));
    } else {
      behind = min(before + sum_to_lane(min(max(size, int64_t(0)), groups.rows_max)), groups.rows_max);
    }
    const int64_t previous = __shfl_up_sync(WARP, behind, 1);
    const int64_t begin = lane == 0 ? before : previous;
    if (groups.offsets != nullptr && here) clamped_offset(groups, g + 1, begin, report);
    const int64_t room = groups.offsets != nullptr ? behind - begin : groups.rows_max - begin;
    if (size < 0 || size > room) record_fault(report, MOE_FAULT_GROUP_SIZE, g, size);
    const int64_t rows = groups.sizes != nullptr ? min(max(size, int64_t(0)), room) : behind - begin;
    return {g, begin, rows, behind};
  }

  __device__ static int64_t clamped_offset(const Groups &groups, int64_t place, int64_t low, moe_device_report_t *report) {
    const int64_t offset = groups.offsets[place];
    if (offset < low || offset > groups.rows_max) record_fault(report, MOE_FAULT_GROUP_OFFSET, place, offset);
    return min(max(offset, low), groups.rows_max);
  }
};

// The source of row `r`: `r` itself without an index, -1 for a row of zeros.
__device__ inline int64_t source_row(const Gather &gather, int64_t bound, int64_t r, moe_device_report_t *report) {
  if (gather.index.data == nullptr) return r;
  const int64_t source = load_index(gather.index, r);
  if (source < bound) return max(source, int64_t(-1));
  record_fault(report, gather.fault, r, source);
  return -1;
}
