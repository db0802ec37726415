//! One file's bytes: what processes see, and how the device differs from that.
//!
//! Only the first is kept whole. Before a clean sector is changed its bytes are saved as what the
//! device holds; a sync forgets them, a crash puts some of them back. So a sync costs nothing but
//! forgetting, a crash costs only what was not synced, and a large file of zeros costs no memory
//! until it is used.
//!
//! # Invariants
//! - A sector that is neither dirty nor doomed is on the device as it is seen; behind the end that
//!   the device knows, as zeros.
//! - `shortest <= held`; they differ when a truncation is not synced.

use super::random::SplitMix;
use std::collections::BTreeMap;

/// Bytes that a device writes whole or not at all.
pub(super) const SECTOR: usize = 512;

/// Bytes for saved sectors that a file keeps after a sync: a write-ahead log between checkpoints
/// needs some MiB again and again, and new memory costs more than what is done with it.
const IMAGES_KEPT: usize = 16 << 20;

#[derive(Debug, Clone, Default)]
pub(super) struct Contents {
    seen: Vec<u8>,
    /// Length of the file on the device.
    held: usize,
    /// The shortest that the file was since the last sync, if that is less.
    shortest: usize,
    /// A bit per sector: whether it is in `changes`.
    dirty: Vec<u64>,
    /// Dirty sectors in the order in which they became so.
    changes: Vec<Change>,
    /// What the device holds of dirty sectors, one after the other.
    images: Vec<u8>,
    /// What the device holds of sectors that a failed sync should have written. They count as
    /// clean, so no later sync writes them unless they are changed again.
    doomed: BTreeMap<usize, Option<Box<[u8]>>>,
    /// Numbers writes, to tell torn ones.
    writes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Change {
    sector: usize,
    /// The write that made it dirty.
    write: u64,
    /// Where its saved bytes start in `images`; none when the device has no such sector.
    image: Option<usize>,
}

/// What a crash does with sectors that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    LoseAll,
    KeepAll,
    /// Any subset survives.
    Subset,
    /// Those of the first writes survive, the last of them perhaps in part.
    InOrder,
}

impl Mood {
    pub(super) fn draw(random: &mut SplitMix) -> Mood {
        match random.below(4) {
            0 => Mood::LoseAll,
            1 => Mood::KeepAll,
            2 => Mood::Subset,
            _ => Mood::InOrder,
        }
    }
}

/// What a crash took from a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Loss {
    pub(super) sectors: u64,
    /// Writes of which a part survived.
    pub(super) torn: u64,
}

impl Contents {
    /// A file of zeros that the device holds like that.
    pub(super) fn zeroed(length: usize) -> Contents {
        Contents { seen: vec![0; length], held: length, shortest: length, ..Contents::default() }
    }

    /// A copy of `bytes` that the device holds like that.
    pub(super) fn synced(bytes: Vec<u8>) -> Contents {
        Contents { held: bytes.len(), shortest: bytes.len(), seen: bytes, ..Contents::default() }
    }

    pub(super) fn seen(&self) -> &[u8] {
        &self.seen
    }

    pub(super) fn len(&self) -> usize {
        self.seen.len()
    }

    /// The next [`write`](Self::write) calls are parts of one write.
    pub(super) fn begin_write(&mut self) {
        self.writes += 1;
    }

    pub(super) fn write(&mut self, bytes: &[u8], start: usize) {
        if bytes.is_empty() {
            return;
        }
        let end = start + bytes.len();
        self.mark(start, end);
        if end > self.seen.len() {
            self.seen.resize(end, 0);
        }
        self.seen[start..end].copy_from_slice(bytes);
    }

    /// Shortens the file, or lengthens it with zeros.
    pub(super) fn truncate(&mut self, length: usize) {
        let lost_on_device = self.seen.len().min(self.held);
        if length < lost_on_device {
            self.writes += 1;
            self.mark(length, lost_on_device);
            self.shortest = self.shortest.min(length);
        }
        self.seen.resize(length, 0);
    }

