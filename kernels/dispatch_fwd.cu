// Permute: copies tokens to rows, chunk by chunk, whatever they hold.

#include "dispatch.cuh"

template <class Chunk> __device__ inline void dispatch_fwd(const DispatchFwdParams &p) {
  const Maps maps(p.maps);
  const bool weighted = p.row_weights.data != nullptr && threadIdx.x < 32;
  if (p.maps.row_of_slot.data == nullptr) {
    // Rows are handed out.
    for (int64_t first = DISPATCH_UNIT * blockIdx.x; first < maps.rows; first += DISPATCH_UNIT * int64_t(gridDim.x)) {
      const int64_t row = lane_id() < DISPATCH_UNIT && first + lane_id() < maps.rows ? first + lane_id() : -1;
      const int64_t token = row < 0 ? -1 : maps.token(row);
      copy_rows<Chunk>(p.x, p.rows, p.columns, token, row, DISPATCH_UNIT);
      if (weighted && row >= 0) {
        store_float(p.row_weights, row, token < 0 ? 0.0f : maps.weight(p.weights, token, row, -1));
      }
    }
    return;
  }
  // Tokens are handed out, each to all of its rows.
  for (int64_t token = blockIdx.x; token < maps.tokens; token += gridDim.x) {
    int count;
    const int64_t begin = maps.slots(token, count);
    for (int first = 0; first < count; first += 32) {
      const int64_t slot = begin + first + lane_id();
      const int64_t row = first + lane_id() < count ? maps.row(slot) : -1;
      copy_rows<Chunk>(p.x, p.rows, p.columns, token, row, min(count - first, 32));
      if (weighted && row >= 0) store_float(p.row_weights, row, maps.weight(p.weights, token, row, slot));
    }
  }
  for_padding(maps, [&](int64_t row) {
    Chunk *to = reinterpret_cast<Chunk *>(p.rows.data) + row * p.rows.pitch;
    for (int64_t column = lane_id(); column < p.columns; column += 32) to[column] = Chunk{};
    if (p.row_weights.data != nullptr && lane_id() == 0) store_float(p.row_weights, row, 0.0f);
  });
}

extern "C" {
__global__ void __launch_bounds__(DISPATCH_THREADS, 2) dispatch_fwd_1(const __grid_constant__ DispatchFwdParams p) {
  dispatch_fwd<uint8_t>(p);
}
__global__ void __launch_bounds__(DISPATCH_THREADS, 2) dispatch_fwd_2(const __grid_constant__ DispatchFwdParams p) {
  dispatch_fwd<uint16_t>(p);
}
__global__ void __launch_bounds__(DISPATCH_THREADS, 2) dispatch_fwd_4(const __grid_constant__ DispatchFwdParams p) {
  dispatch_fwd<uint32_t>(p);
}
__global__ void __launch_bounds__(DISPATCH_THREADS, 2) dispatch_fwd_8(const __grid_constant__ DispatchFwdParams p) {
  dispatch_fwd<uint2>(p);
}
__global__ void __launch_bounds__(DISPATCH_THREADS, 2) dispatch_fwd_16(const __grid_constant__ DispatchFwdParams p) {
  dispatch_fwd<uint4>(p);
}
}
