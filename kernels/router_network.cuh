// The eight largest of many keys by sorting networks, without a branch: in one lane, then over neighbouring lanes.
//
// A list of G lanes with N keys each is in descending order by an index whose upper bits are lanes', the lower ones the
// place in the lane. Lists of two groups of lanes become one when each lane has kept the better of two keys, one of either
// group; what is kept is bitonic, and a few more exchanges sort it. No two keys are equal, 0 is none.
#pragma once

#include <cstdint>

#include "router.cuh"

namespace router {

template <class Key, int N> struct Keys {
  Key at[N];
};

template <class Key> __device__ inline void exchange(Key &a, Key &b) {
  const Key high = max(a, b);
  b = min(a, b);
  a = high;
}

// Batcher's odd-even merge sort of up to eight keys, in descending order.
template <class Key, int N> __device__ inline void sort(Keys<Key, N> &keys) {
  constexpr int pairs[19][2] = {{0, 1}, {2, 3}, {4, 5}, {6, 7}, {0, 2}, {1, 3}, {4, 6}, {5, 7}, {1, 2}, {5, 6},
                                {0, 4}, {1, 5}, {2, 6}, {3, 7}, {2, 4}, {3, 5}, {1, 2}, {3, 4}, {5, 6}};
  // Of fewer keys: those pairs that sort the first of them.
  constexpr int last = N == 8 ? 19 : N == 4 ? 9 : 1;
#pragma unroll
  for (int i = 0; i < last; ++i) {
    if (pairs[i][1] < N) exchange(keys.at[pairs[i][0]], keys.at[pairs[i][1]]);
  }
}

// The larger of two keys in lanes without `bit`, the smaller in those with it.
template <class Key> __device__ inline Key split(Key own, Key other, int bit) {
  return lane_id() & bit ? min(own, other) : max(own, other);
}

// A bitonic list of one group: first by the lanes' bits below `bits`, of which the second comes first if SWAPPED, then
// by the places in a lane.
template <int BITS, bool SWAPPED = false, class Key, int N> __device__ inline void settle(Keys<Key, N> &keys) {
#pragma unroll
  for (int i = 0; 1 << i < BITS; ++i) {
    const int bit = SWAPPED && i < 2 ? 2 >> i : 1 << i;
#pragma unroll
    for (int n = 0; n < N; ++n) keys.at[n] = split(keys.at[n], __shfl_xor_sync(ALL, keys.at[n], bit), bit);
  }
#pragma unroll
  for (int distance = N / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      if (n % (2 * distance) < distance) exchange(keys.at[n], keys.at[n + distance]);
    }
  }
}

// Lists of groups of BIT lanes become lists of twice as many lanes, with as many keys a lane.
template <int BIT, class Key, int N> __device__ inline void join_all(Keys<Key, N> &keys) {
  Keys<Key, N> all;
#pragma unroll
  for (int n = 0; n < N; ++n) all.at[n] = split(keys.at[n], __shfl_xor_sync(ALL, keys.at[N - 1 - n], 2 * BIT - 1), BIT);
  keys = all;
  settle<BIT>(keys);
}

// The better half of the keys of two groups of BIT lanes, in no order: half as many a lane.
template <int BIT, class Key, int N> __device__ inline Keys<Key, N / 2> better_half(const Keys<Key, N> &keys) {
  Keys<Key, N / 2> best;
#pragma unroll
  for (int n = 0; n < N / 2; ++n) best.at[n] = max(keys.at[n], __shfl_xor_sync(ALL, keys.at[N - 1 - n], 2 * BIT - 1));
  return best;
}

