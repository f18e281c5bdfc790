// Stands in for kernels/mma.cuh.
#pragma once

#include <stdint.h>

inline uint32_t shared_address(const void *pointer) { return emulator::address(pointer); }

inline void check_alignment(uint64_t address, int bytes) {
  if (address % bytes != 0) fprintf(stderr, "an address is no multiple of %d\n", bytes), abort();
}

inline void cp_async_16(uint32_t to, const void *from, uint32_t valid) {
  check_alignment(to, 16);
  if (valid > 0) check_alignment(reinterpret_cast<uint64_t>(from), 16);
  memset(emulator::at(to), 0, 16);
  memcpy(emulator::at(to), from, valid);
}
inline void cp_async_commit() {}
template <int PENDING> inline void cp_async_wait() {}

// Where row `lane / 4` of each of four matrices begins, as lanes 8m to 8m + 7 say of matrix m.
template <class Take> inline void each_matrix(uint32_t row, const Take &take) {
  const int lane = threadIdx.x % 32;
  for (int m = 0; m < 4; ++m) {
    const uint32_t line = __shfl_sync(~0u, row, m * 8 + lane / 4);
    check_alignment(line, 16);
    take(m, emulator::at(line) + lane % 4 * 4);
  }
}

inline void ldmatrix(uint32_t (&to)[4], uint32_t row) {
  each_matrix(row, [&](int m, const char *from) { memcpy(&to[m], from, 4); });
}
