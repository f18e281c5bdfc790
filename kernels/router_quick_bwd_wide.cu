// Routing, backward, of the common cases: a softmax over fp32 logits, and all other scores.

#include "router_quick_bwd.cuh"

ROUTER_QUICK_BWD_ALL(_wide, 8, true)
ROUTER_QUICK_BWD_ALL(_other, 8, false)
