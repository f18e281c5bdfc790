//! Device reports: the first thing that a kernel clamped or skipped.

use std::sync::atomic::{AtomicI32, Ordering};

use crate::abi::types::*;
use crate::error::{Error, Result};

/// Where a CPU kernel reports; NULL: nowhere. CUDA kernels have the same in `kernels/report.cuh`.
#[derive(Clone, Copy, Debug)]
pub struct Report(pub *mut moe_device_report_t);

// SAFETY: written through an atomic claim.
unsafe impl Send for Report {}
unsafe impl Sync for Report {}

impl Report {
    /// Records a fault, if it is the first.
    pub fn record(&self, what: i32, place: i64, value: i64) {
        if self.0.is_null() {
            return;
        }
        // SAFETY: the caller's report is live for the call; `what` is claimed atomically, the rest by the winner.
        unsafe {
            let claim = AtomicI32::from_ptr(&raw mut (*self.0).what);
            if claim.compare_exchange(MOE_FAULT_NONE, what, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                (*self.0).place = place;
                (*self.0).value = value;
            }
        }
    }
}

/// A report in words.
pub fn describe(report: &moe_device_report_t) -> String {
    let (place, value) = (report.place, report.value);
    match report.what {
        MOE_FAULT_NONE => "no fault".into(),
        MOE_FAULT_EXPERT_ID => format!("slot {place}: expert id {value} is out of range; the slot was skipped"),
        MOE_FAULT_TOKEN_INDEX => format!("row {place}: token {value} is out of range; the row was skipped"),
        MOE_FAULT_ROW_INDEX => format!("slot {place}: row {value} is out of range; the slot was skipped"),
        MOE_FAULT_GROUP_OFFSET => format!("group {place}: offset {value} goes down or is out of range; it was clamped"),
        MOE_FAULT_GROUP_SIZE => format!("group {place}: size {value} is out of range; it was clamped"),
        MOE_FAULT_COUNT => format!("count {value} is outside 0 to its bound {place}; it was clamped"),
        MOE_FAULT_OVERFLOW => {
            format!("{value} rows or slots are needed, there is room for {place}; the rest was dropped")
        }
        MOE_FAULT_NAN_LOGIT => format!("logit {place} is NaN; it counts as -inf"),
        MOE_FAULT_SLOT_INDEX => format!("row or token {place}: slot {value} is out of range; it was skipped"),
        MOE_FAULT_MAP_ENTRY => format!("map entry {place} is {value}, out of range; it was skipped"),
        MOE_FAULT_POINTER => {
            format!("group {place}: its matrix is at {value:#x}, no multiple of 16 bytes; the group was skipped")
        }
        what => format!("unknown fault {what} (place {place}, value {value})"),
    }
}

/// Under `MOE_CHECK=1` a fault that was recorded becomes the call's status.
pub fn to_result(report: &moe_device_report_t) -> Result<()> {
    if report.what == MOE_FAULT_NONE { Ok(()) } else { Err(Error::DeviceFault(describe(report))) }
}
