// Stands in for kernels/cluster.cuh.
#pragma once

#include <stdint.h>

inline void begin_gathering(uint64_t *, int) { emulator::wait(emulator::AT_CLUSTER, __LINE__); }

inline void hand_to_first(float *values, int place, float value, uint64_t *) {
  memcpy(emulator::at(emulator::address(values + place) & 0xffffff), &value, 4);
}

// Blocks behind the first have handed over once all are here.
inline bool gather(uint64_t *) {
  emulator::wait(emulator::AT_CLUSTER, __LINE__);
  return blockIdx.x == 0;
}
