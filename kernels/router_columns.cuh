// Keys of tokens by expert, [E, T]: made row by row, read column by column, through tiles of a few tokens in shared memory.
#pragma once

#include "radix_select.cuh"
#include "router.cuh"

namespace router {

// A block's tile: [E, tokens + 1].
template <class Key> struct KeyTile {
  Key *keys;
  int tokens;

  __device__ Key &at(int expert, int token) const { return keys[expert * (tokens + 1) + token]; }

  // Hands the tile's tokens from `first` on to a table of columns.
  __device__ void store(Key *table, int64_t pitch, int experts, int64_t first, int64_t end) const {
    const int count = static_cast<int>(min(end - first, int64_t(tokens)));
    for (int i = threadIdx.x; i < experts * tokens; i += blockDim.x) {
      if (i % tokens < count) table[i / tokens * pitch + first + i % tokens] = at(i / tokens, i % tokens);
    }
  }

  __device__ void load(const Key *table, int64_t pitch, int experts, int64_t first, int64_t end) const {
    const int count = static_cast<int>(min(end - first, int64_t(tokens)));
    for (int i = threadIdx.x; i < experts * tokens; i += blockDim.x) {
      if (i % tokens < count) at(i / tokens, i % tokens) = table[i / tokens * pitch + first + i % tokens];
    }
  }
};

// The softmax of a row of logits, whose lanes read it again whenever they need it. A row of nothing but -inf is 0.
template <class R> struct RowSoftmax {
  const Matrix &logits;
  int64_t token;
  int experts;
  R top, sum;

  // A warp calls; NaN is reported.
  __device__ RowSoftmax(const Matrix &logits, int64_t token, int experts, moe_device_report_t *report)
      : logits(logits), token(token), experts(experts), sum(0) {
    float most = -INFINITY;
    for (int e = lane_id(); e < experts; e += 32) most = max(most, load_logit(logits, token, e, experts, report));
    top = clamped<R>(max_over(most, 32));
    if (!alive()) return;
    for (int e = lane_id(); e < experts; e += 32) sum += exp_below<R>(load_logit(logits, token, e, experts, nullptr), top);
    sum = sum_over(sum, 32);
  }

  __device__ bool alive() const { return top > -infinity<R>(); }
  __device__ R score(int expert) const {
    return alive() ? exp_below<R>(load_logit(logits, token, expert, experts, nullptr), top) / sum : R(0);
  }
};

}  // namespace router
