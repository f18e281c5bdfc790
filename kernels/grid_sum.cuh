// Sums over the blocks of a grid that run at once, one after the other in the same number: in fixed point, as integers add up to the
// same bits in any order. The top bits count the blocks that have added, so a reader that sees all of them has the sum, and
// neither a fence nor a barrier is needed.
#pragma once

#include "params/sinkhorn.h"

// Adds a block's part; together the parts are in [0, 2).
__device__ inline void grid_add(uint64_t *total, float part) {
  const uint64_t one = 1ull << GRID_SUM_FRACTION, letter = 2 * one + __float2ull_rn(part * static_cast<float>(one));
  asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(total), "l"(letter) : "memory");
}

// The total once all blocks have added to what was there `before`.
__device__ inline uint64_t grid_await(const uint64_t *total, uint64_t before, unsigned blocks) {
  uint64_t now;
  do {
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(now) : "l"(total) : "memory");
  } while ((now - before) >> (GRID_SUM_FRACTION + 1) != blocks);
  return now;
}

// What was added between two totals.
__device__ inline float grid_sum(uint64_t before, uint64_t now) {
  const uint64_t one = 1ull << GRID_SUM_FRACTION;
  return __ull2float_rn((now - before) & (2 * one - 1)) * (1.0f / static_cast<float>(one));
}
