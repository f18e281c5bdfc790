// Routing, backward: the gradient of the weights and of the losses with respect to the logits, in one pass.
//
// A token belongs to p.lanes neighbouring lanes, a power of two; lane l has the experts 4*(l + lanes*j) + r, r < 4, and
// what belongs to them in quads of shared memory of its own. Scores and weights are made again from logits and ids.

#include "router.cuh"

namespace {

using namespace router;

// A lane has the slots lane, lane + lanes, ...
constexpr int SLOTS = ROUTER_SLOTS;

template <class T> struct alignas(4 * sizeof(T)) Quad {
  T at[4];
};

// A thread's place among its token's lanes, and its quads.
template <class R> struct Lane {
  int lanes;
  int lane;
  int quads;
  int experts;
  Quad<float> *logits;
  // d(aux loss)/d(s_te).
  Quad<float> *slopes;
  Quad<R> *gradient;

  __device__ Lane(const RouterBwdParams &p, char *shared)
      : lanes(p.lanes), lane(threadIdx.x % p.lanes), quads(p.quads), experts(p.experts) {
    const int threads = blockDim.x;
    gradient = reinterpret_cast<Quad<R> *>(shared) + threadIdx.x;
    logits = reinterpret_cast<Quad<float> *>(gradient - threadIdx.x + quads * threads) + threadIdx.x;
    slopes = logits + quads * threads;
  }

  // The first expert of quad j.
  __device__ int expert(int j) const { return 4 * (lane + lanes * j); }
  // Where quad j is in a thread's shared memory.
  __device__ int at(int j) const { return j * blockDim.x; }
};

template <class T> __device__ bool whole_quads(const Matrix &matrix, int experts) {
  return reinterpret_cast<uintptr_t>(matrix.data) % sizeof(Quad<T>) == 0 && (matrix.pitch | experts) % 4 == 0;
}

template <class T> __device__ Quad<float> load_quad(const Matrix &matrix, int64_t token, int first, int experts) {
  const T *const data = reinterpret_cast<const T *>(matrix.data) + token * matrix.pitch + first;
  Quad<float> quad;
  if (whole_quads<T>(matrix, experts) && first < experts) {
    const Quad<T> packed = *reinterpret_cast<const Quad<T> *>(data);
#pragma unroll
    for (int r = 0; r < 4; ++r) quad.at[r] = to_float(packed.at[r]);
  } else {
#pragma unroll
    for (int r = 0; r < 4; ++r) quad.at[r] = first + r < experts ? to_float(data[r]) : -INFINITY;
  }
  return quad;
}

// Experts first .. first + 3 of a token; -inf behind the last expert.
__device__ inline Quad<float> load_quad(const Matrix &matrix, int64_t token, int first, int experts) {
  switch (matrix.dtype) {
  case MOE_DTYPE_BF16: return load_quad<__nv_bfloat16>(matrix, token, first, experts);
  case MOE_DTYPE_FP16: return load_quad<__half>(matrix, token, first, experts);
  default: return load_quad<float>(matrix, token, first, experts);
  }
}

template <class T>
__device__ void store_quad(const Matrix &matrix, int64_t token, int first, int experts, const Quad<float> &quad) {
  T *const data = reinterpret_cast<T *>(matrix.data) + token * matrix.pitch + first;
  Quad<T> packed;
#pragma unroll
  for (int r = 0; r < 4; ++r) packed.at[r] = from_float<T>(quad.at[r]);
  if (whole_quads<T>(matrix, experts) && first < experts) {
    *reinterpret_cast<Quad<T> *>(data) = packed;
    return;
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    if (first + r < experts) data[r] = packed.at[r];
  }
}

__device__ inline void store_quad(const Matrix &matrix, int64_t token, int first, int experts, const Quad<float> &quad) {
  switch (matrix.dtype) {
  case MOE_DTYPE_BF16: store_quad<__nv_bfloat16>(matrix, token, first, experts, quad); break;
  case MOE_DTYPE_FP16: store_quad<__half>(matrix, token, first, experts, quad); break;
  default: store_quad<float>(matrix, token, first, experts, quad);
  }
}

// The largest logit, made finite, and the sum of e^(logit - top).
template <class R> struct Softmax {
  R top;
  R sum;

  __device__ bool alive() const { return top > -infinity<R>(); }
  __device__ R inverse() const { return sum > 0 ? 1 / sum : R(0); }
};

// Brings a token's logits into shared memory: NaN is -inf, and reported.
template <class R>
__device__ Softmax<R> load_row(const RouterBwdParams &p, const Lane<R> &lane, int64_t token, bool valid, bool summed) {
  float top = -INFINITY;
  for (int j = 0; j < lane.quads; ++j) {
    const int first = lane.expert(j);
    Quad<float> quad = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    if (valid && first < lane.experts) quad = load_quad(p.logits, token, first, lane.experts);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      float &logit = quad.at[r];
      if (logit != logit) {
        record_fault(p.report, MOE_FAULT_NAN_LOGIT, token * lane.experts + first + r, 0);
        logit = -INFINITY;
      }
      top = max(top, logit);
    }
    lane.logits[lane.at(j)] = quad;
  }
  Softmax<R> softmax = {clamped<R>(max_over(top, lane.lanes)), 0};
  if (!summed) return softmax;
  for (int j = 0; j < lane.quads; ++j) {
    const Quad<float> quad = lane.logits[lane.at(j)];
#pragma unroll
    for (int r = 0; r < 4; ++r) softmax.sum += softmax.alive() ? exp_below<R>(quad.at[r], softmax.top) : R(0);
  }
  softmax.sum = sum_over(softmax.sum, lane.lanes);
  return softmax;
}

