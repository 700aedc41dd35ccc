//! From the samples of a cell to what is said about it: medians of ratios
//! within each round, because machines drift, and the proof of the path.

use hdrhistogram::Histogram;
use schemars::JsonSchema;
use serde::Serialize;

use super::options::{Mode, Place, Workload};
use super::peer::histogram;
use super::plan::Cell;
use super::sample::{Latency, Sample, float};
use super::stats::Summary;
use super::targets::{self, Target};

/// Of the bytes, what must have been redirected for a figure to be one of an
/// accelerated connection.
pub const ACCELERATED: f64 = 0.9;
/// Of the bytes, what may have been redirected for it to be one of the stack.
const STACK: f64 = 0.01;

/// One cell.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct CellResult {
    /// Which one.
    #[serde(flatten)]
    pub cell: Cell,
    /// In the order of the plan.
    pub modes: Vec<ModeResult>,
    /// Rate of sockaccel to that of the textbook program.
    pub sockaccel_to_textbook: Option<Summary>,
    /// Of what lies between plain TCP and a Unix socket, the part that
    /// sockaccel has closed.
    pub gap_closed: Option<Summary>,
    /// Ns of one run of the program, by its name.
    pub verdict_ns: Vec<Verdict>,
    /// What this project wants to reach.
    pub targets: Vec<Target>,
}

/// What one run of a program costs.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Verdict {
    /// Name of the program in the kernel.
    pub program: &'static str,
    /// None where it did not run for every message.
    pub ns: Option<f64>,
}

/// One mode in one cell.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ModeResult {
    /// Which one.
    pub mode: Mode,
    /// Why there are no figures.
    pub failed: Option<String>,
    /// By what way the bytes went; none where nothing tells.
    pub path: Option<Path>,
    /// Operations per second: exchanges, or messages that arrived.
    pub rate: Option<Summary>,
    /// Payload bytes per second, both directions.
    pub bytes_per_second: Option<Summary>,
    /// Rate to that of plain TCP.
    pub ratio: Option<Summary>,
    /// In microseconds, all rounds together.
    pub latency_us: Option<Latency>,
    /// To plain TCP's.
    pub latency_ratio: Option<LatencyRatio>,
    /// CPU time of both programs per operation, in microseconds.
    pub cpu_us: Option<Summary>,
    /// To plain TCP's.
    pub cpu_ratio: Option<Summary>,
    /// Context switches of both programs per operation.
    pub switches: Option<Summary>,
    /// Part of the bytes that was redirected, by the counters of sockaccel.
    pub redirected: Option<f64>,
    /// Part of the bytes that the kernel's TCP did not carry, by `TCP_INFO`.
    pub off_stack: Option<f64>,
    /// Bytes that went out of interfaces, headers included, per payload byte.
    pub interface_bytes: Option<f64>,
    /// Packets that went out of interfaces, per message.
    pub interface_packets: Option<f64>,
    /// Of streams: bytes unread when the measurement was over, the most of any
    /// round.
    pub unread_bytes: Option<u64>,
    /// Each round.
    pub rounds: Vec<Round>,
}

/// By what way bytes went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// Past the stack.
    Redirect,
    /// Some of them past the stack.
    Mixed,
    /// By the stack.
    Stack,
}

impl Path {
    /// Its name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Redirect => "redirect",
            Self::Mixed => "mixed",
            Self::Stack => "stack",
        }
    }

    fn of(share: f64) -> Self {
        if share >= ACCELERATED {
            Self::Redirect
        } else if share > STACK {
            Self::Mixed
        } else {
            Self::Stack
        }
    }
}

/// Of percentiles.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub struct LatencyRatio {
    /// Of the medians.
    pub p50: Summary,
    /// Of the 99th percentiles.
    pub p99: Summary,
    /// Of the 99.9th.
    pub p999: Summary,
}

/// One measurement, as raw data has it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Round {
    /// Operations per second.
    pub rate: f64,
    /// Payload bytes per second.
    pub bytes_per_second: f64,
    /// In microseconds.
    pub latency_us: Option<Latency>,
    /// CPU time per operation.
    pub cpu_us: f64,
    /// Context switches per operation.
    pub switches: f64,
    /// Redirected bytes.
    pub redirected_bytes: Option<u64>,
    /// Payload bytes, warm-up included.
    pub payload_bytes: u64,
    /// What went out of interfaces.
    pub interface_bytes: u64,
    /// The same in packets.
    pub interface_packets: u64,
}

