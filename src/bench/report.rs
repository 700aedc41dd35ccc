//! From samples to ratios, for people and for scripts.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use super::stats::Summary;
use super::{Cpu, Mode, Options, Sample, Wait};

/// All that was measured.
#[derive(Debug)]
pub struct Report {
    cpu: Cpu,
    wait: Wait,
    rounds: u32,
    seconds: f64,
    modes: Vec<Mode>,
    sizes: Vec<Size>,
}

#[derive(Debug)]
struct Size {
    bytes: usize,
    /// In the order of `Report::modes`, a sample per round each.
    samples: Vec<Vec<Sample>>,
    verdicts: Vec<(&'static str, Option<f64>)>,
}

/// The report as JSON has it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Document<'a> {
    kernel: String,
    cpu: Cpu,
    wait: Wait,
    rounds: u32,
    seconds: f64,
    sizes: Vec<SizeDocument<'a>>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct SizeDocument<'a> {
    size: usize,
    modes: Vec<ModeDocument>,
    sockaccel_to_textbook: Option<Summary>,
    #[schemars(with = "BTreeMap<String, Option<f64>>")]
    verdict_ns: serde_json::Map<String, serde_json::Value>,
    targets: Vec<Target<'a>>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ModeDocument {
    mode: Mode,
    /// Requests per second.
    rate: Option<Summary>,
    /// To plain TCP, within each round.
    ratio: Option<Summary>,
    /// Part of the bytes that was redirected, by the counters of sockaccel.
    redirected: Option<f64>,
    /// Part of the bytes that the kernel's TCP did not carry, by `TCP_INFO`.
    off_stack: Option<f64>,
    /// Requests per second of each round.
    rates: Vec<f64>,
}

/// Something that this project wants to reach.
#[derive(Debug, Serialize, JsonSchema)]
struct Target<'a> {
    what: &'a str,
    want: f64,
    measured: Option<f64>,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Met,
    Missed,
    /// Below the target, but the 95 % interval reaches it.
    Undecided,
    /// The comparison says nothing: see the README.
    Void,
}

impl Verdict {
    const fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::Undecided => "undecided: more rounds or a quieter machine",
            Self::Void => "void: the textbook program itself is below 1.4",
        }
    }

    fn at_least(want: f64, summary: Summary) -> Self {
        if summary.median >= want {
            Self::Met
        } else if summary.high >= want {
            Self::Undecided
        } else {
            Self::Missed
        }
    }
}

impl Report {
    pub(super) fn new(options: &Options, modes: &[Mode]) -> Self {
        Self {
            cpu: options.cpu,
            wait: options.wait,
            rounds: options.rounds,
            seconds: options.seconds,
            modes: modes.to_vec(),
            sizes: options
                .size
                .iter()
                .map(|&size| Size {
                    bytes: size,
                    samples: vec![Vec::new(); modes.len()],
                    verdicts: Vec::new(),
                })
                .collect(),
        }
    }

    pub(super) fn add(&mut self, size: usize, mode: Mode, sample: Sample) {
        let row = self.modes.iter().position(|&known| known == mode);
        if let (Some(row), Some(of)) = (row, self.size_mut(size)) {
            of.samples[row].push(sample);
        }
    }

    pub(super) fn verdict(&mut self, size: usize, program: &'static str, ns: Option<f64>) {
        if let Some(of) = self.size_mut(size) {
            of.verdicts.push((program, ns));
        }
    }

    fn size_mut(&mut self, size: usize) -> Option<&mut Size> {
        self.sizes.iter_mut().find(|of| of.bytes == size)
    }

    /// The first size, if any, whose connections with sockaccel were redirected
    /// for a smaller part than this.
    pub(super) fn not_accelerated(&self, least: f64) -> Option<(usize, f64)> {
        self.sizes.iter().find_map(|of| {
            let share = of.redirected(self, Mode::Sockaccel)?;
            (share < least).then_some((of.bytes, share))
        })
    }

    /// As one JSON document.
    pub fn json(&self) -> String {
        let document = Document {
            kernel: nix::sys::utsname::uname()
                .map(|uname| uname.release().to_string_lossy().into_owned())
                .unwrap_or_default(),
            cpu: self.cpu,
            wait: self.wait,
            rounds: self.rounds,
            seconds: self.seconds,
            sizes: self.sizes.iter().map(|of| of.document(self)).collect(),
        };
        serde_json::to_string(&document).unwrap_or_default()
    }
}

impl Size {
    fn of(&self, report: &Report, mode: Mode) -> Option<&[Sample]> {
        let row = report.modes.iter().position(|&known| known == mode)?;
        Some(&self.samples[row])
    }

    fn rates(&self, report: &Report, mode: Mode) -> Vec<f64> {
        self.of(report, mode)
            .unwrap_or_default()
            .iter()
            .map(|sample| sample.exchange.rate())
            .collect()
    }

