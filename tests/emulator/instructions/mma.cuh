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
template <int BIT> inline void cp_async_16_if(uint32_t to, const void *from, uint32_t bits) {
  cp_async_16(to, from, bits >> BIT & 1 ? 16 : 0);
}
inline void cp_async_commit() {}
template <int PENDING> inline void cp_async_wait() {}

inline float load_shared(uint32_t from) {
  float value;
  memcpy(&value, emulator::at(from), sizeof value);
  return value;
}
inline void load_shared(float (&to)[4], uint32_t from) {
  check_alignment(from, 16);
  memcpy(to, emulator::at(from), sizeof to);
}
inline void store_shared(uint32_t to, uint16_t value) { memcpy(emulator::at(to), &value, sizeof value); }

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

inline void ldmatrix_transposed(uint32_t (&to)[4], uint32_t row) {
  const int lane = threadIdx.x % 32;
  for (int m = 0; m < 4; ++m) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const uint32_t line = __shfl_sync(~0u, row, m * 8 + lane % 4 * 2 + i);
      memcpy(&pair[i], emulator::at(line) + lane / 4 * 2, 2);
    }
    memcpy(&to[m], pair, 4);
  }
}

// Lane 4g + t has a[g, 2t], a[g + 8, 2t], a[g, 2t + 8], a[g + 8, 2t + 8] with their neighbours, b[2t, g], b[2t + 8, g].
template <class T> inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const auto element = [](uint32_t pair, int i) {
    T elements[2];
    memcpy(elements, &pair, 4);
    return static_cast<float>(elements[i]);
  };
  float left[2][16], right[2][16];
  for (int k = 0; k < 16; ++k) {
    for (int i = 0; i < 2; ++i) {
      left[i][k] = element(__shfl_sync(~0u, k < 8 ? a[i] : a[2 + i], 4 * g + k % 8 / 2), k % 2);
      right[i][k] = element(__shfl_sync(~0u, b[k / 8], 4 * (2 * t + i) + k % 8 / 2), k % 2);
    }
  }
  for (int row = 0; row < 2; ++row)
    for (int column = 0; column < 2; ++column)
      for (int k = 0; k < 16; ++k) d[2 * row + column] += left[row][k] * right[column][k];
}
