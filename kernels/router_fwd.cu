// Routing, forward: a warp a token, its experts side by side in shared memory. Every option; fp32 or fp64.
//
// Sums over tokens (counts, scores in fixed point) are integers, so that atomics give the same in any order; those of the
// z-loss go through one part a block. Blocks wait for each other until the sums are zero, and until they are complete.

#include <cooperative_groups.h>

#include "philox.cuh"
#include "radix_select.cuh"
#include "router.cuh"

namespace {

using namespace router;

// A set of experts, of which each lane has its own: bit i is expert 32*i + lane.
using Experts = uint32_t;

// The slots of a token: lane l has slots l and l + 32; -1 is an empty one.
struct Slots {
  int low;
  int high;

  __device__ void set(int slot, int id) {
    if (slot % 32 != lane_id()) return;
    (slot < 32 ? low : high) = id;
  }

  __device__ int get(int slot) const { return __shfl_sync(ALL, slot < 32 ? low : high, slot % 32); }
};

template <class R> struct Weights {
  R low;
  R high;
};

// A warp's rows of shared memory, [experts] each: a lane uses the entries of its own experts alone.
template <class R> struct Rows {
  // What experts are compared by; later the dense weights.
  R *keys;
  // Sums of scores of one sequence.
  R *sums;
  float *logits;

  // Scores of groups; read where groups have limits.
  R *groups;

  __device__ Rows(char *shared, int experts) {
    const int warp = threadIdx.x / 32, table = blockDim.x / 32 * experts;
    R *const first = reinterpret_cast<R *>(shared);
    keys = first + warp * experts;
    sums = keys + table;
    logits = reinterpret_cast<float *>(first + 2 * table) + warp * experts;
    groups = keys + 3 * table;
  }
};

// The largest logit, and the sum of e^(logit - top), top made finite. A row of nothing but -inf: -inf and 0.
template <class R> struct Softmax {
  R top;
  R sum;

  __device__ Softmax(const float *logits, int experts) : sum(0) {
    float most = -INFINITY;
    for (int e = lane_id(); e < experts; e += 32) most = max(most, logits[e]);
    top = clamped<R>(max_over(most, 32));
    if (!alive()) return;
    for (int e = lane_id(); e < experts; e += 32) sum += exp_below<R>(logits[e], top);
    sum = sum_over(sum, 32);
  }

  __device__ bool alive() const { return top > -infinity<R>(); }
  __device__ R score(R logit) const { return alive() ? exp_below(logit, top) / sum : R(0); }
};

// The lane's experts from `first` to `last - 1`.
__device__ inline Experts experts_between(int first, int last) {
  // Bit i stands for first <= 32*i + lane < last.
  const int begin = max(first - lane_id() + 31, 0) / 32, end = max(last - lane_id() + 31, 0) / 32;
  const auto below = [](int bit) { return bit >= 32 ? 0xffffffffu : (1u << bit) - 1; };
  return below(end) & ~below(begin);
}

// The candidate with the largest key in the warp, the lower where keys are equal; -1 without candidates. `key`, `expert`:
// each lane's best, the latter -1 without.
__device__ inline int best_of_warp(float key, int expert) {
  const uint32_t order = expert < 0 ? 0 : ordered(key);
  const uint32_t top = __reduce_max_sync(ALL, order);
  return top == 0 ? -1 : static_cast<int>(__reduce_min_sync(ALL, order == top ? expert : 0x7fffffffu));
}

__device__ inline int best_of_warp(double key, int expert) {
#pragma unroll
  for (int distance = 16; distance > 0; distance >>= 1) {
    const double other = __shfl_xor_sync(ALL, key, distance);
    const int id = __shfl_xor_sync(ALL, expert, distance);
    const bool better = id >= 0 && (expert < 0 || other > key || (other == key && id < expert));
    key = better ? other : key;
    expert = better ? id : expert;
  }
  return expert;
}

// Takes out the best of a set, one after the other.
template <class R, class Keys> struct Picker {
  const Keys *keys;
  Experts open;
  R key;
  int expert;

  __device__ Picker(const Keys *keys, Experts open) : keys(keys), open(open) { look(); }

  __device__ void look() {
    expert = -1;
    key = -infinity<R>();
    for (Experts rest = open; rest != 0; rest &= rest - 1) {
      const int candidate = 32 * (__ffs(rest) - 1) + lane_id();
      const R value = keys[candidate];
      if (expert < 0 || value > key) {
        key = value;
        expert = candidate;
      }
    }
  }

  __device__ int next() {
    const int best = best_of_warp(key, expert);
    if (best >= 0 && best == expert) {
      open &= ~(Experts(1) << best / 32);
      look();
    }
    return best;
  }
};

template <class R, class Keys> __device__ Slots top_k(const Keys *keys, Experts open, int k) {
  Slots slots = {-1, -1};
  Picker<R, Keys> picker(keys, open);
  for (int slot = 0; slot < k; ++slot) slots.set(slot, picker.next());
  return slots;
}

// The experts of the groups whose best scores sum highest. Of each group the lane with its first expert keeps the sum.
template <class R> __device__ Experts allowed_experts(const RouterFwdParams &p, const R *scores, R *sums) {
  const int size = p.experts / p.groups;
  for (int group = 0; group < p.groups; ++group) {
    Picker<R, R> picker(scores, experts_between(group * size, (group + 1) * size));
    R sum = 0;
    for (int term = 0; term < p.group_terms; ++term) sum += scores[picker.next()];
    if (group % 32 == lane_id()) sums[group] = sum == sum ? sum : -infinity<R>();
  }
  Experts allowed = 0;
  Picker<R, R> picker(sums, experts_between(0, p.groups));
  for (int kept = 0; kept < p.kept_groups; ++kept) {
    const int first = picker.next() * size;
    allowed |= experts_between(first, first + size);
  }
  return allowed;
}

// The selection that looks at logits.
template <class R> __device__ Slots choose(const RouterFwdParams &p, const Rows<R> &rows, const Softmax<R> &softmax) {
  const Experts all = experts_between(0, p.experts);
  if (!softmax.alive() || (p.bias == nullptr && p.groups == 0)) return top_k<R>(rows.logits, all, p.top_k);
  for (int e = lane_id(); e < p.experts; e += 32) {
    R value = rows.logits[e];
    if (!p.by_logit) value = p.weighting.score == MOE_SCORE_SOFTMAX ? softmax.score(value) : score(p.weighting.score, value);
    if (p.bias != nullptr) value += p.bias[e];
    // NaN loses.
    rows.keys[e] = value == value ? value : -infinity<R>();
  }
  // Groups are made of keys of other lanes.
  __syncwarp();
  const Experts allowed = p.groups == 0 ? all : allowed_experts(p, rows.keys, rows.groups);
  return p.bias == nullptr ? top_k<R>(rows.logits, allowed, p.top_k) : top_k<R>(rows.keys, allowed, p.top_k);
}

// Any selection.
template <class R>
__device__ Slots select(const RouterFwdParams &p, const Philox &random, int64_t token, const Rows<R> &rows,
                        const Softmax<R> &softmax) {
  if (p.selection == MOE_SELECT_TOPK) return choose(p, rows, softmax);
  const bool balanced = p.selection == MOE_SELECT_BALANCED;
  const int first = balanced ? __umulhi(random.element(token), p.experts) : 0;
  Slots slots = {-1, -1};
  for (int slot = lane_id(); slot < p.top_k; slot += 32) {
    if (balanced) {
      slots.set(slot, (first + slot * (p.experts / p.top_k)) % p.experts);
    } else {
      const int64_t id = load_index(p.given, token * p.given.pitch + slot);
      slots.set(slot, id >= 0 && id < p.experts ? static_cast<int>(id) : -1);
    }
  }
  return slots;
}

// The weights of the slots; 0 in empty ones.
template <class R>
__device__ Weights<R> weigh(const RouterWeighting &w, const float *logits, const Slots &slots, const Softmax<R> &softmax) {
  const R low = slots.low < 0 ? -infinity<R>() : R(logits[slots.low]);
  const R high = slots.high < 0 ? -infinity<R>() : R(logits[slots.high]);
  const R top = w.over_chosen ? clamped(max_over(max(low, high), 32)) : R(0);
  const auto weight_of = [&](int id, R logit) {
    if (id < 0) return R(0);
    if (w.over_chosen) return top > -infinity<R>() ? exp_below(logit, top) : R(0);
    return w.score == MOE_SCORE_SOFTMAX ? softmax.score(logit) : score(w.score, logit);
  };
  Weights<R> weights = {weight_of(slots.low, low), weight_of(slots.high, high)};
  const R sum = sum_over(weights.low + weights.high, 32);
  const R divisor = w.over_chosen ? (sum > 0 ? sum : R(1)) : w.divided ? sum + R(1e-20) : R(1);
  const R scale = static_cast<R>(w.scale);
  return {weights.low / divisor * scale, weights.high / divisor * scale};
}

template <class R> __device__ void store_weight(const Matrix &matrix, int64_t place, R weight) {
  store_float(matrix, place, static_cast<float>(weight));
}

template <class R>
__device__ void write_slots(const RouterFwdParams &p, int64_t token, const Slots &slots, const Weights<R> &weights) {
  for (int slot = lane_id(); slot < p.top_k; slot += 32) {
    const bool high = slot >= 32;
    if (p.ids.data != nullptr) store_index(p.ids, token * p.ids.pitch + slot, high ? slots.high : slots.low);
    if (p.weights.data != nullptr) {
      store_weight(p.weights, token * p.weights.pitch + slot, high ? weights.high : weights.low);
    }
  }
}

// Outputs with a column an expert. `dense` is room for a row.
template <class R>
__device__ void write_experts(const RouterFwdParams &p, int64_t token, const Slots &slots, const Weights<R> &weights, R *dense) {
  Experts chosen = 0;
  for (int slot = 0; slot < p.top_k; ++slot) {
    const int id = slots.get(slot);
    const R weight = __shfl_sync(ALL, slot < 32 ? weights.low : weights.high, slot % 32);
    if (id < 0 || id % 32 != lane_id()) continue;
    const Experts bit = Experts(1) << id / 32;
    dense[id] = chosen & bit ? dense[id] + weight : weight;
    chosen |= bit;
  }
  __syncwarp();
  for (int i = 0; 32 * i < p.experts; ++i) {
    const int expert = 32 * i + lane_id();
    const bool is_chosen = chosen >> i & 1;
    const uint32_t word = __ballot_sync(ALL, is_chosen);
    if (p.bit_mask.data != nullptr && lane_id() == 0) {
      reinterpret_cast<uint32_t *>(p.bit_mask.data)[token * p.bit_mask.pitch + i] = word;
    }
    if (expert >= p.experts) continue;
    if (p.byte_mask.data != nullptr) p.byte_mask.data[token * p.byte_mask.pitch + expert] = is_chosen;
    if (p.dense.data != nullptr) store_weight(p.dense, token * p.dense.pitch + expert, is_chosen ? dense[expert] : R(0));
  }
}

__device__ inline void add_to(int64_t *sum, int64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long *>(sum), static_cast<unsigned long long>(value));
}

