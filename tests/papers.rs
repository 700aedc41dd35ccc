//! The manual says what the program does: each command, option, reason, exit
//! status and JSON field stands in both or in neither.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use clap::Command;
use clap::CommandFactory as _;
use clap::ValueEnum as _;

use serde_json::Value;
use sockaccel::cli::Cli;
use sockaccel::cli::outputs;
use sockaccel::doctor::Risk;
use sockaccel::error::Error;
use sockaccel::error::STATUSES;
use sockaccel::outcome::Outcome;
use sockaccel::outcome::REASONS;
use sockaccel::outcome::WHYS;

const MANUAL: &str = include_str!("../man/sockaccel.8");
const README: &str = include_str!("../README.md");
const SECURITY: &str = include_str!("../docs/security.md");

type Words = BTreeSet<String>;

/// The lines of one section of the manual.
fn section(name: &str) -> Vec<&'static str> {
    let heading = format!(".Sh {name}");
    let lines: Vec<&str> = MANUAL
        .lines()
        .skip_while(|line| *line != heading)
        .skip(1)
        .take_while(|line| !line.starts_with(".Sh "))
        .collect();
    assert!(!lines.is_empty(), "the manual has no section {name}");
    lines
}

/// What follows a macro on these lines, one word each.
fn after(lines: &[&str], mark: &str) -> Words {
    let mut found = Words::new();
    for line in lines {
        let words: Vec<&str> = line.trim_start_matches('.').split(' ').collect();
        for pair in words.windows(2).filter(|pair| pair[0] == mark) {
            found.insert(pair[1].to_owned());
        }
    }
    found
}

/// Every command that does something, as it is typed, with its long options.
fn commands(command: &Command, path: &str, found: &mut Vec<(String, Words)>) {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let path = format!("{path} {}", sub.get_name()).trim().to_owned();
        if sub.has_subcommands() {
            commands(sub, &path, found);
        } else {
            found.push((path, long_options(sub)));
        }
    }
}

fn long_options(command: &Command) -> Words {
    command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set())
        .filter_map(|arg| arg.get_long().map(str::to_owned))
        .collect()
}

fn program() -> (Command, Vec<(String, Words)>) {
    let command = Cli::command();
    let mut found = Vec::new();
    commands(&command, "", &mut found);
    (command, found)
}

/// `.It Ic endpoint add Ar ADDR` is `endpoint add`.
fn documented_commands() -> Words {
    section("COMMANDS")
        .iter()
        .filter_map(|line| line.strip_prefix(".It Ic "))
        .map(|line| {
            let is_word = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase());
            line.split(' ')
                .take_while(is_word)
                .collect::<Vec<_>>()
                .join(" ")
        })
        .filter(|command| command != "help")
        .collect()
}

#[test]
fn commands_are_those_of_the_manual() {
    let there: Words = program().1.into_iter().map(|(path, _)| path).collect();
    assert_eq!(documented_commands(), there);
    let (command, _) = program();
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let row = format!("| `{}", sub.get_name());
        assert!(README.contains(&row), "README: no row {row}");
        // What it needs is told in the table of capabilities.
        let name = format!("`{}`", sub.get_name());
        let mut rows = SECURITY.lines().filter(|line| line.starts_with("| `"));
        let told = rows.any(|row| row.split(" | ").next().is_some_and(|of| of.contains(&name)));
        assert!(told, "docs/security.md: no row of {name}");
    }
}

#[test]
fn options_are_those_of_the_manual() {
    let (command, found) = program();
    let mut there = long_options(&command);
    there.extend(found.into_iter().flat_map(|(_, options)| options));
    let lines: Vec<&str> = MANUAL.lines().collect();
    let documented: Words = after(&lines, "Fl")
        .iter()
        .filter_map(|word| word.strip_prefix('-').map(str::to_owned))
        .collect();
    assert_eq!(documented, there);
}

#[test]
fn risks_are_those_of_the_manual() {
    for risk in Risk::value_variants() {
        let line = format!(".Li {risk} :");
        assert!(section("COMMANDS").contains(&&*line), "no {line:?}");
    }
}

