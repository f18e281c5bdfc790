// Gradients of the router's GEMM on tensor cores: dx = dlogits * weight, and parts of dweight = dlogits^T * x.
//
// fp32 gradients beside bf16 operands are split into a bf16 number and a bf16 rest, which keeps 16 of their bits; the
// products of both are summed in fp32.

#include <type_traits>

#include "router_gate.cuh"

namespace {

using namespace gate;

constexpr int THREADS = 256, PAD = 8;

// Elements of a tile's row apart from the next: an odd number of 16 bytes, so that eight rows lie in different banks.
template <class T> struct Tile {
  char *data;
  int pitch;

  __device__ T *at(int row, int column) const { return reinterpret_cast<T *>(data) + row * pitch + column; }
  __device__ uint32_t address(int row, int column) const { return shared_address(at(row, column)); }
};

// A gradient as what tensor cores multiply: `lo` is used where gradients are fp32.
template <class T, bool SPLIT> struct Gradient {
  using Element = std::conditional_t<SPLIT, float, T>;
  Tile<T> hi, lo;

  __device__ Gradient(char *data, int rows, int pitch) : hi{data, pitch}, lo{data + rows * pitch * sizeof(T), pitch} {}

  __device__ static float load(const Matrix &dlogits, int64_t at) {
    return to_float(reinterpret_cast<const Element *>(dlogits.data)[at]);
  }

  __device__ void store(int row, int column, float value) const {
    const T whole = from_float<T>(value);
    *hi.at(row, column) = whole;
    if constexpr (SPLIT) *lo.at(row, column) = from_float<T>(value - to_float(whole));
  }
};

// Copies a tile of 16-bit elements from (row, column) on, COLUMNS wide; zeros behind the ends.
template <class T, int COLUMNS>
__device__ inline void load_rows(const Tile<T> &to, int rows, const Matrix &from, int64_t row, int64_t rows_end, int64_t column,
                                 int64_t columns_end) {
  constexpr int WIDTH = COLUMNS / 8, APART = THREADS / WIDTH;
  const int own = threadIdx.x / WIDTH, first = threadIdx.x % WIDTH * 8;
  const int left = static_cast<int>(min(columns_end - column, int64_t(COLUMNS))) - first;
  const int last = static_cast<int>(min(rows_end - row, int64_t(rows)));
  const uint32_t valid = 2 * min(max(left, 0), 8);
  const T *const data = reinterpret_cast<const T *>(from.data);
  const T *source = data + (row + own) * from.pitch + column + first;
  uint32_t target = to.address(own, first);
  for (int i = own; i < rows; i += APART) {
    const bool here = i < last && valid > 0;
    cp_async_16(target, here ? source : data, here ? valid : 0);
    source += APART * from.pitch;
    target += APART * to.pitch * sizeof(T);
  }
}

// b[16, 16] of a tile whose rows are the sum's elements: two operands of eight columns.
template <class T> __device__ inline void load_b(uint32_t (&b)[4], const Tile<T> &tile, int k, int column) {
  const int lane = threadIdx.x % 32;
  ldmatrix_transposed(b, tile.address(k + lane % 16, column + lane / 16 * 8));
}

// Transposes a 4 x 4 of words among four neighbouring lanes: lane t gets word t of each.
__device__ inline uint4 trade(const uint32_t (&own)[4], int lane) {
  uint32_t a[4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    // Halves of two words: lanes 0, 1 keep words 0, 1; lanes 2, 3 keep words 2, 3.
    const uint32_t got = __shfl_xor_sync(~0u, lane < 2 ? own[2 + i] : own[i], 2);
    a[i] = lane < 2 ? own[i] : got;
    a[2 + i] = lane < 2 ? got : own[2 + i];
  }
  uint32_t b[4];
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(~0u, lane % 2 == 0 ? a[i + 1] : a[i], 1);
    b[i] = lane % 2 == 0 ? a[i] : got;
    b[i + 1] = lane % 2 == 0 ? got : a[i + 1];
  }
  return {b[0], b[1], b[2], b[3]};
}

