// The plan of few slots: one block, a thread a slot and a thread a group. What counts is the time from launch to end,
// and so that code is short: all of it is fetched anew.

#include "dispatch.cuh"
#include "overlap.cuh"

namespace {

// The sum of `value` over the threads before this one; `total`: of the block, of 32 warps at most.
__device__ inline int64_t sum_before(int64_t value, int64_t &total) {
  __shared__ int64_t upto_warp[32];
  const int lane = lane_id(), warp = threadIdx.x / 32;
  const auto scan = [&](int64_t upto) {
#pragma unroll 1
    for (int distance = 1; distance < 32; distance *= 2) {
      const int64_t below = __shfl_up_sync(~0u, upto, distance);
      if (lane >= distance) upto += below;
    }
    return upto;
  };
  const int64_t upto = scan(value);
  if (lane == 31) upto_warp[warp] = upto;
  __syncthreads();
  const int warps = blockDim.x / 32;
  const int64_t sums = scan(lane < warps ? upto_warp[lane] : 0);
  total = __shfl_sync(~0u, sums, 31);
  const int64_t before = __shfl_sync(~0u, sums, max(warp - 1, 0));
  return upto - value + (warp > 0 ? before : 0);
}

__device__ inline void store_row(const DispatchPlanParams &p, int64_t row, int64_t slot, int64_t token) {
  if (p.slot_of_row.data != nullptr) store_index(p.slot_of_row, row, slot);
  if (p.token_of_row.data != nullptr) store_index(p.token_of_row, row, token);
}

// The group of a slot, or -1.
__device__ inline int group_of_slot(const DispatchPlanParams &p, int slot, int token) {
  const int64_t id = load_index(p.chosen, token * p.chosen.pitch + slot - token * static_cast<int>(p.top_k));
  if (id < 0 || id >= p.experts) {
    if (p.strict_ids && id != -1) record_fault(p.report, MOE_FAULT_EXPERT_ID, slot, id);
    return -1;
  }
  const int64_t group = p.expert_map != nullptr ? p.expert_map[id] : id - p.expert_begin;
  return group >= 0 && group < p.groups ? static_cast<int>(group) : -1;
}

}  // namespace

// Shared memory: the first and last rows of each group, then for each warp its slots in each group.
extern "C" __global__ void __launch_bounds__(1024, 1) dispatch_plan_small(const __grid_constant__ DispatchPlanParams p) {
  extern __shared__ int64_t first[];
  const int groups = static_cast<int>(p.groups), top_k = static_cast<int>(p.top_k);
  const int slot = threadIdx.x, token = slot / top_k, warps = blockDim.x / 32;
  int64_t *const last = first + groups;
  uint16_t *const counts = reinterpret_cast<uint16_t *>(last + groups);
  uint16_t *const own = counts + threadIdx.x / 32 * groups;
  for (int g = lane_id(); g < groups; g += 32) own[g] = 0;
  wait_for_launch_ahead();
  let_next_launch_begin();

  const int tokens = static_cast<int>(true_count(p.tokens, p.report));
  const bool chosen = token < tokens;
  const int group = chosen ? group_of_slot(p, slot, token) : -1;
  for (int e = threadIdx.x; p.expert_map != nullptr && e < p.experts; e += blockDim.x) {
    const int32_t to = p.expert_map[e];
    if (to < -1 || to >= groups) record_fault(p.report, MOE_FAULT_MAP_ENTRY, e, to);
  }
  const uint32_t peers = __match_any_sync(~0u, group);
  const int rank = __popc(peers & ((1u << lane_id()) - 1));
  if (group >= 0 && rank == 0) own[group] = static_cast<uint16_t>(__popc(peers));
  __syncthreads();

  // Where groups begin and end; the counts of a warp become its first place in the group.
  const int g = threadIdx.x;
  int count = 0;
#pragma unroll 4
  for (int warp = 0; g < groups && warp < warps; ++warp) {
    const int here = counts[warp * groups + g];
    counts[warp * groups + g] = static_cast<uint16_t>(count);
    count += here;
  }
  const int64_t room = p.rows & -p.alignment;
  const int64_t limit = p.rows_per_group > 0 ? p.rows_per_group : count;
  const int64_t size = g < groups ? (limit + p.alignment - 1) & -p.alignment : 0;
  int64_t rows;
  const int64_t begin = sum_before(size, rows);
  const int64_t start = min(begin, room), end = min(begin + size, room);
  const int64_t ends = start + min(min(int64_t(count), limit), end - start);
  if (g < groups) {
    first[g] = start;
    last[g] = ends;
    p.group_offsets[g] = start;
    if (p.group_sizes != nullptr) p.group_sizes[g] = ends - start;
  }
  if (g == 0) {
    p.group_offsets[groups] = min(rows, room);
    if (rows > room) record_fault(p.report, MOE_FAULT_OVERFLOW, p.rows, rows);
    if (p.slot_offsets.data != nullptr) store_index(p.slot_offsets, tokens, tokens * top_k);
  }
  uint32_t padded = __ballot_sync(~0u, g < groups && ends < end);
  for (; padded != 0; padded &= padded - 1) {
    const int lane = __ffs(padded) - 1;
    const int64_t to = __shfl_sync(~0u, end, lane);
    for (int64_t row = __shfl_sync(~0u, ends, lane) + lane_id(); row < to; row += 32) store_row(p, row, -1, -1);
  }
  __syncthreads();

  if (!chosen) return;
  if (p.slot_offsets.data != nullptr && slot == token * top_k) store_index(p.slot_offsets, token, slot);
  int64_t row = group < 0 ? -1 : first[group] + own[group] + rank;
  if (row >= 0 && row >= last[group]) row = -1;
  store_index(p.row_of_slot, slot, row);
  if (row >= 0) store_row(p, row, slot, token);
}
