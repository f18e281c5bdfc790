// Logits on tensor cores: [T, E] = x[T, d] * weight[E, d]^T.
//
// A block has 128 tokens and a tile of experts, and streams 64 elements of each row at a time through a ring of stages in
// shared memory. x passes once; the experts' tile comes from the L2 cache.

#include "router_gate.cuh"

namespace {

using namespace gate;

constexpr int TOKENS = GATE_TOKENS;

constexpr int THREADS = 512;

template <class T, int EXPERTS> struct Shape {
  static constexpr int STAGES = EXPERTS == 64 || EXPERTS == 256 ? 4 : 5;
  // A warp's tokens and experts.
  static constexpr int ROWS = EXPERTS >= 128 ? 32 : 16;
  static constexpr int COLUMNS = EXPERTS >= 64 ? 64 : EXPERTS;
  // Groups of warps that share the elements of a step; each has all tokens and experts.
  static constexpr int GROUP = TOKENS / ROWS * (EXPERTS / COLUMNS) * 32, GROUPS = THREADS / GROUP;
  static constexpr uint32_t X_BYTES = TOKENS * STEP * 2;
  static constexpr uint32_t BYTES = X_BYTES + EXPERTS * STEP * 2;
};

// The thread's own chunks of x in a stage, which have arrived, with jitter; `out`: this block writes jittered_x.
template <class T>
__device__ inline void jitter_tile(const RouterGateParams &p, const Philox &random, char *tile, int64_t token, int64_t tokens,
                                   int64_t column, bool out) {
  const int64_t first = column + threadIdx.x % 8 * 8;
  for (int row = threadIdx.x / 8; row < TOKENS; row += THREADS / 8) {
    if (token + row >= tokens || first >= p.hidden) continue;
    Pack<T> *const place_of = reinterpret_cast<Pack<T> *>(tile + place(row, threadIdx.x % 8));
    Pack<T> chunk = *place_of;
    jitter_chunk(chunk.at, random, p.eps, static_cast<uint64_t>(token + row) * p.hidden + first);
    *place_of = chunk;
    if (!out) continue;
    T *const to = reinterpret_cast<T *>(p.jittered_x.data) + (token + row) * p.jittered_x.pitch + first;
    if (first + 8 <= p.hidden && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
      store_pack(to, chunk);
    } else {
#pragma unroll
      for (int c = 0; c < 8; ++c)
        if (first + c < p.hidden) to[c] = chunk.at[c];
    }
  }
}

template <class T, int EXPERTS> __device__ inline void forward(const RouterGateParams &p) {
  using S = Shape<T, EXPERTS>;
  extern __shared__ __align__(128) char shared[];
  const int64_t tokens = true_count(p.tokens, p.report), token = int64_t(blockIdx.x) * TOKENS;
  if (token >= tokens) return;
  const int expert = blockIdx.y * EXPERTS;
  const int64_t begin = blockIdx.z * p.span, end = min(begin + p.span, p.hidden);
  const int steps = static_cast<int>((end - begin + STEP - 1) / STEP);
  const uint32_t base = shared_address(shared);
  const Loader<T, TOKENS, THREADS> load_x(p.x, token, tokens);
  const Loader<T, EXPERTS, THREADS> load_weight(p.weight, expert, p.experts);
  const auto load = [&](int step) {
    if (step < steps) {
      const uint32_t stage = base + step % S::STAGES * S::BYTES;
      const int64_t column = begin + int64_t(step) * STEP;
      load_x.load(stage, column, p.hidden);
      load_weight.load(stage + S::X_BYTES, column, p.hidden);
    }
    cp_async_commit();
  };
#pragma unroll
  for (int step = 0; step < S::STAGES - 1; ++step) load(step);

  constexpr int M = S::ROWS / 16, N = S::COLUMNS / 16;
  const int group = threadIdx.x / S::GROUP, warp = threadIdx.x % S::GROUP / 32, lane = threadIdx.x % 32;
  const int row = warp % (TOKENS / S::ROWS) * S::ROWS, column = warp / (TOKENS / S::ROWS) * S::COLUMNS;
  float sums[M][2 * N][4] = {};
  const bool out = p.jittered_x.data != nullptr && blockIdx.y == 0;
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<S::STAGES - 2>();
    const uint32_t offset = step % S::STAGES * S::BYTES;
    if (p.jitter) jitter_tile<T>(p, Philox(p.random), shared + offset, token, tokens, begin + int64_t(step) * STEP, out);
    __syncthreads();
    load(step + S::STAGES - 1);
    const uint32_t x = base + offset, weight = x + S::X_BYTES;
#pragma unroll 2
    for (int part = 0; part < STEP / 16 / S::GROUPS; ++part) {
      const int k = group * (STEP / 16 / S::GROUPS) + part;
      uint32_t a[M][4];
#pragma unroll
      for (int m = 0; m < M; ++m) ldmatrix(a[m], x + place(row + 16 * m + lane % 16, 2 * k + lane / 16));
#pragma unroll
      for (int n = 0; n < N; ++n) {
        uint32_t b[4];
        ldmatrix(b, weight + place(column + 16 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
#pragma unroll
        for (int m = 0; m < M; ++m) {
          mma(sums[m][2 * n], a[m], {b[0], b[1]}, T{});
          mma(sums[m][2 * n + 1], a[m], {b[2], b[3]}, T{});
        }
      }
    }
  }
  cp_async_wait<0>();
  if constexpr (S::GROUPS > 1) {
    // The second group hands its sums to the first.
    float *const handed = reinterpret_cast<float *>(shared) + threadIdx.x % S::GROUP;
    __syncthreads();
    if (group == 1) {
#pragma unroll
      for (int i = 0; i < M * 2 * N * 4; ++i) handed[i * S::GROUP] = sums[i / (8 * N)][i / 4 % (2 * N)][i % 4];
    }
    __syncthreads();
    if (group == 1) return;
#pragma unroll
    for (int i = 0; i < M * 2 * N * 4; ++i) sums[i / (8 * N)][i / 4 % (2 * N)][i % 4] += handed[i * S::GROUP];
  }

  float *const parts = reinterpret_cast<float *>(p.partials) + int64_t(blockIdx.z) * p.tokens.bound * p.experts;
#pragma unroll
  for (int n = 0; n < 2 * N; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int e = expert + column + 8 * n + lane % 4 * 2 + i;
      if (e >= p.experts) continue;
      const float bias = p.partials == nullptr && p.bias.data != nullptr ? load_float(p.bias, e) : 0.0f;
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int64_t t = token + row + 16 * m + 8 * half + lane / 4;
          if (t >= tokens) continue;
          const float value = sums[m][n][2 * half + i];
          if (p.partials != nullptr) {
            parts[t * p.experts + e] = value;
          } else {
            store_float(p.logits, t * p.logits.pitch + e, value + bias);
          }
        }
      }
    }
  }
}

}  // namespace

#define ROUTER_LOGITS_FWD(NAME, T, EXPERTS)                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                 \
      router_logits_fwd_##NAME##_##EXPERTS(const __grid_constant__ RouterGateParams p) { forward<T, EXPERTS>(p); }

ROUTER_LOGITS_FWD(bf16, __nv_bfloat16, 16)
ROUTER_LOGITS_FWD(bf16, __nv_bfloat16, 64)
ROUTER_LOGITS_FWD(bf16, __nv_bfloat16, 128)
ROUTER_LOGITS_FWD(bf16, __nv_bfloat16, 256)
ROUTER_LOGITS_FWD(fp16, __half, 16)
ROUTER_LOGITS_FWD(fp16, __half, 64)
ROUTER_LOGITS_FWD(fp16, __half, 128)
ROUTER_LOGITS_FWD(fp16, __half, 256)
