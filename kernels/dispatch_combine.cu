// Unpermute and its backward: a token is the weighted sum of its rows, in slot order.

#include <type_traits>

#include "dispatch.cuh"
#include "overlap.cuh"

// N consecutive elements, 1 or 16 bytes of them or twice as many. Two of 16 bits share a register until they are used.
template <class T, int N> struct Elements {
  static constexpr int words = N == 1 ? 1 : N * sizeof(T) / 4;
  uint32_t bits[words];

  __device__ float at(int n) const {
    if constexpr (sizeof(T) == 4) return __uint_as_float(bits[n]);
    const uint32_t half = n % 2 == 0 ? bits[n / 2] & 0xffff : bits[n / 2] >> 16;
    if constexpr (std::is_same_v<T, __nv_bfloat16>) return __uint_as_float(half << 16);
    return __half2float(__ushort_as_half(static_cast<unsigned short>(half)));
  }
};

template <int N, class T> __device__ inline Elements<T, N> load(const T *data) {
  Elements<T, N> elements;
  if constexpr (N > 1) {
#pragma unroll
    for (int word = 0; word < elements.words; word += 4) {
      const uint4 bits = *reinterpret_cast<const uint4 *>(reinterpret_cast<const uint32_t *>(data) + word);
      elements.bits[word] = bits.x;
      elements.bits[word + 1] = bits.y;
      elements.bits[word + 2] = bits.z;
      elements.bits[word + 3] = bits.w;
    }
  } else if constexpr (sizeof(T) == 4) {
    elements.bits[0] = *reinterpret_cast<const uint32_t *>(data);
  } else {
    elements.bits[0] = *reinterpret_cast<const uint16_t *>(data);
  }
  return elements;
}

template <int N, class T> __device__ inline void store(T *data, const float (&values)[N]) {
  if constexpr (N == 1) {
    *data = from_float<T>(values[0]);
  } else {
#pragma unroll
    for (int begin = 0; begin < N; begin += Pack<T>::size) {
      Pack<T> pack;
#pragma unroll
      for (int i = 0; i < Pack<T>::size; ++i) pack.at[i] = from_float<T>(values[begin + i]);
      store_pack(data + begin, pack);
    }
  }
}

template <class T> __device__ inline T *from_lane(T *pointer, int lane) {
  return reinterpret_cast<T *>(__shfl_sync(~0u, reinterpret_cast<unsigned long long>(pointer), lane));
}

// y (+)= sums, rounded once.
template <int N, class T> __device__ inline void store_sums(T *y, float (&sums)[N], bool add) {
  if (add) {
    const Elements<T, N> held = load<N>(y);
#pragma unroll
    for (int n = 0; n < N; ++n) sums[n] += held.at(n);
  }
  store<N>(y, sums);
}

// What a lane knows of one of a token's slots.
struct Chosen {
  // -1: not here.
  int64_t row;
  float weight;
};

// Lane i: slot `next` + i of the token's `count`, of which `begin` is the first. Where slots have the weights, row and weight
// are under way together.
__device__ inline Chosen look_up(const CombineFwdParams &p, const Maps &maps, int64_t token, int64_t begin, int next,
                                 int count) {
  const int64_t slot = begin + next + lane_id();
  if (next + lane_id() >= count) return {-1, 0.0f};
  const bool by_slot = p.weights.kind == DISPATCH_WEIGHTS_SLOT;
  float weight = by_slot ? load_float(p.weights.values, slot) : 0.0f;
  const int64_t row = maps.row(slot);
  if (!by_slot && row >= 0) weight = maps.weight(p.weights, token, row, slot);
  return {row, weight};
}

// What a warp adds up: where rows begin, -1 for one that is not here, whose weight is 0.
struct Summands {
  int64_t places[32];
  float weights[32];
};

// How a thread adds up: `rows` at a time, N elements of each of so many columns, a block's width apart.
template <int ROWS, int COLUMNS> struct Way {
  static constexpr int rows = ROWS;
  static constexpr int columns = COLUMNS;
};

