//! The compiled kernels that the library carries: what build.rs made of kernels/*.cu.

/// The driver reads a fatbin in place.
#[repr(C, align(64))]
pub struct Aligned<T: ?Sized>(pub T);

/// The name of a source, and its image.
pub type Fatbin = (&'static str, &'static Aligned<[u8]>);

// FATBINS: of each source. TOOLKIT: its CUDA version, 1000*major + 10*minor. ARCHS: as MOE_CUDA_ARCHS.
// HOPPER: whether kernels/hopper_*.cu were compiled; elsewhere they are empty.
include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));
