//! The entries of the CUDA driver that are used, loaded from `libcuda.so.1`.
//!
//! cudarc gives the types. Its own loader panics where a symbol is missing, and may take a toolkit's stub for a driver.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use cudarc::driver::sys::*;

use super::fatbins::TOOLKIT;
use crate::error::{Error, Result};

const LIBRARY: &CStr = c"libcuda.so.1";

/// What `cuInit` answers in a toolkit's stub, which is there to link with and cannot run.
const STUB: u32 = CUresult::CUDA_ERROR_STUB_LIBRARY as u32;
const NO_DEVICE: u32 = CUresult::CUDA_ERROR_NO_DEVICE as u32;

/// The oldest driver that runs the machine code of this toolkit: its CUDA version, and what users know it by.
const OLDEST: (i32, &str) = if TOOLKIT >= 13000 { (13000, "580") } else { (12040, "550") };

/// Declares the table. Codes are plain numbers: a driver newer than this library may return codes it has no name for.
macro_rules! entries {
    ($($(#[$attribute:meta])* $method:ident = $symbol:ident($($argument:ident: $kind:ty),*);)*) => {
        #[allow(non_snake_case)]
        pub struct Driver {
            $($symbol: unsafe extern "C" fn($($kind),*) -> u32,)*
            version: i32,
        }

        impl Driver {
            /// # Safety
            /// `library` is a CUDA driver.
            unsafe fn resolve(library: *mut c_void, version: i32) -> Result<Self> {
                unsafe {
                    Ok(Driver {
                        $($symbol: std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($kind),*) -> u32>(
                            symbol(library, concat!(stringify!($symbol), "\0"))?,
                        ),)*
                        version,
                    })
                }
            }

            $(
                /// # Safety
                /// That of the driver's entry.
                $(#[$attribute])*
                #[inline]
                #[allow(clippy::too_many_arguments)]
                pub unsafe fn $method(&self, $($argument: $kind),*) -> Result<()> {
                    match unsafe { (self.$symbol)($($argument),*) } {
                        0 => Ok(()),
                        code => Err(self.failure(stringify!($symbol), code)),
                    }
                }
            )*
        }
    };
}

entries! {
    init = cuInit(flags: c_uint);
    // What tells of a failed call must not fail in the same way: it calls the symbol itself.
    #[allow(dead_code)]
    error_name = cuGetErrorName(code: u32, name: *mut *const c_char);
    device_count = cuDeviceGetCount(count: *mut c_int);
    device = cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    device_attribute = cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice);
    retain_context = cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    release_context = cuDevicePrimaryCtxRelease_v2(device: CUdevice);
    current_context = cuCtxGetCurrent(context: *mut CUcontext);
    push_context = cuCtxPushCurrent_v2(context: CUcontext);
    pop_context = cuCtxPopCurrent_v2(context: *mut CUcontext);
    load_library = cuLibraryLoadData(
        library: *mut CUlibrary, code: *const c_void,
        jit_options: *mut CUjit_option, jit_values: *mut *mut c_void, jit_count: c_uint,
        options: *mut CUlibraryOption, values: *mut *mut c_void, count: c_uint
    );
    unload_library = cuLibraryUnload(library: CUlibrary);
    kernel_count = cuLibraryGetKernelCount(count: *mut c_uint, library: CUlibrary);
    enumerate_kernels = cuLibraryEnumerateKernels(kernels: *mut CUkernel, count: c_uint, library: CUlibrary);
    kernel_name = cuKernelGetName(name: *mut *const c_char, kernel: CUkernel);
    kernel_function = cuKernelGetFunction(function: *mut CUfunction, kernel: CUkernel);
    function_attribute = cuFuncGetAttribute(value: *mut c_int, attribute: CUfunction_attribute, function: CUfunction);
    set_function_attribute = cuFuncSetAttribute(function: CUfunction, attribute: CUfunction_attribute, value: c_int);
    parameter_info = cuFuncGetParamInfo(function: CUfunction, index: usize, offset: *mut usize, size: *mut usize);
    max_active_blocks = cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut c_int, function: CUfunction, threads: c_int, shared: usize
    );
    launch = cuLaunchKernelEx(
        config: *const CUlaunchConfig, function: CUfunction, parameters: *mut *mut c_void, extra: *mut *mut c_void
    );
    encode_tensor_map = cuTensorMapEncodeTiled(
        map: *mut CUtensorMap, dtype: CUtensorMapDataType, rank: c_uint, data: *mut c_void,
        sizes: *const u64, pitches: *const u64, boxes: *const c_uint, strides: *const c_uint,
        interleave: CUtensorMapInterleave, swizzle: CUtensorMapSwizzle,
        promotion: CUtensorMapL2promotion, fill: CUtensorMapFloatOOBfill
    );
    memset_8 = cuMemsetD8Async(pointer: CUdeviceptr, value: u8, count: usize, stream: CUstream);
    record_event = cuEventRecord(event: CUevent, stream: CUstream);
    stream_wait_event = cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
    is_capturing = cuStreamIsCapturing(stream: CUstream, status: *mut CUstreamCaptureStatus);
    // MOE_CHECK=1 alone uses the rest.
    allocate = cuMemAlloc_v2(pointer: *mut CUdeviceptr, bytes: usize);
    free = cuMemFree_v2(pointer: CUdeviceptr);
    copy_to_host = cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    copy_to_device = cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    synchronize = cuStreamSynchronize(stream: CUstream);
    pointer_attribute = cuPointerGetAttribute(value: *mut c_void, attribute: CUpointer_attribute, pointer: CUdeviceptr);
}