// `count` rows, from the column that `data` is in the first row; of the columns behind it, `step` apart, `exist` do.
template <class Way, int N, class T>
__device__ inline void add_rows(const T *data, uint32_t step, int exist, const Summands &from, int count,
                                float (&sums)[Way::columns][N]) {
#pragma unroll 1
  for (int first = 0; first < count; first += Way::rows) {
    Elements<T, N> values[Way::rows][Way::columns];
#pragma unroll
    for (int i = 0; i < Way::rows; ++i) {
      if (first + i >= count) break;
      const int64_t place = from.places[first + i];
#pragma unroll
      for (int c = 0; c < Way::columns; ++c) {
        // Plain loads: to keep rows out of the caches, or to have them leave first, costs a twentieth of the bandwidth.
        values[i][c] = place < 0 || (c > 0 && c >= exist) ? Elements<T, N>{} : load<N>(data + place + c * step);
      }
    }
#pragma unroll
    for (int i = 0; i < Way::rows; ++i) {
      if (first + i >= count) break;
      const float weight = from.weights[first + i];
#pragma unroll
      for (int c = 0; c < Way::columns; ++c) {
#pragma unroll
        for (int n = 0; n < N; ++n) sums[c][n] = fmaf(weight, values[i][c].at(n), sums[c][n]);
      }
    }
  }
}

// The block's columns of a token, of part `part`. Rows are read behind `wait`.
template <class T, int N, class Way, class Wait>
__device__ inline void sum_token(const CombineFwdParams &p, const Maps &maps, int64_t token, uint32_t part, const Wait &wait) {
  __shared__ Summands of_warp[COMBINE_FWD_THREADS / 32];
  Summands &summands = of_warp[threadIdx.x / 32];
  const uint32_t hidden = static_cast<uint32_t>(p.hidden), step = N * blockDim.x;
  const uint32_t column = part * step * Way::columns + N * threadIdx.x;
  // Of the thread's columns so many exist.
  int exist = 0;
#pragma unroll
  for (int c = 0; c < Way::columns; ++c) exist += column + c * step < hidden;
  const T *const data = reinterpret_cast<const T *>(p.rows.data) + column;
  float sums[Way::columns][N] = {};
  int count;
  const int64_t begin = maps.slots(token, count);
#pragma unroll 1
  for (int next = 0; next < count; next += 32) {
    const Chosen chosen = look_up(p, maps, token, begin, next, count);
    summands.places[lane_id()] = chosen.row < 0 ? -1 : chosen.row * p.rows.pitch;
    summands.weights[lane_id()] = chosen.row < 0 ? 0.0f : chosen.weight;
    __syncwarp();
    if (next == 0) wait();
    if (exist > 0) add_rows<Way, N>(data, step, exist, summands, min(count - next, 32), sums);
    __syncwarp();
  }
  if (exist == 0) return;
  const bool add = adds(p.y_mode);
#pragma unroll
  for (int c = 0; c < Way::columns; ++c) {
    if (c > 0 && c >= exist) break;
    // y may be fp32 where the rows are not.
    if (sizeof(T) == 2 && p.y.dtype == MOE_DTYPE_FP32) {
      store_sums<N>(row_of<float>(p.y, token) + column + c * step, sums[c], add);
    } else {
      store_sums<N>(row_of<T>(p.y, token) + column + c * step, sums[c], add);
    }
  }
}

// A token's dense gradients, rounded once: sums a column in FP32, in dynamic shared memory. The block's threads share the columns.
struct DenseGradients {
  const DispatchWeightGradients &to;
  float *sums;

  __device__ inline explicit DenseGradients(const DispatchWeightGradients &to) : to(to) {
    extern __shared__ float dense_sums[];
    sums = dense_sums;
  }

  __device__ inline void clear() const {
    for (int64_t expert = threadIdx.x; expert < to.experts; expert += blockDim.x) sums[expert] = 0.0f;
    __syncthreads();
  }

