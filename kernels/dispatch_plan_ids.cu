// The plan of ids for up to 1024 groups: a stable counting sort of slots, in code that is short, since all of it is
// fetched anew at each launch.
//
// Each warp has a run of slots. It counts them by group; with the counts of all blocks it knows its first row in each
// group, and places them in a second walk. One block does so in one launch; several take two, of which the second has
// counted its own slots when the counts of the others are there.

#include "dispatch.cuh"
#include "overlap.cuh"

namespace {

// What a block has in shared memory.
struct Tables {
  // [groups]: the block's first row; where the rows end that are kept.
  int64_t *first;
  int64_t *last;
  // [parts, quads] of a sum over blocks, four groups a thread: of those before this one, and of all.
  uint4 *before;
  uint4 *all;
  // [warps, groups]: a warp's slots, then its next place among the block's.
  uint16_t *counts;

  __device__ Tables(const DispatchPlanParams &p, int64_t *shared)
      : first(shared),
        last(first + p.groups),
        before(reinterpret_cast<uint4 *>(last + p.groups)),
        all(before + blockDim.x),
        counts(reinterpret_cast<uint16_t *>(all + blockDim.x)) {}
};

// An id as it is loaded: to widen it is to wait for it.
struct Id {
  uint32_t low;
  uint32_t high;

