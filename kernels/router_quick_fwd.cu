// Routing, forward, of bf16 logits that are compared themselves, and what joins the blocks' sums of every common case.

#include "router_quick_fwd.cuh"

ROUTER_QUICK_FWD_ALL(, Narrow)
// For many tokens: fewer lanes each, which do less twice.
ROUTER_QUICK_FWD(64_many, 2, 4, Narrow)
ROUTER_QUICK_FWD(128_many, 4, 4, Narrow)

extern "C" __global__ void __launch_bounds__(QUICK_JOIN_TEAM * QUICK_JOIN_TEAMS, 1) router_quick_join(const __grid_constant__ RouterQuickParams p) {
  router::join(p);
}
