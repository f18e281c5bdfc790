// Sinkhorn to convergence in one cooperative launch.
//
// A row is kept as terms x_te = exp(L_te + g_e - shift_t), where g is a logarithmic gauge of the columns: d1 = exp(g) * u.
// An iteration is then scale_t = 1/(T*(sum_e u_e*x_te + eps*exp(-shift_t))), S_e = sum_t scale_t*x_te and
// u_e = 1/(E*(S_e + eps*exp(g_e))): products alone. Only where some u leaves a comfortable range does g absorb it, and the terms
// are made anew. A block's first rows stay in registers, as many others as fit in shared memory; the terms of the rest are made from
// the logits in each iteration.
//
// Blocks join their S by additions in the L2 cache, once an iteration. As sum_e u_e*S_e <= 1, S_e is added in units of 1/u_e, rounded
// to a power of two. 55 bits of that are enough: after an iteration u_e*S_e is no less than 1/(2*E*T), before one u_e is 1 and eps
// has 1e-8 of the unit.
#include <cooperative_groups.h>

#include <utility>

#include "grid_sum.cuh"
#include "sinkhorn_rows.cuh"

namespace {

// u outside 2^-24 to 2^24 moves into the gauge: an iteration changes it by max(E, T) at most, so nothing overflows.
constexpr float RANGE = 16777216.0f;

// Rows that a thread's registers keep.
template <int N> constexpr int KEPT = N == 4 ? SINKHORN_KEPT_4 : N == 16 ? SINKHORN_KEPT_16 : 0;
// Columns that a thread of the leading warps has: it joins the warps' sums of them, and keeps their u.
template <int N> constexpr int LED = N == 32 ? 4 : 1;

// The block's shared memory.
struct Memory {
  // What the leading threads last saw of their columns' totals, of even and of odd rounds.
  uint64_t *totals;
  // Of the columns; of the warps: what the stopping test looks at.
  float *u, *old, *gauge, *errors;
  // A row of columns for each warp; rows of terms; for those and the kept ones the shift, and eps so shifted.
  float *scratch, *rows, *shifts, *epsilons;

