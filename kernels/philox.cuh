// Philox4x32-10 (Salmon et al. 2011); src/philox.rs is the CPU's.
#pragma once

#include "../include/moe.h"

struct Philox {
  uint64_t seed;
  uint64_t offset;

  __device__ explicit Philox(const moe_random_t &random)
      : seed(random.seed_device != nullptr ? *random.seed_device : random.seed),
        offset(random.offset_device != nullptr ? *random.offset_device : random.offset) {}

  // Elements 4*block to 4*block + 3.
  __device__ uint4 four(uint64_t block) const {
    const uint64_t counter = offset + block;
    uint4 c = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0};
    uint2 key = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
#pragma unroll
    for (int round = 0; round < 10; ++round) {
      const uint32_t a = __umulhi(0xD2511F53u, c.x), b = __umulhi(0xCD9E8D57u, c.z);
      c = {b ^ c.y ^ key.x, 0xCD9E8D57u * c.z, a ^ c.w ^ key.y, 0xD2511F53u * c.x};
      key.x += 0x9E3779B9u;
      key.y += 0xBB67AE85u;
    }
    return c;
  }

  // Random element i: counter offset + i/4, lane i%4.
  __device__ uint32_t element(uint64_t i) const {
    const uint4 c = four(i / 4);
    const uint32_t lane = i % 4;
    return lane < 2 ? (lane == 0 ? c.x : c.y) : (lane == 2 ? c.z : c.w);
  }
};

// 32 random bits in (0, 1): ((x >> 9) + 0.5) * 2^-23, exact in fp32.
__device__ inline float uniform(uint32_t bits) { return (static_cast<float>(bits >> 9) + 0.5f) * 0x1p-23f; }
