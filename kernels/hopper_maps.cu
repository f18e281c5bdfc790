// The tensor maps of weights that are given by pointers, a warp each: another matrix' map, with the pointer's address.
#include "hopper_ptx.cuh"
#include "report.cuh"

namespace hopper {

constexpr int WARPS = 4;

__device__ inline void make_map(const BoxMapsParams &p) {
  __shared__ alignas(128) TensorMap local[WARPS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t group = blockIdx.x * int64_t(WARPS) + warp;
  if (group >= p.groups || p.pointers[group] == nullptr) return;
  const uint64_t address = reinterpret_cast<uint64_t>(p.pointers[group]) + 2 * p.offset;
  // Maps are tied to multiples of 16 bytes.
  if (address % 16 != 0) {
    if (lane == 0) record_fault(p.report, MOE_FAULT_POINTER, group, static_cast<int64_t>(address));
    return;
  }
  if (lane < 16) local[warp].words[lane] = p.model.words[lane];
  __syncwarp();
  if (lane == 0) set_map_address(shared_address(&local[warp]), address);
  __syncwarp();
  publish_map(p.maps + group, shared_address(&local[warp]));
}

}  // namespace hopper

extern "C" __global__ void __launch_bounds__(32 * hopper::WARPS) hopper_box_maps(const __grid_constant__ BoxMapsParams p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  hopper::make_map(p);
#endif
}
