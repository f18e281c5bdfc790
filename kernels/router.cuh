// Scores of logits, padding and sequences: what the router's kernels share. R is the type of their mathematics.
#pragma once

#include "count.cuh"
#include "dtype.cuh"
#include "params/topk.h"

namespace router {

constexpr unsigned ALL = 0xffffffffu;
constexpr int WARPS = ROUTER_THREADS / 32;

__device__ inline int lane_id() { return threadIdx.x % 32; }

template <class R> struct Real;
template <> struct Real<float> {
  static constexpr float max = 3.402823466e38f;
};
template <> struct Real<double> {
  static constexpr double max = 1.7976931348623157e308;
};

template <class R> __device__ inline R infinity() { return static_cast<R>(INFINITY); }

// Element (token, expert) of the logits; NaN is -inf and reported.
__device__ inline float load_logit(const Matrix &logits, int64_t token, int expert, int experts, moe_device_report_t *report) {
  const float value = load_float(logits, token * logits.pitch + expert);
  if (value == value) return value;
  record_fault(report, MOE_FAULT_NAN_LOGIT, token * experts + expert, 0);
  return -INFINITY;
}

// +inf counts as the largest finite number.
template <class R> __device__ inline R clamped(R logit) { return min(logit, Real<R>::max); }

// e^(logit - top), where top is the largest, made finite; 0 for -inf.
template <class R> __device__ inline R exp_below(R logit, R top) { return exp(clamped(logit) - top); }

template <class R> __device__ inline R sigmoid(R logit) {
  const R small = exp(-abs(logit));
  return (logit < 0 ? small : R(1)) / (1 + small);
}

// Below -40, softplus(L) is e^L to all digits, and its root is taken before it underflows.
template <class R> __device__ inline R score(int function, R logit) {
  logit = clamped(logit);
  if (function == MOE_SCORE_SIGMOID) return sigmoid(logit);
  if (logit < -40) return exp(logit / 2);
  return sqrt(max(logit, R(0)) + log1p(exp(-abs(logit))));
}

// ds/dL; 0 at -inf.
template <class R> __device__ inline R derivative(int function, R logit) {
  logit = clamped(logit);
  if (function == MOE_SCORE_SIGMOID) return sigmoid(logit) * sigmoid(-logit);
  if (logit < -40) return exp(logit / 2) / 2;
  return sigmoid(logit) / (2 * score(function, logit));
}

// Over `lanes` neighbouring lanes, a power of two; all of them get the result.
template <class R> __device__ inline R sum_over(R value, int lanes) {
#pragma unroll
  for (int distance = 16; distance > 0; distance >>= 1) {
    if (distance < lanes) value += __shfl_xor_sync(ALL, value, distance);
  }
  return value;
}

template <class R> __device__ inline R max_over(R value, int lanes) {
#pragma unroll
  for (int distance = 16; distance > 0; distance >>= 1) {
    if (distance < lanes) value = max(value, __shfl_xor_sync(ALL, value, distance));
  }
  return value;
}

// The sum over the block's threads in a fixed order, for thread 0. May be called again at once.
__device__ inline double block_sum(double value) {
  __shared__ double sums[WARPS];
  value = sum_over(value, 32);
  if (lane_id() == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  value = 0;
  for (int warp = 0; warp < blockDim.x / 32; ++warp) value += sums[warp];
  __syncthreads();
  return value;
}

__device__ inline bool is_real(const RouterLosses &losses, int64_t token) {
  return losses.padding_mask == nullptr || losses.padding_mask[token] != 0;
}

// The tokens of a sequence: begin, begin + step, ..., below end.
struct Span {
  int64_t begin;
  int64_t end;
  int64_t step;

  __device__ int64_t count() const { return begin < end ? (end - begin + step - 1) / step : 0; }
};

__device__ inline Span span_of(const RouterLosses &losses, int64_t sequence, int64_t tokens) {
  switch (losses.layout) {
  case MOE_SEQUENCE_MINOR: return {sequence, tokens, losses.sequences};
  case MOE_SEQUENCE_OFFSETS:
    return {max(losses.sequence_offsets[sequence], int64_t(0)), min(losses.sequence_offsets[sequence + 1], tokens), 1};
  default:
    if (losses.sequences == 1) return {0, tokens, 1};
    return {sequence * losses.length, min((sequence + 1) * losses.length, tokens), 1};
  }
}

// The sequence of a token, or -1.
__device__ inline int64_t sequence_of(const RouterLosses &losses, int64_t token) {
  if (losses.sequences == 1 && losses.layout != MOE_SEQUENCE_OFFSETS) return 0;
  if (losses.layout == MOE_SEQUENCE_MINOR) return token % losses.sequences;
  if (losses.layout == MOE_SEQUENCE_MAJOR) return token / losses.length;
  // The last sequence that begins at or before the token.
  int64_t low = -1, high = losses.sequences;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (losses.sequence_offsets[middle] <= token ? low : high) = middle;
  }
  return low >= 0 && token < losses.sequence_offsets[low + 1] ? low : -1;
}

// Reports offsets that go down, the block's share of them.
__device__ inline void check_offsets(const RouterLosses &losses, moe_device_report_t *report) {
  if (!losses.aux || losses.layout != MOE_SEQUENCE_OFFSETS) return;
  for (int64_t s = blockIdx.x * blockDim.x + threadIdx.x; s < losses.sequences; s += gridDim.x * blockDim.x) {
    const int64_t begin = losses.sequence_offsets[s];
    if (begin < 0 || begin > losses.sequence_offsets[s + 1]) record_fault(report, MOE_FAULT_GROUP_OFFSET, s, begin);
  }
}

// 1/n^2 of the tokens that the aux loss divides by; 0 without tokens.
__device__ inline double inverse_square(const RouterLosses &losses, int64_t tokens) {
  const bool given = losses.global && losses.global_tokens != nullptr;
  const double n = given ? double(*losses.global_tokens) : double(tokens);
  return n > 0 ? 1 / (n * n) : 0;
}

}  // namespace router