  __device__ Memory(float *memory, const SinkhornParams &p, int width, int warps, int kept)
      : totals(reinterpret_cast<uint64_t *>(memory)), u(memory + 4 * max(width, 32)), old(u + width), gauge(old + width),
        errors(gauge + width), scratch(errors + 16), rows(scratch + warps * width),
        shifts(rows + p.resident * p.pitch), epsilons(shifts + kept + p.resident) {}
};

// Floats as integers of the same order; 0 is below all of them.
__device__ __forceinline__ uint32_t to_ordered(float value) {
  const uint32_t bits = __float_as_uint(value);
  return bits >> 31 ? ~bits : bits | 1u << 31;
}
__device__ __forceinline__ float from_ordered(uint32_t ordered) {
  return __uint_as_float(ordered >> 31 ? ordered & ~(1u << 31) : ~ordered);
}

// The largest power of two up to a normal number, and a power's inverse.
__device__ __forceinline__ float power_of_two(float value) { return __uint_as_float(__float_as_uint(value) & 0x7f800000u); }
__device__ __forceinline__ float inverse_power(float power) { return __uint_as_float((254u << 23) - __float_as_uint(power)); }

template <int N> struct Block {
  const SinkhornParams &p;
  const Place place;
  const Memory m;
  const float tokens;
  // None as long as all of it is 0.
  const float *gauge = nullptr;
  Row<N> kept[KEPT<N> > 0 ? KEPT<N> : 1];

  __device__ int kept_rows() const { return KEPT<N> * place.groups; }

  __device__ __forceinline__ Row<N> stored(int row) const {
    Row<N> x;
#pragma unroll
    for (int j = 0; j < N / 4; ++j) {
      float4 quad = make_float4(0, 0, 0, 0);
      if (place.quad(j) < p.rows.experts)
        quad = *reinterpret_cast<const float4 *>(m.rows + (row - kept_rows()) * p.pitch + place.quad(j));
      x.at[4 * j] = quad.x, x.at[4 * j + 1] = quad.y, x.at[4 * j + 2] = quad.z, x.at[4 * j + 3] = quad.w;
    }
    return x;
  }

  // Keeps the terms of a row where there is room.
  __device__ __forceinline__ void store(const Row<N> &x, int row, float shift, float epsilon) {
    const int base = row - place.group;
    if (base >= kept_rows() + p.resident) return;
    if (place.lane == 0) m.shifts[row] = shift, m.epsilons[row] = epsilon;
#pragma unroll
    for (int k = 0; k < KEPT<N>; ++k)
      if (base == k * place.groups) kept[k] = x;
    if (base < kept_rows()) return;
#pragma unroll
    for (int j = 0; j < N / 4; ++j)
      if (place.quad(j) < p.rows.experts)
        *reinterpret_cast<float4 *>(m.rows + (row - kept_rows()) * p.pitch + place.quad(j)) =
            make_float4(x.at[4 * j], x.at[4 * j + 1], x.at[4 * j + 2], x.at[4 * j + 3]);
  }

  // S of this block's tokens; `fresh`: all terms are made, from the logits and the gauge.
  __device__ __forceinline__ Row<N> column_sums(bool fresh) {
    Row<N> sums = filled<N>(0);
    const auto add = [&](const Row<N> &x, float dot, float epsilon) {
      const float scale = row_scale(dot, epsilon, tokens);
#pragma unroll
      for (int k = 0; k < N; ++k) sums.at[k] = fmaf(scale, x.at[k], sums.at[k]);
    };
    const int resident = kept_rows() + p.resident;
    if (!fresh) {
      const Row<N> u = load_columns<N>(place, m.u);
      if (place.count > place.groups) {
        // Side by side, so that one row waits less for its lanes. Kept rows that the block does not have are zeros.
        float dots[KEPT<N> + 1];
#pragma unroll
        for (int k = 0; k < KEPT<N>; ++k) dots[k] = dot(place, kept[k], u);
#pragma unroll
        for (int k = 0; k < KEPT<N>; ++k) add(kept[k], dots[k], m.epsilons[k * place.groups + place.group]);
      } else if (KEPT<N> > 0) {
        add(kept[0], dot(place, kept[0], u), m.epsilons[place.group]);
      }
#pragma unroll 1
      for (int base = kept_rows(); base < min(place.count, resident); base += place.groups) {
        const Row<N> x = stored(base + place.group);
        add(x, dot(place, x, u), m.epsilons[base + place.group]);
      }
    }
    stream<N>(place, fresh ? 0 : resident, p.report, [&](Row<N> &x, int row) {
      const float shift = make_terms(place, x, gauge), epsilon = shifted_epsilon(shift);
      if (fresh) store(x, row, shift, epsilon);
      add(x, dot(place, x, m.u), epsilon);
    });
    return sums;
  }

  // The rows' outputs, by the last iteration's old and new columns.
  __device__ __forceinline__ void write_rows() {
    if (p.probs.data == nullptr && p.log_d0 == nullptr) return;
#pragma unroll 1
    for (int base = 0; base < place.count; base += place.groups) {
      const int row = base + place.group;
      float shift;
      Row<N> x;
      if (base < kept_rows() + p.resident) {
        shift = m.shifts[row];
#pragma unroll
        for (int k = 0; k < KEPT<N>; ++k)
          if (base == k * place.groups) x = kept[k];
        if (base >= kept_rows()) x = stored(row);
      } else {
        x = load_logits<N>(place, row, p.report);
        shift = make_terms(place, x, gauge);
      }
      const float sum = dot(place, x, m.old), scale = row_scale(sum, shifted_epsilon(shift), tokens);
      if (row >= place.count) continue;
      if (p.log_d0 != nullptr && place.lane == 0) p.log_d0[place.first + row] = log_scale(shift, sum, tokens);
      if (p.probs.data == nullptr) continue;
#pragma unroll
      for (int j = 0; j < N / 4; ++j) {
        const int column = place.quad(j);
        if (column >= p.rows.experts) continue;
        const int64_t at = (place.first + row) * p.probs.pitch + column;
        const float4 u = *reinterpret_cast<const float4 *>(m.u + column);
        const float quad[4] = {scale * x.at[4 * j] * u.x, scale * x.at[4 * j + 1] * u.y, scale * x.at[4 * j + 2] * u.z,
                               scale * x.at[4 * j + 3] * u.w};
        if (!p.probs_quads) {
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if (column + i < p.rows.experts) store_float(p.probs, at + i, quad[i]);
        } else if (p.probs.dtype == MOE_DTYPE_BF16) {
          store_quad(reinterpret_cast<__nv_bfloat16 *>(p.probs.data) + at, quad);
        } else if (p.probs.dtype == MOE_DTYPE_FP16) {
          store_quad(reinterpret_cast<__half *>(p.probs.data) + at, quad);
        } else {
          store_quad(reinterpret_cast<float *>(p.probs.data) + at, quad);
        }
      }
    }
  }
};

// The columns that this thread leads, in the first warps of its block.
template <int N, int WIDTH> struct Leader {
  static constexpr int THREADS_LED = WIDTH < 32 ? 32 : WIDTH / LED<N>, WARPS_LED = THREADS_LED / 32;
  // Columns, and threads without one.
  static constexpr int PLACES = THREADS_LED * LED<N>;
  const SinkhornParams &p;
  const Memory &m;
  // Whether the thread's warp has columns.
  const bool leads;
  // The most that a block can add.
  const float most;
  int round = 0;
  // S of the block, then of the grid.
  float sums[LED<N>];

  __device__ Leader(const SinkhornParams &p, const Memory &m, float share)
      : p(p), m(m), leads(threadIdx.x / 32 * 32 < min(THREADS_LED, p.rows.experts)), most(1.5f * share) {}

  // Threads without a column go along with the last one, so that their warp stays together; they write nothing.
  __device__ __forceinline__ int place(int i) const { return threadIdx.x + i * THREADS<N>; }
  __device__ __forceinline__ int column(int i) const { return min(place(i), p.rows.experts - 1); }
  __device__ __forceinline__ bool has(int i) const { return place(i) < p.rows.experts; }
  __device__ __forceinline__ uint64_t *total(int i) const { return &p.shared[column(i) / 4].totals[round][column(i) % 4]; }
  __device__ __forceinline__ uint32_t *maximum(int i) const { return &p.shared[column(i) / 4].maxima[column(i) % 4]; }

  // Joins the warps' columns. Where these are fewer than 32, neighbours take every so many warps' each.
  __device__ __forceinline__ void join_block(bool maximum) {
    constexpr int step = PLACES / WIDTH;
#pragma unroll
    for (int i = 0; i < LED<N>; ++i) {
      float value = m.scratch[place(i)];
#pragma unroll
      for (int warp = step; warp < WARPS<N>; warp += step) value = join(maximum, value, m.scratch[warp * WIDTH + place(i)]);
#pragma unroll
      for (int distance = WIDTH; distance < 32; distance *= 2) value = join(maximum, value, __shfl_xor_sync(ALL, value, distance));
      sums[i] = value;
    }
  }

  // Adds the sums up over the grid; times scale(i), a power of two, they come to 1 at most.
  template <class Scale> __device__ __forceinline__ void join_grid(const Scale &scale) {
#pragma unroll
    for (int i = 0; i < LED<N>; ++i)
      if (has(i)) grid_add(total(i), fminf(fmaxf(sums[i] * scale(i), 0.0f), most));
#pragma unroll
    for (int i = 0; i < LED<N>; ++i) {
      uint64_t &seen = m.totals[round * PLACES + place(i)];
      const uint64_t now = grid_await(total(i), seen, gridDim.x);
      sums[i] = grid_sum(seen, now) * inverse_power(scale(i));
      seen = now;
    }
    round ^= 1;
  }
};

__device__ __forceinline__ void write_scalars(const SinkhornParams &p, int iterations, float error) {
  if (blockIdx.x != 0 || threadIdx.x != 0) return;
  if (p.iterations != nullptr) *p.iterations = iterations;
  if (p.error != nullptr) *p.error = error;
}

template <int N, int LANES> __device__ __forceinline__ void run(const SinkhornParams &p) {
  extern __shared__ float4 memory[];
  constexpr int width = LANES * N;
  const int64_t count = true_count(p.rows.tokens, p.report);
  const float tokens = count, experts = p.rows.experts;
  if (count == 0) {
    write_scalars(p, 0, 0);
    if (p.log_d1 != nullptr && blockIdx.x == 0)
      for (int column = threadIdx.x; column < p.rows.experts; column += blockDim.x) p.log_d1[column] = 0;
    return;
  }
  const Place place(p.rows, LANES, count);
  const Memory m(reinterpret_cast<float *>(memory), p, width, WARPS<N>, KEPT<N> * place.groups);
  float *const own = m.scratch + threadIdx.x / 32 * width;
  Block<N> block{p, place, m, tokens};
  Leader<N, width> leader(p, m, place.count / tokens);
#pragma unroll
  for (int k = 0; k < KEPT<N>; ++k) block.kept[k] = filled<N>(0);
  for (int row = threadIdx.x; row < KEPT<N> * place.groups; row += blockDim.x) m.epsilons[row] = INFINITY;
  for (int column = threadIdx.x; column < width; column += blockDim.x) m.u[column] = 1, m.old[column] = 1, m.gauge[column] = 0;
  for (int i = threadIdx.x; i < 2 * leader.PLACES; i += blockDim.x) m.totals[i] = 0;
  if (threadIdx.x < 16) m.errors[threadIdx.x] = 0;
  // Nobody adds before the grid has met; until then there are terms to be made.
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < (p.rows.experts + 3) / 4; i += gridDim.x * blockDim.x)
    p.shared[i] = SharedColumns{};
  const auto grid = cooperative_groups::this_grid();
  auto arrival = grid.barrier_arrive();
  bool met = false;
  float u[LED<N>], gauge[LED<N>];
#pragma unroll
  for (int i = 0; i < LED<N>; ++i) u[i] = 1, gauge[i] = 1;
  __syncthreads();

