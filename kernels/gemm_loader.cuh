// From memory to a stage of the portable GEMM: the lines of one operand, straight or gathered, at any pitch.
#pragma once

#include "gemm_fragments.cuh"
#include "groups.cuh"

namespace gemm {

// One operand of a tile as lines of memory: along the reduction, one for each of the tile's rows (A) or columns (B);
// or across, one for each element of the reduction.
struct Lines {
  const uint8_t *data;
  // With two boxes: where columns 32 to 63 of each 64 of the tile come from, while `data` has 0 to 31.
  const uint8_t *second;
  // Bytes from line to line.
  int64_t pitch;
  // The tile has lines first, first + 1, ... before the gather; `count` of them exist, the others are zeros.
  int64_t first;
  int64_t count;
  // Across: bytes of a line that exist, from `data` on.
  int64_t length;
};

// How many bytes can be copied at once.
__device__ inline int granule(const Lines &lines) {
  const uint64_t address = reinterpret_cast<uint64_t>(lines.data) | reinterpret_cast<uint64_t>(lines.second) |
                           static_cast<uint64_t>(lines.pitch);
  return address % 16 == 0 ? 16 : address % 4 == 0 ? 4 : 2;
}

// 16 bytes of shared memory: `valid` from memory, zeros behind them.
__device__ inline void copy_chunk(uint32_t to, const uint8_t *from, int valid, int granule) {
  if (granule == 16) {
    cp_async_16(to, from, valid);
  } else if (granule == 4) {
#pragma unroll
    for (int i = 0; i < 16; i += 4) cp_async_4(to + i, from + i, min(max(valid - i, 0), 4));
  } else {
#pragma unroll
    for (int i = 0; i < 16; i += 2) {
      store_shared(to + i, i < valid ? *reinterpret_cast<const uint16_t *>(from + i) : uint16_t(0));
    }
  }
}

// Copies an operand's OUTER elements of the tile by 64 bytes of the reduction a stage: N chunks of 16 bytes a thread.
// Rows are fetched before they are needed, so that an index arrives while the warps multiply.
template <class T, int OUTER, bool ACROSS, int BOXES> struct Loader {
  static constexpr int SIZE = sizeof(T);
  static constexpr int N = OUTER * LINE / 16 / THREADS;
  // Chunks of a line in shared memory, and how many lines the threads copy at once.
  static constexpr int CHUNKS = ACROSS ? OUTER * SIZE / 16 : LINE / 16;
  static constexpr int STRIDE = THREADS / CHUNKS;

  // Of each chunk, the row that its line is, as the index says, or -1; along the reduction, then its address or 0.
  int64_t row[N];
  const uint8_t *data;
  int64_t pitch;
  // The first line of this tile, or across, of this stage.
  int64_t first;
  // Bytes of the thread's chunk that exist.
  int valid;
  int unit;

  // A new tile.
  __device__ void begin(const Lines &lines, const Gather *gather) {
    const int chunk = threadIdx.x % CHUNKS;
    const int column = ACROSS ? chunk * (16 / SIZE) : threadIdx.x / CHUNKS;
    const bool second = BOXES == 2 && column / 32 % 2 == 1;
    const int64_t offset = ACROSS ? (BOXES == 2 ? column / 64 * 32 + column % 32 : column) * SIZE : chunk * 16;
    data = (second ? lines.second : lines.data) + offset;
    pitch = lines.pitch;
    first = lines.first;
    valid = static_cast<int>(min(max(lines.length - offset, int64_t(0)), int64_t(16)));
    unit = granule(lines);
    if constexpr (!ACROSS) fetch(gather, lines.count);
  }

  // Reads the rows of the lines first, first + 1, ...; `count` of them exist.
  __device__ void fetch(const Gather *gather, int64_t count) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int line = line_of(i);
      row[i] = -1;
      if (line >= count) continue;
      row[i] = first + line;
      if (gather == nullptr || gather->index.data == nullptr) continue;
      // `resolve` extends the sign of 32 bits: nothing here waits for them.
      row[i] = gather->index.dtype == MOE_DTYPE_INT64
                   ? reinterpret_cast<const int64_t *>(gather->index.data)[row[i]]
                   : int64_t(reinterpret_cast<const uint32_t *>(gather->index.data)[row[i]]);
    }
  }

  // Along the reduction: the addresses of a new tile's lines. `rows`: rows of the source of a gather.
  __device__ void resolve_all(const Gather *gather, int64_t rows, moe_device_report_t *report) {
#pragma unroll
    for (int i = 0; i < N; ++i) row[i] = reinterpret_cast<int64_t>(resolve(gather, rows, i, report));
  }

  // Copies a stage. `left` elements of the reduction are left, `done` bytes of it are behind (along).
  __device__ void issue(uint32_t to, int64_t left, int64_t done, const Gather *gather, int64_t rows,
                        moe_device_report_t *report) {
    const int chunk = threadIdx.x % CHUNKS, line = threadIdx.x / CHUNKS;
    if constexpr (ACROSS) {
      to += place_across<T, OUTER>(line, chunk);
    } else {
      to += OUTER == ROWS ? place_a(line, chunk) : place_b(line, chunk);
      valid = static_cast<int>(min(max(left * SIZE - chunk * 16, int64_t(0)), int64_t(16)));
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const uint8_t *from = ACROSS ? resolve(gather, rows, i, report) : reinterpret_cast<const uint8_t *>(row[i]);
      const int bytes = from == nullptr ? 0 : valid;
      copy_chunk(to + i * STRIDE * (ACROSS ? OUTER * SIZE : LINE), from + (ACROSS ? 0 : done), bytes, unit);
    }
    if constexpr (ACROSS) first += LINE / SIZE;
  }

private:
  // The line of chunk i; with two boxes, within its box.
  __device__ static int line_of(int i) {
    const int line = threadIdx.x / CHUNKS + i * STRIDE;
    return BOXES == 2 && !ACROSS ? line / 64 * 32 + line % 32 : line;
  }

  // Where chunk i's line lies; null: zeros.
  __device__ const uint8_t *resolve(const Gather *gather, int64_t rows, int i, moe_device_report_t *report) const {
    int64_t source = row[i];
    if (gather != nullptr && gather->index.data != nullptr) {
      if (gather->index.dtype != MOE_DTYPE_INT64) source = static_cast<int32_t>(source);
      if (source >= rows) {
        record_fault(report, gather->fault, first + line_of(i), source);
        source = -1;
      }
    }
    return source < 0 ? nullptr : data + source * pitch;
  }
};

}  // namespace gemm
