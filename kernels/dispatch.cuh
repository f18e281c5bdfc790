// How a plan's maps are read: what they hold is never trusted (src/cpu/dispatch/mod.rs is the CPU's).
#pragma once

#include "count.cuh"
#include "dtype.cuh"
#include "params/dispatch.h"

__device__ inline int lane_id() { return threadIdx.x % 32; }

__device__ inline int64_t clamped(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

// Maps, with the true counts that bound them.
struct Maps {
  const DispatchMaps &at;
  // The true T.
  int64_t tokens;
  // Rows in use.
  int64_t rows;

  __device__ explicit Maps(const DispatchMaps &maps)
      : at(maps), tokens(true_count(maps.tokens, maps.report)), rows(maps.rows) {
    if (maps.group_offsets == nullptr) return;
    rows = clamped(maps.group_offsets[maps.groups], 0, maps.rows);
    if (blockIdx.x > 0) return;
    for (int64_t group = threadIdx.x; group <= maps.groups; group += blockDim.x) {
      const int64_t offset = maps.group_offsets[group];
      const int64_t before = group > 0 ? maps.group_offsets[group - 1] : 0;
      if (offset < 0 || offset < before || offset > maps.rows) {
        record_fault(maps.report, MOE_FAULT_GROUP_OFFSET, group, offset);
      }
    }
  }

  // Entry `index` of a map if it is below `limit`, else -1; entries other than -1 that are out of range are reported.
  __device__ int64_t entry(const Matrix &map, int64_t index, int64_t limit, int32_t fault) const {
    const int64_t entry = load_index(map, index);
    if (entry >= 0 && entry < limit) return entry;
    if (entry != -1) record_fault(at.report, fault, index, entry);
    return -1;
  }

  // The token of a row; -1 for padding.
  __device__ int64_t token(int64_t row) const { return entry(at.token_of_row, row, tokens, MOE_FAULT_TOKEN_INDEX); }
  // The slot of a row; -1 for padding.
  __device__ int64_t slot(int64_t row) const {
    return entry(at.slot_of_row, row, tokens * at.top_k, MOE_FAULT_SLOT_INDEX);
  }
  // The row of a slot; -1 where it is not here.
  __device__ int64_t row(int64_t slot) const { return entry(at.row_of_slot, slot, rows, MOE_FAULT_ROW_INDEX); }

  // A token's first slot; how many it has: at most K.
  __device__ int64_t slots(int64_t token, int &count) const {
    const int64_t k = at.top_k;
    count = static_cast<int>(k);
    if (at.slot_offsets.data == nullptr) return token * k;
    const int64_t begin = load_index(at.slot_offsets, token), end = load_index(at.slot_offsets, token + 1);
    const int64_t last = tokens * k, limit = min(last, clamped(begin, 0, last) + k);
    if (begin < 0 || begin > last || end < begin || end > limit) {
      const int64_t bad = begin < 0 || begin > last ? begin : end;
      if (threadIdx.x == 0) record_fault(at.report, MOE_FAULT_SLOT_INDEX, token, bad);
    }
    count = begin < 0 || begin > last ? 0 : static_cast<int>(clamped(end, begin, limit) - begin);
    return begin;
  }

  // The column of a row's expert in dense weights.
  __device__ int64_t expert(int64_t row) const {
    int64_t low = 0, high = at.groups;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (at.group_offsets[middle] <= row ? low : high) = middle;
    }
    return at.expert_begin + low;
  }

  // The weight of a row of `token`, by its slot if that is known (not -1), else through slot_of_row.
  __device__ float weight(const DispatchWeights &weights, int64_t token, int64_t row, int64_t slot) const {
    switch (weights.kind) {
    case DISPATCH_WEIGHTS_SLOT:
      if (slot < 0) slot = this->slot(row);
      return slot < 0 ? 0.0f : load_float(weights.values, slot);
    case DISPATCH_WEIGHTS_ROW: return load_float(weights.values, row);
    case DISPATCH_WEIGHTS_DENSE: return load_float(weights.values, token * weights.values.pitch + expert(row));
    default: return 1.0f;
    }
  }
};

// Accesses of independent rows that a thread has under way.
constexpr int BATCH = 4;

// Lane i of each warp knows `source` and `target` of the i-th of `count` rows, the same in all warps of the block;
// lanes behind have the target -1. Copies rows of `columns` chunks: zeros from the source -1, nothing to the target -1.
template <class Chunk>
__device__ inline void copy_rows(const Matrix &x, const Matrix &y, int64_t columns, int64_t source, int64_t target,
                                 int count) {
#pragma unroll 1
  for (int first = 0; first < count; first += BATCH) {
    int64_t from[BATCH], to[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      from[i] = __shfl_sync(~0u, source, first + i);
      to[i] = __shfl_sync(~0u, target, first + i);
    }
#pragma unroll 1
    for (int64_t column = threadIdx.x; column < columns; column += blockDim.x) {
      Chunk value[BATCH];
#pragma unroll
      for (int i = 0; i < BATCH; ++i) {
        if (from[i] < 0) {
          value[i] = Chunk{};
        } else if (i > 0 && from[i] == from[i - 1]) {
          value[i] = value[i - 1];
        } else {
          value[i] = reinterpret_cast<const Chunk *>(x.data)[from[i] * x.pitch + column];
        }
      }
#pragma unroll
      for (int i = 0; i < BATCH; ++i) {
        if (to[i] >= 0) reinterpret_cast<Chunk *>(y.data)[to[i] * y.pitch + column] = value[i];
      }
    }
  }
}

// Calls back, whole warps at a time, for the padding among the rows in use.
template <class Callback> __device__ inline void for_padding(const Maps &maps, Callback callback) {
  const int64_t warps = blockDim.x / 32;
  const int64_t warp = blockIdx.x * warps + threadIdx.x / 32;
  for (int64_t first = 32 * warp; first < maps.rows; first += 32 * warps * gridDim.x) {
    const int64_t row = first + lane_id();
    uint32_t padding = __ballot_sync(~0u, row < maps.rows && maps.token(row) < 0);
    for (; padding != 0; padding &= padding - 1) callback(first + __ffs(padding) - 1);
  }
}
