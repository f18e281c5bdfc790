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
//   PREPARES, float prepare(const Tile &, int row, uint32_t staging) const
//                                                if so, called before a tile's products: begins to copy what the
//                                                epilogue of a warp's first rows reads, and to load a number that a
//                                                lane gives `finish` of all rows of the warp
//   ROLLED                                       its epilogue is so long that the code for a tile's halves is to be one
//   BOXES                                        its epilogue stores by the copy engine, which reads after it has returned
//   STAGING, PLACES                              bytes of shared memory of a warp's own, at `staging`, and how many times
//                                                there are as many, 8 * STAGING apart
//   void finish(const Tile &, int row, float (&sums)[COLUMNS / 2], uint32_t staging, [float prepared]) const
//                                                the epilogue of 16 rows of a warp, from the tile's row `row` on, laid
//                                                out as wgmma leaves them
#pragma once

#include "hopper_produce.cuh"

// A kernel's body; empty where there is no wgmma.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define MOE_HOPPER_ONLY(...) __VA_ARGS__
#else
#define MOE_HOPPER_ONLY(...)
#endif

namespace hopper {

// The first products begin the sums, if there are any: until then the compiler is to take them for known, not clear them.
template <int N> __device__ inline void begin(float (&sums)[N], int depth) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "=f"(sums[i]));
  if (depth > 0) return;
#pragma unroll
  for (int i = 0; i < N; ++i) sums[i] = 0.0f;
}

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
#pragma unroll 1
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
                                                      typename Problem::Element(), k > 0 || step > 0);
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
  for (Tiles<Problem> tiles(shared); tiles.wait(); ++tiles.number) {
    if (PINGPONG && tiles.number % 2 != team) {
      tiles.skip(ring);
      tiles.see_by_warp();
      continue;
    }
    const Tile tile = tiles.tile();
    float sums[HALVES][Problem::COLUMNS / 2];
#pragma unroll
    for (int half = 0; half < HALVES; ++half) begin(sums[half], tile.depth);
    const int halves = min(max(tile.halves() - first, 0), HALVES);
    float prepared = 0.0f;
    if constexpr (Problem::PREPARES) {
      const int warp = threadIdx.x / 32 - 4;
      if (halves > 0) prepared = problem.prepare(tile, first * 64 + warp % 4 * 16, shared.staging(warp));
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
    // Looked at again, so that its parts need not be kept in registers meanwhile.
    const Tile again = tiles.tile();
    tiles.see_by_warp();
    const int warp = threadIdx.x / 32 - 4;
    const auto finish = [&](int row, float (&sums)[Problem::COLUMNS / 2]) {
      if constexpr (Problem::PREPARES) {
        problem.finish(again, row, sums, shared.staging(warp), prepared);
      } else {
        problem.finish(again, row, sums, shared.staging(warp));
      }
    };
    if constexpr (Problem::ROLLED) {
      static_assert(HALVES == 2);
      wgmma_settle(sums[0]);
      wgmma_settle(sums[1]);
#pragma unroll 1
      for (int half = 0; half < halves; ++half) {
        finish(half * 64 + warp % 4 * 16, sums[0]);
#pragma unroll
        for (int i = 0; i < Problem::COLUMNS / 2; ++i) sums[0][i] = sums[1][i];
      }
    } else {
#pragma unroll
      for (int half = 0; half < HALVES; ++half) {
        wgmma_settle(sums[half]);
        if (half < halves) finish((first + half) * 64 + warp % 4 * 16, sums[half]);
      }
    }
  }
  if constexpr (Problem::BOXES) wait_for_boxes();
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
    for (int number = 0; number < HOPPER_HANDED; ++number) {
      barrier_init(shared.found(number), 1);
      barrier_init(shared.seen(number), 2 * TEAM / 32 + (GATHERS ? GATHERING_WARPS : 1));
    }
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
      const int warp = uniform_warp();
      if (warp == 0) {
        if (elect_one()) produce(problem, shared);
      } else if (warp == 1) {
        for (Finder<Problem> finder(problem, shared, 0, 1); finder.more;) finder.hand_next();
      }
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
