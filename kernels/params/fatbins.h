// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_FATBINS_H
#define MOE_PARAMS_FATBINS_H

#include "types.h"

/// The driver reads a fatbin in place.
template<typename T>
struct alignas(64) Aligned {
  T _0;
};

#endif  // MOE_PARAMS_FATBINS_H
