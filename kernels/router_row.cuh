// Rows of logits in registers: a token belongs to LANES neighbouring lanes, each of which has CHUNKS chunks of eight
// experts: 8*(lane + LANES*j) + i. For the kernels of the common cases.
#pragma once

#include "router.cuh"
#include "params/quick.h"

namespace router {

constexpr float LOG2E = 1.4426950408889634f;

// 2^x by the hardware, whose error of two units in the last place a softmax does not notice.
__device__ inline float quick_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// e^(logit - top).
__device__ inline float quick_exp(float difference) { return quick_exp2(difference * LOG2E); }

// The larger; NaN if either is.
__device__ inline float max_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

template <int CHUNKS> struct Row {
  float at[8 * CHUNKS];
};

// How tokens and experts lie in a warp.
template <int LANES_, int CHUNKS_> struct Shape {
  static constexpr int LANES = LANES_, CHUNKS = CHUNKS_;
  // Experts of a lane, and tokens of a warp.
  static constexpr int N = 8 * CHUNKS, TOKENS = 32 / LANES;
  // Slots of a lane, of eight; lanes from the eighth on have none of their own.
  static constexpr int SLOTS = LANES < 8 ? 8 / LANES : 1;

  // The place among the token's lanes, and of the token among the warp's.
  static __device__ int lane() { return threadIdx.x % LANES; }
  static __device__ int token() { return lane_id() / LANES; }
  // The expert of element i.
  static __device__ int expert(int i) { return 8 * (lane() + LANES * (i / 8)) + i % 8; }
};

// Tokens of a sequence: begin, begin + p.step, ... below end.
struct TokensOf {
  int begin, end;
};

// Blocks share those of sequence blockIdx.y of gridDim.y; of one alone, all.
__device__ inline TokensOf tokens_of(const RouterLosses &losses, int tokens) {
  if (gridDim.y == 1) return {0, tokens};
  if (losses.layout == MOE_SEQUENCE_MINOR) return {static_cast<int>(blockIdx.y), tokens};
  const auto before = [&](int64_t sequences) { return static_cast<int>(min(sequences * losses.length, int64_t(tokens))); };
  return {before(blockIdx.y), before(blockIdx.y + 1)};
}

// The place of (token, column): those of the common cases fit in 31 bits.
__device__ inline uint32_t place_of(const Matrix &matrix, uint32_t token, uint32_t column) {
  return token * static_cast<uint32_t>(matrix.pitch) + column;
}

// A row as it lies in memory: WORDS words a chunk, four of 16-bit elements, eight of fp32.
template <int CHUNKS, int WORDS> struct Raw {
  uint32_t at[CHUNKS][WORDS];
};

// Elements first .. first + 7 of a row, by 16 bytes.
template <int WORDS> __device__ inline void load_words(const uint8_t *from, bool wide, uint32_t (&to)[WORDS]) {
  const uint4 low = *reinterpret_cast<const uint4 *>(from);
  to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
  if constexpr (WORDS == 8) {
    if (!wide) return;
    const uint4 high = *reinterpret_cast<const uint4 *>(from + 16);
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
  }
}

// The bits of an element that counts for nothing: -inf or 0.
__device__ inline uint32_t missing_bits(Dtype dtype, bool zero) {
  return zero ? 0 : dtype == MOE_DTYPE_BF16 ? 0xff80ff80u : dtype == MOE_DTYPE_FP16 ? 0xfc00fc00u : 0xff800000u;
}

// A row of a matrix; -inf (`zero`: 0) behind the last expert, and everywhere without a token. `packed`: rows can be read
// by 16 bytes. Nothing waits for what is loaded.
template <class S, int WORDS>
__device__ inline Raw<S::CHUNKS, WORDS> load_raw(const Matrix &matrix, bool packed, int experts, int token, bool valid,
                                                 bool zero = false) {
  Raw<S::CHUNKS, WORDS> raw;
  const bool wide = WORDS == 8 && matrix.dtype == MOE_DTYPE_FP32;
  const uint32_t missing = missing_bits(matrix.dtype, zero), at = place_of(matrix, token, S::expert(0));
#pragma unroll
  for (int j = 0; j < S::CHUNKS; ++j) {
    constexpr int APART = 8 * S::LANES;
    const int first = S::expert(8 * j);
    if (valid && first < experts) {
      if (packed) {
        load_words(wide ? matrix.data + uint64_t(at) * 4 + 4 * APART * j : matrix.data + uint64_t(at) * 2 + 2 * APART * j, wide, raw.at[j]);
      } else if (wide) {
        const uint32_t *const from = reinterpret_cast<const uint32_t *>(matrix.data) + at + APART * j;
#pragma unroll
        for (int i = 0; i < WORDS; ++i) raw.at[j][i] = first + i < experts ? from[i] : missing;
      } else {
        const uint16_t *const from = reinterpret_cast<const uint16_t *>(matrix.data) + at + APART * j;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t low = first + 2 * i < experts ? from[2 * i] : missing & 0xffff;
          const uint32_t high = first + 2 * i + 1 < experts ? from[2 * i + 1] : missing & 0xffff;
          raw.at[j][i] = high << 16 | low;
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < WORDS; ++i) raw.at[j][i] = missing;
    }
  }
  return raw;
}

template <int CHUNKS, int WORDS> __device__ inline Row<CHUNKS> to_row(const Raw<CHUNKS, WORDS> &raw, Dtype dtype) {
  Row<CHUNKS> row;
#pragma unroll
  for (int j = 0; j < CHUNKS; ++j) {
    if (WORDS == 8 && dtype == MOE_DTYPE_FP32) {
#pragma unroll
      for (int i = 0; i < WORDS; ++i) row.at[8 * j + i] = __uint_as_float(raw.at[j][i]);
    } else if (dtype == MOE_DTYPE_FP16) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        row.at[8 * j + i] = __half2float(__ushort_as_half(static_cast<unsigned short>(raw.at[j][i / 2] >> 16 * (i % 2))));
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) row.at[8 * j + i] = __uint_as_float(i % 2 ? raw.at[j][i / 2] & 0xffff0000u : raw.at[j][i / 2] << 16);
    }
  }
  return row;
}