impl Round {
    fn of(cell: &Cell, sample: &Sample) -> Self {
        Self {
            rate: sample.rate(cell),
            bytes_per_second: sample.bytes_per_second(cell),
            latency_us: Latency::of(&sample.latency()),
            cpu_us: sample.cpu_us(cell),
            switches: sample.switches(cell),
            redirected_bytes: sample.redirected,
            payload_bytes: sample.bytes(),
            interface_bytes: sample.interfaces.bytes,
            interface_packets: sample.interfaces.packets,
        }
    }
}

/// The samples of one mode, one per round, or why there are none.
pub type Samples = (Mode, Result<Vec<Sample>, String>);

impl CellResult {
    /// Of the samples of all modes.
    pub fn new(cell: Cell, samples: Vec<Samples>, verdict_ns: Vec<Verdict>) -> Self {
        let modes: Vec<ModeResult> = samples
            .into_iter()
            .map(|(mode, samples)| ModeResult::new(&cell, mode, samples))
            .collect();
        let mut this = Self {
            cell,
            modes,
            sockaccel_to_textbook: None,
            gap_closed: None,
            verdict_ns,
            targets: Vec::new(),
        };
        this.compare();
        this.targets = targets::of(&this);
        this
    }

    /// What it says about a mode.
    pub fn mode(&self, mode: Mode) -> Option<&ModeResult> {
        self.modes.iter().find(|result| result.mode == mode)
    }

    fn each(&self, mode: Mode, value: impl Fn(&Round) -> Option<f64>) -> Vec<f64> {
        let rounds = self.mode(mode).map_or(&[][..], |result| &result.rounds);
        rounds.iter().map_while(value).collect()
    }

    fn ratio(
        &self,
        mode: Mode,
        to: Mode,
        value: impl Fn(&Round) -> Option<f64> + Copy,
    ) -> Option<Summary> {
        let (over, under) = (self.each(mode, value), self.each(to, value));
        let ratios: Vec<f64> = over
            .iter()
            .zip(under)
            .filter(|(_, under)| *under > 0.0)
            .map(|(over, under)| over / under)
            .collect();
        Summary::of(&ratios)
    }

    fn compare(&mut self) {
        let to_tcp = |mode, value: fn(&Round) -> Option<f64>| self.ratio(mode, Mode::Tcp, value);
        let mut ratios = Vec::new();
        for result in &self.modes {
            let latency = |value: fn(&Round) -> Option<f64>| to_tcp(result.mode, value);
            let latency = latency(|r| Some(r.latency_us?.p50))
                .zip(latency(|r| Some(r.latency_us?.p99)))
                .zip(latency(|r| Some(r.latency_us?.p999)))
                .map(|((p50, p99), p999)| LatencyRatio { p50, p99, p999 });
            ratios.push((
                to_tcp(result.mode, |round| Some(round.rate)),
                to_tcp(result.mode, |round| Some(round.cpu_us)),
                latency,
            ));
        }
        self.sockaccel_to_textbook =
            self.ratio(Mode::Sockaccel, Mode::Textbook, |round| Some(round.rate));
        self.gap_closed = self.gap();
        for (result, (rate, cpu, latency)) in self.modes.iter_mut().zip(ratios) {
            result.ratio = rate;
            result.cpu_ratio = cpu;
            result.latency_ratio = latency;
        }
    }

    /// Only where there is one to close in every round.
    fn gap(&self) -> Option<Summary> {
        let rates = |mode| self.each(mode, |round| Some(round.rate));
        let (tcp, unix) = (rates(Mode::Tcp), rates(Mode::Unix));
        let closed: Vec<f64> = rates(Mode::Sockaccel)
            .iter()
            .zip(tcp.iter().zip(&unix))
            .map(|(own, (tcp, unix))| (unix > tcp).then(|| (own - tcp) / (unix - tcp)))
            .collect::<Option<_>>()?;
        Summary::of(&closed)
    }

