// Logits on Hopper: [T, E] = x[T, d] * weight[E, d]^T, a block 128 tokens by up to 256 experts, x read once.

#include "hopper_gate.cuh"

namespace hopper {

template <int EXPERTS> __device__ inline void gate_forward(const HopperGateParams &p) {
  const RouterGateParams &gate = p.gate;
  GateRing ring = {{}, shared_address(memory), (TILE_ROWS + EXPERTS) * LINE, p.stages};
  ring.init();
  wait_for_launch_ahead();
  let_next_launch_begin();
  const int64_t tokens = true_count(gate.tokens, gate.report), token = int64_t(blockIdx.x) * TILE_ROWS;
  const uint32_t rank = cluster_rank();
  // Of the cluster's first block.
  if (token - rank * TILE_ROWS >= tokens) return;
  const int expert = blockIdx.y * EXPERTS;
  const int64_t begin = blockIdx.z * gate.span, end = min(begin + gate.span, gate.hidden);
  const int steps = static_cast<int>((end - begin + DEPTH - 1) / DEPTH);

  const auto produce = [&] {
    for (int step = 0; step < steps; ++step) {
      const uint32_t to = ring.claim(ring.bytes), full = ring.full();
      const int column = static_cast<int>(begin) + step * DEPTH;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        copy_box(to + half * BLOCK, &p.x.map, full, column, static_cast<int>(token) + 64 * half);
      multicast_box(to + STAGE_A + rank * (EXPERTS / 2 * LINE), &p.weight.map, full, BOTH, column, expert + rank * (EXPERTS / 2));
      ring.next();
    }
  };
  const auto consume = [&](int warp) {
    using Rows = Operand<false>;
    const int team = warp / 4;
    float sums[EXPERTS / 2] = {};
    GateRing previous = ring;
    for (int step = 0; step < steps; ++step) {
      barrier_wait(ring.full(), ring.parity);
      const uint64_t a = Rows::descriptor(ring.stage() + team * BLOCK), b = Rows::descriptor(ring.stage() + STAGE_A);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < DEPTH / 16; ++k) wgmma<false, false>(sums, a + k * Rows::STEP, b + k * Rows::STEP, __nv_bfloat16());
      gate_committed(ring, previous, step > 0);
    }
    wgmma_wait<0>();
    wgmma_settle(sums);
    if (token >= tokens) return;
    const bool partial = gate.partials != nullptr;
    const int64_t pitch = partial ? gate.experts : gate.logits.pitch;
    const int size = partial || gate.logits.dtype == MOE_DTYPE_FP32 ? 4 : 2;
    uint8_t *const data = partial ? gate.partials + int64_t(blockIdx.z) * gate.tokens.bound * gate.experts * size : gate.logits.data;
    Target to;
    to.data = data + (token * pitch + expert) * size;
    to.pitch = pitch;
    to.rows = static_cast<int>(min(tokens - token, int64_t(TILE_ROWS)));
    to.columns = gate.experts - expert;
    to.alpha = 1.0f, to.beta = 0.0f;
    to.narrow = size == 2;
    to.add = false;
    to.packed = reinterpret_cast<uint64_t>(to.data) % 16 == 0 && pitch * size % 16 == 0;
    to.bias_dtype = gate.bias.dtype;
    to.bias = partial || gate.bias.data == nullptr ? nullptr : gate.bias.data + int64_t(expert) * (gate.bias.dtype == MOE_DTYPE_FP32 ? 4 : 2);
    store<__nv_bfloat16>(to, team * 64 + warp % 4 * 16, sums, ring.staging(warp));
  };
  gate_run(produce, consume);
}

}  // namespace hopper

#define HOPPER_GATE_FWD(EXPERTS)                                                          \
  extern "C" __global__ void __launch_bounds__(hopper::GATE_THREADS, 1)                   \
      hopper_gate_fwd_##EXPERTS(const __grid_constant__ HopperGateParams p) {             \
    MOE_HOPPER_ONLY(hopper::gate_forward<EXPERTS>(p));                                    \
  }

HOPPER_GATE_FWD(64)
HOPPER_GATE_FWD(128)
HOPPER_GATE_FWD(256)
