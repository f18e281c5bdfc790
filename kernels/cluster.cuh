// A launch of one cluster, whose blocks hand numbers to the first; before sm_90, of one block.
#pragma once

#include <cstdint>

#if __CUDA_ARCH__ >= 900
#include "hopper_ptx.cuh"
#endif

// All threads, ahead of anything else: the first block will be handed so many bytes.
__device__ inline void begin_gathering(uint64_t *barrier, int bytes) {
#if __CUDA_ARCH__ >= 900
  if (gridDim.x == 1) return;
  if (threadIdx.x == 0) {
    const uint32_t place = shared_address(barrier);
    hopper::barrier_init(place, 1);
    hopper::barrier_init_fence();
    if (blockIdx.x == 0) hopper::barrier_expect(place, bytes);
  }
  hopper::cluster_sync();
#endif
}

// A thread: sets values[place] of the first block.
__device__ inline void hand_to_first(float *values, int place, float value, uint64_t *barrier) {
#if __CUDA_ARCH__ >= 900
  if (blockIdx.x > 0) {
    // The store itself counts at the barrier: no fence is needed.
    asm volatile(
        "{\n"
        ".reg .b32 to, counter;\n"
        "mapa.shared::cluster.u32 to, %0, 0;\n"
        "mapa.shared::cluster.u32 counter, %2, 0;\n"
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [to], %1, [counter];\n"
        "}" ::"r"(shared_address(values + place)),
        "r"(__float_as_uint(value)), "r"(shared_address(barrier))
        : "memory");
    return;
  }
#endif
  values[place] = value;
}

// All threads of the block: whether it is the first. It then has what was handed to it.
__device__ inline bool gather(uint64_t *barrier) {
  if (blockIdx.x > 0) return false;
  __syncthreads();
#if __CUDA_ARCH__ >= 900
  if (gridDim.x > 1) hopper::barrier_wait(shared_address(barrier), 0);
#endif
  return true;
}
