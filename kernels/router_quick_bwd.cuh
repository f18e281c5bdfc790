// Routing, backward, of the common cases: at most eight slots a token, losses over the whole batch or over sequences.
//
// Each of a token's lanes takes a slot or a few, and puts what they add to their experts into a row of shared memory, which
// is zero elsewhere. Then the lanes have the row, the logits and the losses' slopes side by side, and write the gradient.
#pragma once

#include "overlap.cuh"
#include "router_row.cuh"

namespace router {

// What the losses' gradient is made of.
struct Slopes {
  // d(aux loss)/d(s_te) without n_e, and 2*d(z loss)/d(logsumexp^2).
  float aux, z;
};

// Of a sequence's tokens, the losses' factors; all threads of the block call.
template <bool SEQUENCES> __device__ inline Slopes slopes_of(const RouterQuickBwdParams &p, const TokensOf &own, int tokens) {
  // Real tokens of all sequences, and of this one.
  __shared__ unsigned counts[2];
  Slopes slopes = {0, 0};
  if (!p.losses.aux && !p.losses.z) return slopes;
  float all = static_cast<float>(tokens), real = all;
  if (SEQUENCES) real = static_cast<float>(max(own.end - own.begin + p.step - 1, 0) / p.step);
  if (p.losses.padding_mask != nullptr) {
    if (threadIdx.x < 2) counts[threadIdx.x] = 0;
    __syncthreads();
    unsigned of_sequence = 0, of_all = 0;
    for (int token = threadIdx.x; token < tokens; token += blockDim.x) {
      const bool counted = is_real(p.losses, token);
      of_all += counted;
      if (SEQUENCES) of_sequence += counted && token >= own.begin && token < own.end && (token - own.begin) % p.step == 0;
    }
    atomicAdd(&counts[0], of_all);
    if (SEQUENCES) atomicAdd(&counts[1], of_sequence);
    __syncthreads();
    all = static_cast<float>(counts[0]);
    real = SEQUENCES ? static_cast<float>(counts[1]) : all;
  }
  if (p.losses.aux) {
    const float inverse = inverse_tokens(p.losses, real);
    slopes.aux = static_cast<float>(p.losses.aux_scale) * inverse * inverse * (p.aux_grad != nullptr ? *p.aux_grad : 1.0f);
  }
  if (p.losses.z) slopes.z = 2 * static_cast<float>(p.losses.z_scale) * (p.z_grad != nullptr ? *p.z_grad : 1.0f) / fmaxf(all, 1.0f);
  return slopes;
}

// A lane's slots as they lie in memory; of ids of 64 bits the lower half.
template <class S> struct RawSlots {
  uint32_t ids[S::SLOTS], weights[S::SLOTS];
};

// The words of a slot's id.
__device__ inline const uint32_t *id_words(const RouterQuickBwdParams &p, int token, int slot) {
  return reinterpret_cast<const uint32_t *>(p.ids.data + uint64_t(place_of(p.ids, token, slot)) * (p.ids.dtype == MOE_DTYPE_INT64 ? 8 : 4));
}

// The slot that is a lane's n-th; none from the eighth lane on.
template <class S> __device__ inline int own_slot(int n) { return S::SLOTS * S::lane() + n; }

template <class S> __device__ inline RawSlots<S> load_slots(const RouterQuickBwdParams &p, int token, bool valid) {
  RawSlots<S> raw;
#pragma unroll
  for (int n = 0; n < S::SLOTS; ++n) {
    const int slot = own_slot<S>(n);
    raw.ids[n] = ~0u, raw.weights[n] = 0;
    if (!valid || slot >= p.top_k) continue;
    raw.ids[n] = *id_words(p, token, slot);
    if (p.dense) continue;
    const uint32_t from = place_of(p.dweights, token, slot);
    raw.weights[n] = p.dweights.dtype == MOE_DTYPE_FP32 ? reinterpret_cast<const uint32_t *>(p.dweights.data)[from]
                                                        : reinterpret_cast<const uint16_t *>(p.dweights.data)[from];
  }
  return raw;
}

// What a lane's slots add to their experts, -1: none. A softmax over all experts wants the gradients of its scores, all
// others those of the logits.
template <class S> struct Terms {
  int ids[S::SLOTS];
  float at[S::SLOTS];
};

template <class S, bool SOFTMAX>
__device__ inline Terms<S> terms_of(const RouterQuickBwdParams &p, const RawSlots<S> &raw, int token) {
  constexpr int LANES = S::LANES < 8 ? S::LANES : 8;
  const RouterWeighting &w = p.weighting;
  Terms<S> terms;
#pragma unroll
  for (int n = 0; n < S::SLOTS; ++n) {
    bool here = raw.ids[n] < static_cast<uint32_t>(p.experts);
    if (p.ids.dtype == MOE_DTYPE_INT64) here = here && id_words(p, token, own_slot<S>(n))[1] == 0;
    terms.ids[n] = here ? static_cast<int>(raw.ids[n]) : -1;
    float by = 0;
    if (p.dense) {
      if (here) by = load_float(p.dweights, place_of(p.dweights, token, terms.ids[n]));
    } else if (p.dweights.dtype == MOE_DTYPE_FP32) {
      by = __uint_as_float(raw.weights[n]);
    } else if (p.dweights.dtype == MOE_DTYPE_BF16) {
      by = __uint_as_float(raw.weights[n] << 16);
    } else {
      by = __half2float(__ushort_as_half(static_cast<unsigned short>(raw.weights[n])));
    }
    terms.at[n] = here ? by * p.scale : 0.0f;
  }
  if (SOFTMAX && !w.over_chosen) return terms;
  float logits[S::SLOTS], scores[S::SLOTS], top = -INFINITY, sum = 0, inner = 0;
#pragma unroll
  for (int n = 0; n < S::SLOTS; ++n) {
    logits[n] = -INFINITY;
    if (terms.ids[n] >= 0) {
      logits[n] = fminf(fmaxf(load_float(p.logits, place_of(p.logits, token, terms.ids[n])), -INFINITY), Real<float>::max);
    }
    top = fmaxf(top, logits[n]);
  }
  if constexpr (SOFTMAX) top = max_over(top, LANES);
#pragma unroll
  for (int n = 0; n < S::SLOTS; ++n) {
    scores[n] = 0;
    if constexpr (SOFTMAX) {
      if (top > -INFINITY) scores[n] = quick_exp(logits[n] - top);
    } else if (logits[n] > -INFINITY) {
      scores[n] = score(w.score, logits[n]);
    }
    sum += scores[n];
    inner += scores[n] > 0 ? scores[n] * terms.at[n] : 0.0f;
  }
  float inverse = 1, mean = 0;
  if (SOFTMAX || w.divided) {
    sum = sum_over(sum, LANES);
    inner = sum_over(inner, LANES);
    inverse = SOFTMAX ? (sum > 0 ? quick_inverse(sum) : 0.0f) : quick_inverse(sum + 1e-20f);
    mean = inner * inverse;
  }
#pragma unroll
  for (int n = 0; n < S::SLOTS; ++n) {
    float slope = scores[n];
    if constexpr (!SOFTMAX) slope = logits[n] > -INFINITY ? derivative(w.score, logits[n]) : 0.0f;
    // 0 times a gradient that overflowed is 0.
    terms.at[n] = slope > 0 ? (terms.at[n] - mean) * inverse * slope : 0.0f;
  }
  return terms;
}

// Rows of a warp's tokens in shared memory, zero between tokens. A lane's elements are 16 bytes LANES * 16 apart.
template <class S> struct TermRows {
  static constexpr int PITCH = S::LANES * S::N + (S::LANES == 4 ? 16 : 0);
  float *row;

  __device__ explicit TermRows(float *rows) : row(rows + S::token() * PITCH) {}

  static __device__ int place(int expert) {
    const int chunk = expert / 8;
    return ((2 * (chunk / S::LANES) + expert % 8 / 4) * S::LANES + chunk % S::LANES) * 4 + expert % 4;
  }

  __device__ void clear(const Terms<S> &terms) const {
#pragma unroll
    for (int n = 0; n < S::SLOTS; ++n) {
      if (terms.ids[n] >= 0) row[place(terms.ids[n])] = 0;
    }
  }

  // Adds up terms of the same expert, which is rare, in the order of slots.
  __device__ void put(const Terms<S> &terms) const {
#pragma unroll
    for (int n = 0; n < S::SLOTS; ++n) {
      if (terms.ids[n] >= 0) row[place(terms.ids[n])] = __uint_as_float(own_slot<S>(n));
    }
    __syncwarp();
    bool twice = false;
#pragma unroll
    for (int n = 0; n < S::SLOTS; ++n) {
      twice |= terms.ids[n] >= 0 && __float_as_uint(row[place(terms.ids[n])]) != own_slot<S>(n);
    }
    twice = __any_sync(ALL, twice);
#pragma unroll
    for (int n = 0; n < S::SLOTS; ++n) {
      if (terms.ids[n] >= 0) row[place(terms.ids[n])] = twice ? 0.0f : terms.at[n];
    }
    __syncwarp();
    for (int slot = 0; twice && slot < 8; ++slot) {
#pragma unroll
      for (int n = 0; n < S::SLOTS; ++n) {
        if (terms.ids[n] >= 0 && own_slot<S>(n) == slot) row[place(terms.ids[n])] += terms.at[n];
      }
      __syncwarp();
    }
  }

  // The lane's elements of a row.
  static __device__ Row<S::CHUNKS> read(const float *row) {
    Row<S::CHUNKS> own;
#pragma unroll
    for (int i = 0; i < S::N; i += 4) {
      const float4 four = *reinterpret_cast<const float4 *>(row + (i / 4 * S::LANES + S::lane()) * 4);
      own.at[i] = four.x, own.at[i + 1] = four.y, own.at[i + 2] = four.z, own.at[i + 3] = four.w;
    }
    return own;
  }
};

// What a token's slots add to its lanes' experts. `wild`: not all of it is finite.
template <class S, bool SOFTMAX>
__device__ inline Row<S::CHUNKS> spread_terms(const RouterQuickBwdParams &p, const TermRows<S> &rows, const RawSlots<S> &raw, int token,
                                              bool &wild) {
  const Terms<S> terms = terms_of<S, SOFTMAX>(p, raw, token);
#pragma unroll
  for (int n = 0; n < S::SLOTS; ++n) wild |= !(fabsf(terms.at[n]) <= Real<float>::max);
  Row<S::CHUNKS> own = {};
  if constexpr (S::LANES == 1) {
#pragma unroll
    for (int n = 0; n < S::SLOTS; ++n) {
      if (n >= p.top_k) break;
#pragma unroll
      for (int i = 0; i < S::N; ++i) own.at[i] += terms.ids[n] == i ? terms.at[n] : 0.0f;
    }
  } else {
    rows.put(terms);
    own = rows.read(rows.row);
    __syncwarp();
    rows.clear(terms);
    __syncwarp();
  }
  return own;
}

// The gradient of one token's logits; all lanes of the warp call. `slopes`: of the aux loss, a row in shared memory.
template <class S, bool SOFTMAX>
__device__ inline Row<S::CHUNKS> gradient(const RouterQuickBwdParams &p, Row<S::CHUNKS> row, int token, const Row<S::CHUNKS> &own,
                                          const float *slopes_row, float z, bool real, bool wild) {
  const float top = clean<S>(row, p.experts, token, p.report);
  const bool alive = top > -INFINITY, through_scores = SOFTMAX && !p.weighting.over_chosen;
  Row<S::CHUNKS> result = {};
  if (through_scores || p.losses.z || (SOFTMAX && p.losses.aux)) {
    Row<S::CHUNKS> terms;
    const float sum = exponentials<S>(row, Level(top), terms), inverse = alive ? quick_inverse(sum) : 0.0f;
    const float slope = p.losses.z && real && alive ? z * (top + quick_log(sum)) : 0.0f;
    // Of what goes through the scores: d = s * (g - sum of s * g).
    Row<S::CHUNKS> g = {};
    float mean = 0;
    if constexpr (SOFTMAX) {
      const Row<S::CHUNKS> slopes = TermRows<S>::read(slopes_row);
      const float by = real ? 1.0f : 0.0f;
      if (through_scores) {
#pragma unroll
        for (int i = 0; i < S::N; ++i) g.at[i] = fmaf(slopes.at[i], by, own.at[i]);
      } else {
#pragma unroll
        for (int i = 0; i < S::N; ++i) g.at[i] = slopes.at[i] * by;
      }
      if (wild) {
        // 0 times a gradient that overflowed is 0.
#pragma unroll
        for (int i = 0; i < S::N; ++i) {
          if (!real) g.at[i] = through_scores ? own.at[i] : 0.0f;
          if (!(terms.at[i] > 0)) g.at[i] = 0;
        }
      }
      float products[S::N];
#pragma unroll
      for (int i = 0; i < S::N; ++i) products[i] = terms.at[i] * g.at[i];
      mean = sum_over(sum_of(products), S::LANES) * inverse;
    }
    const float base = (slope - mean) * inverse;
#pragma unroll
    for (int i = 0; i < S::N; ++i) result.at[i] = terms.at[i] * fmaf(g.at[i], inverse, base);
    if (wild) {
#pragma unroll
      for (int i = 0; i < S::N; ++i) result.at[i] = terms.at[i] > 0 ? result.at[i] : 0.0f;
    }
  }
  if constexpr (!SOFTMAX) {
    if (p.losses.aux) {
      const Row<S::CHUNKS> slopes = TermRows<S>::read(slopes_row);
      float scores[S::N], divisor = 0, mean = 0;
#pragma unroll
      for (int i = 0; i < S::N; ++i) {
        scores[i] = S::expert(i) < p.experts ? score(p.losses.score, row.at[i]) : 0.0f;
        divisor += scores[i];
        mean = fmaf(scores[i], slopes.at[i], mean);
      }
      divisor = sum_over(divisor, S::LANES) + 1e-20f;
      mean = sum_over(mean, S::LANES) / divisor;
#pragma unroll
      for (int i = 0; i < S::N; ++i) {
        if (real && alive) result.at[i] += (slopes.at[i] - mean) / divisor * derivative(p.losses.score, row.at[i]);
      }
    }
  }
  if (!through_scores && alive) {
#pragma unroll
    for (int i = 0; i < S::N; ++i) result.at[i] += own.at[i];
  }
  return result;
}

// SEQUENCES: losses may be of sequences, the grid's second dimension.
template <class S, int WORDS, bool SOFTMAX, bool SEQUENCES> __device__ inline void backward(const RouterQuickBwdParams &p) {
  constexpr int FLOATS = S::LANES == 1 ? 4 : S::TOKENS * TermRows<S>::PITCH;
  __shared__ __align__(16) float shared[QUICK_BWD_THREADS / 32][FLOATS];
  __shared__ __align__(16) float slopes[S::LANES * S::N];
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
  const bool weighted = p.ids.data != nullptr;
  for (int i = lane_id(); i < FLOATS; i += 32) shared[warp][i] = 0;
  const TermRows<S> rows(shared[warp]);
  __syncwarp();
  wait_for_launch_ahead();
  let_next_launch_begin();
  const int tokens = static_cast<int>(true_count(p.tokens, p.report));
  const TokensOf sequence = SEQUENCES ? tokens_of(p.losses, tokens) : TokensOf{0, tokens};
  const int step = SEQUENCES ? p.step : 1, stride = SEQUENCES ? p.stride : gridDim.x * warps * S::TOKENS;
  int first = sequence.begin + (blockIdx.x * warps + warp) * S::TOKENS * step;
  const auto load = [&](int token) {
    return load_raw<S, WORDS>(p.logits, p.packed, p.experts, token, token < sequence.end);
  };
  const auto load_own_slots = [&](int token) { return load_slots<S>(p, token, weighted && token < sequence.end); };
  Raw<S::CHUNKS, WORDS> raw = load(first + S::token() * step);
  RawSlots<S> slots = load_own_slots(first + S::token() * step);
  const Slopes factors = slopes_of<SEQUENCES>(p, sequence, tokens);
  const bool add = adds(p.mode), wild_slopes = !(fabsf(factors.aux) < 1e18f);
  for (int e = threadIdx.x; e < S::LANES * S::N; e += blockDim.x) {
    float slope = 0;
    if (p.losses.aux && e < p.experts) {
      const float count = p.losses.global ? p.losses.global_counts[e] : static_cast<float>(p.aux_counts[(SEQUENCES ? blockIdx.y * p.experts : 0) + e]);
      slope = factors.aux * count;
    }
    slopes[TermRows<S>::place(e)] = slope;
  }
  __syncthreads();
  // One row is at work while the next is on its way.
#pragma unroll 1
  for (; first < sequence.end; first += stride) {
    const int token = first + S::token() * step;
    const bool valid = token < sequence.end, real = valid && is_real(p.losses, token);
    bool wild = wild_slopes;
    Row<S::CHUNKS> own = {};
    if (weighted) own = spread_terms<S, SOFTMAX>(p, rows, slots, token, wild);
    wild = __any_sync(ALL, wild);
    const Row<S::CHUNKS> row = to_row(raw, p.logits.dtype);
    slots = load_own_slots(token + stride);
    raw = load(token + stride);
    Row<S::CHUNKS> result = gradient<S, SOFTMAX>(p, row, token, own, slopes, factors.z, real, wild);
    if (!valid) continue;
    if (add) {
      const Raw<S::CHUNKS, 8> old = load_raw<S, 8>(p.dlogits, p.packed_out, p.experts, token, true, true);
      const Row<S::CHUNKS> before = to_row(old, p.dlogits.dtype);
#pragma unroll
      for (int i = 0; i < S::N; ++i) result.at[i] += before.at[i];
    }
    store_row<S>(p.dlogits, p.packed_out, p.experts, token, result);
  }
}

}  // namespace router

