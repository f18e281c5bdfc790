// The plain epilogue of the Hopper GEMM: out = alpha * sums (+ bias) (+ beta * out), rounded once.
#pragma once

#include "gemm_store.cuh"
#include "hopper_ptx.cuh"

namespace hopper {

// Where a tile goes: rows of elements of T, or of fp32.
struct Target {
  // Element (0, 0) of the tile.
  uint8_t *data;
  int64_t pitch;
  // What exists from there on.
  int rows;
  int columns;
  float alpha;
  float beta;
  bool narrow;
  bool add;
  // Rows can be written 16 bytes at a time.
  bool packed;
  // Of the tile's columns; NULL: none.
  const uint8_t *bias;
  Dtype bias_dtype;
};

// Two neighbouring columns of the bias.
__device__ inline float2 bias_pair(const Target &to, int column) {
  if (to.bias == nullptr) return {0.0f, 0.0f};
  return {column < to.columns ? load_float(to.bias, to.bias_dtype, column) : 0.0f,
          column + 1 < to.columns ? load_float(to.bias, to.bias_dtype, column + 1) : 0.0f};
}

template <class T> __device__ inline uint32_t pack_pair(float x, float y);
template <> __device__ inline uint32_t pack_pair<__nv_bfloat16>(float x, float y) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}
template <> __device__ inline uint32_t pack_pair<__half>(float x, float y) {
  const __half2 pair = __floats2half2_rn(x, y);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}

template <class T> __device__ inline float2 unpack_pair(uint32_t bits);
// An instruction each.
template <> __device__ inline float2 unpack_pair<__nv_bfloat16>(uint32_t bits) {
  return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000)};
}
template <> __device__ inline float2 unpack_pair<__half>(uint32_t bits) {
  struct alignas(4) { __half x, y; } pair;
  memcpy(&pair, &bits, sizeof bits);
  return {to_float(pair.x), to_float(pair.y)};
}

// 16 bytes of shared memory as floats.
template <class T> __device__ inline void unpack(float (&values)[8], uint4 bits) {
  Pack<T> pack;
  memcpy(&pack, &bits, sizeof bits);
#pragma unroll
  for (int i = 0; i < Pack<T>::size; ++i) values[i] = to_float(pack.at[i]);
}

// `valid` of eight neighbours of a row.
template <class T> __device__ inline void put_8(T *out, uint4 bits, int valid, bool packed) {
  if (packed && valid == 8) {
    store_global_16(out, bits);
  } else {
    float values[8];
    unpack<T>(values, bits);
    gemm::store_8(out, values, valid, false);
  }
}

// Where 16 bytes go, chunk `chunk` of one of 16 lines of so many chunks.
template <int CHUNKS> __device__ inline uint32_t staged(uint32_t staging, int line, int chunk) {
  const int swizzle = CHUNKS == 8 ? line % 8 : line / 2 % 4;
  return staging + line * (CHUNKS * 16) + ((chunk ^ swizzle) << 4);
}

