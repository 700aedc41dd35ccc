//! A pinned hash or trie with typed keys and values, and errors that name it.

use std::marker::PhantomData;
use std::os::fd::AsFd;
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
        let map = MapHandle::from_pinned_path(dir.join(name))
            .map_err(|e| Error::bpf("open map", dir.join(name).display().to_string(), &e))?;
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

    /// Every entry. An entry deleted meanwhile may be missing, none is twice:
    /// the walk ends where the kernel would start over.
    pub fn entries(&self) -> Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        let mut at: Option<Vec<u8>> = None;
        let limit = self.map.max_entries() as usize;
        loop {
            let next = sys::bpf::next_key(self.map.as_fd(), at.as_deref(), size_of::<K>())
                .map_err(|e| Error::os("walk map", self.name, e))?;
            let Some(bytes) = next else {
                return Ok(entries);
            };
            if let Ok(key) = K::read_from_bytes(&bytes)
                && let Some(value) = self.get(&key)?
            {
                entries.push((key, value));
            }
            if entries.len() >= limit {
                return Ok(entries);
            }
            at = Some(bytes);
        }
    }

    /// The map itself.
    pub fn map(&self) -> &MapHandle {
        &self.map
    }
}
