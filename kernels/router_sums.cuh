// Sums over tokens: of a lane, of its warp, of its block; a launch of one cluster joins the blocks' in their order.
//
// Blocks share the tokens of a sequence, or of the whole batch. What one hands over is a record of words, `p.columns` of
// them, each table of them padded to a multiple of four: sums of scores where the aux loss wants them, counts of choices,
// and counts of those choices that the aux loss counts where they differ.
#pragma once

#include "cluster.cuh"
#include "overlap.cuh"
#include "router_row.cuh"

namespace router {

// Words of scores are fp32.
template <bool SCORES> __device__ inline uint32_t add_words(uint32_t a, uint32_t b) {
  return SCORES ? __float_as_uint(__uint_as_float(a) + __uint_as_float(b)) : a + b;
}
template <bool SCORES> __device__ inline void add_words(uint4 &to, const uint4 &words) {
  to.x = add_words<SCORES>(to.x, words.x);
  to.y = add_words<SCORES>(to.y, words.y);
  to.z = add_words<SCORES>(to.z, words.z);
  to.w = add_words<SCORES>(to.w, words.w);
}

// Sums over every fourth lane: those with bit 4 of their number get one of four counts, the others one of four scores, which
// of them bits 3 and 2 say.
__device__ inline uint32_t fold_words(const uint4 &scores, const uint4 &counts) {
  const bool counting = lane_id() & 16;
  const uint32_t a[4] = {scores.x, scores.y, scores.z, scores.w}, b[4] = {counts.x, counts.y, counts.z, counts.w};
  const auto add = [&](uint32_t x, uint32_t y) { return counting ? add_words<false>(x, y) : add_words<true>(x, y); };
  uint32_t values[4];
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const uint32_t other = __shfl_xor_sync(ALL, counting ? a[n] : b[n], 16);
    values[n] = add(counting ? b[n] : a[n], other);
  }
#pragma unroll
  for (int left = 2; left > 0; left /= 2) {
    const bool upper = lane_id() & 4 * left;
#pragma unroll
    for (int n = 0; n < left; ++n) {
      const uint32_t other = __shfl_xor_sync(ALL, upper ? values[n] : values[n + left], 4 * left);
      values[n] = add(upper ? values[n + left] : values[n], other);
    }
  }
  return values[0];
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

// The record and parts of a block's share. `of_warps`: [warps, E] of shared memory; `counts`: [tables, E], complete behind
// a barrier.
template <class S>
__device__ inline void hand_over(const RouterQuickParams &p, Sums<S::CHUNKS> &sums, float *of_warps, const unsigned *counts) {
  constexpr int LEFT = S::N * S::LANES > 32 ? S::N * S::LANES / 32 : 1, AT_ONCE = 8;
  __shared__ float2 parts[QUICK_THREADS / 32];
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32, experts = p.experts, share = blockIdx.y * gridDim.x + blockIdx.x;
  const float z = sum_over(sums.z, 32), real = sum_over(sums.real, 32);
  if (lane_id() == 0) parts[warp] = make_float2(z, real);
  if (p.losses.aux) {
    int first = 0;
    fold<S::N, 16, S::LANES>(sums.scores.at, first);
#pragma unroll
    for (int n = 0; n < LEFT; ++n) {
      const int expert = S::expert(first + n);
      if (expert < experts) of_warps[warp * experts + expert] = sums.scores.at[n];
    }
  }
  __syncthreads();
  uint32_t *const record = p.records + int64_t(share) * p.columns;
  const int scores = p.losses.aux ? p.padded : 0;
  for (int column = threadIdx.x; column < p.columns; column += blockDim.x) {
    uint32_t word = 0;
    if (column < scores) {
      float sum = 0;
      for (int first = 0; first < warps && column < experts; first += AT_ONCE) {
        float some[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) some[i] = first + i < warps ? of_warps[(first + i) * experts + column] : 0.0f;
        sum += sum_of(some);
      }
      word = __float_as_uint(sum);
    } else {
      const bool second = column - scores >= p.padded;
      const int expert = column - scores - (second ? p.padded : 0);
      if (expert < experts) word = counts[expert + (second ? experts : 0)];
    }
    record[column] = word;
  }
  if (warp == 0) {
    const bool here = lane_id() < warps;
    const float all_z = sum_over(here ? parts[lane_id()].x : 0.0f, 32), all_real = sum_over(here ? parts[lane_id()].y : 0.0f, 32);
    if (lane_id() == 0) reinterpret_cast<float2 *>(p.parts)[share] = make_float2(all_z, all_real);
  }
}

// Shared memory of a block that joins: what its warps have summed, by turns; and what the first block is handed.
struct JoinRoom {
  static constexpr int WARPS = QUICK_JOIN_TEAM / 32;
  struct Team {
    uint32_t words[WARPS][32], counted[WARPS][32];
    float z[WARPS], real[WARPS];
  };
  Team teams[2][QUICK_JOIN_TEAMS];
  float products[32];
  uint64_t barrier;
};
static_assert(sizeof(JoinRoom) <= QUICK_JOIN_SHARED);

// Joins what blocks have handed over. A team of warps has sixteen experts at a time: of each warp's lanes, four have four of
// them each, and eight the records of other shares.
__device__ inline void join(const RouterQuickParams &p) {
  constexpr int TEAM = QUICK_JOIN_TEAM, WARPS = JoinRoom::WARPS, ROWS = TEAM / 4, AT_ONCE = 3;
  extern __shared__ __align__(16) char shared[];
  JoinRoom &all = *reinterpret_cast<JoinRoom *>(shared);
  const int team = threadIdx.x / TEAM, thread = threadIdx.x % TEAM, warp = thread / 32, lane = lane_id();
  const int teams_here = blockDim.x / TEAM, teams = gridDim.x * teams_here, own = blockIdx.x * teams_here + team;
  const int fours = p.padded / 4, scores = p.losses.aux ? fours : 0, columns = p.columns / 4, row = thread / 4;
  const bool leads = warp == 0;
  begin_gathering(&all.barrier, 4 * (gridDim.x - 1) * teams_here);
  // What is behind reads nothing before this launch has ended, which waits for all that is older.
  let_next_launch_begin();
  wait_for_launch_ahead();
  float product = 0, all_z = 0, all_real = 0;
  int turn = 0;
#pragma unroll 1
  for (int first_four = 0; first_four < fours; first_four += teams * 4) {
    const int four = first_four + own * 4;
    const bool exists = four + lane % 4 < fours;
    const uint4 *const column = reinterpret_cast<const uint4 *>(p.records) + four + lane % 4;
    // A lane's expert in the end, of which it has the scores, or the counts.
    const int expert = 4 * (four + lane % 4) + (lane >> 3 & 1) * 2 + (lane >> 2 & 1);
    uint32_t all_chosen = 0;
#pragma unroll 1
    for (int sequence = 0; sequence < p.sequences; ++sequence, turn ^= 1) {
      const int begin = sequence * p.shares;
      float2 part = make_float2(0, 0);
      if (thread < p.shares) part = __ldcg(reinterpret_cast<const float2 *>(p.parts) + begin + thread);
      JoinRoom::Team &room = all.teams[turn][team];
      uint4 score = make_uint4(0, 0, 0, 0), chosen = score;
      for (int share = row; share < p.shares; share += AT_ONCE * ROWS) {
        uint4 some[2][AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
          const bool here = exists && share + i * ROWS < p.shares;
          const uint4 *const from = column + (begin + share + i * ROWS) * columns;
          some[0][i] = some[1][i] = make_uint4(0, 0, 0, 0);
          if (here && p.losses.aux) some[0][i] = __ldcg(from);
          if (here) some[1][i] = __ldcg(from + scores);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) add_words<true>(score, some[0][i]), add_words<false>(chosen, some[1][i]);
      }
      room.words[warp][lane] = fold_words(score, chosen);
      if (p.tables == 2) {
        uint4 counted = make_uint4(0, 0, 0, 0);
#pragma unroll 2
        for (int share = row; exists && share < p.shares; share += ROWS) {
          add_words<false>(counted, __ldcg(column + (begin + share) * columns + scores + fours));
        }
        room.counted[warp][lane] = fold_words(make_uint4(0, 0, 0, 0), counted);
      }
      part.x = sum_over(part.x, 32);
      part.y = sum_over(part.y, 32);
      if (lane == 0) room.z[warp] = part.x, room.real[warp] = part.y;
      __syncthreads();
      if (!leads) continue;
      uint32_t sum = 0, counts = 0;
      float z = 0, real = 0;
#pragma unroll
      for (int w = 0; w < WARPS; ++w) {
        const uint32_t word = room.words[w][lane];
        sum = lane < 16 ? __float_as_uint(__uint_as_float(sum) + __uint_as_float(word)) : sum + word;
        if (p.tables == 2) counts += room.counted[w][lane];
        z += room.z[w];
        real += room.real[w];
      }
      if (lane >= 16) all_chosen += sum;
      if (p.tables != 2) counts = sum;
      // Lanes with scores get the counts.
      const uint32_t n = __shfl_xor_sync(ALL, counts, 16);
      if (expert < p.experts) {
        if (lane >= 16 && p.aux_counts != nullptr) p.aux_counts[int64_t(sequence) * p.experts + expert] = counts;
        if (lane < 16 && p.losses.aux) {
          const float inverse = inverse_tokens(p.losses, real);
          product += (p.losses.global ? p.losses.global_counts[expert] : static_cast<float>(n)) * __uint_as_float(sum) * (inverse * inverse);
        }
      }
      if (four == 0) all_z += z, all_real += real;
    }
    if (leads && lane >= 16 && expert < p.experts && p.tokens_per_expert != nullptr) p.tokens_per_expert[expert] = all_chosen;
  }
  if (leads) {
    product = sum_over(product, 16);
    if (lane == 0) hand_to_first(all.products, own, product, &all.barrier);
  }
  if (!gather(&all.barrier) || threadIdx.x >= 32) return;
  product = sum_over(lane < teams ? all.products[lane] : 0.0f, 32);
  if (threadIdx.x > 0) return;
  if (p.aux_loss != nullptr) *p.aux_loss = product * static_cast<float>(p.losses.aux_scale);
  if (p.z_loss != nullptr) *p.z_loss = static_cast<float>(p.losses.z_scale) * all_z * quick_inverse(fmaxf(all_real, 1.0f));
}

}  // namespace router
