//! `man` and `completions`: from the same source as the help.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::outputs::{self, Json};
use crate::error::{Error, Result, STATUSES, on};
use crate::output::{say, write};

/// Options of `completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:  sockaccel completions bash >/etc/bash_completion.d/sockaccel")]
pub struct Completions {
    /// The shell
    shell: Supported,
}

/// The shells that packages carry completions for.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Supported {
    Bash,
    Zsh,
    Fish,
}

/// Prints the completions of a shell.
pub fn completions(args: &Completions) -> Result<()> {
    let shell = match args.shell {
        Supported::Bash => Shell::Bash,
        Supported::Zsh => Shell::Zsh,
        Supported::Fish => Shell::Fish,
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut super::whole(), "sockaccel", &mut text);
    write(&String::from_utf8_lossy(&text))
}

/// Concepts and limits, written by hand.
const MAIN_PAGE: &str = include_str!("../../man/sockaccel.8");

/// Options of `man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The main page, sockaccel(8), has concepts, limits, every reason and a glossary.
There is a page for each command that sockaccel --help names.

Example:  sockaccel man | man -l -
Example:  sockaccel man policy add | man -l -
Example:  sockaccel man --dir man --schemas docs/schema")]
pub struct Options {
    /// The command whose page to print; without one the main page
    #[arg(conflicts_with_all = ["dir", "schemas"])]
    command: Vec<String>,
    /// Write the page of every command into this directory instead
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Write the JSON schema of every command into this directory
    #[arg(long, value_name = "DIR")]
    schemas: Option<PathBuf>,
}

/// Runs `man`.
pub fn run(options: &Options) -> Result<()> {
    if let Some(dir) = &options.dir {
        write_all(dir, pages())?;
    }
    if let Some(dir) = &options.schemas {
        write_all(dir, schemas())?;
    }
    if options.dir.is_some() || options.schemas.is_some() {
        return Ok(());
    }
    write(&page(&options.command)?)?;
    if io::stdout().is_terminal() {
        let words = [&["sockaccel man"], &*as_str(&options.command)].concat();
        say(format_args!("To read it:  {} | man -l -", words.join(" ")));
    }
    Ok(())
}

