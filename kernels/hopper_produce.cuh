// The producer of the Hopper grouped GEMM: copies each stage of the ring, by TMA or, by index, by cp.async.
#pragma once

#include "hopper_tile.cuh"

namespace hopper {

template <class Problem>
__device__ inline void copy_a(const Box &at, int depth, int halves, uint32_t to, uint32_t full) {
  for (int half = 0; half < halves; ++half) {
    const int outer = at.outer + 64 * half;
    if constexpr (Problem::A_ACROSS) {
      copy_box(to + half * BLOCK, at.map(), full, outer, at.depth + depth);
    } else {
      copy_box(to + half * BLOCK, at.map(), full, at.depth + depth, outer);
    }
  }
}

// A box of B; for both blocks of the cluster where it is shared.
__device__ inline void copy_b_box(uint32_t to, const Box &box, uint32_t full, bool shared, int x, int y) {
  constexpr uint16_t BOTH = 3;
  if (shared) {
    multicast_box(to, box.map(), full, BOTH, x, y, box.place());
  } else {
    copy_box(to, box.map(), full, x, y, box.place());
  }
}

// Half of B: of its columns, or across of the stage's reduction.
template <class Problem>
__device__ inline void copy_b_half(const Problem &problem, const Tile &tile, int depth, int half, bool shared, uint32_t to,
                                   uint32_t full) {
  if constexpr (Problem::B_ACROSS) {
#pragma unroll
    for (int block = 0; block < Problem::COLUMNS / 64; ++block) {
      const Box box = problem.b(tile, 64 * block);
      const int y = box.depth + depth + half * (DEPTH / 2);
      copy_b_box(to + block * BLOCK + half * (BLOCK / 2), box, full, shared, box.outer, y);
    }
  } else {
    const Box box = problem.b(tile, half * (Problem::COLUMNS / 2));
    copy_b_box(to + half * (Problem::COLUMNS / 2 * LINE), box, full, shared, box.depth + depth, box.outer);
  }
}

// One thread: all of a stage that TMA copies.
template <class Problem>
__device__ inline void copy_stage(const Problem &problem, const Shared<Problem> &shared, const Tile &tile, int step,
                                  uint32_t slot) {
  const uint32_t to = shared.stage(slot), full = shared.full(slot);
  const int halves = tile.halves(), depth = step * DEPTH;
  barrier_expect(full, halves == 0 ? 0 : (Problem::GATHERS ? 0 : halves * BLOCK) + Problem::COLUMNS * LINE);
  if (halves == 0) return;
  if constexpr (!Problem::GATHERS) copy_a<Problem>(problem.a(tile), depth, halves, to, full);
  if (tile.shared) {
    copy_b_half(problem, tile, depth, cluster_rank(), true, to + STAGE_A, full);
  } else {
    copy_b_half(problem, tile, depth, 0, false, to + STAGE_A, full);
    copy_b_half(problem, tile, depth, 1, false, to + STAGE_A, full);
  }
}

// One thread.
template <class Problem>
__device__ inline void produce(const Problem &problem, const Shared<Problem> &shared) {
  Ring ring;
  Tiles<Problem> tiles(problem, shared);
  while (tiles.next()) {
    const Tile tile = tiles.tile();
    const int steps = tile.steps();
    problem.acquire(tile);
    for (int step = 0; step < steps; ++step) {
      barrier_wait(shared.empty(ring.slot), ring.parity ^ 1);
      copy_stage(problem, shared, tile, step, ring.slot);
      ring.advance(shared.stages);
    }
  }
}

// ---- Rows that an index names. A thread copies 16 bytes of a line and of every 16th line from there on.

// Of what an index names: zeros.
constexpr uint32_t ABSENT = 0xffffffff;

struct Gathering {
  const Gather &gather;
  const Matrix &source;
  moe_device_report_t *report;
  int64_t sources;
  // The warp's lines are 4 and every 16th from each of them on: one for each lane, or two for each of 16 lanes.
  int line;
  int chunk;

  template <class Problem>
  __device__ explicit Gathering(const Problem &problem)
      : gather(problem.gather()), source(problem.a_matrix()), report(problem.report()),
        sources(true_count(gather.rows, report)), line(threadIdx.x / 8), chunk(threadIdx.x % 8) {}

  // Where the thread writes in its first line.
  __device__ uint32_t place() const { return line * LINE + ((chunk ^ line % 8) << 4); }

  // The line that lane looks up, so that copy i of all lanes is looked up by lanes 4 * i and on.
  __device__ static int looked_up() {
    const int lane = threadIdx.x % 32;
    return threadIdx.x / 32 * 4 + lane % 4 + lane / 4 * 16;
  }

