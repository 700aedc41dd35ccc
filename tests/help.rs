//! What the program says of itself: help, man pages, schemas, completions.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

use clap::Command;
use sockaccel::cli::man::{EXAMPLE, pages, schemas};
use sockaccel::cli::outputs::{TEXT_ONLY, all};
use sockaccel::cli::{Cli, command, whole};

const COLUMNS: usize = 80;
const LINES: usize = 24;

/// Every command that is not hidden, with its path, built.
fn each(visit: &mut impl FnMut(&str, &Command)) {
    fn walk(of: &Command, all: &Command, path: &str, visit: &mut impl FnMut(&str, &Command)) {
        visit(path, of);
        for sub in all.get_subcommands() {
            let name = sub.get_name();
            if !sub.is_hide_set() && name != "help" {
                let found = of.find_subcommand(name).expect(name);
                walk(found, sub, &format!("{path} {name}"), visit);
            }
        }
    }
    let mut root = command().term_width(COLUMNS);
    root.build();
    walk(&root, &whole(), "sockaccel", visit);
}

/// Also what is not on the screen is named there, and is in the whole help.
#[test]
fn help_leaves_nothing_unsaid() {
    each(&mut |path, command| {
        let [short, long] = [false, true].map(|all| {
            let mut command = command.clone().term_width(COLUMNS);
            let text = if all {
                command.render_long_help()
            } else {
                command.render_help()
            };
            text.to_string()
        });
        let words = short.split([' ', '\n', ',', ';']);
        let words: BTreeSet<&str> = words.collect();
        for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
            let Some(name) = arg.get_long().filter(|name| *name != "help") else {
                continue;
            };
            let typed = format!("--{name}");
            assert!(words.contains(&*typed), "{path}: {typed} is not in {short}");
            let about = arg.get_help().expect("text").to_string();
            let first = about.split(' ').next().expect("a word");
            let at = long.find(&typed).expect(&typed);
            assert!(long[at..].contains(first), "{path}: {typed} in {long}");
        }
        for sub in command.get_subcommands().map(Command::get_name) {
            let hidden = ["help"].contains(&sub) || whole_hides(sub);
            assert!(
                hidden || words.contains(sub),
                "{path}: {sub} is not in {short}"
            );
            assert!(
                hidden || long.contains(&format!("  {sub} ")),
                "{path}: {sub} in {long}"
            );
        }
    });
}

fn whole_hides(name: &str) -> bool {
    whole()
        .find_subcommand(name)
        .is_some_and(Command::is_hide_set)
}

#[test]
fn help_fits_a_screen() {
    each(&mut |path, command| {
        let text = command
            .clone()
            .term_width(COLUMNS)
            .render_help()
            .to_string();
        let count = text.lines().count();
        assert!(count <= LINES, "{path}: {count} lines\n{text}");
        for line in text.lines() {
            // A usage line is made to be copied, not to be wrapped.
            let whole = line.starts_with("Usage:") || line.starts_with(EXAMPLE);
            assert!(whole || line.chars().count() <= COLUMNS, "{path}: {line}");
        }
    });
}

#[test]
fn help_has_an_example_that_parses() {
    each(&mut |path, command| {
        let after = command.get_after_help().map(ToString::to_string);
        let after = after.unwrap_or_default();
        let examples: Vec<&str> = after
            .lines()
            .filter_map(|line| line.strip_prefix(EXAMPLE))
            .collect();
        assert!(
            !examples.is_empty(),
            "{path}: its help has no line {EXAMPLE:?}"
        );
        for words in examples.iter().flat_map(|line| simple_commands(line)) {
            if words.first().is_some_and(|word| word == "sockaccel")
                && let Err(error) = Cli::of(&words)
            {
                assert!(!error.use_stderr(), "{path}: {words:?}: {error}");
            }
        }
    });
}

/// What a shell makes of a line, as far as examples need it: words, quotes, and
/// what ends a command.
fn simple_commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars().chain([' ']) {
        match quote {
            Some(q) if c == q => quote = None,
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() || ";|>&".contains(c) => {
                let last = commands.last_mut().expect("never empty");
                last.extend(word.take());
                if !c.is_whitespace() {
                    commands.push(Vec::new());
                }
            }
            _ => word.get_or_insert_default().push(c),
        }
    }
    assert_eq!(quote, None, "{line}");
    commands
}