// Rows `row` and on of the tile, N / 4 blocks of eight columns, by way of `staging`: strips of 64 or 32 columns, the last
// one of what is left.
//
// A warp has a scheduler almost for itself here, with nothing to hide latencies behind: the usual case, 16 whole rows,
// has no branches and few instructions, and a strip is written while the next one is laid out.
template <class T, int N> __device__ inline void store_narrow(const Target &to, int row, const float *sums, uint32_t staging) {
  constexpr int BLOCKS = N % 32 == 0 || N > 64 ? 8 : 4, PASSES = BLOCKS / 2, STRIPS = (N / 4 + BLOCKS - 1) / BLOCKS;
  // Strips that are laid out before one is written, as registers allow.
  constexpr int BEHIND = BLOCKS == 8 ? 1 : 0;
  const int lane = threadIdx.x % 32, line = lane / BLOCKS, chunk = lane % BLOCKS;
  const uint32_t mine = staged<BLOCKS>(staging, lane % 16, lane / 16);
  const bool plain = to.bias == nullptr && to.alpha == 1.0f;
  const bool whole = to.packed && to.rows - row >= 16 && to.columns >= 2 * N;
  T *const out = reinterpret_cast<T *>(to.data) + (row + line) * to.pitch + chunk * 8;
  const auto blocks_of = [](int strip) { return min(N / 4 - strip * BLOCKS, BLOCKS); };
  uint4 bits[STRIPS][PASSES];
  const auto put = [&](int strip) {
    // Addresses of lines are not to be kept: registers are scarce.
    T *at = out;
    asm volatile("" : "+l"(at));
    const bool exists = chunk < blocks_of(strip);
    if (whole) {
#pragma unroll
      for (int i = 0; i < PASSES; ++i) {
        store_global_16(at + 32 / BLOCKS * i * to.pitch + strip * (8 * BLOCKS), bits[strip][i], exists);
      }
    } else {
      const int column = strip * (8 * BLOCKS) + chunk * 8, valid = exists ? min(to.columns - column, 8) : 0;
#pragma unroll
      for (int i = 0; i < PASSES; ++i) {
        if (row + line + 32 / BLOCKS * i >= to.rows || valid <= 0) continue;
        put_8(at + 32 / BLOCKS * i * to.pitch + strip * (8 * BLOCKS), bits[strip][i], valid, to.packed);
      }
    }
  };
#pragma unroll
  for (int strip = 0; strip < STRIPS; ++strip) {
    // Two blocks, of which the second may be missing.
    if (plain) {
#pragma unroll
      for (int block = 0; block < blocks_of(strip); block += 2) {
        const float *const at = sums + 4 * (strip * BLOCKS + block);
        const bool both = block + 1 < blocks_of(strip);
        const uint32_t pairs[4] = {pack_pair<T>(at[0], at[1]), pack_pair<T>(at[2], at[3]),
                                   both ? pack_pair<T>(at[4], at[5]) : 0, both ? pack_pair<T>(at[6], at[7]) : 0};
        stmatrix(mine ^ block << 4, pairs);
      }
    } else {
#pragma unroll
      for (int block = 0; block < blocks_of(strip); block += 2) {
        uint32_t pairs[4] = {};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (block + i >= blocks_of(strip)) break;
          const int place = strip * BLOCKS + block + i;
          const float *const at = sums + 4 * place;
          const float2 bias = bias_pair(to, place * 8 + lane % 4 * 2);
          pairs[2 * i] = pack_pair<T>(to.alpha * at[0] + bias.x, to.alpha * at[1] + bias.y);
          pairs[2 * i + 1] = pack_pair<T>(to.alpha * at[2] + bias.x, to.alpha * at[3] + bias.y);
        }
        stmatrix(mine ^ block << 4, pairs);
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < PASSES; ++i) {
      bits[strip][i] = load_shared_16(staged<BLOCKS>(staging, line + 32 / BLOCKS * i, chunk));
    }
    __syncwarp();
    if (strip >= BEHIND) put(strip - BEHIND);
  }
  if (BEHIND > 0) put(STRIPS - 1);
}

// `valid` of four neighbours of a row, written or added to what is there.
__device__ inline void put_4(float *out, const float (&values)[4], int valid, bool packed, bool add) {
  if (packed && valid >= 4) {
    if (add) return add_global_16(out, values);
    *reinterpret_cast<float4 *>(out) = {values[0], values[1], values[2], values[3]};
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i >= valid) break;
    add ? add_global(out + i, values[i]) : void(out[i] = values[i]);
  }
}

// Whether the L2 cache can add an output to what is there.
__device__ inline bool adds_in_place(const Target &to) { return to.add && !to.narrow && to.beta == 1.0f; }

// Rows `row` and on of a tile of fp32, by way of `staging`: whole lines, of 32 columns, which are written or added to
// what is there in the L2 cache. That takes 2.8 TB/s to and from memory; four lanes at a time 2.1, and to wait for old
// values in so few warps 1.3.
template <int N> __device__ inline void store_wide(const Target &to, int row, const float (&sums)[N], uint32_t staging) {
  const int lane = threadIdx.x % 32, line = lane / 8, chunk = lane % 8;
  // Four rows' pairs of chunks are in different banks.
  const auto place = [&](int line, int chunk) { return staging + line * 128 + ((chunk ^ line % 4 * 2) << 4); };
  const uint32_t mine = place(lane / 4, lane % 4 / 2) + lane % 2 * 8;
  float *const out = reinterpret_cast<float *>(to.data) + (row + line) * to.pitch + chunk * 4;
#pragma unroll
  for (int strip = 0; strip < N / 16; ++strip) {
#pragma unroll
    for (int block = 0; block < 4; ++block) {
      const float *const at = sums + 16 * strip + 4 * block;
      const float2 bias = bias_pair(to, strip * 32 + block * 8 + lane % 4 * 2);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        store_shared_8((mine ^ block << 5) + half * 8 * 128, {__float_as_uint(to.alpha * at[2 * half] + bias.x),
                                                              __float_as_uint(to.alpha * at[2 * half + 1] + bias.y)});
      }
    }
    __syncwarp();
    uint4 bits[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) bits[i] = load_shared_16(place(line + 4 * i, chunk));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (row + line + 4 * i >= to.rows) continue;
      const float values[4] = {__uint_as_float(bits[i].x), __uint_as_float(bits[i].y), __uint_as_float(bits[i].z),
                               __uint_as_float(bits[i].w)};
      put_4(out + 4 * i * to.pitch + strip * 32, values, to.columns - strip * 32 - chunk * 4, to.packed, to.add);
    }
    __syncwarp();
  }
}

