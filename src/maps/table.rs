//! A pinned hash or trie with typed keys and values, and errors that name it.

use std::marker::PhantomData;
use std::path::Path;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::error::{Error, Result};
use crate::sys;

/// One of the maps of an instance.
#[derive(Debug)]
pub struct Table<K, V> {
    name: &'static str,
    map: MapHandle,
    types: PhantomData<(K, V)>,
}

/// What a key or a value must be: plain bytes both ways.
pub trait Plain: FromBytes + IntoBytes + Immutable + KnownLayout + Copy {}
impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Copy> Plain for T {}

impl<K: Plain, V: Plain> Table<K, V> {
    /// Opens the map pinned as `name` in the instance's directory.
    pub fn open(dir: &Path, name: &'static str) -> Result<Self> {
        let map = super::open(dir, name)?;
        Self::check(&map, name)?;
        Ok(Self {
            name,
            map,
            types: PhantomData,
        })
    }

    /// Another version's map would be misread, not refused, by the kernel.
    fn check(map: &MapHandle, name: &str) -> Result<()> {
        if map.key_size() as usize == size_of::<K>() && map.value_size() as usize == size_of::<V>()
        {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "map {name} has another layout than this version of sockaccel\n  Drain and enable again:  sockaccel disable"
        )))
    }

    /// The value of a key; for tries that of the longest prefix.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        let found = self
            .map
            .lookup(key.as_bytes(), MapFlags::ANY)
            .map_err(|e| Error::bpf("look up in map", self.name, &e))?;
        Ok(found.and_then(|bytes| V::read_from_bytes(&bytes).ok()))
    }

    /// Adds or replaces.
    pub fn set(&self, key: &K, value: &V) -> Result<()> {
        self.map
            .update(key.as_bytes(), value.as_bytes(), MapFlags::ANY)
            .map_err(|e| {
                Error::bpf("write to map", self.name, &e).hint(format!(
                    "The map holds {} entries at most.",
                    self.map.max_entries()
                ))
            })
    }

    /// Deletes; false when the key was absent.
    pub fn remove(&self, key: &K) -> Result<bool> {
        match self.map.delete(key.as_bytes()) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == libbpf_rs::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::bpf("delete from map", self.name, &e)),
        }
    }

    /// Every entry. One that is added or deleted meanwhile may be missing.
    pub fn entries(&self) -> Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        sys::bpf::for_each_batch(&self.map, |keys, values| {
            let values = values.chunks(size_of::<V>());
            for (key, value) in keys.chunks(size_of::<K>()).zip(values) {
                entries.extend(
                    K::read_from_bytes(key)
                        .ok()
                        .zip(V::read_from_bytes(value).ok()),
                );
            }
        })
        .map_err(|e| Error::os("walk map", self.name, e))?;
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use libbpf_rs::{MapType, libbpf_sys};

    use super::*;

    fn table(kind: MapType, max: u32) -> Table<u32, u64> {
        assert!(nix::unistd::geteuid().is_root(), "run this test as root");
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
            ..Default::default()
        };
        let map = MapHandle::create(kind, Some("sa_test"), 4, 8, max, &options).expect("a map");
        Table {
            name: "sa_test",
            map,
            types: PhantomData,
        }
    }

    #[test]
    fn root_every_entry_is_there_once() {
        for (kind, max, filled) in [
            (MapType::Hash, 20_000, 0),
            (MapType::Hash, 20_000, 20_000),
            // One bucket for all.
            (MapType::Hash, 1, 1),
            (MapType::Array, 1, 1),
            (MapType::Array, 8192, 8192),
            (MapType::Array, 10_000, 10_000),
        ] {
            let table = table(kind, max);
            let all: Vec<(u32, u64)> = (0..filled).map(|n| (n, u64::from(n) << 32)).collect();
            for (key, value) in &all {
                table.set(key, value).expect("room");
            }
            let mut entries = table.entries().expect("a walk");
            entries.sort_unstable();
            assert_eq!(entries, all, "{kind:?} of {max}");
        }
    }

    #[test]
    fn root_what_others_delete_meanwhile_makes_no_entry_come_twice() {
        const ALL: u32 = 2000;
        let table = table(MapType::Hash, ALL);
        for key in 0..ALL {
            table.set(&key, &0).expect("room");
        }
        let over = AtomicBool::new(false);
        let mut twice = 0;
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for key in 0..ALL {
                        table.remove(&key).expect("it is a hash");
                        table.set(&key, &1).expect("room");
                    }
                }
            });
            for _ in 0..100 {
                let entries = table.entries().expect("a walk");
                let keys: BTreeSet<u32> = entries.iter().map(|(key, _)| *key).collect();
                twice += entries.len() - keys.len();
            }
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(twice, 0);
    }
}
