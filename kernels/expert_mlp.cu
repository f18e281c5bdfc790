// The expert MLP's own steps: all else it does by the kernels of other operations.
#include "params/expert_mlp.h"
#include "rows.cuh"

namespace {

// Columns i and on of a row, a pack of T of them, from a matrix of T or of fp32; those that do not exist are 0.
template <class T> struct Line {
  static constexpr int N = Pack<T>::size;

  const Matrix &matrix;
  int64_t row;
  int64_t columns;
  bool packed;

  __device__ void load(float (&values)[N], int64_t i) const {
    if (matrix.dtype != MOE_DTYPE_FP32 || sizeof(T) == 4) {
      return load_floats(values, row_of<T>(matrix, row) + i, columns - i, packed);
    }
#pragma unroll
    for (int e = 0; e < N; ++e) values[e] = i + e < columns ? row_of<float>(matrix, row)[i + e] : 0.0f;
  }

  __device__ void store(const float (&values)[N], int64_t i) const {
    if (matrix.dtype != MOE_DTYPE_FP32 || sizeof(T) == 4) {
      return store_floats(row_of<T>(matrix, row) + i, values, columns - i, packed);
    }
#pragma unroll
    for (int e = 0; e < N; ++e) {
      if (i + e < columns) row_of<float>(matrix, row)[i + e] = values[e];
    }
  }
};

// to[r] = weight * from[source of r] (+ to[r]); gaps become zero.
template <class T> __device__ void scale_rows(const ScaleRowsParams &p) {
  constexpr int N = Pack<T>::size;
  const Team team(p.team);
  RowWalk walk(p.groups, p.report);
  const int64_t sources = true_count(p.gather.rows, p.report);
  const bool add = adds(p.mode);
  for (int64_t number = team.first;; number += team.teams) {
    const int64_t row = walk.row(number);
    if (row < 0) return;
    const int64_t source = walk.is_gap(row) ? -1 : source_row(p.gather, sources, row, p.report);
    if (source < 0 && add) continue;
    const float weight = source < 0 ? 0.0f : row_weight(p.row_weights, row, p.report);
    const Line<T> from = {p.from, source, p.columns, p.packed}, to = {p.to, row, p.columns, p.packed};
    for (int64_t i = team.lane * N; i < p.columns; i += team.size * N) {
      float values[N] = {}, old[N] = {};
      if (source >= 0) from.load(values, i);
      if (add) to.load(old, i);
#pragma unroll
      for (int e = 0; e < N; ++e) values[e] = weight * values[e] + old[e];
      to.store(values, i);
    }
  }
}

// dots[r] = <a[source of r], b[r, or its group]>; 0 in gaps.
template <class T> __device__ void row_dots(const RowDotsParams &p) {
  constexpr int N = Pack<T>::size;
  const Team team(p.team);
  RowWalk walk(p.groups, p.report);
  const int64_t sources = true_count(p.gather.rows, p.report);
  for (int64_t number = team.first;; number += team.teams) {
    const int64_t row = walk.row(number);
    if (row < 0) return;
    const int64_t source = walk.is_gap(row) ? -1 : source_row(p.gather, sources, row, p.report);
    const Line<T> a = {p.a, source, p.columns, p.packed};
    const Line<T> b = {p.b, p.b_by_group ? walk.span.group : row, p.columns, p.packed};
    float dot = 0.0f;
    for (int64_t i = team.lane * N; source >= 0 && i < p.columns; i += team.size * N) {
      float left[N], right[N];
      a.load(left, i);
      b.load(right, i);
#pragma unroll
      for (int e = 0; e < N; ++e) dot = fmaf(left[e], right[e], dot);
    }
    dot = team.sum(dot);
    if (team.lane == 0) store_float(p.dots, row, dot);
  }
}

}  // namespace

#define EXPERT_MLP_KERNELS(NAME, T)                                                                                  \
  extern "C" __global__ void __launch_bounds__(ROW_THREADS)                                                          \
      expert_mlp_scale_rows_##NAME(const __grid_constant__ ScaleRowsParams p) {                                      \
    scale_rows<T>(p);                                                                                                \
  }                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(ROW_THREADS, 4)                                                       \
      expert_mlp_row_dots_##NAME(const __grid_constant__ RowDotsParams p) {                                          \
    row_dots<T>(p);                                                                                                  \
  }

EXPERT_MLP_KERNELS(fp32, float)
EXPERT_MLP_KERNELS(fp16, __half)
EXPERT_MLP_KERNELS(bf16, __nv_bfloat16)

// sums[r] = start[r] + parts[r, 0] + parts[r, 1] + ..., a thread a row; 0 in gaps.
extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    expert_mlp_row_sums(const __grid_constant__ RowSumsParams p) {
  const Team team(32);
  GroupScan scan = {};
  const auto pieces_of = [](const Span &s) { return (s.end - s.begin + 31) / 32; };
  for (int64_t number = team.first;; number += team.teams) {
    Span span;
    int64_t place;
    if (!scan.find(p.groups, number, p.report, pieces_of, span, place)) return;
    const int64_t row = span.begin + 32 * place + team.lane;
    float sum = 0.0f;
    if (row < span.begin + span.rows) {
      if (p.start.data != nullptr) sum = load_float(p.start, row);
      for (int64_t i = 0; i < p.count; ++i) sum += p.parts[row * p.count + i];
    }
    if (row < span.end) store_float(p.sums, row, sum);
  }
}

// Rows between a group's true rows and the next group become zero, a warp a row. Zero is zero bytes in every dtype.
extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    expert_mlp_zero_gaps(const __grid_constant__ ZeroGapsParams p) {
  if (adds(p.mode)) return;
  const Team team(32);
  GroupScan scan = {};
  const auto gap_of = [](const Span &s) { return s.end - s.begin - s.rows; };
  for (int64_t number = team.first;; number += team.teams) {
    Span span;
    int64_t place;
    if (!scan.find(p.groups, number, p.report, gap_of, span, place)) return;
    uint8_t *const row = p.data + (span.begin + span.rows + place) * p.pitch;
    for (int64_t i = team.lane; i < p.bytes; i += 32) row[i] = 0;
  }
}

// sizes[g] = the rows of group g, none where one of its weights is absent. What is out of range stays so, for those
// who read the sizes to clamp and report.
extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    expert_mlp_present_sizes(const __grid_constant__ PresentSizesParams p) {
  const int64_t g = blockIdx.x * int64_t(ROW_THREADS) + threadIdx.x;
  if (g >= p.groups.count) return;
  bool present = true;
  for (int w = 0; w < 3; ++w) present &= p.pointers[w] == nullptr || p.pointers[w][g] != nullptr;
  const Groups &groups = p.groups;
  int64_t size;
  if (groups.sizes != nullptr) {
    size = groups.sizes[g];
  } else {
    const int64_t begin = min(max(groups.offsets[g], int64_t(0)), groups.rows_max);
    size = max(min(max(groups.offsets[g + 1], int64_t(0)), groups.rows_max) - begin, int64_t(0));
  }
  p.sizes[g] = present ? size : 0;
}
