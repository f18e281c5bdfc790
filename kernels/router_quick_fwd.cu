// Routing, forward, of the common cases: the plain or biased top-k of at most eight experts, within groups of experts or
// not, losses over the whole batch.
//
// A warp takes 32 tokens at a time. First each token's lanes look at its experts: softmax, sums of the losses, and the best
// of each four experts. Then each lane takes one token: its best are among the best four-experts, eight at most, and of
// those the best are taken by a sorting network. Keys hold the value and, below it, the expert, so that no two are equal:
// 32 bits for logits of 16 bits, 64 for all others.
//
// Sums over tokens are kept in registers, then by block, and joined in the order of the blocks by the first one.

#include <cooperative_groups.h>

#include <utility>

#include "radix_select.cuh"
#include "router_network.cuh"
#include "router_row.cuh"

namespace {

using namespace router;

constexpr int TOKENS = 32, MAX_WARPS = QUICK_THREADS / 32;

// A value and its expert; above 0.
template <class Key> struct Packed;
template <> struct Packed<uint32_t> {
  // The lowest bits of a 16-bit logit's float are all alike.
  static constexpr uint32_t LOW = QUICK_EXPERTS - 1;
  static __device__ uint32_t key(float value, int expert) { return (ordered(value) & ~LOW) | (LOW - expert); }
  static __device__ int expert(uint32_t key) { return LOW - (key & LOW); }
  static __device__ float value(uint32_t key) { return from_ordered(static_cast<int32_t>(key) < 0 ? key & ~LOW : key | LOW); }
};
template <> struct Packed<uint64_t> {
  static __device__ uint64_t key(float value, int expert) {
    return static_cast<uint64_t>(ordered(value)) << 32 | static_cast<uint32_t>(QUICK_EXPERTS - 1 - expert);
  }
  static __device__ int expert(uint64_t key) { return QUICK_EXPERTS - 1 - static_cast<int>(static_cast<uint32_t>(key)); }
  static __device__ float value(uint64_t key) { return from_ordered(static_cast<uint32_t>(key >> 32)); }
};

// A token's largest logit, and 1 over the sum of e^(logit - top); -inf and 0 of a row of nothing but -inf.
struct Stats {
  float top, inverse;
};

// Shared memory of the block and of a warp.
template <class Key> struct Memory {
  // [2, E]: choices of each expert, all and those that the aux loss counts.
  unsigned *counts;
  // [32] of the warp.
  Stats *stats;
  // [E/4, 33] of the warp: the best of each four experts. In the end [E] sums of scores.
  Key *best;
  float *sums;
  // [E/4, 33] of the warp, where groups have limits: the second best of each four experts; later sums of groups.
  float *seconds;

  __device__ Memory(const RouterQuickParams &p, char *shared) {
    counts = reinterpret_cast<unsigned *>(shared);
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    char *const behind = shared + (2 * p.experts + 3) / 4 * 16;
    stats = reinterpret_cast<Stats *>(behind) + TOKENS * warp;
    char *const lists = behind + warps * TOKENS * sizeof(Stats);
    best = reinterpret_cast<Key *>(lists + warp * p.list_bytes);
    sums = reinterpret_cast<float *>(best);
    seconds = reinterpret_cast<float *>(best + (p.experts + 3) / 4 * (TOKENS + 1));
  }
};

// A score that is computed from one logit and what is known of the row.
template <bool SOFTMAX> __device__ inline float score_of(const RouterQuickParams &p, float logit, const Stats &stats) {
  if constexpr (SOFTMAX) return quick_exp(logit - stats.top) * stats.inverse;
  return score(p.weighting.score, logit);
}

// What an expert is compared by: its logit, or its score or logit with a bias. NaN loses.
template <bool SOFTMAX, class Key>
__device__ inline float compared(const RouterQuickParams &p, float logit, int expert, const Stats &stats) {
  // Keys of 32 bits are logits.
  if (sizeof(Key) == 4 || p.bias == nullptr) return logit;
  if (stats.top == -INFINITY) return -INFINITY;
  float value = logit;
  if (!p.by_logit) value = score_of<SOFTMAX>(p, logit, stats);
  value += p.bias[expert];
  return value == value ? value : -INFINITY;
}

// What a lane sums over its tokens.
template <int CHUNKS> struct Sums {
  Row<CHUNKS> scores;
  float z, real;
};

template <int CHUNKS, bool SOFTMAX, class Key>
__device__ inline void look(const RouterQuickParams &p, const Lanes &place, const Memory<Key> &memory, Row<CHUNKS> &row, int64_t token,
                            int local, bool valid, Sums<CHUNKS> &sums, Best<Key> &own) {
  constexpr int N = 8 * CHUNKS;
  Stats stats = {clean(row, place, token, p.report), 0};
  const bool alive = stats.top > -INFINITY;
  const bool real = valid && (p.losses.aux || p.losses.z) && is_real(p.losses, token);
  if (p.exponentials) {
    float terms[N], sum = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) terms[i] = alive ? quick_exp(row.at[i] - stats.top) : 0.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) sum += terms[i];
    sum = sum_over(sum, place.lanes);
    stats.inverse = alive ? 1.0f / sum : 0.0f;
    if (p.losses.z && real && alive && place.lane == 0) {
      const float total = stats.top + logf(sum);
      sums.z = fmaf(total, total, sums.z);
    }
    if (SOFTMAX && p.losses.aux) {
      const float by = real ? stats.inverse : 0.0f;
#pragma unroll
      for (int i = 0; i < N; ++i) sums.scores.at[i] = fmaf(terms[i], by, sums.scores.at[i]);
    }
  }
  if (!SOFTMAX && p.losses.aux) {
    float scores[N], sum = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      scores[i] = place.expert(i / 8) + i % 8 < p.experts ? score(p.losses.score, row.at[i]) : 0.0f;
      sum += scores[i];
    }
    sum = sum_over(sum, place.lanes);
    const float by = real ? 1.0f / (sum + 1e-20f) : 0.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) sums.scores.at[i] = fmaf(scores[i], by, sums.scores.at[i]);
  }
  Key keys[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int expert = place.expert(i / 8) + i % 8;
    keys[i] = expert < p.experts ? Packed<Key>::key(compared<SOFTMAX, Key>(p, row.at[i], expert, stats), expert) : Key(0);
  }
  if constexpr (CHUNKS == 1) {
#pragma unroll
    for (int i = 0; i < 8; ++i) own.at[i] = keys[i];
  } else {
#pragma unroll
    for (int four = 0; four < N / 4; ++four) {
      const int group = place.expert(four / 2) / 4 + four % 2;
      if (4 * group >= p.experts) continue;
      const Key a = max(keys[4 * four], keys[4 * four + 1]), b = max(keys[4 * four + 2], keys[4 * four + 3]);
      memory.best[group * (TOKENS + 1) + local] = max(a, b);
      if (p.group_terms == 2) {
        const Key others = max(min(keys[4 * four], keys[4 * four + 1]), min(keys[4 * four + 2], keys[4 * four + 3]));
        memory.seconds[group * (TOKENS + 1) + local] = Packed<Key>::value(max(min(a, b), others));
      }
    }
  }
  if (place.lane == 0) memory.stats[local] = stats;
}

