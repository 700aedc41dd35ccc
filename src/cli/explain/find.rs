//! The sockets of this machine, as their processes have them open and as the
//! tables know them, put together to connections.

use std::cell::OnceCell;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};

use crate::cli::addr::{local, remote};
use crate::error::Result;
use crate::maps::layout::{Conn, Dump, Passed, ROLE_ACTIVE, Side, Sock, Tuple};
use crate::maps::{Table, sockets};
use crate::state::process::{self, OpenSocket, Walked, sockets_of, walked};
use crate::state::{Instance, cgroup, sock_diag};
use crate::sys::pidfd::{self, Process};

/// include/uapi/linux/tcp.h
const TCP_INQ: i32 = 36;
/// The default of `SO_MAX_PACING_RATE`: no limit.
const NO_PACING: u64 = u64::MAX;

/// Which connections to explain.
#[derive(Debug, Clone, Copy)]
pub enum Wanted {
    /// The one with these ends, whichever comes first.
    Ends(SocketAddr, SocketAddr),
    /// Those that this process has open.
    Pid(u32),
    /// Those with this port at either end.
    Port(u16),
}

/// One socket.
#[derive(Debug, Clone)]
pub struct End {
    /// Unique until the next boot.
    pub cookie: u64,
    /// As the socket says them, IPv4 never v4-mapped.
    pub local: SocketAddr,
    /// Likewise.
    pub remote: SocketAddr,
    netns_cookie: u64,
    /// Where it is open; `None` for those only the tables know of: not accepted
    /// yet, or of a process that cannot be seen from here.
    pub open: Option<OpenSocket>,
    /// In `sa_sockhash` now.
    pub enrolled: Option<Box<Dump>>,
    /// What its own programs noted of one that is not.
    noted: Option<Box<Sock>>,
    /// What it told its peer, where nothing is noted.
    pub side: Option<Box<Side>>,
    /// Why it was passed over when it was established, if that is still known.
    pub passed: Option<u32>,
}

/// What can be seen of a socket only where it is open.
#[derive(Debug)]
pub struct Look {
    /// `O_NONBLOCK` now.
    pub nonblocking: bool,
    /// Options that keep it on the stack.
    pub options: Vec<&'static str>,
    /// Path of the cgroup that it belongs to.
    pub cgroup: Option<String>,
}

/// Paths of cgroups by id: each takes a walk over all of them.
pub type Paths = HashMap<u64, String>;

/// Both sockets of a connection, as far as they are known; the client first where
/// that is known.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The one that was found.
    pub first: End,
    /// The one at its other end.
    pub second: Option<End>,
}

/// Everything that was found.
#[derive(Debug)]
pub struct Found {
    /// Each once.
    pub connections: Vec<Connection>,
    /// Connections beyond the limit.
    pub more: usize,
    /// Processes whose sockets may not be looked at.
    pub hidden: u64,
}

/// Finds them, at most so many.
pub fn find(instance: &Instance, wanted: Wanted, limit: usize) -> Result<Found> {
    // Before the table is read: what is enrolled meanwhile is no end at all, not one
    // that has left the table.
    let open = walked(&instance.dir()).ok_or_else(|| sockets_of(process::all()));
    let mut ends = enrolled(&instance.dir())?;
    let (holders, hidden) = match open {
        Ok(walked) => (merge_walked(instance, &mut ends, walked, wanted)?, 0),
        Err(open) => merge_open(instance, &mut ends, &open, wanted)?,
    };
    merge_tables(instance, &mut ends)?;
    let mut chosen: Vec<&End> = ends
        .values()
        .filter(|end| fits(end, wanted, &holders))
        .collect();
    // The client's side first: it begins the connection.
    chosen.sort_by_cached_key(|end| (end.role() != Some(true), end.cookie));
    let peers = Peers::new(&ends);
    let mut connections: Vec<Connection> = Vec::new();
    let mut told: HashSet<u64> = HashSet::new();
    let mut more = 0;
    for first in chosen {
        if !told.insert(first.cookie) {
            continue;
        }
        let second = peers.of(first);
        told.extend(second.map(|end| end.cookie));
        if connections.len() == limit {
            more += 1;
            continue;
        }
        let (first, second) = match second {
            Some(second) if second.role() == Some(true) => (second, Some(first)),
            _ => (first, second),
        };
        connections.push(Connection {
            first: first.clone(),
            second: second.cloned(),
        });
    }
    Ok(Found {
        connections,
        more,
        hidden,
    })
}

type Ends = HashMap<u64, End>;
/// Cookies of the sockets that the wanted process has open.
type Holders = HashSet<u64>;

