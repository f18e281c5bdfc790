// The largest of many keys, by a block: digit by digit from the top, with counts in shared memory.
#pragma once

#include <cstdint>

// Keys above `key` are among the largest, and so are `ties` of the `equals` keys that are the same as it.
template <class Key> struct Cut {
  Key key;
  int64_t ties;
  int64_t equals;
};

// fp32 as unsigned integers of the same order, 1 at least; -0 is 0. NaN must not occur.
__device__ inline uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  return bits ^ (static_cast<int32_t>(bits) < 0 ? 0xffffffffu : 0x80000000u);
}

__device__ inline float from_ordered(uint32_t key) {
  return __uint_as_float(key ^ (static_cast<int32_t>(key) < 0 ? 0x80000000u : 0xffffffffu));
}

// The cut of the `wanted` largest of key_of(0 .. count - 1), keys of BITS bits; a key of 0 is no candidate. Where there
// are no more candidates than wanted all of them are above it. Every thread of the block takes part, of whole warps, and
// gets the answer; may be called again at once.
template <int BITS, class Key, class KeyOf>
__device__ inline Cut<Key> select_largest(int64_t count, int64_t wanted, const KeyOf &key_of) {
  constexpr int DIGITS = 256;
  __shared__ unsigned counts[DIGITS];
  __shared__ int digit;
  __shared__ int64_t above, equal, all;
  if (wanted <= 0) return {~Key(0), 0, 0};
  Key prefix = 0;
  Cut<Key> cut = {0, 0, 0};
  int64_t left = wanted;
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int shift = BITS - 8; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < DIGITS; i += blockDim.x) counts[i] = 0;
    __syncthreads();
    for (int64_t base = 0; base < count; base += blockDim.x) {
      const int64_t i = base + threadIdx.x;
      const Key key = i < count ? key_of(i) : Key(0);
      const bool counted = key != 0 && (shift == BITS - 8 || key >> (shift + 8) == prefix >> (shift + 8));
      const unsigned own = counted ? static_cast<unsigned>(key >> shift) & (DIGITS - 1) : DIGITS;
      // Keys of a block are often alike: one addition for all of a warp that have the same digit.
      const unsigned peers = __match_any_sync(~0u, own);
      if (counted && lane == __ffs(peers) - 1) atomicAdd(&counts[own], __popc(peers));
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      // A lane has eight digits, the first lane the largest.
      constexpr int OWN = DIGITS / 32;
      int64_t sum = 0;
      for (int i = 0; i < OWN; ++i) sum += counts[DIGITS - 1 - OWN * lane - i];
      int64_t before = sum;
      for (int distance = 1; distance < 32; distance *= 2) {
        const int64_t other = __shfl_up_sync(~0u, before, distance);
        if (lane >= distance) before += other;
      }
      if (lane == 31) all = before;
      before -= sum;
      if (before < left && before + sum >= left) {
        int i = 0;
        while (before + counts[DIGITS - 1 - OWN * lane - i] < left) before += counts[DIGITS - 1 - OWN * lane - i++];
        digit = DIGITS - 1 - OWN * lane - i;
        above = before;
        equal = counts[digit];
      }
    }
    __syncthreads();
    if (shift == BITS - 8 && all <= wanted) break;
    prefix |= static_cast<Key>(digit) << shift;
    left -= above;
    if (shift == 0) cut = {prefix, left, equal};
    __syncthreads();
  }
  __syncthreads();
  return cut;
}
