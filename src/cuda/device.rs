//! A GPU: its primary context, and every kernel of the library loaded and ready.

use std::collections::HashMap;
use std::ffi::CStr;
use std::ptr::{null, null_mut};
use std::sync::{Mutex, OnceLock};

use cudarc::driver::sys::*;

use super::driver::{self, Driver, driver};
use super::fatbins::{ARCHS, FATBINS, Fatbin};
use crate::abi::context::moe_context_info_t;
use crate::abi::types::moe_device_report_t;
use crate::error::{Error, Result};
use crate::log;

/// Compute capability of the oldest GPU, 10*major + minor.
const OLDEST: i32 = 80;

/// Opened once, immutable afterwards; shared by any number of threads and streams.
pub struct Device {
    pub(super) driver: &'static Driver,
    ordinal: i32,
    handle: CUdevice,
    context: CUcontext,
    libraries: Vec<CUlibrary>,
    kernels: HashMap<String, Kernel>,
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
    /// 10*major + minor: 80 is Ampere, 90 Hopper.
    pub capability: i32,
    /// The most shared memory that a block can have, static and dynamic.
    pub shared_memory: i32,
    /// Under MOE_CHECK=1, a report of the library's own; operations that check take turns.
    pub(super) report: Option<Mutex<CUdeviceptr>>,
}

// SAFETY: driver handles may be used by any thread.
unsafe impl Send for Device {}
unsafe impl Sync for Device {}

/// A kernel as it is launched.
pub(super) struct Kernel {
    pub function: CUfunction,
    /// Bytes of its parameter.
    pub parameter: usize,
    occupancy: [OnceLock<Occupancy>; 8],
}

/// Resident blocks a multiprocessor for blocks of so many threads and bytes of dynamic shared memory.
struct Occupancy {
    block: u32,
    shared: u32,
    blocks: i32,
}

/// The device's primary context is current on this thread until it is dropped.
pub struct Scope {
    /// None: it was current before.
    pushed: Option<&'static Driver>,
}

impl Drop for Scope {
    fn drop(&mut self) {
        if let Some(driver) = self.pushed {
            let _ = unsafe { driver.pop_context(&mut null_mut()) };
        }
    }
}

impl Device {
    pub fn open(ordinal: i32) -> Result<Self> {
        Self::open_with(ordinal, FATBINS)
    }

    /// Does all that is slow: finds the driver, loads every kernel, raises their limits of dynamic shared memory.
    pub(super) fn open_with(ordinal: i32, fatbins: &[Fatbin]) -> Result<Self> {
        let driver = driver()?;
        match driver.devices()? {
            0 => return Err(Error::UnsupportedDevice("no GPU is visible to the CUDA driver".into())),
            count if ordinal >= count => {
                return Err(Error::UnsupportedDevice(format!("device is {ordinal}; {count} GPUs are visible, from 0")));
            }
            _ => {}
        }
        let mut handle = 0;
        unsafe { driver.device(&mut handle, ordinal)? };
        let attribute = |attribute| -> Result<i32> {
            let mut value = 0;
            unsafe { driver.device_attribute(&mut value, attribute, handle)? };
            Ok(value)
        };
        use CUdevice_attribute_enum::*;
        let capability = 10 * attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if capability < OLDEST {
            return Err(Error::UnsupportedDevice(format!(
                "GPU {ordinal} has compute capability {}.{}; 8.0 (A100) or newer is needed",
                capability / 10,
                capability % 10
            )));
        }
        let multiprocessors = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let shared_memory = attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let mut context = null_mut();
        unsafe { driver.retain_context(&mut context, handle)? };
        // From here on Drop cleans up.
        let mut device = Device {
            driver,
            ordinal,
            handle,
            context,
            libraries: Vec::with_capacity(fatbins.len()),
            kernels: HashMap::new(),
            multiprocessors,
            capability,
            shared_memory,
            report: None,
        };
        let scope = device.enter()?;
        for (stem, image) in fatbins {
            device.load(stem, &image.0)?;
        }
        if log::check_enabled() {
            let mut report = 0;
            unsafe { driver.allocate(&mut report, size_of::<moe_device_report_t>())? };
            device.report = Some(Mutex::new(report));
        }
        drop(scope);
        Ok(device)
    }