// Eight elements to `data`, which is aligned to them.
template <class T> __device__ inline void store_eight(T *data, const float *from) {
#pragma unroll
  for (int i = 0; i < 8; i += Pack<T>::size) {
    Pack<T> pack;
#pragma unroll
    for (int k = 0; k < Pack<T>::size; ++k) pack.at[k] = from_float<T>(from[i + k]);
    store_pack(data + i, pack);
  }
}

template <class S>
__device__ inline void store_row(const Matrix &matrix, bool packed, int experts, int token, const Row<S::CHUNKS> &row) {
#pragma unroll
  for (int j = 0; j < S::CHUNKS; ++j) {
    const int first = S::expert(8 * j);
    if (first >= experts) continue;
    const uint32_t at = place_of(matrix, token, first);
    if (packed) {
      switch (matrix.dtype) {
      case MOE_DTYPE_BF16: store_eight(reinterpret_cast<__nv_bfloat16 *>(matrix.data) + at, row.at + 8 * j); break;
      case MOE_DTYPE_FP16: store_eight(reinterpret_cast<__half *>(matrix.data) + at, row.at + 8 * j); break;
      default: store_eight(reinterpret_cast<float *>(matrix.data) + at, row.at + 8 * j);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (first + i < experts) store_float(matrix, at + i, row.at[8 * j + i]);
      }
    }
  }
}

// Logits of a smaller size need no care: LOG2E times them is known to a small fraction.
constexpr float CALM = 1e6f;

// Reports NaN among the lane's logits.
template <class S>
__device__ inline void report_nan(const Row<S::CHUNKS> &row, int experts, int token, moe_device_report_t *report) {
  int bad = -1;
#pragma unroll
  for (int i = 0; i < S::N; ++i) bad = row.at[i] != row.at[i] ? S::expert(i) : bad;
  if (bad >= 0) record_fault(report, MOE_FAULT_NAN_LOGIT, int64_t(token) * experts + bad, 0);
}

// NaN becomes -inf and is reported, +inf the largest number. The largest logit of the token's lanes is returned. All
// lanes of the warp call.
template <class S>
__device__ inline float clean(Row<S::CHUNKS> &row, int experts, int token, moe_device_report_t *report) {
  float tops[S::N / 4], top;
#pragma unroll
  for (int i = 0; i < S::N / 4; ++i) {
    tops[i] = max_nan(max_nan(row.at[4 * i], row.at[4 * i + 1]), max_nan(row.at[4 * i + 2], row.at[4 * i + 3]));
    top = i == 0 ? tops[0] : max_nan(top, tops[i]);
  }
  if (__any_sync(ALL, !(top < CALM))) {
    report_nan<S>(row, experts, token, report);
#pragma unroll
    for (int i = 0; i < S::N; ++i) {
      row.at[i] = fminf(fmaxf(row.at[i], -INFINITY), Real<float>::max);
      top = i == 0 ? row.at[0] : fmaxf(top, row.at[i]);
    }
  }
  return max_over(top, S::LANES);
}

// What e^(logit - top) is made of: 2^((logit - shift) * LOG2E - scaled). Where top is calm shift is 0, and the rounding of
// `scaled` is the same for all of a row, with no effect on their quotients. 0 for all where top is -inf.
struct Level {
  bool calm;
  float shift, scaled;

  __device__ explicit Level(float top)
      : calm(fabsf(top) < CALM), shift(calm || top == -INFINITY ? 0.0f : top), scaled(calm ? top * LOG2E : 0.0f) {}

  __device__ float exp(float logit) const { return quick_exp2(fmaf(fminf(logit, Real<float>::max) - shift, LOG2E, -scaled)); }
};

// The sum of a lane's values, by a tree.
template <int N> __device__ inline float sum_of(const float (&values)[N]) {
  float sums[N];
#pragma unroll
  for (int i = 0; i < N; ++i) sums[i] = values[i];
#pragma unroll
  for (int distance = 1; distance < N; distance *= 2) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i % (2 * distance) == 0 && i + distance < N) sums[i] += sums[i + distance];
    }
  }
  return sums[0];
}

// e^(logit - top) of a row; returns the sum over the token's lanes.
template <class S> __device__ inline float exponentials(const Row<S::CHUNKS> &row, const Level &level, Row<S::CHUNKS> &to) {
  if (level.calm) {
#pragma unroll
    for (int i = 0; i < S::N; ++i) to.at[i] = quick_exp2(fmaf(row.at[i], LOG2E, -level.scaled));
  } else {
#pragma unroll
    for (int i = 0; i < S::N; ++i) to.at[i] = level.exp(row.at[i]);
  }
  return sum_over(sum_of(to.at), S::LANES);
}

// 1/x and ln x to a few units in the last place.
__device__ inline float quick_inverse(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ inline float quick_log(float x) {
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result * 0.69314718f;
}

// 1/n, of the tokens that the aux loss divides by squared; 0 without tokens.
__device__ inline float inverse_tokens(const RouterLosses &losses, float real) {
  const float n = losses.global && losses.global_tokens != nullptr ? *losses.global_tokens : real;
  return n > 0 ? quick_inverse(n) : 0.0f;
}

}  // namespace router
