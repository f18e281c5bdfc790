// What accesses ask of the L2 cache.
#pragma once

#include <cstdint>

// For what is not used again soon.
__device__ inline uint64_t evict_first() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
