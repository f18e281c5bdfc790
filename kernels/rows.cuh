// Rows of groups one by one: a team of threads, a warp or a whole block, takes every so-manieth row.
#pragma once

#include "groups.cuh"

constexpr int ROW_THREADS = 256;

// The threads that have a row together.
struct Team {
  // 32 or ROW_THREADS.
  int size;
  int lane;
  // Its first row, and how many teams there are.
  int64_t first;
  int64_t teams;

  __device__ explicit Team(int size)
      : size(size),
        lane(threadIdx.x % size),
        first(blockIdx.x * int64_t(ROW_THREADS / size) + threadIdx.x / size),
        teams(gridDim.x * int64_t(ROW_THREADS / size)) {}

  // The sum over the team's threads, in a fixed order, for its first thread. All threads call together.
  __device__ float sum(float value) const {
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(WARP, value, distance);
    if (size == 32) return value;
    __shared__ float of_warp[ROW_THREADS / 32];
    __syncthreads();
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    float total = 0.0f;
    for (int warp = 0; warp < ROW_THREADS / 32; ++warp) total += of_warp[warp];
    return total;
  }
};

// The rows of all groups and the gaps behind their true rows, numbered through.
struct RowWalk {
  const Groups &groups;
  moe_device_report_t *report;
  GroupScan scan = {};
  // The group of the last row.
  Span span = {0, 0, 0, 0};
  // Rows up to that group's end.
  int64_t upto = 0;

  __device__ RowWalk(const Groups &groups, moe_device_report_t *report) : groups(groups), report(report) {}

  // One span of so many rows instead of groups.
  __device__ void only(int64_t rows) {
    span = {0, 0, rows, rows};
    upto = rows;
  }

  // The `number`-th row, -1 behind the last. Numbers ascend; all lanes of a warp call together.
  __device__ int64_t row(int64_t number) {
    if (number >= upto) {
      int64_t place;
      const auto rows_of = [](const Span &s) { return s.end - s.begin; };
      if (groups.count == 0 || !scan.find(groups, number, report, rows_of, span, place)) return -1;
      upto = number - place + rows_of(span);
    }
    return span.end - (upto - number);
  }

  __device__ bool is_gap(int64_t row) const { return row >= span.begin + span.rows; }
};

// Where a row's weight is: in its slot, as an index says it, or with the row.
__device__ inline int64_t weight_place(const RowWeights &weights, int64_t row) {
  if (weights.weights.data == nullptr || weights.slot_of_row.data == nullptr) return row;
  return load_index(weights.slot_of_row, row);
}

__device__ inline float weight_at(const RowWeights &weights, int64_t place, int64_t row, moe_device_report_t *report) {
  if (weights.weights.data == nullptr) return 1.0f;
  if (weights.slot_of_row.data == nullptr || (place >= 0 && place < weights.slots)) return load_float(weights.weights, place);
  if (place != -1) record_fault(report, MOE_FAULT_SLOT_INDEX, row, place);
  return 0.0f;
}

__device__ inline float row_weight(const RowWeights &weights, int64_t row, moe_device_report_t *report) {
  return weight_at(weights, weight_place(weights, row), row, report);
}

// A pack's elements as floats; those of a line from `valid` on are 0. Packed: one load.
template <class T>
__device__ inline void load_floats(float (&values)[Pack<T>::size], const T *from, int64_t valid, bool packed) {
  if (packed) {
    const Pack<T> pack = load_pack(from);
#pragma unroll
    for (int e = 0; e < Pack<T>::size; ++e) values[e] = to_float(pack.at[e]);
  } else {
#pragma unroll
    for (int e = 0; e < Pack<T>::size; ++e) values[e] = e < valid ? to_float(from[e]) : 0.0f;
  }
}

template <class T>
__device__ inline void store_floats(T *to, const float (&values)[Pack<T>::size], int64_t valid, bool packed) {
  if (packed) {
    Pack<T> pack;
#pragma unroll
    for (int e = 0; e < Pack<T>::size; ++e) pack.at[e] = from_float<T>(values[e]);
    store_pack(to, pack);
  } else {
#pragma unroll
    for (int e = 0; e < Pack<T>::size; ++e) {
      if (e < valid) to[e] = from_float<T>(values[e]);
    }
  }
}

template <class T> __device__ inline void zero_row(T *to, int64_t columns, const Team &team) {
  for (int64_t i = team.lane; i < columns; i += team.size) to[i] = from_float<T>(0.0f);
}
