// What experts are compared by, in the common cases. A key holds the value and, below it, the expert, so that no two are
// equal and the lower expert is the larger of equal values; above 0.
#pragma once

#include "radix_select.cuh"
#include "router_groups.cuh"
#include "router_network.cuh"

namespace router {

// A softmax over all experts: the largest logit, what its exponentials are made of, and 1 over their sum. -inf and 0 of a
// row of nothing but -inf.
struct Stats {
  float top;
  Level level;
  float inverse;

  __device__ explicit Stats(float top) : top(top), level(top), inverse(0) {}
};

// A score that is computed from one logit and what is known of the row.
template <bool SOFTMAX> __device__ inline float score_of(const RouterQuickParams &p, float logit, const Stats &stats) {
  if constexpr (SOFTMAX) return stats.level.exp(logit) * stats.inverse;
  return score(p.weighting.score, logit);
}

// Two bf16 as unsigned integers of the same order; -0 is 0. NaN must not occur.
__device__ inline uint32_t ordered_pair(uint32_t pair) {
  // The bytes' signs: all bits of a negative half.
  uint32_t signs;
  asm("prmt.b32 %0, %1, 0, 0xbb99;" : "=r"(signs) : "r"(pair));
  return pair ^ (signs | 0x80008000u);
}

__device__ inline uint32_t to_bits(__nv_bfloat162 pair) {
  uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}

__device__ inline __nv_bfloat162 to_pair(uint32_t bits) {
  __nv_bfloat162 pair;
  memcpy(&pair, &bits, sizeof pair);
  return pair;
}

// The larger of two pairs each; NaN if either is.
__device__ inline uint32_t max_pair(uint32_t a, uint32_t b) { return to_bits(__hmax2_nan(to_pair(a), to_pair(b))); }
// NaN becomes -inf, -0 becomes 0.
__device__ inline uint32_t clean_pair(uint32_t a) { return to_bits(__hmax2(to_pair(a), to_pair(0xff80ff80u))); }
__device__ inline uint32_t without_minus_zero(uint32_t a) { return to_bits(__hfma2(to_pair(a), to_pair(0x3f803f80u), to_pair(0))); }

// What is added to what experts are compared by, NULL: nothing; and how many groups limit them.
struct Rule {
  const float *bias;
  int groups;
};

// What a lane knows of its experts once it has looked at them.
template <class S> struct Found {
  Row<S::CHUNKS> logits;
  // The token's largest logit.
  float top;
  // Of bf16, pairs of the best of each four experts.
  uint32_t best[S::CHUNKS];
};

// bf16 logits that are compared themselves: 16 bits of the logit, 16 of the expert.
struct Narrow {
  using Key = uint32_t;
  // RULES: there may be a bias, and the plain top-k beside a choice by one or by groups.
  static constexpr bool SOFTMAX = true, RULES = false;
  static constexpr int WORDS = 4, THREADS = QUICK_THREADS;
  static constexpr uint32_t LAST = QUICK_EXPERTS - 1;

  static __device__ int expert(Key key) { return LAST - (key & 0xffff); }
  static __device__ float logit(const RouterQuickParams &, int, Key key) {
    const uint32_t bits = key & 0xffff0000u;
    return __uint_as_float(static_cast<int32_t>(bits) < 0 ? bits ^ 0x80000000u : ~bits & 0xffff0000u);
  }

  // NaN becomes -inf and is reported.
  template <class S>
  static __device__ void look(const RouterQuickParams &p, Raw<S::CHUNKS, WORDS> &raw, int token, Found<S> &found) {
    found.top = largest<S>(raw, found.best);
    if (__any_sync(ALL, !(found.top < CALM))) {
      report_nan<S>(to_row(raw, MOE_DTYPE_BF16), p.experts, token, p.report);
#pragma unroll
      for (int i = 0; i < 4 * S::CHUNKS; ++i) raw.at[i / 4][i % 4] = clean_pair(raw.at[i / 4][i % 4]);
      found.top = fminf(largest<S>(raw, found.best), Real<float>::max);
    }
    found.logits = to_row(raw, MOE_DTYPE_BF16);
  }

  static __device__ float compared(const RouterQuickParams &, float logit, int, const Stats &, const Rule &) { return logit; }

  // Keys of the best of each four experts.
  template <class S>
  static __device__ Keys<Key, 2 * S::CHUNKS> fours(const RouterQuickParams &, const Found<S> &found, const Stats &, const Rule &) {
    Keys<Key, 2 * S::CHUNKS> keys;
#pragma unroll
    for (int j = 0; j < S::CHUNKS; ++j) {
      const uint32_t pair = ordered_pair(without_minus_zero(found.best[j])), low = LAST - S::expert(8 * j);
      keys.at[2 * j] = __byte_perm(pair, low, 0x1054);
      keys.at[2 * j + 1] = __byte_perm(pair, low - 4, 0x3254);
    }
    return keys;
  }

  // Keys of four experts from `first` on, of a token whose row was read.
  static __device__ Keys<Key, 4> candidates(const RouterQuickParams &p, int token, int first, const Stats &, const Rule &) {
    uint32_t pairs[2] = {0xff80ff80u, 0xff80ff80u};
    const uint16_t *const from = reinterpret_cast<const uint16_t *>(p.logits.data) + place_of(p.logits, token, first);
    if (p.packed) {
      const uint2 both = *reinterpret_cast<const uint2 *>(from);
      pairs[0] = both.x, pairs[1] = both.y;
    } else {
      uint32_t bits[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) bits[i] = first + i < p.experts ? from[i] : 0xff80u;
      pairs[0] = bits[1] << 16 | bits[0], pairs[1] = bits[3] << 16 | bits[2];
    }
    return keys_of(pairs[0], pairs[1], first);
  }