// What a warp sums over its tokens.
template <class R> struct Sums {
  // Of this sequence; -1: none.
  int64_t sequence;
  R *scores;
  int64_t length;
  // Of all sequences, and of tokens that are in none.
  double z;
  double real;

  __device__ explicit Sums(R *scores) : sequence(-1), scores(scores), length(0), z(0), real(0) {}

  // Hands over the sums of a sequence.
  __device__ void flush(const RouterFwdParams &p) {
    if (length == 0) return;
    if (lane_id() == 0) add_to(p.lengths + sequence, length);
    for (int e = lane_id(); e < p.experts; e += 32) {
      add_to(p.score_sums + sequence * p.experts + e, llrint(static_cast<double>(scores[e]) * p.one));
    }
    length = 0;
  }

  __device__ void add(const RouterFwdParams &p, int64_t token, const float *logits, const Softmax<R> &softmax, const Slots &slots) {
    ++real;
    if (p.losses.z && softmax.alive()) {
      const double total = static_cast<double>(softmax.top) + log(static_cast<double>(softmax.sum));
      z += total * total;
    }
    if (!p.losses.aux) return;
    const int64_t own = sequence_of(p.losses, token);
    if (own != sequence) {
      flush(p);
      sequence = own;
    }
    if (own < 0) return;
    const bool first = length++ == 0;
    for (int slot = lane_id(); slot < p.losses.counted; slot += 32) {
      const int id = slot < 32 ? slots.low : slots.high;
      if (id >= 0) add_to(p.aux_counts + own * p.experts + id, 1);
    }
    R sum = 0;
    if (p.losses.score != MOE_SCORE_SOFTMAX) {
      for (int e = lane_id(); e < p.experts; e += 32) sum += score<R>(p.losses.score, logits[e]);
      sum = sum_over(sum, 32) + R(1e-20);
    }
    for (int e = lane_id(); e < p.experts; e += 32) {
      const R value = p.losses.score == MOE_SCORE_SOFTMAX ? softmax.score(logits[e]) : score<R>(p.losses.score, logits[e]) / sum;
      scores[e] = first ? value : scores[e] + value;
    }
  }
};

