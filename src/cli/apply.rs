//! `apply` and `export`: the whole desired state.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;

use super::enable::{NOTHING, say_warnings};
use super::{Context, disable};
use crate::doctor::{self, Refusal, Risk};
use crate::error::{Error, Result, on};
use crate::output::{count, say, write};
use crate::spec::{self, Source, Spec};
use crate::state::{Change, Difference, Instance, Setup};

/// Options of `apply`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The file says everything that enable, endpoint, identity, service and policy can; what it leaves
out has its default, what it does not name is removed. A file with `cgroups = []` disables.
No connection is judged by parts of the old policy and of the new one.

Example:  sockaccel export >web.toml; vi web.toml; sockaccel apply -f web.toml --dry-run")]
pub struct Args {
    /// The file, as `sockaccel export` prints it; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Only print the difference to what is, and fail as apply would
    #[arg(long)]
    dry_run: bool,
}

/// What `apply` did, or would do.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Applied<'a> {
    /// Its name.
    instance: &'a str,
    /// False when it was so before, and with --dry-run.
    changed: bool,
    /// Nothing was done.
    dry_run: bool,
    /// What was and is gone, in the words of the commands.
    removed: Vec<&'a str>,
    /// What is new.
    added: Vec<&'a str>,
    /// With --dry-run: why it would fail, or null.
    refused: Option<String>,
}

/// Runs `apply`.
pub fn run(context: &Context, args: &Args) -> Result<()> {
    let (name, text) = read(&args.file)?;
    let source = Source {
        name: &name,
        text: &text,
    };
    let spec = source.parse()?;
    let from_env = Risk::from_env()?;
    let (wanted, cgroups) = source.resolve(&spec, &from_env)?;

    let (now, settled, drains) = match Instance::open(&context.place) {
        Err(Error::NotEnabled { .. }) => (None, true, false),
        instance => {
            let instance = instance?;
            if hidden(&instance)? > 0 {
                return Err(Error::Failed(format!(
                    "instance {} has cgroups that cannot be seen from this cgroup namespace, and would lose them\n  \
                     Apply outside of the container.",
                    instance.name()
                )));
            }
            let drains = !instance.draining()?.is_empty();
            (Some(instance.setup()?), instance.is_settled()?, drains)
        }
    };
    let would = spec::difference(now.as_ref(), &wanted);
    if args.dry_run {
        if !settled {
            context
                .output
                .note("The command that changed the instance last was killed half-way.");
        }
        return dry_run(context, now.as_ref(), &wanted, &name, &would, !settled);
    }
    if wanted.cgroups.is_empty() {
        // Also where there is none: a drain may have been killed at its very end.
        let drained = disable::drain(context, &disable::Args::default())?;
        return tell(context, &would, None, drained.changed);
    }
    if would.lines.is_empty() && settled && !drains {
        return tell(context, &would, None, false);
    }
    if needs_leave(now.as_ref(), &wanted) {
        ask_leave(context, &wanted, &name)?;
    }
    let (did, change) = Instance::apply(&context.place, &wanted, &cgroups, now.is_none())?;
    tell(context, &did, None, change == Change::Done)
}

/// Fails as the real one would, after the difference.
fn dry_run(
    context: &Context,
    from: Option<&Setup>,
    wanted: &Setup,
    name: &str,
    would: &Difference,
    changed: bool,
) -> Result<()> {
    let refused = refusal(context, from, wanted, name);
    tell(context, would, Some(&refused), changed)?;
    refused.map_err(|error| Error::Found {
        exit_code: error.exit_code(),
        text: error.to_string(),
    })
}

fn refusal(context: &Context, from: Option<&Setup>, wanted: &Setup, name: &str) -> Result<()> {
    if wanted.cgroups.is_empty() {
        return Ok(());
    }
    if needs_leave(from, wanted) {
        ask_leave(context, wanted, name)?;
    }
    from.map_or(Ok(()), |from| from.check_fixed(wanted, &context.place))
}

