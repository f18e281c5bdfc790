// Element types: fp32, fp16 and bf16 as floats, one by one or 16 bytes at a time; indices as int64.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "params/types.h"

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

// Rounds to nearest even; NaN stays NaN.
template <class T> __device__ inline T from_float(float value);
template <> __device__ inline float from_float<float>(float value) { return value; }
template <> __device__ inline __half from_float<__half>(float value) { return __float2half_rn(value); }
template <> __device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) { return __float2bfloat16_rn(value); }

// 16 bytes of elements: one load or store of a thread.
template <class T> struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(T);
  T at[size];
};

// `data` is aligned to 16 bytes.
template <class T> __device__ inline Pack<T> load_pack(const T *data) {
  const uint4 bits = *reinterpret_cast<const uint4 *>(data);
  Pack<T> pack;
  memcpy(&pack, &bits, sizeof bits);
  return pack;
}

template <class T> __device__ inline void store_pack(T *data, const Pack<T> &pack) {
  uint4 bits;
  memcpy(&bits, &pack, sizeof bits);
  *reinterpret_cast<uint4 *>(data) = bits;
}

// Whether rows of `columns` elements can be read and written by packs: base, pitch and width are multiples of 16 bytes.
template <class T> __host__ __device__ inline bool packs(const void *data, int64_t pitch, int64_t columns) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && (pitch | columns) % Pack<T>::size == 0;
}

// Element `i` of a small vector, such as weights or a bias, whose dtype is known when the kernel runs.
__device__ inline float load_float(const uint8_t *data, Dtype dtype, int64_t i) {
  switch (dtype) {
  case MOE_DTYPE_FP16: return to_float(reinterpret_cast<const __half *>(data)[i]);
  case MOE_DTYPE_BF16: return to_float(reinterpret_cast<const __nv_bfloat16 *>(data)[i]);
  default: return reinterpret_cast<const float *>(data)[i];
  }
}

__device__ inline void store_float(uint8_t *data, Dtype dtype, int64_t i, float value) {
  switch (dtype) {
  case MOE_DTYPE_FP16: reinterpret_cast<__half *>(data)[i] = from_float<__half>(value); break;
  case MOE_DTYPE_BF16: reinterpret_cast<__nv_bfloat16 *>(data)[i] = from_float<__nv_bfloat16>(value); break;
  default: reinterpret_cast<float *>(data)[i] = value;
  }
}

// Element `i` of a vector of int32 or int64.
__device__ inline int64_t load_index(const uint8_t *data, Dtype dtype, int64_t i) {
  return dtype == MOE_DTYPE_INT64 ? reinterpret_cast<const int64_t *>(data)[i]
                                  : reinterpret_cast<const int32_t *>(data)[i];
}

__device__ inline void store_index(uint8_t *data, Dtype dtype, int64_t i, int64_t value) {
  if (dtype == MOE_DTYPE_INT64) {
    reinterpret_cast<int64_t *>(data)[i] = value;
  } else {
    reinterpret_cast<int32_t *>(data)[i] = static_cast<int32_t>(value);
  }
}

// The same for vectors as the checks hand them down.
__device__ inline float load_float(const Matrix &vector, int64_t i) { return load_float(vector.data, vector.dtype, i); }
__device__ inline void store_float(const Matrix &vector, int64_t i, float value) {
  store_float(vector.data, vector.dtype, i, value);
}
__device__ inline int64_t load_index(const Matrix &vector, int64_t i) { return load_index(vector.data, vector.dtype, i); }
__device__ inline void store_index(const Matrix &vector, int64_t i, int64_t value) {
  store_index(vector.data, vector.dtype, i, value);
}

// Row `row` of a matrix of T.
template <class T> __device__ inline T *row_of(const Matrix &matrix, int64_t row) {
  return reinterpret_cast<T *>(matrix.data) + row * matrix.pitch;
}

// The matrix of group `g`; null where the expert is absent or frozen.
template <class T> __device__ inline T *group_data(const Grouped &tensor, int64_t g) {
  if (tensor.pointers == nullptr) return reinterpret_cast<T *>(tensor.data) + (g * tensor.group_stride + tensor.offset);
  uint8_t *const data = tensor.pointers[g];
  return data == nullptr ? nullptr : reinterpret_cast<T *>(data) + tensor.offset;
}
