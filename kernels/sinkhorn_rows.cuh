// Rows of logits for Sinkhorn: how lanes share them, their terms, and sums over columns.
#pragma once

#include "count.cuh"
#include "dtype.cuh"
#include "params/sinkhorn.h"

namespace {

// Threads a block where a lane has N columns: more columns need more registers.
template <int N> constexpr int THREADS = N > 16 ? 256 : 512;
template <int N> constexpr int WARPS = THREADS<N> / 32;
constexpr unsigned ALL = 0xffffffffu;
constexpr float EPSILON = 1e-8f;
constexpr float LOG_EPSILON = -18.420680744f;
constexpr float LARGEST = 3.402823466e38f;

// A row belongs to `lanes` neighbouring lanes; each has N columns, in quads: 4*(lane + lanes*j) + i.
template <int N> struct Row {
  float at[N];
};

// What columns are joined by: the maximum, or the sum.
__device__ __forceinline__ float join(bool maximum, float a, float b) { return maximum ? fmaxf(a, b) : a + b; }

// Over so many neighbouring lanes; each gets the result.
__device__ __forceinline__ float over_lanes(bool maximum, float value, int lanes) {
#pragma unroll
  for (int distance = 16; distance > 0; distance >>= 1)
    if (distance < lanes) value = join(maximum, value, __shfl_xor_sync(ALL, value, distance));
  return value;
}

// log(exp(a) + exp(b)), b finite.
__device__ __forceinline__ float log_add(float a, float b) { return fmaxf(a, b) + log1pf(expf(-fabsf(a - b))); }

// log d1 from a column's sum that the gauge g gave.
__device__ __forceinline__ float log_next(float g, float sum, int experts) {
  return g - logf(static_cast<float>(experts)) - log_add(logf(sum), LOG_EPSILON + g);
}

// log 1/(T*(exp(shift)*sum + eps)).
__device__ __forceinline__ float log_scale(float shift, float sum, float tokens) {
  return -logf(tokens) - log_add(shift + logf(sum), LOG_EPSILON);
}

// The geometry of a launch and this thread's place in it.
struct Place {
  const SinkhornRows &rows;
  int lanes, lane, group, groups;
  // The block's tokens.
  int64_t first;
  int count;

  // `lanes` are rows.lanes: a constant, where the caller knows it.
  __device__ Place(const SinkhornRows &rows, int lanes, int64_t tokens)
      : rows(rows), lanes(lanes), lane(threadIdx.x % lanes), group(threadIdx.x / lanes), groups(blockDim.x / lanes) {
    const int64_t share = (tokens + gridDim.x - 1) / gridDim.x;
    first = min(tokens, share * blockIdx.x);
    count = static_cast<int>(min(tokens - first, share));
  }

  __device__ __forceinline__ int quad(int j) const { return 4 * (lane + lanes * j); }
};

template <class T> __device__ __forceinline__ void store_quad(T *data, const float (&x)[4]) {
  struct alignas(4 * sizeof(T)) Quad {
    T at[4];
  } quad;
#pragma unroll
  for (int i = 0; i < 4; ++i) quad.at[i] = from_float<T>(x[i]);
  *reinterpret_cast<Quad *>(data) = quad;
}

// A row's logits as they lie in memory: to convert them would be to wait for them. Of 16-bit ones two words have a quad, or each
// word has one where rows cannot be read by quads.
template <int N> struct Words {
  uint32_t at[N];
};

// Of the block's row; -inf beyond the rows and the experts.
template <int N> __device__ __forceinline__ Words<N> load_words(const Place &place, int row) {
  const Matrix &logits = place.rows.logits;
  const int experts = place.rows.experts;
  const uint32_t nothing = logits.dtype == MOE_DTYPE_FP32 ? 0xff800000u : logits.dtype == MOE_DTYPE_BF16 ? 0xff80ff80u : 0xfc00fc00u;
  Words<N> words;
#pragma unroll
  for (int k = 0; k < N; ++k) words.at[k] = nothing;
  if (row >= place.count) return words;
  const int64_t at = (place.first + row) * logits.pitch;
  if (logits.dtype == MOE_DTYPE_FP32) {
    const uint32_t *const data = reinterpret_cast<const uint32_t *>(logits.data) + at;
    if (place.rows.quads) {
#pragma unroll
      for (int j = 0; j < N / 4; ++j)
        if (place.quad(j) < experts) {
          const uint4 quad = *reinterpret_cast<const uint4 *>(data + place.quad(j));
          words.at[4 * j] = quad.x, words.at[4 * j + 1] = quad.y, words.at[4 * j + 2] = quad.z, words.at[4 * j + 3] = quad.w;
        }
    } else {
#pragma unroll
      for (int k = 0; k < N; ++k)
        if (place.quad(k / 4) + k % 4 < experts) words.at[k] = data[place.quad(k / 4) + k % 4];
    }
  } else {
    const uint16_t *const data = reinterpret_cast<const uint16_t *>(logits.data) + at;
    if (place.rows.quads) {
#pragma unroll
      for (int j = 0; j < N / 4; ++j)
        if (place.quad(j) < experts) {
          const uint2 quad = *reinterpret_cast<const uint2 *>(data + place.quad(j));
          words.at[4 * j] = quad.x, words.at[4 * j + 1] = quad.y;
        }
    } else {
#pragma unroll
      for (int k = 0; k < N; ++k)
        if (place.quad(k / 4) + k % 4 < experts) words.at[k] = data[place.quad(k / 4) + k % 4];
    }
  }
  return words;
}

// NaN is -inf and reported, +inf the largest number.
template <int N>
__device__ __forceinline__ Row<N> to_logits(const Place &place, const Words<N> &words, int row, moe_device_report_t *report) {
  const Dtype dtype = place.rows.logits.dtype;
  Row<N> x;
  if (dtype == MOE_DTYPE_FP32) {
#pragma unroll
    for (int k = 0; k < N; ++k) x.at[k] = __uint_as_float(words.at[k]);
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const uint32_t pair = words.at[k / 4 * 4 + k % 4 / 2];
      const uint32_t bits = (place.rows.quads ? (k % 2 == 0 ? pair : pair >> 16) : words.at[k]) & 0xffff;
      x.at[k] = dtype == MOE_DTYPE_BF16 ? __uint_as_float(bits << 16) : __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
    }
  }
  int fault = -1;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if (isnan(x.at[k])) fault = place.quad(k / 4) + k % 4;
    x.at[k] = isnan(x.at[k]) ? -INFINITY : fminf(x.at[k], LARGEST);
  }
  if (fault >= 0) record_fault(report, MOE_FAULT_NAN_LOGIT, (place.first + row) * place.rows.experts + fault, 0);
  return x;
}

