// The producer of the Hopper grouped GEMM: copies each stage of the ring, by TMA or, by index, by cp.async.
#pragma once

#include <type_traits>

#include "hopper_tile.cuh"

namespace hopper {

template <class Problem>
__device__ inline void copy_a(const Box &at, int depth, int halves, uint32_t to, uint32_t full) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (half >= halves) break;
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
    // The addresses of all blocks at once do not fit the producer's registers.
#pragma unroll 1
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
  for (Tiles<Problem> tiles(shared); tiles.wait(); ++tiles.number) {
    const Tile tile = tiles.tile();
    tiles.see();
    const int steps = tile.steps();
    problem.acquire(tile);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      barrier_wait(shared.empty(ring.slot), ring.parity ^ 1);
      copy_stage(problem, shared, tile, step, ring.slot);
      ring.advance(shared.stages);
    }
  }
}

// ---- Rows that an index names, by 16 bytes a copy. The warps take turns to issue what TMA copies: it takes a third as
// long as a warp's own copies, and the slowest warp sets the pace.

// Of what an index names: zeros.
constexpr uint32_t ABSENT = 0xffffffff;

// An entry of an index as it is loaded: to look at it, even to widen it, is to wait for it.
struct Entry {
  uint32_t low;
  uint32_t high;
};

template <int N> using Number = std::integral_constant<int, N>;

// Warps that copy such rows.
constexpr int GATHERING_WARPS = TEAM / 32;

struct Gathering {
  const Gather &gather;
  const Matrix &source;
  moe_device_report_t *report;
  int64_t sources;

  template <class Problem>
  __device__ explicit Gathering(const Problem &problem)
      : gather(problem.gather()), source(problem.a_matrix()), report(problem.report()),
        sources(true_count(gather.rows, report)) {}

  __device__ Entry look_up(int place, bool exists) const {
    Entry entry = {ABSENT, ABSENT};
    if (!exists) return entry;
    if (gather.index.dtype == MOE_DTYPE_INT64) {
      const uint2 words = reinterpret_cast<const uint2 *>(gather.index.data)[place];
      entry = {words.x, words.y};
    } else {
      entry.low = reinterpret_cast<const uint32_t *>(gather.index.data)[place];
    }
    return entry;
  }

  // Where the row begins that it names, in units of 16 bytes.
  __device__ uint32_t checked(const Entry &entry, int place) const {
    const bool wide = gather.index.dtype == MOE_DTYPE_INT64;
    const int64_t row = wide ? static_cast<int64_t>(uint64_t(entry.high) << 32 | entry.low) : static_cast<int32_t>(entry.low);
    if (row >= sources) record_fault(report, gather.fault, place, row);
    return row >= 0 && row < sources ? static_cast<uint32_t>(row) * static_cast<uint32_t>(source.pitch / 8) : ABSENT;
  }
};

// Where 16 bytes of a line lie.
__device__ inline uint32_t place_of(int line, int chunk) { return line * LINE + ((chunk ^ line % 8) << 4); }

// All threads of the warp group; A's lines run along the reduction, each from the row that the index names. A thread has
// every 32nd line, and of each two copies that are half a line apart: an address is for both, since to make one takes as
// long as to issue a copy. Eight neighbours, of lines four apart, write to all banks.
template <class Problem>
__device__ inline void gather_along(const Problem &problem, const Shared<Problem> &shared) {
  constexpr int HALF = LINE / 2, EVERY = 32;
  const Gathering gathering(problem);
  const int lane = threadIdx.x % 32, warp_line = threadIdx.x / 32 * 8;
  const int line = lane / 8 + lane % 8 / 4 * 4, chunk = lane % 4;
  const uint32_t place = place_of(warp_line + line, chunk);
  // Lane j looks up line j % 8 of the warp's of pass j / 8.
  const int row = lane / 8 * EVERY + warp_line + lane % 8;
  const auto look_up = [&](const Tile &tile) { return gathering.look_up(tile.begin + tile.row + row, row < tile.rows); };
  const int warp = uniform_warp();
  Finder<Problem> finder(problem, shared, warp, GATHERING_WARPS);
  finder.hand_next();
  Ring ring;
  Tiles<Problem> tiles(shared);
  bool more = tiles.wait();
  Entry ahead = {};
  if (more) ahead = look_up(tiles.tile());
  for (; more; ++tiles.number) {
    const Tile tile = tiles.tile();
    tiles.see_by_warp();
    if (elect_one()) problem.acquire(tile);
    const uint32_t mine = gathering.checked(ahead, tile.begin + tile.row + row);
    if (tiles.number % GATHERING_WARPS == warp) finder.hand_next();
    // What the next tile needs comes while this one is copied: copies that are under way delay what is loaded behind them.
    more = tiles.wait(1);
    if (more) ahead = look_up(tiles.tile(1));
    // What the lines' next copies read, and which of them exist.
    uint64_t from[4];
    uint32_t exist = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t begin = __shfl_sync(WARP, mine, 8 * i + line);
      exist |= (begin != ABSENT) << i;
      from[i] = reinterpret_cast<uint64_t>(gathering.source.data) + 16 * (uint64_t(begin != ABSENT ? begin : 0) + chunk);
    }
    const int steps = tile.steps();
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      barrier_wait(shared.empty(ring.slot), ring.parity ^ 1);
      if (step % GATHERING_WARPS == warp && elect_one()) copy_stage(problem, shared, tile, step, ring.slot);
      const uint32_t to = shared.stage(ring.slot) + place, to_other = to ^ HALF;
      const int left = tile.depth - step * DEPTH - chunk * 8;
      const uint32_t copied = left > 0 ? exist : 0, other = left > HALF / 2 ? exist : 0;
      const auto copy = [&](auto number) {
        constexpr int i = decltype(number)::value;
        cp_async_16_if<i>(to + i * EVERY * LINE, reinterpret_cast<const void *>(from[i]), copied);
        cp_async_16_if<i>(to_other + i * EVERY * LINE, reinterpret_cast<const void *>(from[i] + HALF), other);
      };
      copy(Number<0>());
      copy(Number<1>());
      copy(Number<2>());
      copy(Number<3>());
      barrier_arrive_copies(shared.full(ring.slot));
#pragma unroll
      for (int i = 0; i < 4; ++i) advance<LINE>(from[i]);
      ring.advance(shared.stages);
    }
  }
}

