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

/// `group_offsets` and `group_sizes` as the caller gave them, at least one; each backend reads and clamps them.
///
/// Group g begins at offsets[g]; its true rows end after sizes[g] of them, or at offsets[g + 1]. Without offsets
/// groups lie one behind the other. Rows between a group's true rows and the next group are padding.
struct Groups {
  int64_t count;
  int64_t rows_max;
  const int64_t *offsets;
  const int64_t *sizes;
};

/// Row r stands for source row index[r]; a negative index is a row of zeros, and so is one out of range, which is
/// reported.
struct Gather {
  Matrix index;
  /// Rows of the source.
  Count rows;
  /// MOE_FAULT_* of an index that is out of range.
  int32_t fault;
};

/// What each row is multiplied by.
struct RowWeights {
  /// [R], or with slot_of_row a weight a slot; without data 1 each.
  Matrix weights;
  /// Row r has the weight of slot slot_of_row[r], 0 where there is none or it is out of range (reported).
  /// Without data row r has weights[r].
  Matrix slot_of_row;
  int64_t slots;
};

/// As the driver encodes it; kernels take it by value or read it from memory, at a multiple of 64 bytes.
struct alignas(64) TensorMap {
  uint64_t words[16];
};

/// What boxes are copied from: by one map, or by a map for each group.
struct BoxSource {
  TensorMap map;
  /// In place of `map` where matrices are given by pointers.
  const TensorMap *maps;
  /// Those pointers, and elements from where one points to where its matrix begins.
  uint8_t *const *pointers;
  int64_t offset;
};

/// The maps of matrices that are given by pointers (kernels/hopper_maps.cu).
struct BoxMapsParams {
  /// Of another matrix of that shape.
  TensorMap model;
  int64_t groups;
  /// Absent matrices are NULL, and get no map.
  uint8_t *const *pointers;
  int64_t offset;
  TensorMap *maps;
  moe_device_report_t *report;
};

#endif  // MOE_PARAMS_TYPES_H
