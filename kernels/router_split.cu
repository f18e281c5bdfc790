// The gradients of logits made ready: as one or two bf16 numbers each, in rows that TMA can copy, for
// kernels/hopper_gate_dx.cu and hopper_gate_dweight.cu; and summed over a block's tokens, for the gradient of the bias.
//
// An fp32 gradient is the sum of a bf16 number and a bf16 rest, which keeps 16 of its bits.

#include "count.cuh"
#include "dtype.cuh"
#include "overlap.cuh"
#include "params/logits_parts.h"

namespace {

constexpr int THREADS = 256, WIDTH = 8;

template <class T> __device__ inline void load(float (&to)[WIDTH], const T *from, int valid, bool packed) {
  if (packed && valid >= WIDTH) {
#pragma unroll
    for (int i = 0; i < WIDTH; i += Pack<T>::size) {
      const Pack<T> pack = load_pack(from + i);
#pragma unroll
      for (int j = 0; j < Pack<T>::size; ++j) to[i + j] = to_float(pack.at[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) to[i] = i < valid ? to_float(from[i]) : 0.0f;
  }
}

template <class T> __device__ inline void split(const RouterSplitParams &p, double *shared) {
  const int64_t tokens = true_count(p.tokens, p.report);
  const int64_t begin = min(blockIdx.x * p.span, tokens), end = min(begin + p.span, tokens);
  // Threads of a row have eight neighbouring experts each; a block has as many rows as that leaves.
  const int groups = (p.experts + WIDTH - 1) / WIDTH, rows = THREADS / groups;
  const int expert = threadIdx.x % groups * WIDTH, valid = p.experts - expert;
  const bool packed = reinterpret_cast<uintptr_t>(p.dlogits.data) % 16 == 0 && p.dlogits.pitch % Pack<T>::size == 0;
  const T *const from = reinterpret_cast<const T *>(p.dlogits.data) + expert;
  double sums[WIDTH] = {};
  const int64_t first = threadIdx.x < rows * groups ? begin + threadIdx.x / groups : end;
#pragma unroll 4
  for (int64_t token = first; token < end; token += rows) {
    float values[WIDTH];
    load(values, from + token * p.dlogits.pitch, valid, packed);
    if (p.parts != nullptr) {
      Pack<__nv_bfloat16> whole, rest;
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) {
        whole.at[i] = from_float<__nv_bfloat16>(values[i]);
        rest.at[i] = from_float<__nv_bfloat16>(values[i] - to_float(whole.at[i]));
      }
      __nv_bfloat16 *const to = reinterpret_cast<__nv_bfloat16 *>(p.parts) + token * p.pitch + expert;
      store_pack(to, whole);
      if (p.rest) store_pack(to + p.tokens.bound * p.pitch, rest);
    }
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) sums[i] += values[i];
  }
  if (p.dbias_parts == nullptr) return;
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) shared[i * THREADS + threadIdx.x] = sums[i];
  __syncthreads();
  for (int own = threadIdx.x; own < p.experts; own += THREADS) {
    double sum = 0;
    for (int row = 0; row < rows; ++row) sum += shared[own % WIDTH * THREADS + row * groups + own / WIDTH];
    p.dbias_parts[int64_t(blockIdx.x) * p.experts + own] = sum;
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS) router_logits_split(const __grid_constant__ RouterSplitParams p) {
  __shared__ double shared[WIDTH * THREADS];
  wait_for_launch_ahead();
  let_next_launch_begin();
  switch (p.dlogits.dtype) {
  case MOE_DTYPE_FP16: split<__half>(p, shared); break;
  case MOE_DTYPE_BF16: split<__nv_bfloat16>(p, shared); break;
  default: split<float>(p, shared);
  }
}
