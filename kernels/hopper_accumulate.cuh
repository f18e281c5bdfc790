// Whole tiles of sums that are added to fp32 values. Part of those is copied to shared memory while the products are under
// way, added there and stored; the rest is added in the L2 cache, whose adders would be too slow for all.
//
// A strip is 32 columns of the sums by the 16 rows of a warp. Where it is laid out on its way to memory, the old values of
// its place in memory wait: a lane takes its own from there, the sums come, and then the old values of 64 rows further.
#pragma once

#include "hopper_store.cuh"
#include "hopper_tile.cuh"

namespace hopper {

// SWAPPED: sums[m, n] goes to out[n, m]; the team's warps come here together, and `to` counts as the output does.
// FETCHED: strips of each STRIPS whose old values are copied, the first of them one, each to a place of its own.
//
// The code is run once a tile and fetched anew each time: few instructions count for more than anything else.
template <bool SWAPPED, int COLUMNS, int FETCHED> struct Accumulation {
  static constexpr int STRIPS = COLUMNS / 32;
  static constexpr int PLACE = HOPPER_STAGING;
  static constexpr int NEXT = NEXT_PLACE;

  const Target &to;
  uint32_t staging;

  __device__ static bool takes(const Target &to) {
    constexpr int ROWS = SWAPPED ? COLUMNS : 128, WIDTH = SWAPPED ? 128 : COLUMNS;
    // The cache adds to old values as they are.
    return adds_in_place(to) && to.packed && to.rows >= ROWS && to.columns >= WIDTH;
  }

  // Begins to copy what the warp's rows `row` and on are added to.
  __device__ void prepare(int row) const {
    float *const out = first(row);
#pragma unroll
    for (int strip = 0; strip < STRIPS; ++strip) {
      if (fetched(strip)) fetch(out, strip);
    }
  }

  // The warp's rows `row` and on.
  template <int N> __device__ void finish(int row, const float (&sums)[N]) const {
    float *const out = first(row);
    const bool more = row < 64;
#pragma unroll
    for (int strip = 0; strip < STRIPS; ++strip) {
      const uint32_t at = staging + place(strip) * NEXT;
      uint4 old[4];
      if (fetched(strip)) {
        cp_async_wait<FETCHED - 1>();
#pragma unroll
        for (int i = 0; i < 4; ++i) old[i] = load_shared_16(mine(at, i));
      }
      meet();
      lay_out(at, sums + 16 * strip);
      meet();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint4 bits = load_shared_16(mine(at, i));
        float *const element = out + offset(strip, i);
        if (fetched(strip)) {
          *reinterpret_cast<float4 *>(element) = {add(bits.x, old[i].x), add(bits.y, old[i].y), add(bits.z, old[i].z),
                                                  add(bits.w, old[i].w)};
        } else {
          add_global_16(element, {__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z),
                                  __uint_as_float(bits.w)});
        }
      }
      // The place is free where no strip that is added in the cache follows through it.
      if (FETCHED > 0 && (strip + 1 == STRIPS || fetched(strip + 1))) {
        if (more) {
          fetch(out + (SWAPPED ? 64 : 64 * to.pitch), fetch_of(place(strip)));
        } else {
          cp_async_commit();
        }
      }
    }
  }

private:
  // Strips before this one that are fetched.
  __host__ __device__ static constexpr int before(int strip) { return (strip * FETCHED + STRIPS - 1) / STRIPS; }
  __host__ __device__ static constexpr bool fetched(int strip) { return before(strip + 1) > before(strip); }
  __host__ __device__ static constexpr int place(int strip) { return FETCHED == 0 ? 0 : before(strip + 1) - 1; }
  // The strip that is fetched to a place.
  __host__ __device__ static constexpr int fetch_of(int place) { return place * STRIPS / (FETCHED > 0 ? FETCHED : 1); }

  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static int warp() { return threadIdx.x / 32 % 4; }

  __device__ static float add(uint32_t sum, uint32_t old) { return __uint_as_float(old) + __uint_as_float(sum); }

  __device__ static void meet() {
    if constexpr (SWAPPED) {
      named_barrier(2 + threadIdx.x / 128, 128);
    } else {
      __syncwarp();
    }
  }

  // Where a lane's i-th 16 bytes of a strip wait: of a warp's 16 lines of 128 bytes, or swapped, 8 lines of 256.
  __device__ static uint32_t mine(uint32_t at, int i) {
    if constexpr (SWAPPED) return at + lane() / 16 * 256 + i * 512 + ((lane() % 16 ^ 2 * i) << 4);
    return at + lane() / 8 * 128 + i * 512 + ((lane() % 8 ^ lane() / 8 * 2) << 4);
  }

  // Where they go: of the first strip's first, and from there on.
  __device__ float *first(int row) const {
    float *const out = reinterpret_cast<float *>(to.data);
    if constexpr (SWAPPED) return out + (warp() * 8 + lane() / 16) * to.pitch + row - warp() * 16 + lane() % 16 * 4;
    return out + (row + lane() / 8) * to.pitch + lane() % 8 * 4;
  }
  __device__ int64_t offset(int strip, int i) const {
    return SWAPPED ? (strip * 32 + 2 * i) * to.pitch : 4 * i * to.pitch + strip * 32;
  }

  // A warp's stores go to all banks.
  __device__ void lay_out(uint32_t at, const float *sums) const {
    if constexpr (SWAPPED) {
      const int t = lane() % 4, g = lane() / 4;
      const uint32_t first = at - warp() * PLACE + t * 512 + (((warp() * 4 + g / 4) ^ t * 2) << 4) + g % 4 * 4;
#pragma unroll
      for (int block = 0; block < 4; ++block) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          store_shared_4((first ^ i / 2 << 5) + block * 2048 + i % 2 * 256, to.alpha * sums[4 * block + i]);
        }
      }
    } else {
      const int line = lane() / 4;
      const uint32_t first = at + line * 128 + ((lane() % 4 / 2 ^ line % 4 * 2) << 4) + lane() % 2 * 8;
#pragma unroll
      for (int block = 0; block < 4; ++block) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float *const pair = sums + 4 * block + 2 * half;
          store_shared_8((first ^ block << 5) + half * 8 * 128,
                         {__float_as_uint(to.alpha * pair[0]), __float_as_uint(to.alpha * pair[1])});
        }
      }
    }
  }

  // One group of copies.
  __device__ void fetch(const float *out, int strip) const {
    const uint32_t at = staging + place(strip) * NEXT;
#pragma unroll
    for (int i = 0; i < 4; ++i) cp_async_16(mine(at, i), out + offset(strip, i), 16);
    cp_async_commit();
  }
};

}  // namespace hopper