// Eight neighbours of a row, added to what is there or not.
template <class Out> __device__ inline void finish_as(const Target &to, Out *out, float (&values)[8], int valid) {
  if (to.add) {
    float old[8];
    gemm::load_8(old, out, valid, to.packed);
#pragma unroll
    for (int e = 0; e < 8; ++e) values[e] += to.beta * old[e];
  }
  gemm::store_8(out, values, valid, to.packed);
}

template <class T> __device__ inline void finish(const Target &to, int row, int column, float (&values)[8], int valid) {
  const int64_t place = row * to.pitch + column;
  if (to.narrow) {
    finish_as(to, reinterpret_cast<T *>(to.data) + place, values, valid);
  } else {
    float *const out = reinterpret_cast<float *>(to.data) + place;
    if (!adds_in_place(to)) return finish_as(to, out, values, valid);
    put_4(out, {values[0], values[1], values[2], values[3]}, valid, to.packed, true);
    put_4(out + 4, {values[4], values[5], values[6], values[7]}, valid - 4, to.packed, true);
  }
}

// Two neighbours of a row, of which `valid` exist; `packed`: they can be accessed together.
template <class Out> __device__ inline float2 load_pair(const Out *from, int valid, bool packed) {
  if (packed && valid >= 2) {
    struct alignas(2 * sizeof(Out)) Pair { Out x, y; };
    const Pair pair = *reinterpret_cast<const Pair *>(from);
    return {to_float(pair.x), to_float(pair.y)};
  }
  return {valid > 0 ? to_float(from[0]) : 0.0f, valid > 1 ? to_float(from[1]) : 0.0f};
}

template <class Out> __device__ inline void store_pair(Out *to, float2 values, int valid, bool packed) {
  if (packed && valid >= 2) {
    struct alignas(2 * sizeof(Out)) Pair { Out x, y; };
    *reinterpret_cast<Pair *>(to) = {from_float<Out>(values.x), from_float<Out>(values.y)};
  } else {
    if (valid > 0) to[0] = from_float<Out>(values.x);
    if (valid > 1) to[1] = from_float<Out>(values.y);
  }
}

// Straight from the registers, to add to a multiple of what is there before it is rounded: four lanes have eight
// neighbours of a row, which is a sector of fp32.
template <class Out, int N> __device__ inline void store_direct(const Target &to, int row, const float (&sums)[N]) {
  // So many loads under way as registers allow.
  constexpr int AT_ONCE = 2;
  const int lane = threadIdx.x % 32, t = lane % 4 * 2;
  Out *const out = reinterpret_cast<Out *>(to.data) + (row + lane / 4) * to.pitch + t;
  const int rows = to.rows - row - lane / 4;
#pragma unroll
  for (int first = 0; first < N / 4; first += AT_ONCE) {
    float2 values[2 * AT_ONCE];
    int valid[2 * AT_ONCE];
#pragma unroll
    for (int i = 0; i < 2 * AT_ONCE; ++i) {
      const int column = (first + i / 2) * 8;
      valid[i] = i % 2 * 8 < rows ? to.columns - column - t : 0;
      values[i] = {0.0f, 0.0f};
      if (to.add) values[i] = load_pair(out + i % 2 * 8 * to.pitch + column, valid[i], to.packed);
    }
#pragma unroll
    for (int i = 0; i < 2 * AT_ONCE; ++i) {
      const int column = (first + i / 2) * 8;
      const float *const at = sums + (first + i / 2) * 4 + i % 2 * 2;
      const float2 bias = bias_pair(to, column + t);
      values[i].x = to.alpha * at[0] + bias.x + to.beta * values[i].x;
      values[i].y = to.alpha * at[1] + bias.y + to.beta * values[i].y;
      store_pair(out + i % 2 * 8 * to.pitch + column, values[i], valid[i], to.packed);
    }
  }
}

