// Parts of the gradient of the router's weights on Hopper: dweight[E, d] = dlogits[T, E]^T * x[T, d], E up to 256.
//
// Columns of x are the products' rows and experts their columns, so that few experts cost little. A block has 128 * ROWS
// columns, a cluster twice as many, and both the gradients of 32 tokens a stage. Clusters have equal runs of all tiles'
// steps; of each tile that one has a share of it leaves a part.

#include "hopper_gate.cuh"
#include "router_shares.cuh"

namespace hopper {

// Blocks of 32 tokens by 64 columns, whose lines are tokens.
constexpr int SHORT_BLOCK = GATE_SHARE * LINE;

// Operands of such blocks: see Operand<true>.
__device__ inline uint64_t short_descriptor(uint32_t address) {
  constexpr uint64_t other = Operand<true>::NEXT_BLOCK ^ SHORT_BLOCK / 16;
  return Operand<true>::descriptor(address) ^ other << 16;
}

// Clears what a stage of `count` blocks holds behind the first `valid` tokens: products with what is not there.
__device__ inline void gate_clear(uint32_t stage, int count, int valid) {
  const int lines = GATE_SHARE - valid, thread = threadIdx.x - TEAM;
  for (int i = thread; i < count * lines * 8; i += 2 * TEAM) {
    const int block = i / (lines * 8), rest = i % (lines * 8);
    store_shared_16(stage + block * SHORT_BLOCK + (valid + rest / 8) * LINE + rest % 8 * 16, uint4{0, 0, 0, 0});
  }
  fence_async();
  named_barrier(1, 2 * TEAM);
}

template <int EXPERTS, int ROWS> __device__ inline void gate_weight_gradient(const HopperGateParams &p) {
  constexpr int X_BLOCKS = 2 * ROWS, GRAD_BLOCKS = EXPERTS / 64, WIDTH = 64 * X_BLOCKS;
  const RouterGateParams &gate = p.gate;
  const int all_blocks = X_BLOCKS + p.parts * GRAD_BLOCKS;
  GateRing ring = {{}, shared_address(memory), static_cast<uint32_t>(all_blocks * SHORT_BLOCK), p.stages};
  ring.init();
  // A launch ahead that this one overlaps is that of dx: what is read here is older.
  let_next_launch_begin();
  const int64_t tokens = true_count(gate.tokens, gate.report);
  const int tiles = static_cast<int>((gate.hidden + 2 * WIDTH - 1) / (2 * WIDTH)), cluster = blockIdx.x / CLUSTER;
  const Shares shares(tokens, tiles, gridDim.x / CLUSTER);
  const int begin = shares.begin(cluster), end = shares.end(cluster), steps = shares.steps;
  const int first_tile = begin < end ? begin / steps : 0, first_step = begin < end ? begin % steps : 0;
  const uint32_t rank = cluster_rank();

  const auto produce = [&] {
    int tile = first_tile, step = first_step;
    for (int unit = begin; unit < end; ++unit) {
      const uint32_t to = ring.claim(ring.bytes), full = ring.full();
      const int token = step * GATE_SHARE, column = (tile * 2 + static_cast<int>(rank)) * WIDTH;
#pragma unroll
      for (int block = 0; block < X_BLOCKS; ++block)
        copy_box(to + block * SHORT_BLOCK, &p.x.map, full, column + 64 * block, token);
      // Half of the tokens.
      const uint32_t mine = to + X_BLOCKS * SHORT_BLOCK + rank * (SHORT_BLOCK / 2);
      for (int part = 0; part < p.parts; ++part) {
#pragma unroll
        for (int block = 0; block < GRAD_BLOCKS; ++block) {
          multicast_box(mine + (part * GRAD_BLOCKS + block) * SHORT_BLOCK, &p.gradient.map, full, BOTH, 64 * block,
                        token + static_cast<int>(rank) * (GATE_SHARE / 2), part);
        }
      }
      ring.next();
      if (++step == steps) step = 0, ++tile;
    }
  };
  const auto consume = [&](int warp) {
    using Across = Operand<true>;
    const int team = warp / 4, lane = threadIdx.x % 32;
    int tile = first_tile, step = first_step;
    int unit = begin;
    while (unit < end) {
      float sums[ROWS][EXPERTS / 2] = {};
      const int last = min(steps, step + (end - unit));
      unit += last - step;
      GateRing previous = ring;
      for (bool follows = false; step < last; ++step, follows = true) {
        barrier_wait(ring.full(), ring.parity);
        const uint32_t stage = ring.stage();
        const int64_t valid = tokens - int64_t(step) * GATE_SHARE;
        if (valid < GATE_SHARE) gate_clear(stage, all_blocks, static_cast<int>(valid));
        const uint64_t a = short_descriptor(stage + team * ROWS * SHORT_BLOCK), b = short_descriptor(stage + X_BLOCKS * SHORT_BLOCK);
        wgmma_fence();
        const auto multiply = [&](uint64_t b) {
#pragma unroll
          for (int k = 0; k < GATE_SHARE / 16; ++k) {
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
              wgmma<true, true>(sums[row], a + k * Across::STEP + row * (SHORT_BLOCK / 16), b + k * Across::STEP, __nv_bfloat16());
            }
          }
        };
        multiply(b);
        if (p.parts == 2) multiply(b + GRAD_BLOCKS * (SHORT_BLOCK / 16));
        gate_committed(ring, previous, follows);
      }
      wgmma_wait<0>();
      previous.release();
      const int64_t first = (tile * 2 + static_cast<int64_t>(rank)) * WIDTH + team * (64 * ROWS) + warp % 4 * 16 + lane / 4;
      float *const part = reinterpret_cast<float *>(gate.partials) + int64_t(cluster - shares.first(tile)) * gate.experts * gate.hidden;
#pragma unroll
      for (int row = 0; row < ROWS; ++row) {
        wgmma_settle(sums[row]);
#pragma unroll
        for (int i = 0; i < EXPERTS / 2; ++i) {
          const int expert = i / 4 * 8 + lane % 4 * 2 + i % 2;
          const int64_t column = first + 64 * row + i / 2 % 2 * 8;
          if (expert < gate.experts && column < gate.hidden) part[expert * gate.hidden + column] = sums[row][i];
        }
      }
      step = 0, ++tile;
    }
  };
  gate_run(produce, consume);
  // For those who wait for this launch alone.
  wait_for_launch_ahead();
}

}  // namespace hopper

#define HOPPER_GATE_DWEIGHT(EXPERTS, ROWS)                                                    \
  extern "C" __global__ void __launch_bounds__(hopper::GATE_THREADS, 1)                       \
      hopper_gate_dweight_##EXPERTS(const __grid_constant__ HopperGateParams p) {             \
    MOE_HOPPER_ONLY(hopper::gate_weight_gradient<EXPERTS, ROWS>(p));                          \
  }

HOPPER_GATE_DWEIGHT(64, 2)
HOPPER_GATE_DWEIGHT(128, 2)
HOPPER_GATE_DWEIGHT(256, 1)