/// The sockets in `sa_sockhash`.
fn enrolled(dir: &Path) -> Result<Ends> {
    let end = |dump: Dump| {
        let sock = &dump.sock;
        let known = End::known(sock.cookie, sock.netns_cookie, &sock.tuple);
        let end = End {
            enrolled: Some(Box::new(dump)),
            ..known
        };
        (end.cookie, end)
    };
    Ok(sockets::read(dir)?.into_iter().map(end).collect())
}

/// Who has these open, and every other connected TCP socket that some process has
/// open, as the walk has told.
fn merge_walked(
    instance: &Instance,
    ends: &mut Ends,
    walked: Vec<Walked>,
    wanted: Wanted,
) -> Result<Holders> {
    let records: Table<i32, Sock> = instance.table("sa_socks")?;
    let mut holders = Holders::new();
    let connected = walked
        .into_iter()
        .filter(|walked| walked.told.connected != 0);
    for Walked {
        socket,
        told,
        mut noted,
    } in connected
    {
        let end = match ends.entry(told.cookie) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(slot) => {
                // It has left the table since, or it is in another one.
                if told.mapped != 0 {
                    noted = noted_of(&socket, told.cookie, &records)?;
                }
                let known = End::known(told.cookie, told.netns_cookie, &told.tuple);
                slot.insert(End { noted, ..known })
            }
        };
        end.open.get_or_insert(socket);
        if matches!(wanted, Wanted::Pid(pid) if pid == socket.pid) {
            holders.insert(told.cookie);
        }
    }
    Ok(holders)
}

fn noted_of(
    socket: &OpenSocket,
    cookie: u64,
    records: &Table<i32, Sock>,
) -> Result<Option<Box<Sock>>> {
    let open = Process::open(socket.pid).and_then(|process| process.descriptor(socket.fd));
    let is_it = |fd: &OwnedFd| {
        pidfd::option::<u64>(fd, libc::SOL_SOCKET, libc::SO_COOKIE).is_ok_and(|own| own == cookie)
    };
    // By now the descriptor may be of anything.
    match open.ok().filter(is_it) {
        Some(fd) => noted(&fd, cookie, records),
        None => Ok(None),
    }
}

fn noted(fd: &OwnedFd, cookie: u64, records: &Table<i32, Sock>) -> Result<Option<Box<Sock>>> {
    let record = records.get(&fd.as_raw_fd())?;
    Ok(record.filter(|sock| sock.cookie == cookie).map(Box::new))
}

/// The same by /proc: who has these open, and every other connected TCP socket that some
/// process has open, in whatever network namespace: each of them is asked itself.
fn merge_open(
    instance: &Instance,
    ends: &mut Ends,
    open: &[OpenSocket],
    wanted: Wanted,
) -> Result<(Holders, u64)> {
    let records: Table<i32, Sock> = instance.table("sa_socks")?;
    let known = ends.values().filter_map(|end| end.enrolled.as_ref());
    let mut by_inode: HashMap<u64, Option<u64>> = HashMap::with_capacity(open.len());
    by_inode.extend(
        known
            .filter(|dump| dump.inode != 0)
            .map(|dump| (dump.inode.into(), Some(dump.sock.cookie))),
    );
    let mut holders = Holders::new();
    let mut hidden = 0;
    for open in open.chunk_by(|a, b| a.pid == b.pid) {
        let pid = open[0].pid;
        let Ok(process) = Process::open(pid) else {
            continue;
        };
        let mut refused = false;
        for socket in open {
            let cookie = match by_inode.entry(socket.inode) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(slot) => match process.descriptor(socket.fd) {
                    Ok(fd) => {
                        let end = ask(&fd, &records)?;
                        let cookie = end.as_ref().map(|end| end.cookie);
                        ends.extend(end.map(|end| (end.cookie, end)));
                        *slot.insert(cookie)
                    }
                    Err(e) => {
                        refused |= e.kind() == std::io::ErrorKind::PermissionDenied;
                        continue;
                    }
                },
            };
            if let Some(end) = cookie.and_then(|cookie| ends.get_mut(&cookie)) {
                end.open.get_or_insert(*socket);
                if matches!(wanted, Wanted::Pid(wanted) if wanted == pid) {
                    holders.insert(end.cookie);
                }
            }
        }
        hidden += u64::from(refused);
    }
    Ok((holders, hidden))
}

