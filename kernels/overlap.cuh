// Launches that begin while the one ahead on the stream still runs: no-ops before sm_90.
#pragma once

// Waits until the launch ahead has ended and what it wrote can be read.
__device__ inline void wait_for_launch_ahead() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the launch behind begin once every block has come here. Called behind the wait: what is then older than this launch
// can be read by the one behind without waiting. A kernel that calls it ahead of its wait says why: what is behind it must
// wait for all that it reads.
__device__ inline void let_next_launch_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