    /// What keeps figures of this cell from counting.
    pub fn void(&self) -> Vec<String> {
        let cell = &self.cell;
        let mut void = Vec::new();
        for result in &self.modes {
            if let Some(failed) = &result.failed {
                void.push(format!("{cell}: {}: {failed}", result.mode));
            }
            if result.contradicts(cell) {
                void.push(format!(
                    "{cell}: {}: its counters say redirected, and the interfaces carried the bytes",
                    result.mode
                ));
            }
        }
        if let Some(share) = self.missed_redirect() {
            void.push(super::Error::not_accelerated(cell, share));
        }
        void
    }

    /// What part was redirected, where all had to be and was not.
    pub fn missed_redirect(&self) -> Option<f64> {
        let share = self.mode(Mode::Sockaccel)?.redirected?;
        (self.cell.must_be_redirected() && share < ACCELERATED).then_some(share)
    }
}

impl ModeResult {
    fn new(cell: &Cell, mode: Mode, samples: Result<Vec<Sample>, String>) -> Self {
        let (samples, failed) = match samples {
            Ok(samples) => (samples, None),
            Err(why) => (Vec::new(), Some(why)),
        };
        let rounds: Vec<Round> = samples.iter().map(|s| Round::of(cell, s)).collect();
        let of =
            |value: fn(&Round) -> f64| Summary::of(&rounds.iter().map(value).collect::<Vec<_>>());
        let bytes = float(samples.iter().map(Sample::bytes).sum());
        let messages = float(samples.iter().map(Sample::messages).sum());
        let part = |count: u64, of: f64| (of > 0.0).then(|| float(count) / of);
        let redirected = samples
            .iter()
            .map(|sample| sample.redirected)
            .sum::<Option<u64>>()
            .and_then(|count| part(count, bytes));
        let off_stack = samples
            .iter()
            .map(|sample| sample.stack_bytes(cell))
            .sum::<Option<u64>>()
            .and_then(|count| part(count, bytes))
            .map(|by_stack| 1.0 - by_stack.min(1.0));
        let path = match mode {
            Mode::Unix => None,
            Mode::Tcp | Mode::TcpAgain => Some(Path::Stack),
            Mode::Textbook => off_stack.map(Path::of),
            _ => redirected.map(Path::of),
        };
        let mut latency: Histogram<u64> = histogram();
        for sample in &samples {
            // They have the same bounds.
            let _ = latency.add(sample.latency());
        }
        // The host's interface carries everybody's bytes.
        let own = cell.place != Place::Host;
        Self {
            mode,
            failed,
            path: path.filter(|_| !rounds.is_empty()),
            rate: of(|round| round.rate),
            bytes_per_second: of(|round| round.bytes_per_second),
            ratio: None,
            latency_us: Latency::of(&latency),
            latency_ratio: None,
            cpu_us: of(|round| round.cpu_us),
            cpu_ratio: None,
            switches: of(|round| round.switches),
            redirected: redirected.filter(|_| !rounds.is_empty()),
            off_stack: off_stack.filter(|_| mode != Mode::Unix),
            interface_bytes: part(samples.iter().map(|s| s.interfaces.bytes).sum(), bytes)
                .filter(|_| own),
            interface_packets: part(samples.iter().map(|s| s.interfaces.packets).sum(), messages)
                .filter(|_| own),
            unread_bytes: samples
                .iter()
                .map(Sample::unread)
                .max()
                .filter(|_| !cell.workload.answered()),
            rounds,
        }
    }

    /// Whether the interfaces carried what the counters say was redirected.
    fn contradicts(&self, cell: &Cell) -> bool {
        // Connecting and the first exchange go by the stack.
        let connections = match cell.workload {
            Workload::ConnectRequestClose => return false,
            _ => u64::from(cell.connections),
        };
        let payload: u64 = self.rounds.iter().map(|round| round.payload_bytes).sum();
        let carried: u64 = self.rounds.iter().map(|round| round.interface_bytes).sum();
        let opening = self.rounds.len() as u64 * connections * (4096 + 4 * cell.size as u64);
        self.path == Some(Path::Redirect)
            && self.redirected.is_some()
            && cell.place != Place::Host
            && carried > payload / 2 + opening
    }
}
