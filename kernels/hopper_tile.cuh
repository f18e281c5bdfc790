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

// Shared memory: the ring's stages, what epilogues lay out in, barriers, the schedule.
extern __shared__ __align__(1024) uint8_t memory[];

template <class Problem> struct Shared {
  static constexpr int STAGE = STAGE_A + Problem::COLUMNS * LINE;

  int stages;
  // Of STAGING bytes that a warp has, one behind the other's of all warps.
  int places;

  __device__ uint32_t stage(uint32_t slot) const { return shared_address(memory) + slot * STAGE; }
  __device__ uint32_t staging(int warp) const { return stage(stages) + warp * Problem::STAGING; }
  __device__ uint32_t full(uint32_t slot) const { return staging(8 * places) + 16 * slot; }
  __device__ uint32_t empty(uint32_t slot) const { return full(slot) + 8; }
  // The team may issue its products.
  __device__ uint32_t turn(int team) const { return full(MAX_STAGES) + 8 * team; }
  __device__ int &count() const {
    return *reinterpret_cast<int *>(memory + stages * STAGE + 8 * places * Problem::STAGING + 16 * MAX_STAGES + 16);
  }
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
  // All lanes of a warp together.
  __device__ bool next_of_warp() {
    return cursor.next_of_warp(shared.list(), shared.count(), Problem::LARGEST_FIRST, unit);
  }
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

}  // namespace hopper
