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
// Rows are fetched before they are needed, so that an index arrives while the warps multiply. What can be had from the
// tile again is not kept: registers are scarce.
template <class T, int OUTER, bool ACROSS, bool GATHERS, int BOXES> struct Loader {
  static constexpr int SIZE = sizeof(T);
  static constexpr int DEPTH = LINE / SIZE;
  static constexpr int N = OUTER * LINE / 16 / THREADS;
  // Chunks of a line in shared memory, and how many lines the threads copy at once.
  static constexpr int CHUNKS = ACROSS ? OUTER * SIZE / 16 : LINE / 16;
  static constexpr int STRIDE = THREADS / CHUNKS;

  // Of each chunk, the row that its line is, as the index says, or -1; along the reduction, then its address or 0.
  int64_t row[N];
  // Across: the chunk's place in row 0, and how many bytes of it exist.
  const uint8_t *data;
  int valid;
  int unit;

  // Across: a new tile.
  __device__ void begin(const Lines &lines) {
    const int64_t offset = box_index(column()) * SIZE;
    data = box(lines, column()) + offset;
    valid = static_cast<int>(min(max(lines.length - offset, int64_t(0)), int64_t(16)));
    unit = granule(lines);
  }

  // Finds the rows of the lines first, first + 1, ...; `count` of them exist.
  __device__ void fetch(const Gather *gather, int64_t first, int64_t count) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int line = line_of(i);
      row[i] = -1;
      if (line >= count) continue;
      row[i] = first + line;
      if (!GATHERS || gather->index.data == nullptr) continue;
      // `source` extends the sign of 32 bits: nothing here waits for them.
      row[i] = gather->index.dtype == MOE_DTYPE_INT64
                   ? reinterpret_cast<const int64_t *>(gather->index.data)[row[i]]
                   : int64_t(reinterpret_cast<const uint32_t *>(gather->index.data)[row[i]]);
    }
  }

  // Along: the addresses of a new tile's lines. `rows`: rows of the source of a gather.
  __device__ void resolve(const Lines &lines, const Gather *gather, int64_t rows, moe_device_report_t *report) {
    const uint8_t *const from = box(lines, threadIdx.x / CHUNKS) + threadIdx.x % CHUNKS * 16;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int64_t source_row = source(i, gather, rows, lines.first, report);
      row[i] = source_row < 0 ? 0 : reinterpret_cast<int64_t>(from + source_row * lines.pitch);
    }
    unit = granule(lines);
  }

  // Along: copies stage `step` of a tile, of which `depth` elements exist.
  __device__ void issue_along(uint32_t to, uint32_t step, int depth) const {
    const int bytes = min(max(depth * SIZE - static_cast<int>(threadIdx.x % CHUNKS * 16), 0), 16);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const uint8_t *const from = reinterpret_cast<const uint8_t *>(row[i]) + uint64_t(step) * LINE;
      copy_chunk(place(to, i), from, row[i] == 0 ? 0 : bytes, unit);
    }
  }

  // Across: copies the stage whose rows were fetched.
  __device__ void issue_across(uint32_t to, int64_t pitch, const Gather *gather, int64_t rows, int64_t first,
                               moe_device_report_t *report) const {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int64_t source_row = source(i, gather, rows, first, report);
      copy_chunk(place(to, i), data + source_row * pitch, source_row < 0 ? 0 : valid, unit);
    }
  }

  // The same without a branch: a whole stage of aligned lines, not gathered across.
  __device__ void issue_fast(uint32_t to, uint32_t step, int64_t pitch, int64_t first) const {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if constexpr (ACROSS) {
        cp_async_16(place(to, i), data + (first + line_of(i)) * pitch, valid);
      } else {
        cp_async_16(place(to, i), reinterpret_cast<const uint8_t *>(row[i]) + uint64_t(step) * LINE, row[i] == 0 ? 0 : 16);
      }
    }
  }

private:
  // Where chunk i goes in a stage.
  __device__ static uint32_t place(uint32_t to, int i) {
    const int chunk = threadIdx.x % CHUNKS, line = threadIdx.x / CHUNKS;
    if constexpr (ACROSS) return to + place_across<T, OUTER>(line, chunk) + i * STRIDE * OUTER * SIZE;
    return to + (OUTER == ROWS ? place_a(line, chunk) : place_b(line, chunk)) + i * STRIDE * LINE;
  }

  // Across: the column of the tile where this thread's chunks begin.
  __device__ static int column() { return threadIdx.x % CHUNKS * (16 / SIZE); }

  // Of an element of the tile's outer side: the box that has it, and where it is in it.
  __device__ static const uint8_t *box(const Lines &lines, int outer) {
    return BOXES == 2 && outer / 32 % 2 == 1 ? lines.second : lines.data;
  }
  __device__ static int box_index(int outer) { return BOXES == 2 ? outer / 64 * 32 + outer % 32 : outer; }

  __device__ static int line_of(int i) {
    const int line = threadIdx.x / CHUNKS + i * STRIDE;
    return ACROSS ? line : box_index(line);
  }

  // The row that chunk i's line comes from; -1: zeros.
  __device__ int64_t source(int i, const Gather *gather, int64_t rows, int64_t first, moe_device_report_t *report) const {
    if (!GATHERS || gather->index.data == nullptr) return row[i];
    const int64_t given = gather->index.dtype == MOE_DTYPE_INT64 ? row[i] : static_cast<int32_t>(row[i]);
    if (given < rows) return given;
    record_fault(report, gather->fault, first + line_of(i), given);
    return -1;
  }
};

}  // namespace gemm
