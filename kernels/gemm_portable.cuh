// The portable grouped GEMM: mma.sync on tiles of 128 x 256, four stages of cp.async, for any GPU from sm_80 on.
//
// Blocks are persistent: block b computes tiles b, b + gridDim.x, ... of all groups, found by scanning the groups on
// the device. Copies run three stages ahead of the products, across tiles: the next tile's first stages arrive during
// an epilogue. A problem says what is multiplied and what becomes of the sums:
//
//   using Math                                     gemm::MatrixMath<T, ..> or gemm::ScalarMath<..>
//   A_ACROSS, B_ACROSS                             operands whose lines are elements of the reduction
//   A_GATHERS, B_GATHERS                           operands whose lines may be gathered
//   BOXES                                          2: 64 columns of a tile are 32 of a first and 32 of a second matrix
//   const Groups &groups() const                   whose tiles these are
//   int64_t tiles(const Span &) const              of a group
//   Tile tile(const Span &, int64_t place) const   the place-th of them
//   int64_t depth(const Tile &) const              elements of the reduction
//   Lines a(const Tile &) const, b(..)             the operands
//   const Gather *a_gather() const, b_gather()     of their lines; null where they never are
//   auto epilogue(const Tile &, int column) const  called for each row r: (r, column, float (&sums)[2][8]): the tile's
//                                                  columns `column` and on, and 32 behind; of two boxes, the same
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

// Stages of a tile; at least one, be it empty.
template <class T> __device__ inline uint32_t steps_of(int64_t depth) {
  constexpr int64_t DEPTH = LINE / sizeof(T);
  return static_cast<uint32_t>(max((depth + DEPTH - 1) / DEPTH, int64_t(1)));
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

  Loader<T, ROWS, Problem::A_ACROSS, Problem::A_GATHERS, 1> a;
  Loader<T, COLUMNS, Problem::B_ACROSS, Problem::B_GATHERS, Problem::BOXES> b;
  // Of the tile, whose number is one less than `number`.
  uint32_t step = 0;
  uint32_t steps = 0;
  // Elements of the last step.
  int tail;
  unsigned number = 0;
  bool active = true;

  // Reads what the next stage's addresses need.
  __device__ void prepare(const Problem &problem, const Queue &queue) {
    if (step == steps && active) {
      const Tile &tile = queue.tiles[number++ % Queue::SIZE];
      active = tile.group >= 0;
      if (!active) return;
      const int64_t depth = problem.depth(tile);
      step = 0;
      steps = steps_of<T>(depth);
      tail = static_cast<int>(depth - int64_t(steps - 1) * DEPTH);
      if constexpr (Problem::A_ACROSS) a.begin(problem.a(tile));
      if constexpr (!Problem::A_ACROSS) a.fetch(problem.a_gather(), problem.a(tile).first, problem.a(tile).count);
      if constexpr (Problem::B_ACROSS) b.begin(problem.b(tile));
      if constexpr (!Problem::B_ACROSS) b.fetch(problem.b_gather(), problem.b(tile).first, problem.b(tile).count);
    }
    if (!active) return;
    if constexpr (Problem::A_ACROSS && Problem::A_GATHERS) a.fetch(problem.a_gather(), first(problem.a(tile(queue))), depth());
    if constexpr (Problem::B_ACROSS && Problem::B_GATHERS) b.fetch(problem.b_gather(), first(problem.b(tile(queue))), depth());
  }

  // Whether the next stage is an ordinary one: whole, aligned, not a tile's first, not across and gathered.
  __device__ bool fast(const Problem &problem) const {
    if (Problem::A_ACROSS && Problem::A_GATHERS && problem.a_gather()->index.data != nullptr) return false;
    if (Problem::B_ACROSS && Problem::B_GATHERS && problem.b_gather()->index.data != nullptr) return false;
    return active && step > 0 && depth() == DEPTH && (a.unit & b.unit) == 16;
  }

  // Copies it.
  __device__ void issue_fast(const Problem &problem, const Queue &queue, uint32_t stage) {
    const Lines a_lines = problem.a(tile(queue)), b_lines = problem.b(tile(queue));
    a.issue_fast(stage, step, a_lines.pitch, first(a_lines));
    b.issue_fast(stage + STAGE_A, step, b_lines.pitch, first(b_lines));
    ++step;
    cp_async_commit();
  }

  // Copies the next stage, whatever it is.
  __device__ void issue(const Problem &problem, const Queue &queue, uint32_t stage) {
    if (active) {
      const Tile &now = tile(queue);
      moe_device_report_t *const report = problem.report();
      if (step == 0) {
        if constexpr (!Problem::A_ACROSS) a.resolve(problem.a(now), problem.a_gather(), queue.a_rows, report);
        if constexpr (!Problem::B_ACROSS) b.resolve(problem.b(now), problem.b_gather(), queue.b_rows, report);
      }
      if constexpr (Problem::A_ACROSS) {
        const Lines lines = problem.a(now);
        if constexpr (!Problem::A_GATHERS) a.fetch(nullptr, first(lines), depth());
        a.issue_across(stage, lines.pitch, problem.a_gather(), queue.a_rows, first(lines), report);
      } else {
        a.issue_along(stage, step, depth());
      }
      if constexpr (Problem::B_ACROSS) {
        const Lines lines = problem.b(now);
        if constexpr (!Problem::B_GATHERS) b.fetch(nullptr, first(lines), depth());
        b.issue_across(stage + STAGE_A, lines.pitch, problem.b_gather(), queue.b_rows, first(lines), report);
      } else {
        b.issue_along(stage + STAGE_A, step, depth());
      }
      ++step;
    }
    cp_async_commit();
  }

private:
  __device__ const Tile &tile(const Queue &queue) const { return queue.tiles[(number - 1) % Queue::SIZE]; }
  // Elements of the reduction that this step has.
  __device__ int depth() const { return step + 1 == steps ? tail : DEPTH; }
  __device__ int64_t first(const Lines &lines) const { return lines.first + int64_t(step) * DEPTH; }
};

