// The plain epilogue by way of the copy engine: a warp lays 16 rows out and goes on while they are written.
#pragma once

#include "hopper_store.cuh"
#include "hopper_tile.cuh"

namespace hopper {

// Where a tile begins in a matrix of 16-bit elements that is stored by boxes of 16 rows x 64 columns; no map: it is not.
struct StoredBoxes {
  const TensorMap *map;
  int column;
  int row;
};

// Rows `row` and on of the tile, 16 that are all there, N / 4 blocks of eight columns, out of PLACES places of staging. The last
// box, where it is not filled, takes columns of the one before once more. Columns that do not exist are not written.
template <class T, int N, int PLACES>
__device__ inline void store_boxes(const Target &to, const StoredBoxes &boxes, int row, const float *sums, uint32_t staging) {
  constexpr int BLOCKS = N / 4, STRIPS = (BLOCKS + 7) / 8;
  const int lane = threadIdx.x % 32;
  const uint32_t mine = staged<8>(staging, lane % 16, lane / 16);
  const bool plain = to.bias == nullptr && to.alpha == 1.0f;
  const auto block_of = [](int strip) { return strip * 8 < BLOCKS - 8 ? strip * 8 : BLOCKS - 8; };
#pragma unroll
  for (int first = 0; first < STRIPS; first += PLACES) {
    wait_for_boxes();
    // By two blocks.
    const auto lay_out = [&](auto output) {
#pragma unroll
      for (int place = 0; place < PLACES && first + place < STRIPS; ++place) {
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
          const int block = block_of(first + place) + i;
          uint32_t pairs[4];
#pragma unroll
          for (int pair = 0; pair < 4; ++pair) pairs[pair] = output(block + pair / 2, sums + 4 * block + 2 * pair);
          stmatrix((mine ^ i << 4) + place * NEXT_PLACE, pairs);
        }
      }
    };
    if (plain) {
      lay_out([](int, const float *at) { return pack_pair<T>(at[0], at[1]); });
    } else {
      lay_out([&](int block, const float *at) {
        const float2 bias = bias_pair(to, block * 8 + lane % 4 * 2);
        return pack_pair<T>(to.alpha * at[0] + bias.x, to.alpha * at[1] + bias.y);
      });
    }
    fence_async();
    __syncwarp();
    if (elect_one()) {
#pragma unroll
      for (int place = 0; place < PLACES && first + place < STRIPS; ++place) {
        store_box(boxes.map, staging + place * NEXT_PLACE, boxes.column + block_of(first + place) * 8, boxes.row + row);
      }
      store_commit();
    }
  }
}

// The same where rows may be missing.
template <class T, int N, int PLACES>
__device__ inline void store_boxed(Target to, const StoredBoxes &boxes, int row, const float *sums, uint32_t staging) {
  if (boxes.map != nullptr && to.rows - row >= 16) return store_boxes<T, N, PLACES>(to, boxes, row, sums, staging);
  wait_for_boxes();
  store_narrow<T, N>(to, row, sums, staging);
}

}  // namespace hopper
