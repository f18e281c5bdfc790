//! `MOE_CHECK=1`: every pointer among an operation's arguments must be one that the GPU can reach.
//!
//! The checks of `check.rs` see each pointer with its name but know no device, so the call's is kept for the thread.

use std::cell::Cell;
use std::fmt::Display;
use std::ptr::{null, null_mut};

use cudarc::driver::sys::CUpointer_attribute_enum::CU_POINTER_ATTRIBUTE_DEVICE_POINTER;

use super::device::Device;
use crate::error::{Error, Result};
use crate::log;

thread_local! {
    static CALLED: Cell<*const Device> = const { Cell::new(null()) };
}

/// Until it is dropped, `check` asks the device of the call that is under way.
pub struct Watch(());

pub fn watch(device: &Device) -> Option<Watch> {
    log::check_enabled().then(|| {
        CALLED.set(device);
        Watch(())
    })
}

impl Drop for Watch {
    fn drop(&mut self) {
        CALLED.set(null());
    }
}

/// NULL, or memory that kernels can reach. Always so without MOE_CHECK=1.
pub fn check(argument: impl Display, pointer: *const u8) -> Result<()> {
    if !log::check_enabled() || pointer.is_null() {
        return Ok(());
    }
    // SAFETY: a Watch borrows from the call that holds the device, and clears the cell when it goes.
    let Some(device) = (unsafe { CALLED.get().as_ref() }) else { return Ok(()) };
    let _scope = device.enter()?;
    let mut answer = null_mut::<u8>();
    let asked = unsafe {
        device.driver.pointer_attribute(
            (&raw mut answer).cast(),
            CU_POINTER_ATTRIBUTE_DEVICE_POINTER,
            pointer.addr() as u64,
        )
    };
    asked.map_err(|_| {
        let ordinal = device.info().device;
        Error::argument(argument, format!("{pointer:?}"), format!("memory that GPU {ordinal} can reach"))
    })
}