  // The first warp's first `count` lanes have a gradient each for `expert` (-1: none). An expert may be chosen more than once:
  // its gradients are added in the order of slots.
  __device__ inline void add(int expert, float gradient, int count) const {
    float sum = 0.0f;
    bool is_first = expert >= 0;
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const float more = __shfl_sync(~0u, gradient, i);
      if (__shfl_sync(~0u, expert, i) != expert) continue;
      sum += more;
      is_first &= i >= lane_id();
    }
    if (is_first) sums[expert] += sum;
    __syncwarp();
  }

  __device__ inline void write(int64_t token) const {
    __syncthreads();
    for (int64_t expert = threadIdx.x; expert < to.experts; expert += blockDim.x) {
      store_float(to.dense, token * to.dense.pitch + expert, sums[expert]);
    }
  }
};

// The gradients of weights a row go to the token's slots and experts.
__device__ inline void hand_on_gradients(const CombineFwdParams &p, const Maps &maps, int64_t token) {
  const DispatchWeightGradients &to = p.dweights;
  if (to.slot.data == nullptr && to.dense.data == nullptr) return;
  int count;
  const int64_t begin = maps.slots(token, count);
  if (to.slot.data != nullptr) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      const int64_t row = maps.row(begin + i);
      store_float(to.slot, begin + i, row < 0 ? 0.0f : load_float(p.drow_weights, row));
    }
  }
  if (to.dense.data != nullptr) {
    const DenseGradients dense(to);
    dense.clear();
    for (int first = 0; threadIdx.x < 32 && first < count; first += 32) {
      const int64_t row = first + lane_id() < count ? maps.row(begin + first + lane_id()) : -1;
      const int expert = row < 0 ? -1 : static_cast<int>(maps.expert(row));
      const float gradient = row < 0 ? 0.0f : load_float(p.drow_weights, row);
      dense.add(expert, gradient, min(count - first, 32));
    }
    dense.write(token);
  }
}

template <class T, class Way> __device__ inline void combine_fwd(const CombineFwdParams &p) {
  const auto wait = [] {
    wait_for_launch_ahead();
    let_next_launch_begin();
  };
  if (!p.early) wait();
  const Maps maps(p.maps);
  const int64_t unit = blockIdx.y * int64_t(gridDim.x) + blockIdx.x, token = unit / p.parts;
  const uint32_t part = static_cast<uint32_t>(unit - token * p.parts);
  if (token < maps.tokens) {
    if (p.y.data != nullptr && p.packs) {
      sum_token<T, Pack<T>::size, Way>(p, maps, token, part, wait);
    } else if (p.y.data != nullptr) {
      sum_token<T, 1, Way>(p, maps, token, part, wait);
    }
  }
  // A token without slots did not wait.
  wait();
  if (token < maps.tokens && part == 0) hand_on_gradients(p, maps, token);
}

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

// One row of each of up to 32 jobs, the same in all warps of the block: lane i knows the i-th.
struct Jobs {
  int count;
  // -1: padding, becomes zero.
  int64_t token;
  // -1: not here.
  int64_t row;
  float weight;
};

