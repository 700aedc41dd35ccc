//! What would change an outcome, in commands that can be typed as they are.

use std::path::Path;

use crate::error::Result;
use crate::maps::layout::Config;
use crate::outcome::Outcome;
use crate::state::{Attached, Instance, Place};

/// Before a remedy that acts at once.
const NOW: &str = "To change it:  ";
/// Before one of a socket that was skipped or ejected, which is not asked again.
const NEXT: &str = "To change it for new connections:  ";

/// One instance, as the remedies of [`crate::outcome`] need it.
#[derive(Debug, Clone)]
pub struct Remedies {
    /// What `{enable}` stands for.
    enable: String,
    /// What `{instance}` stands for, with a space before it.
    instance: String,
    /// Outcomes whose remedy was applied already.
    applied: Vec<&'static str>,
    /// It is made anew each time: every connection is new.
    temporary: bool,
}

/// One remedy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remedy {
    heading: &'static str,
    /// What to do; empty when nothing helps.
    pub text: String,
}

impl Remedy {
    /// One that acts at once.
    pub fn now(text: impl Into<String>) -> Self {
        Self {
            heading: NOW,
            text: text.into(),
        }
    }

    /// One for connections that are made from now on.
    pub fn next(text: impl Into<String>) -> Self {
        Self {
            heading: NEXT,
            text: text.into(),
        }
    }

    /// A line for people, or `None` when nothing helps.
    pub fn line(&self) -> Option<String> {
        let is_some = !self.text.is_empty();
        is_some.then(|| [self.heading, &*self.text].concat())
    }
}

impl Remedies {
    /// For this instance.
    pub fn of(instance: &Instance) -> Result<Self> {
        let attached = instance.attached()?;
        Ok(Self::new(instance.place(), &instance.config()?, &attached))
    }

    /// The same, of what was read before.
    pub fn new(place: &Place, config: &Config, attached: &[Attached]) -> Self {
        let set = [
            ("blocking_reader", config.blocking != 0),
            ("short_lived", config.admit_all != 0),
            ("stream", config.stream_limit == 0),
        ];
        let instance = place.option();
        Self {
            enable: format!("sockaccel enable{}{instance}", options(attached)),
            instance,
            applied: set.iter().filter(|(_, set)| *set).map(|s| s.0).collect(),
            temporary: false,
        }
    }

    /// For the instance of a `run`.
    pub fn of_run() -> Self {
        Self {
            enable: "sockaccel run".to_owned(),
            instance: String::new(),
            applied: Vec::new(),
            temporary: true,
        }
    }

    /// Of a socket that was skipped or ejected.
    pub fn of_socket(&self, reason: &Outcome) -> Remedy {
        if self.is_applied(reason) {
            let text = "This was changed since; connections from before have to be made \
                        again   (or, if they were only passed over:  sockaccel adopt{instance})";
            return Remedy {
                heading: "",
                text: self.fill(text),
            };
        }
        if self.temporary {
            return Remedy::now(self.fill(of_run(reason)));
        }
        Remedy::next(self.fill(reason.remedy))
    }

    /// Of a message that went by the stack.
    pub fn of_message(&self, why: &Outcome) -> Remedy {
        if self.is_applied(why) {
            return Remedy::default();
        }
        Remedy::now(self.fill(why.remedy))
    }

    /// Whether nothing is left to be set for it.
    pub fn is_applied(&self, outcome: &Outcome) -> bool {
        self.applied.contains(&outcome.name)
    }

    /// Its commands for this instance.
    pub fn fill(&self, text: &str) -> String {
        // Last what is the user's own: a path may look like one of these.
        text.replace("{anew}", &anew(&self.instance))
            .replace("{instance}", &self.instance)
            .replace("{enable}", &self.enable)
    }
}

/// What helps where instance and cgroup are those of one command.
fn of_run(reason: &Outcome) -> &'static str {
    match reason.name {
        "no_local_peer" => "start both ends in one run:  {enable} -- sh -c 'SERVER & CLIENT'",
        "peer_not_eligible" => "by what keeps the other end out",
        "map_full" => "{enable} --max-sockets N",
        _ => reason.remedy,
    }
}

/// How to change what is fixed as long as an instance is there, and keep the rest.
/// `instance` is its option, or empty.
pub fn anew(instance: &str) -> String {
    format!(
        "sockaccel export{instance} >FILE, edit it, sockaccel disable{instance}, \
         sockaccel apply -f FILE{instance}   ({DROPS})"
    )
}

