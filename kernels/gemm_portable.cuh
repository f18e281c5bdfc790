// The portable grouped GEMM: mma.sync on tiles of 128 x 256, four stages of cp.async, for any GPU from sm_80 on.
//
// Blocks are persistent: block b computes tiles b, b + gridDim.x, ... of all groups, found by scanning the groups on
// the device. Copies run three stages ahead of the products, across tiles: the next tile's first stages arrive during
// an epilogue. A problem says what is multiplied and what becomes of the sums:
//
//   using Math                                     gemm::MatrixMath<T, ..> or gemm::ScalarMath<..>
//   A_ACROSS, B_ACROSS                             operands whose lines are elements of the reduction
//   BOXES                                          2: 64 columns of a tile are 32 of a first and 32 of a second matrix
//   const Groups &groups() const                   whose tiles these are
//   int64_t tiles(const Span &) const              of a group
//   Tile tile(const Span &, int64_t place) const   the place-th of them
//   int64_t depth(const Tile &) const              elements of the reduction
//   Lines a(const Tile &) const, b(..)             the operands
//   const Gather *a_gather() const, b_gather()     of their lines, or null
//   auto epilogue(const Tile &) const              called for each row r: (r, column, float (&sums)[2][8]): the tile's
//                                                  columns `column` and on, and 32 behind; of the two boxes, the same
//                                                  columns of each. The four lanes of a quad have a row together. Rows
//                                                  and columns may lie outside the matrix.
//   moe_device_report_t *report() const
#pragma once

#include "gemm_loader.cuh"

namespace gemm {

struct Tile {
  // -1: there are no more.
  int64_t group;
  // The group's rows.
  int64_t begin;
  int64_t rows;
  // Where the tile begins in its group's matrix.
  int64_t row;
  int64_t column;
};

// Row and column of a tile among `rows` x `columns` of them: bands of 16 rows, column by column, so that the tiles
// under way at one time share lines of both operands in the L2 cache.
__device__ inline void raster(int64_t place, int64_t rows, int64_t columns, int64_t &row, int64_t &column) {
  constexpr int64_t BAND = 16;
  const int64_t band = place / (BAND * columns);
  const int64_t height = min(BAND, rows - band * BAND);
  const int64_t rest = place - band * BAND * columns;
  row = band * BAND + rest % height;
  column = rest / height;
}

// The tiles of a block, found ahead of their use by one warp. Copies are at most three tiles ahead of the products.
struct Queue {
  static constexpr int SIZE = 8;
  static constexpr int AHEAD = 4;

  Tile tiles[SIZE];
  GroupScan scan;
  int64_t next;
  // Rows of the sources of gathers.
  int64_t a_rows;
  int64_t b_rows;

  // One warp: finds tile `number` of this block.
  template <class Problem> __device__ void fill(const Problem &problem, unsigned number) {
    GroupScan local = scan;
    const int64_t item = next;
    Span span;
    int64_t place;
    Tile tile = {-1};
    const auto tiles_of = [&](const Span &s) { return problem.tiles(s); };
    if (local.find(problem.groups(), item, problem.report(), tiles_of, span, place)) tile = problem.tile(span, place);
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      scan = local;
      next = item + gridDim.x;
      tiles[number % SIZE] = tile;
    }
    __syncwarp();
  }
};

