// Routing, backward, of the common cases: a softmax over logits of 16 bits.

#include "router_quick_bwd.cuh"

ROUTER_QUICK_BWD_ALL(, 4, true)
