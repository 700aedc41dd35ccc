//! `sa_stats`: the counters, summed over CPUs.

use std::path::Path;

use libbpf_rs::{MapCore, MapFlags, MapHandle};

use super::layout::Dump;
use super::sockets;
use crate::error::{Error, Result};
use crate::outcome::{REASONS, WHYS};

/// `struct sa_stats` of src/bpf/maps.h, summed over all CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Stats {
    /// Sockets that became ESTABLISHED in an enabled cgroup.
    pub seen: u64,
    /// Sockets enrolled, ever; the ejected ones are counted here too.
    pub enrolled_ever: u64,
    /// Enrolled sockets that have closed.
    pub closed: u64,
    /// Sockets that found their peer.
    pub paired: u64,
    pub redirected_messages: u64,
    pub redirected_bytes: u64,
    pub stack_messages: u64,
    pub stack_bytes: u64,
    pub promotions: u64,
    /// `setsockopt(2)` calls refused on enrolled sockets.
    pub refused_options: u64,
    /// Directions demoted in company, at the hard cap.
    pub hard_cap: u64,
    /// Events that found the ring buffer full while somebody listened.
    pub events_lost: u64,
    /// Sockets skipped, by the index of [`REASONS`].
    pub skipped: Vec<u64>,
    /// Sockets ejected, by the index of [`REASONS`].
    pub ejected: Vec<u64>,
    /// Messages that went by the stack, by the index of [`WHYS`].
    pub stack_why: Vec<u64>,
    /// Demotions, by the index of [`WHYS`].
    pub demoted_why: Vec<u64>,
}

/// How often a reading that closing sockets disturbed is begun again.
const TRIES: usize = 3;

const SCALARS: usize = 12;
const WORDS: usize = SCALARS + 2 * REASONS.len() + 2 * WHYS.len();

impl Stats {
    /// Reads the counters of the instance pinned in this directory.
    ///
    /// Live sockets count what they redirect themselves, and are asked after the
    /// counters. One that closes in between would be missing, and what only grows
    /// would seem to shrink: then both are read again, some times at most.
    pub fn read(dir: &Path) -> Result<Self> {
        let map = super::open(dir, "sa_stats")?;
        let mut stats = Self::counters(&map)?;
        for _ in 0..TRIES {
            let live = sockets::read(dir)?;
            let after = Self::counters(&map)?;
            let told = |stats: &Self| (stats.redirected_messages, stats.redirected_bytes);
            let steady = told(&stats) == told(&after);
            stats = after;
            if steady {
                stats.add_untold(&live);
                return Ok(stats);
            }
        }
        stats.add_untold(&sockets::read(dir)?);
        Ok(stats)
    }

    /// What the programs have counted of the instance pinned in this directory,
    /// without what live sockets have yet to tell: redirected messages and bytes.
    pub fn told(dir: &Path) -> Result<Self> {
        Self::counters(&super::open(dir, "sa_stats")?)
    }

    fn add_untold(&mut self, live: &[Dump]) {
        for Dump { sock, .. } in live {
            self.redirected_messages += sock.redirected_messages.saturating_sub(sock.told_messages);
            self.redirected_bytes += sock.redirected_bytes.saturating_sub(sock.told_bytes);
        }
    }

    /// What the programs have counted in this map; live sockets have more to tell.
    pub fn counters(map: &MapHandle) -> Result<Self> {
        let name = "sa_stats";
        let per_cpu = map
            .lookup_percpu(&0_u32.to_ne_bytes(), MapFlags::ANY)
            .map_err(|e| Error::bpf("look up in map", name, &e))?
            .unwrap_or_default();
        Self::sum(&per_cpu).ok_or_else(|| {
            Error::Refused(format!(
                "map {name} has another layout than this version of sockaccel"
            ))
        })
    }

    fn sum(per_cpu: &[Vec<u8>]) -> Option<Self> {
        let mut words = [0_u64; WORDS];
        for copy in per_cpu {
            let (counters, rest) = copy.as_chunks::<8>();
            if counters.len() != WORDS || !rest.is_empty() {
                return None;
            }
            for (sum, bytes) in words.iter_mut().zip(counters) {
                *sum = sum.wrapping_add(u64::from_ne_bytes(*bytes));
            }
        }
        let (scalars, rest) = words.split_at(SCALARS);
        let (skipped, rest) = rest.split_at(REASONS.len());
        let (ejected, rest) = rest.split_at(REASONS.len());
        let (stack_why, demoted_why) = rest.split_at(WHYS.len());
        Some(Self {
            seen: scalars[0],
            enrolled_ever: scalars[1],
            closed: scalars[2],
            paired: scalars[3],
            redirected_messages: scalars[4],
            redirected_bytes: scalars[5],
            stack_messages: scalars[6],
            stack_bytes: scalars[7],
            promotions: scalars[8],
            refused_options: scalars[9],
            hard_cap: scalars[10],
            events_lost: scalars[11],
            skipped: skipped.to_vec(),
            ejected: ejected.to_vec(),
            stack_why: stack_why.to_vec(),
            demoted_why: demoted_why.to_vec(),
        })
    }

    /// Sockets that were skipped or ejected, by the index of [`REASONS`].
    pub fn kept_out(&self) -> Vec<u64> {
        let both = self.skipped.iter().zip(&self.ejected);
        both.map(|(skipped, ejected)| skipped + ejected).collect()
    }

    /// Sockets that were enrolled and were not ejected.
    pub fn enrolled(&self) -> u64 {
        self.enrolled_ever.saturating_sub(self.ejected.iter().sum())
    }

    /// Share of the bytes sent by enrolled sockets that were redirected, `None`
    /// where they sent nothing.
    #[expect(clippy::cast_precision_loss, reason = "a share needs no 2^52")]
    pub fn redirected_share(&self) -> Option<f64> {
        let all = self.redirected_bytes + self.stack_bytes;
        (all > 0).then(|| self.redirected_bytes as f64 / all as f64)
    }

    /// Sockets enrolled at this moment.
    pub fn enrolled_now(&self) -> u64 {
        self.enrolled().saturating_sub(self.closed)
    }
}

/// The bytes as the counters of one CPU, and of two: only as many as there are
/// counters are believed.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    let whole = bytes.len() == 8 * WORDS;
    assert_eq!(Stats::sum(&[bytes.to_vec()]).is_some(), whole);
    assert_eq!(
        Stats::sum(&[bytes.to_vec(), bytes.to_vec()]).is_some(),
        whole
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_cpus_and_refuses_other_sizes() {
        let copy: Vec<u8> = (0..WORDS as u64).flat_map(u64::to_ne_bytes).collect();
        let stats = Stats::sum(&[copy.clone(), copy.clone()]).unwrap();
        assert_eq!(
            (stats.seen, stats.enrolled_ever, stats.hard_cap),
            (0, 2, 20)
        );
        assert_eq!(stats.skipped[0], 2 * SCALARS as u64);
        assert_eq!(*stats.demoted_why.last().unwrap(), 2 * (WORDS as u64 - 1));
        assert_eq!(Stats::sum(&[copy[8..].to_vec()]), None);
    }
}