// drows = weight * dy; returns <dy, rows> of the lane's job, in the first warp. ONE_TOKEN: all jobs are of one token.
template <class T, int N, bool ONE_TOKEN> __device__ inline float spread(const CombineBwdParams &p, const Jobs &jobs) {
  __shared__ float partial[COMBINE_THREADS / 32][32];
  const bool dots = p.rows.data != nullptr;
  const uint32_t hidden = static_cast<uint32_t>(p.hidden);
  constexpr int TOKENS = ONE_TOKEN ? 1 : BATCH;
  const T *dy = jobs.token < 0 ? nullptr : row_of<const T>(p.dy, jobs.token);
  const T *from = jobs.row < 0 || jobs.token < 0 || !dots ? nullptr : row_of<const T>(p.rows, jobs.row);
  T *to = jobs.row < 0 || p.drows.data == nullptr ? nullptr : row_of<T>(p.drows, jobs.row);
#pragma unroll 1
  for (int first = 0; first < jobs.count; first += BATCH) {
    float dot[BATCH] = {};
#pragma unroll 1
    for (uint32_t next = 0; next < hidden; next += N * blockDim.x) {
      const uint32_t own = next + N * threadIdx.x;
      const bool inside = own < hidden;
      // Threads behind the last column work along on it, since their warp needs them.
      const uint32_t column = min(own, hidden - N);
      Elements<T, N> gradients[TOKENS], values[BATCH];
#pragma unroll
      for (int i = 0; i < BATCH; ++i) {
        const T *token = from_lane(dy, first + i), *row = from_lane(from, first + i);
        if (i < TOKENS && token != nullptr) gradients[i] = load<N>(token + column);
        if (row != nullptr) values[i] = load<N>(row + column);
      }
#pragma unroll
      for (int i = 0; i < BATCH; ++i) {
        const Elements<T, N> &gradient = gradients[ONE_TOKEN ? 0 : i];
        const float weight = __shfl_sync(~0u, jobs.weight, first + i);
        T *drow = from_lane(to, first + i);
        const bool padding = from_lane(dy, first + i) == nullptr, dotted = from_lane(from, first + i) != nullptr;
        if (dotted && inside) {
#pragma unroll
          for (int n = 0; n < N; ++n) dot[i] = fmaf(gradient.at(n), values[i].at(n), dot[i]);
        }
        if (drow == nullptr || !inside) continue;
        float products[N];
#pragma unroll
        for (int n = 0; n < N; ++n) products[n] = padding ? 0.0f : weight * gradient.at(n);
        store<N>(drow + column, products);
      }
    }
    if (!dots) continue;
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      const float sum = warp_sum(dot[i]);
      if (lane_id() == 0) partial[threadIdx.x / 32][first + i] = sum;
    }
  }
  if (!dots) return 0.0f;
  __syncthreads();
  float sum = 0.0f;
  if (threadIdx.x < jobs.count) {
    for (int warp = 0; warp < blockDim.x / 32; ++warp) sum += partial[warp][threadIdx.x];
  }
  __syncthreads();
  return sum;
}

template <class T, bool ONE_TOKEN> __device__ inline float spread(const CombineBwdParams &p, const Jobs &jobs) {
  return p.packs ? spread<T, Pack<T>::size, ONE_TOKEN>(p, jobs) : spread<T, 1, ONE_TOKEN>(p, jobs);
}

// Rows are handed out.
template <class T> __device__ inline void backward_by_row(const CombineBwdParams &p, const Maps &maps) {
  for (int64_t first = DISPATCH_UNIT * blockIdx.x; first < maps.rows; first += DISPATCH_UNIT * int64_t(gridDim.x)) {
    Jobs jobs = {DISPATCH_UNIT, -1, -1, 0.0f};
    if (lane_id() < DISPATCH_UNIT && first + lane_id() < maps.rows) {
      jobs.row = first + lane_id();
      jobs.token = maps.token(jobs.row);
      if (jobs.token >= 0) jobs.weight = maps.weight(p.weights, jobs.token, jobs.row, -1);
    }
    const float gradient = spread<T, false>(p, jobs);
    if (threadIdx.x < 32 && jobs.row >= 0 && p.dweights.row.data != nullptr) {
      store_float(p.dweights.row, jobs.row, jobs.token < 0 ? 0.0f : gradient);
    }
  }
}

