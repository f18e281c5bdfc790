// Routing, forward, of other logits, and of experts that a bias is added to.

#include "router_quick_fwd.cuh"

ROUTER_QUICK_FWD_ALL(_wide, Wide<true>)
ROUTER_QUICK_FWD_ALL(_other, Wide<false>)
