//! What counts: operations, time, CPU and context switches between the end of
//! the warm-up and the end of the measurement.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};

/// What one program found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Findings {
    /// Operations ended while measuring: exchanges, or messages of a stream.
    pub operations: u64,
    /// Payload bytes received meanwhile.
    pub bytes: u64,
    /// How long that was.
    pub seconds: f64,
    /// CPU time meanwhile, of this process, in ns.
    pub cpu_ns: u64,
    /// Context switches meanwhile.
    pub switches: u64,
    /// Payload bytes sent, ever.
    pub sent: u64,
    /// Payload bytes received, ever.
    pub received: u64,
    /// Messages sent, ever.
    pub messages: u64,
    /// Of the bytes received, those that the kernel's TCP carried; none where
    /// it was not asked.
    pub received_by_tcp: Option<u64>,
    /// Payload bytes received after the measurement: what had waited.
    pub late: u64,
    /// How many operations took so many ns, by the histogram's resolution.
    pub latency: Vec<(u64, u64)>,
}

/// Latencies in ns, up to a minute, three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are constant")
}

#[derive(Debug)]
enum Phase {
    Idle,
    WarmUp {
        until: Instant,
    },
    Measuring {
        since: Instant,
        until: Instant,
        usage: Option<Usage>,
        operations: u64,
        bytes: u64,
    },
    Over {
        bytes: u64,
    },
}

/// How long a measurement may go on for the operations that it must have.
const EXTENSION: Duration = Duration::from_secs(4);

/// Counts, and knows what phase it is.
#[derive(Debug)]
pub struct Meter {
    warm_up: Duration,
    length: Duration,
    at_least: u64,
    phase: Phase,
    latency: Histogram<u64>,
    operations: u64,
    findings: Findings,
}

impl Meter {
    /// Starts with the first [`Meter::tick`]. Goes on for longer, within
    /// reason, where fewer than so many operations have ended.
    pub fn new(warm_up: Duration, length: Duration, at_least: u64) -> Self {
        Self {
            warm_up,
            length,
            at_least,
            phase: Phase::Idle,
            latency: histogram(),
            operations: 0,
            findings: Findings::default(),
        }
    }

    /// Looks at the clock; false once the measurement is over.
    pub fn tick(&mut self, now: Instant) -> bool {
        if let Phase::Idle = self.phase {
            self.phase = Phase::WarmUp {
                until: now + self.warm_up,
            };
        }
        if let Phase::WarmUp { until } = self.phase
            && now >= until
        {
            self.phase = Phase::Measuring {
                since: now,
                until: now + self.length,
                usage: usage(),
                operations: self.operations,
                bytes: self.findings.received,
            };
        }
        if let Phase::Measuring {
            until, operations, ..
        } = self.phase
            && now >= until
            && (self.operations - operations >= self.at_least || now >= until + EXTENSION)
        {
            self.close(now);
        }
        !self.over()
    }

    /// Whether the measurement is over.
    pub fn over(&self) -> bool {
        matches!(self.phase, Phase::Over { .. })
    }

    /// Ends the measurement, if one is going on.
    pub fn close(&mut self, now: Instant) {
        let Phase::Measuring {
            since,
            ref usage,
            operations,
            bytes,
            ..
        } = self.phase
        else {
            return;
        };
        let findings = &mut self.findings;
        findings.operations = self.operations - operations;
        findings.bytes = findings.received - bytes;
        findings.seconds = now.duration_since(since).as_secs_f64();
        if let (Some(before), Some(after)) = (usage, self::usage()) {
            findings.cpu_ns = cpu(&after).saturating_sub(cpu(before));
            findings.switches = switches(&after).saturating_sub(switches(before));
        }
        self.phase = Phase::Over {
            bytes: findings.received,
        };
    }

    /// An operation ended that began then.
    pub fn answered(&mut self, began: Instant, now: Instant) {
        self.operations += 1;
        if let Phase::Measuring { .. } = self.phase {
            let ns = u64::try_from(now.duration_since(began).as_nanos()).unwrap_or(u64::MAX);
            self.latency.saturating_record(ns.max(1));
        }
    }

    /// So many operations ended.
    pub fn ended(&mut self, operations: u64) {
        self.operations += operations;
    }

    /// So many bytes came.
    pub fn received(&mut self, bytes: usize) {
        self.findings.received += bytes as u64;
    }

    /// So many bytes went.
    pub fn sent(&mut self, bytes: usize) {
        self.findings.sent += bytes as u64;
    }

    /// Bytes that went so far.
    pub fn sent_so_far(&self) -> u64 {
        self.findings.sent
    }

    /// What came by the stack, of one connection at its end.
    pub fn by_tcp(&mut self, bytes: u64) {
        *self.findings.received_by_tcp.get_or_insert(0) += bytes;
    }

    /// The result.
    pub fn findings(mut self, size: usize) -> Findings {
        self.close(Instant::now());
        let mut findings = self.findings;
        findings.messages = findings.sent / size as u64;
        if let Phase::Over { bytes } = self.phase {
            findings.late = findings.received - bytes;
        }
        findings.latency = self
            .latency
            .iter_recorded()
            .map(|value| {
                (
                    value.value_iterated_to(),
                    value.count_since_last_iteration(),
                )
            })
            .collect();
        findings
    }
}

fn usage() -> Option<Usage> {
    getrusage(UsageWho::RUSAGE_SELF).ok()
}

fn cpu(usage: &Usage) -> u64 {
    let ns = |time: TimeVal| {
        u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000
            + u64::try_from(time.tv_usec()).unwrap_or(0) * 1000
    };
    ns(usage.user_time()) + ns(usage.system_time())
}

fn switches(usage: &Usage) -> u64 {
    let all = usage.voluntary_context_switches() + usage.involuntary_context_switches();
    u64::try_from(all).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Meter;

    #[test]
    fn only_what_happens_while_measuring_counts() {
        let second = Duration::from_secs(1);
        let mut meter = Meter::new(second, 2 * second, 0);
        let start = Instant::now();
        assert!(meter.tick(start));
        meter.received(100);
        meter.answered(start, start + second / 2);
        assert!(meter.tick(start + second));
        meter.received(1000);
        meter.answered(start + second, start + second + second / 4);
        meter.ended(2);
        assert!(!meter.tick(start + 3 * second));
        meter.received(10_000);
        meter.answered(start + second, start + 4 * second);
        let findings = meter.findings(1);
        assert_eq!(findings.operations, 3);
        assert_eq!(findings.bytes, 1000);
        assert_eq!(findings.received, 11_100);
        assert_eq!(findings.late, 10_000);
        assert!((findings.seconds - 2.0).abs() < 1e-9);
        let [(ns, 1)] = findings.latency[..] else {
            panic!("{:?}", findings.latency);
        };
        assert!((250_000_000..251_000_000).contains(&ns), "{ns}");
    }

    #[test]
    fn it_goes_on_until_enough_has_ended_but_not_for_ever() {
        let second = Duration::from_secs(1);
        let start = Instant::now();
        for (ended, over_at) in [(2, 1), (1, 5), (0, 5)] {
            let mut meter = Meter::new(Duration::ZERO, second, 2);
            assert!(meter.tick(start));
            meter.ended(ended);
            let going = (1..=10).take_while(|&n| meter.tick(start + n * second));
            assert_eq!(going.count() + 1, over_at, "{ended} ended");
        }
    }
}
