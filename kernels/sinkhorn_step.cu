// One round of Sinkhorn, for reductions over ranks between the rounds. log d1 is the gauge, and u is always 1.
#include "sinkhorn_rows.cuh"

namespace {

constexpr int STEP_THREADS = 512;

__device__ __forceinline__ float all_tokens(const SinkhornStepParams &p) {
  return p.total_tokens != nullptr ? *p.total_tokens : static_cast<float>(true_count(p.rows.tokens, p.report));
}

// Whether this round has column masses to give.
__device__ __forceinline__ bool has_masses(const SinkhornStepParams &p) { return p.round < 0 || (!p.last && *p.done == 0); }

// This rank's column masses, a row of partials for each block.
template <int N> __device__ __forceinline__ void step_masses(const SinkhornStepParams &p) {
  extern __shared__ float4 memory[];
  if (!has_masses(p)) return;
  const Place place(p.rows, p.rows.lanes, true_count(p.rows.tokens, p.report));
  const int width = p.rows.lanes * N;
  float *gauge = reinterpret_cast<float *>(memory), *columns = gauge + width, *scratch = columns + width;
  for (int column = threadIdx.x; column < width; column += blockDim.x)
    gauge[column] = column < p.rows.experts && p.round > -2 ? p.log_d1[column] : 0;
  __syncthreads();
  Row<N> sums = filled<N>(0);
  if (p.round == -2) {
    sums = column_maxima<N>(place, p.report);
  } else if (p.round == -1) {
    sums = column_exponentials<N>(place, gauge, p.report);
  } else {
    const float tokens = all_tokens(p);
    stream<N>(place, 0, p.report, [&](Row<N> &x, int row) {
      const float shift = make_terms(place, x, gauge);
      const float sum = dot(place, x, filled<N>(1)), scale = row_scale(sum, shifted_epsilon(shift), tokens);
#pragma unroll
      for (int k = 0; k < N; ++k) sums.at[k] = fmaf(scale, x.at[k], sums.at[k]);
      if (p.log_d0 != nullptr && place.lane == 0 && row < place.count) p.log_d0[place.first + row] = log_scale(shift, sum, tokens);
    });
  }
  over_block(p.round == -2, place, sums, scratch, columns);
  for (int column = threadIdx.x; column < p.rows.experts; column += blockDim.x)
    p.partials[static_cast<int64_t>(blockIdx.x) * p.rows.experts + column] = columns[column];
}

// The columns' half of a round, by one block: log d1 from the summed masses.
__device__ __forceinline__ void step_columns(const SinkhornStepParams &p) {
  __shared__ float warps[STEP_THREADS / 32];
  const float tokens = all_tokens(p), experts = p.rows.experts;
  if (p.round > 0 && *p.done != 0) return;
  const bool any = tokens > 0;
  float error = 0;
  for (int column = threadIdx.x; column < p.rows.experts; column += blockDim.x) {
    const float old = p.log_d1[column], mass = p.column_mass[column];
    float log_d1 = 0;
    if (p.round == -1) {
      log_d1 = mass;
    } else if (p.round > 0) {
      log_d1 = log_next(old, mass, p.rows.experts);
      const float change = p.relative ? fabsf(expm1f(old - log_d1)) : fabsf(expf(old) - expf(log_d1));
      error = p.relative ? fmaxf(error, change) : error + change;
    } else if (p.column_sums && any) {
      log_d1 = -logf(experts) - (mass > 0 ? old + logf(mass) : LOG_EPSILON);
    }
    p.log_d1[column] = log_d1;
  }
  if (p.round < 0) return;
  error = over_lanes(p.relative, error, 32);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = error;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < STEP_THREADS / 32; ++warp) error = join(p.relative, error, warps[warp]);
  if (!p.relative) error /= experts;
  *p.done = p.round == 0 ? !any : error <= p.tolerance;
  if (p.iterations != nullptr) *p.iterations = p.round;
  if (p.error != nullptr) *p.error = error;
}

} // namespace

extern "C" {
__global__ void __launch_bounds__(THREADS<4>, 1) sinkhorn_step_masses_4(SinkhornStepParams p) { step_masses<4>(p); }
__global__ void __launch_bounds__(THREADS<16>, 1) sinkhorn_step_masses_16(SinkhornStepParams p) { step_masses<16>(p); }
__global__ void __launch_bounds__(THREADS<32>, 1) sinkhorn_step_masses_32(SinkhornStepParams p) { step_masses<32>(p); }

__global__ void __launch_bounds__(STEP_THREADS) sinkhorn_step_columns(SinkhornStepParams p) { step_columns(p); }

// Joins the partials of all blocks into column_mass.
__global__ void __launch_bounds__(STEP_THREADS) sinkhorn_step_join(SinkhornStepParams p) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= p.rows.experts) return;
  const bool maximum = p.round == -2;
  float value = maximum ? -INFINITY : 0.0f;
  if (has_masses(p)) {
#pragma unroll 8
    for (int block = 0; block < p.blocks; ++block)
      value = join(maximum, value, p.partials[static_cast<int64_t>(block) * p.rows.experts + column]);
  }
  p.column_mass[column] = value;
}
}
