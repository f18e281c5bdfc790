//! Contexts, versions, messages.

use std::ffi::c_char;

use crate::abi::context::*;
use crate::abi::read;
use crate::abi::status::*;
use crate::abi::types::*;
use crate::check::present;
use crate::context::moe_context_t;
use crate::error::{Error, boundary, last_message, status_text};

/// Opens a GPU by its ordinal, or the CPU backend with MOE_DEVICE_CPU. Everything slow happens here: the driver
/// and the architecture are checked, the kernels loaded. A GPU's primary context is retained until
/// moe_context_destroy; the thread's current context stays as it was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_context_create(device: i32, ctx: *mut *mut moe_context_t) -> moe_status_t {
    boundary("moe_context_create", || {
        let ctx = present("ctx", ctx)?.cast_mut();
        let context = Box::new(moe_context_t::create(device)?);
        unsafe { ctx.write(Box::into_raw(context)) };
        Ok(())
    })
}

/// Closes a context. Work that was enqueued with it may still run; no call with it may be under way. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_context_destroy(ctx: *mut moe_context_t) -> moe_status_t {
    boundary("moe_context_destroy", || {
        if !ctx.is_null() {
            drop(unsafe { Box::from_raw(ctx) });
        }
        Ok(())
    })
}

/// What a context runs on. `info->struct_size` is set by the caller.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_context_info(ctx: *const moe_context_t, info: *mut moe_context_info_t) -> moe_status_t {
    boundary("moe_context_info", || {
        let ctx = unsafe { super::context(ctx)? };
        let asked = unsafe { read(info, "info")? };
        let answer = moe_context_info_t { struct_size: asked.struct_size, ..ctx.info() };
        let bytes = size_of_val(&answer).min(asked.struct_size as usize);
        unsafe { std::ptr::copy_nonoverlapping((&raw const answer).cast::<u8>(), info.cast(), bytes) };
        Ok(())
    })
}

/// What is enqueued on `stream` from now on waits for what `other` holds now. `event`, the caller's, is recorded for that;
/// the call can be captured, and then takes `stream` into the graph of `other`. On the CPU nothing is to be done, and
/// `event` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_stream_wait(
    ctx: *const moe_context_t,
    stream: moe_stream_t,
    other: moe_stream_t,
    event: moe_event_t,
) -> moe_status_t {
    boundary("moe_stream_wait", || unsafe { super::context(ctx)? }.stream_wait(stream, other, event))
}

/// 10000*major + 100*minor + patch of the library that was loaded.
#[unsafe(no_mangle)]
pub extern "C" fn moe_version() -> i32 {
    let number = |text: &str| text.parse::<i32>().unwrap_or(0);
    10000 * number(env!("CARGO_PKG_VERSION_MAJOR"))
        + 100 * number(env!("CARGO_PKG_VERSION_MINOR"))
        + number(env!("CARGO_PKG_VERSION_PATCH"))
}

/// A status in words; never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn moe_status_string(status: moe_status_t) -> *const c_char {
    status_text(status).as_ptr()
}

/// Function, argument, value and limit of this thread's last failed call; "" if none. Valid until the next failure
/// on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn moe_last_error_message() -> *const c_char {
    last_message()
}

/// Writes a device report, which the caller has copied to the host, as text: at most `size` bytes with the final 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_device_report_message(
    report: *const moe_device_report_t,
    buffer: *mut c_char,
    size: u64,
) -> moe_status_t {
    boundary("moe_device_report_message", || {
        let report = unsafe { *present("report", report)? };
        let buffer = present("buffer", buffer)?.cast_mut();
        let Some(room) = (size as usize).checked_sub(1) else {
            return Err(Error::argument("size", size, "at least 1"));
        };
        let text = crate::report::describe(&report);
        let bytes = text.len().min(room);
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), buffer, bytes);
            buffer.add(bytes).write(0);
        }
        Ok(())
    })
}
