//! Enrolling connections that are older than the instance.
//!
//! The walks are in `src/bpf/adopt.bpf.c`. The first tells which sockets there
//! are, the last two enrol; in between, here, the two ends of each connection find
//! each other. Nothing is changed before every process and both sockets were looked
//! at.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, OpenObject};
use nix::libc;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::dir::Place;
use super::instance::{Instance, reuse_maps};
use super::netns::within;
use crate::doctor::privileges;
use crate::error::{Error, Result, on};
use crate::maps::layout::{self, Adoption, Candidate, ROLE_ACTIVE, ROLE_PASSIVE};
use crate::maps::sockets;
use crate::outcome::{REASONS, index};
use crate::sys::bpf;
use crate::sys::child;
use crate::sys::pidfd::{self, Process};
use crate::sys::skel::adopt as skel;

/// What became of the connections that were there.
#[derive(Debug, Default)]
pub struct Adopted {
    /// The client's socket and the server's of each that is enrolled now, or would be.
    pub connections: Vec<[Candidate; 2]>,
    /// Sockets that stay as they are, and the value of [`REASONS`] why.
    pub left: Vec<(Candidate, u32)>,
    /// Network namespaces, other than this one, that could not be looked at.
    pub hidden: usize,
}

/// Enrols the connections of the enabled cgroups that were established before
/// their cgroup was enabled; with `dry_run` only says which.
pub fn adopt(place: &Place, dry_run: bool) -> Result<Adopted> {
    let instance = Instance::open_to_write(place)?;
    privileges::to_adopt()?;
    let mut storage = MaybeUninit::uninit();
    let adoption = Adoptions(load(&instance, &mut storage, dry_run)?);
    let adopted = look_and_enrol(&instance, &adoption, dry_run);
    if adopted.is_err() {
        // A walk may be under way still, and this lock is free from here on.
        adoption.call_off()?;
    }
    adopted
}

fn look_and_enrol(instance: &Instance, adoption: &Adoptions<'_>, dry_run: bool) -> Result<Adopted> {
    let progs = &adoption.0.progs;
    let (namespaces, hidden) = namespaces_of(&progs.sa_adopt_places)?;

    let (mut pairs, mut left) = meet(&scan(&progs.sa_adopt_scan, &namespaces)?);
    // Some will turn out not to be fit; of more than that the rest waits.
    let looked_at = pairs
        .len()
        .min((instance.max_sockets()?.saturating_mul(LOOK) / 2) as usize);
    no_room(pairs.split_off(looked_at), &mut left);
    if pairs.is_empty() {
        return Ok(Adopted {
            connections: pairs,
            left,
            hidden,
        });
    }
    for pair in &pairs {
        adoption.begin(pair)?;
    }
    walk(&progs.sa_adopt_owners, &None)?;
    walk_all(&progs.sa_adopt_judge, &namespaces)?;
    let mut connections = adoption.sort(pairs, &mut left, |judged| judged.st.cookie != 0)?;
    let enrolled = sockets::read(&instance.dir())?.len();
    let room = (instance.max_sockets()? as usize).saturating_sub(enrolled);
    let rest = connections.split_off(connections.len().min(room / 2));
    adoption.forget(&rest);
    no_room(rest, &mut left);
    if !dry_run {
        walk_all(&progs.sa_adopt_active, &namespaces)?;
        walk_all(&progs.sa_adopt_passive, &namespaces)?;
        connections = adoption.sort(connections, &mut left, |done| done.st.enrolled != 0)?;
    }
    Ok(Adopted {
        connections,
        left,
        hidden,
    })
}

/// How many times as many sockets as can be enrolled are looked at at most.
const LOOK: u32 = 4;

/// They can be adopted another time: nothing is noted of them.
fn no_room(pairs: Vec<Pair>, left: &mut Left) {
    left.extend(pairs.into_iter().flatten().map(|end| (end, MAP_FULL)));
}

/// The client's socket and the server's.
type Pair = [Candidate; 2];
/// Sockets, and the value of [`REASONS`] why they are left.
type Left = Vec<(Candidate, u32)>;

const NO_LOCAL_PEER: u32 = index(REASONS, "no_local_peer");
const AMBIGUOUS: u32 = index(REASONS, "ambiguous");
const MAP_FULL: u32 = index(REASONS, "map_full");
const PEER_NOT_ELIGIBLE: u32 = index(REASONS, "peer_not_eligible");