  // Keys of all of a lane's eight experts.
  template <class S>
  static __device__ Keys<Key, 8> all(const RouterQuickParams &, const Raw<1, WORDS> &raw, const Found<S> &, const Stats &, const Rule &) {
    Keys<Key, 8> keys;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Keys<Key, 4> four = keys_of(raw.at[0][2 * half], raw.at[0][2 * half + 1], 4 * half);
#pragma unroll
      for (int i = 0; i < 4; ++i) keys.at[4 * half + i] = four.at[i];
    }
    return keys;
  }

 private:
  static __device__ Keys<Key, 4> keys_of(uint32_t first_pair, uint32_t second_pair, int first) {
    const uint32_t a = ordered_pair(without_minus_zero(clean_pair(first_pair)));
    const uint32_t b = ordered_pair(without_minus_zero(clean_pair(second_pair)));
    const uint32_t low = LAST - first;
    return {{__byte_perm(a, low, 0x1054), __byte_perm(a, low - 1, 0x3254), __byte_perm(b, low - 2, 0x1054), __byte_perm(b, low - 3, 0x3254)}};
  }

  // The token's largest logit; `best`: pairs of the best of each four experts.
  template <class S> static __device__ float largest(const Raw<S::CHUNKS, WORDS> &raw, uint32_t (&best)[S::CHUNKS]) {
    uint32_t top;
#pragma unroll
    for (int j = 0; j < S::CHUNKS; ++j) {
      const uint32_t a = max_pair(raw.at[j][0], raw.at[j][1]), b = max_pair(raw.at[j][2], raw.at[j][3]);
      best[j] = max_pair(__byte_perm(a, b, 0x5410), __byte_perm(a, b, 0x7632));
      top = j == 0 ? best[0] : max_pair(top, best[j]);
    }
#pragma unroll
    for (int distance = S::LANES / 2; distance > 0; distance /= 2) top = max_pair(top, __shfl_xor_sync(ALL, top, distance));
    return __uint_as_float(max_pair(top, top << 16) & 0xffff0000u);
  }
};

// Everything else: 32 bits of the logit, of it with a bias, or of the score with a bias; 32 of the expert.
template <bool SOFTMAX_> struct Wide {
  using Key = uint64_t;
  static constexpr bool SOFTMAX = SOFTMAX_, RULES = true;
  static constexpr int WORDS = 8, THREADS = QUICK_WIDE_THREADS, LAST = QUICK_EXPERTS - 1;

  static __device__ Key key(float value, int expert) {
    return static_cast<uint64_t>(ordered(value)) << 32 | static_cast<uint32_t>(LAST - expert);
  }
  static __device__ int expert(Key key) { return LAST - static_cast<int>(static_cast<uint32_t>(key)); }
  static __device__ float logit(const RouterQuickParams &p, int token, Key key) {
    if (p.bias == nullptr) return from_ordered(static_cast<uint32_t>(key >> 32));
    return load_float(p.logits, place_of(p.logits, token, expert(key)));
  }

  // What an expert is compared by. NaN loses.
  static __device__ float compared(const RouterQuickParams &p, float logit, int expert, const Stats &stats, const Rule &rule) {
    if (rule.bias == nullptr) return logit;
    if (stats.top == -INFINITY) return -INFINITY;
    const float value = (p.by_logit ? logit : score_of<SOFTMAX>(p, logit, stats)) + rule.bias[expert];
    return value == value ? value : -INFINITY;
  }

  template <class S>
  static __device__ void look(const RouterQuickParams &p, Raw<S::CHUNKS, WORDS> &raw, int token, Found<S> &found) {
    found.logits = to_row(raw, p.logits.dtype);
    found.top = clean<S>(found.logits, p.experts, token, p.report);
  }

  template <class S>
  static __device__ Keys<Key, 2 * S::CHUNKS> fours(const RouterQuickParams &p, const Found<S> &found, const Stats &stats, const Rule &rule) {
    Keys<Key, 2 * S::CHUNKS> keys;
#pragma unroll
    for (int i = 0; i < S::N; ++i) {
      const Key own = key_of(p, found.logits.at[i], S::expert(i), stats, rule);
      keys.at[i / 4] = i % 4 == 0 ? own : max(keys.at[i / 4], own);
    }
    return keys;
  }

  static __device__ Keys<Key, 4> candidates(const RouterQuickParams &p, int token, int first, const Stats &stats, const Rule &rule) {
    Keys<Key, 4> keys;
    float logits[4];
    const uint32_t at = place_of(p.logits, token, first);
    if (p.packed && p.logits.dtype == MOE_DTYPE_FP32) {
      const float4 four = *reinterpret_cast<const float4 *>(reinterpret_cast<const float *>(p.logits.data) + at);
      logits[0] = four.x, logits[1] = four.y, logits[2] = four.z, logits[3] = four.w;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) logits[i] = first + i < p.experts ? load_float(p.logits, at + i) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) keys.at[i] = key_of(p, logits[i], first + i, stats, rule);
    return keys;
  }

  template <class S>
  static __device__ Keys<Key, 8> all(const RouterQuickParams &p, const Raw<1, WORDS> &, const Found<S> &found, const Stats &stats, const Rule &rule) {
    Keys<Key, 8> keys;
#pragma unroll
    for (int i = 0; i < 8; ++i) keys.at[i] = key_of(p, found.logits.at[i], i, stats, rule);
    return keys;
  }

  static __device__ Key key_of(const RouterQuickParams &p, float logit, int expert, const Stats &stats, const Rule &rule) {
    if (expert >= p.experts) return 0;
    // NaN is -inf.
    return key(compared(p, fminf(fmaxf(logit, -INFINITY), Real<float>::max), expert, stats, rule), expert);
  }
};

}  // namespace router
