//! `disable`

use std::io::{IsTerminal, Write, stderr};
use std::path::PathBuf;
use std::slice;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use super::addr::{local, remote};
use crate::error::{Error, Result, enabled_line};
use crate::maps::layout::Dump;
use crate::output::{count, say};
use crate::remedy::DROPS;
use crate::state::cgroup::Cgroup;
use crate::state::{Attached, Drained, Instance, Patience, Sockets, Was, disable};
use crate::words::duration;

/// Between two lines on progress where nobody watches, and where somebody may.
const RARELY: Duration = Duration::from_secs(5);
const OFTEN: Duration = Duration::from_millis(200);

/// Options of `disable`.
#[derive(Debug, Default, clap::Args)]
#[command(after_help = "\
Live connections become plain TCP, at once or when what is unread has been read.
What is left when the time is over goes on draining; disable again waits on.
With its last cgroup the instance ends, and its endpoints, identities, services,
policy and options. To keep them: sockaccel export >FILE, later apply -f FILE.

Example:  sockaccel disable --cgroup /sys/fs/cgroup/web --timeout 1m")]
pub struct Args {
    /// Only take this cgroup out
    #[arg(long = "cgroup", value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// How long to wait for what is unread: 500ms, 5s, 2m, 1h [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "now")]
    timeout: Option<Duration>,
    /// Do not wait: drop what is unread
    #[arg(long)]
    now: bool,
}

/// What `disable` did.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Disabled<'a> {
    /// Its name.
    instance: &'a str,
    /// False when there was nothing to do.
    changed: bool,
    /// Sockets that were taken out with unread bytes; null where another version made the instance.
    dropped: Option<Vec<Waiting>>,
    /// The instance is gone, with its endpoints, identities, services, policy and options.
    ended: bool,
}

/// A socket on its way out.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Waiting {
    /// In the kernel, unique for the boot.
    cookie: String,
    /// Its own address.
    local: String,
    /// Its peer's, as it sees it.
    remote: String,
    /// The process that connected or sent last.
    pid: Option<u32>,
    /// Redirected to it, and not read yet.
    unread_bytes: u64,
    /// `next_look`, `unread`, `peer_unread`, `sender`, `peer`; null where that was not looked at.
    waits_for: Option<&'static str>,
}

impl From<&Dump> for Waiting {
    fn from(socket: &Dump) -> Self {
        let sock = &socket.sock;
        Self {
            cookie: sock.cookie.to_string(),
            local: local(&sock.tuple).to_string(),
            remote: remote(&sock.tuple).to_string(),
            pid: (sock.tgid != 0).then_some(sock.tgid),
            unread_bytes: socket.unread_bytes,
            waits_for: socket.waits_for(),
        }
    }
}

/// Runs `disable`; what is not enabled is disabled already.
pub fn run(context: &Context, args: &Args) -> Result<()> {
    let drained = drain(context, args)?;
    context.output.print_json(&Disabled {
        instance: &context.place.instance,
        changed: drained.changed,
        dropped: match &drained.dropped {
            Sockets::Told(sockets) => Some(sockets.iter().map(Waiting::from).collect()),
            Sockets::Counted(_) => None,
        },
        ended: drained.ended,
    })?;
    if let Some(text) = surprise(context, args, &drained) {
        context.output.note(text);
    }
    Ok(())
}

/// What is not what the command line seems to expect.
fn surprise(context: &Context, args: &Args, drained: &Drained) -> Option<String> {
    let place = &context.place;
    let name = &place.instance;
    match (drained.was, &args.cgroup) {
        (Was::NoInstance, _) => Some(format!(
            "instance {name} is not enabled: nothing to do{}",
            enabled_line(&place.instances().unwrap_or_default())
        )),
        (Was::NoCgroup, Some(cgroup)) => {
            // It may have ended meanwhile.
            let attached = Instance::open(place).and_then(|instance| instance.attached());
            let attached = attached.unwrap_or_default();
            Some(format!(
                "cgroup {} is not enabled in instance {name}: nothing to do\n  Enabled there:  {}",
                cgroup.display(),
                Attached::list(&attached)
            ))
        }
        (_, Some(_)) if drained.ended => Some(format!(
            "That was the last cgroup of instance {name}, which is gone now: {DROPS}."
        )),
        _ => None,
    }
}

