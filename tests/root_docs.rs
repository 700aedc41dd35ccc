//! What README.md and docs tell people to type is typed, and prints what they
//! say it prints.
//!
//! A block marked `console` is run, all of one page in one shell: `# ` and `$ `
//! begin a command, `> ` continues it, and the rest is its output. It must succeed,
//! and where output is shown, print that: figures may differ, columns may be
//! wider, and `...` stands for any text, on a line of its own for any lines.
//! Each page runs inside of namespaces and a cgroup of its own.
//!
//! Commands elsewhere are those of [`NOT_RUN`].

mod common;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use clap::error::ErrorKind;

use sockaccel::cli::Cli;

use common::cgroup::Cgroup;
use common::deadline::Deadline;

/// Commands that the pages show and this does not run, with the reason. Options
/// and files are looked at nevertheless.
const NOT_RUN: &[(&str, &str)] = &[
    ("sudo scripts/quickstart.sh", "a release build"),
    ("sudo scripts/test.sh", "it runs this"),
    ("cargo build --release", "what runs here was built by it"),
    (
        "sudo install target/release/sockaccel /usr/local/sbin/",
        "changes the machine",
    ),
    (
        "sudo sockaccel bench --workload rr,stream,pipelined,crr --cores same,across --rounds 9 --seconds 0.15",
        "some minutes; tests/root_bench.rs",
    ),
    ("sudo scripts/vmtest.sh", "virtual machines"),
    (
        "sudo scripts/vmtest.sh --kernel 6.1 root_order",
        "virtual machines",
    ),
    ("sudo scripts/vmtest.sh --quick", "virtual machines"),
    (
        "sockaccel enable --cgroup /sys/fs/cgroup/system.slice/docker-ID.scope",
        "Docker; tests/root_container.rs",
    ),
];

/// A machine of its own, as far as sockaccel sees one. `$1` has the commands, `$2`
/// is the built program's directory.
const SESSION: &str = r#"
set -e
ip link set lo up
umount -R -l /sys
mount -t sysfs sysfs /sys
mount -t cgroup2 none /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
set +e
sudo() { "$@"; }
PATH=$2:$PATH
cd "$1/home"
for step in "$1"/step-*; do
    source "$step/command" >"$step/output" 2>&1 </dev/null
    echo $? >"$step/status"
    [[ $(<"$step/status") == 0 ]] || break
done
"#;
/// A guard against hanging, in seconds.
const GUARD: &str = "200";

#[derive(Debug)]
struct Page {
    name: String,
    text: String,
}

#[derive(Debug)]
struct Block {
    /// `console`, `text`, ...; `indented` without a fence.
    kind: String,
    lines: Vec<(usize, String)>,
}

#[derive(Debug)]
struct Step {
    line: usize,
    command: String,
    output: Vec<String>,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<Page> {
    let docs = fs::read_dir(root().join("docs")).expect("docs");
    let mut names: Vec<String> = docs
        .map(|entry| entry.expect("an entry").file_name())
        .map(|name| format!("docs/{}", name.to_string_lossy()))
        .filter(|name| Path::new(name).extension().is_some_and(|ext| ext == "md"))
        .collect();
    names.push("README.md".to_owned());
    let page = |name: String| {
        let text = fs::read_to_string(root().join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        Page { name, text }
    };
    names.into_iter().map(page).collect()
}

fn blocks(text: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut inside = None;
    let mut before = "";
    for (n, line) in text.lines().enumerate() {
        match (line.strip_prefix("```"), inside) {
            (Some(kind), None) => {
                let kind = kind.to_owned();
                let lines = Vec::new();
                found.push(Block { kind, lines });
                inside = Some("fence");
            }
            (None, Some("fence")) => found
                .last_mut()
                .expect("it")
                .lines
                .push((n + 1, line.into())),
            // Markdown's other code block begins after an empty line.
            (None, at) if line.starts_with("    ") && (at.is_some() || before.is_empty()) => {
                if at.is_none() {
                    let kind = "indented".to_owned();
                    let lines = Vec::new();
                    found.push(Block { kind, lines });
                }
                inside = Some("indented");
                found
                    .last_mut()
                    .expect("it")
                    .lines
                    .push((n + 1, line.trim().into()));
            }
            _ => inside = None,
        }
        before = line;
    }
    assert!(inside != Some("fence"), "a fence that does not end");
    found
}

fn steps(page: &Page) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let consoles = blocks(&page.text)
        .into_iter()
        .filter(|b| b.kind == "console");
    for block in consoles {
        let first = steps.len();
        for (line, text) in block.lines {
            let prompt = text.strip_prefix("# ").or_else(|| text.strip_prefix("$ "));
            if let Some(command) = prompt {
                let command = command.to_owned();
                let output = Vec::new();
                steps.push(Step {
                    line,
                    command,
                    output,
                });
                continue;
            }
            assert!(
                steps.len() > first,
                "{}:{line}: no prompt before",
                page.name
            );
            let step = steps.last_mut().expect("a step");
            match text.strip_prefix("> ") {
                Some(more) if step.output.is_empty() => {
                    step.command += "\n";
                    step.command += more;
                }
                _ => step.output.push(text),
            }
        }
    }
    steps
}

/// Figures as `0`, columns one blank apart, and of a line that was drawn over
/// what is seen at last.
fn plain(line: &str) -> String {
    let seen = line.rsplit('\r').find(|part| !part.trim().is_empty());
    let mut text = String::new();
    let mut rest = seen
        .unwrap_or("")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, figure) = rest.split_at(at);
        let end = figure.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (figure, after) = figure.split_at(end.unwrap_or(figure.len()));
        // A full stop is none of the figure's.
        let stop = if figure.ends_with('.') { "." } else { "" };
        text.extend([before, "0", stop]);
        rest = after.to_owned();
    }
    text + &rest
}