    /// Saves what the device holds of the clean sectors in the range, which is not empty.
    fn mark(&mut self, start: usize, end: usize) {
        let last = (end - 1) / SECTOR;
        if self.dirty.len() <= last / 64 {
            self.dirty.resize(last / 64 + 1, 0);
        }
        for sector in start / SECTOR..=last {
            let (word, bit) = (sector / 64, 1 << (sector % 64));
            if self.dirty[word] & bit != 0 {
                continue;
            }
            self.dirty[word] |= bit;
            let image = self.save(sector);
            self.changes.push(Change { sector, write: self.writes, image });
        }
    }

    fn save(&mut self, sector: usize) -> Option<usize> {
        let at = self.images.len();
        if !self.doomed.is_empty()
            && let Some(image) = self.doomed.remove(&sector)
        {
            self.images.extend_from_slice(&image?);
            return Some(at);
        }
        let start = sector * SECTOR;
        if start >= self.held {
            return None;
        }
        let end = (start + SECTOR).min(self.seen.len());
        self.images.extend_from_slice(self.seen.get(start..end).unwrap_or(&[]));
        self.images.resize(at + SECTOR, 0);
        Some(at)
    }

    /// Sectors that a crash could take.
    pub(super) fn unsynced(&self) -> u64 {
        (self.changes.len() + self.doomed.len()) as u64
    }

    /// The device takes everything. How many sectors that were.
    pub(super) fn sync(&mut self) -> u64 {
        let sectors = self.changes.len() as u64;
        self.clean();
        self.held = self.seen.len();
        self.shortest = self.held;
        sectors
    }

    /// The device takes nothing, and the kernel forgets that it should have.
    pub(super) fn sync_in_vain(&mut self) {
        for change in &self.changes {
            let image = change.image.map(|at| self.images[at..at + SECTOR].into());
            self.doomed.insert(change.sector, image);
        }
        self.clean();
    }

    fn clean(&mut self) {
        for change in &self.changes {
            self.dirty[change.sector / 64] = 0;
        }
        self.changes.clear();
        self.images.clear();
        self.images.shrink_to(IMAGES_KEPT);
    }

    /// The kernel writes some dirty sectors back on its own, as it does at any time.
    pub(super) fn write_back(&mut self, random: &mut SplitMix) {
        if self.shortest < self.held {
            return; // Lengths go through the file system's journal, which is another matter.
        }
        let (changes, images) = (std::mem::take(&mut self.changes), std::mem::take(&mut self.images));
        for change in changes {
            let start = change.sector * SECTOR;
            if random.coin() {
                self.dirty[change.sector / 64] &= !(1 << (change.sector % 64));
                self.held = self.held.max((start + SECTOR).min(self.seen.len()));
            } else {
                let image = change.image.map(|at| {
                    let now_at = self.images.len();
                    self.images.extend_from_slice(&images[at..at + SECTOR]);
                    now_at
                });
                self.changes.push(Change { image, ..change });
            }
        }
        self.shortest = self.held;
    }

    /// The power goes. From then on what is seen is what the device holds.
    pub(super) fn crash(&mut self, mood: Mood, random: &mut SplitMix) -> Loss {
        if self.changes.is_empty()
            && self.doomed.is_empty()
            && self.held == self.seen.len()
            && self.shortest == self.held
        {
            return Loss::default();
        }
        let written = self.seen.len();
        let cut = random.below(self.changes.len() as u64 + 1);
        let truncated = mood == Mood::KeepAll || (mood != Mood::LoseAll && random.coin());
        let base = if truncated { self.shortest } else { self.held };
        let mut length = if mood == Mood::KeepAll { written } else { base };
        let mut lost = Vec::new();
        let mut loss = Loss::default();
        // Of the write that is looked at: its number, whether sectors of it were kept and lost.
        let mut current = (0, false, false);
        for (position, change) in self.changes.iter().enumerate() {
            let start = change.sector * SECTOR;
            let kept = match mood {
                Mood::LoseAll => false,
                Mood::KeepAll => true,
                Mood::Subset => random.coin(),
                Mood::InOrder => (position as u64) < cut,
            };
            if current.0 != change.write {
                loss.torn += u64::from(current.1 && current.2);
                current = (change.write, false, false);
            }
            if start >= written {
                // It was cut off, so there is nothing new to keep. Whether it is cut off on the
                // device too is a matter of the length.
                lost.push(*change);
                continue;
            }
            if kept {
                current.1 = true;
                length = length.max((start + SECTOR).min(written));
            } else {
                current.2 = true;
                loss.sectors += 1;
                lost.push(*change);
            }
        }
        loss.torn += u64::from(current.1 && current.2);
        self.seen.resize(written.max(length), 0);
        for change in lost {
            let image = change.image.map(|at| &self.images[at..at + SECTOR]);
            put_back(&mut self.seen, change.sector, image, base);
        }
        for (sector, image) in std::mem::take(&mut self.doomed) {
            loss.sectors += 1;
            put_back(&mut self.seen, sector, image.as_deref(), base);
        }
        self.seen.truncate(length);
        self.sync();
        loss
    }

