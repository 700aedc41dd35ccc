//! `stats --format openmetrics`: the counters for monitoring systems, by
//! <https://github.com/prometheus/OpenMetrics>.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::EncodeMetric;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::error::{Error, Result};
use crate::maps::Stats;
use crate::outcome::{Outcome, REASONS, WHYS};

/// The exposition. Every sample has the label `sockaccel_instance`: the label
/// `instance` is the monitoring system's own.
pub fn to_openmetrics(stats: &Stats, instance: &str) -> Result<String> {
    let labels = [("sockaccel_instance".into(), instance.to_owned().into())];
    let mut registry = Registry::with_prefix_and_labels("sockaccel", labels.into_iter());
    registry.register_collector(Box::new(Exposition(stats.clone())));
    let mut text = String::new();
    encode(&mut text, &registry)
        .map_err(|e| Error::Failed(format!("cannot write OpenMetrics: {e}")))?;
    Ok(text)
}

#[derive(Debug)]
struct Exposition(Stats);

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stats = &self.0;
        for (name, help, value) in [
            (
                "sockets_seen",
                "Sockets established in an enabled cgroup",
                stats.seen,
            ),
            (
                "sockets_enrolled",
                "Sockets enrolled, those ejected later included",
                stats.enrolled_ever,
            ),
            (
                "sockets_closed",
                "Enrolled sockets that have closed",
                stats.closed,
            ),
            (
                "sockets_paired",
                "Sockets that found their peer",
                stats.paired,
            ),
            (
                "redirected_messages",
                "Messages that skipped the stack",
                stats.redirected_messages,
            ),
            (
                "redirected_bytes",
                "Bytes that skipped the stack",
                stats.redirected_bytes,
            ),
            (
                "stack_bytes",
                "Bytes of enrolled sockets that went by the stack",
                stats.stack_bytes,
            ),
            (
                "promotions",
                "Directions that went over to redirect",
                stats.promotions,
            ),
            (
                "demotions_in_company",
                "Directions that went back to the stack at the hard cap",
                stats.hard_cap,
            ),
            (
                "refused_options",
                "setsockopt(2) calls refused on enrolled sockets",
                stats.refused_options,
            ),
            (
                "events_lost",
                "Events that found their ring buffer full",
                stats.events_lost,
            ),
        ] {
            let counter = ConstCounter::new(value);
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        for (name, what, counts, outcomes) in [
            (
                "sockets_ejected",
                "Sockets taken out again, by reason",
                &stats.ejected,
                REASONS,
            ),
            (
                "sockets_skipped",
                "Sockets not enrolled, by reason",
                &stats.skipped,
                REASONS,
            ),
            (
                "stack_messages",
                "Messages of enrolled sockets that went by the stack, by reason",
                &stats.stack_why,
                WHYS,
            ),
            (
                "demotions",
                "Directions that went back to the stack, by reason",
                &stats.demoted_why,
                WHYS,
            ),
        ] {
            let help = help_by_reason(what, outcomes);
            let mut metric = encoder.encode_descriptor(name, &help, None, MetricType::Counter)?;
            // Also those at 0, or a rate would miss the first. Index 0 is no reason.
            for (outcome, count) in outcomes.iter().zip(counts).skip(1) {
                let labels = [("reason", outcome.name)];
                ConstCounter::new(*count).encode(metric.encode_family(&labels)?)?;
            }
        }
        let open = ConstGauge::new(i64::try_from(stats.enrolled_now()).unwrap_or(i64::MAX));
        let help = "Sockets enrolled at this moment";
        let metric = encoder.encode_descriptor("sockets_open", help, None, open.metric_type())?;
        open.encode(metric)
    }
}

