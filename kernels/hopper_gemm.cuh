// The Hopper grouped GEMM: TMA or cp.async fills a ring of stages, wgmma empties it; a picture is in docs/kernels.md.
//
// A block has three warp groups. The first produces: it copies 64 elements of the reduction a stage. The others, the
// teams, multiply tiles of 128 x COLUMNS: by turns, each a tile of its own whose epilogue hides behind the other's
// products (PINGPONG), or together, 64 rows each. Two blocks make a cluster that loads what both need once.
//
//   using Element                                __nv_bfloat16 or __half
//   COLUMNS, PINGPONG                            of a tile; whether teams take turns
//   A_ACROSS, B_ACROSS                           operands whose lines are elements of the reduction
//   GATHERS                                      A's lines are fetched by index
//   LARGEST_FIRST                                groups are ordered by size
//   MASKS                                        the reduction ends within a group's rows: what follows them is cleared
//   const Groups &groups() const                 whose tiles these are
//   int units(const Span &) const                of a group
//   Tile tile(const Work &, int unit, int rank)  of a block of the cluster
//   Box a(const Tile &) const                    where the tile's rows begin, if they are not gathered
//   Box b(const Tile &, int column) const        where its columns from `column` on, a half or a block of 64, begin
//   void acquire(const Tile &) const             before the tile's first copies, by the thread that issues them
//   const Gather &gather(), const Matrix &a_matrix()   the index and what it points into, if there is one
//   PREPARES, void prepare(const Tile &, int row, uint32_t staging) const
//                                                if so, called before a tile's products: begins to copy what the
//                                                epilogue of a warp's first rows reads
//   ROLLED                                       its epilogue is so long that the code for a tile's halves is to be one
//   STAGING                                      bytes of shared memory of a warp's own, at `staging`
//   void finish(const Tile &, int row, float (&sums)[COLUMNS / 2], uint32_t staging) const
//                                                the epilogue of 16 rows of a warp, from the tile's row `row` on, laid
//                                                out as wgmma leaves them
#pragma once

#include "hopper_ptx.cuh"
#include "hopper_schedule.cuh"
#include "hopper_wgmma.cuh"
#include "params/grouped_gemm.h"
#include "params/hopper.h"

// A kernel's body; empty where there is no wgmma.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define MOE_HOPPER_ONLY(...) __VA_ARGS__
#else
#define MOE_HOPPER_ONLY(...)
#endif

namespace hopper {

constexpr int DEPTH = 64;
constexpr int TEAM = 128;
constexpr int GEMM_THREADS = 3 * TEAM;
constexpr int STAGE_A = TILE_ROWS * LINE;
constexpr int MAX_STAGES = 8;

struct Tile {
  int group;
  // The group's rows begin there.
  int begin;
  // Where the tile begins in its group's matrix, and how many rows exist from there on; 0: nothing to compute.
  int row;
  int column;
  int rows;
  // Elements of the reduction.
  int depth;
  bool shared;
  // Where rows of B, or of its two halves, begin in their maps.
  int inner[2];

  __device__ int steps() const { return blocks(depth, DEPTH); }
  __device__ int halves() const { return rows > 64 ? 2 : rows > 0 ? 1 : 0; }
};

// Where columns or rows of an operand begin in a tensor map: on its own side and on the reduction's.
struct Box {
  const TensorMap *map;
  int outer;
  int depth;
  int group;
  // Elements that are skipped of each row of memory.
  int inner;
};

// Where a matrix' boxes from `outer` and `depth` on are; there is one matrix.
__device__ inline Box box_of(const BoxSource &source, int outer, int depth) {
  return {&source.map, outer, depth, 0, source.inner};
}

// The same for a group's weight; `inner` as `inner_of` says.
__device__ inline Box box_of(const BoxSource &source, int outer, int group, int inner) {
  if (source.maps != nullptr) return {source.maps + group, outer, 0, 0, inner};
  return {&source.map, outer, 0, group, inner};
}

__device__ inline int inner_of(const BoxSource &source, int group) {
  if (source.pointers == nullptr) return source.inner;
  return (reinterpret_cast<uint64_t>(source.pointers[group]) + 2 * source.offset) % 16 / 2;
}

// One thread, before it copies by a group's map.
__device__ inline void acquire(const BoxSource &source, int group) {
  if (source.maps != nullptr) acquire_map(source.maps + group);
}

// Shared memory: the ring's stages, what epilogues lay out in, barriers, the schedule.
extern __shared__ __align__(1024) uint8_t memory[];

template <class Problem> struct Shared {
  static constexpr int STAGE = STAGE_A + Problem::COLUMNS * LINE;

  int stages;

  __device__ uint32_t stage(uint32_t slot) const { return shared_address(memory) + slot * STAGE; }
  __device__ uint32_t staging(int warp) const { return stage(stages) + warp * Problem::STAGING; }
  __device__ uint32_t full(uint32_t slot) const { return staging(8) + 16 * slot; }
  __device__ uint32_t empty(uint32_t slot) const { return full(slot) + 8; }
  // The team may issue its products.
  __device__ uint32_t turn(int team) const { return full(MAX_STAGES) + 8 * team; }
  __device__ int &count() const { return *reinterpret_cast<int *>(memory + stages * STAGE + 8 * Problem::STAGING + 16 * MAX_STAGES + 16); }
  __device__ Work *list() const { return reinterpret_cast<Work *>(&count() + 4); }
};

// The tiles of a block, one after the other.
template <class Problem> struct Tiles {
  const Problem &problem;
  const Shared<Problem> &shared;
  Cursor cursor;
  int unit;

  __device__ Tiles(const Problem &problem, const Shared<Problem> &shared) : problem(problem), shared(shared) {}

  __device__ bool next() { return cursor.next(shared.list(), shared.count(), Problem::LARGEST_FIRST, unit); }
  __device__ Tile tile() const { return problem.tile(shared.list()[cursor.entry], unit, cluster_rank()); }
  // The same again, so that its parts need not be kept in registers meanwhile.
  __device__ Tile tile_again() {
    asm volatile("" : "+r"(unit));
    return tile();
  }
};

// A slot of the ring, and the parity of its present round.
struct Ring {
  uint32_t slot = 0;
  uint32_t parity = 0;

