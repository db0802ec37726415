//! What SQLite's connections to one file share: file locks, and the memory of a write-ahead log.
//!
//! Both belong to the living processes of a machine. After a crash new connections start with a
//! new [`Sharing`]; connections of before keep the old one, so memory that they still point to
//! stays valid, and nothing that they release is anybody's.
//!
//! # Invariants
//! - At most one connection holds more than SHARED; `top` says what.
//! - A slot of the shared memory is held by readers or by one connection, never by both.
//!
//! # Sources
//! "File Locking And Concurrency In SQLite Version 3" and "WAL-mode File Format" (sqlite.org),
//! and what `os_unix.c` does between connections of one process.

use rusqlite::ffi;
use std::ffi::c_int;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Slots of the shared memory that can be locked.
const SLOTS: usize = ffi::SQLITE_SHM_NLOCK as usize;

#[derive(Debug, Default)]
pub(super) struct Sharing(Mutex<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Connections that hold SHARED or more.
    sharers: u32,
    /// What one of them holds beyond SHARED, or `SQLITE_LOCK_NONE`.
    top: c_int,
    /// Connections that use the shared memory.
    mapped: u32,
    regions: Vec<Arc<[AtomicU64]>>,
    /// Per slot how many connections hold it SHARED.
    readers: [u32; SLOTS],
    /// A bit per slot that is held EXCLUSIVE.
    exclusive: u16,
}

/// What one connection holds.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// A level of SQLite's, from `SQLITE_LOCK_NONE` to `SQLITE_LOCK_EXCLUSIVE`.
    pub(super) level: c_int,
    mapped: bool,
    readers: u16,
    exclusive: u16,
}

impl Sharing {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises a connection's file lock; false when others are in the way. It may then be left with
    /// PENDING, which keeps new readers out until it tries again or lets go.
    pub(super) fn raise(&self, held: &mut Held, level: c_int) -> bool {
        if held.level >= level {
            return true;
        }
        let mut shared = self.lock();
        match level {
            ffi::SQLITE_LOCK_SHARED => {
                if shared.top >= ffi::SQLITE_LOCK_PENDING {
                    return false;
                }
                shared.sharers += 1;
            }
            ffi::SQLITE_LOCK_RESERVED => {
                if shared.top != ffi::SQLITE_LOCK_NONE {
                    return false;
                }
                shared.top = ffi::SQLITE_LOCK_RESERVED;
            }
            _ => {
                if held.level >= ffi::SQLITE_LOCK_RESERVED {
                    held.level = ffi::SQLITE_LOCK_PENDING;
                    shared.top = ffi::SQLITE_LOCK_PENDING;
                } else if shared.top != ffi::SQLITE_LOCK_NONE {
                    return false;
                }
                if shared.sharers > 1 {
                    return false;
                }
                shared.top = ffi::SQLITE_LOCK_EXCLUSIVE;
            }
        }
        held.level = level;
        true
    }

    /// Lowers a connection's file lock to SHARED or NONE.
    pub(super) fn lower(&self, held: &mut Held, level: c_int) {
        if held.level <= level {
            return;
        }
        let mut shared = self.lock();
        if held.level > ffi::SQLITE_LOCK_SHARED {
            shared.top = ffi::SQLITE_LOCK_NONE;
        }
        if level == ffi::SQLITE_LOCK_NONE {
            shared.sharers -= 1;
        }
        held.level = level;
    }

    /// Whether any connection holds RESERVED or more.
    pub(super) fn reserved(&self) -> bool {
        self.lock().top > ffi::SQLITE_LOCK_SHARED
    }

    /// A region of the shared memory, made with all before it when `extend` says so.
    pub(super) fn map(&self, held: &mut Held, region: usize, bytes: usize, extend: bool) -> Option<Arc<[AtomicU64]>> {
        let mut shared = self.lock();
        if !held.mapped {
            held.mapped = true;
            shared.mapped += 1;
        }
        while extend && shared.regions.len() <= region {
            let words = bytes.div_ceil(size_of::<AtomicU64>());
            shared.regions.push((0..words).map(|_| AtomicU64::new(0)).collect());
        }
        shared.regions.get(region).cloned()
    }

    /// Takes slots of the shared memory; false when others are in the way.
    pub(super) fn take(&self, held: &mut Held, slots: std::ops::Range<usize>, exclusive: bool) -> bool {
        let mask = mask(&slots);
        if !exclusive && held.readers & mask != 0 {
            return true;
        }
        let mut shared = self.lock();
        if shared.exclusive & mask != 0 || (exclusive && shared.readers[slots.clone()].iter().any(|&count| count > 0)) {
            return false;
        }
        if exclusive {
            shared.exclusive |= mask;
            held.exclusive |= mask;
        } else {
            shared.readers[slots].iter_mut().for_each(|count| *count += 1);
            held.readers |= mask;
        }
        true
    }

    /// Gives back those of the slots that the connection holds.
    pub(super) fn give_back(&self, held: &mut Held, slots: std::ops::Range<usize>) {
        let mask = mask(&slots);
        let mut shared = self.lock();
        shared.exclusive &= !(held.exclusive & mask);
        for slot in slots {
            shared.readers[slot] -= u32::from(held.readers >> slot & 1);
        }
        held.exclusive &= !mask;
        held.readers &= !mask;
    }

    /// The connection uses the shared memory no longer. After the last one it is gone: the next
    /// one finds zeros and reads the write-ahead log again.
    pub(super) fn unmap(&self, held: &mut Held) {
        self.give_back(held, 0..SLOTS);
        if std::mem::take(&mut held.mapped) {
            let mut shared = self.lock();
            shared.mapped -= 1;
            if shared.mapped == 0 {
                shared.regions.clear();
            }
        }
    }
}

fn mask(slots: &std::ops::Range<usize>) -> u16 {
    slots.clone().fold(0, |mask, slot| mask | 1 << slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_held_by_readers_or_by_one() {
        let sharing = Sharing::default();
        let (mut a, mut b) = (Held::default(), Held::default());
        assert!(sharing.take(&mut a, 3..4, false) && sharing.take(&mut b, 3..4, false));
        assert!(!sharing.take(&mut b, 2..5, true), "a reader is among them");
        sharing.give_back(&mut a, 3..4);
        sharing.give_back(&mut b, 3..4);
        assert!(sharing.take(&mut b, 2..5, true));
        assert!(!sharing.take(&mut a, 4..5, false) && !sharing.take(&mut a, 4..5, true));
        assert!(sharing.take(&mut a, 5..6, true));
        sharing.unmap(&mut b);
        assert!(sharing.take(&mut a, 2..5, true), "who leaves gives everything back");
    }

    #[test]
    fn shared_memory_is_one_until_the_last_has_left() {
        let sharing = Sharing::default();
        let (mut a, mut b) = (Held::default(), Held::default());
        assert!(sharing.map(&mut a, 1, 32_768, false).is_none(), "it is not there and not to be made");
        let region = sharing.map(&mut a, 1, 32_768, true).expect("it was made");
        assert_eq!(region.len() * 8, 32_768);
        region[0].store(7, std::sync::atomic::Ordering::Relaxed);
        let same = sharing.map(&mut b, 1, 32_768, false).expect("it is there");
        assert_eq!(same.as_ptr(), region.as_ptr());
        sharing.unmap(&mut a);
        assert!(sharing.map(&mut b, 1, 32_768, false).is_some());
        sharing.unmap(&mut b);
        assert!(sharing.map(&mut a, 1, 32_768, false).is_none(), "the next one begins anew");
    }
}
