//! The cells of the matrix, in the order in which they are measured, and the
//! modes that make sense in each.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::Error;
use super::options::{Cores, Mode, Nagle, Options, Place, Wait, Workload};

/// One combination of everything but the mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Cell {
    /// What the programs do.
    pub workload: Workload,
    /// Bytes of each message.
    pub size: usize,
    /// At one time.
    pub connections: u32,
    /// Whether small messages may wait.
    pub nagle: Nagle,
    /// Where the programs are.
    pub place: Place,
    /// Of the links; none where there are none.
    pub mtu: Option<u32>,
    /// On which CPUs.
    pub cores: Cores,
}

impl fmt::Display for Cell {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {} B", self.workload, self.size)?;
        if self.connections > 1 {
            write!(out, " x{}", self.connections)?;
        }
        if self.nagle == Nagle::On {
            write!(out, " nagle")?;
        }
        write!(out, " {}", self.place)?;
        if let Some(mtu) = self.mtu {
            write!(out, "/{mtu}")?;
        }
        match self.cores {
            Cores::Same => Ok(()),
            Cores::Across => write!(out, " across"),
        }
    }
}

impl Cell {
    /// Whether this is what redirect is made for: where the bytes go past it
    /// something is wrong. Of other cells it is the data path's choice.
    pub fn must_be_redirected(&self) -> bool {
        self.workload == Workload::RequestResponse && self.size <= 4096
    }
}

/// What is going to be measured.
#[derive(Debug)]
pub struct Plan {
    /// Those that differ only in size stand together, the plain ones first.
    pub cells: Vec<Cell>,
    modes: Vec<Mode>,
    rounds: u32,
    /// Of one measurement.
    length: Duration,
}

/// The values of one axis: those given, else all or the few of a quick run.
fn axis<T: Copy + PartialEq>(given: &[T], matrix: bool, all: &[T], quick: &[T]) -> Vec<T> {
    let values = match given {
        [] if matrix => all,
        [] => quick,
        given => given,
    };
    let mut unique = Vec::new();
    for &value in values {
        if !unique.contains(&value) {
            unique.push(value);
        }
    }
    unique
}

impl Plan {
    /// Of these options.
    pub fn new(options: &Options) -> Result<Self, Error> {
        let all = options.matrix;
        let workloads = axis(
            &options.workload,
            all,
            &[
                Workload::RequestResponse,
                Workload::Stream,
                Workload::ConnectRequestClose,
                Workload::Pipelined,
                Workload::SlowReader,
            ],
            &[
                Workload::RequestResponse,
                Workload::Stream,
                Workload::ConnectRequestClose,
            ],
        );
        let sizes = axis(
            &options.size,
            all,
            &[1, 64, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576],
            &[64, 16_384],
        );
        let connections = axis(&options.connections, all, &[1, 16, 128], &[1]);
        let nagle = axis(&options.nagle, all, &[Nagle::Off, Nagle::On], &[Nagle::Off]);
        let places = axis(
            &options.place,
            all,
            &[Place::Loopback, Place::Netns, Place::Nat],
            &[Place::Loopback],
        );
        let mtus = axis(&options.mtu, all, &[1500, 9000], &[1500]);
        let cores = axis(
            &options.cores,
            all,
            &[Cores::Same, Cores::Across],
            &[Cores::Same],
        );
        if options.wait == Wait::Spin && cores.contains(&Cores::Same) {
            return Err(Error::Usage(
                "--wait spin needs --cores across: on one CPU it would measure the scheduler",
            ));
        }
        let mut cells = Vec::new();
        for &place in &places {
            let mtus: Vec<Option<u32>> = if place.has_links() {
                mtus.iter().copied().map(Some).collect()
            } else {
                vec![None]
            };
            for mtu in mtus {
                for &cores in &cores {
                    for &connections in &connections {
                        for &workload in &workloads {
                            for &nagle in &nagle {
                                cells.extend(sizes.iter().map(|&size| Cell {
                                    workload,
                                    size,
                                    connections,
                                    nagle,
                                    place,
                                    mtu,
                                    cores,
                                }));
                            }
                        }
                    }
                }
            }
        }
        let mut modes = axis(
            &options.mode,
            false,
            &[],
            &[Mode::Sockaccel, Mode::Textbook, Mode::Unix],
        );
        modes.retain(|&mode| mode != Mode::Tcp);
        modes.insert(0, Mode::Tcp);
        if !options.variant.is_empty() {
            modes.push(Mode::Variant);
        }
        if options.remote {
            modes.extend([Mode::ToRemote, Mode::FromRemote]);
        }
        modes.push(Mode::TcpAgain);
        Ok(Self {
            cells,
            modes,
            rounds: options.rounds,
            length: Duration::from_secs_f64(options.seconds + options.warm_up),
        })
    }