  __device__ Id(const Matrix &ids, int64_t place) : high(0) {
    if (ids.dtype == MOE_DTYPE_INT64) {
      const uint2 words = reinterpret_cast<const uint2 *>(ids.data)[place];
      low = words.x, high = words.y;
    } else {
      low = reinterpret_cast<const uint32_t *>(ids.data)[place];
    }
  }
  __device__ int64_t value(const Matrix &ids) const {
    return ids.dtype == MOE_DTYPE_INT64 ? static_cast<int64_t>(uint64_t(high) << 32 | low) : static_cast<int32_t>(low);
  }
};

// The group of a slot's id, or -1.
template <bool REPORT> __device__ inline int group_of(const DispatchPlanParams &p, int64_t id, uint32_t slot) {
  if (id < 0 || id >= p.experts) {
    if (REPORT && p.strict_ids && id != -1) record_fault(p.report, MOE_FAULT_EXPERT_ID, slot, id);
    return -1;
  }
  const int64_t group = p.expert_map != nullptr ? p.expert_map[id] : id - p.expert_begin;
  return group >= 0 && group < p.groups ? static_cast<int>(group) : -1;
}

// Calls step(chosen, group, slot, token, k) for the slots of this warp's run, whole warps at a time.
template <bool REPORT, class Step> __device__ inline void walk(const DispatchPlanParams &p, uint32_t slots, Step step) {
  const uint32_t warps = blockDim.x / 32, warp = blockIdx.x * warps + threadIdx.x / 32, top_k = p.top_k;
  const uint32_t begin = warp * p.run, end = min(begin + static_cast<uint32_t>(p.run), slots);
  uint32_t slot = begin + lane_id(), token = slot / top_k, k = slot - token * top_k;
  const auto load = [&] { return Id(p.chosen, slot < end ? token * p.chosen.pitch + k : 0); };
  if (begin >= end) return;
  Id next = load();
#pragma unroll 1
  for (uint32_t i = begin; i < end; i += 32) {
    const Id id = next;
    const uint32_t own = slot, own_token = token, own_k = k;
    slot += 32, token += p.step_tokens, k += p.step_k;
    if (k >= top_k) k -= top_k, ++token;
    next = load();
    const bool chosen = own < end;
    step(chosen, chosen ? group_of<REPORT>(p, id.value(p.chosen), own) : -1, own, own_token, own_k);
  }
}

// Counts the block's slots. Counts of warps become first places; returns the sum of group threadIdx.x.
template <bool REPORT>
__device__ inline uint32_t count(const DispatchPlanParams &p, const Tables &tables, uint32_t slots) {
  const int groups = static_cast<int>(p.groups), warps = blockDim.x / 32;
  uint16_t *const own = tables.counts + threadIdx.x / 32 * groups;
#pragma unroll 1
  for (int g = lane_id(); g < groups; g += 32) own[g] = 0;
  __syncwarp();
  walk<REPORT>(p, slots, [&](bool, int group, uint32_t, uint32_t, uint32_t) {
    const uint32_t peers = __match_any_sync(~0u, group);
    if (group >= 0 && (peers & ((1u << lane_id()) - 1)) == 0) own[group] += static_cast<uint16_t>(__popc(peers));
    __syncwarp();
  });
  __syncthreads();
  uint32_t sum = 0;
  if (threadIdx.x >= groups) return sum;
#pragma unroll 4
  for (int warp = 0; warp < warps; ++warp) {
    uint16_t &place = tables.counts[warp * groups + threadIdx.x];
    const uint32_t here = place;
    place = static_cast<uint16_t>(sum);
    sum += here;
  }
  return sum;
}

__device__ inline void add(uint4 &sum, const uint4 &more) {
  sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
}

// Rows of the blocks' counts, by fours.
__device__ inline uint32_t quads_of(const DispatchPlanParams &p) { return (static_cast<uint32_t>(p.groups) + 3) / 4; }

// Sums of the counts of the blocks, for group threadIdx.x: of those before this one, and of all.
__device__ inline void add_blocks(const DispatchPlanParams &p, const Tables &tables, uint32_t &before, uint32_t &all) {
  constexpr uint32_t AT_ONCE = 10;
  const uint32_t quads = quads_of(p), parts = blockDim.x / quads, part = threadIdx.x / quads;
  if (part < parts) {
    const uint4 *const from = reinterpret_cast<const uint4 *>(p.counts) + threadIdx.x - part * quads;
    uint4 ahead = make_uint4(0, 0, 0, 0), sum = ahead;
#pragma unroll 1
    for (uint32_t block = part; block < gridDim.x; block += AT_ONCE * parts) {
      uint4 some[AT_ONCE];
#pragma unroll
      for (uint32_t i = 0; i < AT_ONCE; ++i) {
        const uint32_t other = block + i * parts;
        some[i] = make_uint4(0, 0, 0, 0);
        if (other < gridDim.x) some[i] = __ldcg(from + other * quads);
      }
#pragma unroll
      for (uint32_t i = 0; i < AT_ONCE; ++i) {
        add(sum, some[i]);
        if (block + i * parts < blockIdx.x) add(ahead, some[i]);
      }
    }
    tables.before[threadIdx.x] = ahead;
    tables.all[threadIdx.x] = sum;
  }
  __syncthreads();
  before = all = 0;
  if (threadIdx.x >= p.groups) return;
  const uint32_t *const befores = reinterpret_cast<const uint32_t *>(tables.before) + threadIdx.x;
  const uint32_t *const alls = reinterpret_cast<const uint32_t *>(tables.all) + threadIdx.x;
#pragma unroll 4
  for (uint32_t other = 0; other < parts; ++other) {
    before += befores[4 * other * quads];
    all += alls[4 * other * quads];
  }
}

// The sum of `value` over the threads before this one; `total`: of the block, of 32 warps at most.
__device__ inline int64_t sum_before(int64_t value, int64_t &total) {
  __shared__ int64_t of_warp[32];
  const int lane = lane_id(), warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const auto scan = [&](int64_t upto) {
#pragma unroll 1
    for (int distance = 1; distance < 32; distance *= 2) {
      const int64_t below = __shfl_up_sync(~0u, upto, distance);
      if (lane >= distance) upto += below;
    }
    return upto;
  };
  const int64_t upto = scan(value);
  if (lane == 31) of_warp[warp] = upto;
  __syncthreads();
  const int64_t sums = scan(lane < warps ? of_warp[lane] : 0);
  total = __shfl_sync(~0u, sums, 31);
  const int64_t before = __shfl_sync(~0u, sums, max(warp - 1, 0));
  return upto - value + (warp > 0 ? before : 0);
}

__device__ inline void store_row(const DispatchPlanParams &p, int64_t row, int64_t slot, int64_t token) {
  if (p.slot_of_row.data != nullptr) store_index(p.slot_of_row, row, slot);
  if (p.token_of_row.data != nullptr) store_index(p.token_of_row, row, token);
}

// Where the groups begin and end; one of the blocks writes it down, each fills the padding of some groups.
__device__ inline void place_groups(const DispatchPlanParams &p, const Tables &tables, uint32_t before, uint32_t count) {
  const int64_t group = threadIdx.x, room = p.rows & -p.alignment;
  const bool valid = group < p.groups;
  const int64_t limit = p.rows_per_group > 0 ? p.rows_per_group : count;
  int64_t rows;
  const int64_t size = valid ? (limit + p.alignment - 1) & -p.alignment : 0, begin = sum_before(size, rows);
  const int64_t start = min(begin, room), end = min(begin + size, room);
  const int64_t last = start + min(min(int64_t(count), limit), end - start);
  if (valid) {
    tables.first[group] = start + before;
    tables.last[group] = last;
  }
  if (valid && blockIdx.x == 0) {
    p.group_offsets[group] = start;
    if (p.group_sizes != nullptr) p.group_sizes[group] = last - start;
  }
  if (blockIdx.x == 0 && group == 0) {
    p.group_offsets[p.groups] = min(rows, room);
    if (rows > room) record_fault(p.report, MOE_FAULT_OVERFLOW, p.rows, rows);
  }
  uint32_t padded = __ballot_sync(~0u, valid && last < end && group % gridDim.x == blockIdx.x);
  for (; padded != 0; padded &= padded - 1) {
    const int lane = __ffs(padded) - 1;
    const int64_t to = __shfl_sync(~0u, end, lane);
    for (int64_t row = __shfl_sync(~0u, last, lane) + lane_id(); row < to; row += 32) store_row(p, row, -1, -1);
  }
}

__device__ inline void place_slots(const DispatchPlanParams &p, const Tables &tables, uint32_t slots) {
  uint16_t *const places = tables.counts + threadIdx.x / 32 * p.groups;
  walk<false>(p, slots, [&](bool chosen, int group, uint32_t slot, uint32_t token, uint32_t k) {
    const uint32_t peers = __match_any_sync(~0u, group);
    const int rank = __popc(peers & ((1u << lane_id()) - 1));
    const int place = group < 0 ? 0 : places[group] + rank;
    __syncwarp();
    if (group >= 0 && rank == 0) places[group] = static_cast<uint16_t>(place + __popc(peers));
    __syncwarp();
    if (!chosen) return;
    if (k == 0 && p.slot_offsets.data != nullptr) store_index(p.slot_offsets, token, slot);
    int64_t row = group < 0 ? -1 : tables.first[group] + place;
    if (row >= 0 && row >= tables.last[group]) row = -1;
    store_index(p.row_of_slot, slot, row);
    if (row >= 0) store_row(p, row, slot, token);
  });
}

__device__ inline void check_map(const DispatchPlanParams &p) {
  if (p.expert_map == nullptr || blockIdx.x > 0) return;
  for (int64_t expert = threadIdx.x; expert < p.experts; expert += blockDim.x) {
    const int32_t group = p.expert_map[expert];
    if (group < -1 || group >= p.groups) record_fault(p.report, MOE_FAULT_MAP_ENTRY, expert, group);
  }
}

__device__ inline uint32_t true_slots(const DispatchPlanParams &p) {
  return static_cast<uint32_t>(true_count(p.tokens, p.report) * p.top_k);
}

}  // namespace