#define ROUTER_QUICK_BWD(NAME, LANES, CHUNKS, WORDS, SOFTMAX)                                             \
  extern "C" __global__ void __launch_bounds__(QUICK_BWD_THREADS, !SOFTMAX ? 1 : WORDS == 4 ? 3 : 2)       \
      router_quick_bwd_##NAME(const __grid_constant__ RouterQuickBwdParams p) {                           \
    /* Without sequences where registers are scarce: the wide kernels take them. */                       \
    router::backward<router::Shape<LANES, CHUNKS>, WORDS, SOFTMAX, WORDS == 8>(p);                        \
  }

// For up to so many experts.
#define ROUTER_QUICK_BWD_ALL(NAME, WORDS, SOFTMAX)     \
  ROUTER_QUICK_BWD(8##NAME, 1, 1, WORDS, SOFTMAX)      \
  ROUTER_QUICK_BWD(64##NAME, 4, 2, WORDS, SOFTMAX)     \
  ROUTER_QUICK_BWD(128##NAME, 8, 2, WORDS, SOFTMAX)    \
  ROUTER_QUICK_BWD(256##NAME, 32, 1, WORDS, SOFTMAX)   \
  ROUTER_QUICK_BWD(512##NAME, 32, 2, WORDS, SOFTMAX)