  __device__ void advance(int stages) {
    if (++slot == stages) slot = 0, parity ^= 1;
  }
  __device__ void skip(int steps, int stages) {
    const uint32_t to = slot + steps;
    parity ^= to / stages & 1;
    slot = to % stages;
  }
};

// ---- The producer.

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

// ---- The teams.

// Both blocks of the cluster may fill the slot again, as far as this warp is concerned.
template <class Problem> __device__ inline void release(const Shared<Problem> &shared, uint32_t slot) {
  const uint32_t lane = threadIdx.x % 32;
  if (lane < CLUSTER) barrier_arrive_remote(shared.empty(slot), lane);
}

// Clears what a stage holds behind the first `valid` elements of the reduction.
template <class Problem> __device__ inline void clear_behind(uint32_t stage, int valid, int team) {
  constexpr int BLOCKS = 2 + Problem::COLUMNS / 64;
  constexpr int THREADS = Problem::PINGPONG ? TEAM : 2 * TEAM;
  const int lines = DEPTH - valid, thread = (threadIdx.x - TEAM) % THREADS;
  for (int i = thread; i < BLOCKS * lines * 8; i += THREADS) {
    const int block = i / (lines * 8), rest = i % (lines * 8);
    store_shared_16(stage + block * BLOCK + (valid + rest / 8) * LINE + rest % 8 * 16, uint4{0, 0, 0, 0});
  }
  fence_async();
  named_barrier(1 + (Problem::PINGPONG ? team : 0), THREADS);
}

// The products of a tile for HALVES times 64 rows, from `first` on.
template <int HALVES, int ALL, class Problem>
__device__ inline void multiply(float (&sums)[ALL][Problem::COLUMNS / 2], const Tile &tile, const Shared<Problem> &shared,
                                Ring &ring, int first, int team) {
  using A = Operand<Problem::A_ACROSS>;
  using B = Operand<Problem::B_ACROSS>;
  const int steps = tile.steps();
  uint32_t previous = 0;
  for (int step = 0; step < steps; ++step) {
    barrier_wait(shared.full(ring.slot), ring.parity);
    const uint32_t stage = shared.stage(ring.slot);
    if constexpr (Problem::GATHERS) fence_async();
    if constexpr (Problem::MASKS) {
      const int valid = tile.depth - step * DEPTH;
      if (valid < DEPTH && tile.rows > 0) clear_behind<Problem>(stage, valid, team);
    }
    if constexpr (HALVES > 0) {
      const uint64_t a = A::descriptor(stage + first * BLOCK), b = B::descriptor(stage + STAGE_A);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < DEPTH / 16; ++k) {
#pragma unroll
        for (int half = 0; half < HALVES; ++half) {
          wgmma<Problem::A_ACROSS, Problem::B_ACROSS>(sums[half], a + k * A::STEP + half * A::ROWS_64, b + k * B::STEP,
                                                      typename Problem::Element());
        }
      }
      wgmma_commit();
      wgmma_wait<1>();
    }
    if (step > 0) release(shared, previous);
    previous = ring.slot;
    ring.advance(shared.stages);
  }
  // The other team's products may follow at once. Each warp says so: one that is late must not be lapped.
  if (Problem::PINGPONG && threadIdx.x % 32 == 0) barrier_arrive(shared.turn(team ^ 1));
  wgmma_wait<0>();
  if (steps > 0) release(shared, previous);
}