/// Whether `...` in the shape can be filled so that it is the text.
fn line_fits(shape: &str, text: &str) -> bool {
    match shape.split_once("...") {
        None => shape == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            let mut ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            ends.any(|at| line_fits(after, &rest[at..]))
        }),
    }
}

fn fits(shape: &[String], text: &[String]) -> bool {
    match shape.split_first() {
        None => text.is_empty(),
        Some((first, rest)) if first == "..." => {
            (0..=text.len()).any(|skipped| fits(rest, &text[skipped..]))
        }
        Some((first, rest)) => text
            .split_first()
            .is_some_and(|(line, more)| line_fits(first, line) && fits(rest, more)),
    }
}

/// Lines that have something to say.
fn said<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    lines.map(plain).filter(|line| !line.is_empty()).collect()
}

/// Cgroups that a page did not come to remove. The programs in them ended with
/// their pid namespace; the kernel lets go of them a little later.
fn empty(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        let inner = entry.path();
        if inner.is_dir() {
            empty(&inner);
            let deadline = Deadline::seconds(10);
            while fs::remove_dir(&inner).is_err() && !deadline.passed() {
                sleep(Duration::from_millis(20));
            }
        }
    }
}

fn run(page: &Page) {
    let steps = steps(page);
    if steps.is_empty() {
        return;
    }
    let work = tempfile::tempdir().expect("a directory");
    fs::create_dir(work.path().join("home")).expect("mkdir");
    let place = |n: usize| work.path().join(format!("step-{n:03}"));
    for (n, step) in steps.iter().enumerate() {
        fs::create_dir(place(n)).expect("mkdir");
        fs::write(place(n).join("command"), format!("{}\n", step.command)).expect("write");
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_sockaccel"));
    let cgroup = Cgroup::new("docs");
    let session = Command::new("sh")
        .args(["-c", "echo $$ >\"$0/cgroup.procs\" && exec \"$@\""])
        .arg(cgroup.path())
        .args(["timeout", "--kill-after=1", GUARD])
        .args(["unshare", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--cgroup", "--net", "--mount-proc"])
        .args(["bash", "-c", SESSION, "bash"])
        .arg(work.path())
        .arg(binary.parent().expect("its directory"))
        .env_remove("SOCKACCEL_ALLOW")
        .env_remove("SOCKACCEL_INSTANCE")
        .output()
        .expect("unshare(1)");
    empty(cgroup.path());
    for (n, step) in steps.iter().enumerate() {
        let read = |name| fs::read(place(n).join(name)).unwrap_or_default();
        let output = String::from_utf8_lossy(&read("output")).into_owned();
        let status = String::from_utf8_lossy(&read("status")).trim().to_owned();
        let at = format!("{}:{}: {}", page.name, step.line, step.command);
        assert_eq!(status, "0", "{at}\n{output}\n{session:?}");
        let wanted = said(step.output.iter().map(String::as_str));
        let got = said(output.lines());
        assert!(
            wanted.is_empty() || fits(&wanted, &got),
            "{at}\nit is said to print\n{}\n\nand prints\n{output}",
            step.output.join("\n")
        );
    }
}

#[test]
fn what_the_pages_say_to_type_does_what_they_say() {
    let pages = pages();
    let typed = |page: &Page| !steps(page).is_empty();
    for name in ["README.md", "docs/tutorial.md", "docs/known-issues.md"] {
        let page = pages.iter().find(|page| page.name == name);
        assert!(page.is_some_and(typed), "{name}: nothing to type");
    }
    pages.iter().for_each(run);
}

/// Words after sudo, without a comment, up to a pipe.
fn words(command: &str) -> Vec<String> {
    let words = command
        .split_whitespace()
        .skip_while(|word| *word == "sudo")
        .take_while(|word| *word != "|");
    words
        .map(|word| word.trim_matches(['\'', '"']).to_owned())
        .collect()
}

fn assert_parses(at: &str, words: &[String]) {
    if let Err(error) = Cli::of(words) {
        assert!(!error.use_stderr(), "{at}: {error}");
    }
}

#[test]
fn what_is_not_run_is_known_and_there() {
    let mut shown = BTreeSet::new();
    for page in pages() {
        for block in blocks(&page.text) {
            if ["console", "text"].contains(&&*block.kind) {
                continue;
            }
            for (line, text) in block.lines {
                let command = text.split("  #").next().unwrap_or("").trim();
                let at = format!("{}:{line}: {command}", page.name);
                let known = NOT_RUN.iter().find(|(known, _)| *known == command);
                assert!(known.is_some(), "{at}: not run, and not in NOT_RUN");
                let words = words(command);
                if words[0] == "sockaccel" {
                    assert_parses(&at, &words);
                } else if words[0].starts_with("scripts/") {
                    let script = root().join(&words[0]);
                    let mode = fs::metadata(&script).expect(&at).permissions().mode();
                    assert!(mode & 0o111 != 0, "{at}: not executable");
                    let source = fs::read_to_string(&script).expect("text");
                    for option in words.iter().filter(|word| word.starts_with("--")) {
                        assert!(source.contains(option.as_str()), "{at}: no {option}");
                    }
                }
                shown.insert(command.to_owned());
            }
        }
    }
    for (command, _) in NOT_RUN {
        assert!(shown.contains(*command), "no page shows {command}");
    }
}

/// Parses, or is only the beginning of a command, as names of commands are.
fn assert_known(at: &str, words: &[String]) {
    if let Err(error) = Cli::of(words) {
        let unfinished = [
            ErrorKind::MissingRequiredArgument,
            ErrorKind::MissingSubcommand,
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
        ];
        let fine = !error.use_stderr() || unfinished.contains(&error.kind());
        assert!(fine, "{at}: {error}");
    }
}

/// `sockaccel ...` in running text.
#[test]
fn commands_in_sentences_are_commands() {
    let mut seen = 0;
    for page in pages() {
        for (n, line) in page.text.lines().enumerate() {
            for code in line.split('`').skip(1).step_by(2) {
                let words = words(code);
                let placeholder = |word: &String| word.chars().all(|c| c.is_ascii_uppercase());
                let is_command = words.first().is_some_and(|word| word == "sockaccel");
                if is_command && words.len() > 1 && !words.iter().any(placeholder) {
                    assert_known(&format!("{}:{}: {code}", page.name, n + 1), &words);
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 5, "{seen} commands");
}

/// The comparison itself can fail.
#[test]
fn shapes_fit_what_they_should() {
    let lines = |text: &str| said(text.lines());
    let fits = |shape: &str, text: &str| fits(&lines(shape), &lines(text));
    assert!(fits("a 12.5 b", "a   7 b"));
    assert!(fits("a\n...\nz", "a\nb\nc\nz"));
    assert!(fits("a ... z.", "a b c z."));
    assert!(fits("12.", "7."));
    assert!(fits("\r   \rdone", "\rhalf\rdone"));
    assert!(!fits("a 12 b", "a x b"));
    assert!(!fits("12.", "7"));
    assert!(!fits("a\n...\nz", "a\nb"));
    assert!(!fits("a", "a\nb"));
    assert!(!fits("a ... z", "a b"));
}
