//! One measurement of one mode: what both programs found, and what the
//! counters of sockaccel and of the interfaces say to it.

use hdrhistogram::Histogram;
use schemars::JsonSchema;
use serde::Serialize;

use super::Error;
use super::netns::Sent;
use super::options::Workload;
use super::peer::{Findings, histogram};
use super::plan::Cell;

/// One measurement.
#[derive(Debug, Clone)]
pub struct Sample {
    client: Findings,
    server: Findings,
    /// Bytes, by sockaccel's own counters; only where it is enabled.
    pub redirected: Option<u64>,
    /// What went out of the interfaces meanwhile.
    pub interfaces: Sent,
}

/// Percentiles, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
pub struct Latency {
    /// Half of the operations took no longer.
    pub p50: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1000.
    pub p999: f64,
    /// All of them.
    pub max: f64,
}

impl Latency {
    /// Of a histogram in ns.
    pub fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let us = |ns: u64| float(ns) / 1000.0;
        let at = |quantile| us(histogram.value_at_quantile(quantile));
        (!histogram.is_empty()).then(|| Self {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: us(histogram.max()),
        })
    }
}

impl Sample {
    /// Checks that every byte sent was received, and that there is a figure.
    pub fn new(
        cell: &Cell,
        client: Findings,
        server: Findings,
        redirected: Option<u64>,
        interfaces: Sent,
    ) -> Result<Self, Error> {
        for (who, sent, received) in [
            ("the client", client.sent, server.received),
            ("the server", server.sent, client.received),
        ] {
            if sent != received {
                return Err(Error::Sample(format!(
                    "{who} sent {sent} bytes, and {received} were received"
                )));
            }
        }
        let counted = if cell.workload.answered() {
            client.operations
        } else {
            server.bytes
        };
        if counted == 0 || client.seconds <= 0.0 || server.seconds <= 0.0 {
            return Err(Error::Sample(
                "nothing came to its end within the measurement: use longer --seconds".to_owned(),
            ));
        }
        Ok(Self {
            client,
            server,
            redirected,
            interfaces,
        })
    }

    /// Operations per second: exchanges, or messages that arrived.
    pub fn rate(&self, cell: &Cell) -> f64 {
        if cell.workload.answered() {
            float(self.client.operations) / self.client.seconds
        } else {
            // Large messages may be under way at either edge.
            self.bytes_per_second(cell) / length(cell)
        }
    }

    /// Payload bytes per second that arrived, both directions.
    pub fn bytes_per_second(&self, cell: &Cell) -> f64 {
        if cell.workload.answered() {
            2.0 * length(cell) * self.rate(cell)
        } else {
            float(self.server.bytes) / self.server.seconds
        }
    }

    /// Microseconds of CPU time of both programs, per operation.
    pub fn cpu_us(&self, cell: &Cell) -> f64 {
        let busy = |of: &Findings| float(of.cpu_ns) / 1000.0 / of.seconds;
        (busy(&self.client) + busy(&self.server)) / self.rate(cell)
    }

    /// Context switches of both programs, per operation.
    pub fn switches(&self, cell: &Cell) -> f64 {
        let switches = |of: &Findings| float(of.switches) / of.seconds;
        (switches(&self.client) + switches(&self.server)) / self.rate(cell)
    }

    /// How long operations took, in ns; empty where none is answered.
    pub fn latency(&self) -> Histogram<u64> {
        let mut all = histogram();
        for &(ns, count) in &self.client.latency {
            all.saturating_record_n(ns, count);
        }
        all
    }

    /// Payload bytes of the connections, both directions, warm-up included.
    pub fn bytes(&self) -> u64 {
        self.client.received + self.server.received
    }

    /// Messages of the same.
    pub fn messages(&self) -> u64 {
        self.client.messages + self.server.messages
    }

    /// Of [`Sample::bytes`], those that the kernel's TCP carried, by `TCP_INFO`.
    pub fn stack_bytes(&self, cell: &Cell) -> Option<u64> {
        if cell.workload == Workload::ConnectRequestClose {
            return None;
        }
        Some(self.server.received_by_tcp? + self.client.received_by_tcp?)
    }

    /// Bytes that were still unread when the measurement was over.
    pub fn unread(&self) -> u64 {
        self.server.late
    }
}

fn length(cell: &Cell) -> f64 {
    float(cell.size as u64)
}

/// Counts are far below 2^52.
#[expect(clippy::cast_precision_loss, reason = "see above")]
pub fn float(count: u64) -> f64 {
    count as f64
}
