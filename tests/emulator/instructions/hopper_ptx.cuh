// Stands in for kernels/hopper_ptx.cuh. A tensor map is what tests/mock/cuda.c encodes: address, rank, the box' columns
// and rows, then the sizes from the fifth word on and the pitches from the ninth on.
#pragma once

#include "mbarrier.cuh"
#include "mma.cuh"
#include "params/types.h"

namespace hopper {

// ---- mbarrier.

inline void barrier_init(uint32_t barrier, uint32_t arrivals) {
  mbarrier_init(barrier, arrivals);
}
inline void barrier_init_fence() {}
inline void barrier_arrive(uint32_t barrier) { Barrier::at(barrier).arrive(); }
inline void barrier_arrive_remote(uint32_t barrier, uint32_t rank) { barrier_arrive((barrier & 0xffffff) | rank << 24); }
inline void barrier_expect(uint32_t barrier, uint32_t bytes) {
  Barrier::at(barrier).bytes += bytes;
  barrier_arrive(barrier);
}
inline void barrier_arrive_copies(uint32_t barrier) { barrier_arrive(barrier); }
inline void barrier_wait(uint32_t barrier, uint32_t parity) { mbarrier_wait(barrier, parity); }

// ---- Bulk tensor copies, with the 128-byte swizzle.

inline void copy_box(uint32_t to, const TensorMap *map, uint32_t barrier, int x, int y, int z = 0) {
  const uint64_t *const words = map->words, *const sizes = words + 4, *const pitches = words + 8;
  const int rows = words[3];
  check_alignment(to, 128);
  // Anything else is an illegal instruction.
  check_alignment(2 * x, 16);
  for (int r = 0; r < rows; ++r) {
    const uint32_t line = to + r * 128;
    for (int c = 0; c < 64; ++c) {
      const auto inside = [](int64_t place, uint64_t size) { return place >= 0 && place < int64_t(size); };
      const bool exists = inside(x + c, sizes[0]) && inside(y + r, sizes[1]) && (words[1] < 3 || inside(z, sizes[2]));
      uint16_t element = 0;
      const char *const data = reinterpret_cast<const char *>(words[0]);
      if (exists) memcpy(&element, data + (x + c) * 2 + (y + r) * pitches[0] + (words[1] < 3 ? 0 : z * pitches[1]), 2);
      memcpy(emulator::at(line + ((c / 8 ^ (line >> 7 & 7)) << 4) + c % 8 * 2), &element, 2);
    }
  }
  Barrier::at(barrier).bytes -= rows * 128;
  Barrier::at(barrier).settle();
}

// Whole chunks of 16 bytes, as a GPU does.
inline void store_box(const TensorMap *map, uint32_t from, int x, int y) {
  const uint64_t *const words = map->words, *const sizes = words + 4;
  check_alignment(from, 1024);
  check_alignment(2 * x, 16);
  for (int r = 0; r < int(words[3]) && y + r < int64_t(sizes[1]); ++r) {
    for (int chunk = 0; chunk < 8 && x + chunk * 8 < int64_t(sizes[0]); ++chunk) {
      char *const to = reinterpret_cast<char *>(words[0]) + (x + chunk * 8) * 2 + (y + r) * words[8];
      memcpy(to, emulator::at(from + r * 128 + ((chunk ^ r % 8) << 4)), 16);
    }
  }
}
inline void store_commit() {}
inline void store_wait() {}

inline void multicast_box(uint32_t to, const TensorMap *map, uint32_t barrier, uint16_t blocks, int x, int y, int z = 0) {
  for (uint32_t rank = 0; rank < 2; ++rank) {
    if (blocks >> rank & 1) copy_box((to & 0xffffff) | rank << 24, map, (barrier & 0xffffff) | rank << 24, x, y, z);
  }
}

inline void set_map_address(uint32_t map, uint64_t address) {
  check_alignment(address, 16);
  memcpy(emulator::at(map), &address, 8);
}
inline void publish_map(TensorMap *to, uint32_t map) {
  check_alignment(reinterpret_cast<uint64_t>(to), 64);
  memcpy(to, emulator::at(map), sizeof *to);
}
inline void acquire_map(const TensorMap *) {}
inline void fence_async() {}

template <int BYTES> inline void advance(uint64_t &address) { address += BYTES; }

// ---- Clusters and warp groups.

inline uint32_t cluster_rank() { return emulator::rank(); }
inline void cluster_sync() { emulator::wait(emulator::AT_CLUSTER, __LINE__); }
inline void named_barrier(int number, int threads) {
  emulator::wait_named(number, threads);
}
inline bool elect_one() { return threadIdx.x % 32 == 0; }
inline int uniform_warp() { return threadIdx.x / 32; }
template <int REGISTERS> inline void give_registers() {}
template <int REGISTERS> inline void take_registers() {}

// ---- Shared memory.

inline void stmatrix(uint32_t row, const uint32_t (&from)[4]) {
  each_matrix(row, [&](int m, char *to) { memcpy(to, &from[m], 4); });
}
inline void stmatrix_transposed(uint32_t row, const uint32_t (&from)[4]) {
  const int lane = threadIdx.x % 32;
  for (int m = 0; m < 4; ++m) {
    for (int i = 0; i < 2; ++i) {
      const uint32_t line = __shfl_sync(~0u, row, m * 8 + lane % 4 * 2 + i);
      memcpy(emulator::at(line) + lane / 4 * 2, reinterpret_cast<const char *>(&from[m]) + 2 * i, 2);
    }
  }
}
template <class T> inline T load_shared(uint32_t from) {
  check_alignment(from, sizeof(T));
  T value;
  memcpy(&value, emulator::at(from), sizeof value);
  return value;
}
template <class T> inline void store_shared(uint32_t to, T value) {
  check_alignment(to, sizeof(T));
  memcpy(emulator::at(to), &value, sizeof value);
}
inline uint4 load_shared_16(uint32_t from) { return load_shared<uint4>(from); }
inline void store_shared_16(uint32_t to, uint4 value) { store_shared(to, value); }
inline uint2 load_shared_8(uint32_t from) { return load_shared<uint2>(from); }
inline void store_shared_8(uint32_t to, uint2 value) { store_shared(to, value); }
inline void store_shared_4(uint32_t to, float value) { store_shared(to, value); }

// ---- Global memory.

inline void store_global_16(void *to, uint4 value, bool valid = true) {
  if (!valid) return;
  check_alignment(reinterpret_cast<uint64_t>(to), 16);
  memcpy(to, &value, 16);
}
inline void add_global(float *to, float value) { *to += value; }
inline void add_global_16(float *to, const float (&values)[4]) {
  check_alignment(reinterpret_cast<uint64_t>(to), 16);
  for (int i = 0; i < 4; ++i) to[i] += values[i];
}

}  // namespace hopper