// A tile of which rows and columns are swapped: sums[m, n] goes to out[n, m]. `to` counts as the output does; there is
// no bias. 64 columns of the sums at a time, as 64 lines of all 64 rows of the team: its warps come here together.
template <class T, int N>
__device__ inline void store_transposed_narrow(const Target &to, int row, const float (&sums)[N], uint32_t staging) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, chunk = lane % 8, line = warp * 16 + lane / 8;
  const auto wait = [] { named_barrier(2 + threadIdx.x / 128, 128); };
  const uint32_t lines = staging - warp * 2048;
  const uint32_t mine = staged<8>(lines, lane / 16 * 8 + lane % 8, warp * 2 + lane / 8 % 2);
  const int first = row - warp * 16 + chunk * 8, valid = min(to.columns - first, 8);
  T *const out = reinterpret_cast<T *>(to.data) + line * to.pitch + first;
#pragma unroll
  for (int strip = 0; strip < N / 32; ++strip) {
#pragma unroll
    for (int block = 0; block < 8; block += 2) {
      const float *const at = sums + 4 * (strip * 8 + block);
      uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) pairs[i] = pack_pair<T>(to.alpha * at[2 * i], to.alpha * at[2 * i + 1]);
      stmatrix_transposed(mine + block * 8 * 128, pairs);
    }
    wait();
    uint4 bits[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) bits[i] = load_shared_16(staged<8>(lines, line + 4 * i, chunk));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (strip * 64 + line + 4 * i >= to.rows || valid <= 0) continue;
      T *const at = out + (strip * 64 + 4 * i) * to.pitch;
      put_8(at, bits[i], valid, to.packed);
    }
    wait();
  }
}

// The same for other outputs: 32 columns at a time, as 32 lines of 16 floats.
template <class T, int N>
__device__ inline void store_transposed(const Target &to, int row, const float (&sums)[N], uint32_t staging) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const auto place = [&](int n, int m) { return staging + n * 64 + (((m / 4) ^ (n / 2 % 4)) << 4) + m % 4 * 4; };
#pragma unroll
  for (int strip = 0; strip < N / 16; ++strip) {
#pragma unroll
    for (int block = 0; block < 4; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float value = to.alpha * sums[strip * 16 + block * 4 + i];
        store_shared_4(place(block * 8 + t * 2 + i % 2, g + i / 2 * 8), value);
      }
    }
    __syncwarp();
    // A lane takes eight of a line.
    const int valid = min(to.columns - row - lane % 2 * 8, 8);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int n = lane / 2 + 16 * i;
      float values[8];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 bits = load_shared_16(place(n, lane % 2 * 8 + half * 4));
        values[4 * half] = __uint_as_float(bits.x), values[4 * half + 1] = __uint_as_float(bits.y);
        values[4 * half + 2] = __uint_as_float(bits.z), values[4 * half + 3] = __uint_as_float(bits.w);
      }
      if (strip * 32 + n >= to.rows || valid <= 0) continue;
      finish<T>(to, strip * 32 + n, row + lane % 2 * 8, values, valid);
    }
    __syncwarp();
  }
}

// What the ways to store have in common is not to be computed before they part: registers are scarce.
__device__ inline void part(int &row, uint32_t &staging) { asm volatile("" : "+r"(row), "+r"(staging)); }

__device__ inline void part(Target &to, int &row, uint32_t &staging) {
  asm volatile("" : "+l"(to.data), "+l"(to.pitch));
  part(row, staging);
}

template <class T, int N> __device__ inline void store(Target to, int row, const float (&sums)[N], uint32_t staging) {
  if (to.narrow && !to.add) return store_narrow<T, N>(to, row, sums, staging);
  part(to, row, staging);
  if (to.narrow) return store_direct<T>(to, row, sums);
  part(to, row, staging);
  if (to.add && to.beta != 1.0f) return store_direct<float>(to, row, sums);
  part(to, row, staging);
  store_wide(to, row, sums, staging);
}

}  // namespace hopper
