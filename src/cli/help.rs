//! Help that fits a screen. `-h` and `--help` name what they leave out, and
//! `sockaccel help COMMAND` says it.

use clap::{Arg, Command};

use super::man::EXAMPLE;

/// The commands that the first screen explains. The others it names.
const FIRST: &[&str] = &[
    "run", "enable", "disable", "apply", "status", "doctor", "stats", "explain", "assert",
    "events", "top", "bench",
];

/// The same command, with what its help needs. A command whose help gives no
/// example has the one that fits it best: itself.
pub fn with_examples(command: Command) -> Command {
    each(command, "sockaccel", &|command, path| {
        let after = after_help(&command);
        if after.contains(EXAMPLE) {
            return command;
        }
        let first = command.get_subcommands().next().map(Command::get_name);
        let example = match first {
            Some(name) => format!("{EXAMPLE}{path} {name} --help"),
            None if command.get_arguments().any(Arg::is_required_set) => return command,
            None => format!("{EXAMPLE}{path}"),
        };
        command.after_help(example)
    })
}

/// The same command, as it is asked for help.
pub fn on_a_screen(command: Command) -> Command {
    let globals = left_out(&command, Arg::is_global_set);
    let command = each(command, "", &|command, path| {
        let own = left_out(&command, |arg| !arg.is_global_set());
        let options = [own, globals.clone()].concat().join(", ");
        insert(command, &format!("More: {options}; sockaccel help{path}"))
    });
    name_the_rest(command)
}

/// Changes a command and all below it.
fn each(command: Command, path: &str, change: &impl Fn(Command, &str) -> Command) -> Command {
    let names = command.get_subcommands().map(Command::get_name);
    let names: Vec<String> = names.map(str::to_owned).collect();
    let command = names.iter().fold(command, |command, name| {
        let path = format!("{path} {name}");
        command.mut_subcommand(name, |sub| each(sub, &path, change))
    });
    change(command, path)
}

fn after_help(command: &Command) -> String {
    let after = command.get_after_help().map(ToString::to_string);
    after.unwrap_or_default()
}

/// The options of this kind that are not on the screen, as they are typed. Who
/// reads it has found `--help`.
fn left_out(command: &Command, kind: impl Fn(&Arg) -> bool) -> Vec<String> {
    let left_out = |arg: &&Arg| arg.is_hide_short_help_set() && !arg.is_hide_set() && kind(arg);
    let names = command.get_arguments().filter(left_out);
    names
        .filter_map(Arg::get_long)
        .filter(|name| *name != "help")
        .map(|name| format!("--{name}"))
        .collect()
}

/// A line behind the notes, before the examples; the whole help needs no such line.
fn insert(command: Command, line: &str) -> Command {
    let after = after_help(&command);
    let at = after.find(EXAMPLE).unwrap_or(after.len());
    let (notes, examples) = after.split_at(at);
    let short = format!("{}\n{line}\n\n{examples}", notes.trim_end());
    command
        .after_long_help(after)
        .after_help(short.trim().to_owned())
}

/// The first screen has no room for all commands.
fn name_the_rest(mut command: Command) -> Command {
    let rest: Vec<Command> = command
        .get_subcommands()
        .filter(|sub| !FIRST.contains(&sub.get_name()) && !sub.is_hide_set())
        .cloned()
        .collect();
    let row = |sub: &Command| {
        let about = sub.get_about().map(ToString::to_string);
        format!("  {:11}  {}", sub.get_name(), about.unwrap_or_default())
    };
    let table: Vec<String> = rest.iter().map(row).collect();
    let names: Vec<&str> = rest.iter().map(Command::get_name).collect();
    for name in &names {
        command = command.mut_subcommand(name, |sub| sub.hide(true));
    }
    let (names, rows) = (names.join(", "), table.join("\n"));
    let short = after_help(&command);
    let short = format!("More commands: {names}; each has --help\n{short}");
    let long = command.get_after_long_help().map(ToString::to_string);
    let long = format!("More commands:\n{rows}\n\n{}", long.unwrap_or_default());
    command.after_help(short).after_long_help(long)
}
