//! The exported functions: each converts its C arguments, calls one operation and gives back its status.

pub mod activation;
pub mod context;
pub mod dispatch;
pub mod expert_mlp;
pub mod grouped_gemm;
pub mod parallel;
pub mod quantize;
pub mod router;

use crate::abi::status::moe_status_t;
use crate::abi::{SizedStruct, read};
use crate::context::{Call, moe_context_t};
use crate::error::{Error, Result, boundary};
use crate::log;

/// A caller's context.
///
/// # Safety
/// NULL, or from moe_context_create and not destroyed.
unsafe fn context<'a>(ctx: *const moe_context_t) -> Result<&'a moe_context_t> {
    unsafe { ctx.as_ref() }.ok_or_else(|| Error::argument("ctx", "NULL", "a context from moe_context_create"))
}

/// An operation's call.
///
/// # Safety
/// The contract of the header for `ctx`, `desc` and `args`.
unsafe fn call<D: SizedStruct, A: SizedStruct>(
    function: &'static str,
    ctx: *const moe_context_t,
    desc: *const D,
    args: *const A,
    call: Call,
    op: impl FnOnce(&moe_context_t, &D, &A, Call) -> Result<()>,
) -> moe_status_t {
    boundary(function, || {
        let (ctx, desc, args) = unsafe { (context(ctx)?, read(desc, "desc")?, read(args, "args")?) };
        ctx.check_stream("stream", call.stream)?;
        log::trace(|| format!("{function} {desc:?} {args:?} {call:?}"));
        let _watch = ctx.watch_pointers();
        op(ctx, &desc, &args, call)
    })
}

/// A question about a description; the answer is written on success alone.
///
/// # Safety
/// The contract of the header for `ctx` and `desc`; `answer` is NULL or writable.
unsafe fn query<D: SizedStruct, T>(
    function: &'static str,
    ctx: *const moe_context_t,
    desc: *const D,
    (argument, answer): (&str, *mut T),
    op: impl FnOnce(&moe_context_t, &D) -> Result<T>,
) -> moe_status_t {
    boundary(function, || {
        let (ctx, desc) = unsafe { (context(ctx)?, read(desc, "desc")?) };
        let answer = crate::check::present(argument, answer)?.cast_mut();
        let value = op(ctx, &desc)?;
        unsafe { answer.write(value) };
        Ok(())
    })
}
