// Sums over tokens of the common cases: kept in registers, then by block; a launch of one block joins the blocks' in their
// order. What a block hands over is a record of words, `p.columns` of them, each table of them padded to a multiple of
// four: sums of scores where the aux loss wants them, counts of choices, and counts of those choices that the aux loss
// counts where they differ.
#pragma once

#include "overlap.cuh"
#include "router_row.cuh"

namespace router {

// Words of scores are fp32.
__device__ inline uint32_t add_words(uint32_t a, uint32_t b, bool is_score) {
  return is_score ? __float_as_uint(__uint_as_float(a) + __uint_as_float(b)) : a + b;
}

// What a lane sums over its tokens.
template <int CHUNKS> struct Sums {
  Row<CHUNKS> scores;
  float z, real;
};

// Sums over the lanes of a warp that have the same experts: N values of each lane become those from `first` on, fewer with
// each step; one at least.
template <int N, int DISTANCE, int LANES, int M> __device__ inline void fold(float (&values)[M], int &first) {
  if constexpr (DISTANCE >= LANES) {
    const bool upper = lane_id() & DISTANCE;
    if constexpr (N > 1) {
#pragma unroll
      for (int n = 0; n < N / 2; ++n) {
        const float sent = upper ? values[n] : values[n + N / 2], own = upper ? values[n + N / 2] : values[n];
        values[n] = own + __shfl_xor_sync(ALL, sent, DISTANCE);
      }
      first += upper ? N / 2 : 0;
      fold<N / 2, DISTANCE / 2, LANES>(values, first);
    } else {
      values[0] += __shfl_xor_sync(ALL, values[0], DISTANCE);
      fold<1, DISTANCE / 2, LANES>(values, first);
    }
  }
}

// The block's record and parts. `of_warps`: [warps, E] of shared memory; `counts`: [tables, E], complete behind a barrier.
template <class S>
__device__ inline void hand_over(const RouterQuickParams &p, Sums<S::CHUNKS> &sums, float *of_warps, const unsigned *counts) {
  constexpr int LEFT = S::N * S::LANES > 32 ? S::N * S::LANES / 32 : 1;
  __shared__ float2 parts[QUICK_THREADS / 32];
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32, experts = p.experts;
  if (p.losses.aux) {
    int first = 0;
    fold<S::N, 16, S::LANES>(sums.scores.at, first);
#pragma unroll
    for (int n = 0; n < LEFT; ++n) {
      const int expert = S::expert(first + n);
      if (expert < experts) of_warps[warp * experts + expert] = sums.scores.at[n];
    }
  }
  const float z = sum_over(sums.z, 32), real = sum_over(sums.real, 32);
  if (lane_id() == 0) parts[warp] = make_float2(z, real);
  __syncthreads();
  uint32_t *record = p.records + int64_t(blockIdx.x) * p.columns;
  if (p.losses.aux) {
    for (int e = threadIdx.x; e < p.padded; e += blockDim.x) {
      float sum = 0;
      for (int w = 0; w < warps && e < experts; ++w) sum += of_warps[w * experts + e];
      record[e] = __float_as_uint(sum);
    }
    record += p.padded;
  }
  for (int e = threadIdx.x; e < p.padded; e += blockDim.x) {
    const bool exists = e < experts;
    record[e] = exists ? counts[e] : 0;
    if (p.tables == 2) record[p.padded + e] = exists ? counts[experts + e] : 0;
  }
  if (threadIdx.x == 0) {
    float2 sum = parts[0];
    for (int w = 1; w < warps; ++w) {
      sum.x += parts[w].x;
      sum.y += parts[w].y;
    }
    p.parts[2 * blockIdx.x] = sum.x;
    p.parts[2 * blockIdx.x + 1] = sum.y;
  }
}

// Joins what blocks have handed over, and writes it. Whatever can be is done before the wait for the launch ahead.
__device__ inline void join(const RouterQuickParams &p) {
  constexpr int THREADS = QUICK_JOIN_THREADS, AT_ONCE = 5;
  // Sums of four columns over some of the blocks, a strip: rows of a table, then of all blocks; and sums of warps.
  __shared__ uint4 strips[THREADS + THREADS / 8];
  __shared__ float of_warps[3][THREADS / 32];
  const int fours = p.columns / 4, experts = p.experts, counts = p.losses.aux ? p.padded : 0;
  // Strips are no more than it takes to have all loads under way at once.
  const int strip_count = max(min(THREADS / fours, (p.blocks + AT_ONCE - 1) / AT_ONCE), 1);
  const int strip = threadIdx.x / fours, place = threadIdx.x - strip * fours, row = fours + 1;
  // Threads that add up the strips of an expert, neighbours: a power of two.
  int helpers = 32;
  while (helpers > 1 && helpers * experts > THREADS) helpers /= 2;
  const bool is_score = 4 * place < counts;
  const uint4 *const records = reinterpret_cast<const uint4 *>(p.records) + place;
  const float2 *const parts = reinterpret_cast<const float2 *>(p.parts);
  wait_for_launch_ahead();
  let_next_launch_begin();
  float z = 0, real = 0, product = 0;
  for (int block = threadIdx.x; block < p.blocks; block += THREADS) {
    const float2 part = __ldcg(parts + block);
    z += part.x;
    real += part.y;
  }
  if (strip < strip_count) {
    uint4 sum = make_uint4(0, 0, 0, 0);
    for (int first = strip; first < p.blocks; first += AT_ONCE * strip_count) {
      uint4 some[AT_ONCE];
#pragma unroll
      for (int i = 0; i < AT_ONCE; ++i) {
        const int block = first + i * strip_count;
        some[i] = make_uint4(0, 0, 0, 0);
        if (block < p.blocks) some[i] = __ldcg(records + block * fours);
      }
#pragma unroll
      for (int i = 0; i < AT_ONCE; ++i) {
        sum.x = add_words(sum.x, some[i].x, is_score);
        sum.y = add_words(sum.y, some[i].y, is_score);
        sum.z = add_words(sum.z, some[i].z, is_score);
        sum.w = add_words(sum.w, some[i].w, is_score);
      }
    }
    strips[strip * row + place] = sum;
  }
  if (threadIdx.x < (p.blocks + 31) / 32 * 32) {
    z = sum_over(z, 32);
    real = sum_over(real, 32);
  }
  __syncthreads();
  // The first of an expert's helpers has its sums.
  const uint32_t *const words = reinterpret_cast<const uint32_t *>(strips);
  for (int first = 0; first < experts; first += THREADS / helpers) {
    const int e = first + threadIdx.x / helpers, helper = threadIdx.x % helpers;
    float score = 0;
    uint32_t chosen = 0, counted = 0;
    for (int other = helper; e < experts && other < strip_count; other += helpers) {
      const uint32_t *const own = words + other * row * 4 + e;
      if (p.losses.aux) score += __uint_as_float(own[0]);
      chosen += own[counts];
      if (p.tables == 2) counted += own[counts + p.padded];
    }
    score = sum_over(score, helpers);
    chosen = sum_over(chosen, helpers);
    counted = p.tables == 2 ? sum_over(counted, helpers) : chosen;
    if (e >= experts || helper > 0) continue;
    if (p.tokens_per_expert != nullptr) p.tokens_per_expert[e] = chosen;
    if (p.aux_counts != nullptr) p.aux_counts[e] = counted;
    if (p.losses.aux) product += (p.losses.global ? p.losses.global_counts[e] : static_cast<float>(counted)) * score;
  }
  product = sum_over(product, 32);
  if (lane_id() == 0) of_warps[0][threadIdx.x / 32] = product, of_warps[1][threadIdx.x / 32] = z, of_warps[2][threadIdx.x / 32] = real;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  product = sum_over(of_warps[0][threadIdx.x], 32);
  z = sum_over(of_warps[1][threadIdx.x], 32);
  real = sum_over(of_warps[2][threadIdx.x], 32);
  if (threadIdx.x > 0) return;
  if (p.aux_loss != nullptr) {
    const float inverse = inverse_tokens(p.losses, real);
    *p.aux_loss = product * inverse * (inverse * static_cast<float>(p.losses.aux_scale));
  }
  if (p.z_loss != nullptr) *p.z_loss = static_cast<float>(p.losses.z_scale) * z * quick_inverse(fmaxf(real, 1.0f));
}

}  // namespace router