template <int N> __device__ __forceinline__ Row<N> load_logits(const Place &place, int row, moe_device_report_t *report) {
  return to_logits<N>(place, load_words<N>(place, row), row, report);
}

// Turns logits into terms and returns their shift: -inf, and terms of 0, where all logits are -inf. The largest logit goes first,
// so that large ones cost none of the gauge's digits. gauge == nullptr: 0.
template <int N> __device__ __forceinline__ float make_terms(const Place &place, Row<N> &x, const float *gauge) {
  float top = -INFINITY;
#pragma unroll
  for (int k = 0; k < N; ++k) top = fmaxf(top, x.at[k]);
  top = over_lanes(true, top, place.lanes);
  const float origin = fmaxf(top, -LARGEST);
  float best = 0;
  if (gauge != nullptr) {
    best = -INFINITY;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      x.at[k] = x.at[k] - origin + gauge[place.quad(k / 4) + k % 4];
      best = fmaxf(best, x.at[k]);
    }
    best = fmaxf(over_lanes(true, best, place.lanes), -LARGEST);
#pragma unroll
    for (int k = 0; k < N; ++k) x.at[k] = expf(x.at[k] - best);
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) x.at[k] = expf(x.at[k] - origin);
  }
  return top + best;
}

// sum_e u_e * x_e; u in registers, or in shared memory where these are short.
template <int N> __device__ __forceinline__ float dot(const Place &place, const Row<N> &x, const Row<N> &u) {
  float sums[4] = {0, 0, 0, 0};
#pragma unroll
  for (int k = 0; k < N; ++k) sums[k % 4] = fmaf(u.at[k], x.at[k], sums[k % 4]);
  return over_lanes(false, (sums[0] + sums[1]) + (sums[2] + sums[3]), place.lanes);
}

template <int N> __device__ __forceinline__ float dot(const Place &place, const Row<N> &x, const float *u) {
  float sums[4] = {0, 0, 0, 0};
#pragma unroll
  for (int j = 0; j < N / 4; ++j) {
    const float4 quad = *reinterpret_cast<const float4 *>(u + place.quad(j));
    sums[0] = fmaf(quad.x, x.at[4 * j], sums[0]);
    sums[1] = fmaf(quad.y, x.at[4 * j + 1], sums[1]);
    sums[2] = fmaf(quad.z, x.at[4 * j + 2], sums[2]);
    sums[3] = fmaf(quad.w, x.at[4 * j + 3], sums[3]);
  }
  return over_lanes(false, (sums[0] + sums[1]) + (sums[2] + sums[3]), place.lanes);
}

// eps in a row that was shifted: infinite where it is beyond fp32.
__device__ __forceinline__ float shifted_epsilon(float shift) { return EPSILON * expf(-shift); }

// What a row's terms are multiplied by; 0 where its eps is beyond fp32.
__device__ __forceinline__ float row_scale(float sum, float epsilon, float tokens) {
  return __fdividef(1.0f, tokens * (sum + epsilon));
}

template <int N> __device__ Row<N> load_columns(const Place &place, const float *columns) {
  Row<N> row;
#pragma unroll
  for (int j = 0; j < N / 4; ++j) {
    const float4 quad = *reinterpret_cast<const float4 *>(columns + place.quad(j));
    row.at[4 * j] = quad.x, row.at[4 * j + 1] = quad.y, row.at[4 * j + 2] = quad.z, row.at[4 * j + 3] = quad.w;
  }
  return row;
}

