// Routing, backward, of the common cases: at most eight slots a token, losses over the whole batch.
//
// A warp takes p.tile tokens at a time. First each lane takes one token, and puts what its slots add to their experts into
// a row of shared memory, which is zero elsewhere. Then each token's lanes have the row, the logits and the losses' slopes
// side by side, and write the gradient.

#include "router_row.cuh"

namespace {

using namespace router;

constexpr int SLOTS = 8;

// What the losses' gradient is made of.
struct Slopes {
  // d(aux loss)/d(s_te) without n_e, and 2*d(z loss)/d(logsumexp^2).
  float aux, z;
};

// All threads of the block call.
__device__ inline Slopes slopes_of(const RouterQuickBwdParams &p, int64_t tokens) {
  __shared__ unsigned long long total;
  Slopes slopes = {0, 0};
  if (!p.losses.aux && !p.losses.z) return slopes;
  int64_t real = tokens;
  if (p.losses.padding_mask != nullptr) {
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    unsigned own = 0;
    for (int64_t token = threadIdx.x; token < tokens; token += blockDim.x) own += is_real(p.losses, token);
    atomicAdd(&total, static_cast<unsigned long long>(own));
    __syncthreads();
    real = static_cast<int64_t>(total);
  }
  if (p.losses.aux) {
    slopes.aux = static_cast<float>(p.losses.aux_scale * (p.aux_grad != nullptr ? *p.aux_grad : 1.0f) * inverse_square(p.losses, real));
  }
  if (p.losses.z) {
    slopes.z = static_cast<float>(2 * p.losses.z_scale * (p.z_grad != nullptr ? *p.z_grad : 1.0f) / max(double(real), 1.0));
  }
  return slopes;
}

// The lane's token: what each slot adds. A softmax over all experts wants the gradients of its scores, all others those
// of the logits.
template <bool SOFTMAX> __device__ inline void put_terms(const RouterQuickBwdParams &p, int64_t token, float *row) {
  const RouterWeighting &w = p.weighting;
  const float scale = static_cast<float>(w.scale);
  int ids[SLOTS];
  float terms[SLOTS];
#pragma unroll
  for (int k = 0; k < SLOTS; k += 4) {
    if (p.quads && k < p.top_k) {
      const int4 four = *reinterpret_cast<const int4 *>(reinterpret_cast<const int *>(p.ids.data) + token * p.ids.pitch + k);
      const float4 by = *reinterpret_cast<const float4 *>(reinterpret_cast<const float *>(p.dweights.data) + token * p.dweights.pitch + k);
      ids[k] = four.x, ids[k + 1] = four.y, ids[k + 2] = four.z, ids[k + 3] = four.w;
      terms[k] = by.x, terms[k + 1] = by.y, terms[k + 2] = by.z, terms[k + 3] = by.w;
    }
#pragma unroll
    for (int i = k; i < k + 4; ++i) {
      if (i >= p.top_k) {
        ids[i] = -1;
        continue;
      }
      if (!p.quads) {
        const int64_t id = load_index(p.ids, token * p.ids.pitch + i);
        ids[i] = id >= 0 && id < p.experts ? static_cast<int>(id) : -1;
        terms[i] = ids[i] >= 0 ? load_float(p.dweights, token * p.dweights.pitch + (p.dense ? ids[i] : i)) : 0.0f;
      }
      if (static_cast<unsigned>(ids[i]) >= static_cast<unsigned>(p.experts)) ids[i] = -1;
      terms[i] *= scale;
    }
  }
  if (w.over_chosen || !SOFTMAX) {
    float logits[SLOTS], scores[SLOTS], top = -INFINITY, sum = 0, inner = 0;
#pragma unroll
    for (int k = 0; k < SLOTS; ++k) {
      logits[k] = ids[k] < 0 ? -INFINITY : fminf(fmaxf(load_float(p.logits, token * p.logits.pitch + ids[k]), -INFINITY), Real<float>::max);
      top = fmaxf(top, logits[k]);
    }
#pragma unroll
    for (int k = 0; k < SLOTS; ++k) {
      scores[k] = 0;
      if (ids[k] < 0 || top == -INFINITY) continue;
      if constexpr (SOFTMAX) {
        scores[k] = quick_exp(logits[k] - top);
      } else {
        scores[k] = score(w.score, logits[k]);
      }
      sum += scores[k];
      inner += scores[k] * terms[k];
    }
    const float inverse = SOFTMAX ? (sum > 0 ? 1 / sum : 0.0f) : w.divided ? 1 / (sum + 1e-20f) : 1.0f;
    const float mean = SOFTMAX || w.divided ? inner * inverse : 0.0f;
#pragma unroll
    for (int k = 0; k < SLOTS; ++k) {
      float slope = scores[k];
      if constexpr (!SOFTMAX) slope = ids[k] < 0 ? 0.0f : derivative(w.score, logits[k]);
      // 0 times a gradient that overflowed is 0.
      terms[k] = slope > 0 ? (terms[k] - mean) * inverse * slope : 0.0f;
    }
  }
#pragma unroll
  for (int k = 0; k < SLOTS; ++k) {
    if (ids[k] >= 0) row[ids[k]] += terms[k];
  }
}

// One token's lanes: `terms` is its row, which is left zero; without a gradient of weights null.
template <int CHUNKS, bool SOFTMAX>
__device__ inline void gradient(const RouterQuickBwdParams &p, const Lanes &place, Row<CHUNKS> row, int64_t token, float *terms,
                                const Row<CHUNKS> &slopes, float z, bool add, bool valid) {
  constexpr int N = 8 * CHUNKS;
  const float top = clean(row, place, token, p.report);
  const bool alive = top > -INFINITY, real = valid && is_real(p.losses, token);
  Row<CHUNKS> own;
#pragma unroll
  for (int j = 0; j < CHUNKS; ++j) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      float4 four = make_float4(0, 0, 0, 0);
      if (terms != nullptr && place.expert(j) + i < p.experts) {
        float4 *const at = reinterpret_cast<float4 *>(terms + place.expert(j) + i);
        four = *at;
        *at = make_float4(0, 0, 0, 0);
      }
      own.at[8 * j + i] = four.x, own.at[8 * j + i + 1] = four.y, own.at[8 * j + i + 2] = four.z, own.at[8 * j + i + 3] = four.w;
    }
  }
  const bool through_scores = SOFTMAX && !p.weighting.over_chosen;
  Row<CHUNKS> result = {};
  float scores[N], sum = 0;
  if (SOFTMAX || p.losses.z) {
#pragma unroll
    for (int i = 0; i < N; ++i) scores[i] = alive ? quick_exp(row.at[i] - top) : 0.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) sum += scores[i];
    sum = sum_over(sum, place.lanes);
    const float inverse = alive ? 1 / sum : 0.0f;
    const float slope = p.losses.z && real && alive ? z * (top + logf(sum)) : 0.0f;
    // Of what goes through the scores: d = s * (g - sum of s * g).
    float mean = 0;
    if constexpr (SOFTMAX) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float g = (through_scores ? own.at[i] : 0.0f) + (real ? slopes.at[i] : 0.0f);
        mean = scores[i] > 0 ? fmaf(scores[i], g, mean) : mean;
      }
      mean = sum_over(mean, place.lanes) * inverse;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float g = SOFTMAX ? (through_scores ? own.at[i] : 0.0f) + (real ? slopes.at[i] : 0.0f) - mean : 0.0f;
      // 0 times a gradient that overflowed is 0.
      result.at[i] = scores[i] > 0 ? scores[i] * inverse * (g + slope) : 0.0f;
    }
  }
  if constexpr (!SOFTMAX) {
    if (p.losses.aux) {
      float divisor = 0, mean = 0;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        scores[i] = place.expert(i / 8) + i % 8 < p.experts ? score(p.losses.score, row.at[i]) : 0.0f;
        divisor += scores[i];
        mean = fmaf(scores[i], slopes.at[i], mean);
      }
      divisor = sum_over(divisor, place.lanes) + 1e-20f;
      mean = sum_over(mean, place.lanes) / divisor;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (real && alive) result.at[i] += (slopes.at[i] - mean) / divisor * derivative(p.losses.score, row.at[i]);
      }
    }
  }
  if (!through_scores && alive) {
#pragma unroll
    for (int i = 0; i < N; ++i) result.at[i] += own.at[i];
  }
  if (!valid) return;
  if (add) {
    const Row<CHUNKS> old = load_row<CHUNKS>(p.dlogits, p.packed_out, place, token, true, 0.0f);
#pragma unroll
    for (int i = 0; i < N; ++i) result.at[i] += old.at[i];
  }
  store_row<CHUNKS>(p.dlogits, p.packed_out, place, token, result);
}