#[test]
fn examples_are_split_as_shells_do() {
    assert_eq!(
        simple_commands(r#"a 'b "c"; d' "" x>y; e&f"#),
        [
            vec!["a", "b \"c\"; d", "", "x"],
            vec!["y"],
            vec!["e"],
            vec!["f"],
        ]
    );
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The files of a directory are those that the program writes.
fn assert_written(dir: &str, prefix: &str, files: &[(String, String)]) {
    let hint = "write them again:  cargo run -- man --dir man --schemas docs/schema";
    let there: BTreeSet<String> = fs::read_dir(here(dir))
        .expect(dir)
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    let wanted: BTreeSet<String> = files.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(there, wanted, "{dir}: {hint}");
    for (name, text) in files {
        let found = fs::read_to_string(here(dir).join(name)).expect(name);
        assert!(
            found == *text,
            "{dir}/{name} is not what the program says; {hint}"
        );
    }
}

#[test]
fn man_pages_are_those_of_the_program() {
    assert_written("man", "sockaccel-", &pages());
}

#[test]
fn schemas_are_those_of_the_program() {
    assert_written("docs/schema", "", &schemas());
}

#[test]
fn every_command_has_a_registered_output() {
    let mut leaves = BTreeSet::from(["errors".to_owned()]);
    each(&mut |path, command| {
        let typed = path.strip_prefix("sockaccel").unwrap_or(path).trim();
        if !command.has_subcommands() && !TEXT_ONLY.contains(&typed) {
            leaves.insert(typed.to_owned());
        }
    });
    let outputs = all();
    let registered: BTreeSet<String> = outputs.iter().map(|o| o.page().to_owned()).collect();
    assert_eq!(
        registered, leaves,
        "a line in src/cli/outputs.rs for each command"
    );
    for output in outputs {
        for (field, meaning) in output.fields() {
            // The counters of a benchmark have their names only.
            let said = !meaning.is_empty() || output.command == "bench";
            assert!(said, "{}: what is {field}?", output.command);
        }
    }
}

#[test]
fn man_pages_are_clean() {
    for (name, text) in pages() {
        for section in ["NAME", "SYNOPSIS", "\"EXIT STATUS\"", "FILES", "EXAMPLES"] {
            assert!(
                text.contains(&format!(".SH {section}\n")),
                "{name}: no {section}"
            );
        }
        assert_clean(&name, "error");
    }
    // This one is written by hand.
    assert_clean("sockaccel.8", "warning");
}

/// Where mandoc(1) is installed: `scripts/test.sh` does that.
fn assert_clean(page: &str, level: &str) {
    let run = Process::new("mandoc")
        .args(["-T", "lint", "-W", level])
        .arg(here("man").join(page))
        .output();
    match run {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{said}");
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => println!("no mandoc(1): not checked"),
        Err(e) => panic!("mandoc: {e}"),
    }
}

/// Nothing but the binary is needed to read them.
#[test]
fn the_binary_has_its_pages() {
    let print = |words: &[&str]| {
        let output = sockaccel().arg("man").args(words).output().expect("run");
        assert!(output.status.success() && output.stderr.is_empty());
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let main = fs::read_to_string(here("man/sockaccel.8")).expect("the page");
    assert_eq!(print(&[]), main);
    assert_eq!(print(&["sockaccel"]), main);
    assert!(print(&["policy", "add"]).contains("sockaccel\\-policy\\-add"));
    let on_terminal = on_a_terminal("man policy add", 80, None);
    assert!(on_terminal.contains("To read it:  sockaccel man policy add | man -l -"));
}

fn sockaccel() -> Process {
    let mut program = Process::new(env!("CARGO_BIN_EXE_sockaccel"));
    program.env_remove("NO_COLOR").stdin(Stdio::null());
    program
}

#[test]
fn completions_are_those_of_a_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = sockaccel()
            .args(["completions", shell])
            .output()
            .expect("run");
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        for word in ["apply", "blocking-readers", "sockhash"] {
            assert!(text.contains(word), "{shell}: no {word}");
        }
    }
}

/// What each shell offers after `sockaccel events --kind de`, by its own means.
#[test]
fn shells_complete() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path().display();
    for (shell, name) in [("bash", "bash"), ("zsh", "_sockaccel"), ("fish", "fish")] {
        let file = fs::File::create(dir.path().join(name)).expect("a file");
        let made = sockaccel()
            .args(["completions", shell])
            .stdout(file)
            .status();
        assert!(made.expect("run").success(), "{shell}");
    }
    let bash = format!(
        "source {at}/bash; complete -p sockaccel
         COMP_WORDS=(sockaccel events --kind de) COMP_CWORD=3
         _sockaccel sockaccel de --kind; echo \"${{COMPREPLY[@]}}\""
    );
    // Only its line editor completes, which wants a terminal.
    let zsh = format!(
        "zmodload zsh/zpty
         zpty shell env TERM=vt100 zsh -f -i
         zpty -w shell 'fpath=({at} $fpath); autoload -Uz compinit; compinit -u -D'
         zpty -w -n shell 'sockaccel events --kind de'$'\\t'
         zpty -r shell answer '*denied*'; print -r -- $answer"
    );
    let fish = format!("source {at}/fish; complete -C 'sockaccel events --kind de'");
    for (shell, flags, script) in [
        ("bash", "--norc", bash),
        ("zsh", "-f", zsh),
        ("fish", "--no-config", fish),
    ] {
        // One that offers nothing would wait for ever.
        let output = Process::new("timeout")
            .args(["60", shell, flags, "-c", &script])
            .output()
            .expect("timeout(1)");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{shell}: {output:?}");
        for word in ["demoted", "denied"] {
            assert!(text.contains(word), "{shell}: no {word} in {text:?}");
        }
        assert!(!text.contains("promoted"), "{shell}: {text:?}");
    }
}

