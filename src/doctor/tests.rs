//! The verdict on made-up machines.

use super::*;
use features::Piece;

const CGROUPS: &[&str] = &["/sys/fs/cgroup/web"];

fn machine() -> Report {
    Report {
        kernel: Kernel::parse("6.18.44", ""),
        missing_capabilities: Vec::new(),
        forbidden: None,
        features: vec![feature(State::Supported)],
        symbols_hidden: false,
        bugs: Vec::new(),
        fionread: Fionread::Right,
        risks: Vec::new(),
        warnings: Vec::new(),
    }
}

fn feature(state: State) -> Feature {
    Feature {
        piece: Piece::Btf,
        since: "CONFIG_DEBUG_INFO_BTF=y",
        state,
    }
}

fn with_bug() -> Fionread {
    Fionread::Wrong {
        waiting: 8,
        reported: 0,
        redirected: false,
    }
}

/// Everything wrong at once.
fn worst() -> Report {
    let kernel = Kernel::parse("6.1.0-28-amd64", "");
    Report {
        bugs: kernel.bugs().collect(),
        kernel,
        missing_capabilities: vec!["CAP_BPF".to_owned()],
        forbidden: Some("Operation not permitted".to_owned()),
        features: vec![feature(State::Missing)],
        fionread: with_bug(),
        ..machine()
    }
}

fn kind(refusal: Option<&Refusal>) -> &'static str {
    match refusal {
        None => "none",
        Some(Refusal::Denied(Denied::Lacks(_))) => "privileges",
        Some(Refusal::Denied(Denied::Forbidden(_))) => "forbidden",
        Some(Refusal::Lacks { .. }) => "lacks",
        Some(Refusal::KnownBadKernel { .. }) => "known-bad-kernel",
        Some(Refusal::Fionread { .. }) => "fionread",
    }
}

#[test]
fn a_sound_machine_is_not_refused() {
    assert_eq!(machine().refusal(CGROUPS, &[]), None);
    assert_eq!(machine().warnings(), Vec::<String>::new());
    assert_eq!(machine().risks(), []);
}

#[test]
fn what_no_override_cures_comes_first() {
    use Risk::Fionread as Fio;
    use Risk::KnownBadKernel as Bad;
    type Cure = fn(&mut Report);
    let cures: [(Cure, &[Risk], &str); 6] = [
        (|_| {}, &[Fio, Bad], "privileges"),
        (|r| r.missing_capabilities.clear(), &[Fio, Bad], "forbidden"),
        (|r| r.forbidden = None, &[Fio, Bad], "lacks"),
        (|r| r.features.clear(), &[Fio], "known-bad-kernel"),
        (|_| {}, &[Bad], "fionread"),
        (|_| {}, &[Fio, Bad], "none"),
    ];
    let mut report = worst();
    for (cure, allowed, expected) in cures {
        cure(&mut report);
        assert_eq!(kind(report.refusal(CGROUPS, allowed).as_ref()), expected);
    }
    assert_eq!(report.risks(), [Bad, Fio]);
}

#[test]
fn only_refusable_bugs_are_refused() {
    let kernel = Kernel::parse("6.18.41", "");
    let report = Report {
        bugs: kernel.bugs().collect(),
        kernel,
        ..machine()
    };
    assert_eq!(report.refusal(CGROUPS, &[]), None);
    assert_eq!(
        report.warnings(),
        [
            "by its version this kernel (6.18.41) can use freed memory when messages are corked \
          (CVE-2026-68284)"
        ]
    );
}

#[test]
fn what_could_not_be_probed_is_a_warning() {
    let report = Report {
        features: vec![feature(State::Unknown("interrupted".to_owned()))],
        fionread: Fionread::NotProbed {
            reason: "no loopback".to_owned(),
        },
        ..machine()
    };
    assert_eq!(report.refusal(CGROUPS, &[]), None);
    assert_eq!(report.risks(), []);
    assert_eq!(report.warnings().len(), 2, "{:?}", report.warnings());
}

#[test]
fn hidden_addresses_are_a_warning() {
    let report = Report {
        symbols_hidden: true,
        ..machine()
    };
    assert_eq!(report.refusal(CGROUPS, &[]), None);
    assert!(report.warnings()[0].contains("kernel.kptr_restrict"));
}

#[test]
fn an_allowed_risk_is_a_finding_but_no_news() {
    let mut report = Report {
        fionread: with_bug(),
        ..machine()
    };
    assert_eq!(report.refusal(CGROUPS, &[Risk::Fionread]), None);
    assert_eq!(
        report.warnings(),
        [
            "on this kernel FIONREAD reports 0 while the 8 bytes of a probe wait on its enrolled socket \
          (bug 929e30f93125, fixed by 04af4efde58a)"
        ]
    );
    report.warnings = report.warnings();
    assert_eq!(report.news(&[]).count(), 1);
    assert_eq!(report.news(&[Risk::Fionread]).count(), 0);
    report.warnings.push("another".to_owned());
    assert_eq!(report.news(&[Risk::Fionread]).count(), 1);
}

#[test]
fn a_hidden_stable_level_is_told_only_where_it_matters() {
    let warnings = worst().warnings();
    assert!(
        warnings.iter().any(|text| text.contains("6.1.0-28-amd64")
            && text.contains("does not tell which stable release")),
        "{warnings:?}"
    );
    let sound = Report {
        kernel: Kernel::parse("7.2.0-5-generic", ""),
        ..machine()
    };
    assert_eq!(sound.warnings(), Vec::<String>::new());
}