// What the lane's slots add to the gradient of their experts (-1: none).
template <class R> struct Terms {
  int ids[SLOTS];
  R at[SLOTS];
  // What every expert's score is multiplied by, and is taken from its gradient: softmax before top-k alone has it.
  R shared;

  __device__ Terms(const RouterBwdParams &p, const Lane<R> &lane, int64_t token, bool valid, Softmax<R> softmax)
      : shared(0) {
    const RouterWeighting &w = p.weighting;
    const bool is_softmax = w.score == MOE_SCORE_SOFTMAX;
    float logits[SLOTS], top = -INFINITY;
#pragma unroll
    for (int q = 0; q < SLOTS; ++q) {
      const int slot = lane.lane + lane.lanes * q;
      ids[q] = -1;
      at[q] = 0;
      logits[q] = -INFINITY;
      if (!valid || slot >= p.top_k) continue;
      const int64_t id = load_index(p.ids, token * p.ids.pitch + slot);
      if (id < 0 || id >= p.experts) continue;
      ids[q] = static_cast<int>(id);
      logits[q] = load_logit(p.logits, token, ids[q], p.experts, nullptr);
      top = max(top, logits[q]);
      const bool dense = p.dweights.data == nullptr;
      const Matrix &source = dense ? p.ddense : p.dweights;
      at[q] = load_float(source, token * source.pitch + (dense ? ids[q] : slot)) * static_cast<R>(w.scale);
    }
    if (w.over_chosen) softmax = {clamped<R>(max_over(top, lane.lanes)), 0};
    R scores[SLOTS], sum = 0, inner = 0;
#pragma unroll
    for (int q = 0; q < SLOTS; ++q) {
      scores[q] = 0;
      if (ids[q] < 0 || !softmax.alive()) continue;
      scores[q] = is_softmax ? exp_below<R>(logits[q], softmax.top) : score<R>(w.score, logits[q]);
      sum += scores[q];
      inner += scores[q] * at[q];
    }
    sum = sum_over(sum, lane.lanes);
    inner = sum_over(inner, lane.lanes);
    if (w.over_chosen) softmax.sum = sum;
    const R inverse = is_softmax ? softmax.inverse() : w.divided ? 1 / (sum + R(1e-20)) : R(1);
    inner *= inverse;
    if (is_softmax && !w.over_chosen) shared = inner;
    const R mean = w.over_chosen || w.divided ? inner : R(0);
#pragma unroll
    for (int q = 0; q < SLOTS; ++q) {
      const R slope = is_softmax ? scores[q] : ids[q] < 0 ? R(0) : derivative<R>(w.score, logits[q]);
      // 0 times a gradient that overflowed is 0.
      at[q] = slope > 0 ? (at[q] - mean) * inverse * slope : R(0);
    }
  }

  // Hands each slot's term to the lane that has its expert.
  __device__ void spread(const RouterBwdParams &p, const Lane<R> &lane) const {
    for (int j = 0; j < lane.quads; ++j) lane.gradient[lane.at(j)] = {};
    const int first = lane_id() - lane.lane;
#pragma unroll
    for (int q = 0; q < SLOTS; ++q) {
      for (int other = 0; other < lane.lanes && other + lane.lanes * q < p.top_k; ++other) {
        const int id = __shfl_sync(ALL, ids[q], first + other);
        const R term = __shfl_sync(ALL, at[q], first + other);
        const int quad = id / 4;
        if (id >= 0 && quad % lane.lanes == lane.lane) lane.gradient[lane.at(quad / lane.lanes)].at[id % 4] += term;
      }
    }
  }
};

