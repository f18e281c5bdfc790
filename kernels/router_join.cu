// The parts of split sums of the router's GEMM and of the gradient of its bias, added in their order.

#include "count.cuh"
#include "dtype.cuh"
#include "overlap.cuh"
#include "params/logits_parts.h"
#include "router_shares.cuh"

namespace {

constexpr int THREADS = 256;

// Rows of a tile of columns, WIDTH columns a thread.
template <class R, int WIDTH> __device__ inline void join(const RouterJoinParams &p, int64_t begin, int64_t end, int splits) {
  const int64_t rows = true_count(p.rows, p.report), part = p.rows.bound * p.columns;
  const R *const parts = reinterpret_cast<const R *>(p.partials);
  const bool add = adds(p.mode);
  // As many threads to a row as it takes, a power of two.
  int across = THREADS;
  while (across > 1 && (across / 2) * WIDTH >= end - begin) across /= 2;
  const int down = THREADS / across;
  for (int64_t row = int64_t(blockIdx.x) * down + threadIdx.x / across; row < rows; row += int64_t(gridDim.x) * down) {
    for (int64_t column = begin + threadIdx.x % across * WIDTH; column < end; column += across * WIDTH) {
      R sums[WIDTH] = {};
      const R *from = parts + row * p.columns + column;
#pragma unroll 8
      for (int split = 0; split < splits; ++split, from += part) {
        if constexpr (WIDTH == 1) {
          sums[0] += *from;
        } else {
          const Pack<R> pack = load_pack(from);
#pragma unroll
          for (int i = 0; i < WIDTH; ++i) sums[i] += pack.at[i];
        }
      }
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) {
        const int64_t at = row * p.out.pitch + column + i;
        if (p.bias.data != nullptr) sums[i] += R(load_float(p.bias, column + i));
        if (add) sums[i] += R(load_float(p.out, at));
        store_float(p.out, at, static_cast<float>(sums[i]));
      }
    }
  }
}

template <class R> __device__ inline void join(const RouterJoinParams &p) {
  constexpr int WIDTH = 16 / sizeof(R);
  int64_t begin = 0, end = p.columns;
  int splits = p.splits;
  if (p.tile > 0) {
    splits = Shares(true_count(p.tokens, p.report), p.tiles, p.clusters).count(blockIdx.y);
    begin = int64_t(blockIdx.y) * p.tile, end = min(begin + p.tile, p.columns);
  }
  if (p.columns % WIDTH == 0) {
    join<R, WIDTH>(p, begin, end, splits);
  } else {
    join<R, 1>(p, begin, end, splits);
  }
}

// A warp an expert: its lanes add every 32nd part, then each other's.
__device__ inline void join_bias(const RouterJoinParams &p) {
  const bool add = adds(p.dbias_mode);
  const int lane = threadIdx.x % 32;
  for (int expert = (blockIdx.x * THREADS + threadIdx.x) / 32; expert < p.experts; expert += gridDim.x * (THREADS / 32)) {
    double sum = 0;
#pragma unroll 4
    for (int part = lane; part < p.dbias_splits; part += 32) sum += p.dbias_parts[int64_t(part) * p.experts + expert];
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    if (lane > 0) continue;
    if (add) sum += load_float(p.dbias, expert);
    store_float(p.dbias, expert, static_cast<float>(sum));
  }
}

}  // namespace

// Blocks of the last row of the grid join the bias' gradient, if there is one.
extern "C" __global__ void __launch_bounds__(THREADS, 4) router_logits_join(const __grid_constant__ RouterJoinParams p) {
  wait_for_launch_ahead();
  let_next_launch_begin();
  if (p.dbias_parts != nullptr && blockIdx.y == gridDim.y - 1) {
    join_bias(p);
  } else {
    p.wide ? join<double>(p) : join<float>(p);
  }
}
