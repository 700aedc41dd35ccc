//! Pinning and attaching again what somebody has taken away.
//!
//! The programs that are still pinned hold all maps; so what matters, the tables
//! and the sockets in them, is there as long as one of them is.

use std::ffi::OsStr;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use libbpf_rs::skel::OpenSkel;

use super::cgroup::{self, Cgroup};
use super::instance::{
    CGROUP_PROGRAMS, Change, Instance, attach_one, attach_skmsg, cgroup_dir, open_programs,
};
use super::observer::Observer;
use super::upgrade::set_verdict;
use crate::error::{Result, on};
use crate::sys::bpf::{self, AttachType};

impl Instance {
    /// Makes the instance whole again, as far as that is possible.
    pub(super) fn repair(&self) -> Result<Change> {
        let dir = self.dir();
        let (maps, mut names) = names()?;
        let mut change = self.pin_maps_again(maps)?;
        // Of another layout it can have its own maps back, and no program of this one.
        self.refuse_other_version()?;
        // One of two.
        names.retain(|name| !name.starts_with("sa_splice"));
        names.push("link-splice".to_owned());
        names.extend(Observer::of(&dir).is_none().then(|| "sa_splice".to_owned()));
        if names.iter().any(|name| !dir.join(name).exists()) {
            self.replace_programs()?;
            change = Change::Done;
        }
        if change == Change::Done {
            // The kernel empties it when its last pin goes.
            set_verdict(&dir)?;
        }
        let unlinked = !dir.join("link-skmsg").exists();
        if unlinked {
            attach_skmsg(&dir)?;
            // Before 6.10 there is none.
            if dir.join("link-skmsg").exists() {
                change = Change::Done;
            }
        }
        for id in self.cgroups()? {
            if self.repair_cgroup(id)? == Change::Done {
                change = Change::Done;
            }
        }
        if change == Change::Done {
            self.reconcile()?;
        }
        Ok(change)
    }

    fn repair_cgroup(&self, id: u64) -> Result<Change> {
        let dir = self.dir();
        let pins = cgroup_dir(&dir, id);
        let missing: Vec<(&str, AttachType)> = CGROUP_PROGRAMS
            .into_iter()
            .filter(|(name, _)| !pins.join(name).exists())
            .collect();
        if missing.is_empty() {
            return Ok(Change::Nothing);
        }
        // A cgroup that is gone has nothing to attach to.
        let Some(path) = cgroup::path_of(id) else {
            return Ok(Change::Nothing);
        };
        let cgroup = Cgroup::open(&path)?;
        for (name, kind) in missing {
            attach_one(&dir, &cgroup, &pins, name, kind)?;
        }
        Ok(Change::Done)
    }

    /// The maps that its programs use, under their names.
    fn pin_maps_again(&self, mut missing: Vec<String>) -> Result<Change> {
        let dir = self.dir();
        missing.retain(|name| name.starts_with("sa_") && !dir.join(name).exists());
        if missing.is_empty() {
            return Ok(Change::Nothing);
        }
        for entry in fs::read_dir(&dir).map_err(on("read directory", &dir))? {
            let pin = entry.map_err(on("read directory", &dir))?.path();
            let Ok(object) = bpf::open_pinned(&pin) else {
                continue;
            };
            // Maps and links have none.
            for (name, map) in bpf::maps_of(object.as_fd()).unwrap_or_default() {
                let pin = dir.join(&name);
                if missing.contains(&name) && !pin.exists() {
                    bpf::pin(map.as_fd(), &pin).map_err(on("pin", &pin))?;
                }
            }
        }
        Ok(Change::Done)
    }
}

/// Names of the maps and of the programs that this binary brings.
fn names() -> Result<(Vec<String>, Vec<String>)> {
    let mut storage = MaybeUninit::uninit();
    let open = open_programs(&mut storage)?;
    let object = open.open_object();
    let text = |name: &OsStr| name.to_string_lossy().into_owned();
    Ok((
        object.maps().map(|map| text(map.name())).collect(),
        object.progs().map(|program| text(program.name())).collect(),
    ))
}
