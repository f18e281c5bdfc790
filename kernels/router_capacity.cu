// Capacity: the slots that may stay become lists by expert, in any order; each expert's list is cut by keys and, among
// equal ones, by the slots' numbers, so that the order of the lists does not matter; then the rows of the tokens.

#include "params/capacity.h"
#include "philox.cuh"
#include "radix_select.cuh"
#include "router.cuh"

namespace {

using namespace router;

// NaN counts as -inf.
__device__ inline uint32_t order(float value) { return ordered(value == value ? value : -INFINITY); }

__device__ inline double load(const Matrix &matrix, int64_t token, int64_t column) {
  return load_float(matrix, token * matrix.pitch + column);
}

// The expert of a slot, -1 where it is empty.
__device__ inline int expert_of(const CapacityParams &p, const Matrix &ids, int64_t token, int slot) {
  const int64_t id = load_index(ids, token * ids.pitch + slot);
  return id >= 0 && id < p.experts ? static_cast<int>(id) : -1;
}

// C of so many tokens, as Rust converts a double to an integer.
__device__ inline int64_t whole(double value) {
  return value >= 9223372036854775808.0 ? INT64_MAX : static_cast<int64_t>(value);
}

__device__ inline int64_t capacity_of(const CapacityParams &p, int64_t tokens) {
  const double t = tokens, k = p.top_k, e = p.experts;
  switch (p.formula) {
  case MOE_CAPACITY_MEGATRON: return min(max(whole(ceil(t * k / e * p.factor)), p.least), tokens);
  case MOE_CAPACITY_DEEPSPEED: return max(whole(ceil(t / e * p.factor * k)), p.least);
  case MOE_CAPACITY_MEGABLOCKS: return whole(floor(t * k / e * p.factor));
  case MOE_CAPACITY_NLLB: return 2 * ((tokens + p.experts - 1) / p.experts);
  case MOE_CAPACITY_TOKEN_FRACTION: return whole(ceil(p.factor * t));
  default: return p.fixed;
  }
}

// Whether a slot wants a place: it has an expert, its token is real, and its second expert, where that is drawn, is taken.
__device__ inline int listed_expert(const CapacityParams &p, const Philox &random, int64_t token, int slot) {
  const int expert = expert_of(p, p.ids, token, slot);
  if (expert < 0 || (p.padding_mask != nullptr && p.padding_mask[token] == 0)) return -1;
  if (p.second != MOE_SECOND_EXPERT_RANDOM || slot != 1) return expert;
  const float twice = 2.0f * load_float(p.weights, token * p.weights.pitch + 1);
  return twice > uniform(random.element(static_cast<uint64_t>(p.tokens.bound) * p.top_k + token)) ? expert : -1;
}

// What slots of an expert are compared by; above 0.
__device__ inline uint64_t key_of(const CapacityParams &p, const Philox &random, int64_t token, int slot) {
  const uint64_t first = static_cast<uint64_t>(63 - slot) << 32;
  switch (p.policy) {
  case MOE_DROP_BY_PROBS: return order(load_float(p.weights, token * p.weights.pitch + slot));
  case MOE_DROP_RANDOM: return uint64_t(random.element(static_cast<uint64_t>(token) * p.top_k + slot)) + 1;
  case MOE_DROP_BY_CHOICE: return first + 1;
  case MOE_DROP_BATCH_PRIORITIZED: {
    uint32_t most = 0;
    for (int k = 0; k < p.top_k; ++k) {
      if (expert_of(p, p.ids, token, k) >= 0) most = max(most, order(load_float(p.weights, token * p.weights.pitch + k)));
    }
    return first | most;
  }
  default: return 1;
  }
}

// Calls step(slot, token, k, expert) for the block's slots, all of a round together.
template <class Step> __device__ inline void walk(const CapacityParams &p, const Philox &random, int64_t slots, int64_t base, Step step) {
#pragma unroll 1
  for (int i = 0; i < CAPACITY_UNIT / CAPACITY_THREADS; ++i) {
    const int64_t slot = base + i * CAPACITY_THREADS + threadIdx.x;
    if (slot >= slots) return;
    const int64_t token = slot / p.top_k;
    const int k = static_cast<int>(slot % p.top_k);
    step(slot, token, k, listed_expert(p, random, token, k));
  }
}

__device__ inline uint64_t add_to(uint64_t *sum, unsigned value) {
  return atomicAdd(reinterpret_cast<unsigned long long *>(sum), static_cast<unsigned long long>(value));
}

__device__ inline void clear(unsigned *counts, int experts) {
  for (int e = threadIdx.x; e < experts; e += blockDim.x) counts[e] = 0;
  __syncthreads();
}

// What a token's weights are divided by.
template <class Counts> __device__ inline double divisor_of(const CapacityParams &p, int64_t token, Counts counts) {
  double sum = 0;
  for (int k = 0; k < p.top_k; ++k) {
    if (counts(k)) sum += load(p.weights, token, k);
  }
  return max(sum, p.epsilon);
}

}  // namespace

