//! The checks that operations are made of. Each names the argument, its value and the limit; the name of an argument is
//! put together where it is needed alone.

use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::abi::types::*;
use crate::dtype::{Dtype, INDICES};
use crate::error::{Error, Result};

/// Token and row counts.
pub const MAX_ROWS: i64 = 1 << 40;
/// Hidden sizes, expert widths, GEMM dimensions.
pub const MAX_WIDTH: i64 = i32::MAX as i64;
pub const MAX_EXPERTS: i64 = 1 << 20;

pub fn range(argument: impl Display, value: i64, limits: RangeInclusive<i64>) -> Result<i64> {
    if limits.contains(&value) {
        return Ok(value);
    }
    let limit = if value < *limits.start() {
        format!("at least {}", limits.start())
    } else {
        format!("at most {}", limits.end())
    };
    Err(Error::argument(argument, value, limit))
}

/// Tokens or rows: zero is an ordinary number of them.
pub fn rows(argument: &str, value: i64) -> Result<i64> {
    range(argument, value, 0..=MAX_ROWS)
}

pub fn width(argument: &str, value: i64) -> Result<i64> {
    range(argument, value, 1..=MAX_WIDTH)
}

/// A mode of the header: 0 to `last`.
pub fn mode(argument: impl Display, value: i32, last: i32) -> Result<i32> {
    range(argument, value.into(), 0..=last.into()).map(|_| value)
}

pub fn switch(argument: &str, value: i32) -> Result<bool> {
    mode(argument, value, 1).map(|v| v == 1)
}

/// A finite coefficient; 0 means `default`.
pub fn coefficient(argument: &str, value: f64, default: f64) -> Result<f64> {
    match value {
        v if !v.is_finite() => Err(Error::argument(argument, v, "a finite number")),
        0.0 => Ok(default),
        v => Ok(v),
    }
}

pub fn present<T>(argument: impl Display, pointer: *const T) -> Result<*const T> {
    aligned(&argument, pointer)?;
    if pointer.is_null() { Err(Error::argument(argument, "NULL", "required here")) } else { Ok(pointer) }
}

/// NULL or aligned.
pub fn aligned<T>(argument: impl Display, pointer: *const T) -> Result<*const T> {
    address(argument, pointer.cast(), align_of::<T>()).map(|()| pointer)
}

/// A product of sizes that addresses memory.
pub fn elements(argument: &str, sizes: &[i64]) -> Result<i64> {
    sizes.iter().try_fold(1i64, |product, &size| product.checked_mul(size)).filter(|&n| n <= i64::MAX / 8).ok_or_else(
        || {
            let text: Vec<_> = sizes.iter().map(i64::to_string).collect();
            Error::argument(argument, text.join(" x "), "at most 2^60 elements")
        },
    )
}

/// A count that may live on the device; reads `bound` where it does not.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Count {
    pub bound: i64,
    pub device: *const u8,
    /// Read when `device` is not NULL.
    pub wide: bool,
}

pub fn count(argument: &str, count: &moe_count_t, bound: i64) -> Result<Count> {
    let mut wide = false;
    if !count.device.is_null() {
        wide = Dtype::check(format_args!("{argument}.dtype"), count.dtype, INDICES)? == Dtype::Int64;
        address(format_args!("{argument}.device"), count.device.cast(), if wide { 8 } else { 4 })?;
    }
    range(format_args!("{argument}.reserved"), count.reserved.into(), 0..=0)?;
    Ok(Count { bound, device: count.device.cast(), wide })
}

// SAFETY: an address; reading it is each backend's own proof.
unsafe impl Send for Count {}
unsafe impl Sync for Count {}

/// Whether an output is added to: known on the host, or a device integer to look at.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct OutputMode {
    pub add: bool,
    /// Replaces `add` when not NULL.
    pub device: *const i32,
}

// SAFETY: as for Count.
unsafe impl Send for OutputMode {}
unsafe impl Sync for OutputMode {}

pub fn output_mode(argument: &str, mode: &moe_output_mode_t) -> Result<OutputMode> {
    let value = self::mode(format_args!("{argument}.mode"), mode.mode, MOE_OUTPUT_FROM_DEVICE)?;
    range(format_args!("{argument}.reserved"), mode.reserved.into(), 0..=0)?;
    let device = match value {
        MOE_OUTPUT_FROM_DEVICE => present(format_args!("{argument}.add"), mode.add)?,
        _ => std::ptr::null(),
    };
    Ok(OutputMode { add: value == MOE_OUTPUT_ADD, device })
}

/// NULL or aligned; under MOE_CHECK=1 also within the reach of the call's device.
pub fn address(argument: impl Display, pointer: *const u8, alignment: usize) -> Result<()> {
    if pointer.addr() % alignment != 0 {
        return Err(Error::argument(argument, format!("{pointer:?}"), format!("aligned to {alignment} bytes")));
    }
    #[cfg(feature = "cuda")]
    crate::cuda::pointers::check(argument, pointer)?;
    Ok(())
}