/// Finds the two ends of each connection, by the sequence numbers that only they
/// share. Those of whom more than one could be an end are left.
fn meet(candidates: &[Candidate]) -> (Vec<Pair>, Left) {
    let mut accepted: HashMap<(u32, u32), Vec<usize>> = HashMap::new();
    for (index, candidate) in candidates.iter().enumerate() {
        let begins = (candidate.sent, candidate.received);
        accepted.entry(begins).or_default().push(index);
    }
    let mut peers: Vec<Vec<usize>> = vec![Vec::new(); candidates.len()];
    let mut found = Vec::new();
    for (client, candidate) in candidates.iter().enumerate() {
        let begins = (candidate.received, candidate.sent.wrapping_add(1));
        for &server in accepted.get(&begins).into_iter().flatten() {
            peers[client].push(server);
            peers[server].push(client);
            found.push([client, server]);
        }
    }
    let mut left = Left::new();
    for (candidate, peers_of) in candidates.iter().zip(&peers) {
        match (peers_of.as_slice(), candidate.judged) {
            ([], 0) => left.push((*candidate, NO_LOCAL_PEER)),
            ([one], 0) if peers[*one].len() == 1 => {}
            (_, 0) => left.push((*candidate, AMBIGUOUS)),
            (_, judged) => left.push((*candidate, judged)),
        }
    }
    found.retain(|ends| ends.iter().all(|end| peers[*end].len() == 1));
    let (fit, unfit): (Vec<Pair>, Vec<Pair>) = found
        .into_iter()
        .map(|ends| ends.map(|end| candidates[end]))
        .partition(|pair| pair.iter().all(|end| end.judged == 0));
    for end in unfit.into_iter().flatten().filter(|end| end.judged == 0) {
        left.push((end, PEER_NOT_ELIGIBLE));
    }
    (fit, left)
}

/// What the walks note of each socket.
struct Adoptions<'obj>(skel::AdoptSkel<'obj>);

impl Adoptions<'_> {
    /// Asks the walks to look at the two.
    fn begin(&self, [client, server]: &Pair) -> Result<()> {
        for (socket, role) in [(client, ROLE_ACTIVE), (server, ROLE_PASSIVE)] {
            let mut adoption = Adoption::new_zeroed();
            adoption.st.role = role;
            // As sa_conn_id(): the smaller number first.
            let (a, b) = (client.received, server.received);
            adoption.st.conn_id = u64::from(a.min(b)) << 32 | u64::from(a.max(b));
            self.map()
                .update(
                    &socket.cookie.to_ne_bytes(),
                    adoption.as_bytes(),
                    MapFlags::ANY,
                )
                .map_err(|e| Error::bpf("write to map", "sa_adoptions", &e))?;
        }
        Ok(())
    }

    /// No walk does anything any more, also one that does not come to its end.
    fn call_off(&self) -> Result<()> {
        let keys: Vec<Vec<u8>> = self.map().keys().collect();
        for key in keys {
            let _ = self.map().delete(&key);
        }
        // What it is doing at this moment it does while the lock is held.
        bpf::grace_period().map_err(|e| Error::os("wait for", "the BPF programs of adopt", e))
    }

    /// No walk looks at them any more. Where one is not there, none can.
    fn forget(&self, pairs: &[Pair]) {
        for socket in pairs.iter().flatten() {
            let _ = self.map().delete(&socket.cookie.to_ne_bytes());
        }
    }

    fn map(&self) -> &impl MapCore {
        &self.0.maps.sa_adoptions
    }

    fn get(&self, socket: &Candidate) -> Result<Adoption> {
        let bytes = self
            .map()
            .lookup(&socket.cookie.to_ne_bytes(), MapFlags::ANY)
            .map_err(|e| Error::bpf("look up in map", "sa_adoptions", &e))?
            .unwrap_or_default();
        Ok(Adoption::read_from_bytes(&bytes).unwrap_or_else(|_| Adoption::new_zeroed()))
    }

    /// The pairs of which both ends got `through`. The others are left, and no walk
    /// looks at them any more.
    fn sort(
        &self,
        pairs: Vec<Pair>,
        left: &mut Left,
        through: impl Fn(&Adoption) -> bool,
    ) -> Result<Vec<Pair>> {
        let mut fit = Vec::new();
        for pair in pairs {
            let mut why = [None; 2];
            for (why, socket) in why.iter_mut().zip(&pair) {
                *why = why_left(&self.get(socket)?, &through)?;
            }
            if why == [None; 2] {
                fit.push(pair);
                continue;
            }
            self.forget(&[pair]);
            for (socket, why) in pair.into_iter().zip(why) {
                left.push((socket, why.unwrap_or(PEER_NOT_ELIGIBLE)));
            }
        }
        Ok(fit)
    }
}

/// Why a socket is left, if it is.
fn why_left(adoption: &Adoption, through: impl Fn(&Adoption) -> bool) -> Result<Option<u32>> {
    match (adoption.error, adoption.reason) {
        (0, 0) if through(adoption) => Ok(None),
        // It was closed meanwhile.
        (0, 0) => Ok(Some(NO_LOCAL_PEER)),
        (0, reason) => Ok(Some(reason)),
        (error, _) => Err(no_callbacks(error)),
    }
}