// A warp a token: the second expert is that of the highest logit + Gumbel noise among all but the first.
extern "C" __global__ void __launch_bounds__(CAPACITY_ROW_THREADS, 2) router_capacity_sample(const __grid_constant__ CapacitySampleParams p) {
  const int64_t tokens = true_count(p.tokens, p.report);
  const Philox random(p.random);
  const int warps = blockDim.x / 32;
  for (int64_t token = int64_t(blockIdx.x) * warps + threadIdx.x / 32; token < tokens; token += int64_t(gridDim.x) * warps) {
    const int64_t first = load_index(p.ids, token * p.ids.pitch);
    const uint64_t base = static_cast<uint64_t>(p.tokens.bound) * 2 + static_cast<uint64_t>(token) * p.experts;
    double best = -INFINITY, sum = 0;
    int second = -1;
    float most = -INFINITY;
    for (int e = lane_id(); e < p.experts; e += 32) {
      const float logit = load_logit(p.logits, token, e, p.experts, p.report);
      most = max(most, logit);
      if (e == first) continue;
      const double noisy = logit - log(-log(static_cast<double>(uniform(random.element(base + e)))));
      if (second < 0 || noisy > best) {
        best = noisy;
        second = e;
      }
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance >>= 1) {
      const double other = __shfl_xor_sync(ALL, best, distance);
      const int id = __shfl_xor_sync(ALL, second, distance);
      if (id >= 0 && (second < 0 || other > best || (other == best && id < second))) {
        best = other;
        second = id;
      }
    }
    // An fp64 softmax, as on the CPU.
    const double top = min(static_cast<double>(max_over(most, 32)), Real<double>::max);
    const bool alive = top > -infinity<double>();
    const auto term = [&](int e) {
      const double logit = load_logit(p.logits, token, e, p.experts, nullptr);
      return alive ? exp_below<double>(logit, top) : 0.0;
    };
    for (int e = lane_id(); e < p.experts; e += 32) sum += term(e);
    sum = sum_over(sum, 32);
    if (lane_id() != 0) continue;
    store_index(p.routed_ids, token * p.routed_ids.pitch, first);
    store_index(p.routed_ids, token * p.routed_ids.pitch + 1, second);
    store_float(p.routed_weights, token * p.routed_weights.pitch, load_float(p.weights, token * p.weights.pitch));
    store_float(p.routed_weights, token * p.routed_weights.pitch + 1, static_cast<float>(sum > 0 ? term(second) / sum : 0.0));
  }
}

// Counts the slots that want a place, [E], into what is zero.
extern "C" __global__ void __launch_bounds__(CAPACITY_THREADS, 1) router_capacity_count(const __grid_constant__ CapacityParams p) {
  extern __shared__ unsigned counts[];
  const int64_t slots = true_count(p.tokens, p.report) * p.top_k;
  const Philox random(p.random);
  clear(counts, p.experts);
  for (int64_t base = int64_t(blockIdx.x) * CAPACITY_UNIT; base < slots; base += int64_t(gridDim.x) * CAPACITY_UNIT) {
    walk(p, random, slots, base, [&](int64_t, int64_t, int, int expert) {
      if (expert >= 0) atomicAdd(&counts[expert], 1u);
    });
  }
  __syncthreads();
  for (int e = threadIdx.x; e < p.experts; e += blockDim.x) {
    if (counts[e] != 0) add_to(p.counts + e, counts[e]);
  }
}

// One block: where the lists begin.
extern "C" __global__ void __launch_bounds__(CAPACITY_EXPERTS) router_capacity_offsets(const __grid_constant__ CapacityParams p) {
  __shared__ unsigned long long sums[CAPACITY_EXPERTS];
  const int e = threadIdx.x;
  const unsigned long long own = e < p.experts ? p.counts[e] : 0;
  sums[e] = own;
  __syncthreads();
  for (int distance = 1; distance < CAPACITY_EXPERTS; distance *= 2) {
    const unsigned long long other = e >= distance ? sums[e - distance] : 0;
    __syncthreads();
    sums[e] += other;
    __syncthreads();
  }
  if (e < p.experts) p.cursors[e] = sums[e] - own;
}

// Puts slots into their experts' lists: each block takes a run of every list. Afterwards cursors are where the lists end.
extern "C" __global__ void __launch_bounds__(CAPACITY_THREADS, 1) router_capacity_place(const __grid_constant__ CapacityParams p) {
  extern __shared__ uint64_t runs[];
  unsigned *const counts = reinterpret_cast<unsigned *>(runs + p.experts);
  const int64_t slots = true_count(p.tokens, p.report) * p.top_k;
  const Philox random(p.random);
  for (int64_t base = int64_t(blockIdx.x) * CAPACITY_UNIT; base < slots; base += int64_t(gridDim.x) * CAPACITY_UNIT) {
    clear(counts, p.experts);
    walk(p, random, slots, base, [&](int64_t, int64_t, int, int expert) {
      if (expert >= 0) atomicAdd(&counts[expert], 1u);
    });
    __syncthreads();
    for (int e = threadIdx.x; e < p.experts; e += blockDim.x) {
      runs[e] = counts[e] != 0 ? add_to(p.cursors + e, counts[e]) : 0;
      counts[e] = 0;
    }
    __syncthreads();
    walk(p, random, slots, base, [&](int64_t slot, int64_t token, int k, int expert) {
      p.kept[slot] = 0;
      if (expert < 0) return;
      const uint64_t place = runs[expert] + atomicAdd(&counts[expert], 1u);
      p.slots[place] = slot;
      p.keys[place] = key_of(p, random, token, k);
    });
    __syncthreads();
  }
}

