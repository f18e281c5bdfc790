// The plan: a stable counting sort of slots by group.
//
// Each warp takes a run of tokens. It counts its slots in each group; with the counts of all blocks it knows the first
// row of its slots in each group, and walks over its tokens once more to place them. One block does so in one launch;
// several take two, of which the second has counted its own slots when the counts of the others are there.

#include "dispatch.cuh"
#include "overlap.cuh"
#include "scan.cuh"

namespace {

// Tables of a block, in shared memory or in the workspace; rows of p.columns.
struct Tables {
  // [warps]: a warp's slots in each group, later its next place among the block's.
  uint32_t *histogram;
  // [adders]: the block's first row in each group.
  int64_t *first;
  // [adders]: where the rows of each group end that are kept.
  int64_t *last;
  // Threads that add up one column.
  int adders;
};

// The local index of an expert, or -1.
__device__ inline int group_of(const DispatchPlanParams &p, int64_t expert) {
  if (expert < 0 || expert >= p.experts) return -1;
  const int64_t group = p.expert_map != nullptr ? p.expert_map[expert] : expert - p.expert_begin;
  return group >= 0 && group < p.groups ? static_cast<int>(group) : -1;
}

// Slots of tokens begin .. end-1, lanes in slot order: calls step(chosen, group, token, slot) with whole warps, `slot`
// counted from the first of these tokens, and start(token, slot) with one lane a token. Returns the number of slots.
template <bool REPORT, class Step, class Start>
__device__ inline int64_t walk_ids(const DispatchPlanParams &p, int64_t begin, int64_t end, Step step, Start start) {
  const uint32_t top_k = static_cast<uint32_t>(p.top_k);
  const int64_t slots = (end - begin) * p.top_k;
  int64_t token = begin + lane_id() / top_k;
  uint32_t k = lane_id() % top_k;
  const uint32_t tokens_on = 32 / top_k, k_on = 32 % top_k;
  int64_t next = lane_id() < slots ? load_index(p.chosen, token * p.chosen.pitch + k) : -1;
  for (int64_t slot = lane_id(); slot - lane_id() < slots; slot += 32) {
    const int64_t id = next, own = token;
    const bool chosen = slot < slots, starts = chosen && k == 0;
    const uint32_t own_k = k;
    token += tokens_on;
    k += k_on;
    if (k >= top_k) {
      k -= top_k;
      ++token;
    }
    next = slot + 32 < slots ? load_index(p.chosen, token * p.chosen.pitch + k) : -1;
    if (REPORT && chosen && p.strict_ids && id != -1 && (id < 0 || id >= p.experts)) {
      record_fault(p.report, MOE_FAULT_EXPERT_ID, own * p.top_k + own_k, id);
    }
    if (starts) start(own, slot);
    step(chosen, chosen ? group_of(p, id) : -1, own, slot);
  }
  return slots;
}

// Up to 32 words of a token's mask from `word` on: lane i has the i-th.
__device__ inline uint32_t load_words(const DispatchPlanParams &p, int64_t token, int64_t word, int count) {
  uint32_t bits = 0;
  if (p.choice == DISPATCH_BIT_MASK) {
    if (lane_id() < count) {
      bits = reinterpret_cast<const uint32_t *>(p.chosen.data)[token * p.chosen.pitch + word + lane_id()];
    }
  } else {
    const uint8_t *bytes = p.chosen.data + token * p.chosen.pitch;
    for (int first = 0; first < count; first += BATCH) {
      uint8_t byte[BATCH];
#pragma unroll
      for (int i = 0; i < BATCH; ++i) {
        const int64_t expert = 32 * (word + first + i) + lane_id();
        byte[i] = expert < p.experts ? bytes[expert] : 0;
      }
#pragma unroll
      for (int i = 0; i < BATCH; ++i) {
        const uint32_t ballot = __ballot_sync(~0u, byte[i] != 0);
        if (lane_id() == first + i) bits = ballot;
      }
    }
  }
  // Bits behind the last expert mean nothing.
  const int64_t valid = p.experts - 32 * (word + lane_id());
  return valid >= 32 ? bits : valid <= 0 ? 0 : bits & ((1u << valid) - 1);
}

template <bool REPORT, class Step, class Start>
__device__ inline int64_t walk_mask(const DispatchPlanParams &p, int64_t begin, int64_t end, Step step, Start start) {
  const int64_t words = (p.experts + 31) / 32;
  int64_t slots = 0;
  for (int64_t token = begin; token < end; ++token) {
    if (lane_id() == 0) start(token, slots);
    int64_t count = 0;
    for (int64_t first = 0; first < words; first += 32) {
      const int tile = static_cast<int>(min(words - first, int64_t(32)));
      const uint32_t bits = load_words(p, token, first, tile);
      for (int word = 0; word < tile; ++word) {
        const uint32_t chosen = __shfl_sync(~0u, bits, word);
        const int64_t place = count + __popc(chosen & ((1u << lane_id()) - 1));
        const bool here = (chosen >> lane_id() & 1) && place < p.top_k;
        count += __popc(chosen);
        if (chosen == 0) continue;
        step(here, here ? group_of(p, 32 * (first + word) + lane_id()) : -1, token, slots + place);
      }
    }
    if (REPORT && count > p.top_k && lane_id() == 0) record_fault(p.report, MOE_FAULT_OVERFLOW, p.top_k, count);
    slots += min(count, p.top_k);
  }
  return slots;
}

template <bool REPORT, class Step, class Start>
__device__ inline int64_t walk(const DispatchPlanParams &p, int64_t begin, int64_t end, Step step, Start start) {
  return p.choice == DISPATCH_IDS ? walk_ids<REPORT>(p, begin, end, step, start)
                                  : walk_mask<REPORT>(p, begin, end, step, start);
}

// A warp's slots in each group.
template <bool REPORT>
__device__ inline void count(const DispatchPlanParams &p, uint32_t *histogram, int64_t begin, int64_t end) {
  for (int64_t column = lane_id(); column < p.columns; column += 32) histogram[column] = 0;
  __syncwarp();
  const auto step = [&](bool, int group, int64_t, int64_t) {
    if (group >= 0) atomicAdd(&histogram[group], 1u);
  };
  const int64_t slots = walk<REPORT>(p, begin, end, step, [](int64_t, int64_t) {});
  if (lane_id() == 0) histogram[p.groups] = static_cast<uint32_t>(slots);
}

// Histograms become each warp's first place among the block's slots; keep(column, sum) gets the block's counts.
template <class Keep> __device__ inline void add_warps(const DispatchPlanParams &p, uint32_t *histogram, Keep keep) {
  for (int64_t column = threadIdx.x; column < p.columns; column += blockDim.x) {
    uint32_t own[DISPATCH_PLAN_WARPS], sum = 0;
#pragma unroll
    for (int warp = 0; warp < DISPATCH_PLAN_WARPS; ++warp) {
      own[warp] = warp < blockDim.x / 32 ? histogram[warp * p.columns + column] : 0;
    }
#pragma unroll
    for (int warp = 0; warp < DISPATCH_PLAN_WARPS; ++warp) {
      if (warp < blockDim.x / 32) histogram[warp * p.columns + column] = sum;
      sum += own[warp];
    }
    keep(column, sum);
  }
}

// Sums of the counts of all blocks into `last`, of those before this one into `first`, by several adders a column.
__device__ inline void add_up(const DispatchPlanParams &p, const Tables &tables) {
  const uint32_t quads = static_cast<uint32_t>(p.columns / 4);
  for (uint32_t i = threadIdx.x; i < tables.adders * quads; i += blockDim.x) {
    const uint32_t adder = i / quads, quad = i % quads;
    int64_t before[4] = {}, all[4] = {};
#pragma unroll 8
    for (uint32_t block = adder; block < gridDim.x; block += tables.adders) {
      const uint4 counts = __ldcg(reinterpret_cast<const uint4 *>(p.counts + block * p.columns) + quad);
      const uint32_t each[4] = {counts.x, counts.y, counts.z, counts.w};
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        all[c] += each[c];
        if (block < blockIdx.x) before[c] += each[c];
      }
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      tables.first[adder * p.columns + 4 * quad + c] = before[c];
      tables.last[adder * p.columns + 4 * quad + c] = all[c];
    }
  }
}