/// Whether the risks have to be looked at: where more is accelerated than before.
fn needs_leave(now: Option<&Setup>, wanted: &Setup) -> bool {
    now.is_none_or(|now| {
        let is_new = |id| !now.cgroups.contains_key(id);
        wanted.cgroups.keys().any(is_new) || now.allow != wanted.allow
    })
}

fn ask_leave(context: &Context, wanted: &Setup, name: &str) -> Result<()> {
    let allowed: Vec<Risk> = Risk::from_bits(wanted.allow).collect();
    let paths: Vec<&Path> = wanted.cgroups.values().flatten().map(|p| &**p).collect();
    let report = doctor::before_enable(&paths, &allowed).map_err(|refusal| {
        let refusal = refusal.naming(&context.place);
        let risk = match refusal {
            Refusal::Fionread { .. } => Risk::Fionread,
            Refusal::KnownBadKernel { .. } => Risk::KnownBadKernel,
            // It is not `enable` that was refused.
            Refusal::Denied(denied) => return denied.into(),
            other @ Refusal::Lacks { .. } => return other.into(),
        };
        Error::Refused(format!("{refusal}\n  Or in {name}:  allow = [\"{risk}\"]"))
    })?;
    say_warnings(context, &report, &allowed);
    Ok(())
}

/// `dry` is what a dry run found.
fn tell(
    context: &Context,
    difference: &Difference,
    dry: Option<&Result<()>>,
    changed: bool,
) -> Result<()> {
    let dry_run = dry.is_some();
    let side = |sign| -> Vec<&str> {
        let lines = difference.lines.iter().filter(|line| line.0 == sign);
        lines.map(|(_, line)| &**line).collect()
    };
    let applied = Applied {
        instance: &context.place.instance,
        changed: changed && !dry_run,
        dry_run,
        removed: side(false),
        added: side(true),
        refused: dry.and_then(|dry| dry.as_ref().err().map(Error::to_string)),
    };
    if context.output.json {
        return context.output.print_json(&applied);
    }
    if difference.lines.is_empty() {
        say(match (changed, dry_run) {
            (false, _) => NOTHING,
            (true, false) => {
                "It was as the file says; what an earlier command had begun was finished."
            }
            (true, true) => {
                "It is as the file says; what a killed command had begun would be finished."
            }
        });
        return Ok(());
    }
    let lines = difference
        .lines
        .iter()
        .map(|(added, line)| format!("{} {line}", if *added { '+' } else { '-' }));
    write(&lines.collect::<Vec<_>>().join("\n"))
}

/// The name for messages, and the text.
fn read(path: &Path) -> Result<(String, String)> {
    if path == Path::new("-") {
        let name = "standard input".to_owned();
        let mut text = String::new();
        io::stdin()
            .read_to_string(&mut text)
            .map_err(|e| Error::os("read", &name, e))?;
        return Ok((name, text));
    }
    let text = fs::read_to_string(path).map_err(|e| {
        on("read", path)(e).hint("To begin with one:  sockaccel export >FILE, or see sockaccel(8)")
    })?;
    Ok((path.display().to_string(), text))
}

/// Cgroups of it that have no path here, and have one elsewhere.
fn hidden(instance: &Instance) -> Result<usize> {
    let attached = instance.attached()?;
    Ok(attached.iter().filter(|cgroup| cgroup.is_hidden()).count())
}

/// Runs `export`.
pub fn export(context: &Context) -> Result<()> {
    let instance = Instance::open(&context.place)?;
    let spec = Spec::of(&instance.setup()?);
    let (settled, hidden) = (instance.is_settled()?, hidden(&instance)?);
    // Who reads this slowly holds up no command: `export | apply`.
    drop(instance);
    if !settled {
        say("sockaccel: the command that changed the instance last was killed half-way");
    }
    if hidden > 0 {
        let cgroups = count(hidden as u64, "cgroup");
        say(format_args!(
            "sockaccel: {cgroups} of it cannot be seen from this cgroup namespace, and are not in this"
        ));
    }
    if context.output.json {
        return context.output.print_json(&spec);
    }
    write(&spec.to_toml()?)
}
