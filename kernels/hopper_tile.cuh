// What the Hopper grouped GEMM's warps share: tiles, where their operands are copied from, and the ring of stages.
#pragma once

#include "hopper_ptx.cuh"
#include "hopper_schedule.cuh"
#include "hopper_wgmma.cuh"
#include "params/grouped_gemm.h"
#include "params/hopper.h"

namespace hopper {

constexpr int DEPTH = 64;
constexpr int TEAM = 128;
constexpr int GEMM_THREADS = 3 * TEAM;
constexpr int STAGE_A = TILE_ROWS * LINE;
// From one place of a warp's staging to its next, where there are some.
constexpr int NEXT_PLACE = 8 * HOPPER_STAGING;

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
  // B is copied for both blocks of the cluster.
  bool shared;

  __device__ int steps() const { return blocks(depth, DEPTH); }
  __device__ int halves() const { return rows > 64 ? 2 : rows > 0 ? 1 : 0; }
};

// Where columns or rows of an operand begin: on its own side and on the reduction's.
struct Box {
  const BoxSource *source;
  int outer;
  int depth;
  int group;

  __device__ bool own_map() const { return source->maps != nullptr; }
  __device__ const TensorMap *map() const { return own_map() ? source->maps + group : &source->map; }
  // The group's place in its map.
  __device__ int place() const { return own_map() ? 0 : group; }
};

// Whether boxes of a group's weight can be copied: it is there, and a pointer is one that maps can be tied to.
__device__ inline bool has_boxes(const BoxSource &source, int64_t group) {
  if (source.pointers == nullptr) return true;
  const uint64_t pointer = reinterpret_cast<uint64_t>(source.pointers[group]);
  return pointer != 0 && (pointer + 2 * source.offset) % 16 == 0;
}

// One thread, before it copies by a group's map.
__device__ inline void acquire(const BoxSource &source, int group) {
  if (source.maps != nullptr) acquire_map(source.maps + group);
}

// The warp's stores by boxes have read what it laid out.
__device__ inline void wait_for_boxes() {
  if (threadIdx.x % 32 == 0) store_wait();
  __syncwarp();
}

// Shared memory: the ring's stages, what epilogues lay out in, barriers, the schedule.
extern __shared__ __align__(1024) uint8_t memory[];

template <class Problem> struct Shared {
  static constexpr int STAGE = STAGE_A + Problem::COLUMNS * LINE;

  int stages;

  __device__ uint32_t stage(uint32_t slot) const { return shared_address(memory) + slot * STAGE; }
  __device__ uint32_t staging(int warp) const { return stage(stages) + warp * Problem::STAGING; }
  __device__ uint32_t full(uint32_t slot) const { return staging(8 * Problem::PLACES) + 16 * slot; }
  __device__ uint32_t empty(uint32_t slot) const { return full(slot) + 8; }
  // The team may issue its products.
  __device__ uint32_t turn(int team) const { return full(HOPPER_STAGES) + 8 * team; }
  // A tile has been handed on; all have seen it.
  __device__ uint32_t found(uint32_t number) const { return turn(2) + number % HOPPER_HANDED * 16; }
  __device__ uint32_t seen(uint32_t number) const { return found(number) + 8; }
  // Where a tile is handed on.
  __device__ uint32_t handed(uint32_t number) const { return turn(2) + HOPPER_HANDED * 16 + number % HOPPER_HANDED * HOPPER_HANDED_BYTES; }
  __device__ int &count() const {
    constexpr int BARRIERS = 16 * HOPPER_STAGES + 16 + HOPPER_HANDED * (16 + HOPPER_HANDED_BYTES);
    return *reinterpret_cast<int *>(memory + stages * STAGE + 8 * Problem::PLACES * Problem::STAGING + BARRIERS);
  }
  __device__ Work *list() const { return reinterpret_cast<Work *>(&count() + 4); }
};

// A slot of the ring, and the parity of its present round.
struct Ring {
  uint32_t slot = 0;
  uint32_t parity = 0;

  __device__ void advance(int stages) {
    if (++slot == stages) slot = 0, parity ^= 1;
  }
  // By so many slots, fewer than there are, after whole rounds.
  __device__ void skip(uint32_t slots, uint32_t rounds, uint32_t stages) {
    slot += slots;
    parity ^= rounds & 1;
    if (slot >= stages) slot -= stages, parity ^= 1;
  }
};

// The tiles of a block as they are handed to a warp, or to a thread.
template <class Problem> struct Tiles {
  const Shared<Problem> &shared;
  uint32_t number = 0;

  __device__ explicit Tiles(const Shared<Problem> &shared) : shared(shared) {}

  // Waits for the tile so far ahead; false: there is none.
  __device__ bool wait(int ahead = 0) const {
    const uint32_t at = number + ahead;
    barrier_wait(shared.found(at), at / HOPPER_HANDED & 1);
    return static_cast<int>(load_shared_16(shared.handed(at)).x) >= 0;
  }
  __device__ Tile tile(int ahead = 0) const {
    const uint32_t at = shared.handed(number + ahead);
    const uint4 first = load_shared_16(at), second = load_shared_16(at + 16);
    const auto as_int = [](uint32_t word) { return static_cast<int>(word); };
    return {as_int(first.x),  as_int(first.y),  as_int(first.z), as_int(first.w),
            as_int(second.x), as_int(second.y), second.z != 0};
  }
  // Turns the ring past the tile.
  __device__ void skip(Ring &ring) const {
    const uint32_t turn = load_shared_16(shared.handed(number) + 16).w;
    ring.skip(turn & 0xffff, turn >> 16, shared.stages);
  }
  // The tile is not looked at any more, by this thread or by none of the warp.
  __device__ void see() const { barrier_arrive(shared.seen(number)); }
  __device__ void see_by_warp() const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) see();
  }
};

// A warp that finds tiles of a block and hands them on: from one on, each so many-th.
template <class Problem> struct Finder {
  const Problem &problem;
  const Shared<Problem> &shared;
  uint32_t number;
  uint32_t every;
  bool more = true;
  Cursor cursor;

  __device__ Finder(const Problem &problem, const Shared<Problem> &shared, uint32_t first, uint32_t every)
      : problem(problem), shared(shared), number(first), every(every) {}

  // All lanes: the next of them, or the word that there is none.
  __device__ void hand_next() {
    if (!more) return;
    int unit;
    more = cursor.find(shared.list(), shared.count(), Problem::LARGEST_FIRST, number, unit);
    Tile tile = {-1};
    if (more) tile = problem.tile(shared.list()[cursor.entry], unit, cluster_rank());
    const uint32_t steps = tile.steps(), stages = shared.stages, rounds = steps / stages;
    barrier_wait(shared.seen(number), (number / HOPPER_HANDED & 1) ^ 1);
    if (threadIdx.x % 32 == 0) {
      const auto word = [](int value) { return static_cast<uint32_t>(value); };
      const uint32_t at = shared.handed(number);
      store_shared_16(at, {word(tile.group), word(tile.begin), word(tile.row), word(tile.column)});
      store_shared_16(at + 16, {word(tile.rows), word(tile.depth), tile.shared, steps - rounds * stages | (rounds & 1) << 16});
      barrier_arrive(shared.found(number));
    }
    number += every;
  }
};

}  // namespace hopper