/// The process' driver: found, new enough and initialised, or why not.
pub fn driver() -> Result<&'static Driver> {
    static DRIVER: OnceLock<std::result::Result<Driver, String>> = OnceLock::new();
    DRIVER.get_or_init(|| Driver::open().map_err(|e| e.to_string())).as_ref().map_err(|e| Error::NoDriver(e.clone()))
}

impl Driver {
    /// CUDA's version of the driver, 1000*major + 10*minor.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// The number of GPUs. Initialises the driver, which a process may do as often as it likes.
    pub fn devices(&self) -> Result<i32> {
        let mut count = 0;
        match unsafe { self.init(0).and_then(|()| self.device_count(&mut count)) } {
            Ok(()) => Ok(count),
            Err(Error::Driver { code: NO_DEVICE, .. }) => Ok(0),
            Err(Error::Driver { code: STUB, .. }) => Err(Error::NoDriver(
                "the libcuda.so.1 that was found is a toolkit's stub, not a driver: take its stubs folder off \
                 LD_LIBRARY_PATH"
                    .into(),
            )),
            Err(error) => Err(Error::NoDriver(error.to_string())),
        }
    }

    fn open() -> Result<Self> {
        // SAFETY: the library is never closed; entries have the types of CUDA's headers.
        unsafe {
            let library = libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
            if library.is_null() {
                return Err(Error::NoDriver(format!(
                    "no CUDA driver was found ({}); install NVIDIA's driver or use MOE_DEVICE_CPU",
                    loader_message()
                )));
            }
            // The version first: it explains the symbols that an old driver lacks.
            let get_version = symbol(library, "cuDriverGetVersion\0")?;
            let get_version: unsafe extern "C" fn(*mut c_int) -> u32 = std::mem::transmute(get_version);
            let mut version = 0;
            let code = get_version(&mut version);
            let (oldest, name) = OLDEST;
            if code != 0 && code != STUB {
                return Err(Error::NoDriver(format!("cuDriverGetVersion failed with {code}")));
            }
            if code == 0 && version < oldest {
                return Err(Error::NoDriver(format!(
                    "the driver is of CUDA {}.{}; driver {name} (CUDA {}.{}) or newer is needed",
                    version / 1000,
                    version % 1000 / 10,
                    oldest / 1000,
                    oldest % 1000 / 10
                )));
            }
            Driver::resolve(library, version)
        }
    }

    #[cold]
    fn failure(&self, call: &'static str, code: u32) -> Error {
        let mut name = null();
        let known = unsafe { (self.cuGetErrorName)(code, &mut name) } == 0 && !name.is_null();
        let name =
            if known { unsafe { CStr::from_ptr(name) }.to_string_lossy().into() } else { "an unknown error".into() };
        Error::Driver { call, code, name }
    }
}

/// # Safety
/// `library` comes from dlopen; `name` ends with a 0.
unsafe fn symbol(library: *mut c_void, name: &'static str) -> Result<*mut c_void> {
    let address = unsafe { libc::dlsym(library, name.as_ptr().cast()) };
    if address.is_null() {
        let (name, driver) = (name.trim_end_matches('\0'), OLDEST.1);
        return Err(Error::NoDriver(format!("libcuda.so.1 has no {name}; driver {driver} or newer is needed")));
    }
    Ok(address)
}

fn loader_message() -> String {
    let message = unsafe { libc::dlerror() };
    if message.is_null() { "libcuda.so.1".into() } else { unsafe { CStr::from_ptr(message) }.to_string_lossy().into() }
}

/// Loads an image with no options.
///
/// # Safety
/// `image` is a fatbin, and stays where it is.
pub unsafe fn load(driver: &Driver, image: &'static [u8]) -> Result<CUlibrary> {
    let mut library = null_mut();
    unsafe {
        driver.load_library(
            &mut library,
            image.as_ptr().cast(),
            null_mut(),
            null_mut(),
            0,
            null_mut(),
            null_mut(),
            0,
        )?
    };
    Ok(library)
}