template <int N> __device__ __forceinline__ void store_columns(const Place &place, float *columns, const Row<N> &row) {
#pragma unroll
  for (int j = 0; j < N / 4; ++j)
    *reinterpret_cast<float4 *>(columns + place.quad(j)) =
        make_float4(row.at[4 * j], row.at[4 * j + 1], row.at[4 * j + 2], row.at[4 * j + 3]);
}

template <int N> __device__ Row<N> filled(float value) {
  Row<N> row;
#pragma unroll
  for (int k = 0; k < N; ++k) row.at[k] = value;
  return row;
}

// Joins a lane's columns with those of the lanes that have the same ones, `distance`, 2*distance, ... 16 apart, into
// columns[0 .. width). At each step a lane hands on half of the columns it still has: COUNT of them, from `first` on.
template <int COUNT, int N>
__device__ __forceinline__ void join_warp(bool maximum, Row<N> &row, int distance, int first, bool writes, const Place &place, float *columns) {
  if (distance == 32) {
#pragma unroll
    for (int k = 0; k < COUNT; ++k) {
      if (writes) columns[place.quad((first + k) / 4) + (first + k) % 4] = row.at[k];
    }
    return;
  }
  const bool upper = threadIdx.x & distance;
  if constexpr (COUNT > 1) {
    constexpr int HALF = COUNT / 2;
#pragma unroll
    for (int k = 0; k < HALF; ++k) {
      const float given = upper ? row.at[k] : row.at[k + HALF], kept = upper ? row.at[k + HALF] : row.at[k];
      row.at[k] = join(maximum, kept, __shfl_xor_sync(ALL, given, distance));
    }
    join_warp<HALF>(maximum, row, 2 * distance, upper ? first + HALF : first, writes, place, columns);
  } else {
    row.at[0] = join(maximum, row.at[0], __shfl_xor_sync(ALL, row.at[0], distance));
    join_warp<1>(maximum, row, 2 * distance, first, writes && !upper, place, columns);
  }
}

// Joins the columns of a warp's threads into `own`[0 .. width).
template <int N> __device__ __forceinline__ void over_warp(bool maximum, const Place &place, Row<N> &row, float *own) {
  if (place.lanes == 32) {
    store_columns(place, own, row);
  } else {
    join_warp<N>(maximum, row, place.lanes, 0, true, place, own);
  }
}

// Joins the columns of all threads of the block into columns[0 .. width), in an order that is always the same; `scratch` has
// a row of `width` for each warp. Synchronises before it returns.
template <int N> __device__ __forceinline__ void over_block(bool maximum, const Place &place, Row<N> &row, float *scratch, float *columns) {
  const int width = place.lanes * N;
  over_warp(maximum, place, row, scratch + threadIdx.x / 32 * width);
  __syncthreads();
  for (int column = threadIdx.x; column < width; column += blockDim.x) {
    float value = scratch[column];
#pragma unroll
    for (int warp = 1; warp < WARPS<N>; ++warp) value = join(maximum, value, scratch[warp * width + column]);
    columns[column] = value;
  }
  __syncthreads();
}

// Calls visit(logits, row) for the block's rows from `begin` on, a step of rows at a time. While one row is at work the next is on
// its way, if registers are enough for two.
template <int N, class Visit>
__device__ __forceinline__ void stream(const Place &place, int begin, moe_device_report_t *report, const Visit &visit) {
  constexpr bool ahead = N <= 16;
  if (begin >= place.count) return;
  Words<N> next;
  if constexpr (ahead) next = load_words<N>(place, begin + place.group);
#pragma unroll 1
  for (int base = begin; base < place.count; base += place.groups) {
    const int row = base + place.group;
    const Words<N> words = ahead ? next : load_words<N>(place, row);
    if constexpr (ahead) next = load_words<N>(place, row + place.groups);
    Row<N> x = to_logits<N>(place, words, row, report);
    visit(x, row);
  }
}

// The block's largest logit of each column.
template <int N> __device__ __forceinline__ Row<N> column_maxima(const Place &place, moe_device_report_t *report) {
  Row<N> maxima = filled<N>(-INFINITY);
  stream<N>(place, 0, report, [&](const Row<N> &x, int) {
#pragma unroll
    for (int k = 0; k < N; ++k) maxima.at[k] = fmaxf(maxima.at[k], x.at[k]);
  });
  return maxima;
}

// The block's column sums of exp(L - maxima).
template <int N> __device__ __forceinline__ Row<N> column_exponentials(const Place &place, const float *maxima, moe_device_report_t *report) {
  const Row<N> tops = load_columns<N>(place, maxima);
  Row<N> sums = filled<N>(0);
  stream<N>(place, 0, report, [&](const Row<N> &x, int) {
#pragma unroll
    for (int k = 0; k < N; ++k) sums.at[k] += expf(x.at[k] - fmaxf(tops.at[k], -LARGEST));
  });
  return sums;
}

} // namespace