// Logits first .. first + 3 of a token, which were just read.
template <class Key> __device__ inline void load_four(const RouterQuickParams &p, int64_t token, int first, float (&to)[4]) {
  const int64_t at = token * p.logits.pitch + first;
  if (!p.packed) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = first + i < p.experts ? load_float(p.logits, at + i) : 0.0f;
  } else if (sizeof(Key) == 8 && p.logits.dtype == MOE_DTYPE_FP32) {
    const float4 four = *reinterpret_cast<const float4 *>(reinterpret_cast<const float *>(p.logits.data) + at);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  } else {
    const uint2 bits = *reinterpret_cast<const uint2 *>(p.logits.data + 2 * at);
    const uint32_t words[2] = {bits.x, bits.y};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint16_t own = static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)));
      to[i] = p.logits.dtype == MOE_DTYPE_BF16 ? __uint_as_float(static_cast<uint32_t>(own) << 16)
                                               : __half2float(__ushort_as_half(own));
    }
  }
}

// The lane's token: the groups whose best one or two scores sum highest, a bit each.
template <bool SOFTMAX, class Key> __device__ inline uint32_t kept_groups(const RouterQuickParams &p, const Memory<Key> &memory, const Stats &stats) {
  const int lane = lane_id();
  // Without a bias keys are logits, and groups are compared by scores.
  const auto term = [&](float value) {
    if (p.bias != nullptr || p.by_logit || stats.top == -INFINITY) return value;
    return score_of<SOFTMAX>(p, clamped(value), stats);
  };
  // Sums take the place of the first second of their group.
#pragma unroll 1
  for (int group = 0; group < p.groups; ++group) {
    const int begin = group * p.group_fours;
    float first = -INFINITY, second = -INFINITY;
    for (int four = begin; four < begin + p.group_fours; ++four) {
      const float best = Packed<Key>::value(memory.best[four * (TOKENS + 1) + lane]);
      const float next = p.group_terms == 2 ? memory.seconds[four * (TOKENS + 1) + lane] : -INFINITY;
      second = fmaxf(fminf(first, best), fmaxf(second, next));
      first = fmaxf(first, best);
    }
    const float sum = p.group_terms == 2 ? term(first) + term(second) : term(first);
    memory.seconds[begin * (TOKENS + 1) + lane] = sum == sum ? sum : -INFINITY;
  }
  uint32_t kept = 0;
#pragma unroll 1
  for (int i = 0; i < p.kept_groups; ++i) {
    int best = -1;
    float most = -INFINITY;
    for (int group = 0; group < p.groups; ++group) {
      const float sum = memory.seconds[group * p.group_fours * (TOKENS + 1) + lane];
      if ((kept >> group & 1) || (best >= 0 && !(sum > most))) continue;
      best = group;
      most = sum;
    }
    kept |= 1u << best;
  }
  return kept;
}

