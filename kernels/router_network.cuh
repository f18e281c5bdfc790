// The eight largest of many keys, in one thread: sorting networks, without a branch.
#pragma once

#include <cstdint>

namespace router {

// Keys in descending order; 0 is none.
template <class Key> struct Best {
  Key at[8];
};

template <class Key> __device__ inline void exchange(Key &a, Key &b) {
  const Key high = max(a, b);
  b = min(a, b);
  a = high;
}

// Batcher's odd-even merge sort.
template <class Key> __device__ inline Best<Key> sorted(Best<Key> keys) {
  constexpr int pairs[19][2] = {{0, 1}, {2, 3}, {4, 5}, {6, 7}, {0, 2}, {1, 3}, {4, 6}, {5, 7}, {1, 2}, {5, 6},
                                {0, 4}, {1, 5}, {2, 6}, {3, 7}, {2, 4}, {3, 5}, {1, 2}, {3, 4}, {5, 6}};
#pragma unroll
  for (int i = 0; i < 19; ++i) exchange(keys.at[pairs[i][0]], keys.at[pairs[i][1]]);
  return keys;
}

// The best of two sorted lists.
template <class Key> __device__ inline Best<Key> merged(const Best<Key> &a, const Best<Key> &b) {
  Best<Key> best;
#pragma unroll
  for (int i = 0; i < 8; ++i) best.at[i] = max(a.at[i], b.at[7 - i]);
#pragma unroll
  for (int distance = 4; distance > 0; distance /= 2) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i % (2 * distance) < distance) exchange(best.at[i], best.at[i + distance]);
    }
  }
  return best;
}

}  // namespace router
