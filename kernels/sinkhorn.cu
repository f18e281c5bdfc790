// Sinkhorn to convergence in one cooperative launch.
//
// A row is kept as terms x_te = exp(L_te + g_e - shift_t), where g is a logarithmic gauge of the columns: d1 = exp(g) * u.
// An iteration is then scale_t = 1/(T*(sum_e u_e*x_te + eps*exp(-shift_t))), S_e = sum_t scale_t*x_te and
// u_e = 1/(E*(S_e + eps*exp(g_e))): products alone. Only where some u leaves a comfortable range does g absorb it, and the terms
// are made anew. As many rows as fit stay in shared memory; the terms of the others are made from the logits in each iteration.
#include <cooperative_groups.h>

#include <utility>

#include "message.cuh"
#include "sinkhorn_rows.cuh"

namespace {

// u outside 2^-24 to 2^24 moves into the gauge: an iteration changes it by max(E, T) at most, so nothing overflows.
constexpr float RANGE = 16777216.0f;

// What the columns need of the shared memory; beyond the experts it is padding.
template <int N> struct alignas(16) Columns {
  float u[32 * N], old[32 * N], gauge[32 * N], sums[32 * N];
  float warps[WARPS<N>];
};

// The dynamic rest: a row of columns for each warp, the resident rows' terms, their shifts, and eps so shifted.
struct Terms {
  float *scratch, *rows, *shifts, *epsilons;