template <class T, bool SPLIT> __device__ inline void input_gradient(const RouterGateParams &p) {
  extern __shared__ __align__(128) char shared[];
  constexpr int TOKENS = GATE_TOKENS;
  const int64_t tokens = true_count(p.tokens, p.report), token = int64_t(blockIdx.x) * TOKENS;
  if (token >= tokens) return;
  const int depth = (p.experts + 15) / 16 * 16;
  const Gradient<T, SPLIT> grad(shared, TOKENS, depth + PAD);
  char *const weights = shared + (SPLIT ? 2 : 1) * TOKENS * (depth + PAD) * sizeof(T);
  const int64_t begin = blockIdx.y * p.span, end = min(begin + p.span, p.hidden);
  const int steps = static_cast<int>((end - begin + STEP - 1) / STEP);
  const auto stage = [&](int step) { return Tile<T>{weights + step % p.stages * depth * (STEP + PAD) * sizeof(T), STEP + PAD}; };
  const auto load = [&](int step) {
    if (step < steps) load_rows<T, STEP>(stage(step), depth, p.weight, 0, p.experts, begin + int64_t(step) * STEP, p.hidden);
    cp_async_commit();
  };
  for (int step = 0; step < p.stages - 1; ++step) load(step);
  for (int i = threadIdx.x; i < TOKENS * depth; i += THREADS) {
    const int row = i / depth, expert = i % depth;
    const bool valid = token + row < tokens && expert < p.experts;
    grad.store(row, expert, valid ? grad.load(p.dlogits, (token + row) * p.dlogits.pitch + expert) : 0.0f);
  }
  const bool add = adds(p.dx_mode);
  const Philox random(p.random);
  T *const dx = reinterpret_cast<T *>(p.dx.data);
  const bool pairs = reinterpret_cast<uintptr_t>(dx) % 4 == 0 && p.dx.pitch % 2 == 0;
  const bool packs = reinterpret_cast<uintptr_t>(dx) % 16 == 0 && p.dx.pitch % 8 == 0;
  // A warp has 32 tokens and 32 columns.
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = warp % 4 * 32, column = warp / 4 * 32;
  for (int step = 0; step < steps; ++step) {
    p.stages == 2 ? cp_async_wait<0>() : p.stages == 3 ? cp_async_wait<1>() : cp_async_wait<2>();
    __syncthreads();
    load(step + p.stages - 1);
    const Tile<T> weight = stage(step);
    float sums[2][4][4] = {};
    for (int k = 0; k < depth; k += 16) {
      uint32_t b[2][4];
#pragma unroll
      for (int n = 0; n < 2; ++n) load_b(b[n], weight, k, column + 16 * n);
#pragma unroll
      for (int part = 0; part < (SPLIT ? 2 : 1); ++part) {
        const Tile<T> &from = part == 0 ? grad.hi : grad.lo;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          uint32_t a[4];
          ldmatrix(a, from.address(row + 16 * m + lane % 16, k + lane / 16 * 8));
#pragma unroll
          for (int n = 0; n < 4; ++n) mma(sums[m][n], a, {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]}, T{});
        }
      }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t t = token + row + 16 * m + 8 * half + lane / 4;
        const int64_t first = begin + int64_t(step) * STEP + column;
        uint32_t packed[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const int64_t c = first + 8 * n + lane % 4 * 2;
          const bool here = t < tokens && c < p.hidden, both = here && c + 1 < p.hidden;
          float by[2] = {1, 1}, value[2];
          if (p.jitter) factors<2>(random, p.eps, static_cast<uint64_t>(t) * p.hidden + c, by);
          T *const to = dx + t * p.dx.pitch + c;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            value[i] = sums[m][n][2 * half + i];
            if (p.jitter) value[i] *= by[i];
            if (add && (i == 0 ? here : both)) value[i] += to_float(to[i]);
          }
          const T pair[2] = {from_float<T>(value[0]), from_float<T>(value[1])};
          memcpy(&packed[n], pair, sizeof packed[n]);
          if (packs) continue;
          if (pairs && both) {
            *reinterpret_cast<uint32_t *>(to) = packed[n];
          } else {
            if (here) to[0] = pair[0];
            if (both) to[1] = pair[1];
          }
        }
        if (!packs) continue;
        // The four lanes of a row trade, so that each has eight neighbouring columns.
        const uint4 eight = trade(packed, lane % 4);
        const int64_t c = first + lane % 4 * 8;
        if (t >= tokens || c >= p.hidden) continue;
        T *const to = dx + t * p.dx.pitch + c;
        if (c + 8 <= p.hidden) {
          *reinterpret_cast<uint4 *>(to) = eight;
        } else {
          T each[8];
          memcpy(each, &eight, sizeof each);
#pragma unroll
          for (int i = 0; i < 8; ++i)
            if (c + i < p.hidden) to[i] = each[i];
        }
      }
    }
  }
  cp_async_wait<0>();
}