/// The same without its output.
pub fn drain(context: &Context, args: &Args) -> Result<Drained> {
    // Not root, not a cgroup: to be told also where nothing is enabled.
    let cgroup = args.cgroup.as_deref().map(Cgroup::open).transpose()?;
    let patience = Patience {
        timeout: args.timeout.unwrap_or(Duration::from_secs(5)),
        now: args.now,
    };
    let mut progress = Progress::new();
    let drained = disable(
        &context.place,
        cgroup.as_ref().map(|cgroup| cgroup.id),
        patience,
        |waiting| progress.tell(waiting),
    )?;
    progress.end();
    if drained.unseen {
        say(
            "sockaccel: pins are missing, so live connections could not be looked at: their \
             sockets stay in the table until they close",
        );
    }
    match &drained.dropped {
        Sockets::Told(all) if all.is_empty() => {}
        Sockets::Told(all) => say(format_args!(
            "sockaccel: dropped {} on {}",
            unread(all),
            number(&drained.dropped)
        )),
        Sockets::Counted(_) => say(format_args!(
            "sockaccel: dropped what was unread on {} or fewer; how much cannot be told of an \
             instance that another version of sockaccel made",
            number(&drained.dropped)
        )),
    }
    if !drained.waiting.is_empty() {
        return Err(Error::Draining(out_of_time(
            context, args, &drained, patience,
        )));
    }
    Ok(drained)
}

/// A socket on its way out, in a line.
pub fn to_line(socket: &Dump) -> String {
    let sock = &socket.sock;
    let of = match sock.tgid {
        0 => String::new(),
        pid => format!(" of process {pid}"),
    };
    let waits = match socket.waits_for() {
        Some("unread") => unread(slice::from_ref(socket)),
        Some("peer_unread") => "its peer has not read all".to_owned(),
        Some("sender") => "a send may be under way".to_owned(),
        Some("peer") => "its peer drains first".to_owned(),
        _ => "not looked at yet".to_owned(),
    };
    format!(
        "socket {} {} -> {}{of}: {waits}",
        sock.cookie,
        local(&sock.tuple),
        remote(&sock.tuple)
    )
}

fn unread(sockets: &[Dump]) -> String {
    count(sockets.iter().map(|s| s.unread_bytes).sum(), "byte") + " unread"
}

fn number(sockets: &Sockets) -> String {
    count(sockets.number() as u64, "socket")
}

/// With a comma before it, where it can be told.
fn and_unread(waiting: &Sockets) -> String {
    match waiting {
        Sockets::Told(sockets) => format!(", {}", unread(sockets)),
        Sockets::Counted(_) => String::new(),
    }
}

fn out_of_time(context: &Context, args: &Args, drained: &Drained, patience: Patience) -> String {
    let instance = context.place.option();
    let cgroup = match &args.cgroup {
        None => String::new(),
        Some(path) => format!(" --cgroup {}", path.display()),
    };
    let again = format!("sockaccel disable{instance}{cgroup}");
    let look = match &drained.waiting {
        Sockets::Told(_) => format!("To see them:  sockaccel status{instance}"),
        Sockets::Counted(_) => {
            "Another version of sockaccel made it, so what they wait for cannot be told.".to_owned()
        }
    };
    format!(
        "not drained in {:?}: {} left in instance {}{}\n  \
         {look}\n  \
         To wait on:  {again} --timeout 1m\n  \
         To lose what is unread:  {again} --now",
        patience.timeout,
        number(&drained.waiting),
        context.place.instance,
        and_unread(&drained.waiting),
    )
}

/// Says now and then what a drain waits for.
struct Progress {
    terminal: bool,
    last: Instant,
    told: bool,
}

impl Progress {
    fn new() -> Self {
        Self {
            terminal: stderr().is_terminal(),
            last: Instant::now(),
            told: false,
        }
    }

    fn tell(&mut self, waiting: &Sockets) {
        if self.last.elapsed() < if self.terminal { OFTEN } else { RARELY } {
            return;
        }
        self.last = Instant::now();
        let text = format!("draining: {} left{}", number(waiting), and_unread(waiting));
        if self.terminal {
            // Nobody may be reading it.
            let _ = write!(stderr(), "\r\x1b[K{text}");
            self.told = true;
        } else {
            say(text);
        }
    }

    fn end(&self) {
        if self.told {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}