/// `None` for what is no connected TCP socket.
fn ask(fd: &OwnedFd, records: &Table<i32, Sock>) -> Result<Option<End>> {
    let number = |name| pidfd::option::<u64>(fd, libc::SOL_SOCKET, name).unwrap_or(0);
    let protocol: i32 = pidfd::option(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL).unwrap_or(0);
    if protocol != libc::IPPROTO_TCP {
        return Ok(None);
    }
    let cookie = number(libc::SO_COOKIE);
    let Some((local, remote)) = names(fd).filter(|_| cookie != 0) else {
        return Ok(None);
    };
    Ok(Some(End {
        cookie,
        local: canonical(local),
        remote: canonical(remote),
        netns_cookie: number(libc::SO_NETNS_COOKIE),
        open: None,
        enrolled: None,
        noted: noted(fd, cookie, records)?,
        side: None,
        passed: None,
    }))
}

fn names(fd: &OwnedFd) -> Option<(SocketAddr, SocketAddr)> {
    let local: SockaddrStorage = getsockname(fd.as_raw_fd()).ok()?;
    let remote: SockaddrStorage = getpeername(fd.as_raw_fd()).ok()?;
    Some((plain(&local)?, plain(&remote)?))
}

fn plain(addr: &SockaddrStorage) -> Option<SocketAddr> {
    addr.as_sockaddr_in()
        .map(|v4| SocketAddr::V4((*v4).into()))
        .or_else(|| {
            addr.as_sockaddr_in6()
                .map(|v6| SocketAddr::V6((*v6).into()))
        })
}

/// Without scope and flow, which the tables do not have.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// What the other tables know of these and of others.
fn merge_tables(instance: &Instance, ends: &mut Ends) -> Result<()> {
    if ends.values().any(|end| end.record().is_none()) {
        for (_, passed) in instance.table::<u32, Passed>("sa_passed")?.entries()? {
            if let Some(end) = ends.get_mut(&passed.cookie) {
                end.passed = Some(passed.reason);
            }
        }
    }
    for (_, conn) in instance.table::<u64, Conn>("sa_conns")?.entries()? {
        for (index, side) in conn.side.into_iter().enumerate() {
            if side.ready == 0 || side.ready != side.cookie {
                continue;
            }
            // One that has left may be gone, and only its peer goes on.
            if conn.left & (1 << index) != 0 && !ends.contains_key(&side.cookie) {
                continue;
            }
            let end = ends
                .entry(side.cookie)
                .or_insert_with(|| End::known(side.cookie, side.netns_cookie, &side.tuple));
            if end.record().is_none() {
                end.side = Some(Box::new(side));
            }
        }
    }
    Ok(())
}

fn fits(end: &End, wanted: Wanted, holders: &Holders) -> bool {
    match wanted {
        Wanted::Ends(a, b) => {
            (end.local, end.remote) == (a, b) || (end.local, end.remote) == (b, a)
        }
        Wanted::Port(port) => end.local.port() == port || end.remote.port() == port,
        Wanted::Pid(pid) => {
            holders.contains(&end.cookie)
                || (end.open.is_none() && end.record().is_some_and(|sock| sock.tgid == pid))
        }
    }
}

/// Finds the other end of each.
struct Peers<'a> {
    ends: &'a Ends,
    /// Most know their peer.
    index: OnceCell<Index>,
}

/// Cookies, by what else tells the two ends of a connection.
struct Index {
    /// The one that knows this cookie as its peer's.
    pointing: HashMap<u64, u64>,
    /// Both ends of a connection by its id.
    by_id: HashMap<u64, [u64; 2]>,
    by_names: HashMap<(SocketAddr, SocketAddr, u64), u64>,
}

impl Index {
    fn new(ends: &Ends) -> Self {
        let mut index = Self {
            pointing: HashMap::with_capacity(ends.len()),
            by_id: HashMap::with_capacity(ends.len()),
            by_names: HashMap::with_capacity(ends.len()),
        };
        for end in ends.values() {
            if let Some(sock) = end.record() {
                index.pointing.insert(sock.peer_cookie, end.cookie);
                let both = index.by_id.entry(sock.conn_id);
                both.or_insert([end.cookie; 2])[1] = end.cookie;
            }
            let names = (end.local, end.remote, end.netns_cookie);
            index.by_names.insert(names, end.cookie);
        }
        // Not known is no name.
        index.pointing.remove(&0);
        index.by_id.remove(&0);
        index
    }
}

impl<'a> Peers<'a> {
    fn new(ends: &'a Ends) -> Self {
        Self {
            ends,
            index: OnceCell::new(),
        }
    }

