//! `top`: the live connections on a terminal.
//!
//! What is shown is plain state ([`model`]), drawn by [`view`]; only this file
//! knows the terminal.

pub mod model;
pub mod processes;
pub mod view;

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};

use crate::cli::live::{Live, Woken};
use crate::error::{Error, Result};
use crate::maps::{Stats, sockets};
use crate::remedy::Remedies;
use crate::state::{Instance, Place};
use model::{Flow, Model};
use processes::Processes;
use view::View;

/// How `top` begins.
#[derive(Debug)]
pub struct Options {
    /// Time from one reading of the sockets to the next.
    pub interval: Duration,
    /// The order of the connections.
    pub sort: model::Sort,
    /// Only connections with this text in their line.
    pub filter: String,
    /// Whether to use colours.
    pub color: bool,
}

/// SIGHUP too: where the terminal is gone nobody misses it, where it is not it
/// must be restored.
const ENDS: &[Signal] = &[
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGWINCH,
];

/// Runs until a key or a signal ends it.
pub fn run(place: &Place, options: Options) -> Result<()> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(Error::Usage(
            "top needs a terminal\n  \
             In a script:  sockaccel dump sockhash --json, sockaccel stats --watch --json"
                .to_owned(),
        ));
    }
    let remedies = Remedies::of(&Instance::open(place)?)?;
    let mut view = View::new(options.color, remedies);
    let mut processes = Processes::default();
    let mut model = Model::new(&place.instance, options.sort, options.filter);
    // First, so that what fails is said on an untouched terminal.
    refresh(place, &mut model)?;
    let live = Live::new(ENDS)?;
    let mut screen = Screen::enter()?;
    let mut next = Instant::now() + options.interval;
    loop {
        screen
            .0
            .draw(|frame| view.draw(frame, &mut model, &mut processes))
            .map_err(terminal_failed)?;
        match live.wait(next, Some(io::stdin().as_fd()))? {
            Woken::End => return Ok(()),
            Woken::Input => {
                if keys(&mut model)? == Flow::Quit {
                    return Ok(());
                }
            }
            Woken::Time => {
                if !model.paused() {
                    refresh(place, &mut model)?;
                }
                next = (next + options.interval).max(Instant::now());
            }
        }
    }
}

fn refresh(place: &Place, model: &mut Model) -> Result<()> {
    let instance = Instance::open(place)?;
    let dir = instance.dir();
    let counters = Stats::told(&dir)?;
    model.update(sockets::read(&dir)?, counters, Instant::now());
    Ok(())
}

/// All that were pressed so far; none where the terminal only changed its size.
fn keys(model: &mut Model) -> Result<Flow> {
    while event::poll(Duration::ZERO).map_err(terminal_failed)? {
        if let Event::Key(key) = event::read().map_err(terminal_failed)?
            && key.is_press()
            && model.press(key) == Flow::Quit
        {
            return Ok(Flow::Quit);
        }
    }
    Ok(Flow::Stay)
}

fn terminal_failed(error: io::Error) -> Error {
    Error::os("use", "the terminal", error)
}

/// The terminal in raw mode on its other screen, until this is dropped; the hook
/// that comes with it restores it before a panic is told.
struct Screen(DefaultTerminal);

impl Screen {
    fn enter() -> Result<Self> {
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self(terminal)),
            Err(error) => {
                ratatui::restore();
                Err(terminal_failed(error))
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.0.show_cursor();
        ratatui::restore();
    }
}

#[cfg(test)]
mod tests;
