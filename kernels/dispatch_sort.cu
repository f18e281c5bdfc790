// Chunk sort: where the chunks lie in both orders, then copies of their rows.

#include "dispatch.cuh"
#include "scan.cuh"

// Chunk `order[place]`, or -1.
__device__ inline int64_t chunk_at(const SortChunksParams &p, int64_t place) {
  const int32_t chunk = p.order[place];
  return chunk >= 0 && chunk < p.chunks ? chunk : -1;
}

// One block. A total above R ends at R.
extern "C" __global__ void __launch_bounds__(1024) sort_chunks_place(const __grid_constant__ SortChunksParams p) {
  int64_t before = 0;
  for (int64_t first = 0; first < p.chunks; first += blockDim.x) {
    const int64_t chunk = first + threadIdx.x;
    const int64_t size = chunk < p.chunks ? p.chunk_sizes[chunk] : 0;
    int64_t total;
    const int64_t begin = before + block_exclusive_sum(clamped(size, 0, p.rows), total);
    if (chunk < p.chunks) {
      p.unsorted[chunk] = min(begin, p.rows);
      if (size < 0 || size > p.rows - min(begin, p.rows)) {
        record_fault(p.report, MOE_FAULT_GROUP_SIZE, chunk, size);
      }
    }
    before += total;
  }
  if (threadIdx.x == 0) p.unsorted[p.chunks] = min(before, p.rows);
  __syncthreads();
  before = 0;
  for (int64_t first = 0; first < p.chunks; first += blockDim.x) {
    const int64_t place = first + threadIdx.x;
    const int64_t chunk = place < p.chunks ? chunk_at(p, place) : -1;
    int64_t total;
    const int64_t size = chunk < 0 ? 0 : p.unsorted[chunk + 1] - p.unsorted[chunk];
    const int64_t begin = before + block_exclusive_sum(size, total);
    if (place < p.chunks) {
      p.sorted[place] = min(begin, p.rows);
      if (chunk < 0) record_fault(p.report, MOE_FAULT_MAP_ENTRY, place, p.order[place]);
    }
    before += total;
  }
  if (threadIdx.x == 0) p.sorted[p.chunks] = min(before, p.rows);
}

// The row of the unsorted order that comes to `row` of the sorted one; -1 if there is none.
__device__ inline int64_t unsorted_row(const SortChunksParams &p, int64_t row) {
  int64_t low = 0, high = p.chunks;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (p.sorted[middle] <= row ? low : high) = middle;
  }
  const int64_t chunk = chunk_at(p, low);
  return chunk < 0 ? -1 : p.unsorted[chunk] + row - p.sorted[low];
}

template <class Chunk> __device__ inline void sort_chunks(const SortChunksParams &p) {
  const int64_t rows = p.sorted[p.chunks];
  for (int64_t first = DISPATCH_UNIT * blockIdx.x; first < rows; first += DISPATCH_UNIT * int64_t(gridDim.x)) {
    int64_t to = lane_id() < DISPATCH_UNIT && first + lane_id() < rows ? first + lane_id() : -1;
    int64_t from = to < 0 ? -1 : unsorted_row(p, to);
    if (from < 0) to = -1;
    if (p.inverse) {
      const int64_t row = from;
      from = to;
      to = row;
    }
    copy_rows<Chunk>(p.x, p.y, p.columns, from, to, DISPATCH_UNIT);
    if (p.row_weights.data != nullptr && threadIdx.x < 32 && to >= 0) {
      store_float(p.sorted_row_weights, to, load_float(p.row_weights, from));
    }
  }
}

extern "C" {
__global__ void __launch_bounds__(DISPATCH_THREADS, 2) sort_chunks_1(const __grid_constant__ SortChunksParams p) {
  sort_chunks<uint8_t>(p);
}
__global__ void __launch_bounds__(DISPATCH_THREADS, 2) sort_chunks_2(const __grid_constant__ SortChunksParams p) {
  sort_chunks<uint16_t>(p);
}
__global__ void __launch_bounds__(DISPATCH_THREADS, 2) sort_chunks_4(const __grid_constant__ SortChunksParams p) {
  sort_chunks<uint32_t>(p);
}
__global__ void __launch_bounds__(DISPATCH_THREADS, 2) sort_chunks_8(const __grid_constant__ SortChunksParams p) {
  sort_chunks<uint2>(p);
}
__global__ void __launch_bounds__(DISPATCH_THREADS, 2) sort_chunks_16(const __grid_constant__ SortChunksParams p) {
  sort_chunks<uint4>(p);
}
}
