// The gradient of the router's input on Hopper: dx[T, d] = dlogits[T, E] * weight[E, d], E up to 256.
//
// A block keeps the gradients of 128 tokens and passes over columns of the weights, 128 at a time, 64 experts a stage.
// Clusters have equal runs of all tiles, of 256 tokens and 128 columns each.

#include "hopper_gate.cuh"

namespace hopper {

__device__ inline void gate_input_gradient(const HopperGateParams &p) {
  using Rows = Operand<false>;
  using Across = Operand<true>;
  constexpr int COLUMNS = 128;
  const RouterGateParams &gate = p.gate;
  const int chunks = blocks(gate.experts, DEPTH), depth = blocks(gate.experts, 16);
  // Kept: the parts of the gradient, each in chunks of 64 experts.
  const uint32_t kept = shared_address(memory), kept_bytes = p.parts * chunks * STAGE_A;
  GateRing ring = {{}, kept + kept_bytes, 2 * BLOCK, p.stages};
  ring.init();
  wait_for_launch_ahead();
  let_next_launch_begin();
  const int64_t tokens = true_count(gate.tokens, gate.report);
  const int tiles = static_cast<int>((tokens + 2 * TILE_ROWS - 1) / (2 * TILE_ROWS));
  const int columns = blocks(static_cast<int>(gate.hidden), COLUMNS);
  const int64_t units = int64_t(tiles) * columns, clusters = gridDim.x / CLUSTER, run = (units + clusters - 1) / clusters;
  const int64_t begin = min(blockIdx.x / CLUSTER * run, units), end = min(begin + run, units);
  const int first_tile = static_cast<int>(begin / columns), first_column = static_cast<int>(begin % columns);
  const uint32_t rank = cluster_rank();

  const auto produce = [&] {
    const int lines = min(DEPTH, 16 * depth);
    int tile = first_tile, column = first_column;
    uint32_t parity = 1;
    for (int64_t unit = begin; unit < end; ++unit) {
      if (unit == begin || column == 0) {
        barrier_wait(ring.kept_empty(), parity);
        parity ^= 1;
        barrier_expect(ring.kept_full(), kept_bytes);
        const int token = (tile * 2 + static_cast<int>(rank)) * TILE_ROWS;
        for (int part = 0; part < p.parts; ++part) {
          for (int chunk = 0; chunk < chunks; ++chunk) {
            const uint32_t to = kept + (part * chunks + chunk) * STAGE_A;
            copy_box(to, &p.gradient.map, ring.kept_full(), chunk * DEPTH, token, part);
            copy_box(to + BLOCK, &p.gradient.map, ring.kept_full(), chunk * DEPTH, token + 64, part);
          }
        }
      }
      for (int chunk = 0; chunk < chunks; ++chunk) {
        const uint32_t to = ring.claim(2 * lines * LINE);
        multicast_box(to + rank * BLOCK, &p.weight.map, ring.full(), BOTH, column * COLUMNS + rank * 64, chunk * DEPTH);
        ring.next();
      }
      if (++column == columns) column = 0, ++tile;
    }
  };
  const auto consume = [&](int warp) {
    const int team = warp / 4;
    const bool add = adds(gate.dx_mode);
    int tile = first_tile, column = first_column;
    uint32_t parity = 0;
    for (int64_t unit = begin; unit < end; ++unit) {
      if (unit == begin || column == 0) {
        barrier_wait(ring.kept_full(), parity);
        parity ^= 1;
      }
      float sums[COLUMNS / 2] = {};
      GateRing previous = ring;
      for (int chunk = 0; chunk < chunks; ++chunk) {
        barrier_wait(ring.full(), ring.parity);
        const uint64_t b = Across::descriptor(ring.stage());
        const int left = depth - 4 * chunk;
        wgmma_fence();
        for (int part = 0; part < p.parts; ++part) {
          const uint64_t a = Rows::descriptor(kept + (part * chunks + chunk) * STAGE_A + team * BLOCK);
          if (left >= 4) {
#pragma unroll
            for (int k = 0; k < 4; ++k) wgmma<false, true>(sums, a + k * Rows::STEP, b + k * Across::STEP, __nv_bfloat16());
          } else {
#pragma unroll 1
            for (int k = 0; k < left; ++k) wgmma<false, true>(sums, a + k * Rows::STEP, b + k * Across::STEP, __nv_bfloat16());
          }
        }
        gate_committed(ring, previous, chunk > 0);
      }
      wgmma_wait<0>();
      previous.release();
      wgmma_settle(sums);
      const int64_t token = (tile * 2 + static_cast<int64_t>(rank)) * TILE_ROWS;
      const int first = column * COLUMNS;
      if (++column == columns) {
        column = 0, ++tile;
        if (threadIdx.x % 32 == 0) barrier_arrive(ring.kept_empty());
      }
      Target to;
      to.data = gate.dx.data + (token * gate.dx.pitch + first) * 2;
      to.pitch = gate.dx.pitch;
      to.rows = static_cast<int>(min(tokens - token, int64_t(TILE_ROWS)));
      to.columns = static_cast<int>(gate.hidden) - first;
      to.alpha = 1.0f, to.beta = 1.0f;
      to.narrow = true;
      to.add = add;
      to.packed = reinterpret_cast<uint64_t>(to.data) % 16 == 0 && to.pitch % 8 == 0;
      to.bias = nullptr;
      if (to.rows > 0) store<__nv_bfloat16>(to, team * 64 + warp % 4 * 16, sums, ring.staging(warp));
    }
  };
  gate_run(produce, consume);
}

}  // namespace hopper

extern "C" __global__ void __launch_bounds__(hopper::GATE_THREADS, 1)
    hopper_gate_dx(const __grid_constant__ HopperGateParams p) {
  MOE_HOPPER_ONLY(hopper::gate_input_gradient(p));
}