// Tokens are handed out, each with all of its rows.
template <class T> __device__ inline void backward_by_token(const CombineBwdParams &p, const Maps &maps) {
  const DispatchWeightGradients &to = p.dweights;
  const DenseGradients dense(to);
  for (int64_t token = blockIdx.x; token < maps.tokens; token += gridDim.x) {
    int count;
    const int64_t begin = maps.slots(token, count);
    if (to.dense.data != nullptr) dense.clear();
    for (int first = 0; first < count; first += 32) {
      const bool valid = first + lane_id() < count;
      const int64_t slot = begin + first + lane_id();
      Jobs jobs = {min(count - first, 32), token, valid ? maps.row(slot) : -1, 0.0f};
      if (jobs.row >= 0) jobs.weight = maps.weight(p.weights, token, jobs.row, slot);
      const float gradient = spread<T, true>(p, jobs);
      if (threadIdx.x >= 32) continue;
      if (valid && to.slot.data != nullptr) store_float(to.slot, slot, jobs.row < 0 ? 0.0f : gradient);
      if (jobs.row >= 0 && to.row.data != nullptr) store_float(to.row, jobs.row, gradient);
      if (to.dense.data == nullptr) continue;
      const int expert = jobs.row < 0 ? -1 : static_cast<int>(maps.expert(jobs.row));
      dense.add(expert, gradient, jobs.count);
    }
    if (to.dense.data != nullptr) dense.write(token);
  }
  for_padding(maps, [&](int64_t row) {
    for (int64_t column = lane_id(); p.drows.data != nullptr && column < p.hidden; column += 32) {
      row_of<T>(p.drows, row)[column] = from_float<T>(0.0f);
    }
    if (lane_id() == 0 && to.row.data != nullptr) store_float(to.row, row, 0.0f);
  });
}

template <class T> __device__ inline void combine_bwd(const CombineBwdParams &p) {
  const Maps maps(p.maps);
  if (p.maps.row_of_slot.data == nullptr) {
    backward_by_row<T>(p, maps);
  } else {
    backward_by_token<T>(p, maps);
  }
}

// More blocks' registers would spill.
#define FORWARD_BLOCKS (__CUDA_ARCH__ == 900 ? 7 : 5)
#define FEW_BLOCKS (__CUDA_ARCH__ == 900 ? 8 : 7)
#define BACKWARD_BLOCKS (__CUDA_ARCH__ == 890 ? 2 : 3)

// For all K, and for few rows a token, which are too little to have under way in one column.
using Many = Way<8, 1>;
using Few = Way<2, COMBINE_FEW_COLUMNS>;

#define COMBINE_FWD_KERNEL(NAME, T, WAY, BLOCKS)                                                                      \
  extern "C" __global__ void __launch_bounds__(COMBINE_FWD_THREADS, BLOCKS)                                           \
      combine_fwd_##NAME(const __grid_constant__ CombineFwdParams p) {                                                \
    combine_fwd<T, WAY>(p);                                                                                           \
  }

COMBINE_FWD_KERNEL(fp32, float, Many, FORWARD_BLOCKS)
COMBINE_FWD_KERNEL(fp16, __half, Many, FORWARD_BLOCKS)
COMBINE_FWD_KERNEL(bf16, __nv_bfloat16, Many, FORWARD_BLOCKS)
COMBINE_FWD_KERNEL(few_fp32, float, Few, FEW_BLOCKS)
COMBINE_FWD_KERNEL(few_fp16, __half, Few, FEW_BLOCKS)
COMBINE_FWD_KERNEL(few_bf16, __nv_bfloat16, Few, FEW_BLOCKS)

extern "C" {
__global__ void __launch_bounds__(COMBINE_THREADS, BACKWARD_BLOCKS) combine_bwd_fp32(const __grid_constant__ CombineBwdParams p) {
  combine_bwd<float>(p);
}
__global__ void __launch_bounds__(COMBINE_THREADS, BACKWARD_BLOCKS) combine_bwd_fp16(const __grid_constant__ CombineBwdParams p) {
  combine_bwd<__half>(p);
}
__global__ void __launch_bounds__(COMBINE_THREADS, BACKWARD_BLOCKS) combine_bwd_bf16(const __grid_constant__ CombineBwdParams p) {
  combine_bwd<__nv_bfloat16>(p);
}
}
