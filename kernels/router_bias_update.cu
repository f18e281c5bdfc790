// The update of the selection bias: by the sign of the load's excess, or by a quantile of each expert's margins.

#include "params/bias_update.h"
#include "router_columns.cuh"

namespace {

using namespace router;

// NaN counts as -inf.
__device__ inline float number(float value) { return value == value ? value : -INFINITY; }

// The `rank`-th largest of a row of ordered keys, by a warp: bit by bit from the top, the largest number that so many keys
// reach.
__device__ inline uint32_t nth_largest(const KeyTile<uint32_t> &tile, int token, int experts, int rank) {
  uint32_t best = 0;
#pragma unroll 1
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t trial = best | 1u << bit;
    int reach = 0;
    for (int e = lane_id(); e < experts; e += 32) reach += tile.at(e, token) >= trial;
    if (__reduce_add_sync(ALL, reach) >= rank) best = trial;
  }
  return best;
}

}  // namespace

// One block: bias += rate * sign(mean(n) - n). Counts may be any integers: their sum has 128 bits.
extern "C" __global__ void __launch_bounds__(BIAS_THREADS) router_bias_sign(const __grid_constant__ RouterBiasSignParams p) {
  __shared__ uint64_t low[BIAS_THREADS];
  __shared__ int64_t high[BIAS_THREADS];
  const int e = threadIdx.x;
  const int64_t count = e < p.experts ? p.tokens_per_expert[e] : 0;
  low[e] = static_cast<uint32_t>(count);
  high[e] = count >> 32;
  __syncthreads();
  for (int distance = BIAS_THREADS / 2; distance > 0; distance /= 2) {
    if (e < distance) {
      low[e] += low[e + distance];
      high[e] += high[e + distance];
    }
    __syncthreads();
  }
  if (e >= p.experts) return;
  const __int128 total = (static_cast<__int128>(high[0]) << 32) + static_cast<__int128>(low[0]);
  const __int128 excess = total - static_cast<__int128>(count) * p.experts;
  p.bias[e] = __fadd_rn(p.bias[e], p.rate * static_cast<float>((excess > 0) - (excess < 0)));
}

// Margins s - a of all tokens by expert, a the (K + 1)-th largest of the row's s + bias; 0 for a masked token.
extern "C" __global__ void __launch_bounds__(BIAS_ROW_THREADS, 1) router_bias_margins(const __grid_constant__ RouterBiasQuantileParams p) {
  extern __shared__ __align__(16) uint32_t shared[];
  const int64_t tokens = true_count(p.tokens, p.report);
  const KeyTile<uint32_t> tile = {shared, p.tile};
  for (int64_t first = int64_t(blockIdx.x) * p.tile; first < tokens; first += int64_t(gridDim.x) * p.tile) {
    for (int i = threadIdx.x / 32; i < p.tile && first + i < tokens; i += blockDim.x / 32) {
      const int64_t token = first + i;
      if (p.padding_mask != nullptr && p.padding_mask[token] == 0) {
        for (int e = lane_id(); e < p.experts; e += 32) tile.at(e, i) = 0;
        continue;
      }
      for (int e = lane_id(); e < p.experts; e += 32) {
        tile.at(e, i) = ordered(number(load_logit(p.scores, token, e, p.experts, p.report) + p.bias[e]));
      }
      __syncwarp();
      const float threshold = from_ordered(nth_largest(tile, i, p.experts, p.top_k + 1));
      __syncwarp();
      for (int e = lane_id(); e < p.experts; e += 32) {
        tile.at(e, i) = ordered(number(load_logit(p.scores, token, e, p.experts, nullptr) - threshold));
      }
    }
    __syncthreads();
    tile.store(p.keys, p.tokens.bound, p.experts, first, tokens);
    __syncthreads();
  }
}

// A block an expert: bias = decay * bias - (1 - decay) * q, q the (floor(T*K/E) + 1)-th largest margin.
extern "C" __global__ void __launch_bounds__(BIAS_THREADS) router_bias_quantile(const __grid_constant__ RouterBiasQuantileParams p) {
  __shared__ unsigned long long real;
  const int64_t tokens = true_count(p.tokens, p.report);
  const uint32_t *const keys = p.keys + blockIdx.x * p.tokens.bound;
  if (threadIdx.x == 0) real = 0;
  __syncthreads();
  unsigned long long own = 0;
  for (int64_t token = threadIdx.x; token < tokens; token += blockDim.x) own += keys[token] != 0;
  if (own != 0) atomicAdd(&real, own);
  __syncthreads();
  if (real == 0) return;
  const int64_t wanted = static_cast<int64_t>(real) * p.top_k / p.experts + 1;
  const Cut<uint32_t> cut = select_largest<32, uint32_t>(tokens, wanted, [&](int64_t token) { return keys[token]; });
  // K < E: fewer are wanted than there are, or all of them, whose least it is then.
  uint32_t least = cut.key;
  if (cut.key == 0) {
    __shared__ unsigned smallest;
    if (threadIdx.x == 0) smallest = ~0u;
    __syncthreads();
    for (int64_t token = threadIdx.x; token < tokens; token += blockDim.x) {
      if (keys[token] != 0) atomicMin(&smallest, keys[token]);
    }
    __syncthreads();
    least = smallest;
  }
  const float q = from_ordered(least);
  if (threadIdx.x != 0 || !isfinite(q)) return;
  p.bias[blockIdx.x] = static_cast<float>(__dsub_rn(__dmul_rn(p.decay, p.bias[blockIdx.x]), __dmul_rn(1.0 - p.decay, q)));
}
