//! What the probes of `enable` found, as rows.

use super::super::Report;
use super::super::Risk;
use super::super::features::State;
use super::super::finding::Finding;
use super::super::finding::Topic;
use super::super::finding::Verdict;
use super::super::versions::Severity;

/// Privileges of this process.
pub const CAPABILITIES: Topic = Topic {
    name: "capabilities",
    sound: "this process may enable",
    otherwise: "this process can not enable, and most other checks need the same capabilities",
};

/// bpf(2)
pub const BPF: Topic = Topic {
    name: "bpf",
    sound: "the kernel lets this process use bpf(2)",
    otherwise: "a user namespace, a seccomp filter or a security module forbids bpf(2): enable \
                from outside of the container",
};

/// What the programs are made of.
pub const FEATURES: Topic = Topic {
    name: "kernel_features",
    sound: "the kernel has all that the programs need",
    otherwise: "nothing can be enabled on this kernel",
};

/// /proc/kallsyms
pub const SYMBOLS: Topic = Topic {
    name: "kernel_symbols",
    sound: "readers that wait in epoll can be told from blocking ones",
    otherwise: "the kernel shows no addresses: event loops that wait in epoll are taken for \
                blocking readers, and are not accelerated; give CAP_SYSLOG, and set \
                kernel.kptr_restrict to 1 or less, while enabling",
};

/// By version.
pub const KNOWN_BUGS: Topic = Topic {
    name: "known_bugs",
    sound: "by its version the kernel has no known bug in its socket maps",
    otherwise: "the kernel can crash, unless the distribution has the fix under an old version: \
                update it",
};

/// The rows.
pub fn look(report: &Report, allowed: &[Risk]) -> Vec<Finding> {
    let missing = &report.missing_capabilities;
    let usable = missing.is_empty();
    let capabilities = if usable {
        CAPABILITIES.finding(Verdict::Ok, "all that are needed")
    } else {
        CAPABILITIES.finding(Verdict::Fails, format!("without {}", missing.join(", ")))
    };
    let bpf = match &report.forbidden {
        Some(error) => BPF.finding(Verdict::Fails, error),
        None if usable => BPF.finding(Verdict::Ok, "a map was made"),
        None => BPF.finding(Verdict::NotChecked, "capabilities are missing"),
    };
    let symbols = if report.symbols_hidden {
        SYMBOLS.finding(Verdict::Fails, "/proc/kallsyms shows no addresses")
    } else {
        SYMBOLS.finding(Verdict::Ok, "/proc/kallsyms")
    };
    let (features, bugs) = (features(report), bugs(report, allowed));
    vec![capabilities, bpf, features, symbols, bugs]
}

fn features(report: &Report) -> Finding {
    let of = |wanted: fn(&State) -> bool| -> Vec<String> {
        report
            .features
            .iter()
            .filter(|feature| wanted(&feature.state))
            .map(|feature| format!("{} ({})", feature.piece, feature.since))
            .collect()
    };
    let missing = of(|state| *state == State::Missing);
    let unknown = of(|state| matches!(state, State::Unknown(_)));
    if report.features.is_empty() {
        return FEATURES.finding(Verdict::NotChecked, "BPF cannot be used");
    }
    if !missing.is_empty() {
        return FEATURES.finding(Verdict::Fails, format!("lacks {}", missing.join(", ")));
    }
    if !unknown.is_empty() {
        return FEATURES.finding(Verdict::NotChecked, unknown.join(", "));
    }
    FEATURES.finding(Verdict::Ok, format!("all {}", report.features.len()))
}

fn bugs(report: &Report, allowed: &[Risk]) -> Finding {
    let kernel = &report.kernel;
    if report.bugs.is_empty() {
        return KNOWN_BUGS.finding(Verdict::Ok, format!("Linux {kernel}"));
    }
    let refused = report.bugs.iter().any(|b| b.severity == Severity::Refuse);
    let verdict = if refused {
        Verdict::Fails
    } else {
        Verdict::Differs
    };
    let names: Vec<&str> = report.bugs.iter().map(|bug| bug.reference).collect();
    KNOWN_BUGS
        .finding(verdict, format!("Linux {kernel} has {}", names.join(", ")))
        .unless(Some(Risk::KnownBadKernel), allowed)
}