    /// Loads one fatbin and prepares its kernels.
    fn load(&mut self, stem: &str, image: &'static [u8]) -> Result<()> {
        let driver = self.driver;
        let library = unsafe { driver::load(driver, image) }.map_err(|error| self.explain(stem, error))?;
        self.libraries.push(library);
        let mut count = 0;
        unsafe { driver.kernel_count(&mut count, library)? };
        let mut handles = vec![null_mut(); count as usize];
        unsafe { driver.enumerate_kernels(handles.as_mut_ptr(), count, library)? };
        for handle in handles {
            let mut name = null();
            unsafe { driver.kernel_name(&mut name, handle)? };
            let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
            let kernel = self.prepare(handle).map_err(|error| self.explain(stem, error))?;
            if self.kernels.insert(name.clone(), kernel).is_some() {
                return Err(Error::Internal(format!(
                    "two kernels are called {name}, one of them in kernels/{stem}.cu"
                )));
            }
        }
        Ok(())
    }

    /// Loads a kernel's code now, as that may synchronise, and lets it use all of the shared memory.
    fn prepare(&self, handle: CUkernel) -> Result<Kernel> {
        use CUfunction_attribute_enum::*;
        let (mut function, mut fixed, mut offset, mut parameter) = (null_mut(), 0, 0, 0);
        unsafe {
            self.driver.kernel_function(&mut function, handle)?;
            self.driver.function_attribute(&mut fixed, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function)?;
            let room = self.shared_memory - fixed;
            self.driver.set_function_attribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, room)?;
            self.driver.parameter_info(function, 0, &mut offset, &mut parameter)?;
        }
        Ok(Kernel { function, parameter, occupancy: Default::default() })
    }

    /// A GPU that no machine code was made for is unsupported, which is no fault of the driver's.
    fn explain(&self, stem: &str, error: Error) -> Error {
        const NO_BINARY: u32 = CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU as u32;
        match error {
            Error::Driver { code: NO_BINARY, .. } => Error::UnsupportedDevice(format!(
                "GPU {} has compute capability {}.{}; the kernels ({stem}) were built for {ARCHS}: MOE_CUDA_ARCHS names \
                 the architectures of a build",
                self.ordinal,
                self.capability / 10,
                self.capability % 10
            )),
            error => error,
        }
    }

    pub fn info(&self) -> moe_context_info_t {
        moe_context_info_t {
            struct_size: size_of::<moe_context_info_t>() as u32,
            device: self.ordinal,
            multiprocessors: self.multiprocessors,
            compute_capability: self.capability,
            driver_version: self.driver.version(),
            reserved: 0,
        }
    }

    /// Makes the primary context current on this thread, if it is not yet.
    pub fn enter(&self) -> Result<Scope> {
        let mut current = null_mut();
        unsafe { self.driver.current_context(&mut current)? };
        if current == self.context {
            return Ok(Scope { pushed: None });
        }
        unsafe { self.driver.push_context(self.context)? };
        Ok(Scope { pushed: Some(self.driver) })
    }

    pub(super) fn kernel(&self, name: &str) -> Result<&Kernel> {
        self.kernels.get(name).ok_or_else(|| Error::Internal(format!("there is no kernel {name}")))
    }

    /// Blocks of `block` threads and `shared` bytes of dynamic shared memory that are resident at once on the whole
    /// GPU: the most that a cooperative launch can have. The context is current (`Device::run`).
    pub fn max_blocks(&self, kernel: &str, block: u32, shared: u32) -> Result<i32> {
        let kernel = self.kernel(kernel)?;
        let mut free = kernel.occupancy.iter();
        let free = loop {
            match free.next() {
                Some(slot) => match slot.get() {
                    Some(o) if (o.block, o.shared) == (block, shared) => return Ok(o.blocks * self.multiprocessors),
                    Some(_) => {}
                    None => break Some(slot),
                },
                None => break None,
            }
        };
        let mut blocks = 0;
        unsafe { self.driver.max_active_blocks(&mut blocks, kernel.function, block as i32, shared as usize)? };
        if let Some(slot) = free {
            // Another thread may have been first; its answer serves the next caller as well.
            let _ = slot.set(Occupancy { block, shared, blocks });
        }
        Ok(blocks * self.multiprocessors)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Failures have no one to go to, and at the process' end the driver may be gone already.
        if let Ok(_scope) = self.enter() {
            if let Some(report) = &mut self.report {
                let report = *report.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
                let _ = unsafe { self.driver.free(report) };
            }
            for &library in &self.libraries {
                let _ = unsafe { self.driver.unload_library(library) };
            }
        }
        let _ = unsafe { self.driver.release_context(self.handle) };
    }
}