/// Nothing was changed: the first socket was asked before it was enrolled.
fn no_callbacks(error: i32) -> Error {
    let error = io::Error::from_raw_os_error(error.saturating_neg());
    Error::Refused(format!(
        "the kernel does not let connections that exist already be watched ({error})\n  \
         It needs bpf_setsockopt(TCP_BPF_SOCK_OPS_CB_FLAGS), of Linux 6.12. New connections are accelerated without it."
    ))
}

/// Loads the walks over the maps of the instance; with `dry_run` none that enrols.
fn load<'obj>(
    instance: &Instance,
    storage: &'obj mut MaybeUninit<OpenObject>,
    dry_run: bool,
) -> Result<skel::AdoptSkel<'obj>> {
    let mut open = skel::AdoptSkelBuilder::default()
        .open(storage)
        .map_err(|e| Error::bpf("open", "the BPF programs of adopt", &e))?;
    if !dry_run && let Some(constants) = open.maps.rodata_data.as_deref_mut() {
        constants.sa_woken = symbol("woken_wake_function");
    }
    reuse_maps(open.open_object_mut(), &instance.dir())?;
    open.maps
        .sa_adoptions
        .set_max_entries(instance.max_sockets()?.saturating_mul(LOOK))
        .map_err(|e| Error::bpf("size map", "sa_adoptions", &e))?;
    open.progs.sa_adopt_active.set_autoload(!dry_run);
    open.progs.sa_adopt_passive.set_autoload(!dry_run);
    open.load()
        .map_err(|e| Error::bpf("load", "the BPF programs of adopt", &e))
}

/// The address of a function of the kernel, 0 where it does not show it.
fn symbol(name: &str) -> u64 {
    let address = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next()?;
        (words.nth(1) == Some(name)).then(|| u64::from_str_radix(address, 16).unwrap_or(0))
    };
    let symbols = File::open("/proc/kallsyms").map(BufReader::new);
    symbols.map_or(0, |symbols| {
        let mut lines = symbols.lines().map_while(io::Result::ok);
        lines.find_map(|line| address(&line)).unwrap_or(0)
    })
}

/// A network namespace; `None` is our own, which takes no privileges to be in.
type Netns = Option<File>;

/// Our own, and those of connected sockets of the enabled cgroups; how many of these
/// it takes more privileges to be in.
fn namespaces_of(program: &impl AsFd) -> Result<(Vec<Netns>, usize)> {
    let own = Path::new("/proc/self/ns/net");
    let own = fs::metadata(own)
        .map_err(on("look at network namespace", own))?
        .ino();
    let mut found = BTreeMap::from([(own, None)]);
    let mut cookies: HashSet<u64> = own_netns_cookie().into_iter().collect();
    let mut hidden = HashSet::new();
    for place in records::<layout::Place>(&walk(program, &None)?) {
        if cookies.contains(&place.netns_cookie) {
            continue;
        }
        match netns_of(place) {
            Ok(netns) => {
                let metadata = netns.metadata();
                let inode = metadata.map_err(|e| Error::os("look at", "a network namespace", e))?;
                found.entry(inode.ino()).or_insert(Some(netns));
                cookies.insert(place.netns_cookie);
            }
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                hidden.insert(place.netns_cookie);
            }
            // It has closed.
            Err(_) => {}
        }
    }
    Ok((
        found.into_values().collect(),
        hidden.difference(&cookies).count(),
    ))
}

fn own_netns_cookie() -> io::Result<u64> {
    let socket = UnixDatagram::unbound()?;
    pidfd::option(&socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE)
}

fn netns_of(place: layout::Place) -> io::Result<File> {
    let fd = i32::try_from(place.fd).map_err(io::Error::other)?;
    let socket = Process::open(place.tgid)?.descriptor(fd)?;
    let netns = File::from(pidfd::netns_of(&socket)?);
    // To have it is not yet to be allowed in.
    within(&netns, || Ok(()))?;
    Ok(netns)
}

/// What a walk wrote.
fn records<T: FromBytes>(bytes: &[u8]) -> impl Iterator<Item = T> {
    let records = bytes.chunks_exact(size_of::<T>());
    records.filter_map(|record| T::read_from_bytes(record).ok())
}

fn scan(program: &impl AsFd, namespaces: &[Netns]) -> Result<Vec<Candidate>> {
    let mut candidates = Vec::new();
    let mut seen = HashSet::new();
    for netns in namespaces {
        let bytes = walk(program, netns)?;
        // A walk may come by a socket twice.
        candidates.extend(records(&bytes).filter(|end: &Candidate| seen.insert(end.cookie)));
    }
    Ok(candidates)
}