// A block an expert: marks the slots of its list that stay.
extern "C" __global__ void __launch_bounds__(CAPACITY_EXPERTS, 1) router_capacity_cut(const __grid_constant__ CapacityParams p) {
  const int64_t tokens = true_count(p.tokens, p.report), expert = blockIdx.x;
  const int64_t count = p.counts[expert], first = p.cursors[expert] - count;
  const int64_t capacity = capacity_of(p, tokens);
  const uint64_t *const keys = p.keys + first;
  const int64_t *const slots = p.slots + first;
  Cut<uint64_t> cut = {0, 0, 0}, last = {0, 0, 0};
  // Numbers of slots count down, so that the largest is the first slot; 0 is none.
  const auto number = [&](int64_t i) { return keys[i] == cut.key ? uint64_t(1) + (tokens * p.top_k - slots[i]) : 0; };
  if (count > capacity) {
    cut = select_largest<40, uint64_t>(count, capacity, [&](int64_t i) { return keys[i]; });
    if (cut.ties < cut.equals) last = select_largest<48, uint64_t>(count, cut.ties, number);
  }
  const bool all_ties = cut.ties == cut.equals;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    const bool stays = keys[i] > cut.key || (keys[i] == cut.key && (all_ties || number(i) >= last.key));
    if (stays) p.kept[slots[i]] = 1;
  }
  if (threadIdx.x != 0) return;
  if (p.tokens_per_expert != nullptr) p.tokens_per_expert[expert] = min(count, capacity);
  if (p.dropped_per_expert != nullptr) p.dropped_per_expert[expert] = max(count - capacity, int64_t(0));
}

// A thread a token. Outputs may lie where ids and weights do: each slot is read before it is written.
extern "C" __global__ void __launch_bounds__(CAPACITY_ROW_THREADS, 2) router_capacity_write(const __grid_constant__ CapacityParams p) {
  const int64_t tokens = true_count(p.tokens, p.report);
  for (int64_t token = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; token < tokens; token += int64_t(gridDim.x) * blockDim.x) {
    const uint8_t *const kept = p.kept + token * p.top_k;
    double divisor = 1;
    if (p.renormalize == MOE_DROP_RENORMALIZE_BEFORE) {
      divisor = divisor_of(p, token, [&](int k) { return expert_of(p, p.ids, token, k) >= 0; });
    } else if (p.renormalize == MOE_DROP_RENORMALIZE_AFTER) {
      divisor = divisor_of(p, token, [&](int k) { return kept[k] != 0; });
    }
    for (int k = 0; k < p.top_k; ++k) {
      const int expert = kept[k] != 0 ? expert_of(p, p.ids, token, k) : -1;
      const double weight = expert < 0 ? 0.0 : load(p.weights, token, k);
      store_index(p.kept_ids, token * p.kept_ids.pitch + k, expert);
      store_float(p.kept_weights, token * p.kept_weights.pitch + k, static_cast<float>(k == p.spared ? weight : weight / divisor));
    }
  }
}

// A thread a token.
extern "C" __global__ void __launch_bounds__(CAPACITY_ROW_THREADS, 2) router_capacity_bwd(const __grid_constant__ CapacityBwdParams p) {
  const int64_t tokens = true_count(p.tokens, p.report);
  const bool add = adds(p.mode);
  for (int64_t token = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; token < tokens; token += int64_t(gridDim.x) * blockDim.x) {
    const auto here = [&](const Matrix &ids, int k) {
      const int64_t id = load_index(ids, token * ids.pitch + k);
      return id >= 0 && id < p.experts;
    };
    const auto grad = [&](int k) { return here(p.kept_ids, k) ? load(p.dkept_weights, token, k) : 0.0; };
    // Whether a weight is in the sum that they are divided by.
    const auto summed = [&](int k) { return here(p.ids.data != nullptr ? p.ids : p.kept_ids, k); };
    double divisor = 1, through_sum = 0;
    if (p.weights.data != nullptr) {
      double sum = 0, inner = 0;
      for (int k = 0; k < p.top_k; ++k) {
        if (summed(k)) sum += load(p.weights, token, k);
        if (here(p.kept_ids, k) && k != p.spared) inner += grad(k) * load(p.weights, token, k);
      }
      divisor = max(sum, p.epsilon);
      if (sum >= p.epsilon) through_sum = inner / (sum * sum);
    }
    for (int k = 0; k < p.top_k; ++k) {
      double total = k == p.spared ? grad(k) : grad(k) / divisor;
      if (summed(k)) total -= through_sum;
      if (add) total += load(p.dweights, token, k);
      store_float(p.dweights, token * p.dweights.pitch + k, static_cast<float>(total));
    }
  }
}