__device__ inline void set_zero(int64_t *values, int64_t count) {
  if (values == nullptr) return;
  for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) values[i] = 0;
}

// The block's part of the aux loss: some of the sequences.
__device__ inline double aux_part(const RouterFwdParams &p) {
  double part = 0;
  for (int64_t s = blockIdx.x; s < p.losses.sequences; s += gridDim.x) {
    double sum = 0;
    for (int e = threadIdx.x; e < p.experts; e += blockDim.x) {
      const int64_t place = s * p.experts + e;
      const double n = p.losses.global ? p.losses.global_counts[e] : static_cast<double>(__ldcg(p.aux_counts + place));
      sum += n * (static_cast<double>(__ldcg(p.score_sums + place)) / p.one);
    }
    part += block_sum(sum) * inverse_square(p.losses, __ldcg(p.lengths + s)) * p.losses.aux_scale;
  }
  return part;
}

// Thread 0 of block 0 adds the parts of all blocks.
__device__ inline void write_losses(const RouterFwdParams &p) {
  if (blockIdx.x != 0) return;
  double aux = 0, z = 0, real = 0;
  for (int block = threadIdx.x; block < gridDim.x; block += blockDim.x) {
    aux += __ldcg(p.parts + 3 * block);
    z += __ldcg(p.parts + 3 * block + 1);
    real += __ldcg(p.parts + 3 * block + 2);
  }
  aux = block_sum(aux);
  z = block_sum(z);
  real = block_sum(real);
  if (threadIdx.x != 0) return;
  if (p.aux_loss != nullptr) *p.aux_loss = static_cast<float>(aux);
  if (p.z_loss != nullptr) *p.z_loss = static_cast<float>(p.losses.z_scale * z / max(real, 1.0));
}