// The same in order.
template <int BIT, bool SWAPPED = false, class Key, int N>
__device__ inline Keys<Key, N / 2> join_best(const Keys<Key, N> &keys) {
  Keys<Key, N / 2> best = better_half<BIT>(keys), turned;
#pragma unroll
  for (int i = 0; 1 << i < BIT; ++i) {
    const int bit = SWAPPED && i < 2 ? 2 >> i : 1 << i;
#pragma unroll
    for (int n = 0; n < N / 2; ++n) best.at[n] = split(best.at[n], __shfl_xor_sync(ALL, best.at[n], bit), bit);
  }
  // Places in a lane run the other way in the other group.
#pragma unroll
  for (int n = 0; n < N / 2; ++n) turned.at[n] = split(best.at[n], __shfl_xor_sync(ALL, best.at[N / 2 - 1 - n], BIT), BIT);
  settle<1>(turned);
  return turned;
}

// From eight lanes on with one key each: both groups of BIT lanes get the best eight, in no order.
template <int BIT, class Key> __device__ inline void share_best(Keys<Key, 1> &keys) {
  keys.at[0] = max(keys.at[0], __shfl_xor_sync(ALL, keys.at[0], BIT | 7));
}

// Of a token's fours of experts, by keys of their best: the eight best, in no order, 8 / LANES a lane, one at least. From
// eight lanes on each eight have all of them.
template <int LANES, class Key, int N> __device__ inline auto best_fours(Keys<Key, N> fours) {
  sort(fours);
  if constexpr (LANES == 2) {
    static_assert(N == 8);
    return better_half<1>(fours);
  } else if constexpr (LANES == 4 && N == 8) {
    return better_half<2>(join_best<1>(fours));
  } else if constexpr (LANES == 4) {
    static_assert(N == 4);
    join_all<1>(fours);
    return better_half<2>(fours);
  } else if constexpr (N == 4) {
    join_all<1>(fours);
    const Keys<Key, 2> two = join_best<2>(fours);
    if constexpr (LANES == 8) return better_half<4>(two);
    Keys<Key, 1> one = join_best<4>(two);
    share_best<8>(one);
    settle<8>(one);
    share_best<16>(one);
    return one;
  } else {
    static_assert(N == 2 && LANES == 32);
    join_all<1>(fours);
    join_all<2>(fours);
    Keys<Key, 1> one = join_best<4, true>(fours);
    share_best<8>(one);
    settle<8, true>(one);
    share_best<16>(one);
    return one;
  }
}

// The best eight of the keys of min(LANES, 8) neighbouring lanes, in order: slot_of says which a lane has.
template <class Key> __device__ inline Keys<Key, 8> best_eight(Keys<Key, 8> keys, Keys<Key, 8> *) {
  sort(keys);
  return keys;
}
template <class Key> __device__ inline Keys<Key, 4> best_eight(const Keys<Key, 16> &keys, Keys<Key, 4> *) {
  Keys<Key, 8> halves[2];
#pragma unroll
  for (int i = 0; i < 16; ++i) halves[i / 8].at[i % 8] = keys.at[i];
  sort(halves[0]);
  sort(halves[1]);
#pragma unroll
  for (int n = 0; n < 8; ++n) halves[0].at[n] = max(halves[0].at[n], halves[1].at[7 - n]);
  settle<1>(halves[0]);
  return join_best<1>(halves[0]);
}
template <class Key> __device__ inline Keys<Key, 2> best_eight(Keys<Key, 8> keys, Keys<Key, 2> *) {
  sort(keys);
  return join_best<2>(join_best<1>(keys));
}
template <class Key> __device__ inline Keys<Key, 1> best_eight(Keys<Key, 4> keys, Keys<Key, 1> *) {
  sort(keys);
  join_all<1>(keys);
  return join_best<4>(join_best<2>(keys));
}

// The slot of a lane's n-th key: the first lane bit decides most.
template <class S> __device__ inline int slot_of(int n) {
  const int lane = S::lane();
  if constexpr (S::LANES == 1) return n;
  if constexpr (S::LANES == 2) return lane << 2 | n;
  if constexpr (S::LANES == 4) return (lane & 1) << 2 | (lane & 2) | n;
  return (lane & 1) << 2 | (lane & 2) | (lane & 4) >> 2;
}

}  // namespace router
