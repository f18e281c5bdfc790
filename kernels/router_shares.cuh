// How the Hopper kernel deals the gradient of the router's weights to clusters: all steps of all tiles in equal runs. The
// host sees to it that they can be counted in 32 bits.
#pragma once

#include "params/logits.h"

struct Shares {
  // Of a tile, of all, and of a cluster.
  int steps;
  int all;
  int run;

  __device__ Shares(int64_t tokens, int tiles, int clusters)
      : steps(static_cast<int>((tokens + GATE_SHARE - 1) / GATE_SHARE)), all(tiles * steps), run((all + clusters - 1) / clusters) {}

  __device__ int begin(int cluster) const { return min(cluster * run, all); }
  __device__ int end(int cluster) const { return min((cluster + 1) * run, all); }
  // The first cluster with a share of a tile, and how many have one.
  __device__ int first(int tile) const { return steps == 0 ? 0 : tile * steps / run; }
  __device__ int count(int tile) const { return steps == 0 ? 0 : ((tile + 1) * steps - 1) / run - first(tile) + 1; }
};
