//! Philox4x32-10 (Salmon et al. 2011), the one source of random numbers; `kernels/philox.cuh` is its twin.

use crate::abi::types::moe_random_t;
use crate::check::aligned;
use crate::error::Result;

/// Where a caller's random numbers come from: values, or addresses that replace them when the operation runs.
#[derive(Clone, Copy, Debug)]
pub struct Source(pub moe_random_t);

// SAFETY: two addresses; reading them is each backend's own proof.
unsafe impl Send for Source {}
unsafe impl Sync for Source {}

pub fn source(argument: &str, random: &moe_random_t) -> Result<Source> {
    aligned(format_args!("{argument}.seed_device"), random.seed_device)?;
    aligned(format_args!("{argument}.offset_device"), random.offset_device)?;
    Ok(Source(*random))
}

/// A seed and an offset.
#[derive(Clone, Copy, Debug)]
pub struct Philox {
    pub seed: u64,
    pub offset: u64,
}

impl Philox {
    /// # Safety
    /// Addresses that are given point to live integers.
    pub unsafe fn read(Source(random): &Source) -> Self {
        let value = |given: u64, device: *const u64| {
            if device.is_null() { given } else { unsafe { device.read() } }
        };
        Philox { seed: value(random.seed, random.seed_device), offset: value(random.offset, random.offset_device) }
    }

    /// Random element i: counter offset + i/4, lane i%4.
    pub fn element(&self, i: u64) -> u32 {
        let counter = self.offset.wrapping_add(i / 4);
        philox4x32_10([counter as u32, (counter >> 32) as u32, 0, 0], [self.seed as u32, (self.seed >> 32) as u32])
            [(i % 4) as usize]
    }

    /// Element i in (0, 1): ((x >> 9) + 0.5) * 2^-23, exact in fp32.
    pub fn uniform(&self, i: u64) -> f32 {
        ((self.element(i) >> 9) as f32 + 0.5) * (1.0 / (1 << 23) as f32)
    }

    /// Element i as an integer in 0 .. n.
    pub fn below(&self, i: u64, n: u32) -> u32 {
        ((self.element(i) as u64 * n as u64) >> 32) as u32
    }
}

fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [a, b] = [0xD251_1F53u64 * counter[0] as u64, 0xCD9E_8D57u64 * counter[2] as u64];
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of Random123.
    #[test]
    fn known_answers() {
        let (f, pi) = (u32::MAX, [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]);
        let answers = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([f; 4], [f; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ];
        for (counter, key, expected) in answers {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }

    #[test]
    fn elements_are_lanes_of_counters() {
        let philox = Philox { seed: 0, offset: 0 };
        assert_eq!([0, 1, 2, 3].map(|i| philox.element(i)), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(Philox { seed: 0, offset: 1 }.element(1), philox.element(5));
    }
}