    fn ratio(&self, report: &Report, mode: Mode, to: Mode) -> Option<Summary> {
        let ratios: Vec<f64> = self
            .rates(report, mode)
            .iter()
            .zip(self.rates(report, to))
            .map(|(rate, base)| rate / base)
            .collect();
        Summary::of(&ratios)
    }

    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn redirected(&self, report: &Report, mode: Mode) -> Option<f64> {
        let samples = self.of(report, mode)?;
        let redirected: Option<u64> = samples.iter().map(|sample| sample.redirected).sum();
        let bytes: u64 = samples.iter().map(|sample| sample.exchange.bytes).sum();
        (bytes > 0).then(|| redirected.map(|part| part as f64 / bytes as f64))?
    }

    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn off_stack(&self, report: &Report, mode: Mode) -> Option<f64> {
        let samples = self.of(report, mode).filter(|_| mode != Mode::Unix)?;
        let bytes: u64 = samples.iter().map(|sample| sample.exchange.bytes).sum();
        let stack: u64 = samples
            .iter()
            .map(|sample| sample.exchange.stack_bytes)
            .sum();
        (bytes > 0).then(|| 1.0 - (stack as f64 / bytes as f64).min(1.0))
    }

    fn targets<'a>(&self, report: &Report) -> Vec<Target<'a>> {
        let mut targets = Vec::new();
        let mut at_least = |what, want, summary: Option<Summary>, void: bool| {
            let Some(summary) = summary else { return };
            let verdict = if void {
                Verdict::Void
            } else {
                Verdict::at_least(want, summary)
            };
            targets.push(Target {
                what,
                want,
                measured: Some(summary.median),
                verdict,
            });
        };
        let to_tcp = |mode| self.ratio(report, mode, Mode::Tcp);
        if report.cpu == Cpu::Same && self.bytes == 64 {
            let textbook = to_tcp(Mode::Textbook);
            at_least("sockaccel / tcp", 1.40, to_tcp(Mode::Sockaccel), false);
            if let Some(textbook) = textbook {
                at_least(
                    "sockaccel / textbook",
                    0.93,
                    self.ratio(report, Mode::Sockaccel, Mode::Textbook),
                    textbook.median < 1.4,
                );
            }
        }
        at_least("to-remote / tcp", 0.98, to_tcp(Mode::ToRemote), false);
        at_least("from-remote / tcp", 0.98, to_tcp(Mode::FromRemote), false);
        for &(program, ns) in &self.verdicts {
            if program == "sa_skmsg" {
                let verdict = match ns {
                    None => Verdict::Undecided,
                    Some(ns) if ns <= 150.0 => Verdict::Met,
                    Some(_) => Verdict::Missed,
                };
                targets.push(Target {
                    what: "ns per verdict, at most",
                    want: 150.0,
                    measured: ns,
                    verdict,
                });
            }
        }
        targets
    }

    fn document<'a>(&self, report: &Report) -> SizeDocument<'a> {
        SizeDocument {
            size: self.bytes,
            modes: report
                .modes
                .iter()
                .map(|&mode| ModeDocument {
                    mode,
                    rate: Summary::of(&self.rates(report, mode)),
                    ratio: self.ratio(report, mode, Mode::Tcp),
                    redirected: self.redirected(report, mode),
                    off_stack: self.off_stack(report, mode),
                    rates: self.rates(report, mode),
                })
                .collect(),
            sockaccel_to_textbook: self.ratio(report, Mode::Sockaccel, Mode::Textbook),
            verdict_ns: self
                .verdicts
                .iter()
                .map(|&(program, ns)| (program.to_owned(), ns.into()))
                .collect(),
            targets: self.targets(report),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = match self.cpu {
            Cpu::Same => "both programs on one CPU",
            Cpu::Cross => "one CPU each",
        };
        let wait = self.wait.name();
        for of in &self.sizes {
            writeln!(
                out,
                "request/response, {} B, {cpu}, wait {wait}, {} rounds of {} s",
                of.bytes, self.rounds, self.seconds
            )?;
            writeln!(
                out,
                "{:<12} {:>10} {:>7}  {:<15} {:<15} {:>10} {:>9}",
                "mode",
                "requests/s",
                "ratio",
                "95 % interval",
                "min - max",
                "redirected",
                "off stack"
            )?;
            for &mode in &self.modes {
                of.line(self, mode, out)?;
            }
            if let Some(ratio) = of.ratio(self, Mode::Sockaccel, Mode::Textbook) {
                writeln!(
                    out,
                    "sockaccel / textbook: {:.3} ({:.3} - {:.3})",
                    ratio.median, ratio.low, ratio.high
                )?;
            }
            for (program, ns) in &of.verdicts {
                match ns {
                    Some(ns) => writeln!(out, "{program}: {ns:.0} ns per message")?,
                    None => writeln!(out, "{program}: did not run for every message")?,
                }
            }
            for target in of.targets(self) {
                writeln!(
                    out,
                    "target {} {}: {}{}",
                    target.what,
                    target.want,
                    target
                        .measured
                        .map(|measured| format!("{measured:.3}, "))
                        .unwrap_or_default(),
                    target.verdict.name()
                )?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

impl Size {
    fn line(&self, report: &Report, mode: Mode, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(rate), Some(ratio)) = (
            Summary::of(&self.rates(report, mode)),
            self.ratio(report, mode, Mode::Tcp),
        ) else {
            return Ok(());
        };
        let share = |part: Option<f64>| part.map_or("-".to_owned(), |part| format!("{part:.3}"));
        writeln!(
            out,
            "{:<12} {:>10.0} {:>7.3}  {:<15} {:<15} {:>10} {:>9}",
            mode.name(),
            rate.median,
            ratio.median,
            format!("{:.3} - {:.3}", ratio.low, ratio.high),
            format!("{:.3} - {:.3}", ratio.min, ratio.max),
            share(self.redirected(report, mode)),
            share(self.off_stack(report, mode)),
        )
    }
}
