//! How operations put work on the caller's stream.

use std::ffi::c_void;
use std::fmt::Write;
use std::ptr::null_mut;
use std::sync::PoisonError;

use cudarc::driver::sys::*;

use super::device::Device;
use crate::abi::types::*;
use crate::check::address;
use crate::error::{Error, Result};
use crate::log;
use crate::report::{Report, to_result};

/// One launch. A grid with a zero launches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Launch {
    /// The name of an `extern "C" __global__` function in kernels/*.cu.
    pub kernel: &'static str,
    pub grid: [u32; 3],
    /// Threads a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// All blocks are resident at once and may wait for each other: grid at most `Device::max_blocks`.
    pub cooperative: bool,
    /// Blocks a cluster along x, from capability 90 on; 0: none.
    pub cluster: u32,
    /// The kernel may start before the one ahead of it on the stream has ended: it calls
    /// cudaGridDependencySynchronize before it reads what that wrote. Ignored below capability 90.
    pub overlap: bool,
}

/// What an operation enqueues with: a device whose context is current, the caller's stream, and the report for kernels.
pub struct Launcher<'a> {
    pub device: &'a Device,
    pub stream: moe_stream_t,
    /// For the parameters of kernels; may be NULL.
    pub report: *mut moe_device_report_t,
}

impl Device {
    /// Runs one operation: `enqueue` puts all of its work on `stream`.
    ///
    /// The context is pushed once, so calls do not nest: what several operations share takes the launcher. Under
    /// MOE_CHECK=1 the stream is synchronised afterwards, unless it is capturing, and a fault that a kernel recorded
    /// becomes the status. Kernels report to `launcher.report`, never to the caller's.
    ///
    /// ```ignore
    /// // src/cuda/scale.rs; kernels/scale.cu: extern "C" __global__ void scale(ScaleParams p)
    /// #[repr(C)]
    /// #[derive(Clone, Copy)]
    /// pub struct ScaleParams {
    ///     pub x: Matrix,
    ///     /// Data is NULL without weights.
    ///     pub weights: Matrix,
    ///     pub rows: Count,
    ///     pub columns: i64,
    ///     pub report: *mut moe_device_report_t,
    /// }
    ///
    /// const BLOCK: u32 = 256;
    ///
    /// pub fn scale(device: &Device, problem: &Scale, report: *mut moe_device_report_t, stream: moe_stream_t) -> Result<()> {
    ///     device.run(report, stream, |launcher| {
    ///         let params = ScaleParams {
    ///             x: problem.x,
    ///             weights: problem.weights.unwrap_or(Matrix::ABSENT),
    ///             rows: problem.rows,
    ///             columns: problem.columns,
    ///             report: launcher.report,
    ///         };
    ///         let blocks = problem.rows.bound.min(8 * device.multiprocessors as i64) as u32;
    ///         launcher.launch(&Launch { kernel: "scale", grid: [blocks, 1, 1], block: BLOCK, ..Default::default() }, &params)
    ///     })
    /// }
    /// ```
    pub fn run(
        &self,
        report: *mut moe_device_report_t,
        stream: moe_stream_t,
        enqueue: impl FnOnce(&Launcher) -> Result<()>,
    ) -> Result<()> {
        address("args.report", report.cast(), align_of::<moe_device_report_t>())?;
        let _scope = self.enter()?;
        if self.report.is_some() && !self.is_capturing(stream)? {
            return self.run_checked(report, stream, enqueue);
        }
        enqueue(&Launcher { device: self, stream, report })
    }

    /// What is enqueued on `stream` from now on waits for what `other` holds now.
    pub fn stream_wait(&self, stream: moe_stream_t, other: moe_stream_t, event: moe_event_t) -> Result<()> {
        let _scope = self.enter()?;
        unsafe {
            self.driver.record_event(event.cast(), other.cast())?;
            self.driver.stream_wait_event(stream.cast(), event.cast(), 0)
        }
    }