template <class Problem>
__device__ inline void consume(const Problem &problem, const Shared<Problem> &shared, int team) {
  constexpr bool PINGPONG = Problem::PINGPONG;
  constexpr int HALVES = PINGPONG ? 2 : 1;
  const int first = PINGPONG ? 0 : team;
  Ring ring;
  // Team 0 begins.
  uint32_t turn = team == 0;
  Tiles<Problem> tiles(problem, shared);
  for (int number = 0; tiles.next(); ++number) {
    const Tile tile = tiles.tile();
    if (PINGPONG && number % 2 != team) {
      ring.skip(tile.steps(), shared.stages);
      continue;
    }
    float sums[HALVES][Problem::COLUMNS / 2] = {};
    const int halves = min(max(tile.halves() - first, 0), HALVES);
    if constexpr (Problem::PREPARES) {
      const int warp = threadIdx.x / 32 - 4;
      if (halves > 0) problem.prepare(tile, first * 64 + warp % 4 * 16, shared.staging(warp));
    }
    if (PINGPONG) {
      barrier_wait(shared.turn(team), turn);
      turn ^= 1;
    }
    if (halves == 2) {
      multiply<HALVES>(sums, tile, shared, ring, first, team);
    } else if (halves == 1) {
      multiply<1>(sums, tile, shared, ring, first, team);
    } else {
      multiply<0>(sums, tile, shared, ring, first, team);
    }
    const Tile again = tiles.tile_again();
    const int warp = threadIdx.x / 32 - 4;
    if constexpr (Problem::ROLLED) {
      static_assert(HALVES == 2);
      wgmma_settle(sums[0]);
      wgmma_settle(sums[1]);
#pragma unroll 1
      for (int half = 0; half < halves; ++half) {
        problem.finish(again, half * 64 + warp % 4 * 16, sums[0], shared.staging(warp));
#pragma unroll
        for (int i = 0; i < Problem::COLUMNS / 2; ++i) sums[0][i] = sums[1][i];
      }
    } else {
#pragma unroll
      for (int half = 0; half < HALVES; ++half) {
        wgmma_settle(sums[half]);
        if (half < halves) problem.finish(again, (first + half) * 64 + warp % 4 * 16, sums[half], shared.staging(warp));
      }
    }
  }
}

template <class Problem> __device__ inline void run(const Problem &problem) {
  constexpr bool GATHERS = Problem::GATHERS;
  // Registers of a thread: what the producer gives, the teams take. A block has 3 * 168 of them, no more: to ask for
  // more would wait for ever.
  constexpr int PRODUCER = 40, TEAMS = 232;
  static_assert(PRODUCER + 2 * TEAMS <= 3 * 168);
  const Shared<Problem> shared = {problem.p.stages};
  const int warp_group = __shfl_sync(0xffffffff, threadIdx.x / TEAM, 0);

  if (threadIdx.x == 0) {
    constexpr int WARPS = Problem::PINGPONG ? 4 : 8;
    for (int slot = 0; slot < shared.stages; ++slot) {
      barrier_init(shared.full(slot), 1 + (GATHERS ? TEAM : 0));
      barrier_init(shared.empty(slot), CLUSTER * WARPS);
    }
    for (int team = 0; team < 2; ++team) barrier_init(shared.turn(team), TEAM / 32);
    barrier_init_fence();
  }
  const int64_t groups = problem.groups().count;
  Work *const unordered = reinterpret_cast<Work *>(memory);
  int64_t *const offsets = reinterpret_cast<int64_t *>(unordered + groups);
  build_schedule({shared.list(), unordered, offsets, offsets + groups + 1, &shared.count()}, problem.groups(),
                 Problem::LARGEST_FIRST, problem.report(), [&](const Span &span) { return problem.units(span); });
  // What was written above lies where TMA will write.
  fence_async();
  cluster_sync();

  if (warp_group == 0) {
    give_registers<PRODUCER>();
    if constexpr (!GATHERS) {
      if (threadIdx.x == 0) produce(problem, shared);
    } else if constexpr (Problem::A_ACROSS) {
      gather_across(problem, shared);
    } else {
      gather_along(problem, shared);
    }
  } else {
    take_registers<TEAMS>();
    consume(problem, shared, warp_group - 1);
  }
  __syncwarp();
  // The other block still arrives at this one's barriers.
  cluster_sync();
}

}  // namespace hopper