// The token at a place of the order in which those of a sequence are neighbours; -1: none.
__device__ inline int64_t token_at(const RouterLosses &losses, int64_t place, int64_t tokens) {
  if (losses.layout != MOE_SEQUENCE_MINOR || losses.sequences == 1) return place;
  const int64_t length = (tokens + losses.sequences - 1) / losses.sequences;
  const int64_t token = place % length * losses.sequences + place / length;
  return token < tokens ? token : -1;
}

template <class R> __device__ void route(const RouterFwdParams &p) {
  extern __shared__ __align__(16) char shared[];
  const auto grid = cooperative_groups::this_grid();
  if (p.sums) {
    const int64_t table = p.losses.sequences * p.experts;
    set_zero(p.tokens_per_expert, p.experts);
    set_zero(p.aux_counts, table);
    set_zero(p.score_sums, table);
    set_zero(p.lengths, p.losses.sequences);
    grid.sync();
  }
  check_offsets(p.losses, p.report);
  const int64_t tokens = true_count(p.tokens, p.report);
  const bool losses = p.losses.aux || p.losses.z;
  const int64_t sequences = p.losses.layout == MOE_SEQUENCE_MINOR ? p.losses.sequences : 1;
  const int64_t places = (tokens + sequences - 1) / sequences * sequences;
  const int64_t warps = gridDim.x * (blockDim.x / 32), warp = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  const int64_t share = (places + warps - 1) / warps;
  const Philox random(p.random);
  const bool spread = p.dense.data != nullptr || p.byte_mask.data != nullptr || p.bit_mask.data != nullptr;
  const bool plain = p.count_choices || (p.selection == MOE_SELECT_TOPK && p.bias == nullptr && p.groups == 0);
  const Rows<R> rows(shared, p.experts);
  Sums<R> sums(rows.sums);
  for (int64_t place = warp * share; place < min((warp + 1) * share, places); ++place) {
    const int64_t token = token_at(p.losses, place, tokens);
    if (token < 0) continue;
    __syncwarp();
    for (int e = lane_id(); e < p.experts; e += 32) {
      rows.logits[e] = load_logit(p.logits, token, e, p.experts, p.report);
    }
    __syncwarp();
    const Softmax<R> softmax(rows.logits, p.experts);
    const Slots slots = select(p, random, token, rows, softmax);
    const Weights<R> weights = weigh(p.weighting, rows.logits, slots, softmax);
    write_slots(p, token, slots, weights);
    if (spread) {
      __syncwarp();
      write_experts(p, token, slots, weights, rows.keys);
    }
    if (!p.sums || !is_real(p.losses, token)) continue;
    if (p.tokens_per_expert != nullptr) {
      if (slots.low >= 0) add_to(p.tokens_per_expert + slots.low, 1);
      if (slots.high >= 0) add_to(p.tokens_per_expert + slots.high, 1);
    }
    if (!losses) continue;
    const bool again = p.losses.aux && !plain;
    const Slots counted = again ? top_k<R>(rows.logits, experts_between(0, p.experts), p.losses.counted) : slots;
    sums.add(p, token, rows.logits, softmax, counted);
  }
  if (!losses) return;
  const double z = block_sum(lane_id() == 0 ? sums.z : 0.0);
  const double real = block_sum(lane_id() == 0 ? sums.real : 0.0);
  double aux = 0;
  if (p.losses.aux) {
    sums.flush(p);
    grid.sync();
    aux = aux_part(p);
  }
  if (threadIdx.x == 0) {
    p.parts[3 * blockIdx.x] = aux;
    p.parts[3 * blockIdx.x + 1] = z;
    p.parts[3 * blockIdx.x + 2] = real;
  }
  grid.sync();
  write_losses(p);
}

}  // namespace

extern "C" __global__ __launch_bounds__(ROUTER_THREADS, 2) void router_fwd(RouterFwdParams p) { route<float>(p); }
extern "C" __global__ __launch_bounds__(ROUTER_THREADS, 2) void router_fwd_fp64(RouterFwdParams p) { route<double>(p); }
