// What the Hopper kernels of the router's GEMM share: a ring of stages that the two blocks of a cluster fill.
//
// A block has a producer, one thread that copies by TMA, and two teams that multiply 64 rows each. What both blocks of a
// cluster read, half is copied by either into both.
#pragma once

#include "hopper_gemm.cuh"
#include "hopper_store.cuh"
#include "hopper_wgmma_64.cuh"
#include "overlap.cuh"
#include "params/logits.h"
#include "params/hopper_gate.h"

namespace hopper {

constexpr int GATE_THREADS = 3 * TEAM;
// Warps that multiply.
constexpr int GATE_WARPS = 8;
constexpr uint16_t BOTH = 3;

// Stages of `bytes` each from `first` on, then what warps lay out in, then barriers.
struct GateRing : Ring {
  uint32_t first;
  uint32_t bytes;
  int stages;

  __device__ uint32_t stage() const { return first + slot * bytes; }
  __device__ uint32_t staging(int warp) const { return first + stages * bytes + warp * GATE_STAGING; }
  __device__ uint32_t barrier(uint32_t number) const { return staging(GATE_WARPS) + 8 * number; }
  __device__ uint32_t full() const { return barrier(2 * slot); }
  __device__ uint32_t empty() const { return barrier(2 * slot + 1); }
  // Of an operand that is kept through several rounds of the ring.
  __device__ uint32_t kept_full() const { return barrier(2 * stages); }
  __device__ uint32_t kept_empty() const { return barrier(2 * stages + 1); }
  __device__ void next() { advance(stages); }

  // The cluster, before anything is copied.
  __device__ void init() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < stages; ++i) {
        barrier_init(barrier(2 * i), 1);
        barrier_init(barrier(2 * i + 1), CLUSTER * GATE_WARPS);
      }
      barrier_init(kept_full(), 1);
      barrier_init(kept_empty(), GATE_WARPS);
      barrier_init_fence();
    }
    cluster_sync();
  }

  // The producer: waits until the slot may be filled, with `expected` bytes.
  __device__ uint32_t claim(uint32_t expected) const {
    barrier_wait(empty(), parity ^ 1);
    barrier_expect(full(), expected);
    return stage();
  }

  // A warp: as far as it is concerned both blocks may fill the slot again.
  __device__ void release() const {
    const uint32_t lane = threadIdx.x % 32;
    if (lane < CLUSTER) barrier_arrive_remote(empty(), lane);
  }
};

// Waits for the products but those of the last stage, and gives the stage ahead of it back.
__device__ inline void gate_committed(GateRing &ring, GateRing &previous, bool has_previous) {
  wgmma_commit();
  wgmma_wait<1>();
  if (has_previous) previous.release();
  previous = ring;
  ring.next();
}

// Runs the block: its first warp group produces, the others consume.
template <class Produce, class Consume> __device__ inline void gate_run(const Produce &produce, const Consume &consume) {
  constexpr int PRODUCER = 40, TEAMS = 232;
  const int warp_group = __shfl_sync(0xffffffff, threadIdx.x / TEAM, 0);
  if (warp_group == 0) {
    give_registers<PRODUCER>();
    if (threadIdx.x == 0) produce();
  } else {
    take_registers<TEAMS>();
    consume(threadIdx.x / 32 - 4);
  }
  __syncwarp();
  // The other block still arrives at this one's barriers, and copies into its stages.
  cluster_sync();
}

}  // namespace hopper
