// The router's GEMM by plain multiplication, for any dtype and alignment, in fp32 or fp64.

#include "router_gate.cuh"

namespace {

using namespace gate;

constexpr int TILE = GATE_PLAIN, DEPTH = 16, THREADS = 256;

// One tile of C[m, n] = sum_k a(m, k) * b(k, n). Neighbouring threads load along k, or along m or n, as memory lies.
template <class R, bool A_ALONG_K, bool B_ALONG_K, class A, class B, class Store>
__device__ inline void product(int64_t m0, int64_t m_end, int64_t n0, int64_t n_end, int64_t begin, int64_t end, A a, B b,
                               Store store) {
  __shared__ R as[DEPTH][TILE + 2], bs[DEPTH][TILE + 2];
  const int tm = threadIdx.x / 16 * 4, tn = threadIdx.x % 16 * 4;
  R sums[4][4] = {};
  for (int64_t k0 = begin; k0 < end; k0 += DEPTH) {
#pragma unroll
    for (int i = 0; i < TILE * DEPTH / THREADS; ++i) {
      const int at = threadIdx.x + THREADS * i;
      const int ka = A_ALONG_K ? at % DEPTH : at / TILE, m = A_ALONG_K ? at / DEPTH : at % TILE;
      const int kb = B_ALONG_K ? at % DEPTH : at / TILE, n = B_ALONG_K ? at / DEPTH : at % TILE;
      as[ka][m] = m0 + m < m_end && k0 + ka < end ? R(a(m0 + m, k0 + ka)) : R(0);
      bs[kb][n] = n0 + n < n_end && k0 + kb < end ? R(b(k0 + kb, n0 + n)) : R(0);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < DEPTH; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] += as[k][tm + i] * bs[k][tn + j];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (m0 + tm + i < m_end && n0 + tn + j < n_end) store(m0 + tm + i, n0 + tn + j, sums[i][j]);
    }
  }
}

__device__ inline float rounded(Dtype dtype, float value) {
  switch (dtype) {
  case MOE_DTYPE_FP16: return __half2float(__float2half_rn(value));
  case MOE_DTYPE_BF16: return __bfloat162float(__float2bfloat16_rn(value));
  default: return value;
  }
}

// x as the router reads it.
struct Input {
  const RouterGateParams &p;
  Philox random;

  __device__ explicit Input(const RouterGateParams &p) : p(p), random(p.random) {}

  __device__ float factor(int64_t token, int64_t column) const {
    return jitter_of(p.eps, random.element(static_cast<uint64_t>(token) * p.hidden + column));
  }

  __device__ float operator()(int64_t token, int64_t column) const {
    const float value = load_float(p.x, token * p.x.pitch + column);
    return p.jitter ? rounded(p.x.dtype, __fmul_rn(value, factor(token, column))) : value;
  }
};

template <class R> __device__ inline void store_real(const Matrix &matrix, int64_t at, R value) {
  store_float(matrix, at, static_cast<float>(value));
}

template <class R> __device__ inline void forward(const RouterGateParams &p) {
  const int64_t tokens = true_count(p.tokens, p.report), first = int64_t(blockIdx.x) * TILE;
  if (first >= tokens) return;
  const Input input(p);
  const bool out = p.jittered_x.data != nullptr && blockIdx.y == 0;
  const auto x = [&](int64_t token, int64_t column) {
    const float value = input(token, column);
    if (out) store_float(p.jittered_x, token * p.jittered_x.pitch + column, value);
    return value;
  };
  const auto weight = [&](int64_t column, int64_t expert) { return load_float(p.weight, expert * p.weight.pitch + column); };
  R *const parts = reinterpret_cast<R *>(p.partials) + int64_t(blockIdx.z) * p.tokens.bound * p.experts;
  const auto store = [&](int64_t token, int64_t expert, R sum) {
    if (p.partials != nullptr) {
      parts[token * p.experts + expert] = sum;
    } else {
      store_real(p.logits, token * p.logits.pitch + expert, p.bias.data != nullptr ? sum + R(load_float(p.bias, expert)) : sum);
    }
  };
  const int64_t begin = blockIdx.z * p.span;
  product<R, true, true>(first, tokens, int64_t(blockIdx.y) * TILE, p.experts, begin, min(begin + p.span, p.hidden), x, weight, store);
}

template <class R> __device__ inline void input_gradient(const RouterGateParams &p) {
  const int64_t tokens = true_count(p.tokens, p.report), first = int64_t(blockIdx.x) * TILE;
  if (first >= tokens) return;
  const Input input(p);
  const bool add = adds(p.dx_mode);
  const auto grad = [&](int64_t token, int64_t expert) { return load_float(p.dlogits, token * p.dlogits.pitch + expert); };
  const auto weight = [&](int64_t expert, int64_t column) { return load_float(p.weight, expert * p.weight.pitch + column); };
  const auto store = [&](int64_t token, int64_t column, R sum) {
    const int64_t at = token * p.dx.pitch + column;
    if (p.jitter) sum *= input.factor(token, column);
    store_real(p.dx, at, add ? sum + R(load_float(p.dx, at)) : sum);
  };
  for (int64_t column = int64_t(blockIdx.y) * TILE; column < p.hidden; column += int64_t(gridDim.y) * TILE) {
    product<R, true, false>(first, tokens, column, p.hidden, 0, p.experts, grad, weight, store);
  }
}

template <class R> __device__ inline void weight_gradient(const RouterGateParams &p) {
  const int64_t tokens = true_count(p.tokens, p.report), begin = blockIdx.z * p.span;
  const Input input(p);
  const auto grad = [&](int64_t expert, int64_t token) { return load_float(p.dlogits, token * p.dlogits.pitch + expert); };
  R *const parts = reinterpret_cast<R *>(p.partials) + int64_t(blockIdx.z) * p.experts * p.hidden;
  const auto store = [&](int64_t expert, int64_t column, R sum) { parts[expert * p.hidden + column] = sum; };
  product<R, false, false>(int64_t(blockIdx.y) * TILE, p.experts, int64_t(blockIdx.x) * TILE, p.hidden, min(begin, tokens),
                           min(begin + p.span, tokens), grad, [&](int64_t token, int64_t column) { return input(token, column); }, store);
}

}  // namespace

#define ROUTER_LOGITS_KERNEL(NAME, BODY) \
  extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ RouterGateParams p) { BODY(p); }

ROUTER_LOGITS_KERNEL(router_logits_fwd_plain, forward<float>)
ROUTER_LOGITS_KERNEL(router_logits_fwd_plain_fp64, forward<double>)
ROUTER_LOGITS_KERNEL(router_logits_dx_plain, input_gradient<float>)
ROUTER_LOGITS_KERNEL(router_logits_dx_plain_fp64, input_gradient<double>)
ROUTER_LOGITS_KERNEL(router_logits_dweight_plain, weight_gradient<float>)
ROUTER_LOGITS_KERNEL(router_logits_dweight_plain_fp64, weight_gradient<double>)
