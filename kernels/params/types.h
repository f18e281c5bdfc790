// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_TYPES_H
#define MOE_PARAMS_TYPES_H

#include "../../include/moe.h"

// MOE_DTYPE_*.
using Dtype = int32_t;

/// A row-major matrix [rows, columns]; a vector is one row or, with one column, contiguous rows.
struct Matrix {
  Dtype dtype;
  uint8_t *data;
  /// Elements from one row to the next.
  int64_t pitch;
};

/// One matrix a group: stacked, or by a device array of pointers.
struct Grouped {
  Dtype dtype;
  /// NULL where `pointers` is given.
  uint8_t *data;
  int64_t pitch;
  int64_t group_stride;
  uint8_t *const *pointers;
  /// Elements from where data or a pointer points to where a group's matrix begins.
  int64_t offset;
};

/// A count that may live on the device; reads `bound` where it does not.
struct Count {
  int64_t bound;
  const uint8_t *device;
  /// Read when `device` is not NULL.
  bool wide;
};

/// Whether an output is added to: known on the host, or a device integer to look at.
struct OutputMode {
  bool add;
  /// Replaces `add` when not NULL.
  const int32_t *device;
};

#endif  // MOE_PARAMS_TYPES_H
