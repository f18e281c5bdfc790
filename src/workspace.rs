//! Scratch memory: its layout is planned once, for `_workspace_size` and for the call alike.

use std::ffi::c_void;

use crate::check::address;
use crate::error::{Error, Result};

/// Each part, and the whole, begins on such a boundary.
pub const ALIGNMENT: u64 = 256;

/// Hands out parts of a workspace that does not exist yet.
#[derive(Default, Debug)]
pub struct Layout {
    bytes: u64,
}

/// Where a part lies from the workspace's beginning.
#[derive(Clone, Copy, Debug)]
pub struct Part(u64);

impl Layout {
    /// Room for `bytes` bytes; negative sizes do not occur in checked problems.
    pub fn part(&mut self, bytes: i64) -> Part {
        let place = Part(self.bytes);
        self.bytes += (bytes as u64).next_multiple_of(ALIGNMENT);
        place
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The caller's workspace, checked to be large enough.
#[derive(Clone, Copy, Debug)]
pub struct Workspace(*mut u8);

impl Workspace {
    pub fn new(pointer: *mut c_void, size: u64, layout: &Layout) -> Result<Self> {
        let needed = layout.bytes();
        if needed == 0 {
            return Ok(Workspace(std::ptr::null_mut()));
        }
        if pointer.is_null() {
            return Err(Error::argument("workspace", "NULL", format!("{needed} bytes are needed")));
        }
        address("workspace", pointer.cast(), ALIGNMENT as usize)?;
        if size < needed {
            return Err(Error::argument("workspace_size", size, format!("at least {needed}")));
        }
        Ok(Workspace(pointer.cast()))
    }

    pub fn at<T>(&self, part: Part) -> *mut T {
        self.0.wrapping_add(part.0 as usize).cast()
    }
}