/// What a terminal of this width shows. script(1) gives one.
fn on_a_terminal(args: &str, columns: usize, no_color: Option<&str>) -> String {
    let mut script = Process::new("script");
    let program = env!("CARGO_BIN_EXE_sockaccel");
    let line = format!("stty cols {columns} rows 24; exec {program} {args}");
    script
        .args(["-qec", &line, "/dev/null"])
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .env_remove("COLUMNS")
        .stdin(Stdio::null());
    if let Some(value) = no_color {
        script.env("NO_COLOR", value);
    }
    let output = script.output().expect("script(1)");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    for args in ["--help", "enable", "no-such-command"] {
        assert!(on_a_terminal(args, 80, None).contains('\x1b'), "{args}");
        let plain = on_a_terminal(args, 80, Some("1"));
        assert!(
            !plain.is_empty() && !plain.contains('\x1b'),
            "{args}: {plain:?}"
        );
        let piped = sockaccel().args(args.split(' ')).output().expect("run");
        for text in [piped.stdout, piped.stderr] {
            assert!(
                !text.contains(&0x1b),
                "{args}: {}",
                String::from_utf8_lossy(&text)
            );
        }
    }
}

#[test]
fn narrow_terminals_are_respected() {
    let text = on_a_terminal("apply --help", 50, Some("1"));
    assert!(text.contains("--dry-run"), "{text}");
    for line in text.lines().map(|line| line.trim_end_matches('\r')) {
        let whole = line.starts_with(EXAMPLE) || line.starts_with("Usage:");
        assert!(whole || line.chars().count() <= 50, "{line:?}");
    }
}

#[test]
fn usage_errors_name_the_next_command() {
    for (args, next) in [
        ("", "--help"),
        ("enabel", "enable"),
        ("enable", "--cgroup <PATH>"),
        ("apply", "--file <FILE>"),
        ("policy add 10.0.0.7 egress any", "sockaccel policy add"),
        ("man no such", "sockaccel --help"),
        ("list", "sockaccel status --all"),
        ("version", "sockaccel --version"),
        (
            "enable /sys/fs/cgroup/web",
            "tip: sockaccel enable --cgroup /sys/fs/cgroup/web",
        ),
        ("disable ./web", "sockaccel disable --cgroup ./web"),
        (
            "identity add 10.0.0.0/8 web",
            "\"web\" is not an identity (a number from 1)",
        ),
        ("endpoint add 10.0.0.1 --identity 0", "a number from 1"),
        ("explain --port http", "not a port (1 to 65535)"),
        ("explain --pid redis", "not a number from 1"),
        ("status --instance a.b", "letters, digits"),
    ] {
        let output = sockaccel()
            .args(args.split_whitespace())
            .output()
            .expect("run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args}: {said}");
        assert!(said.contains(next), "{args}: {said}");
    }
}