  __device__ Terms(float *memory, int width, const SinkhornParams &p)
      : scratch(memory), rows(memory + blockDim.x / 32 * width), shifts(rows + p.resident * p.pitch), epsilons(shifts + p.resident) {}
};

// Joins the blocks' columns[0 .. experts) into those of the whole grid, in a fixed order, by messages that carry their round, so that
// no barrier is needed: blocks run at once, and one that is ahead waits for what it needs. A mailbox is used every other
// round: by then all of its readers have answered to it.
__device__ __forceinline__ void over_grid(bool maximum, const SinkhornParams &p, float *columns, uint32_t round) {
  const int experts = p.rows.experts, blocks = gridDim.x;
  uint64_t *inbox = p.messages + static_cast<int64_t>(round % 2) * (blocks + 1) * experts;
  uint64_t *outbox = inbox + static_cast<int64_t>(blocks) * experts;
  for (int expert = threadIdx.x; expert < experts; expert += blockDim.x)
    send(inbox + static_cast<int64_t>(blockIdx.x) * experts + expert, columns[expert], round);
  // Where there are many blocks, each joins a few columns for all.
  const int share = p.two_level ? (experts + blocks - 1) / blocks : experts;
  const int begin = p.two_level ? min(experts, share * static_cast<int>(blockIdx.x)) : 0;
  const int end = min(experts, begin + share);
  int helpers = 32;
  while (helpers > 1 && helpers * share > static_cast<int>(blockDim.x)) helpers /= 2;
  const int helper = threadIdx.x % helpers;
  for (int base = begin; base < end; base += blockDim.x / helpers) {
    const int expert = base + threadIdx.x / helpers;
    float value = maximum ? -INFINITY : 0.0f;
    if (expert < end) {
      constexpr int AHEAD = 4;
      for (int block = helper; block < blocks; block += AHEAD * helpers) {
        uint64_t letters[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i)
          if (block + i * helpers < blocks) letters[i] = peek(inbox + static_cast<int64_t>(block + i * helpers) * experts + expert);
#pragma unroll
        for (int i = 0; i < AHEAD; ++i)
          if (block + i * helpers < blocks)
            value = join(maximum, value, receive(inbox + static_cast<int64_t>(block + i * helpers) * experts + expert, letters[i], round));
      }
    }
    value = over_lanes(maximum, value, helpers);
    if (expert < end && helper == 0) {
      if (p.two_level) {
        send(outbox + expert, value, round);
      } else {
        columns[expert] = value;
      }
    }
  }
  if (p.two_level)
    for (int expert = threadIdx.x; expert < experts; expert += blockDim.x)
      columns[expert] = receive(outbox + expert, peek(outbox + expert), round);
  __syncthreads();
}

// Writes 0 to this block's messages of both parities; the grid synchronises before any is sent.
__device__ __forceinline__ void empty_mailboxes(const SinkhornParams &p) {
  const int experts = p.rows.experts, blocks = gridDim.x;
  for (int parity = 0; parity < 2; ++parity) {
    uint64_t *boxes = p.messages + static_cast<int64_t>(parity) * (blocks + 1) * experts;
    for (int expert = threadIdx.x; expert < experts; expert += blockDim.x) {
      boxes[static_cast<int64_t>(blockIdx.x) * experts + expert] = 0;
      if (blockIdx.x == 0) boxes[static_cast<int64_t>(blocks) * experts + expert] = 0;
    }
  }
}

// Makes the resident rows' terms.
template <int N> __device__ __forceinline__ void fill_terms(const SinkhornParams &p, const Place &place, const Terms &terms, const float *gauge) {
  const int steps = min(place.count, p.resident);
#pragma unroll 1
  for (int base = 0; base < steps; base += place.groups) {
    const int row = base + place.group;
    Row<N> x = load_logits<N>(place, row, p.report);
    const float shift = make_terms(place, x, gauge);
    if (place.lane == 0) terms.shifts[row] = shift, terms.epsilons[row] = shifted_epsilon(shift);
#pragma unroll
    for (int j = 0; j < N / 4; ++j)
      if (place.quad(j) < p.rows.experts)
        *reinterpret_cast<float4 *>(terms.rows + row * p.pitch + place.quad(j)) =
            make_float4(x.at[4 * j], x.at[4 * j + 1], x.at[4 * j + 2], x.at[4 * j + 3]);
  }
  __syncthreads();
}

template <int N> __device__ Row<N> resident_terms(const SinkhornParams &p, const Place &place, const Terms &terms, int row) {
  Row<N> x;
#pragma unroll
  for (int j = 0; j < N / 4; ++j) {
    float4 quad = make_float4(0, 0, 0, 0);
    if (place.quad(j) < p.rows.experts) quad = *reinterpret_cast<const float4 *>(terms.rows + row * p.pitch + place.quad(j));
    x.at[4 * j] = quad.x, x.at[4 * j + 1] = quad.y, x.at[4 * j + 2] = quad.z, x.at[4 * j + 3] = quad.w;
  }
  return x;
}

// S of this block's tokens.
template <int N>
__device__ Row<N> column_sums(const SinkhornParams &p, const Place &place, const Terms &terms, const Columns<N> &m, const float *gauge, float tokens) {
  Row<N> sums = filled<N>(0);
  const int resident = min(place.count, p.resident);
  const auto add = [&](const Row<N> &x, float dot, float epsilon) {
    const float scale = row_scale(dot, epsilon, tokens);
#pragma unroll
    for (int k = 0; k < N; ++k) sums.at[k] = fmaf(scale, x.at[k], sums.at[k]);
  };
  {
    const Row<N> u = load_columns<N>(place, m.u);
#pragma unroll(N <= 16 ? 2 : 1)
    for (int base = 0; base < resident; base += place.groups) {
      const Row<N> x = resident_terms<N>(p, place, terms, base + place.group);
      add(x, dot(place, x, u), terms.epsilons[base + place.group]);
    }
  }
  stream<N>(place, p.resident, gauge, p.report,
            [&](const Row<N> &x, float shift) { add(x, dot(place, x, m.u), shifted_epsilon(shift)); });
  return sums;
}

// d1 = 1/(E * column sums of exp(L)): the gauge has the columns' maxima, u takes what is left.
template <int N> __device__ __forceinline__ void start_from_sums(const SinkhornParams &p, Columns<N> &m) {
  const float experts = p.rows.experts;
  for (int column = threadIdx.x; column < p.rows.experts; column += blockDim.x) {
    const bool empty = !(m.sums[column] > 0);
    m.u[column] = empty ? 1.0f : 1.0f / (experts * m.sums[column]);
    if (empty) m.gauge[column] = -logf(experts) - LOG_EPSILON;
  }
}

// u from S; what the stopping test looks at, the same for all threads, and whether some u left its range.
template <int N> __device__ __forceinline__ float next_columns(const SinkhornParams &p, Columns<N> &m, bool &leaves) {
  const float experts = p.rows.experts;
  float error = 0;
  bool out = false;
  for (int column = threadIdx.x; column < p.rows.experts; column += blockDim.x) {
    const float gauge = expf(m.gauge[column]), mass = m.sums[column] + EPSILON * gauge;
    const float old = m.u[column], u = fminf(1.0f / (experts * mass), LARGEST);
    const float change = p.relative ? fabsf(old * experts * mass - 1) : fabsf(old - u);
    error = p.relative ? fmaxf(error, change) : error + (change > 0 ? change * gauge : 0.0f);
    out |= !(u > 1 / RANGE && u < RANGE);
    m.old[column] = old;
    m.u[column] = u;
  }
  error = over_lanes(p.relative, error, 32);
  if (threadIdx.x % 32 == 0) m.warps[threadIdx.x / 32] = error;
  leaves = __syncthreads_or(out);
  error = m.warps[0];
#pragma unroll
  for (int warp = 1; warp < WARPS<N>; ++warp) error = join(p.relative, error, m.warps[warp]);
  return p.relative ? error : error / experts;
}

// The rows' outputs, by the last iteration's old and new columns.
template <int N> __device__ __forceinline__ void write_rows(const SinkhornParams &p, const Place &place, const Terms &terms, const Columns<N> &m, const float *gauge, float tokens) {
  if (p.probs.data == nullptr && p.log_d0 == nullptr) return;
  const Row<N> old = load_columns<N>(place, m.old);
#pragma unroll 1
  for (int base = 0; base < place.count; base += place.groups) {
    const int row = base + place.group;
    float shift;
    Row<N> x;
    if (base < p.resident) {
      x = resident_terms<N>(p, place, terms, row);
      shift = terms.shifts[row];
    } else {
      x = load_logits<N>(place, row, p.report);
      shift = make_terms(place, x, gauge);
    }
    const float sum = dot(place, x, old), scale = row_scale(sum, shifted_epsilon(shift), tokens);
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

__device__ __forceinline__ void write_scalars(const SinkhornParams &p, int iterations, float error) {
  if (blockIdx.x != 0 || threadIdx.x != 0) return;
  if (p.iterations != nullptr) *p.iterations = iterations;
  if (p.error != nullptr) *p.error = error;
}

// What a pass over the tokens finds out about the columns.
enum class Task { maxima, exponentials, iteration };

template <int N> __device__ __forceinline__ void run(const SinkhornParams &p) {
  extern __shared__ float4 memory[];
  __shared__ Columns<N> m;
  const int width = p.rows.lanes * N;
  const Terms terms(reinterpret_cast<float *>(memory), width, p);
  const int64_t count = true_count(p.rows.tokens, p.report);
  const float tokens = count;
  if (count == 0) {
    write_scalars(p, 0, 0);
    if (p.log_d1 != nullptr && blockIdx.x == 0)
      for (int column = threadIdx.x; column < p.rows.experts; column += blockDim.x) p.log_d1[column] = 0;
    return;
  }
  const Place place(p.rows, count);
  empty_mailboxes(p);
  for (int column = threadIdx.x; column < width; column += blockDim.x) m.u[column] = 1, m.old[column] = 1, m.gauge[column] = 0;
  __syncthreads();
  // None at first: as long as all of it is 0 the terms need no gauge.
  const float *gauge = nullptr;
  Task task = p.column_sums ? Task::maxima : Task::iteration;
  // The mailboxes of all blocks are empty by the time that the terms are there.
  const auto grid = cooperative_groups::this_grid();
  auto arrival = grid.barrier_arrive();
  if (task == Task::iteration) fill_terms<N>(p, place, terms, gauge);
  grid.barrier_wait(std::move(arrival));
  int iterations = 0;
  float error;
  for (uint32_t round = 1;; ++round) {
    Row<N> columns;
    switch (task) {
    case Task::maxima: columns = column_maxima<N>(place, p.report); break;
    case Task::exponentials: columns = column_exponentials<N>(place, m.sums, p.report); break;
    case Task::iteration: columns = column_sums<N>(p, place, terms, m, gauge, tokens); break;
    }
    over_block(task == Task::maxima, place, columns, terms.scratch, m.sums);
    over_grid(task == Task::maxima, p, m.sums, round);
    if (task == Task::maxima) {
      for (int column = threadIdx.x; column < p.rows.experts; column += blockDim.x) m.gauge[column] = -m.sums[column];
      task = Task::exponentials;
      continue;
    }
    if (task == Task::exponentials) {
      start_from_sums(p, m);
      task = Task::iteration;
    } else {
      bool leaves;
      error = next_columns(p, m, leaves);
      if (++iterations == p.max_iterations || error <= p.tolerance) break;
      if (!leaves) continue;
      for (int column = threadIdx.x; column < p.rows.experts; column += blockDim.x) {
        m.gauge[column] = log_next(m.gauge[column], m.sums[column], p.rows.experts);
        m.u[column] = 1;
      }
    }
    __syncthreads();
    gauge = m.gauge;
    fill_terms<N>(p, place, terms, gauge);
  }
  write_rows<N>(p, place, terms, m, gauge, tokens);
  write_scalars(p, iterations, error);
  if (p.log_d1 != nullptr && blockIdx.x == 0)
    for (int column = threadIdx.x; column < p.rows.experts; column += blockDim.x)
      p.log_d1[column] = log_next(m.gauge[column], m.sums[column], p.rows.experts);
}

} // namespace

extern "C" {
__global__ void __launch_bounds__(THREADS<4>, 1) sinkhorn_4(SinkhornParams p) { run<4>(p); }
__global__ void __launch_bounds__(THREADS<16>, 1) sinkhorn_16(SinkhornParams p) { run<16>(p); }
__global__ void __launch_bounds__(THREADS<32>, 1) sinkhorn_32(SinkhornParams p) { run<32>(p); }
}
