// Prefix sums over a block.
#pragma once

#include <cstdint>

// The sum of `value` over the threads before this one; `total` is that of all. Every thread of the block takes part,
// of whole warps; may be called again at once.
__device__ inline int64_t block_exclusive_sum(int64_t value, int64_t &total) {
  __shared__ int64_t sums[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  int64_t sum = value;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int64_t other = __shfl_up_sync(~0u, sum, distance);
    if (lane >= distance) sum += other;
  }
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  int64_t before = sum - value;
  total = 0;
  for (int w = 0; w < warps; ++w) {
    if (w < warp) before += sums[w];
    total += sums[w];
  }
  __syncthreads();
  return before;
}
