// Routing, forward, of the common cases: the plain or biased top-k of at most eight experts, within groups of experts or
// not, losses over the whole batch or over sequences. Everything of a token happens in the registers of its lanes:
//
// They look at its experts, for the softmax and the sums of the losses, and for the best of each four experts. The eight
// best fours hold the eight best experts: networks find them, each lane looks at those of a four or two once more, and
// networks put the eight best in order, one a lane from eight lanes on. Each lane weighs and writes its own.

#pragma once

#include "overlap.cuh"
#include "router_choice.cuh"
#include "router_sums.cuh"

namespace router {

// The lane's slots. Calls ahead() when the row is needed no more.
template <class S, class Kind, class Ahead>
__device__ inline Keys<typename Kind::Key, S::SLOTS> choose(const RouterQuickParams &p, const Raw<S::CHUNKS, Kind::WORDS> &raw,
                                                            const Found<S> &found, const GroupRoom<S> &room, int token,
                                                            const Stats &stats, const Rule &rule, const Ahead &ahead) {
  using Key = typename Kind::Key;
  using Slots = Keys<Key, S::SLOTS>;
  if constexpr (S::LANES == 1) {
    const Keys<Key, 8> keys = Kind::all(p, raw, found, stats, rule);
    ahead();
    return best_eight(keys, static_cast<Slots *>(nullptr));
  } else {
    Keys<Key, 2 * S::CHUNKS> fours = Kind::template fours<S>(p, found, stats, rule);
    if (S::CHUNKS <= 2 && rule.groups > 0) {
#pragma unroll
      for (int four = 0; four < 2 * S::CHUNKS; ++four) {
        const int expert = S::expert(4 * four);
        if (expert >= p.experts) continue;
        float values[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) values[i] = Kind::compared(p, found.logits.at[4 * four + i], expert + i, stats, rule);
        const float a = fmaxf(values[0], values[1]), b = fmaxf(values[2], values[3]);
        const float others = fmaxf(fminf(values[0], values[1]), fminf(values[2], values[3]));
        room.fours[expert / 4] = make_float2(fmaxf(a, b), fmaxf(fminf(a, b), others));
      }
      __syncwarp();
      // Without a bias keys are logits, and groups are compared by scores.
      const uint32_t kept = kept_groups<S>(p, room, [&](float value) {
        return rule.bias != nullptr || p.by_logit || stats.top == -INFINITY ? value : score_of<Kind::SOFTMAX>(p, clamped(value), stats);
      });
#pragma unroll
      for (int four = 0; four < 2 * S::CHUNKS; ++four) {
        const int place = S::expert(4 * four) / 4;
        if (4 * place >= p.experts || !(kept >> place / p.group_fours & 1)) fours.at[four] = 0;
      }
    }
    ahead();
    const auto best = best_fours<S::LANES>(fours);
    constexpr int FOURS = S::LANES < 8 ? 8 / S::LANES : 1;
    Keys<Key, 4 * FOURS> candidates;
#pragma unroll
    for (int four = 0; four < FOURS; ++four) {
      const int first = Kind::expert(best.at[four]) & ~3;
      Keys<Key, 4> some = {};
      if (best.at[four] != 0 && first < p.experts && token >= 0) some = Kind::candidates(p, token, first, stats, rule);
#pragma unroll
      for (int i = 0; i < 4; ++i) candidates.at[4 * four + i] = some.at[i];
    }
    return best_eight(candidates, static_cast<Slots *>(nullptr));
  }
}

// Whether a lane has an n-th slot: where it has all eight, those behind it have none either.
template <class S> __device__ inline bool has_slot(const RouterQuickParams &p, int n) { return slot_of<S>(n) < p.top_k; }

// Weights of the lane's slots; those from top_k on are 0.
template <class S, class Kind>
__device__ inline void weigh(const RouterQuickParams &p, int token, const Keys<typename Kind::Key, S::SLOTS> &best, const Stats &stats,
                             float (&weights)[S::SLOTS]) {
  constexpr int LANES = S::LANES < 8 ? S::LANES : 8;
  const RouterWeighting &w = p.weighting;
  float logits[S::SLOTS], by = p.scale;
#pragma unroll
  for (int n = 0; n < S::SLOTS; ++n) logits[n] = -INFINITY, weights[n] = 0;
#pragma unroll
  for (int n = 0; n < S::SLOTS; ++n) {
    if (!has_slot<S>(p, n) || token < 0) break;
    // NaN is -inf.
    logits[n] = fminf(fmaxf(Kind::logit(p, token, best.at[n]), -INFINITY), Real<float>::max);
  }
  Level level = stats.level;
  if (Kind::SOFTMAX && w.over_chosen && (p.bias != nullptr || p.groups > 0)) {
    float top = logits[0];
#pragma unroll
    for (int n = 1; n < S::SLOTS; ++n) top = fmaxf(top, logits[n]);
    level = Level(max_over(top, LANES));
  }
#pragma unroll
  for (int n = 0; n < S::SLOTS; ++n) {
    if (!has_slot<S>(p, n)) break;
    if constexpr (Kind::SOFTMAX) {
      weights[n] = level.exp(logits[n]);
    } else {
      weights[n] = logits[n] > -INFINITY ? score(w.score, logits[n]) : 0.0f;
    }
  }
  if (w.over_chosen || w.divided) {
    const float sum = sum_over(sum_of(weights), LANES);
    by *= w.divided ? quick_inverse(sum + 1e-20f) : sum > 0 ? quick_inverse(sum) : 0.0f;
  } else if (Kind::SOFTMAX) {
    by *= stats.inverse;
  }
#pragma unroll
  for (int n = 0; n < S::SLOTS; ++n) weights[n] *= by;
}

// Zeros in the token's rows of the outputs that have a column an expert.
template <class S> __device__ inline void clear_experts(const RouterQuickParams &p, int token) {
  if (p.dense.data != nullptr) store_row<S>(p.dense, p.packed_dense, p.experts, token, {});
  if (p.byte_mask.data == nullptr) return;
#pragma unroll
  for (int j = 0; j < S::CHUNKS; ++j) {
    const int first = S::expert(8 * j);
    uint8_t *const bytes = p.byte_mask.data + place_of(p.byte_mask, token, first);
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

// The choices in those outputs; all lanes of the warp call.
template <class S>
__device__ inline void write_experts(const RouterQuickParams &p, int token, const int (&ids)[S::SLOTS], const float (&weights)[S::SLOTS]) {
  if (token >= 0) clear_experts<S>(p, token);
  __syncwarp();
#pragma unroll
  for (int n = 0; n < S::SLOTS; ++n) {
    if (ids[n] < 0) continue;
    if (p.dense.data != nullptr) store_float(p.dense, place_of(p.dense, token, ids[n]), weights[n]);
    if (p.byte_mask.data != nullptr) p.byte_mask.data[place_of(p.byte_mask, token, ids[n])] = 1;
  }
  if (p.bit_mask.data == nullptr) return;
  uint32_t *const words = reinterpret_cast<uint32_t *>(p.bit_mask.data) + place_of(p.bit_mask, token, 0);
#pragma unroll 1
  for (int word = 0; 32 * word < p.experts; ++word) {
    uint32_t bits = 0;
#pragma unroll
    for (int n = 0; n < S::SLOTS; ++n) {
      if (ids[n] >= 0 && ids[n] / 32 == word) bits |= 1u << ids[n] % 32;
    }
#pragma unroll
    for (int distance = 1; distance < S::LANES; distance *= 2) bits |= __shfl_xor_sync(ALL, bits, distance);
    if (S::lane() == 0 && token >= 0) words[word] = bits;
  }
}

// WIDTH of a lane's slots from n on, of int32 ids and fp32 weights.
template <int WIDTH, int N>
__device__ inline void write_some(const RouterQuickParams &p, int token, int slot, const int (&ids)[N], const float (&weights)[N], int n) {
  int *const to = reinterpret_cast<int *>(p.ids.data) + place_of(p.ids, token, slot);
  float *const by = reinterpret_cast<float *>(p.weights.data) + place_of(p.weights, token, slot);
  if constexpr (WIDTH == 4) {
    *reinterpret_cast<int4 *>(to) = make_int4(ids[n], ids[n + 1], ids[n + 2], ids[n + 3]);
    *reinterpret_cast<float4 *>(by) = make_float4(weights[n], weights[n + 1], weights[n + 2], weights[n + 3]);
  } else if constexpr (WIDTH == 2) {
    *reinterpret_cast<int2 *>(to) = make_int2(ids[n], ids[n + 1]);
    *reinterpret_cast<float2 *>(by) = make_float2(weights[n], weights[n + 1]);
  } else {
    *to = ids[n];
    *by = weights[n];
  }
}

// The lane's slots: ids and weights, by p.width at a time.
template <class S>
__device__ inline void write(const RouterQuickParams &p, int token, const int (&ids)[S::SLOTS], const float (&weights)[S::SLOTS]) {
  constexpr int SLOTS = S::SLOTS;
  if (SLOTS >= 4 && p.width == 4) {
#pragma unroll
    for (int n = 0; n < SLOTS; n += 4) {
      if (ids[n] < 0) break;
      if constexpr (SLOTS >= 4) write_some<4>(p, token, slot_of<S>(n), ids, weights, n);
    }
  } else if (SLOTS >= 2 && p.width >= 2) {
#pragma unroll
    for (int n = 0; n < SLOTS; n += 2) {
      if (ids[n] < 0) break;
      if constexpr (SLOTS >= 2) write_some<2>(p, token, slot_of<S>(n), ids, weights, n);
    }
  } else if (p.width > 0) {
#pragma unroll
    for (int n = 0; n < SLOTS; ++n) {
      if (ids[n] < 0) break;
      write_some<1>(p, token, slot_of<S>(n), ids, weights, n);
    }
  } else {
#pragma unroll
    for (int n = 0; n < SLOTS; ++n) {
      if (ids[n] < 0) break;
      if (p.ids.data != nullptr) store_index(p.ids, place_of(p.ids, token, slot_of<S>(n)), ids[n]);
      if (p.weights.data != nullptr) store_float(p.weights, place_of(p.weights, token, slot_of<S>(n)), weights[n]);
    }
  }
}

// One token's lanes; `token` is -1 where there is none. Calls ahead() when `raw` is needed no more.
template <class S, class Kind, class Ahead>
__device__ inline void route_token(const RouterQuickParams &p, Raw<S::CHUNKS, Kind::WORDS> &raw, int token, const GroupRoom<S> &room,
                                   unsigned *counts, Sums<S::CHUNKS> &sums, const Ahead &ahead) {
  const bool real = p.sums && token >= 0 && is_real(p.losses, token);
  Found<S> found;
  Kind::template look<S>(p, raw, token, found);
  Stats stats(found.top);
  const bool alive = stats.top > -INFINITY;
  if (p.exponentials) {
    Row<S::CHUNKS> terms;
    const float sum = exponentials<S>(found.logits, stats.level, terms);
    stats.inverse = alive ? quick_inverse(sum) : 0.0f;
    if (p.losses.z && real && alive && S::lane() == 0) {
      const float total = stats.top + quick_log(sum);
      sums.z = fmaf(total, total, sums.z);
    }
    if (Kind::SOFTMAX && p.losses.aux) {
      const float by = real ? stats.inverse : 0.0f;
#pragma unroll
      for (int i = 0; i < S::N; ++i) sums.scores.at[i] = fmaf(terms.at[i], by, sums.scores.at[i]);
    }
  }
  if constexpr (!Kind::SOFTMAX) {
    if (p.losses.aux) {
      float scores[S::N];
#pragma unroll
      for (int i = 0; i < S::N; ++i) scores[i] = S::expert(i) < p.experts ? score(p.losses.score, found.logits.at[i]) : 0.0f;
      const float sum = sum_over(sum_of(scores), S::LANES);
      const float by = real ? quick_inverse(sum + 1e-20f) : 0.0f;
#pragma unroll
      for (int i = 0; i < S::N; ++i) sums.scores.at[i] = fmaf(scores[i], by, sums.scores.at[i]);
    }
  }
  Keys<typename Kind::Key, S::SLOTS> best;
  if constexpr (Kind::RULES) {
    // The first round is the plain top-k, where the aux loss counts that.
    ahead();
#pragma unroll 1
    for (bool plain = p.counts_plain;; plain = false) {
      best = choose<S, Kind>(p, raw, found, room, token, stats, plain ? Rule{nullptr, 0} : Rule{p.bias, p.groups}, [] {});
      if (!plain) break;
#pragma unroll
      for (int n = 0; n < S::SLOTS; ++n) {
        const bool here = real && slot_of<S>(n) < p.losses.counted && (S::LANES <= 8 || S::lane() < 8);
        if (here) atomicAdd(&counts[p.experts + Kind::expert(best.at[n])], 1u);
      }
    }
  } else {
    best = choose<S, Kind>(p, raw, found, room, token, stats, Rule{nullptr, p.groups}, ahead);
  }
  float weights[S::SLOTS];
  weigh<S, Kind>(p, token, best, stats, weights);
  int ids[S::SLOTS];
#pragma unroll
  for (int n = 0; n < S::SLOTS; ++n) {
    const bool here = token >= 0 && has_slot<S>(p, n) && (S::LANES <= 8 || S::lane() < 8);
    ids[n] = here ? Kind::expert(best.at[n]) : -1;
  }
  write<S>(p, token, ids, weights);
  if (p.spread) write_experts<S>(p, token, ids, weights);
  if (!real) return;
  if (S::lane() == 0) sums.real += 1;
#pragma unroll
  for (int n = 0; n < S::SLOTS; ++n) {
    if (ids[n] < 0) break;
    atomicAdd(&counts[ids[n]], 1u);
    if (p.tables == 2 && !p.counts_plain && slot_of<S>(n) < p.losses.counted) atomicAdd(&counts[p.experts + ids[n]], 1u);
  }
}

template <class S, class Kind> __device__ inline void route(const RouterQuickParams &p) {
  extern __shared__ __align__(16) char shared[];
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
  // [tables, E] of the block; a warp's room for groups, and in the end [warps, E] sums.
  unsigned *const counts = reinterpret_cast<unsigned *>(shared);
  char *const rooms = shared + (p.tables * p.experts + 3) / 4 * 16;
  const GroupRoom<S> room(p, rooms + warp * p.room_bytes);
  if (p.sums) {
    for (int i = threadIdx.x; i < p.tables * p.experts; i += blockDim.x) counts[i] = 0;
    __syncthreads();
  }
  wait_for_launch_ahead();
  let_next_launch_begin();
  const TokensOf own = tokens_of(p.losses, true_count(p.tokens, p.report));
  const auto load = [&](int token) {
    return load_raw<S, Kind::WORDS>(p.logits, p.packed, p.experts, token, token < own.end);
  };
  Sums<S::CHUNKS> sums = {};
  int first = own.begin + (blockIdx.x * warps + warp) * S::TOKENS * p.step;
  Raw<S::CHUNKS, Kind::WORDS> raw = load(first + S::token() * p.step);
#pragma unroll 1
  for (; first < own.end; first += p.stride) {
    const int token = first + S::token() * p.step;
    route_token<S, Kind>(p, raw, token < own.end ? token : -1, room, counts, sums, [&] { raw = load(token + p.stride); });
  }
  if (!p.sums) return;
  // Rooms are used anew.
  __syncthreads();
  hand_over<S>(p, sums, reinterpret_cast<float *>(rooms), counts);
}

}  // namespace router

#define ROUTER_QUICK_FWD(NAME, LANES, CHUNKS, KIND)                                                       \
  extern "C" __global__ void __launch_bounds__(CHUNKS > 2 ? QUICK_WIDE_THREADS : router::KIND::THREADS, 1)                                  \
      router_quick_fwd_##NAME(const __grid_constant__ RouterQuickParams p) {                              \
    router::route<router::Shape<LANES, CHUNKS>, router::KIND>(p);                                         \
  }

// For up to so many experts.
#define ROUTER_QUICK_FWD_ALL(NAME, KIND)     \
  ROUTER_QUICK_FWD(8##NAME, 1, 1, KIND)      \
  ROUTER_QUICK_FWD(64##NAME, 4, 2, KIND)     \
  ROUTER_QUICK_FWD(128##NAME, 8, 2, KIND)    \
  ROUTER_QUICK_FWD(256##NAME, 32, 1, KIND)   \
  ROUTER_QUICK_FWD(512##NAME, 32, 2, KIND)