// The counts of each block for the launch behind.
extern "C" __global__ void __launch_bounds__(DISPATCH_PLAN_THREADS, 1)
    dispatch_plan_ids_count(const __grid_constant__ DispatchPlanParams p) {
  extern __shared__ int64_t shared[];
  wait_for_launch_ahead();
  let_next_launch_begin();
  check_map(p);
  const uint32_t sum = count<true>(p, Tables(p, shared), true_slots(p)), columns = 4 * quads_of(p);
  if (threadIdx.x < columns) p.counts[blockIdx.x * columns + threadIdx.x] = sum;
}

// Slots go to their rows.
extern "C" __global__ void __launch_bounds__(DISPATCH_PLAN_THREADS, 1)
    dispatch_plan_ids_place(const __grid_constant__ DispatchPlanParams p) {
  extern __shared__ int64_t shared[];
  const Tables tables(p, shared);
  uint32_t before = 0, all, slots;
  if (gridDim.x == 1) {
    wait_for_launch_ahead();
    let_next_launch_begin();
    check_map(p);
    slots = true_slots(p);
    all = count<true>(p, tables, slots);
  } else {
    // Ids are older than the launch that counts.
    slots = true_slots(p);
    count<false>(p, tables, slots);
    wait_for_launch_ahead();
    let_next_launch_begin();
    add_blocks(p, tables, before, all);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0 && p.slot_offsets.data != nullptr) {
    store_index(p.slot_offsets, slots / static_cast<uint32_t>(p.top_k), slots);
  }
  place_groups(p, tables, before, all);
  __syncthreads();
  place_slots(p, tables, slots);
}
