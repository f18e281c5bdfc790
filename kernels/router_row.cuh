// Rows of logits in registers: a token belongs to p.lanes neighbouring lanes, each of which has CHUNKS chunks of eight
// experts: 8*(lane + lanes*j) + i. For the kernels of the common cases.
#pragma once

#include "router.cuh"
#include "params/quick.h"

namespace router {

constexpr float LOG2E = 1.4426950408889634f;

// e^(logit - top) by the hardware's 2^x, whose error of two units in the last place a softmax does not notice.
__device__ inline float quick_exp(float difference) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(difference * LOG2E));
  return result;
}

template <int CHUNKS> struct Row {
  float at[8 * CHUNKS];
};

// Eight elements from `data` on, which is aligned to them.
template <class T> __device__ inline void load_eight(const T *data, float *to) {
#pragma unroll
  for (int i = 0; i < 8; i += Pack<T>::size) {
    const Pack<T> pack = load_pack(data + i);
#pragma unroll
    for (int k = 0; k < Pack<T>::size; ++k) to[i + k] = to_float(pack.at[k]);
  }
}

template <class T> __device__ inline void store_eight(T *data, const float *from) {
#pragma unroll
  for (int i = 0; i < 8; i += Pack<T>::size) {
    Pack<T> pack;
#pragma unroll
    for (int k = 0; k < Pack<T>::size; ++k) pack.at[k] = from_float<T>(from[i + k]);
    store_pack(data + i, pack);
  }
}

// A thread's experts: its place among a token's lanes, and the sizes.
struct Lanes {
  int lanes, lane, experts;

  __device__ Lanes(int lanes, int experts) : lanes(lanes), lane(threadIdx.x % lanes), experts(experts) {}

  // The first expert of chunk j.
  __device__ int expert(int j) const { return 8 * (lane + lanes * j); }
};

// A row of a matrix; `missing` behind the last expert, and everywhere without a token. `packed`: rows can be read by 16 bytes.
// NARROW: elements have 16 bits.
template <int CHUNKS, bool NARROW = false>
__device__ inline Row<CHUNKS> load_row(const Matrix &matrix, bool packed, const Lanes &place, int64_t token, bool valid, float missing) {
  Row<CHUNKS> row;
#pragma unroll
  for (int j = 0; j < CHUNKS; ++j) {
    const int first = place.expert(j);
    const int64_t at = token * matrix.pitch + first;
    if (packed && valid && first < place.experts) {
      switch (matrix.dtype) {
      case MOE_DTYPE_BF16: load_eight(reinterpret_cast<const __nv_bfloat16 *>(matrix.data) + at, row.at + 8 * j); break;
      case MOE_DTYPE_FP16: load_eight(reinterpret_cast<const __half *>(matrix.data) + at, row.at + 8 * j); break;
      default:
        if constexpr (!NARROW) load_eight(reinterpret_cast<const float *>(matrix.data) + at, row.at + 8 * j);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) row.at[8 * j + i] = valid && first + i < place.experts ? load_float(matrix, at + i) : missing;
    }
  }
  return row;
}

// The same for writing.
template <int CHUNKS>
__device__ inline void store_row(const Matrix &matrix, bool packed, const Lanes &place, int64_t token, const Row<CHUNKS> &row) {
#pragma unroll
  for (int j = 0; j < CHUNKS; ++j) {
    const int first = place.expert(j);
    if (first >= place.experts) continue;
    const int64_t at = token * matrix.pitch + first;
    if (packed) {
      switch (matrix.dtype) {
      case MOE_DTYPE_BF16: store_eight(reinterpret_cast<__nv_bfloat16 *>(matrix.data) + at, row.at + 8 * j); break;
      case MOE_DTYPE_FP16: store_eight(reinterpret_cast<__half *>(matrix.data) + at, row.at + 8 * j); break;
      default: store_eight(reinterpret_cast<float *>(matrix.data) + at, row.at + 8 * j);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (first + i < place.experts) store_float(matrix, at + i, row.at[8 * j + i]);
      }
    }
  }
}

// NaN becomes -inf and is reported, +inf the largest number. The largest logit of the token's lanes is returned.
template <int CHUNKS>
__device__ inline float clean(Row<CHUNKS> &row, const Lanes &place, int64_t token, moe_device_report_t *report) {
  // 0 times what is not finite is NaN: most rows are done with at once.
  float probe = 0, top = -INFINITY;
#pragma unroll
  for (int i = 0; i < 8 * CHUNKS; ++i) probe = fmaf(row.at[i], 0.0f, probe);
  if (probe != probe) {
#pragma unroll
    for (int i = 0; i < 8 * CHUNKS; ++i) {
      const float value = row.at[i];
      if (value != value) {
        record_fault(report, MOE_FAULT_NAN_LOGIT, token * place.experts + place.expert(i / 8) + i % 8, 0);
      }
      row.at[i] = fminf(fmaxf(value, -INFINITY), Real<float>::max);
    }
  }
#pragma unroll
  for (int i = 0; i < 8 * CHUNKS; ++i) top = fmaxf(top, row.at[i]);
  return max_over(top, place.lanes);
}

}  // namespace router