// The copies of a block: a stream of stages, tile after tile.
template <class Problem> struct Feed {
  using T = typename Problem::Math::Element;
  static constexpr int DEPTH = LINE / sizeof(T);

  Loader<T, ROWS, Problem::A_ACROSS, 1> a;
  Loader<T, COLUMNS, Problem::B_ACROSS, Problem::BOXES> b;
  // Elements of the tile's reduction that are left.
  int64_t left = 0;
  int64_t done = 0;
  unsigned number = 0;
  bool active = true;
  bool fresh = false;

  // Reads what the next stage's addresses need.
  __device__ void prepare(const Problem &problem, const Queue &queue) {
    if (left <= 0 && active) {
      const Tile tile = queue.tiles[number++ % Queue::SIZE];
      active = tile.group >= 0;
      if (!active) return;
      left = problem.depth(tile);
      done = 0;
      fresh = true;
      a.begin(problem.a(tile), problem.a_gather());
      b.begin(problem.b(tile), problem.b_gather());
    }
    if (!active) return;
    if constexpr (Problem::A_ACROSS) a.fetch(problem.a_gather(), left);
    if constexpr (Problem::B_ACROSS) b.fetch(problem.b_gather(), left);
  }

  // Copies the next stage.
  __device__ void issue(const Problem &problem, const Queue &queue, uint32_t stage) {
    if (active) {
      if (fresh) {
        if constexpr (!Problem::A_ACROSS) a.resolve_all(problem.a_gather(), queue.a_rows, problem.report());
        if constexpr (!Problem::B_ACROSS) b.resolve_all(problem.b_gather(), queue.b_rows, problem.report());
        fresh = false;
      }
      a.issue(stage, left, done, problem.a_gather(), queue.a_rows, problem.report());
      b.issue(stage + STAGE_A, left, done, problem.b_gather(), queue.b_rows, problem.report());
      left -= DEPTH;
      done += LINE;
    }
    cp_async_commit();
  }
};

template <class Problem> __device__ inline void run(const Problem &problem) {
  using Math = typename Problem::Math;
  extern __shared__ __align__(128) uint8_t stages[];
  __shared__ Queue queue;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    queue.scan = GroupScan();
    queue.next = blockIdx.x;
    if (problem.a_gather() != nullptr) queue.a_rows = true_count(problem.a_gather()->rows, problem.report());
    if (problem.b_gather() != nullptr) queue.b_rows = true_count(problem.b_gather()->rows, problem.report());
  }
  __syncthreads();
  if (warp == 0) {
    for (unsigned number = 0; number < Queue::AHEAD; ++number) queue.fill(problem, number);
  }
  __syncthreads();

  const uint32_t base = shared_address(stages);
  Feed<Problem> feed;
  for (int stage = 0; stage < STAGES - 1; ++stage) {
    feed.prepare(problem, queue);
    feed.issue(problem, queue, base + stage * STAGE);
  }
  cp_async_wait<STAGES - 2>();
  __syncthreads();

  const Math math;
  typename Math::Fragments fragments[2];
  uint32_t read = base, write = base + (STAGES - 1) * STAGE;
  math.load(fragments[0], read, 0);
  for (unsigned number = 0; queue.tiles[number % Queue::SIZE].group >= 0; ++number) {
    if (warp == 0) queue.fill(problem, number + Queue::AHEAD);
    const Tile &tile = queue.tiles[number % Queue::SIZE];
    Sums sums = {};
    int64_t left = problem.depth(tile);
    do {
      math.load(fragments[1], read, 1);
      feed.prepare(problem, queue);
      math.multiply(sums, fragments[0], read, 0);
      feed.issue(problem, queue, write);
      if constexpr (!Math::AHEAD) math.multiply(sums, fragments[1], read, 1);
      // The next stage has arrived for all, and all have read this one.
      cp_async_wait<STAGES - 2>();
      __syncthreads();
      write = read;
      read = read + STAGE == base + SHARED ? base : read + STAGE;
      math.load(fragments[0], read, 0);
      if constexpr (Math::AHEAD) math.multiply(sums, fragments[1], read, 1);
      left -= Feed<Problem>::DEPTH;
    } while (left > 0);

    auto epilogue = problem.epilogue(tile);
    const int column = Problem::BOXES == 2 ? warp / 2 * 32 + lane % 4 * 8 : warp / 2 * 64 + lane % 4 * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float values[2][8];
        row_of_sums<Math>(values, sums, i, h);
        epilogue(warp % 2 * 64 + 16 * i + 8 * h + lane / 4, column, values);
      }
    }
  }
  cp_async_wait<0>();
}

}  // namespace gemm
