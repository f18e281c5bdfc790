// Limits of groups: a token may use experts of its best few groups alone. For the kernels of the common cases.
#pragma once

#include "router_row.cuh"

namespace router {

// Shared memory of a warp for it: the best and the second best of each four experts, and sums of groups.
template <class S> struct GroupRoom {
  float2 *fours;
  float *sums;

  __device__ GroupRoom(const RouterQuickParams &p, char *from) {
    const int count = S::TOKENS * (p.experts / 4);
    fours = reinterpret_cast<float2 *>(from) + S::token() * (p.experts / 4);
    sums = reinterpret_cast<float *>(reinterpret_cast<float2 *>(from) + count) + S::token() * p.groups;
  }
};

// A token's lanes: the groups whose best one or two terms sum highest, a bit each. All lanes of the warp call, behind a
// barrier that makes the fours complete. term(value): what of a compared value is summed.
template <class S, class Term>
__device__ inline uint32_t kept_groups(const RouterQuickParams &p, const GroupRoom<S> &room, const Term &term) {
#pragma unroll 1
  for (int group = S::lane(); group < p.groups; group += S::LANES) {
    float first = -INFINITY, second = -INFINITY;
#pragma unroll 1
    for (int i = 0; i < p.group_fours; ++i) {
      const float2 four = room.fours[group * p.group_fours + i];
      second = fmaxf(fminf(first, four.x), fmaxf(second, four.y));
      first = fmaxf(first, four.x);
    }
    const float sum = p.group_terms == 2 ? term(first) + term(second) : term(first);
    room.sums[group] = sum == sum ? sum : -INFINITY;
  }
  __syncwarp();
  uint32_t kept = 0;
#pragma unroll 1
  for (int group = S::lane(); group < p.groups; group += S::LANES) {
    const float own = room.sums[group];
    int better = 0;
#pragma unroll 1
    for (int other = 0; other < p.groups; ++other) {
      const float sum = room.sums[other];
      better += sum > own || (sum == own && other < group);
    }
    if (better < p.kept_groups) kept |= 1u << group;
  }
#pragma unroll
  for (int distance = 1; distance < S::LANES; distance *= 2) kept |= __shfl_xor_sync(ALL, kept, distance);
  __syncwarp();
  return kept;
}

}  // namespace router