__device__ inline int64_t column_sum(const DispatchPlanParams &p, const Tables &tables, const int64_t *column) {
  int64_t sum = 0;
  for (int adder = 0; adder < tables.adders; ++adder) sum += column[adder * p.columns];
  return sum;
}

__device__ inline void store_row(const DispatchPlanParams &p, int64_t row, int64_t slot, int64_t token) {
  if (p.slot_of_row.data != nullptr) store_index(p.slot_of_row, row, slot);
  if (p.token_of_row.data != nullptr) store_index(p.token_of_row, row, token);
}

// Where the groups begin and end; one of the blocks writes it down, each fills the padding of some groups.
__device__ inline void place_groups(const DispatchPlanParams &p, const Tables &tables) {
  const int64_t room = p.rows & -p.alignment;
  int64_t rows = 0;
  for (int64_t next = 0; next < p.groups; next += blockDim.x) {
    const int64_t group = next + threadIdx.x;
    const bool valid = group < p.groups;
    const int64_t count = valid ? column_sum(p, tables, tables.last + group) : 0;
    const int64_t limit = p.rows_per_group > 0 ? p.rows_per_group : count;
    const int64_t size = valid ? (limit + p.alignment - 1) & -p.alignment : 0;
    int64_t total;
    const int64_t begin = rows + block_exclusive_sum(size, total);
    const int64_t start = min(begin, room), end = min(begin + size, room);
    const int64_t last = start + min(min(count, limit), end - start);
    rows += total;
    if (valid) {
      const int64_t before = column_sum(p, tables, tables.first + group);
      tables.first[group] = start + before;
      tables.last[group] = last;
      if (blockIdx.x == 0) {
        p.group_offsets[group] = start;
        if (p.group_sizes != nullptr) p.group_sizes[group] = last - start;
      }
    }
    uint32_t padded = __ballot_sync(~0u, last < end && static_cast<uint32_t>(group) % gridDim.x == blockIdx.x);
    for (; padded != 0; padded &= padded - 1) {
      const int lane = __ffs(padded) - 1;
      const int64_t to = __shfl_sync(~0u, end, lane);
      for (int64_t row = __shfl_sync(~0u, last, lane) + lane_id(); row < to; row += 32) store_row(p, row, -1, -1);
    }
  }
  if (blockIdx.x > 0 || threadIdx.x > 0) return;
  p.group_offsets[p.groups] = min(rows, room);
  if (rows > room) record_fault(p.report, MOE_FAULT_OVERFLOW, p.rows, rows);
}

