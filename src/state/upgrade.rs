//! Replacing the programs of a running instance. The maps stay, and with them
//! every socket, counter and rule; programs of both versions may run side by side
//! for a moment.
//!
//! Each step leaves an instance that works. One that did not come to its end has
//! no build in its configuration, and is gone through again.

use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use libbpf_rs::skel::{OpenSkel, Skel};
use libbpf_rs::{MapCore, MapFlags};

use super::dir::{Place, remove_tree};
use super::drain::{draining_dir, run_program};
use super::instance::{
    CGROUP_PROGRAMS, Change, Instance, attach_observer, attach_skmsg, cgroup_dir, load_observer,
    open_map, open_pin, open_programs, pin_maps, pin_programs, reuse_maps,
};
use super::observer::Observer;
use crate::doctor::privileges;
use crate::error::{Error, Result, on};
use crate::remedy::anew;
use crate::sys::bpf::{self, AttachType};

/// Of the programs that this binary brings.
pub fn build() -> u64 {
    // Written by build.rs, in decimal.
    env!("SOCKACCEL_BUILD").parse().unwrap_or(1)
}

/// Replaces the programs by those of this binary; nothing if they are the same,
/// unless `again`.
pub fn upgrade(place: &Place, again: bool) -> Result<Change> {
    let (instance, repaired) = Instance::open_to_repair(place)?;
    if instance.config()?.build == build() && !again {
        return Ok(repaired);
    }
    instance.replace_programs()?;
    Ok(Change::Done)
}

impl Instance {
    /// Everything but the maps, as if it had just been made.
    pub(super) fn replace_programs(&self) -> Result<()> {
        privileges::to_replace()?;
        let dir = self.dir();
        let fresh = dir.join("_programs");
        // Where there is none, the new programs would bring an empty one.
        self.config()?;
        fs::create_dir(&fresh).map_err(on("create", &fresh))?;
        if let Err(error) = load(&dir, &fresh, &self.place().option()) {
            let _ = remove_tree(&fresh);
            return Err(error);
        }
        self.change_config(|config| config.build = 0)?;
        for entry in fs::read_dir(&fresh).map_err(on("read directory", &fresh))? {
            let pin = entry.map_err(on("read directory", &fresh))?.path();
            let Some(name) = pin.file_name() else {
                continue;
            };
            fs::rename(&pin, dir.join(name)).map_err(on("rename", &pin))?;
        }
        remove_tree(&fresh)?;
        set_verdict(&dir)?;
        self.relink_skmsg()?;
        for id in self.cgroups()? {
            relink(&dir, &cgroup_dir(&dir, id))?;
        }
        for id in self.draining()? {
            relink(&dir, &draining_dir(self, id))?;
        }
        self.reconcile()?;
        self.change_config(|config| config.build = build())
    }

    /// Sockets enrolled from now on run this `sa_skmsg`.
    pub(super) fn relink_skmsg(&self) -> Result<()> {
        let dir = self.dir();
        let pin = dir.join("link-skmsg");
        if !pin.exists() {
            return attach_skmsg(&dir);
        }
        let program = open_pin(&dir.join("sa_skmsg"))?;
        match bpf::link_update(open_pin(&pin)?.as_fd(), program.as_fd()) {
            // Somebody has detached it.
            Err(e) if e.raw_os_error() == Some(nix::libc::ENOLINK) => {
                fs::remove_file(&pin).map_err(on("remove", &pin))?;
                attach_skmsg(&dir)
            }
            updated => updated.map_err(on("update link", &pin)),
        }
    }
}

/// Loads the programs over the maps of `dir`, and pins them and a new link of the
/// observer below `fresh`. A map that `dir` lacks is pinned there. `option` names the
/// instance in messages.
fn load(dir: &Path, fresh: &Path, option: &str) -> Result<()> {
    let mut storage = MaybeUninit::uninit();
    let mut open = open_programs(&mut storage)?;
    let observer = Observer::of(dir).unwrap_or_else(Observer::choose);
    load_observer(&mut open, observer);
    reuse_maps(open.open_object_mut(), dir)?;
    let mut skeleton = open.load().map_err(|e| {
        Error::bpf("load", "the BPF programs over the maps there are", &e).hint(format!(
            "The instance goes on as it was. To change over:  {}",
            anew(option)
        ))
    })?;
    pin_maps(skeleton.object_mut(), dir)?;
    pin_programs(skeleton.object_mut(), fresh)?;
    attach_observer(&mut skeleton, observer, fresh)
}

/// From here on every enrolled socket runs the `sa_verdict` that is pinned.
pub(super) fn set_verdict(dir: &Path) -> Result<()> {
    let program = open_pin(&dir.join("sa_verdict"))?;
    let fd = program.as_raw_fd();
    open_map(dir, "sa_programs")?
        .update(&0_u32.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY)
        .map_err(|e| Error::bpf("write to map", "sa_programs", &e))
}

/// Lets the links of a cgroup run the programs that are pinned; `reconcile` does
/// so for `sa_sockops`, of which there are two.
fn relink(dir: &Path, pins: &Path) -> Result<()> {
    for (name, kind) in CGROUP_PROGRAMS {
        let pin = pins.join(name);
        // One that is missing is made again by repair().
        if kind != AttachType::CgroupSockOps && pin.exists() {
            run_program(dir, &pin, name)?;
        }
    }
    Ok(())
}