template <class T, int EXPERTS, bool SPLIT> __device__ inline void weight_gradient(const RouterGateParams &p) {
  extern __shared__ __align__(128) char shared[];
  constexpr int COLUMNS = GATE_COLUMNS, STAGES = 3;
  // A warp's experts and columns.
  constexpr int ROWS = EXPERTS == 128 ? 32 : 16, WIDTH = EXPERTS == 16 ? 16 : 64, M = ROWS / 16, N = WIDTH / 16;
  constexpr int X_BYTES = STEP * (COLUMNS + PAD) * sizeof(T), GRAD_BYTES = (SPLIT ? 2 : 1) * STEP * (EXPERTS + PAD) * sizeof(T);
  constexpr int OWN = STEP * EXPERTS / THREADS;
  const int64_t tokens = true_count(p.tokens, p.report);
  const int64_t begin = min(blockIdx.z * p.span, tokens), end = min(begin + p.span, tokens);
  const int64_t first_column = int64_t(blockIdx.x) * COLUMNS;
  const int first_expert = blockIdx.y * EXPERTS, steps = static_cast<int>((end - begin + STEP - 1) / STEP);
  const auto stage = [&](int step) { return Tile<T>{shared + step % STAGES * X_BYTES, COLUMNS + PAD}; };
  const auto load = [&](int step) {
    if (step < steps) load_rows<T, COLUMNS>(stage(step), STEP, p.x, begin + int64_t(step) * STEP, end, first_column, p.hidden);
    cp_async_commit();
  };
  const auto grad = [&](int step) {
    return Gradient<T, SPLIT>(shared + STAGES * X_BYTES + step % 2 * GRAD_BYTES, STEP, EXPERTS + PAD);
  };
  // The thread's elements of the gradient: of one expert, AHEAD tokens apart.
  constexpr int AHEAD = THREADS / EXPERTS;
  using Element = typename Gradient<T, SPLIT>::Element;
  const int own_row = threadIdx.x / EXPERTS, own_expert = threadIdx.x % EXPERTS;
  const int rows = first_expert + own_expert < p.experts ? static_cast<int>(end - begin) - own_row : 0;
  const Element *const source =
      reinterpret_cast<const Element *>(p.dlogits.data) + (begin + own_row) * p.dlogits.pitch + first_expert + own_expert;
  Element own[OWN];
  const auto fetch = [&](int step) {
    const Element *from = source + step * (STEP * p.dlogits.pitch);
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
      own[i] = step * STEP + i * AHEAD < rows ? *from : from_float<Element>(0.0f);
      from += AHEAD * p.dlogits.pitch;
    }
  };
  const auto put = [&](int step) {
    const Gradient<T, SPLIT> to = grad(step);
#pragma unroll
    for (int i = 0; i < OWN; ++i) to.store(own_row + i * AHEAD, own_expert, to_float(own[i]));
  };
  load(0);
  load(1);
  fetch(0);
  put(0);
  const Philox random(p.random);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = warp % (EXPERTS / ROWS) * ROWS, column = warp / (EXPERTS / ROWS) * WIDTH;
  float sums[M][2 * N][4] = {};
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<1>();
    const Tile<T> x = stage(step);
    if (p.jitter) {
      for (int i = threadIdx.x; i < STEP * (COLUMNS / 8); i += THREADS) {
        const int64_t token = begin + int64_t(step) * STEP + i / (COLUMNS / 8), c = first_column + i % (COLUMNS / 8) * 8;
        if (token >= end || c >= p.hidden) continue;
        Pack<T> *const chunk = reinterpret_cast<Pack<T> *>(x.at(i / (COLUMNS / 8), i % (COLUMNS / 8) * 8));
        jitter_chunk(chunk->at, random, p.eps, static_cast<uint64_t>(token) * p.hidden + c);
      }
    }
    __syncthreads();
    load(step + 2);
    if (step + 1 < steps) fetch(step + 1);
    const Gradient<T, SPLIT> gradient = grad(step);