/// The items of the n-th list of this section, with their texts.
fn items(lines: &[&'static str], n: usize) -> Vec<(String, String)> {
    let list: Vec<&str> = lines
        .split(|line| *line == ".El")
        .nth(n)
        .expect("a list")
        .to_vec();
    let begin = list
        .iter()
        .position(|line| line.starts_with(".Bl"))
        .expect("a list");
    list[begin + 1..]
        .split(|line| line.starts_with(".It Li "))
        .skip(1)
        .zip(list.iter().filter_map(|line| line.strip_prefix(".It Li ")))
        .map(|(text, name)| (name.to_owned(), text.join(" ")))
        .collect()
}

#[test]
fn reasons_are_those_of_the_manual() {
    let lines = section("WHAT IS NEVER ACCELERATED");
    for (n, outcomes) in [REASONS, WHYS].into_iter().enumerate() {
        // The first one means that it is accelerated.
        let there: Vec<(String, String)> = outcomes[1..]
            .iter()
            .map(|Outcome { name, text, .. }| ((*name).to_owned(), (*text).to_owned()))
            .collect();
        assert_eq!(items(&lines, n), there);
    }
}

/// What a result means for which programs is said in one place.
#[test]
fn checks_of_doctor_are_those_of_the_manual() {
    let there: Vec<(String, String)> = sockaccel::doctor::topics()
        .map(|topic| (topic.name.to_owned(), topic.otherwise.to_owned()))
        .collect();
    assert_eq!(items(&section("CHECKS OF DOCTOR"), 0), there);
}

/// One of each kind: a new kind does not compile until it is here.
fn exit_codes() -> BTreeSet<u8> {
    let kind = |error: &Error| match error {
        Error::Usage(_)
        | Error::Refused(_)
        | Error::EnableRefused(_)
        | Error::NotEnabled { .. }
        | Error::Found { .. }
        | Error::Run { .. }
        | Error::Privileges(_)
        | Error::Draining(_)
        | Error::Failed(_)
        | Error::Os { .. } => error.exit_code(),
    };
    let denied = io::ErrorKind::PermissionDenied.into();
    [
        Error::Usage(String::new()),
        Error::Refused(String::new()),
        Error::NotEnabled {
            option: String::new(),
            instance: String::new(),
            others: Vec::new(),
        },
        Error::Privileges(String::new()),
        Error::Draining(String::new()),
        Error::Failed(String::new()),
        Error::os("open", "it", denied),
        Error::os("open", "it", io::ErrorKind::Other.into()),
    ]
    .iter()
    .map(kind)
    // assert has 5 for itself, and run fails as env(1) does.
    .chain([0, 5, 125, 126, 127])
    .collect()
}

/// Whoever reads `explain` finds every rule there.
#[test]
fn rules_of_explain_are_in_the_glossary() {
    let source = include_str!("../src/cli/explain/rules.rs");
    let calls = ["Rule::new(", "self.policy("];
    let named = calls.iter().flat_map(|call| source.split(call).skip(1));
    let rules: Words = named
        .filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next())
        .map(str::to_owned)
        .collect();
    assert!(rules.len() > 15, "{rules:?}");
    let items = section("GLOSSARY").into_iter();
    let there: Words = items
        .filter_map(|line| line.strip_prefix(".It Li "))
        .flat_map(|words| words.split(" , "))
        .map(str::to_owned)
        .collect();
    assert_eq!(there, rules);
}

#[test]
fn exit_statuses_are_those_of_the_manual() {
    let documented: BTreeSet<u8> = section("EXIT STATUS")
        .iter()
        .filter_map(|line| line.strip_prefix(".It Li ")?.parse().ok())
        .collect();
    assert_eq!(documented, exit_codes());
    let table: BTreeSet<u8> = STATUSES.iter().map(|(status, _)| *status).collect();
    assert_eq!(table, documented);
}

#[test]
fn json_fields_of_the_manual_are_those_of_the_schemas() {
    let documented = after(&section("JSON FIELDS"), "Li");
    let mut printed = Words::new();
    for output in outputs::all() {
        names(output.schema.as_value(), &mut printed);
        // export prints a file; a benchmark's report is for its own reader.
        if !["export", "bench"].contains(&output.command) {
            for (field, _) in output.fields() {
                let command = output.command;
                assert!(documented.contains(&field), "{command}: {field}");
            }
        }
    }
    for field in &documented {
        assert!(printed.contains(field), "nothing prints {field}");
    }
    // What the tests look at is documented.
    let tests = include_str!("root_cli.rs");
    let (_, rest) = tests.split_once("const FIELDS").expect("the table");
    let (table, _) = rest.split_once("];").expect("its end");
    for row in table.split("),").filter(|row| row.contains('"')) {
        let fields = row.rsplit('"').nth(1).expect("the fields");
        for field in fields.split_whitespace().filter(|word| *word != "\\") {
            assert!(documented.contains(field), "{field} is not in the manual");
        }
    }
}

/// Every field of a schema, at any depth.
fn names(schema: &Value, found: &mut Words) {
    match schema {
        Value::Object(object) => {
            if let Some(fields) = object.get("properties").and_then(Value::as_object) {
                found.extend(fields.keys().cloned());
            }
            object.values().for_each(|part| names(part, found));
        }
        Value::Array(parts) => parts.iter().for_each(|part| names(part, found)),
        _ => {}
    }
}

#[test]
fn the_hard_cap_is_that_of_the_manual() {
    let source = include_str!("../src/bpf/path.h");
    let value = |name: &str| {
        let (_, rest) = source
            .split_once(&format!("#define {name} "))
            .expect("the macro");
        rest.lines().next().expect("its value")
    };
    assert_eq!(value("SA_HARD_BYTES"), "(2u << 20)");
    let cap = format!("{} messages or 2 MiB", value("SA_HARD_MESSAGES"));
    assert!(MANUAL.replace('\n', " ").contains(&cap));
}

/// Tests and files that the papers name exist.
#[test]
fn what_the_papers_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).expect("docs");
    let pages: Vec<String> = docs
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "md"))
        .map(|path| fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .collect();
    let papers = [README, &pages.concat(), MANUAL].concat();
    let mut named = 0;
    for word in papers.split(|c: char| c.is_whitespace() || "`(),".contains(c)) {
        let (file, test) = word.split_once(':').unwrap_or((word, ""));
        let inside = ["tests/", "scripts/", "docs/", "src/", "man/", "LICENSES/"];
        if inside.iter().any(|dir| file.starts_with(dir)) {
            let file = file.trim_end_matches('.');
            assert!(root.join(file).exists(), "{file} does not exist");
            named += 1;
            if !test.is_empty() {
                let source = fs::read_to_string(root.join(file)).expect("readable");
                let function = format!("fn {}(", test.trim_end_matches('.'));
                assert!(source.contains(&function), "{file} has no {function}");
            }
        }
    }
    assert!(named > 10, "{named} files named");
}