  if (p.column_sums) {
    // d1 = 1/(E * column sums of exp(L)): the gauge has the columns' maxima, u takes what is left.
    Row<N> columns = column_maxima<N>(place, p.report);
    over_warp(true, place, columns, own);
    grid.barrier_wait(std::move(arrival));
    met = true;
    if (leader.leads) {
      leader.join_block(true);
#pragma unroll
      for (int i = 0; i < LED<N>; ++i)
        if (leader.has(i)) atomicMax(leader.maximum(i), to_ordered(leader.sums[i]));
    }
    grid.sync();
#pragma unroll
    for (int i = 0; i < LED<N>; ++i)
      if (leader.leads && leader.has(i)) {
        const float maximum = from_ordered(__ldcg(leader.maximum(i)));
        m.old[leader.column(i)] = maximum, m.gauge[leader.column(i)] = -maximum;
      }
    __syncthreads();
    columns = column_exponentials<N>(place, m.old, p.report);
    over_warp(false, place, columns, own);
    __syncthreads();
    if (leader.leads) {
      leader.join_block(false);
      leader.join_grid([&](int) { return inverse_power(2 * power_of_two(tokens)); });
#pragma unroll
      for (int i = 0; i < LED<N>; ++i)
        if (leader.has(i)) {
          const int column = leader.column(i);
          const bool empty = !(leader.sums[i] > 0);
          if (empty) m.gauge[column] = -logf(experts) - LOG_EPSILON;
          m.u[column] = u[i] = empty ? 1.0f : 1.0f / (experts * leader.sums[i]);
          gauge[i] = expf(m.gauge[column]);
        }
    }
    block.gauge = m.gauge;
    __syncthreads();
  }

