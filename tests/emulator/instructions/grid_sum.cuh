// Stands in for kernels/grid_sum.cuh.
#pragma once

#include "params/sinkhorn.h"

inline void grid_add(uint64_t *total, float part) {
  *total += (2ull << GRID_SUM_FRACTION) + static_cast<uint64_t>(part * static_cast<float>(1ull << GRID_SUM_FRACTION));
  ++emulator::progress;
}

inline uint64_t grid_await(const uint64_t *total, uint64_t before, unsigned blocks) {
  while ((*total - before) >> (GRID_SUM_FRACTION + 1) != blocks) emulator::wait(emulator::POLLING, __LINE__);
  return *total;
}

inline float grid_sum(uint64_t before, uint64_t now) {
  const uint64_t one = 1ull << GRID_SUM_FRACTION;
  return static_cast<float>((now - before) & (2 * one - 1)) / static_cast<float>(one);
}