    fn is_capturing(&self, stream: moe_stream_t) -> Result<bool> {
        let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        unsafe { self.driver.is_capturing(stream.cast(), &mut status)? };
        Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// Kernels report to a report of our own, so that an earlier fault in the caller's hides nothing.
    #[cold]
    fn run_checked(
        &self,
        caller: *mut moe_device_report_t,
        stream: moe_stream_t,
        enqueue: impl FnOnce(&Launcher) -> Result<()>,
    ) -> Result<()> {
        let Some(own) = &self.report else { return Ok(()) };
        let own = own.lock().unwrap_or_else(PoisonError::into_inner);
        let launcher = Launcher { device: self, stream, report: *own as *mut moe_device_report_t };
        launcher.clear(launcher.report, size_of::<moe_device_report_t>())?;
        enqueue(&launcher)?;
        let found = launcher.read_report(*own)?;
        if found.what != MOE_FAULT_NONE && !caller.is_null() {
            let mut kept = launcher.read_report(caller.addr() as u64)?;
            Report(&mut kept).record(found.what, found.place, found.value);
            let bytes = size_of_val(&kept);
            unsafe {
                self.driver.copy_to_device(caller.addr() as u64, (&raw const kept).cast(), bytes, stream.cast())?;
                self.driver.synchronize(stream.cast())?;
            }
        }
        to_result(&found)
    }
}

impl Launcher<'_> {
    /// Launches a kernel with its one parameter.
    pub fn launch<P: Copy>(&self, launch: &Launch, params: &P) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let kernel = self.device.kernel(launch.kernel)?;
        if kernel.parameter != size_of::<P>() {
            let (name, taken, given) = (launch.kernel, kernel.parameter, size_of::<P>());
            return Err(Error::Internal(format!("kernel {name} takes {taken} bytes, {given} were given")));
        }
        log::trace(|| format!("{launch:?} stream {:?} params {}", self.stream, hex(params)));
        let mut attributes = Attributes::default();
        if launch.cooperative {
            attributes.add(CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, |value| value.cooperative = 1);
        }
        if launch.cluster > 0 {
            attributes.add(CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, |value| {
                value.clusterDim = CUlaunchAttributeValue_union__bindgen_ty_1 { x: launch.cluster, y: 1, z: 1 };
            });
        }
        if launch.overlap && self.device.capability >= 90 {
            attributes.add(CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, |value| {
                value.programmaticStreamSerializationAllowed = 1;
            });
        }
        let config = CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared,
            hStream: self.stream.cast(),
            attrs: attributes.list.as_mut_ptr(),
            numAttrs: attributes.count,
        };
        let mut parameters = [(&raw const *params).cast_mut().cast::<c_void>()];
        // SAFETY: the kernel takes so many bytes by value, and the driver copies them before it returns.
        unsafe { self.device.driver.launch(&config, kernel.function, parameters.as_mut_ptr(), null_mut()) }
    }

    /// Sets bytes to zero.
    pub fn clear<T>(&self, pointer: *mut T, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        unsafe { self.device.driver.memset_8(pointer.addr() as u64, 0, bytes, self.stream.cast()) }
    }

    /// Waits for the stream and reads a report: for MOE_CHECK=1 alone.
    fn read_report(&self, pointer: CUdeviceptr) -> Result<moe_device_report_t> {
        let mut report = moe_device_report_t::default();
        let bytes = size_of_val(&report);
        unsafe {
            self.device.driver.copy_to_host((&raw mut report).cast(), pointer, bytes, self.stream.cast())?;
            self.device.driver.synchronize(self.stream.cast())?;
        }
        Ok(report)
    }
}

/// Launch attributes, on the stack.
struct Attributes {
    list: [CUlaunchAttribute; 3],
    count: u32,
}

impl Default for Attributes {
    fn default() -> Self {
        // SAFETY: plain numbers; the identifier 0 means that the attribute is ignored.
        Attributes { list: unsafe { std::mem::zeroed() }, count: 0 }
    }
}

impl Attributes {
    fn add(&mut self, id: CUlaunchAttributeID, set: impl FnOnce(&mut CUlaunchAttributeValue)) {
        let attribute = &mut self.list[self.count as usize];
        attribute.id = id;
        set(&mut attribute.value);
        self.count += 1;
    }
}

/// The bytes of a kernel's parameter, for the log.
fn hex<P: Copy>(params: &P) -> String {
    let mut text = String::with_capacity(2 * size_of::<P>());
    for place in 0..size_of::<P>() {
        // SAFETY: within `params`. Padding may hold anything: volatile, so that nothing is concluded from it.
        let byte = unsafe { (&raw const *params).cast::<u8>().add(place).read_volatile() };
        let _ = write!(text, "{byte:02x}");
    }
    text
}