// What the losses' gradient needs of all tokens.
template <class R> struct LossGradient {
  // Whose slopes are in shared memory.
  int64_t sequence;
  int64_t real;
  double aux;
  R z;

  // `tokens`: the true count. All threads of the block call.
  __device__ LossGradient(const RouterBwdParams &p, int64_t tokens) : sequence(-1), real(tokens), aux(0), z(0) {
    if (!p.losses.aux && !p.losses.z) return;
    if (p.losses.padding_mask != nullptr) {
      __shared__ double total;
      double sum = 0;
      for (int64_t token = threadIdx.x; token < tokens; token += blockDim.x) sum += is_real(p.losses, token);
      sum = block_sum(sum);
      if (threadIdx.x == 0) total = sum;
      __syncthreads();
      real = static_cast<int64_t>(total);
    }
    if (p.losses.aux) aux = p.losses.aux_scale * (p.aux_grad != nullptr ? *p.aux_grad : 1.0f);
    if (p.losses.z) {
      z = static_cast<R>(2 * p.losses.z_scale * (p.z_grad != nullptr ? *p.z_grad : 1.0f) / max(double(real), 1.0));
    }
  }

  // Turns to the sequence of a token; false: it is in none.
  __device__ bool enter(const RouterBwdParams &p, const Lane<R> &lane, int64_t token, int64_t tokens) {
    const int64_t own = sequence_of(p.losses, token);
    if (own < 0) return false;
    if (own == sequence) return true;
    sequence = own;
    const bool all = p.losses.sequences == 1 && p.losses.layout != MOE_SEQUENCE_OFFSETS;
    const int64_t length = all ? real : p.lengths != nullptr ? p.lengths[own] : span_of(p.losses, own, tokens).count();
    const double factor = aux * inverse_square(p.losses, length);
    for (int j = 0; j < lane.quads; ++j) {
      Quad<float> quad = {};
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int e = lane.expert(j) + r;
        if (e >= lane.experts) continue;
        const double n = p.losses.global ? p.losses.global_counts[e] : double(p.aux_counts[own * lane.experts + e]);
        quad.at[r] = static_cast<float>(factor * n);
      }
      lane.slopes[lane.at(j)] = quad;
    }
    return true;
  }
};

