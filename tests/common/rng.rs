//! Random choices that can be replayed.

use std::env;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

/// `SplitMix64`: every seed is a good one.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The seed is printed; `SOCKACCEL_SEED` replays it.
    pub fn for_test(name: &str) -> Self {
        let seed = match env::var("SOCKACCEL_SEED") {
            Ok(text) => text.parse().expect("SOCKACCEL_SEED is not a number"),
            Err(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(1, |now| now.subsec_nanos().into()),
        };
        println!("{name}: to replay, SOCKACCEL_SEED={seed}");
        Self::new(seed)
    }

    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// One of its own for a thread, so that scheduling does not change choices.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        let span = (high - low) as u64 + 1;
        low + usize::try_from(self.next() % span).expect("a usize span")
    }

    /// Once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }

    /// 1 to `max`, each order of magnitude as likely as the others.
    pub fn size(&mut self, max: usize) -> usize {
        let bits = self.between(0, max.ilog2() as usize);
        self.between(1 << bits, (2 << bits) - 1).min(max)
    }
}

/// Finaliser of `SplitMix64`.
pub fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
