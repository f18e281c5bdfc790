// The gradient of a grouped GEMM's bias: the sum of each group's rows, weighted and gathered where asked.
#include "groups.cuh"
#include "params/grouped_gemm.h"

constexpr int WARPS = 8;
// Columns that a block sums at a time, two a lane.
constexpr int STRIP = 64;

// The weight of row `r`: 0 where its slot is nowhere.
__device__ inline float row_weight(const RowWeights &weights, int64_t r, moe_device_report_t *report) {
  if (weights.weights.data == nullptr) return 1.0f;
  if (weights.slot_of_row.data == nullptr) return load_float(weights.weights, r);
  const int64_t slot = load_index(weights.slot_of_row, r);
  if (slot >= 0 && slot < weights.slots) return load_float(weights.weights, slot);
  if (slot != -1) record_fault(report, MOE_FAULT_SLOT_INDEX, r, slot);
  return 0.0f;
}

// The lane's two columns of the warp's rows: every WARPS-th.
template <class T>
__device__ inline float2 sum_rows(const BiasGradParams &p, const Span &span, int64_t column, int64_t source_rows) {
  const bool first = column < p.n, second = column + 1 < p.n;
  float2 sum = {0.0f, 0.0f};
#pragma unroll 4
  for (int64_t r = span.begin + threadIdx.x / 32; r < span.begin + span.rows; r += WARPS) {
    const int64_t source = source_row(p.gather, source_rows, r, p.report);
    if (source < 0) continue;
    const float weight = row_weight(p.weights, r, p.report);
    const T *const row = reinterpret_cast<const T *>(p.dc.data) + source * p.dc.pitch + column;
    if (first) sum.x += weight * to_float(row[0]);
    if (second) sum.y += weight * to_float(row[1]);
  }
  return sum;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 4) grouped_gemm_bias_grad(const __grid_constant__ BiasGradParams p) {
  __shared__ float2 parts[WARPS][STRIP / 2];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t strips = (p.n + STRIP - 1) / STRIP;
  const int64_t source_rows = true_count(p.gather.rows, p.report);
  const bool add = adds(p.mode);
  GroupScan scan = {};
  Span span;
  int64_t strip;
  for (int64_t item = blockIdx.x; scan.find(p.groups, item, p.report, [&](const Span &) { return strips; }, span, strip);
       item += gridDim.x) {
    const int64_t column = strip * STRIP + 2 * lane;
    switch (p.dc.dtype) {
    case MOE_DTYPE_FP16: parts[warp][lane] = sum_rows<__half>(p, span, column, source_rows); break;
    case MOE_DTYPE_BF16: parts[warp][lane] = sum_rows<__nv_bfloat16>(p, span, column, source_rows); break;
    default: parts[warp][lane] = sum_rows<float>(p, span, column, source_rows);
    }
    __syncthreads();
    if (threadIdx.x < STRIP && strip * STRIP + threadIdx.x < p.n) {
      float sum = 0.0f;
      for (int part = 0; part < WARPS; ++part) sum += reinterpret_cast<const float *>(parts[part])[threadIdx.x];
      const int64_t place = span.group * p.dbias.pitch + strip * STRIP + threadIdx.x;
      store_float(p.dbias, place, add ? sum + p.beta * load_float(p.dbias, place) : sum);
    }
    __syncthreads();
  }
}