template <class R> __device__ void backward(const RouterBwdParams &p) {
  extern __shared__ __align__(16) char shared[];
  const int64_t tokens = true_count(p.tokens, p.report);
  const bool add = adds(p.mode);
  const RouterLosses &losses = p.losses;
  check_offsets(losses, p.report);
  const Lane<R> lane(p, shared);
  LossGradient<R> loss(p, tokens);
  const bool weighted = p.ids.data != nullptr;
  const bool aux_softmax = losses.aux && losses.score == MOE_SCORE_SOFTMAX;
  const bool summed = losses.z || aux_softmax || (weighted && p.weighting.score == MOE_SCORE_SOFTMAX);
  const int groups = blockDim.x / p.lanes;
  // Blocks take runs of tokens, so that a sequence is entered once; the groups of a warp go on together.
  const int64_t rounds = (tokens + int64_t(groups) * gridDim.x - 1) / (int64_t(groups) * gridDim.x);
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t token = (blockIdx.x * rounds + round) * groups + threadIdx.x / p.lanes;
    const bool valid = token < tokens;
    const Softmax<R> softmax = load_row(p, lane, token, valid, summed);
    const bool alive = valid && softmax.alive();
    R shared_term = 0;
    if (weighted) {
      const Terms<R> terms(p, lane, token, alive, softmax);
      terms.spread(p, lane);
      shared_term = terms.shared;
    }
    const bool real = alive && (losses.aux || losses.z) && is_real(losses, token);
    const bool own = losses.aux && real && loss.enter(p, lane, token, tokens);
    // Scores of the aux loss other than softmax: what they are divided by.
    R divisor = 1, mean = 0;
    if (losses.aux) {
      R sum = 0;
      for (int j = 0; j < lane.quads; ++j) {
        const Quad<float> logits = lane.logits[lane.at(j)], slopes = lane.slopes[lane.at(j)];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          if (!own) continue;
          const R s = aux_softmax ? exp_below<R>(logits.at[r], softmax.top) : score<R>(losses.score, logits.at[r]);
          sum += s;
          mean += s * slopes.at[r];
        }
      }
      sum = sum_over(sum, lane.lanes);
      mean = sum_over(mean, lane.lanes);
      if (own) {
        divisor = aux_softmax ? sum : sum + R(1e-20);
        mean /= divisor;
      }
    }
    if (!valid) continue;
    const R inverse = softmax.inverse();
    const R slope = losses.z && real ? loss.z * (softmax.top + log(softmax.sum)) : R(0);
    for (int j = 0; j < lane.quads; ++j) {
      const int first = lane.expert(j);
      if (first >= lane.experts) continue;
      const Quad<float> logits = lane.logits[lane.at(j)];
      Quad<R> gradient = {};
      if (weighted) gradient = lane.gradient[lane.at(j)];
      Quad<float> result, slopes = {};
      if (own) slopes = lane.slopes[lane.at(j)];
      if (add) result = load_quad(p.dlogits, token, first, lane.experts);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        R sum = gradient.at[r];
        const R s = summed && alive ? exp_below<R>(logits.at[r], softmax.top) * inverse : R(0);
        if (s > 0) sum += s * (slope - shared_term);
        if (own) {
          const R excess = slopes.at[r] - mean;
          sum += aux_softmax ? s * excess : excess / divisor * derivative<R>(losses.score, logits.at[r]);
        }
        result.at[r] = static_cast<float>(add ? sum + result.at[r] : sum);
      }
      store_quad(p.dlogits, token, first, lane.experts, result);
    }
  }
}

}  // namespace

extern "C" __global__ __launch_bounds__(ROUTER_THREADS, 2) void router_bwd(RouterBwdParams p) { backward<float>(p); }
extern "C" __global__ __launch_bounds__(ROUTER_THREADS, 1) void router_bwd_fp64(RouterBwdParams p) { backward<double>(p); }

// A block a sequence.
extern "C" __global__ __launch_bounds__(ROUTER_THREADS) void router_lengths(RouterLengthsParams p) {
  const int64_t tokens = true_count(p.tokens, p.report);
  for (int64_t s = blockIdx.x; s < p.losses.sequences; s += gridDim.x) {
    const Span span = span_of(p.losses, s, tokens);
    double sum = 0;
    for (int64_t i = threadIdx.x; i < span.count(); i += blockDim.x) {
      sum += is_real(p.losses, span.begin + i * span.step);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) p.lengths[s] = static_cast<int64_t>(sum);
  }
}