// The lane's token: its best experts.
template <bool SOFTMAX, class Key>
__device__ inline Best<Key> choose(const RouterQuickParams &p, const Memory<Key> &memory, int64_t token, const Stats &stats) {
  const int lane = lane_id(), groups = (p.experts + 3) / 4;
  const uint32_t kept = p.groups > 0 ? kept_groups<SOFTMAX>(p, memory, stats) : 0;
  // Short loops: code that is fetched takes as long as it runs.
  Best<Key> leaders = {};
#pragma unroll 1
  for (int first = 0; first < groups; first += 8) {
    Best<Key> some;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const bool open = first + i < groups && (p.groups == 0 || (kept >> (first + i) / p.group_fours & 1));
      some.at[i] = open ? memory.best[(first + i) * (TOKENS + 1) + lane] : Key(0);
    }
    leaders = merged(leaders, sorted(some));
  }
  Best<Key> best = {};
#pragma unroll 1
  for (int done = 0; done < p.top_k; done += 2) {
    Best<Key> eight;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Key leader = leaders.at[half];
      const int first = Packed<Key>::expert(leader) & ~3;
      float four[4];
      if (leader != 0) load_four<Key>(p, token, first, four);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool here = leader != 0 && first + i < p.experts;
        // NaN is -inf.
        const float logit = here ? fminf(fmaxf(four[i], -INFINITY), Real<float>::max) : 0.0f;
        eight.at[4 * half + i] = here ? Packed<Key>::key(compared<SOFTMAX, Key>(p, logit, first + i, stats), first + i) : Key(0);
      }
    }
    best = merged(best, sorted(eight));
#pragma unroll
    for (int i = 0; i < 6; ++i) leaders.at[i] = leaders.at[i + 2];
  }
  return best;
}

// The weights of a token's choices.
template <bool SOFTMAX, class Key>
__device__ inline void weigh(const RouterQuickParams &p, int64_t token, const Best<Key> &best, const Stats &stats, float (&weights)[8]) {
  const RouterWeighting &w = p.weighting;
  float sum = 0, top = -INFINITY, logits[8];
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    logits[k] = -INFINITY;
    if (k >= p.top_k) continue;
    float logit = Packed<Key>::value(best.at[k]);
    if (p.bias != nullptr) logit = load_float(p.logits, token * p.logits.pitch + Packed<Key>::expert(best.at[k]));
    // NaN is -inf; what stood for +inf may have lost its last bits in a key of 32.
    logits[k] = logit > 3.4e38f ? Real<float>::max : fmaxf(logit, -INFINITY);
    top = fmaxf(top, logits[k]);
  }
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    weights[k] = 0;
    if (k >= p.top_k) continue;
    if (SOFTMAX && w.over_chosen) {
      weights[k] = top > -INFINITY ? quick_exp(logits[k] - top) : 0.0f;
    } else if (!SOFTMAX || stats.top > -INFINITY) {
      weights[k] = score_of<SOFTMAX>(p, logits[k], stats);
    }
    sum += weights[k];
  }
  const float scale = static_cast<float>(w.scale);
  const float by = w.over_chosen ? (sum > 0 ? scale / sum : 0.0f) : w.divided ? scale / (sum + 1e-20f) : scale;
