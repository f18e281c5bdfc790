// Expert choice: scores of all tokens by expert; each expert's cut, its tokens in order; then the rows of the tokens.
// Backward: a token's row at a time.

#include "params/expert_choice.h"
#include "router_columns.cuh"
#include "scan.cuh"

namespace {

using namespace router;

constexpr int ROW_THREADS = CHOICE_ROW_THREADS, COLUMN_THREADS = CHOICE_COLUMN_THREADS;

// Scores are not negative: their bits are in order. 0 is no candidate.
template <class R> struct Bits;
template <> struct Bits<float> {
  using Key = uint32_t;
  static __device__ Key key(float score) { return __float_as_uint(score) + 1; }
  static __device__ float score(Key key) { return __uint_as_float(key - 1); }
};
template <> struct Bits<double> {
  using Key = uint64_t;
  static __device__ Key key(double score) { return static_cast<Key>(__double_as_longlong(score)) + 1; }
  static __device__ double score(Key key) { return __longlong_as_double(static_cast<long long>(key - 1)); }
};

template <class R> __device__ inline void scores(const ExpertChoiceParams &p) {
  using Key = typename Bits<R>::Key;
  extern __shared__ __align__(16) char shared[];
  const int64_t tokens = true_count(p.tokens, p.report);
  const KeyTile<Key> tile = {reinterpret_cast<Key *>(shared), p.tile};
  for (int64_t first = int64_t(blockIdx.x) * p.tile; first < tokens; first += int64_t(gridDim.x) * p.tile) {
    for (int i = threadIdx.x / 32; i < p.tile && first + i < tokens; i += blockDim.x / 32) {
      const int64_t token = first + i;
      const RowSoftmax<R> softmax(p.logits, token, p.experts, p.report);
      const bool real = p.padding_mask == nullptr || p.padding_mask[token] != 0;
      for (int e = lane_id(); e < p.experts; e += 32) tile.at(e, i) = real ? Bits<R>::key(softmax.score(e)) : Key(0);
    }
    __syncthreads();
    tile.store(reinterpret_cast<Key *>(p.keys), p.tokens.bound, p.experts, first, tokens);
    __syncthreads();
  }
}

// A block an expert.
template <class R> __device__ inline void select(const ExpertChoiceParams &p) {
  using Key = typename Bits<R>::Key;
  const int64_t tokens = true_count(p.tokens, p.report), expert = blockIdx.x;
  const Key *const keys = reinterpret_cast<const Key *>(p.keys) + expert * p.tokens.bound;
  const Cut<Key> cut = select_largest<8 * sizeof(Key), Key>(tokens, p.capacity, [&](int64_t token) { return keys[token]; });
  if (threadIdx.x == 0) {
    reinterpret_cast<Key *>(p.cuts)[expert] = cut.key;
    p.last_ties[expert] = -1;
  }
  __syncthreads();
  // Of a tokens before this one: those above the cut in the low half, those that tie in the high one.
  int64_t before = 0;
  for (int64_t first = 0; first < tokens; first += blockDim.x) {
    const int64_t token = first + threadIdx.x;
    const Key key = token < tokens ? keys[token] : Key(0);
    const bool above = key > cut.key, tie = key != 0 && key == cut.key;
    int64_t total;
    const int64_t own = before + block_exclusive_sum(int64_t(above) | int64_t(tie) << 32, total);
    before += total;
    const int64_t ties = own >> 32;
    if (!above && !(tie && ties < cut.ties)) continue;
    if (tie && ties == cut.ties - 1) p.last_ties[expert] = token;
    const int64_t place = (own & 0xffffffff) + min(ties, cut.ties);
    if (p.token_ids.data != nullptr) store_index(p.token_ids, expert * p.token_ids.pitch + place, token);
    if (p.weights.data != nullptr) {
      store_float(p.weights, expert * p.weights.pitch + place, static_cast<float>(Bits<R>::score(key)));
    }
  }
  const int64_t chosen = (before & 0xffffffff) + min(before >> 32, cut.ties);
  for (int64_t place = chosen + threadIdx.x; place < p.capacity; place += blockDim.x) {
    if (p.token_ids.data != nullptr) store_index(p.token_ids, expert * p.token_ids.pitch + place, -1);
    if (p.weights.data != nullptr) store_float(p.weights, expert * p.weights.pitch + place, 0.0f);
  }
}

// Outputs with a row a token.
template <class R> __device__ inline void write_rows(const ExpertChoiceParams &p) {
  using Key = typename Bits<R>::Key;
  extern __shared__ __align__(16) char shared[];
  const int64_t tokens = true_count(p.tokens, p.report);
  const KeyTile<Key> tile = {reinterpret_cast<Key *>(shared), p.tile};
  const Key *const cuts = reinterpret_cast<const Key *>(p.cuts);
  for (int64_t first = int64_t(blockIdx.x) * p.tile; first < tokens; first += int64_t(gridDim.x) * p.tile) {
    tile.load(reinterpret_cast<const Key *>(p.keys), p.tokens.bound, p.experts, first, tokens);
    __syncthreads();
    for (int i = threadIdx.x / 32; i < p.tile && first + i < tokens; i += blockDim.x / 32) {
      const int64_t token = first + i;
      for (int base = 0; base < p.experts; base += 32) {
        const int e = base + lane_id();
        const Key key = e < p.experts ? tile.at(e, i) : Key(0);
        const bool chosen = key != 0 && (key > cuts[e] || (key == cuts[e] && token <= p.last_ties[e]));
        const uint32_t word = __ballot_sync(ALL, chosen);
        if (p.bit_mask.data != nullptr && lane_id() == 0) {
          reinterpret_cast<uint32_t *>(p.bit_mask.data)[token * p.bit_mask.pitch + base / 32] = word;
        }
        if (e >= p.experts) continue;
        if (p.byte_mask.data != nullptr) p.byte_mask.data[token * p.byte_mask.pitch + e] = chosen;
        if (p.dense.data != nullptr) {
          store_float(p.dense, token * p.dense.pitch + e, chosen ? static_cast<float>(Bits<R>::score(key)) : 0.0f);
        }
      }
    }
    __syncthreads();
  }
}

// The gradient of a weight that was chosen: the dense one, or the sum of an expert's places that hold the token, which a
// chain from `heads` on links. There is one at most, unless the ids are not the forward's: then their order is ascending.
template <class R> __device__ inline R gradient_of(const ExpertChoiceBwdParams &p, int64_t token, int expert) {
  if (p.byte_mask.data != nullptr) {
    const bool chosen = p.byte_mask.data[token * p.byte_mask.pitch + expert] != 0;
    return chosen ? R(load_float(p.dweights, token * p.dweights.pitch + expert)) : R(0);
  }
  const uint32_t head = p.heads[token * p.experts + expert];
  if (head == 0) return R(0);
  const uint32_t *const links = p.links + int64_t(expert) * p.capacity;
  R sum = 0;
  for (uint32_t last = 0;;) {
    uint32_t next = ~0u;
    for (uint32_t place = head; place != 0; place = links[place - 1]) {
      if (place > last) next = min(next, place);
    }
    if (next == ~0u) return sum;
    sum += R(load_float(p.dweights, expert * p.dweights.pitch + next - 1));
    last = next;
  }
}

template <class R> __device__ inline R product(R score, R gradient) { return score > 0 ? score * gradient : R(0); }

template <class R> __device__ inline void backward(const ExpertChoiceBwdParams &p) {
  const int64_t tokens = true_count(p.tokens, p.report);
  const bool add = adds(p.mode);
  const int warps = blockDim.x / 32;
  for (int64_t token = int64_t(blockIdx.x) * warps + threadIdx.x / 32; token < tokens; token += int64_t(gridDim.x) * warps) {
    const RowSoftmax<R> softmax(p.logits, token, p.experts, p.report);
    R inner = 0;
    for (int e = lane_id(); e < p.experts; e += 32) inner += product<R>(softmax.score(e), gradient_of<R>(p, token, e));
    inner = sum_over(inner, 32);
    for (int e = lane_id(); e < p.experts; e += 32) {
      const R value = product<R>(softmax.score(e), gradient_of<R>(p, token, e) - inner);
      const int64_t at = token * p.dlogits.pitch + e;
      store_float(p.dlogits, at, static_cast<float>(add ? value + R(load_float(p.dlogits, at)) : value));
    }
  }
}

}  // namespace