    /// Every mode of any cell.
    pub fn modes(&self) -> &[Mode] {
        &self.modes
    }

    /// The modes that make sense in this cell, in the order of the first round.
    pub fn modes_of(&self, cell: &Cell) -> Vec<Mode> {
        let makes_sense = |mode: &Mode| match mode {
            // An AF_UNIX socket knows neither links nor translation.
            Mode::Unix => !cell.place.has_links(),
            // It has no bound on what waits unread: gigabytes.
            Mode::Textbook => cell.workload != Workload::SlowReader,
            _ => true,
        };
        self.modes.iter().copied().filter(makes_sense).collect()
    }

    /// About how long it takes, all cells and rounds.
    pub fn estimate(&self) -> Duration {
        // Starting two processes and asking for the counters takes time, too.
        let each = self.length + Duration::from_millis(40);
        let modes = self.cells.iter().map(|cell| self.modes_of(cell).len());
        let samples = modes.sum::<usize>().saturating_mul(self.rounds as usize);
        each.saturating_mul(u32::try_from(samples).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::Plan;
    use crate::bench::options::tests::parse;
    use crate::bench::options::{Mode, Options, Place, Workload};

    fn options(words: &str) -> Options {
        parse(words).unwrap()
    }

    fn plan(words: &str) -> Plan {
        Plan::new(&options(words)).unwrap()
    }

    #[test]
    fn without_options_it_takes_about_a_minute() {
        let seconds = plan("").estimate().as_secs();
        assert!((30..=70).contains(&seconds), "{seconds} s");
    }

    #[test]
    fn the_matrix_has_every_combination_once() {
        let plan = plan("--matrix");
        // loopback; netns and nat with two MTUs each
        assert_eq!(plan.cells.len(), 5 * 8 * 3 * 2 * (1 + 2 + 2) * 2);
        for (n, cell) in plan.cells.iter().enumerate() {
            assert!(!plan.cells[..n].contains(cell), "{cell} twice");
        }
    }

    #[test]
    fn an_axis_that_is_given_stays_as_given() {
        let plan = plan("--matrix --size 64,64,1 --place netns --mtu 9000 --workload slow");
        assert_eq!(plan.cells.len(), 2 * 3 * 2 * 2);
        assert!(plan.cells.iter().all(|cell| cell.place == Place::Netns
            && cell.mtu == Some(9000)
            && cell.workload == Workload::SlowReader));
    }

    #[test]
    fn only_links_have_an_mtu() {
        let plan = plan("--place loopback,nat --size 64 --mtu 1500,9000 --workload rr");
        let mtus: Vec<_> = plan.cells.iter().map(|cell| cell.mtu).collect();
        assert_eq!(mtus, [None, Some(1500), Some(9000)]);
    }

    #[test]
    fn modes_are_those_that_make_sense() {
        let plan = plan("--place loopback,netns --workload rr,slow --size 64 --remote");
        let of = |n: usize| plan.modes_of(&plan.cells[n]);
        assert_eq!(
            of(0),
            [
                Mode::Tcp,
                Mode::Sockaccel,
                Mode::Textbook,
                Mode::Unix,
                Mode::ToRemote,
                Mode::FromRemote,
                Mode::TcpAgain,
            ]
        );
        assert!(!of(1).contains(&Mode::Textbook));
        assert!(!of(2).contains(&Mode::Unix));
    }

    #[test]
    fn plain_tcp_is_measured_once_and_again() {
        let plan = plan("--mode tcp,unix");
        assert_eq!(plan.modes(), [Mode::Tcp, Mode::Unix, Mode::TcpAgain]);
    }

    #[test]
    fn spinning_on_one_cpu_is_refused() {
        assert!(Plan::new(&options("--wait spin")).is_err());
        assert!(Plan::new(&options("--wait spin --cores across")).is_ok());
    }
}
