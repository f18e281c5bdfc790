// Activations: a team of threads a row, bound by memory.
#include "activation.cuh"
#include "rows.cuh"

namespace {

// Where the halves of columns i, i + 1, ... of act lie in a row of h.
template <class T> struct Halves {
  static constexpr int N = Pack<T>::size;
  using Values = Floats<N>;

  const Formula &f;
  const HalvesLayout &at;

  // Column i of act: its block, and its place in it.
  __device__ int64_t gate_column(int i) const {
    const int column = at.block < f.ffn ? i / at.block * 2 * at.block + i % at.block : i;
    return column + (at.up_first ? int64_t(at.block) : 0);
  }

  __device__ int64_t up_column(int i) const { return gate_column(i) + (at.up_first ? -int64_t(at.block) : at.block); }

  __device__ void load(const T *h, int i, Values &gate, Values &up) const {
    if (at.access == ACCESS_PACKS) {
      load_floats(gate, h + gate_column(i), N, true);
      if (f.gated) load_floats(up, h + up_column(i), N, true);
    } else if (at.access == ACCESS_PAIRS) {
      Values low, high;
      load_floats(low, h + 2 * int64_t(i), N, true);
      load_floats(high, h + 2 * int64_t(i) + N, N, true);
#pragma unroll
      for (int e = 0; e < N; e += 2) {
        gate[e / 2] = low[e], up[e / 2] = low[e + 1];
        gate[(N + e) / 2] = high[e], up[(N + e) / 2] = high[e + 1];
      }
    } else {
#pragma unroll
      for (int e = 0; e < N; ++e) {
        gate[e] = i + e < f.ffn ? to_float(h[gate_column(i + e)]) : 0.0f;
        up[e] = f.gated && i + e < f.ffn ? to_float(h[up_column(i + e)]) : 0.0f;
      }
    }
  }

  __device__ void store(T *h, int i, const Values &gate, const Values &up) const {
    if (at.access == ACCESS_PACKS) {
      store_floats(h + gate_column(i), gate, N, true);
      if (f.gated) store_floats(h + up_column(i), up, N, true);
    } else if (at.access == ACCESS_PAIRS) {
      Values low, high;
#pragma unroll
      for (int e = 0; e < N; e += 2) {
        low[e] = gate[e / 2], low[e + 1] = up[e / 2];
        high[e] = gate[(N + e) / 2], high[e + 1] = up[(N + e) / 2];
      }
      store_floats(h + 2 * int64_t(i), low, N, true);
      store_floats(h + 2 * int64_t(i) + N, high, N, true);
    } else {
#pragma unroll
      for (int e = 0; e < N; ++e) {
        if (i + e >= f.ffn) break;
        h[gate_column(i + e)] = from_float<T>(gate[e]);
        if (f.gated) h[up_column(i + e)] = from_float<T>(up[e]);
      }
    }
  }
};

template <class T> __device__ void forward(const ActivationFwdParams &p) {
  constexpr int N = Pack<T>::size;
  const Halves<T> halves = {p.formula, p.halves};
  const bool packed = p.halves.access != ACCESS_ELEMENTS;
  const int ffn = p.formula.ffn;
  const Team team(p.team);
  RowWalk walk(p.groups, p.report);
  if (p.groups.count == 0) walk.only(true_count(p.rows, p.report));
  for (int64_t number = team.first;; number += team.teams) {
    const int64_t row = walk.row(number);
    if (row < 0) return;
    T *const y = row_of<T>(p.y, row);
    if (walk.is_gap(row)) {
      zero_row(y, ffn, team);
      continue;
    }
    const T *const h = row_of<T>(p.h, row);
    const float weight = row_weight(p.row_weights, row, p.report);
    for (int i = team.lane * N; i < ffn; i += team.size * N) {
      Floats<N> gate, up, act;
      halves.load(h, i, gate, up);
      activate<N, sizeof(T) == 4>(p.formula, gate, up, act);
#pragma unroll
      for (int e = 0; e < N; ++e) act[e] *= weight;
      store_floats(y + i, act, ffn - i, packed);
    }
  }
}

template <class T> __device__ void backward(const ActivationBwdParams &p) {
  constexpr int N = Pack<T>::size;
  const Halves<T> halves = {p.formula, p.halves};
  const bool packed = p.halves.access != ACCESS_ELEMENTS;
  const int ffn = p.formula.ffn;
  const Team team(p.team);
  RowWalk walk(p.groups, p.report);
  if (p.groups.count == 0) walk.only(true_count(p.rows, p.report));
  for (int64_t number = team.first;; number += team.teams) {
    const int64_t row = walk.row(number);
    if (row < 0) return;
    T *const dh = row_of<T>(p.dh, row);
    T *const weighted_act = p.weighted_act.data == nullptr ? nullptr : row_of<T>(p.weighted_act, row);
    if (walk.is_gap(row)) {
      zero_row(dh, p.formula.gated ? 2 * int64_t(ffn) : ffn, team);
      if (weighted_act != nullptr) zero_row(weighted_act, ffn, team);
      if (p.drow_weights.data != nullptr && team.lane == 0) store_float(p.drow_weights, row, 0.0f);
      continue;
    }
    const T *const h = row_of<T>(p.h, row);
    const T *const dy = row_of<T>(p.dy, row);
    const float weight = row_weight(p.row_weights, row, p.report);
    float dot = 0.0f;
    for (int i = team.lane * N; i < ffn; i += team.size * N) {
      Floats<N> gate, up, act, d;
      halves.load(h, i, gate, up);
      load_floats(d, dy + i, ffn - i, packed);
      activate_gradient<N, sizeof(T) == 4>(p.formula, gate, up, act);
#pragma unroll
      for (int e = 0; e < N; ++e) {
        dot += i + e < ffn ? d[e] * act[e] : 0.0f;
        gate[e] *= weight * d[e];
        up[e] *= weight * d[e];
        act[e] *= weight;
      }
      halves.store(dh, i, gate, up);
      if (weighted_act != nullptr) store_floats(weighted_act + i, act, ffn - i, packed);
    }
    if (p.drow_weights.data == nullptr) continue;
    dot = team.sum(dot);
    if (team.lane != 0) continue;
    if (p.dot_start.data != nullptr) dot += load_float(p.dot_start, row);
    store_float(p.drow_weights, row, dot);
  }
}

}  // namespace

// The registers of more blocks than these would spill on sm_80.
#if __CUDA_ARCH__ >= 900
#define FORWARD_BOUNDS ROW_THREADS
#define BACKWARD_BOUNDS ROW_THREADS, 3
#else
#define FORWARD_BOUNDS ROW_THREADS, 4
#define BACKWARD_BOUNDS ROW_THREADS, 2
#endif

#define ACTIVATION_KERNELS(NAME, T)                                                                                  \
  extern "C" __global__ void __launch_bounds__(FORWARD_BOUNDS)                                                       \
      activation_fwd_##NAME(const __grid_constant__ ActivationFwdParams p) {                                         \
    forward<T>(p);                                                                                                   \
  }                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(BACKWARD_BOUNDS)                                                      \
      activation_bwd_##NAME(const __grid_constant__ ActivationBwdParams p) {                                         \
    backward<T>(p);                                                                                                  \
  }

ACTIVATION_KERNELS(fp32, float)
ACTIVATION_KERNELS(fp16, __half)
ACTIVATION_KERNELS(bf16, __nv_bfloat16)
