// Floats between blocks that run at once: 64 bits hold the value and the round that it belongs to, so a reader that sees the round
// has the value, and neither needs a fence.
#pragma once

#include <cstdint>

__device__ inline void send(uint64_t *slot, float value, uint32_t round) {
  const uint64_t letter = static_cast<uint64_t>(round) << 32 | __float_as_uint(value);
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(slot), "l"(letter) : "memory");
}

__device__ inline uint64_t peek(const uint64_t *slot) {
  uint64_t letter;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(letter) : "l"(slot) : "memory");
  return letter;
}

// The value of `round`, once it is there; `letter` is what a first peek found.
__device__ inline float receive(const uint64_t *slot, uint64_t letter, uint32_t round) {
  while (static_cast<uint32_t>(letter >> 32) != round) letter = peek(slot);
  return __uint_as_float(static_cast<uint32_t>(letter));
}
