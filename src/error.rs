//! What can go wrong, the status each thing becomes, and the one door through which every C call passes.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::abi::status::*;

/// A failed call. The text is what `moe_last_error_message` returns.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument is wrong: nothing was enqueued and no output was touched.
    #[error("{argument} is {value}; {limit}")]
    Argument { argument: String, value: String, limit: String },
    /// A valid request that this build, backend or version does not serve.
    #[error("{0}")]
    Unsupported(String),
    #[error("{0}")]
    NoDriver(String),
    #[error("{0}")]
    UnsupportedDevice(String),
    /// A CUDA driver call failed, perhaps from an earlier fault of the caller's; outputs are undefined.
    #[error("{call} failed with {name} ({code})")]
    Driver { call: &'static str, code: u32, name: String },
    #[error("{0}")]
    NoNccl(String),
    #[error("{0}")]
    Nccl(String),
    /// `MOE_CHECK=1` found a fault that a kernel reported.
    #[error("{0}")]
    DeviceFault(String),
    #[error("libmoe failed internally: {0}")]
    Internal(String),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// `argument` is `value`; `limit` says what was expected.
    pub fn argument(argument: impl Display, value: impl Display, limit: impl Into<String>) -> Self {
        Error::Argument { argument: argument.to_string(), value: value.to_string(), limit: limit.into() }
    }

    pub fn unsupported(what: impl Into<String>) -> Self {
        Error::Unsupported(what.into())
    }

    pub fn status(&self) -> moe_status_t {
        match self {
            Error::Argument { .. } => MOE_STATUS_INVALID_ARGUMENT,
            Error::Unsupported(_) => MOE_STATUS_UNSUPPORTED,
            Error::NoDriver(_) => MOE_STATUS_NO_DRIVER,
            Error::UnsupportedDevice(_) => MOE_STATUS_UNSUPPORTED_DEVICE,
            Error::Driver { .. } => MOE_STATUS_DRIVER_ERROR,
            Error::NoNccl(_) => MOE_STATUS_NO_NCCL,
            Error::Nccl(_) => MOE_STATUS_NCCL_ERROR,
            Error::DeviceFault(_) => MOE_STATUS_DEVICE_FAULT,
            Error::Internal(_) => MOE_STATUS_INTERNAL_ERROR,
        }
    }
}

thread_local! {
    static LAST_MESSAGE: RefCell<CString> = RefCell::new(CString::default());
}

/// Runs the body of an exported function: errors and panics become a status and a message, never an unwind into C.
pub fn boundary(function: &'static str, body: impl FnOnce() -> Result<()>) -> moe_status_t {
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return MOE_STATUS_SUCCESS,
        Ok(Err(error)) => error,
        Err(panic) => Error::Internal(panic_text(panic.as_ref())),
    };
    let status = error.status();
    crate::log::warn(|| format!("{function}: {error}"));
    // Setting a message must not fail in turn, not even while the thread is being torn down.
    let text = CString::new(format!("{function}: {error}").replace('\0', "?")).unwrap_or_default();
    let _ = LAST_MESSAGE.try_with(|slot| *slot.borrow_mut() = text);
    status
}

/// The message of the last call that failed on this thread; valid until the next failure on it.
pub fn last_message() -> *const c_char {
    LAST_MESSAGE.try_with(|slot| slot.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

pub fn status_text(status: moe_status_t) -> &'static CStr {
    match status {
        MOE_STATUS_SUCCESS => c"success",
        MOE_STATUS_INVALID_ARGUMENT => c"invalid argument",
        MOE_STATUS_UNSUPPORTED => c"not supported by this build, backend or version",
        MOE_STATUS_NO_DRIVER => c"no usable CUDA driver",
        MOE_STATUS_UNSUPPORTED_DEVICE => c"unsupported device",
        MOE_STATUS_DRIVER_ERROR => c"CUDA driver error",
        MOE_STATUS_NO_NCCL => c"no usable NCCL",
        MOE_STATUS_NCCL_ERROR => c"NCCL error",
        MOE_STATUS_DEVICE_FAULT => c"a kernel reported a device fault",
        MOE_STATUS_INTERNAL_ERROR => c"internal error",
        _ => c"unknown status",
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".into())
}