fn as_str(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

fn page(command: &[String]) -> Result<String> {
    if let [] | ["sockaccel"] = as_str(command)[..] {
        return Ok(MAIN_PAGE.to_owned());
    }
    let wanted = format!("sockaccel-{}.8", command.join("-"));
    match pages().into_iter().find(|(name, _)| *name == wanted) {
        Some((_, page)) => Ok(page),
        None => Err(Error::Usage(format!(
            "there is no command {:?}\n  To see what there is:  sockaccel --help   \
             The main page:  sockaccel man | man -l -",
            command.join(" ")
        ))),
    }
}

fn write_all(dir: &Path, files: Vec<(String, String)>) -> Result<()> {
    for (name, text) in files {
        let path = dir.join(name);
        fs::write(&path, text).map_err(on("write", &path))?;
    }
    Ok(())
}

/// File name and text of each schema.
pub fn schemas() -> Vec<(String, String)> {
    let all = outputs::all();
    all.iter().map(|j| (j.file_name(), j.text())).collect()
}

/// File name and text of the page of every command.
pub fn pages() -> Vec<(String, String)> {
    let mut root = super::whole().disable_help_subcommand(true);
    root.build();
    let outputs = outputs::all();
    let mut pages = Vec::new();
    collect(&root, "", &outputs, &mut pages);
    pages
}

fn collect(of: &Command, path: &str, outputs: &[Json], pages: &mut Vec<(String, String)>) {
    for command in of
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
    {
        let path = format!("{path} {}", command.get_name()).trim().to_owned();
        let name = format!("sockaccel-{}.8", path.replace(' ', "-"));
        let json: Vec<&Json> = outputs.iter().filter(|json| json.page() == path).collect();
        // Into a Vec nothing can fail.
        let page = render(command, &path, &json).unwrap_or_default();
        pages.push((name, once(&String::from_utf8_lossy(&page))));
        collect(command, &path, outputs, pages);
    }
}

/// Each part that is rendered defines the apostrophe: once is enough. Spaces
/// and empty lines have a meaning that nobody meant.
fn once(page: &str) -> String {
    let mut text = String::new();
    for line in page.lines().map(str::trim_end) {
        let again = line.contains("ds Aq") && text.contains(line);
        if !again && !line.is_empty() {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

fn render(command: &Command, path: &str, json: &[&Json]) -> io::Result<Vec<u8>> {
    let after = command.get_after_help().map(ToString::to_string);
    let after = after.unwrap_or_default();
    let (examples, notes): (Vec<&str>, Vec<&str>) =
        after.lines().partition(|line| line.starts_with(EXAMPLE));
    let globals: Vec<_> = command
        .get_arguments()
        .filter(|arg| arg.is_global_set())
        .map(|arg| arg.get_id().clone())
        .collect();
    let whole = command.clone().mut_args(|arg| arg.hide_short_help(false));
    let own = globals.into_iter().fold(whole, |command, id| {
        command.mut_arg(id, |arg| arg.hide(true))
    });
    let has_options = own.get_arguments().any(|arg| !arg.is_hide_set());
    let man = Man::new(own.after_help(""))
        .section("8")
        .source("sockaccel")
        .manual("System Manager's Manual");

    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    let mut roff = Roff::default();
    let notes = notes.join("\n");
    for paragraph in notes.trim().split("\n\n").filter(|text| !text.is_empty()) {
        roff.control("PP", []).text([roman(paragraph)]);
    }
    roff.control("PP", []).text([
        roman("Concepts, global options and limits are in "),
        bold("sockaccel"),
        roman("(8)."),
    ]);
    roff.to_writer(&mut out)?;
    if has_options {
        man.render_options_section(&mut out)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut out)?;
    }
    end(path, examples, json).to_writer(&mut out)?;
    Ok(out)
}

/// How a line of the help begins that is an example.
pub const EXAMPLE: &str = "Example:  ";

/// The sections that every page has.
fn end(path: &str, examples: Vec<&str>, json: &[&Json]) -> Roff {
    let mut roff = Roff::default();
    if !json.is_empty() {
        roff.control("SH", ["JSON FIELDS"]);
    }
    for json in json {
        if json.command != json.page() {
            roff.control("SS", [json.command]);
        }
        for (name, meaning) in json.fields() {
            let item = [bold(name)];
            roff.control("TP", []).text(item).text([roman(meaning)]);
        }
        roff.control("PP", []).text([roman(format!(
            "The schema is docs/schema/{} of the sources.",
            json.file_name()
        ))]);
    }
    roff.control("SH", ["EXIT STATUS"]);
    for (status, meaning) in statuses(path) {
        let item = [bold(status.to_string())];
        roff.control("TP", []).text(item).text([roman(*meaning)]);
    }
    roff.control("SH", ["FILES"]);
    for (file, what) in FILES {
        roff.control("TP", [])
            .text([bold(*file)])
            .text([roman(*what)]);
    }
    roff.control("SH", ["EXAMPLES"]);
    for example in examples {
        let line = example.strip_prefix(EXAMPLE).unwrap_or(example);
        roff.control("PP", [])
            .control("nf", [])
            .text([roman(format!("# {line}"))])
            .control("fi", []);
    }
    roff.control("SH", ["SEE ALSO"])
        .text([bold("sockaccel"), roman("(8)")]);
    roff
}

/// Those that this command has. Of `run` all but its own failures is its
/// command's.
fn statuses(path: &str) -> impl Iterator<Item = &'static (u8, &'static str)> {
    STATUSES.iter().filter(move |(status, _)| match status {
        5 => path == "assert",
        7 => ["disable", "apply"].contains(&path),
        125..=127 => path == "run",
        _ => path != "run",
    })
}

/// Files that commands use.
const FILES: &[(&str, &str)] = &[
    (
        "/sys/fs/bpf/sockaccel",
        "Its lock is held by writers exclusively, by readers shared.",
    ),
    (
        "/sys/fs/bpf/sockaccel/NAME",
        "Programs, maps and links of an instance.",
    ),
    (
        "/etc/sockaccel/sockaccel.toml",
        "What the service of the packages applies.",
    ),
];