#define EXPERT_CHOICE_KERNEL(NAME, THREADS, PARAMS, BODY) \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) NAME(const __grid_constant__ PARAMS p) { BODY(p); }

EXPERT_CHOICE_KERNEL(expert_choice_scores, ROW_THREADS, ExpertChoiceParams, scores<float>)
EXPERT_CHOICE_KERNEL(expert_choice_scores_fp64, ROW_THREADS, ExpertChoiceParams, scores<double>)
EXPERT_CHOICE_KERNEL(expert_choice_select, COLUMN_THREADS, ExpertChoiceParams, select<float>)
EXPERT_CHOICE_KERNEL(expert_choice_select_fp64, COLUMN_THREADS, ExpertChoiceParams, select<double>)
EXPERT_CHOICE_KERNEL(expert_choice_rows, ROW_THREADS, ExpertChoiceParams, write_rows<float>)
EXPERT_CHOICE_KERNEL(expert_choice_rows_fp64, ROW_THREADS, ExpertChoiceParams, write_rows<double>)
EXPERT_CHOICE_KERNEL(expert_choice_bwd, ROW_THREADS, ExpertChoiceBwdParams, backward<float>)
EXPERT_CHOICE_KERNEL(expert_choice_bwd_fp64, ROW_THREADS, ExpertChoiceBwdParams, backward<double>)

// Chains the places of each (token, expert), in any order.
extern "C" __global__ void __launch_bounds__(ROW_THREADS) expert_choice_link(const __grid_constant__ ExpertChoiceBwdParams p) {
  const int64_t tokens = true_count(p.tokens, p.report), places = p.experts * p.capacity;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < places; i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t expert = i / p.capacity, place = i % p.capacity;
    const int64_t token = load_index(p.token_ids, expert * p.token_ids.pitch + place);
    if (token >= 0 && token < tokens) {
      p.links[i] = atomicExch(p.heads + token * p.experts + expert, static_cast<uint32_t>(place + 1));
    } else if (token != -1) {
      record_fault(p.report, MOE_FAULT_TOKEN_INDEX, i, token);
    }
  }
}