/// The same sentences as in `status` and in the manual.
fn help_by_reason(what: &str, outcomes: &[Outcome]) -> String {
    let each: Vec<String> = outcomes
        .iter()
        .skip(1)
        .map(|outcome| format!("{}: {}", outcome.name, outcome.text))
        .collect();
    format!("{what} ({})", each.join("; "))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Value by `name{reason}`; what the format does not allow fails the test.
    fn parse(text: &str, instance: &str) -> BTreeMap<String, u64> {
        let body = text.strip_suffix("# EOF\n").expect("# EOF at the end");
        let mut samples = BTreeMap::new();
        let mut families = BTreeSet::new();
        let (mut family, mut kind) = (String::new(), "");
        for line in body.split_terminator('\n') {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("help");
                assert!(families.insert(name.to_owned()), "{name} twice");
                assert!(!help.contains(['\\', '"']), "{help}: would need escapes");
                family = name.to_owned();
                kind = "";
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, what) = rest.split_once(' ').expect("a type");
                assert_eq!(name, family, "HELP and TYPE belong together");
                assert!(["counter", "gauge"].contains(&what), "{line}");
                kind = what;
            } else {
                let (name, rest) = line.split_once('{').expect("labels");
                let suffix = if kind == "counter" { "_total" } else { "" };
                assert_eq!(name, format!("{family}{suffix}"), "{kind}");
                let (labels, value) = rest.split_once("} ").expect("a value");
                let mut reason = String::new();
                let mut own = false;
                for label in labels.split(',') {
                    let (label, value) = label.split_once('=').expect("a label");
                    let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
                    let value = value.expect("quotes");
                    match label {
                        "reason" => value.clone_into(&mut reason),
                        "sockaccel_instance" => own = value == instance,
                        other => panic!("label {other}"),
                    }
                }
                assert!(own, "{line}");
                let value = value.parse().expect("a number");
                let key = format!("{name}{{{reason}}}");
                assert_eq!(samples.insert(key, value), None, "{line}: twice");
            }
        }
        samples
    }

    fn any_stats() -> impl Strategy<Value = Stats> {
        let reasons = || vec(0..1_u64 << 32, REASONS.len());
        let whys = || vec(any::<u64>(), WHYS.len());
        let by_reason = (reasons(), reasons(), whys(), whys());
        (vec(0..u64::MAX / 2, 12), by_reason).prop_map(
            |(scalars, (skipped, ejected, stack_why, demoted_why))| Stats {
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
                skipped,
                ejected,
                stack_why,
                demoted_why,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read_back(stats in any_stats(), instance in "[A-Za-z0-9-]{1,32}") {
            let text = to_openmetrics(&stats, &instance).expect("written");
            let mut samples = parse(&text, &instance);
            let mut take = |key: &str| samples.remove(&format!("sockaccel_{key}"));
            for (name, value) in [
                ("sockets_seen_total", stats.seen),
                ("sockets_enrolled_total", stats.enrolled_ever),
                ("sockets_closed_total", stats.closed),
                ("sockets_paired_total", stats.paired),
                ("redirected_messages_total", stats.redirected_messages),
                ("redirected_bytes_total", stats.redirected_bytes),
                ("stack_bytes_total", stats.stack_bytes),
                ("promotions_total", stats.promotions),
                ("demotions_in_company_total", stats.hard_cap),
                ("refused_options_total", stats.refused_options),
                ("events_lost_total", stats.events_lost),
                ("sockets_open", stats.enrolled_now()),
            ] {
                prop_assert_eq!(take(&format!("{name}{{}}")), Some(value), "{}", name);
            }
            for (name, counts, outcomes) in [
                ("sockets_ejected", &stats.ejected, REASONS),
                ("sockets_skipped", &stats.skipped, REASONS),
                ("stack_messages", &stats.stack_why, WHYS),
                ("demotions", &stats.demoted_why, WHYS),
            ] {
                for (outcome, count) in outcomes.iter().zip(counts).skip(1) {
                    let key = format!("{name}_total{{{}}}", outcome.name);
                    prop_assert_eq!(take(&key), Some(*count), "{}", key);
                }
            }
            prop_assert_eq!(samples, BTreeMap::new());
        }
    }

    #[test]
    fn the_help_tells_every_reason() {
        let help = help_by_reason("Sockets not enrolled", REASONS);
        for outcome in &REASONS[1..] {
            assert!(help.contains(outcome.name) && help.contains(outcome.text));
        }
        assert!(!help.contains(['\\', '"', '\n']), "{help}");
    }
}
