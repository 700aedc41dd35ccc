//! What `add`, `del` and `get` have in common for every noun.

use std::fmt::Display;

use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use crate::error::{Error, Result};
use crate::maps::{Plain, Table};
use crate::state::{Change, Instance};

/// Options of every `del`.
#[derive(Debug, clap::Args)]
pub struct IfExists {
    /// Succeed when it is absent
    #[arg(long)]
    pub if_exists: bool,
}

/// What `add` and `del` did.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Changed {
    /// False when it was so before.
    changed: bool,
}

/// What `enable` and `disable` did.
#[derive(Debug, Serialize, JsonSchema)]
pub struct InstanceChanged<'a> {
    /// Its name.
    instance: &'a str,
    /// False when it was so before.
    changed: bool,
}

impl<'a> InstanceChanged<'a> {
    /// Of the instance that the command worked on.
    pub fn new(context: &'a Context, change: Change) -> Self {
        Self {
            instance: &context.place.instance,
            changed: change == Change::Done,
        }
    }
}

/// Adds an entry where `old` is what is there now: fine when `same` says so,
/// and a conflict else.
pub fn add<K: Plain, V: Plain>(
    table: &Table<K, V>,
    old: Option<V>,
    key: &K,
    value: &V,
    what: impl Display,
    same: impl FnOnce(&V) -> bool,
) -> Result<Change> {
    match old {
        Some(old) if same(&old) => Ok(Change::Nothing),
        Some(_) => Err(conflict(what)),
        None => table.set(key, value).map(|()| Change::Done),
    }
}

/// Deletes an entry.
pub fn del<K: Plain, V: Plain>(
    table: &Table<K, V>,
    key: &K,
    what: impl Display,
    options: &IfExists,
) -> Result<Change> {
    if table.remove(key)? {
        Ok(Change::Done)
    } else if options.if_exists {
        Ok(Change::Nothing)
    } else {
        Err(absent(what))
    }
}

/// There is another such entry (exit status 1).
pub fn conflict(what: impl Display) -> Error {
    Error::Failed(format!(
        "{what} is there already, with another value\n  Delete it first, then add it again."
    ))
}

/// There is no such entry (exit status 1). Its text begins with the noun of its
/// commands.
pub fn absent(what: impl Display) -> Error {
    let what = what.to_string();
    let noun = what.split(' ').next().unwrap_or_default();
    Error::Failed(format!(
        "{what} does not exist\n  To see what there is:  sockaccel {noun} list"
    ))
}

/// Whether that changed anything.
pub fn change(changed: bool) -> Change {
    if changed {
        Change::Done
    } else {
        Change::Nothing
    }
}

/// Ends a change: live directions look again, scripts learn whether it did
/// anything. Also where nothing changed or it failed: an earlier command may have
/// been killed before it came to this.
pub fn finish(context: &Context, instance: &Instance, change: Result<Change>) -> Result<()> {
    instance.bump_generation()?;
    let change = change?;
    context.output.print_json(&Changed {
        changed: change == Change::Done,
    })
}

/// Says on standard error why a list is empty.
pub fn explain_empty<T>(context: &Context, entries: &[T], noun: &str, add: &str) {
    if entries.is_empty() {
        let instance = context.place.option();
        let text = format_args!("0 {noun}. To add one:  sockaccel {add}{instance}");
        context.output.note(text);
    }
}
