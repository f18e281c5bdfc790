// What only the device knows: true counts, and whether an output is added to.
#pragma once

#include "params/types.h"
#include "report.cuh"

// The number of tokens or rows: 0 to the host's bound, whatever the device integer holds.
__device__ inline int64_t true_count(const Count &count, moe_device_report_t *report) {
  if (count.device == nullptr) return count.bound;
  const int64_t value = count.wide ? *reinterpret_cast<const int64_t *>(count.device)
                                   : *reinterpret_cast<const int32_t *>(count.device);
  if (value >= 0 && value <= count.bound) return value;
  record_fault(report, MOE_FAULT_COUNT, count.bound, value);
  return value < 0 ? 0 : count.bound;
}

// Whether the result is added to what the output holds.
__device__ inline bool adds(const OutputMode &mode) { return mode.device == nullptr ? mode.add : *mode.device != 0; }
