// Stands in for kernels/grid_sum.cuh.
#pragma once

#include <cstdint>

constexpr int GRID_SUM_FRACTION = 55;

inline void grid_add(uint64_t *total, float part) {
  *total += (2ull << GRID_SUM_FRACTION) + static_cast<uint64_t>(part * static_cast<float>(1ull << GRID_SUM_FRACTION));
  ++emulator::progress;
}

template <int COUNT> inline uint64_t grid_await(const uint64_t *total, int64_t pitch, uint64_t before, unsigned blocks) {
  while (true) {
    uint64_t now = 0;
    for (int i = 0; i < COUNT; ++i) now += total[i * pitch];
    if ((now - before) >> (GRID_SUM_FRACTION + 1) == blocks) return now;
    emulator::wait(emulator::POLLING, __LINE__);
  }
}

inline float grid_sum(uint64_t before, uint64_t now) {
  const uint64_t one = 1ull << GRID_SUM_FRACTION;
  return static_cast<float>((now - before) & (2 * one - 1)) / static_cast<float>(one);
}