    /// By what the programs found; else by the tuple, where nothing translates it.
    fn of(&self, end: &End) -> Option<&'a End> {
        let told = end
            .record()
            .map(|sock| sock.peer_cookie)
            .filter(|c| *c != 0);
        if let Some(cookie) = told {
            return self.ends.get(&cookie);
        }
        let index = self.index.get_or_init(|| Index::new(self.ends));
        let is_other = |cookie: &&u64| **cookie != end.cookie;
        let same_connection = || {
            let both = index.by_id.get(&end.record()?.conn_id)?;
            both.iter().find(is_other)
        };
        let mirrored = || {
            let names = (end.remote, end.local, end.netns_cookie);
            index.by_names.get(&names).filter(is_other)
        };
        let cookie = index
            .pointing
            .get(&end.cookie)
            .or_else(same_connection)
            .or_else(mirrored)?;
        self.ends.get(cookie)
    }
}

impl End {
    /// One that only the tables know of.
    fn known(cookie: u64, netns_cookie: u64, tuple: &Tuple) -> Self {
        Self {
            cookie,
            local: local(tuple),
            remote: remote(tuple),
            netns_cookie,
            open: None,
            enrolled: None,
            noted: None,
            side: None,
            passed: None,
        }
    }

    /// What its own programs noted, if they ever saw it.
    pub fn record(&self) -> Option<&Sock> {
        let enrolled = self.enrolled.as_ref().map(|dump| &dump.sock);
        enrolled.or(self.noted.as_deref())
    }

    /// Whether it connected; `None` where that is not known.
    pub fn role(&self) -> Option<bool> {
        let role = match self.record() {
            Some(sock) => sock.role,
            None => self.side.as_ref()?.role.into(),
        };
        Some(role == ROLE_ACTIVE)
    }

    /// Both ends as the programs keep them.
    pub fn tuple(&self) -> Option<Tuple> {
        let told = || self.side.as_ref().map(|side| side.tuple);
        self.record().map(|sock| sock.tuple).or_else(told)
    }

    /// The process that has it open, or was seen using it.
    pub fn pid(&self) -> Option<u32> {
        self.open
            .map(|open| open.pid)
            .or(self.record().map(|sock| sock.tgid))
            .or(self.side.as_ref().map(|side| side.tgid))
            .filter(|pid| *pid > 0)
    }

    /// Looks at the socket itself, if some process has it open still.
    pub fn look(&self, paths: &mut Paths) -> Option<Look> {
        let open = self.open?;
        let fd = Process::open(open.pid).ok()?.descriptor(open.fd).ok()?;
        let cookie: u64 = pidfd::option(&fd, libc::SOL_SOCKET, libc::SO_COOKIE).ok()?;
        if cookie != self.cookie {
            return None;
        }
        let flags = fcntl(fd.as_fd(), FcntlArg::F_GETFL).ok()?;
        Some(Look {
            nonblocking: OFlag::from_bits_truncate(flags).contains(OFlag::O_NONBLOCK),
            options: options(&fd),
            cgroup: cgroup_path(&fd, self.cookie, paths),
        })
    }
}

/// What `sa_options()` of src/bpf/reader.h looks at, as far as it can be asked.
fn options(fd: &OwnedFd) -> Vec<&'static str> {
    let int = |level, name| pidfd::option::<i32>(fd, level, name).unwrap_or_default();
    let socket = |name| int(libc::SOL_SOCKET, name);
    let tcp = |name| int(libc::IPPROTO_TCP, name);
    let pacing = pidfd::option::<u64>(fd, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE);
    [
        ("TCP_ULP", tcp(libc::TCP_ULP) != 0),
        ("SO_RCVLOWAT", socket(libc::SO_RCVLOWAT) > 1),
        ("TCP_INQ", tcp(TCP_INQ) != 0),
        ("SO_ZEROCOPY", socket(libc::SO_ZEROCOPY) != 0),
        (
            "SO_PEEK_OFF",
            pidfd::option::<i32>(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF).is_ok_and(|at| at >= 0),
        ),
        (
            "SO_TIMESTAMP",
            socket(libc::SO_TIMESTAMP) != 0
                || socket(libc::SO_TIMESTAMPNS) != 0
                || socket(libc::SO_TIMESTAMPING) != 0,
        ),
        (
            "SO_MAX_PACING_RATE",
            pacing.is_ok_and(|rate| rate != NO_PACING && rate != u64::from(u32::MAX)),
        ),
        ("TCP_REPAIR", tcp(libc::TCP_REPAIR) > 0),
    ]
    .into_iter()
    .filter_map(|(name, set)| set.then_some(name))
    .collect()
}

fn cgroup_path(fd: &OwnedFd, cookie: u64, paths: &mut Paths) -> Option<String> {
    let (local, remote) = names(fd)?;
    let id = sock_diag::cgroup_of(pidfd::netns_of(fd).ok()?, local, remote, cookie)?;
    let find = || match cgroup::path_of(id) {
        Some(path) => path.display().to_string(),
        None => format!("id {id} (removed)"),
    };
    Some(paths.entry(id).or_insert_with(find).clone())
}
