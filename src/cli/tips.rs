//! What clap cannot guess: words of other tools, and a cgroup without its option.

use std::ffi::OsStr;
use std::path::Path;

use clap::Error;
use clap::error::{ContextKind, ContextValue};

use crate::remedy::quoted;

const LISTS: &str = "sockaccel status --all lists the instances; endpoint, identity, service and policy have `list`";

/// What is typed where other tools have it, and what is meant.
const MEANT: &[(&str, &str)] = &[
    ("list", LISTS),
    ("ls", LISTS),
    ("show", LISTS),
    ("instances", LISTS),
    ("version", "sockaccel --version"),
    ("start", "sockaccel enable --cgroup PATH"),
    ("stop", "sockaccel disable"),
];

/// Commands that take cgroups.
const TAKE_CGROUPS: &[&str] = &["enable", "disable", "doctor"];

/// The error with what these words seem to mean.
pub fn with_tip<S: AsRef<OsStr>>(mut error: Error, words: &[S]) -> Error {
    if let Some(tip) = tip(&error, words) {
        // What merely looks like it.
        error.remove(ContextKind::SuggestedSubcommand);
        let tips = vec![tip.into()];
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
    error
}

fn tip<S: AsRef<OsStr>>(error: &Error, words: &[S]) -> Option<String> {
    let wrong = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    if let Some(word) = wrong(ContextKind::InvalidSubcommand) {
        let meant = MEANT.iter().find(|(typed, _)| *typed == word);
        return meant.map(|(_, meant)| (*meant).to_owned());
    }
    let path = wrong(ContextKind::InvalidArg).filter(|arg| arg.contains('/'))?;
    let command = TAKE_CGROUPS
        .iter()
        .find(|command| words.iter().any(|word| word.as_ref() == **command))?;
    Some(format!(
        "sockaccel {command} --cgroup {}",
        quoted(Path::new(path))
    ))
}