    /// Bits change where they lie: on the device, and so in what is seen.
    pub(super) fn flip(&mut self, offset: usize, mask: u8) -> bool {
        let Some(byte) = self.seen.get_mut(offset) else { return false };
        *byte ^= mask;
        let sector = offset / SECTOR;
        if let Some(at) = self.changes.iter().find(|change| change.sector == sector).and_then(|change| change.image) {
            self.images[at + offset % SECTOR] ^= mask;
        }
        if let Some(Some(image)) = self.doomed.get_mut(&sector) {
            image[offset % SECTOR] ^= mask;
        }
        true
    }
}

/// Gives a sector the bytes of the device, of which those from `base` on were cut off.
fn put_back(seen: &mut [u8], sector: usize, image: Option<&[u8]>, base: usize) {
    let start = sector * SECTOR;
    let end = (start + SECTOR).min(seen.len());
    if start >= end {
        return;
    }
    let valid = base.clamp(start, end);
    match image {
        Some(image) => seen[start..valid].copy_from_slice(&image[..valid - start]),
        None => seen[start..valid].fill(0),
    }
    seen[valid..end].fill(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn file(sectors: usize) -> Contents {
        Contents::synced(vec![b'.'; sectors * SECTOR])
    }

    /// What a crash may leave: the length, and the first byte of each sector.
    fn outcomes(change: impl Fn(&mut Contents), mood: Mood) -> BTreeSet<(usize, String)> {
        let after = |seed| {
            let mut file = file(3);
            change(&mut file);
            file.crash(mood, &mut SplitMix(seed));
            let first = |sector: &[u8]| if sector[0] == 0 { '0' } else { char::from(sector[0]) };
            (file.len(), file.seen().chunks(SECTOR).map(first).collect())
        };
        (0..100).map(after).collect()
    }

    fn write(file: &mut Contents, byte: u8, sectors: std::ops::Range<usize>) {
        file.begin_write();
        file.write(&vec![byte; sectors.len() * SECTOR], sectors.start * SECTOR);
    }

    #[test]
    fn in_order_what_was_written_first_survives() {
        let change = |file: &mut Contents| {
            write(file, b'a', 2..3);
            write(file, b'b', 0..2);
        };
        let left = outcomes(change, Mood::InOrder);
        assert_eq!(Vec::from_iter(left.iter().map(|(_, bytes)| &bytes[..])), ["...", "..a", "b.a", "bba"]);
        assert_eq!(outcomes(change, Mood::LoseAll).first().unwrap().1, "...");
        assert_eq!(outcomes(change, Mood::KeepAll).first().unwrap().1, "bba");
        assert_eq!(outcomes(change, Mood::Subset).len(), 8);
    }

    #[test]
    fn a_truncation_survives_or_not_and_what_is_written_after_it_too() {
        let change = |file: &mut Contents| {
            file.truncate(SECTOR);
            write(file, b'a', 2..3);
        };
        let of = |mood| Vec::from_iter(outcomes(change, mood));
        let whole = |text: &str| (text.len() * SECTOR, text.to_owned());
        assert_eq!(of(Mood::LoseAll), [whole("...")]);
        assert_eq!(of(Mood::KeepAll), [whole(".0a")]);
        let any = of(Mood::Subset);
        for left in [whole("."), whole("..."), whole(".0a"), whole("..a")] {
            assert!(any.contains(&left), "{left:?} of {any:?}");
        }
    }
}