// The same where A's lines run across it: an index names the row of each element of the reduction. A warp looks up what
// it copies in two steps at once, and four steps ahead, if need be of the next tile: copies that are under way delay what
// is loaded behind them.
template <class Problem>
__device__ inline void gather_across(const Problem &problem, const Shared<Problem> &shared) {
  // Behind a group without rows nothing would be looked up: such groups come last.
  static_assert(Problem::LARGEST_FIRST);
  const Gathering gathering(problem);
  // The thread's chunk of every 16th line of a half, and the line that it looks up for copy lane / 4 of its warp's.
  const int lane = threadIdx.x % 32, chunk = lane % 8, looked_up = threadIdx.x / 32 * 4 + lane % 4 + lane / 4 * 16;
  const uint32_t place = place_of(threadIdx.x / 8, chunk);
  const auto look_up = [&](int begin, int depth, int step) {
    const int row = step * DEPTH + looked_up;
    return gathering.look_up(begin + row, row < depth);
  };
  const int warp = uniform_warp();
  Finder<Problem> finder(problem, shared, warp, GATHERING_WARPS);
  finder.hand_next();
  Ring ring;
  Tiles<Problem> tiles(shared);
  bool more = tiles.wait();
  Entry even = {}, odd = {};
  if (more) {
    const Tile tile = tiles.tile();
    even = look_up(tile.begin, tile.depth, 0), odd = look_up(tile.begin, tile.depth, 2);
  }
  for (; more; ++tiles.number) {
    const Tile tile = tiles.tile();
    tiles.see_by_warp();
    if (tiles.number % GATHERING_WARPS == warp) finder.hand_next();
    more = tiles.wait(1);
    int next_begin = 0, next_depth = 0;
    if (more) {
      const Tile next = tiles.tile(1);
      next_begin = next.begin, next_depth = next.depth;
    }
    const int steps = tile.steps(), whole = blocks(steps, 4) * 4;
    if (elect_one()) problem.acquire(tile);
    uint64_t data = reinterpret_cast<uint64_t>(gathering.source.data + 2 * (tile.row + chunk * 8));
    // In registers: the compiler would add its parts anew for each line.
    asm volatile("" : "+l"(data));
    // Of the two halves of the tile's lines.
    const uint32_t exist = (chunk * 8 < tile.rows ? 1 : 0) + (chunk * 8 + 64 < tile.rows ? 2 : 0);
    const auto copy_two_steps = [&](Entry &ahead, int first) {
      const uint32_t mine = gathering.checked(ahead, tile.begin + first * DEPTH + looked_up);
      const bool within = first + 4 < whole;
      ahead = look_up(within ? tile.begin : next_begin, within ? tile.depth : next_depth, within ? first + 4 : first + 4 - whole);
#pragma unroll 1
      for (int step = 0; step < 2 && first + step < steps; ++step) {
        barrier_wait(shared.empty(ring.slot), ring.parity ^ 1);
        if ((first + step) % GATHERING_WARPS == warp && elect_one()) {
          copy_stage(problem, shared, tile, first + step, ring.slot);
        }
        const uint32_t to = shared.stage(ring.slot) + place;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t from = __shfl_sync(WARP, mine, step * 16 + 4 * i + lane / 8);
          const uint32_t at = to + i * 16 * LINE;
          const uint8_t *const line = reinterpret_cast<const uint8_t *>(data + uint64_t(from) * 16);
          const uint32_t copied = from != ABSENT ? exist : 0;
          cp_async_16_if<0>(at, line, copied);
          cp_async_16_if<1>(at + BLOCK, line + LINE, copied);
        }
        barrier_arrive_copies(shared.full(ring.slot));
        ring.advance(shared.stages);
      }
    };
    for (int step = 0; step < whole; step += 4) {
      copy_two_steps(even, step);
      copy_two_steps(odd, step + 2);
    }
  }
}

}  // namespace hopper
