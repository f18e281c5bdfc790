//! The context: one backend, opened once and immutable afterwards.

use std::ffi::c_void;

use crate::abi::context::*;
use crate::abi::types::*;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::{check, cpu, log, report};

/// A device and everything about it that is slow to find out. Any number of threads may share one.
#[allow(non_camel_case_types)]
pub struct moe_context_t {
    pub(crate) backend: Backend,
}

pub(crate) enum Backend {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::Device),
}

/// The tail that every operation's call has.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub workspace: *mut c_void,
    pub workspace_size: u64,
    pub stream: moe_stream_t,
}

impl moe_context_t {
    pub fn create(device: i32) -> Result<Self> {
        let backend = match device {
            MOE_DEVICE_CPU => Backend::Cpu,
            0.. => Self::open(device)?,
            _ => return Err(Error::argument("device", device, "a GPU's ordinal or MOE_DEVICE_CPU (-1)")),
        };
        let context = Self { backend };
        log::info(|| format!("context created: {:?}", context.info()));
        Ok(context)
    }

    #[cfg(feature = "cuda")]
    fn open(device: i32) -> Result<Backend> {
        crate::cuda::Device::open(device).map(Backend::Cuda)
    }

    #[cfg(not(feature = "cuda"))]
    fn open(_: i32) -> Result<Backend> {
        Err(Error::unsupported("this libmoe was built without CUDA; use MOE_DEVICE_CPU or build with the cuda feature"))
    }

    pub fn info(&self) -> moe_context_info_t {
        let struct_size = size_of::<moe_context_info_t>() as u32;
        match &self.backend {
            Backend::Cpu => moe_context_info_t {
                struct_size,
                device: MOE_DEVICE_CPU,
                multiprocessors: cpu::threads(),
                compute_capability: 0,
                driver_version: 0,
                reserved: 0,
            },
            #[cfg(feature = "cuda")]
            Backend::Cuda(device) => moe_context_info_t { struct_size, ..device.info() },
        }
    }

    /// What every operation asks before its own checks.
    pub fn check_stream(&self, argument: &str, stream: moe_stream_t) -> Result<()> {
        if matches!(self.backend, Backend::Cpu) && !stream.is_null() {
            return Err(Error::argument(argument, format!("{stream:?}"), "NULL on the CPU"));
        }
        Ok(())
    }

    /// Orders two streams by the caller's event.
    pub fn stream_wait(&self, stream: moe_stream_t, other: moe_stream_t, event: moe_event_t) -> Result<()> {
        match &self.backend {
            Backend::Cpu => self.check_stream("stream", stream).and_then(|()| self.check_stream("other", other)),
            #[cfg(feature = "cuda")]
            Backend::Cuda(_) if event.is_null() => {
                Err(Error::argument("event", "NULL", "an event that the caller made"))
            }
            #[cfg(feature = "cuda")]
            Backend::Cuda(device) => device.stream_wait(stream, other, event),
        }
    }

    /// FP64 is the CPU backend's alone.
    pub fn serves(&self, argument: &str, dtype: Dtype) -> Result<()> {
        if matches!(self.backend, Backend::Cpu) || dtype != Dtype::Fp64 {
            return Ok(());
        }
        Err(Error::unsupported(format!("{argument} is FP64; only the CPU backend computes in it")))
    }

    /// Under MOE_CHECK=1 the checks of a call on a GPU look at its pointers until the answer is dropped.
    #[cfg(feature = "cuda")]
    pub fn watch_pointers(&self) -> Option<crate::cuda::pointers::Watch> {
        match &self.backend {
            Backend::Cpu => None,
            Backend::Cuda(device) => crate::cuda::pointers::watch(device),
        }
    }

    #[cfg(not(feature = "cuda"))]
    pub fn watch_pointers(&self) -> Option<()> {
        None
    }

    /// Runs a CPU operation with the caller's report; under MOE_CHECK=1 a fault becomes the status.
    pub fn with_report(
        &self,
        caller: *mut moe_device_report_t,
        run: impl FnOnce(report::Report) -> Result<()>,
    ) -> Result<()> {
        check::aligned("args.report", caller)?;
        if !log::check_enabled() {
            return run(report::Report(caller));
        }
        let mut own = moe_device_report_t::default();
        run(report::Report(&mut own))?;
        if !caller.is_null() && own.what != MOE_FAULT_NONE {
            report::Report(caller).record(own.what, own.place, own.value);
        }
        report::to_result(&own)
    }
}