fn walk_all(program: &impl AsFd, namespaces: &[Netns]) -> Result<()> {
    namespaces
        .iter()
        .try_for_each(|netns| walk(program, netns).map(drop))
}

/// Runs a program for every socket of the namespace, or for every file that a
/// process has open; what it wrote.
fn walk(program: &impl AsFd, netns: &Netns) -> Result<Vec<u8>> {
    let program = program.as_fd();
    let start = || bpf::iterate(program);
    match netns {
        None => start(),
        Some(netns) => within(netns, start),
    }
    .and_then(|iterator| child::read_within(iterator, PATIENCE))
    .map_err(|e| Error::os("walk over", "the sockets of this machine", e))?
    .ok_or_else(stuck)
}

/// The kernel waits for the lock of each socket; that is a matter of microseconds,
/// unless its owner is kept in the middle of a send(2) or recv(2).
const PATIENCE: Duration = Duration::from_secs(20);

fn stuck() -> Error {
    Error::Failed(format!(
        "a walk over the sockets gave no answer in {} s: a process is stopped, or kept in the middle of a send or recv by memory that does not answer (FUSE, NFS, userfaultfd), with its socket locked, or this machine has no time\n  \
         Connections that were not adopted stay on the stack. When that process goes on or has ended, adopt again.",
        PATIENCE.as_secs()
    ))
}

/// The bytes as what each walk wrote.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) -> Adopted {
    let places = records::<layout::Place>(bytes).count();
    assert_eq!(places, bytes.len() / size_of::<layout::Place>());
    for adoption in records::<Adoption>(bytes) {
        let _ = why_left(&adoption, |judged| judged.st.cookie != 0);
    }
    let candidates: Vec<Candidate> = records(bytes).collect();
    let (connections, left) = meet(&candidates);
    assert_eq!(2 * connections.len() + left.len(), candidates.len());
    Adopted {
        connections,
        left,
        hidden: 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::outcome::name;

    fn candidate(cookie: u64, sent: u32, received: u32, judged: u32) -> Candidate {
        Candidate {
            cookie,
            sent,
            received,
            judged,
            ..Candidate::new_zeroed()
        }
    }

    /// As the two ends of a connection show themselves, the client's first.
    fn ends(cookie: u64, client: u32, server: u32) -> [Candidate; 2] {
        let (client_next, server_next) = (client.wrapping_add(1), server.wrapping_add(1));
        [
            candidate(cookie, client, server_next, 0),
            candidate(cookie + 1, server_next, client_next, 0),
        ]
    }

    fn cookies(pairs: &[Pair]) -> Vec<[u64; 2]> {
        pairs
            .iter()
            .map(|pair| pair.map(|end| end.cookie))
            .collect()
    }

    proptest! {
        #[test]
        fn two_ends_find_each_other_whatever_their_numbers(
            client: u32, server: u32, turned: bool
        ) {
            let mut both = ends(1, client, server);
            if turned {
                both.reverse();
            }
            let (pairs, left) = meet(&both);
            // Numbers that follow each other could be the other way round as well.
            if client.wrapping_add(1) != server && server.wrapping_add(1) != client {
                prop_assert_eq!(cookies(&pairs), vec![[1, 2]]);
                prop_assert!(left.is_empty());
            }
        }
    }

    #[test]
    fn numbers_wrap() {
        for (client, server) in [(u32::MAX, 7), (7, u32::MAX), (u32::MAX - 1, u32::MAX)] {
            let (pairs, _) = meet(&ends(1, client, server));
            assert_eq!(cookies(&pairs), [[1, 2]], "{client} {server}");
        }
    }

    #[test]
    fn who_is_left_and_why() {
        let names = |left: &Left| -> Vec<(u64, &str)> {
            left.iter()
                .map(|(end, why)| (end.cookie, name(REASONS, *why)))
                .collect()
        };
        let [client, server] = ends(1, 1000, 2000);
        let twin = Candidate {
            cookie: 3,
            ..server
        };
        let (pairs, left) = meet(&[client, server, twin]);
        assert!(pairs.is_empty());
        assert_eq!(
            names(&left),
            [(1, "ambiguous"), (2, "ambiguous"), (3, "ambiguous")]
        );

        let (pairs, left) = meet(&[client]);
        assert!(pairs.is_empty());
        assert_eq!(names(&left), [(1, "no_local_peer")]);

        let stream = index(REASONS, "stream");
        let judged = Candidate {
            judged: stream,
            ..server
        };
        let (pairs, left) = meet(&[client, judged]);
        assert!(pairs.is_empty());
        assert_eq!(names(&left), [(2, "stream"), (1, "peer_not_eligible")]);
    }
}
