// The plain epilogue: out = alpha * sums (+ bias) (+ beta * out), rounded once.
#pragma once

#include "dtype.cuh"

namespace gemm {

// Eight neighbours of a row, of which `valid` exist. `packed`: they are aligned to 16 bytes.
template <class T> __device__ inline void load_8(float (&values)[8], const T *from, int valid, bool packed) {
  if (packed && valid >= 8) {
#pragma unroll
    for (int i = 0; i < 8; i += Pack<T>::size) {
      const Pack<T> pack = load_pack(from + i);
#pragma unroll
      for (int j = 0; j < Pack<T>::size; ++j) values[i + j] = to_float(pack.at[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = i < valid ? to_float(from[i]) : 0.0f;
  }
}

template <class T> __device__ inline void store_8(T *to, const float (&values)[8], int valid, bool packed) {
  if (packed && valid >= 8) {
#pragma unroll
    for (int i = 0; i < 8; i += Pack<T>::size) {
      Pack<T> pack;
#pragma unroll
      for (int j = 0; j < Pack<T>::size; ++j) pack.at[j] = from_float<T>(values[i + j]);
      store_pack(to + i, pack);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < valid) to[i] = from_float<T>(values[i]);
    }
  }
}

// Stores a tile's rows into a matrix of T or fp32.
template <class T> struct Store {
  // Element (0, 0) of the tile, and what there is of the matrix from there on.
  uint8_t *data;
  int64_t pitch;
  int64_t rows;
  int64_t columns;
  float alpha;
  float beta;
  // T, or else fp32.
  bool narrow;
  bool add;
  bool packed;
  // Of this lane's columns.
  float bias[2][8];

  __device__ void operator()(int row, int column, float (&sums)[2][8]) const {
    if (row >= rows) return;
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const int from = column + 32 * q;
      const int valid = static_cast<int>(min(columns - from, int64_t(8)));
      if (valid <= 0) continue;
#pragma unroll
      for (int e = 0; e < 8; ++e) sums[q][e] = alpha * sums[q][e] + bias[q][e];
      if (narrow) {
        finish(reinterpret_cast<T *>(data) + row * pitch + from, sums[q], valid);
      } else {
        finish(reinterpret_cast<float *>(data) + row * pitch + from, sums[q], valid);
      }
    }
  }

private:
  template <class Out> __device__ void finish(Out *out, float (&values)[8], int valid) const {
    if (add) {
      float old[8];
      load_8(old, out, valid, packed);
#pragma unroll
      for (int e = 0; e < 8; ++e) values[e] += beta * old[e];
    }
    store_8(out, values, valid, packed);
  }
};

}  // namespace gemm