// A warp's slots go to their rows: `base` is its first slot, `places` its next place in each group.
__device__ inline void place_slots(const DispatchPlanParams &p, const Tables &tables, uint32_t *places, int64_t base,
                                   int64_t begin, int64_t end) {
  const auto step = [&](bool chosen, int group, int64_t token, int64_t slot) {
    const uint32_t peers = __match_any_sync(~0u, group);
    const int rank = __popc(peers & ((1u << lane_id()) - 1));
    const uint32_t place = group < 0 ? 0 : places[group] + rank;
    __syncwarp();
    if (group >= 0 && rank == 0) places[group] = place + __popc(peers);
    __syncwarp();
    if (!chosen) return;
    int64_t row = group < 0 ? -1 : tables.first[group] + place;
    if (row >= 0 && row >= tables.last[group]) row = -1;
    store_index(p.row_of_slot, base + slot, row);
    if (row >= 0) store_row(p, row, base + slot, token);
  };
  const auto start = [&](int64_t token, int64_t slot) {
    if (p.slot_offsets.data != nullptr) store_index(p.slot_offsets, token, base + slot);
  };
  walk<false>(p, begin, end, step, start);
}

// The tokens of a warp.
struct Run {
  int64_t tokens;
  int64_t begin;
  int64_t end;

