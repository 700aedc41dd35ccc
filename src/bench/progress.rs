//! How far it is, on a terminal; nothing elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::plan::{Cell, Plan};

/// The bar. Gone with its owner.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    /// Steps up to the end of each cell.
    ends: Vec<u64>,
}

impl Progress {
    /// On standard error, if that is a terminal.
    pub fn new(plan: &Plan, rounds: u32) -> Self {
        let mut steps = 0;
        let ends: Vec<u64> = plan
            .cells
            .iter()
            .map(|cell| {
                steps += plan.modes_of(cell).len() as u64 * u64::from(rounds);
                steps
            })
            .collect();
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
        if let Ok(style) =
            ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed}, {eta} left  {msg}")
        {
            bar.set_style(style);
        }
        Self { bar, ends }
    }

    /// This cell is measured now.
    pub fn begin(&self, cell: &Cell) {
        self.bar.set_message(cell.to_string());
    }

    /// One measurement is done.
    pub fn step(&self) {
        self.bar.inc(1);
    }

    /// So many cells are done, all of their measurements or not.
    pub fn end(&self, cells: usize) {
        if let Some(&steps) = cells.checked_sub(1).and_then(|last| self.ends.get(last)) {
            self.bar.set_position(steps);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
