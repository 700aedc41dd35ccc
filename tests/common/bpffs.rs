//! A bpffs of the test's own: no other test or instance is in it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;

use nix::mount::MntFlags;
use nix::mount::MsFlags;
use nix::mount::mount;
use nix::mount::umount2;

use super::instance::Ran;
use super::instance::sockaccel;

/// A directory for it, in another for files. On drop the instance `default` is
/// disabled, and all of it goes.
#[derive(Debug)]
pub struct Bpffs {
    dir: tempfile::TempDir,
}

impl Bpffs {
    /// Not mounted: the first `enable` or `run` does that.
    pub fn new() -> Self {
        super::require_root();
        let dir = tempfile::tempdir().expect("a temporary directory");
        // Others may look in, to see what they are told.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let this = Self { dir };
        fs::create_dir(this.path()).expect("mkdir");
        this
    }

    pub fn mount(&self, flags: MsFlags) {
        mount(Some("bpf"), &self.path(), Some("bpf"), flags, None::<&str>).expect("mount a bpffs");
    }

    /// For `--bpffs`.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("bpf")
    }

    /// Where pins are, if there are any.
    pub fn base(&self) -> PathBuf {
        self.path().join("sockaccel")
    }

    /// The directory for files of the test.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Words, as in a shell, and this bpffs.
    pub fn args(&self, words: &str) -> Vec<String> {
        let own = ["--bpffs".to_owned(), self.path().display().to_string()];
        let words = words.split_whitespace().map(str::to_owned);
        words.chain(own).collect()
    }

    /// Runs the binary with these.
    pub fn sh(&self, words: &str) -> Ran {
        sockaccel(&self.args(words))
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if self.base().exists() {
            let _ = self.sh("disable --now");
        }
        while umount2(&self.path(), MntFlags::MNT_DETACH).is_ok() {}
    }
}

/// The files and directories below.
pub fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        all.push(entry.path());
        all.extend(tree(&entry.path()));
    }
    all
}

/// The files below.
pub fn pins(dir: &Path) -> Vec<PathBuf> {
    let all = tree(dir).into_iter();
    all.filter(|path| !path.is_dir()).collect()
}
