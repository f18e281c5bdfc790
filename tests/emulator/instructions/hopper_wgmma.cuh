// Stands in for the instructions of kernels/hopper_wgmma.cuh; its layouts are the kernels' own.

inline void wgmma_fence() {}
inline void wgmma_commit() {}
template <int PENDING> inline void wgmma_wait() {}
template <int N> inline void wgmma_settle(float (&)[N]) {}

// Element (r, k) of an operand by its descriptor, as PTX defines it of the 128-byte swizzle. Along the reduction, 8 rows
// of 128 bytes are an atom; across it, 64 rows by 8 of the reduction are.
template <class T> inline float operand_element(uint64_t descriptor, bool across, int r, int k) {
  const auto field = [&](int bit) { return uint32_t(descriptor >> bit & 0x3fff) << 4; };
  const uint32_t leading = field(16), stride = field(32);
  const uint32_t inside = across ? r / 64 * leading + k / 8 * stride + k % 8 * 128 + r % 64 * 2 : r / 8 * stride + r % 8 * 128 + k * 2;
  const uint32_t address = field(0) + inside;
  T element;
  memcpy(&element, emulator::current->block->base() + (address ^ (address >> 7 & 7) << 4), sizeof element);
  return static_cast<float>(element);
}

template <bool A_IS_ACROSS, bool B_IS_ACROSS, int N, class T>
inline void wgmma(float (&d)[N], uint64_t a, uint64_t b, T, bool add = true) {
  if (!add) memset(d, 0, sizeof d);
  const int warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  float left[2][16], right[16];
  for (int h = 0; h < 2; ++h)
    for (int k = 0; k < 16; ++k) left[h][k] = operand_element<T>(a, A_IS_ACROSS, 16 * warp + g + 8 * h, k);
  for (int column = 0; column < N / 2; ++column) {
    const int place = 4 * (column / 2) + column % 2;
    for (int k = 0; k < 16; ++k) right[k] = operand_element<T>(b, B_IS_ACROSS, 8 * (column / 2) + 2 * t + column % 2, k);
    for (int h = 0; h < 2; ++h)
      for (int k = 0; k < 16; ++k) d[place + 2 * h] += left[h][k] * right[k];
  }
}

}  // namespace hopper
