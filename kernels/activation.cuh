// The table of activations: a curve of the clamped gate, times the clamped and shifted up half (src/cpu/activation.rs
// is the CPU's). Several elements at a time, so that the curve is chosen once for all of them.
#pragma once

#include "params/activation.h"

template <int N> using Floats = float[N];

// The curve's values and slopes. NaN stays NaN; the slope of a kink is that of the side below it. WIDE: to all digits of fp32
// where 1 + erf(x) would cancel, too.
template <int N, bool WIDE = false>
__device__ inline void curve(const Formula &f, const Floats<N> &x, Floats<N> &value, Floats<N> &slope) {
  switch (f.curve) {
  case CURVE_SWISH:
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const float ax = f.alpha * x[e];
      const float s = __fdividef(1.0f, 1.0f + expf(-ax));
      value[e] = x[e] * s;
      slope[e] = s * (1.0f + ax * (1.0f - s));
    }
    break;
  case CURVE_GELU_ERF:
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const float cdf = WIDE ? 0.5f * erfcf(x[e] * -0.70710678f) : 0.5f * (1.0f + erff(x[e] * 0.70710678f));
      value[e] = x[e] * cdf;
      slope[e] = cdf + x[e] * (0.39894228f * expf(-0.5f * x[e] * x[e]));
    }
    break;
  case CURVE_GELU_TANH:
#pragma unroll
    for (int e = 0; e < N; ++e) {
      // From 10 on the exponential is as good as 0 or infinite, and x^2 would overflow.
      const float c = fminf(fmaxf(x[e], -10.0f), 10.0f);
      // 1 + tanh(u) is 2 / (1 + e^-2u), of which nothing cancels.
      const float s = __fdividef(1.0f, 1.0f + expf(c * (-1.5957691f - 0.071354816f * c * c)));
      value[e] = x[e] * s;
      slope[e] = s + value[e] * (1.0f - s) * (1.5957691f + 0.21406445f * c * c);
    }
    break;
  case CURVE_RELU:
#pragma unroll
    for (int e = 0; e < N; ++e) {
      value[e] = x[e] <= 0.0f ? 0.0f : x[e];
      slope[e] = x[e] <= 0.0f ? 0.0f : 1.0f;
    }
    break;
  default:
#pragma unroll
    for (int e = 0; e < N; ++e) {
      value[e] = x[e] <= 0.0f ? 0.0f : x[e] * x[e];
      slope[e] = x[e] <= 0.0f ? 0.0f : 2.0f * x[e];
    }
  }
}

// act(gate, up); without a gate, `gate` is all there is.
template <int N, bool WIDE = false>
__device__ inline void activate(const Formula &f, const Floats<N> &gate, const Floats<N> &up, Floats<N> &act) {
  Floats<N> x, slope;
#pragma unroll
  for (int e = 0; e < N; ++e) x[e] = gate[e] > f.limit ? f.limit : gate[e];
  curve<N, WIDE>(f, x, act, slope);
  if (!f.gated) return;
#pragma unroll
  for (int e = 0; e < N; ++e) {
    act[e] *= (up[e] > f.limit ? f.limit : up[e] < -f.limit ? -f.limit : up[e]) + f.shift;
  }
}

// The same with its derivatives, over gate and up: each is 0 where a clamp holds it, 1 of it on the boundary.
template <int N, bool WIDE = false>
__device__ inline void activate_gradient(const Formula &f, Floats<N> &gate, Floats<N> &up, Floats<N> &act) {
  Floats<N> x, slope;
#pragma unroll
  for (int e = 0; e < N; ++e) x[e] = gate[e] > f.limit ? f.limit : gate[e];
  curve<N, WIDE>(f, x, act, slope);
#pragma unroll
  for (int e = 0; e < N; ++e) {
    const bool gate_held = gate[e] > f.limit;
    if (f.gated) {
      const float value = act[e];
      const float clamped = (up[e] > f.limit ? f.limit : up[e] < -f.limit ? -f.limit : up[e]) + f.shift;
      act[e] = value * clamped;
      gate[e] = gate_held ? 0.0f : slope[e] * clamped;
      up[e] = up[e] > f.limit || up[e] < -f.limit ? 0.0f : value;
    } else {
      gate[e] = slope[e];
    }
  }
}

// silu(gate) * up with nothing clamped, as most models have it: kernels that hold a tile in registers have code for it.
__device__ inline bool is_swiglu(const Formula &f) {
  return f.curve == CURVE_SWISH && f.gated && f.alpha == 1.0f && f.shift == 0.0f && f.limit == INFINITY;
}

// 1 / (1 + e^-x) to a few units in the last place. What is flushed to zero would be lost beside 1.
__device__ inline float sigmoid(float x) {
  float result;
  x *= -1.4426950408889634f;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return __fdividef(1.0f, 1.0f + result);
}

template <int N> __device__ inline void swiglu(const Floats<N> &gate, const Floats<N> &up, Floats<N> &act) {
#pragma unroll
  for (int e = 0; e < N; ++e) act[e] = gate[e] * sigmoid(gate[e]) * up[e];
}

// With its derivatives, over gate and up.
template <int N> __device__ inline void swiglu_gradient(Floats<N> &gate, Floats<N> &up, Floats<N> &act) {
#pragma unroll
  for (int e = 0; e < N; ++e) {
    const float s = sigmoid(gate[e]), value = gate[e] * s;
    act[e] = value * up[e];
    // s (1 + gate (1 - s)) = s + value (1 - s)
    gate[e] = (s + value * (1.0f - s)) * up[e];
    up[e] = value;
  }
}