/// What only `export` keeps.
pub const DROPS: &str =
    "with the instance go its endpoints, identities, services, policy and options";

/// Naming one of them is enough, as options are the whole instance's; a few are all
/// named, so that nobody takes them for those of one cgroup.
fn options(attached: &[Attached]) -> String {
    const FEW: usize = 3;
    let paths: Vec<&Path> = attached.iter().filter_map(|a| a.path.as_deref()).collect();
    let named = if paths.len() <= FEW { paths.len() } else { 1 };
    match &paths[..named] {
        [] => " --cgroup PATH".to_owned(),
        paths => paths.iter().map(|path| option(path)).collect(),
    }
}

fn option(path: &Path) -> String {
    format!(" --cgroup {}", quoted(path))
}

/// This very command, by who may.
pub fn as_root() -> String {
    let words = std::env::args_os().skip(1);
    let words = words.map(|word| format!(" {}", quoted(Path::new(&word))));
    ["sudo sockaccel".to_owned()]
        .into_iter()
        .chain(words)
        .collect()
}

/// As a shell takes it.
pub fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-@%+=:,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;
    use crate::cli::Cli;
    use crate::outcome::{REASONS, WHYS};

    fn attached(paths: &[Option<&str>]) -> Vec<Attached> {
        let paths = paths.iter().zip(1..);
        paths
            .map(|(path, id)| Attached {
                id,
                path: path.map(Into::into),
                removed: path.is_none(),
            })
            .collect()
    }

    fn place(instance: &str) -> Place {
        Place::new(instance, Path::new("/sys/fs/bpf")).expect("a name")
    }

    fn reason(name: &str) -> &'static Outcome {
        let found = REASONS.iter().find(|reason| reason.name == name);
        found.expect("a reason")
    }

    #[test]
    fn commands_name_cgroups_and_instance() {
        for (instance, paths, expected) in [
            ("default", &[Some("/c/web")][..], " --cgroup /c/web"),
            ("default", &[Some("/c/a b")], " --cgroup '/c/a b'"),
            (
                "ci",
                &[Some("/a"), None, Some("/b")],
                " --cgroup /a --cgroup /b --instance ci",
            ),
            ("default", &[Some("/c"); 4], " --cgroup /c"),
            ("default", &[None], " --cgroup PATH"),
            ("ci", &[], " --cgroup PATH --instance ci"),
        ] {
            let of = Remedies::new(&place(instance), &Config::new_zeroed(), &attached(paths));
            let remedy = of.of_socket(reason("short_lived"));
            let line = format!("{NEXT}sockaccel enable{expected} --admission all");
            assert_eq!(remedy.line(), Some(line));
        }
    }

    #[test]
    fn what_is_set_is_not_to_be_set_again() {
        let config = Config {
            blocking: 1,
            stream_limit: 8192,
            ..Config::new_zeroed()
        };
        let of = Remedies::new(&place("ci"), &config, &[]);
        let text = of.of_socket(reason("blocking_reader")).text;
        assert!(text.contains("sockaccel adopt --instance ci"), "{text}");
        assert!(!text.contains("enable"), "{text}");
        assert!(of.of_socket(reason("stream")).text.contains("enable"));
    }

    /// What stands between two blanks and begins so is a command.
    #[test]
    fn commands_of_remedies_parse() {
        let of = Remedies::new(
            &place("ci"),
            &Config::new_zeroed(),
            &attached(&[Some("/c")]),
        );
        let mut seen = 0;
        for outcome in REASONS.iter().chain(WHYS) {
            let text = of.fill(outcome.remedy);
            assert!(!text.contains(['{', '}']), "{text}");
            for command in text.split("sockaccel ").skip(1) {
                let end = command
                    .find([',', ';', '(', ')', '>', '&'])
                    .or(command.find("   "));
                let words = command[..end.unwrap_or(command.len())].split_whitespace();
                let words = ["sockaccel"].into_iter().chain(words);
                let values = [("VIP:PORT", "10.0.0.1:80"), ("PORT", "80"), ("ADDR", "::1")];
                let words: Vec<&str> = words
                    .map(|word| values.iter().find(|v| v.0 == word).map_or(word, |v| v.1))
                    .collect();
                if let Err(error) = Cli::of(&words) {
                    panic!("{words:?}: {error}");
                }
                let is_named = words
                    .iter()
                    .any(|word| ["--instance", "--all"].contains(word));
                assert!(is_named, "{words:?}");
                seen += 1;
            }
        }
        assert!(seen > 10, "{seen}");
    }
}