template <class Problem> __device__ inline void run(const Problem &problem) {
  using Math = typename Problem::Math;
  extern __shared__ __align__(128) uint8_t stages[];
  __shared__ Queue queue;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    queue.scan = {};
    queue.next = blockIdx.x;
    if (Problem::A_GATHERS) queue.a_rows = true_count(problem.a_gather()->rows, problem.report());
    if (Problem::B_GATHERS) queue.b_rows = true_count(problem.b_gather()->rows, problem.report());
  }
  __syncthreads();
  if (warp == 0) {
#pragma unroll 1
    for (unsigned number = 0; number < Queue::AHEAD; ++number) queue.fill(problem, number);
  }
  __syncthreads();

  const uint32_t base = shared_address(stages);
  Feed<Problem> feed;
#pragma unroll 1
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
    for (uint32_t steps = steps_of<typename Math::Element>(problem.depth(tile)); steps > 0; --steps) {
      feed.prepare(problem, queue);
      if (feed.fast(problem)) {
        feed.issue_fast(problem, queue, write);
        math.load(fragments[1], read, 1);
        math.multiply(sums, fragments[0], read, 0);
      } else {
        math.load(fragments[1], read, 1);
        math.multiply(sums, fragments[0], read, 0);
        feed.issue(problem, queue, write);
      }
      if constexpr (!Math::AHEAD) math.multiply(sums, fragments[1], read, 1);
      // The next stage has arrived for all, and all have read this one.
      cp_async_wait<STAGES - 2>();
      __syncthreads();
      write = read;
      read = read + STAGE == base + SHARED ? base : read + STAGE;
      math.load(fragments[0], read, 0);
      if constexpr (Math::AHEAD) math.multiply(sums, fragments[1], read, 1);
    }

    const int column = warp / 2 * (64 / Problem::BOXES) + lane % 4 * 8;
    auto epilogue = problem.epilogue(tile, column);
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