#pragma unroll
  for (int k = 0; k < 8; ++k) weights[k] *= by;
}

template <class Key>
__device__ inline void write(const RouterQuickParams &p, int64_t token, const Best<Key> &best, const float (&weights)[8]) {
#pragma unroll
  for (int k = 0; k < 8; k += 4) {
    if (k >= p.top_k) break;
    int ids[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) ids[i] = Packed<Key>::expert(best.at[k + i]);
    if (p.quads) {
      // ids are int32, weights fp32, four of a row side by side.
      if (p.ids.data != nullptr)
        *reinterpret_cast<int4 *>(reinterpret_cast<int *>(p.ids.data) + token * p.ids.pitch + k) = make_int4(ids[0], ids[1], ids[2], ids[3]);
      if (p.weights.data != nullptr)
        *reinterpret_cast<float4 *>(reinterpret_cast<float *>(p.weights.data) + token * p.weights.pitch + k) =
            make_float4(weights[k], weights[k + 1], weights[k + 2], weights[k + 3]);
      continue;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (k + i >= p.top_k) break;
      if (p.ids.data != nullptr) store_index(p.ids, token * p.ids.pitch + k + i, ids[i]);
      if (p.weights.data != nullptr) store_float(p.weights, token * p.weights.pitch + k + i, weights[k + i]);
    }
  }
}

// Zeros in the token's rows of the outputs that have a column an expert.
template <int CHUNKS> __device__ inline void clear_experts(const RouterQuickParams &p, const Lanes &place, int64_t token) {
  if (p.dense.data != nullptr) store_row<CHUNKS>(p.dense, p.packed_dense, place, token, {});
  if (p.byte_mask.data == nullptr) return;
#pragma unroll
  for (int j = 0; j < CHUNKS; ++j) {
    const int first = place.expert(j);
    uint8_t *const bytes = p.byte_mask.data + token * p.byte_mask.pitch + first;
    if (first + 8 <= p.experts && reinterpret_cast<uintptr_t>(bytes) % 8 == 0) {
      *reinterpret_cast<uint2 *>(bytes) = make_uint2(0, 0);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (first + i < p.experts) bytes[i] = 0;
      }
    }
  }
}

// The choices in those outputs, by the thread that has the token.
template <class Key>
__device__ inline void write_experts(const RouterQuickParams &p, int64_t token, const Best<Key> &best, const float (&weights)[8]) {
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    if (k >= p.top_k) break;
    const int expert = Packed<Key>::expert(best.at[k]);
    if (p.dense.data != nullptr) store_float(p.dense, token * p.dense.pitch + expert, weights[k]);
    if (p.byte_mask.data != nullptr) p.byte_mask.data[token * p.byte_mask.pitch + expert] = 1;
  }
  if (p.bit_mask.data == nullptr) return;
  uint32_t *const words = reinterpret_cast<uint32_t *>(p.bit_mask.data) + token * p.bit_mask.pitch;
  for (int word = 0; 32 * word < p.experts; ++word) {
    uint32_t bits = 0;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const int expert = Packed<Key>::expert(best.at[k]);
      if (k < p.top_k && expert / 32 == word) bits |= 1u << expert % 32;
    }
    words[word] = bits;
  }
}

