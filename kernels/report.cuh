// Device reports: the first thing that a kernel clamped or skipped (src/report.rs is the CPU's).
#pragma once

#include "../include/moe.h"

// Records a fault, if it is the first; `report` may be null.
__device__ inline void record_fault(moe_device_report_t *report, int32_t what, int64_t place, int64_t value) {
  if (report == nullptr || atomicCAS(&report->what, MOE_FAULT_NONE, what) != MOE_FAULT_NONE) return;
  report->place = place;
  report->value = value;
}