  // What the index says of a place; to be checked when it has come.
  __device__ int64_t look_up(int place, bool exists) const { return exists ? load_index(gather.index, place) : -1; }

  // Where such a row begins, in units of 16 bytes.
  __device__ uint32_t checked(int64_t row, int place) const {
    if (row >= sources) record_fault(report, gather.fault, place, row);
    return row >= 0 && row < sources ? static_cast<uint32_t>(row) * static_cast<uint32_t>(source.pitch / 8) : ABSENT;
  }
};

// All threads of the warp group; A's lines run along the reduction, each from the row that the index names.
template <class Problem>
__device__ inline void gather_along(const Problem &problem, const Shared<Problem> &shared) {
  const Gathering gathering(problem);
  const int chunk = gathering.chunk;
  const uint32_t place = gathering.place();
  Ring ring;
  Tiles<Problem> tiles(problem, shared);
  while (tiles.next()) {
    const Tile tile = tiles.tile();
    if (threadIdx.x == 0) problem.acquire(tile);
    const int row = Gathering::looked_up(), named = tile.begin + tile.row + row;
    const uint32_t mine = gathering.checked(gathering.look_up(named, row < tile.rows), named);
    // Where the lines begin, and which of them exist.
    uint32_t from[8], exist = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      from[i] = __shfl_sync(WARP, mine, 4 * i + threadIdx.x % 32 / 8);
      exist |= (from[i] != ABSENT) << i;
      if (from[i] == ABSENT) from[i] = 0;
    }
    const int steps = tile.steps();
    for (int step = 0; step < steps; ++step) {
      barrier_wait(shared.empty(ring.slot), ring.parity ^ 1);
      if (threadIdx.x == 0) copy_stage(problem, shared, tile, step, ring.slot);
      const uint32_t to = shared.stage(ring.slot) + place;
      const int depth = step * DEPTH + chunk * 8;
      const uint8_t *const data = gathering.source.data + 2 * depth;
      if (exist == 0xff && (step + 1) * DEPTH <= tile.depth) {
#pragma unroll
        for (int i = 0; i < 8; ++i) cp_async_16(to + i * 16 * LINE, data + uint64_t(from[i]) * 16, 16);
      } else {
        const int valid = min(max(2 * (tile.depth - depth), 0), 16);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          cp_async_16(to + i * 16 * LINE, data + uint64_t(from[i]) * 16, exist >> i & 1 ? valid : 0);
        }
      }
      barrier_arrive_copies(shared.full(ring.slot));
      ring.advance(shared.stages);
    }
  }
}

// The same where A's lines run across it: an index names the row of each element of the reduction. A warp looks up what
// it copies in two steps at once, and two steps ahead.
template <class Problem>
__device__ inline void gather_across(const Problem &problem, const Shared<Problem> &shared) {
  const Gathering gathering(problem);
  const int chunk = gathering.chunk, lane = threadIdx.x % 32;
  const uint32_t place = gathering.place();
  Ring ring;
  Tiles<Problem> tiles(problem, shared);
  while (tiles.next()) {
    const Tile tile = tiles.tile();
    const int steps = tile.steps(), halves = tile.halves(), outer = tile.row + chunk * 8;
    if (threadIdx.x == 0) problem.acquire(tile);
    const uint8_t *const data = gathering.source.data + 2 * outer;
    // Bytes of the thread's 16 that exist, in either half of the tile's rows.
    const int valid[2] = {min(max(2 * (tile.rows - chunk * 8), 0), 16), min(max(2 * (tile.rows - chunk * 8 - 64), 0), 16)};
    int row = Gathering::looked_up();
    int64_t ahead = gathering.look_up(tile.begin + row, row < tile.depth);
    uint32_t mine = ABSENT;
    for (int step = 0; step < steps; ++step) {
      if (step % 2 == 0) {
        mine = gathering.checked(ahead, tile.begin + row);
        row += 2 * DEPTH;
        ahead = gathering.look_up(tile.begin + row, row < tile.depth);
      }
      barrier_wait(shared.empty(ring.slot), ring.parity ^ 1);
      if (threadIdx.x == 0) copy_stage(problem, shared, tile, step, ring.slot);
      const uint32_t to = shared.stage(ring.slot) + place;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t from = __shfl_sync(WARP, mine, step % 2 * 16 + 4 * i + lane / 8);
        const bool exists = from != ABSENT;
        const uint8_t *const line = data + uint64_t(exists ? from : 0) * 16;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (half < halves) cp_async_16(to + half * BLOCK + i * 16 * LINE, line + half * LINE, exists ? valid[half] : 0);
        }
      }
      barrier_arrive_copies(shared.full(ring.slot));
      ring.advance(shared.stages);
    }
  }
}

}  // namespace hopper