// A sum over the block's warps in their order, for all threads. May be called again at once.
template <class R> __device__ inline R over_block(R value) {
  __shared__ R parts[MAX_WARPS];
  value = sum_over(value, 32);
  if (lane_id() == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  value = 0;
  for (int warp = 0; warp < blockDim.x / 32; ++warp) value += parts[warp];
  __syncthreads();
  return value;
}

// The block's part of all sums.
template <int CHUNKS, class Key>
__device__ inline void hand_over(const RouterQuickParams &p, const Lanes &place, const Memory<Key> &memory, Sums<CHUNKS> &sums) {
  __syncthreads();
  if (p.losses.aux) {
#pragma unroll
    for (int distance = 16; distance > 0; distance >>= 1) {
      if (distance < p.lanes) continue;
#pragma unroll
      for (int i = 0; i < 8 * CHUNKS; ++i) sums.scores.at[i] += __shfl_xor_sync(ALL, sums.scores.at[i], distance);
    }
    if (lane_id() < p.lanes) {
#pragma unroll
      for (int i = 0; i < 8 * CHUNKS; ++i) {
        const int expert = place.expert(i / 8) + i % 8;
        if (expert < p.experts) memory.sums[expert] = sums.scores.at[i];
      }
    }
    __syncthreads();
    const char *const first = reinterpret_cast<const char *>(memory.sums) - threadIdx.x / 32 * p.list_bytes;
    for (int e = threadIdx.x; e < p.experts; e += blockDim.x) {
      float sum = 0;
      for (int warp = 0; warp < blockDim.x / 32; ++warp) sum += reinterpret_cast<const float *>(first + warp * p.list_bytes)[e];
      p.scores[int64_t(blockIdx.x) * p.experts + e] = sum;
    }
  }
  for (int i = threadIdx.x; i < p.tables * p.experts; i += blockDim.x) {
    p.counts[int64_t(blockIdx.x) * p.tables * p.experts + i] = memory.counts[i];
  }
  const float z = over_block(sums.z), real = over_block(sums.real);
  if (threadIdx.x == 0) {
    p.parts[2 * blockIdx.x] = z;
    p.parts[2 * blockIdx.x + 1] = real;
  }
}

// One block joins what all have handed over, and writes it.
__device__ inline void join(const RouterQuickParams &p) {
  __shared__ float scores[QUICK_THREADS];
  __shared__ unsigned long long counts[2][QUICK_THREADS];
  const int blocks = gridDim.x;
  double z = 0, real = 0, product = 0;
  for (int block = threadIdx.x; block < blocks; block += blockDim.x) {
    const float2 part = __ldcg(reinterpret_cast<const float2 *>(p.parts) + block);
    z += part.x;
    real += part.y;
  }
  z = over_block(z);
  real = over_block(real);
  // Threads of an expert lie `columns` apart, a power of two; each joins the blocks of its own.
  int columns = blockDim.x;
  while (columns / 2 >= p.experts) columns /= 2;
  const int own = threadIdx.x / columns, helpers = blockDim.x / columns;
  for (int first = 0; first < p.experts; first += columns) {
    const int e = first + threadIdx.x % columns;
    float score = 0;
    unsigned long long chosen = 0, counted = 0;
    if (e < p.experts) {
#pragma unroll 4
      for (int block = own; block < blocks; block += helpers) {
        if (p.losses.aux) score += __ldcg(p.scores + int64_t(block) * p.experts + e);
        const unsigned *const row = p.counts + int64_t(block) * p.tables * p.experts + e;
        chosen += __ldcg(row);
        if (p.tables == 2) counted += __ldcg(row + p.experts);
      }
    }
    scores[threadIdx.x] = score;
    counts[0][threadIdx.x] = chosen;
    counts[1][threadIdx.x] = counted;
    __syncthreads();
    if (own == 0 && e < p.experts) {
      for (int other = threadIdx.x + columns; other < blockDim.x; other += columns) {
        score += scores[other];
        chosen += counts[0][other];
        counted += counts[1][other];
      }
      if (p.tables == 1) counted = chosen;
      if (p.tokens_per_expert != nullptr) p.tokens_per_expert[e] = static_cast<int64_t>(chosen);
      if (p.aux_counts != nullptr) p.aux_counts[e] = static_cast<int64_t>(counted);
      if (p.losses.aux) product += (p.losses.global ? double(p.losses.global_counts[e]) : double(counted)) * score;
    }
    __syncthreads();
  }
  product = over_block(product);
  if (threadIdx.x != 0) return;
  if (p.aux_loss != nullptr) {
    *p.aux_loss = static_cast<float>(product * inverse_square(p.losses, static_cast<int64_t>(real)) * p.losses.aux_scale);
  }
  if (p.z_loss != nullptr) *p.z_loss = static_cast<float>(p.losses.z_scale * z / max(real, 1.0));
}

template <int CHUNKS, bool SOFTMAX, class Key> __device__ inline void route(const RouterQuickParams &p) {
  extern __shared__ __align__(16) char shared[];
  const int64_t tokens = true_count(p.tokens, p.report);
  const Lanes place(p.lanes, p.experts);
  const Memory<Key> memory(p, shared);
  if (p.sums) {
    for (int i = threadIdx.x; i < 2 * p.experts; i += blockDim.x) memory.counts[i] = 0;
    __syncthreads();
  }
  Sums<CHUNKS> sums = {};
  const int warps = blockDim.x / 32;
  const int64_t tiles = (tokens + TOKENS - 1) / TOKENS;
  for (int64_t tile = int64_t(blockIdx.x) * warps + threadIdx.x / 32; tile < tiles; tile += int64_t(gridDim.x) * warps) {
    Best<Key> best;
    // One row is looked at while the next is on its way.
    const int at_once = TOKENS / p.lanes;
    int local = lane_id() / p.lanes - at_once;
    Row<CHUNKS> next;
#pragma unroll 1
    for (int pass = -1; pass < p.lanes; ++pass) {
      Row<CHUNKS> row = next;
      const int64_t token = tile * TOKENS + local, ahead = token + at_once;
      if (pass + 1 < p.lanes) next = load_row<CHUNKS, sizeof(Key) == 4>(p.logits, p.packed, place, ahead, ahead < tokens, -INFINITY);
      if (pass >= 0) {
        if (p.spread && token < tokens) clear_experts<CHUNKS>(p, place, token);
        look<CHUNKS, SOFTMAX, Key>(p, place, memory, row, token, local, token < tokens, sums, best);
      }
      local += at_once;
    }
    __syncwarp();
    const int64_t mine = tile * TOKENS + lane_id();
    if (mine < tokens) {
      const Stats stats = memory.stats[lane_id()];
      if constexpr (CHUNKS == 1) {
        best = sorted(best);
      } else {
        best = choose<SOFTMAX>(p, memory, mine, stats);
      }
      float weights[8];
      weigh<SOFTMAX>(p, mine, best, stats, weights);
      write(p, mine, best, weights);
      if (p.spread) write_experts(p, mine, best, weights);
      if (p.sums && is_real(p.losses, mine)) {
        sums.real += 1;
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          if (k >= p.top_k) break;
          atomicAdd(&memory.counts[Packed<Key>::expert(best.at[k])], 1u);
          if (p.tables == 2 && k < p.losses.counted) atomicAdd(&memory.counts[p.experts + Packed<Key>::expert(best.at[k])], 1u);
        }
      }
    }
    __syncwarp();
  }
  if (!p.sums) return;
  hand_over<CHUNKS, Key>(p, place, memory, sums);
  if (gridDim.x > 1) {
    const auto grid = cooperative_groups::this_grid();
    auto arrival = grid.barrier_arrive();
    if (blockIdx.x != 0) return;
    grid.barrier_wait(std::move(arrival));
  } else {
    __syncthreads();
  }
  join(p);
}

}  // namespace

#define ROUTER_QUICK_FWD(NAME, CHUNKS, SOFTMAX, KEY)                   \
  extern "C" __global__ void __launch_bounds__(QUICK_THREADS, 1)       \
      router_quick_fwd_##NAME(const __grid_constant__ RouterQuickParams p) { route<CHUNKS, SOFTMAX, KEY>(p); }

ROUTER_QUICK_FWD(8, 1, true, uint32_t)
ROUTER_QUICK_FWD(16, 2, true, uint32_t)
ROUTER_QUICK_FWD(8_wide, 1, true, uint64_t)
ROUTER_QUICK_FWD(16_wide, 2, true, uint64_t)
ROUTER_QUICK_FWD(8_other, 1, false, uint64_t)
ROUTER_QUICK_FWD(16_other, 2, false, uint64_t)
