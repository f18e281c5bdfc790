// The producer of the Hopper grouped GEMM: copies each stage of the ring, by TMA or, by index, by cp.async.
#pragma once

#include "hopper_tile.cuh"

namespace hopper {

template <class Problem>
__device__ inline void copy_a(const Box &at, int depth, int halves, uint32_t to, uint32_t full) {
  for (int half = 0; half < halves; ++half) {
    const int outer = at.outer + 64 * half;
    if constexpr (Problem::A_ACROSS) {
      copy_box(to + half * BLOCK, at.map, full, at.inner + outer, at.depth + depth);
    } else {
      copy_box(to + half * BLOCK, at.map, full, at.inner + at.depth + depth, outer);
    }
  }
}

// A box of B; for both blocks of the cluster where it is shared.
__device__ inline void copy_b_box(uint32_t to, const Box &box, uint32_t full, bool shared, int x, int y) {
  constexpr uint16_t BOTH = 3;
  if (shared) {
    multicast_box(to, box.map, full, BOTH, x, y, box.group);
  } else {
    copy_box(to, box.map, full, x, y, box.group);
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
      copy_b_box(to + block * BLOCK + half * (BLOCK / 2), box, full, shared, box.inner + box.outer, y);
    }
  } else {
    const Box box = problem.b(tile, half * (Problem::COLUMNS / 2));
    copy_b_box(to + half * (Problem::COLUMNS / 2 * LINE), box, full, shared, box.inner + box.depth + depth, box.outer);
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

// The row of the source that an index names; -1: zeros.
__device__ inline int fetch_row(const Gather &gather, int64_t sources, int place, moe_device_report_t *report) {
  const int64_t row = load_index(gather.index, place);
  if (row < sources) return row < 0 ? -1 : static_cast<int>(row);
  record_fault(report, gather.fault, place, row);
  return -1;
}

// All threads of the warp group; A's lines run along the reduction, each from the row that the index names.
template <class Problem>
__device__ inline void gather_along(const Problem &problem, const Shared<Problem> &shared) {
  const int chunk = threadIdx.x % 8, line = threadIdx.x / 8;
  const uint32_t place = line * LINE + ((chunk ^ line % 8) << 4);
  const Matrix &source = problem.a_matrix();
  const int64_t sources = true_count(problem.gather().rows, problem.report());
  Ring ring;
  Tiles<Problem> tiles(problem, shared);
  while (tiles.next()) {
    const Tile tile = tiles.tile();
    if (threadIdx.x == 0) problem.acquire(tile);
    // Where the lines begin, in units of 16 bytes, and which of them exist; the others are zeros.
    uint32_t from[8], exist = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int row = line + 16 * i, place = tile.begin + tile.row + row;
      const int named = row < tile.rows ? fetch_row(problem.gather(), sources, place, problem.report()) : -1;
      from[i] = max(named, 0) * static_cast<uint32_t>(source.pitch / 8);
      exist |= (named >= 0) << i;
      // Four indices at a time: more would not fit the registers.
      if (i == 3) asm volatile("" : "+r"(exist)::"memory");
    }
    const int steps = tile.steps();
    for (int step = 0; step < steps; ++step) {
      barrier_wait(shared.empty(ring.slot), ring.parity ^ 1);
      if (threadIdx.x == 0) copy_stage(problem, shared, tile, step, ring.slot);
      const uint32_t to = shared.stage(ring.slot) + place;
      const int depth = step * DEPTH + chunk * 8;
      const uint8_t *const data = source.data + 2 * depth;
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

// The same where A's lines run across it: an index names the row of each element of the reduction.
template <class Problem>
__device__ inline void gather_across(const Problem &problem, const Shared<Problem> &shared) {
  const int chunk = threadIdx.x % 8, line = threadIdx.x / 8;
  const uint32_t place = line * LINE + ((chunk ^ line % 8) << 4);
  const Matrix &source = problem.a_matrix();
  const int64_t sources = true_count(problem.gather().rows, problem.report());
  Ring ring;
  Tiles<Problem> tiles(problem, shared);
  while (tiles.next()) {
    const Tile tile = tiles.tile();
    const int steps = tile.steps(), halves = tile.halves(), outer = tile.row + chunk * 8;
    if (threadIdx.x == 0) problem.acquire(tile);
    int from[4];
    const auto fetch = [&](int step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = step * DEPTH + line + 16 * i;
        from[i] = row < tile.depth ? fetch_row(problem.gather(), sources, tile.begin + row, problem.report()) : -1;
      }
    };
    fetch(0);
    for (int step = 0; step < steps; ++step) {
      barrier_wait(shared.empty(ring.slot), ring.parity ^ 1);
      if (threadIdx.x == 0) copy_stage(problem, shared, tile, step, ring.slot);
      const uint32_t to = shared.stage(ring.slot) + place;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint8_t *const data = source.data + (max(from[i], 0) * source.pitch + outer) * 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int valid = min(max(2 * (tile.rows - chunk * 8 - 64 * half), 0), 16);
          if (half < halves) cp_async_16(to + half * BLOCK + i * 16 * LINE, data + half * LINE, from[i] < 0 ? 0 : valid);
        }
      }
      barrier_arrive_copies(shared.full(ring.slot));
      // The next indices arrive while the slot that they are for is awaited.
      fetch(step + 1);
      ring.advance(shared.stages);
    }
  }
}

}  // namespace hopper
