// Stands in for kernels/mbarrier.cuh.
#pragma once

#include <stdint.h>

struct Barrier {
  int32_t bytes;
  uint32_t phase : 1, expected : 15, pending : 16;

  static Barrier &at(uint32_t address) { return *reinterpret_cast<Barrier *>(emulator::at(address)); }

  void settle() {
    if (pending != 0 || bytes != 0) return;
    phase ^= 1, pending = expected;
    ++emulator::progress;
  }
  void arrive() {
    if (pending == 0) fprintf(stderr, "more arrivals than a barrier counts\n"), abort();
    --pending;
    ++emulator::progress;
    settle();
  }
};

inline void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  Barrier &b = Barrier::at(barrier);
  b.bytes = 0, b.phase = 0, b.expected = arrivals, b.pending = arrivals;
}
inline void mbarrier_arrive(uint32_t barrier) { Barrier::at(barrier).arrive(); }
inline void mbarrier_arrive_behind_copies(uint32_t barrier) { mbarrier_arrive(barrier); }
inline void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  while (Barrier::at(barrier).phase == parity) emulator::wait(emulator::POLLING, __LINE__);
}