#pragma unroll
    for (int k = 0; k < STEP; k += 16) {
      uint32_t a[SPLIT ? 2 : 1][M][4];
#pragma unroll
      for (int part = 0; part < (SPLIT ? 2 : 1); ++part) {
#pragma unroll
        for (int m = 0; m < M; ++m) {
          const Tile<T> &from = part == 0 ? gradient.hi : gradient.lo;
          ldmatrix_transposed(a[part][m], from.address(k + lane % 8 + lane / 16 * 8, row + 16 * m + lane / 8 % 2 * 8));
        }
      }
#pragma unroll
      for (int n = 0; n < N; ++n) {
        uint32_t b[4];
        load_b(b, x, k, column + 16 * n);
#pragma unroll
        for (int part = 0; part < (SPLIT ? 2 : 1); ++part) {
#pragma unroll
          for (int m = 0; m < M; ++m) {
            mma(sums[m][2 * n], a[part][m], {b[0], b[1]}, T{});
            mma(sums[m][2 * n + 1], a[part][m], {b[2], b[3]}, T{});
          }
        }
      }
    }
    if (step + 1 < steps) put(step + 1);
  }
  cp_async_wait<0>();
  float *const parts = reinterpret_cast<float *>(p.partials) + int64_t(blockIdx.z) * p.experts * p.hidden;
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int n = 0; n < 2 * N; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int expert = first_expert + row + 16 * m + 8 * (i / 2) + lane / 4;
        const int64_t c = first_column + column + 8 * n + lane % 4 * 2 + i % 2;
        if (expert < p.experts && c < p.hidden) parts[expert * p.hidden + c] = sums[m][n][i];
      }
    }
  }
}

}  // namespace

#define ROUTER_LOGITS_DX(NAME, T, SPLIT)                      \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)    \
      router_logits_dx_##NAME(const __grid_constant__ RouterGateParams p) { input_gradient<T, SPLIT>(p); }

ROUTER_LOGITS_DX(bf16, __nv_bfloat16, false)
ROUTER_LOGITS_DX(bf16_split, __nv_bfloat16, true)
ROUTER_LOGITS_DX(fp16, __half, false)

#define ROUTER_LOGITS_DWEIGHT(NAME, T, EXPERTS, SPLIT)        \
  extern "C" __global__ void __launch_bounds__(THREADS, EXPERTS <= 64 ? 2 : 1) \
      router_logits_dweight_##NAME(const __grid_constant__ RouterGateParams p) { weight_gradient<T, EXPERTS, SPLIT>(p); }

ROUTER_LOGITS_DWEIGHT(bf16_16, __nv_bfloat16, 16, false)
ROUTER_LOGITS_DWEIGHT(bf16_64, __nv_bfloat16, 64, false)
ROUTER_LOGITS_DWEIGHT(bf16_128, __nv_bfloat16, 128, false)
ROUTER_LOGITS_DWEIGHT(bf16_16_split, __nv_bfloat16, 16, true)
ROUTER_LOGITS_DWEIGHT(bf16_64_split, __nv_bfloat16, 64, true)
ROUTER_LOGITS_DWEIGHT(bf16_128_split, __nv_bfloat16, 128, true)
ROUTER_LOGITS_DWEIGHT(fp16_16, __half, 16, false)
ROUTER_LOGITS_DWEIGHT(fp16_64, __half, 64, false)
ROUTER_LOGITS_DWEIGHT(fp16_128, __half, 128, false)