  int iterations = 0;
  float error;
  const float weight = p.relative ? 1.0f : 1.0f / experts;
  for (bool fresh = true;;) {
    Row<N> columns = block.column_sums(fresh);
    over_warp(false, place, columns, own);
    if (met) {
      __syncthreads();
    } else {
      grid.barrier_wait(std::move(arrival));
      met = true;
    }
    // u from S, what the stopping test looks at, and whether some u leaves its range.
    bool out = false;
    if (leader.leads) {
      leader.join_block(false);
      leader.join_grid([&](int i) { return power_of_two(u[i]); });
      error = 0;
#pragma unroll
      for (int i = 0; i < LED<N>; ++i) {
        const float mass = leader.sums[i] + EPSILON * gauge[i], old = u[i];
        u[i] = fminf(1.0f / (experts * mass), LARGEST);
        const float change = p.relative ? fabsf(old * experts * mass - 1) : fabsf(old - u[i]);
        const float part = p.relative ? change : change > 0 ? change * gauge[i] : 0.0f;
        error = join(p.relative, error, leader.has(i) ? part : 0.0f);
        out |= leader.has(i) && !(u[i] > 1 / RANGE && u[i] < RANGE);
        if (leader.has(i)) m.old[leader.column(i)] = old, m.u[leader.column(i)] = u[i];
      }
      error = over_lanes(p.relative, error, 32);
      if (threadIdx.x % 32 == 0) m.errors[threadIdx.x / 32] = error;
    }
    fresh = __syncthreads_or(out);
    error = m.errors[0];
#pragma unroll
    for (int warp = 1; warp < leader.WARPS_LED; ++warp) error = join(p.relative, error, m.errors[warp]);
    error *= weight;
    if (++iterations == p.max_iterations || error <= p.tolerance) break;
    if (!fresh) continue;
#pragma unroll
    for (int i = 0; i < LED<N>; ++i)
      if (leader.leads && leader.has(i)) {
        const int column = leader.column(i);
        const float next = log_next(m.gauge[column], leader.sums[i], p.rows.experts);
        m.gauge[column] = next, m.u[column] = u[i] = 1, gauge[i] = expf(next);
      }
    block.gauge = m.gauge;
    __syncthreads();
  }
  block.write_rows();
  write_scalars(p, iterations, error);
  if (p.log_d1 == nullptr || blockIdx.x != 0) return;
#pragma unroll
  for (int i = 0; i < LED<N>; ++i)
    if (leader.leads && leader.has(i)) p.log_d1[leader.column(i)] = log_next(m.gauge[leader.column(i)], leader.sums[i], p.rows.experts);
}

} // namespace

// sinkhorn_<columns a lane>_<lanes a row>
#define SINKHORN(N, LANES) \
  __global__ void __launch_bounds__(THREADS<N>, 1) sinkhorn_##N##_##LANES(SinkhornParams p) { run<N, LANES>(p); }

extern "C" {
SINKHORN(4, 1)
SINKHORN(4, 2)
SINKHORN(4, 4)
SINKHORN(4, 8)
SINKHORN(16, 4)
SINKHORN(16, 8)
SINKHORN(16, 16)
SINKHORN(16, 32)
SINKHORN(32, 32)
}