  __device__ explicit Run(const DispatchPlanParams &p) : tokens(true_count(p.tokens, p.report)) {
    const int64_t warps = blockDim.x / 32, unit = blockIdx.x * warps + threadIdx.x / 32, units = gridDim.x * warps;
    begin = tokens * unit / units;
    end = tokens * (unit + 1) / units;
  }
};

__device__ inline void check_map(const DispatchPlanParams &p) {
  if (p.expert_map == nullptr || blockIdx.x > 0) return;
  for (int64_t expert = threadIdx.x; expert < p.experts; expert += blockDim.x) {
    const int32_t group = p.expert_map[expert];
    if (group < -1 || group >= p.groups) record_fault(p.report, MOE_FAULT_MAP_ENTRY, expert, group);
  }
}

// The counts of a block for the launch behind.
__device__ inline void count_block(const DispatchPlanParams &p, uint32_t *histogram) {
  const Run run(p);
  check_map(p);
  count<true>(p, histogram + threadIdx.x / 32 * p.columns, run.begin, run.end);
  __syncthreads();
  uint32_t *const counts = p.counts + blockIdx.x * p.columns;
  add_warps(p, histogram, [&](int64_t column, uint32_t sum) { counts[column] = sum; });
}

// Slots go to their rows.
__device__ inline void place(const DispatchPlanParams &p, Tables tables) {
  const Run run(p);
  uint32_t *const places = tables.histogram + threadIdx.x / 32 * p.columns;
  if (gridDim.x == 1) {
    check_map(p);
    tables.adders = 1;
    count<true>(p, places, run.begin, run.end);
    __syncthreads();
    add_warps(p, tables.histogram, [&](int64_t column, uint32_t sum) {
      tables.first[column] = 0;
      tables.last[column] = sum;
    });
  } else {
    count<false>(p, places, run.begin, run.end);
    __syncthreads();
    add_warps(p, tables.histogram, [](int64_t, uint32_t) {});
    wait_for_launch_ahead();
    let_next_launch_begin();
    add_up(p, tables);
  }
  __syncthreads();
  const int64_t base = column_sum(p, tables, tables.first + p.groups) + places[p.groups];
  if (blockIdx.x == 0 && threadIdx.x == 0 && p.slot_offsets.data != nullptr) {
    store_index(p.slot_offsets, run.tokens, column_sum(p, tables, tables.last + p.groups));
  }
  place_groups(p, tables);
  __syncthreads();
  place_slots(p, tables, places, base, run.begin, run.end);
}

__device__ inline Tables tables_of(const DispatchPlanParams &p, int64_t *shared) {
  if (p.histogram != nullptr) {
    int64_t *const places = p.places + blockIdx.x * 2 * p.columns;
    return {p.histogram + blockIdx.x * p.columns, places, places + p.columns, 1};
  }
  const int adders = static_cast<int>(max(int64_t(1), blockDim.x / (p.columns / 4)));
  int64_t *const last = shared + adders * p.columns;
  return {reinterpret_cast<uint32_t *>(last + adders * p.columns), shared, last, adders};
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * DISPATCH_PLAN_WARPS, 1)
    dispatch_plan_count(const __grid_constant__ DispatchPlanParams p) {
  extern __shared__ int64_t shared[];
  wait_for_launch_ahead();
  let_next_launch_begin();
  count_block(p, tables_of(p, shared).histogram);
}

extern "C" __global__ void __launch_bounds__(32 * DISPATCH_PLAN_WARPS, 1)
    dispatch_plan_place(const __grid_constant__ DispatchPlanParams p) {
  extern __shared__ int64_t shared[];
  // The counts of others are waited for later, unless what is counted here would go where the launch ahead counts.
  if (gridDim.x == 1 || p.histogram != nullptr) {
    wait_for_launch_ahead();
    let_next_launch_begin();
  }
  place(p, tables_of(p, shared));
}
