//! Pinning and attaching again what somebody has taken away.
//!
//! The programs that are still pinned hold all maps; so what matters, the tables
//! and the sockets in them, is there as long as one of them is.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use libbpf_rs::skel::OpenSkel;

use super::cgroup::{self, Cgroup};
use super::drain::is_attached;
use super::instance::{CGROUP_PROGRAMS, Change, Instance, attach_one, open_programs};
use super::observer::Observer;
use super::upgrade::{build, set_verdict};
use crate::error::{Result, on};
use crate::sys::bpf::{self, AttachType};

/// Its name and where it is attached.
type Link = (&'static str, AttachType);

impl Instance {
    /// Makes the instance whole again, as far as that is possible.
    pub(super) fn repair(&self) -> Result<Change> {
        let dir = self.dir();
        let (maps, programs) = names()?;
        let mut change = self.pin_maps_again(maps)?;
        // Of another layout it can have its own maps back, and no program of this one.
        self.refuse_other_version()?;
        if self
            .names_of_one_observer(programs)
            .any(|name| !dir.join(name).exists())
        {
            self.replace_programs()?;
            change = Change::Done;
        }
        // Also after a repair that was killed. The kernel empties the first when its
        // last pin goes, and others can detach the second.
        set_verdict(&dir)?;
        let linked = dir.join("link-skmsg").exists();
        self.relink_skmsg()?;
        // Before 6.10 there is none.
        if !linked && dir.join("link-skmsg").exists() {
            change = Change::Done;
        }
        for (id, pins) in self.pins_of_all()? {
            change = change.and(self.repair_cgroup(id, &pins)?);
        }
        self.reconcile()?;
        Ok(change)
    }

    /// What somebody has unpinned or detached, as paths in its directory. Of what all
    /// sockets run (`link-skmsg`) only [`Self::repair`] knows whether it has to be there.
    pub fn missing(&self) -> Result<Vec<String>> {
        if self.config()?.build != build() {
            // Another version has others.
            return Ok(Vec::new());
        }
        let dir = self.dir();
        let (maps, programs) = names()?;
        let maps = maps.into_iter().filter(|name| name.starts_with("sa_"));
        let mut missing: Vec<String> = maps
            .chain(self.names_of_one_observer(programs))
            .filter(|name| !dir.join(name).exists())
            .collect();
        for (id, pins) in self.pins_of_all()? {
            let name = pins
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let links = missing_links(id, &pins)?
                .into_iter()
                .flat_map(|found| found.1);
            missing.extend(links.map(|(link, _)| format!("{name}/{link}")));
        }
        Ok(missing)
    }

    /// Of the two forms of the observer one is loaded.
    fn names_of_one_observer(
        &self,
        mut programs: Vec<String>,
    ) -> impl Iterator<Item = String> + use<> {
        programs.retain(|name| !name.starts_with("sa_splice"));
        programs.push("link-splice".to_owned());
        let none = Observer::of(&self.dir()).is_none();
        programs.extend(none.then(|| "sa_splice".to_owned()));
        programs.into_iter()
    }

    fn pins_of_all(&self) -> Result<Vec<(u64, PathBuf)>> {
        Ok([self.pins_of_enabled()?, self.pins_of_draining()?].concat())
    }

    fn repair_cgroup(&self, id: u64, pins: &Path) -> Result<Change> {
        let Some((path, missing)) = missing_links(id, pins)? else {
            return Ok(Change::Nothing);
        };
        let cgroup = Cgroup::open(&path)?;
        for (name, kind) in missing {
            let pin = pins.join(name);
            match fs::remove_file(&pin) {
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                removed => removed.map_err(on("remove", &pin))?,
            }
            attach_one(&self.dir(), &cgroup, pins, name, kind)?;
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

/// Those of its links that are not attached, and the path of the cgroup to attach them to;
/// `None` where all are, or it is gone.
fn missing_links(id: u64, pins: &Path) -> Result<Option<(PathBuf, Vec<Link>)>> {
    let mut missing = Vec::new();
    for link in CGROUP_PROGRAMS {
        if !is_attached(&pins.join(link.0))? {
            missing.push(link);
        }
    }
    if missing.is_empty() {
        return Ok(None);
    }
    Ok(cgroup::path_of(id).map(|path| (path, missing)))
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