template <int CHUNKS, bool SOFTMAX> __device__ inline void backward(const RouterQuickBwdParams &p) {
  extern __shared__ __align__(16) float shared[];
  const int64_t tokens = true_count(p.tokens, p.report);
  const bool add = adds(p.mode), weighted = p.ids.data != nullptr;
  const Lanes place(p.lanes, p.experts);
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
  float *const rows = shared + warp * p.tile * p.pitch;
  if (weighted) {
    for (int i = lane_id(); i < p.tile * p.pitch; i += 32) rows[i] = 0;
  }
  const Slopes factors = slopes_of(p, tokens);
  Row<CHUNKS> slopes;
#pragma unroll
  for (int i = 0; i < 8 * CHUNKS; ++i) {
    const int e = place.expert(i / 8) + i % 8;
    slopes.at[i] = 0;
    if (!p.losses.aux || e >= p.experts) continue;
    slopes.at[i] = factors.aux * (p.losses.global ? p.losses.global_counts[e] : static_cast<float>(p.aux_counts[e]));
  }
  const int at_once = 32 / p.lanes;
  const int64_t tiles = (tokens + p.tile - 1) / p.tile;
  for (int64_t tile = int64_t(blockIdx.x) * warps + warp; tile < tiles; tile += int64_t(gridDim.x) * warps) {
    __syncwarp();
    const int64_t mine = tile * p.tile + lane_id();
    if (weighted && lane_id() < p.tile && mine < tokens) put_terms<SOFTMAX>(p, mine, rows + lane_id() * p.pitch);
    __syncwarp();
    // One row is at work while the next is on its way.
    int local = lane_id() / p.lanes - at_once;
    Row<CHUNKS> next;
#pragma unroll 1
    for (int base = -at_once; base < p.tile; base += at_once) {
      const Row<CHUNKS> row = next;
      const int64_t token = tile * p.tile + local, ahead = token + at_once;
      if (base + at_once < p.tile) next = load_row<CHUNKS>(p.logits, p.packed, place, ahead, ahead < tokens, -INFINITY);
      // All lanes of the warp go on, as sums are over all of them.
      if (base >= 0) {
        gradient<CHUNKS, SOFTMAX>(p, place, row, token, weighted ? rows + local * p.pitch : nullptr, slopes, factors.z, add, token < tokens);
      }
      local += at_once;
    }
  }
}

}  // namespace

#define ROUTER_QUICK_BWD(NAME, CHUNKS, SOFTMAX)                        \
  extern "C" __global__ void __launch_bounds__(QUICK_BWD_THREADS, SOFTMAX ? 2 : 1) \
      router_quick_bwd_##NAME(const __grid_constant__ RouterQuickBwdParams p) { backward<CHUNKS, SOFTMAX>(p); }

ROUTER_QUICK_BWD(8, 1, true)
ROUTER_QUICK_BWD(16, 2, true)
ROUTER_QUICK_BWD(8_other, 1, false)
ROUTER_QUICK_BWD(16_other, 2, false)
