//! Who did what: a chain of entries in which nothing can be changed unseen.
//!
//! Each entry's hash covers the hash before it, so that whoever edits, cuts or reorders entries has
//! to change all that follow. An entry is written by the log entry of the act itself, refused or
//! not, in the same transaction, on every node alike.

use super::name::Digest;
use crate::id::LogIndex;
use crate::time::WallTime;
use serde::{Deserialize, Serialize};

/// Entries that are kept. At a hundred acts a day this is 27 years.
pub const KEPT: u64 = 1_000_000;

/// One act. The JSON of these fields, in this order, is what the hash covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// 1, 2, 3, … without a gap.
    pub seq: u64,
    /// The log entry that did it.
    pub index: LogIndex,
    pub at: WallTime,
    /// A user, a user's token, `root` on the node itself, or `anyone` where no login is asked for.
    pub who: String,
    /// An address, or `local` for the node's own socket.
    pub from: String,
    /// The operation, as `quorate role show` names what it needs.
    pub what: String,
    /// What it was done to; empty when the operation says it all.
    pub target: String,
    /// `done`, `begun`, `refused: …` or `denied: …`.
    pub outcome: String,
}

/// An entry with its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditLink {
    #[serde(flatten)]
    pub entry: AuditEntry,
    /// The hash before it.
    pub prev: Digest,
    /// SHA-256 of `prev` (32 bytes) and the entry's JSON.
    pub hash: Digest,
}

/// The end of the chain; all zeros before the first entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AuditHead {
    pub seq: u64,
    pub hash: Digest,
}

impl AuditHead {
    /// The next link; `entry.seq` is set here.
    #[must_use]
    pub fn link(self, mut entry: AuditEntry) -> AuditLink {
        entry.seq = self.seq + 1;
        AuditLink { hash: hash(self.hash, &entry), prev: self.hash, entry }
    }
}

impl AuditLink {
    #[must_use]
    pub fn head(&self) -> AuditHead {
        AuditHead { seq: self.entry.seq, hash: self.hash }
    }
}

fn hash(before: Digest, entry: &AuditEntry) -> Digest {
    let text = serde_json::to_vec(entry).expect("an entry has string keys and no failing Serialize");
    Digest::chained(before, &text)
}

/// A piece of the audit, from one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditPage {
    /// In the order of their numbers, as they are in the file: whether they hold is for [`Chain`]
    /// to say.
    pub links: Vec<AuditLink>,
    pub head: AuditHead,
}

/// Where the chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("entry {seq}: {why}")]
pub struct Broken {
    /// The first entry that does not fit.
    pub seq: u64,
    pub why: String,
}

/// Checks links in their order. Feed it all of them, then [`end`](Chain::end).
#[derive(Debug, Clone, Copy, Default)]
pub struct Chain {
    last: Option<AuditHead>,
    checked: u64,
}

impl Chain {
    /// # Errors
    /// [`Broken`] when `link` was changed or does not follow the one before.
    pub fn check(&mut self, link: &AuditLink) -> Result<(), Broken> {
        let seq = link.entry.seq;
        let broken = |why: String| Err(Broken { seq, why });
        // The first of all follows nothing; a later one may be the oldest that is kept.
        let before = self.last.unwrap_or(AuditHead { seq: seq.saturating_sub(1), hash: link.prev });
        if seq != before.seq + 1 {
            let why = format!("it is missing, or in another place: entry {seq} is where it belongs");
            return Err(Broken { seq: before.seq + 1, why });
        }
        if link.prev != before.hash || (seq == 1 && link.prev != Digest::default()) {
            return broken("it does not follow the entry before it".into());
        }
        if link.hash != hash(link.prev, &link.entry) {
            return broken("it is not what was written".into());
        }
        self.last = Some(link.head());
        self.checked += 1;
        Ok(())
    }

    /// Compares with what the cluster says is the end. `first` was the first entry that was fed.
    ///
    /// # Errors
    /// [`Broken`] when entries at either end are missing.
    pub fn end(self, first: Option<u64>, head: AuditHead) -> Result<(), Broken> {
        let oldest = head.seq.saturating_sub(KEPT) + 1;
        if head.seq > 0 && first.is_none_or(|first| first > oldest) {
            return Err(Broken { seq: oldest, why: "it is missing, and maybe others after it".into() });
        }
        let last = self.last.unwrap_or_default();
        if last != head {
            let seq = last.seq.min(head.seq) + 1;
            return Err(Broken {
                seq,
                why: format!("the chain ends with entry {} and should with {}", last.seq, head.seq),
            });
        }
        Ok(())
    }

    /// Links that held.
    #[must_use]
    pub fn checked(&self) -> u64 {
        self.checked
    }

    /// The last link that held.
    #[must_use]
    pub fn last(&self) -> AuditHead {
        self.last.unwrap_or_default()
    }
}

/// Checks a whole list.
///
/// # Errors
/// [`Broken`]: the first entry that does not fit.
pub fn verify(links: &[AuditLink], head: AuditHead) -> Result<(), Broken> {
    let mut chain = Chain::default();
    links.iter().try_for_each(|link| chain.check(link))?;
    chain.end(links.first().map(|link| link.entry.seq), head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chain(length: u64) -> (Vec<AuditLink>, AuditHead) {
        let mut head = AuditHead::default();
        let links = (0..length).map(|number| {
            let link = head.link(AuditEntry {
                seq: 0,
                index: LogIndex(number * 3 + 7),
                at: WallTime(number * 1_000),
                who: format!("user-{}", number % 3),
                from: "192.0.2.1".into(),
                what: "service-scale".into(),
                target: format!("web-{number}"),
                outcome: "done".into(),
            });
            head = link.head();
            link
        });
        let links = links.collect();
        (links, head)
    }

    #[test]
    fn an_untouched_chain_holds() {
        for length in [0, 1, 2, 50] {
            let (links, head) = chain(length);
            assert_eq!(verify(&links, head), Ok(()));
        }
    }

    #[test]
    fn the_first_edited_entry_is_named() {
        let (mut links, head) = chain(20);
        links[6].entry.who = "somebody-else".into();
        links[11].entry.outcome = "refused: no".into();
        assert_eq!(verify(&links, head).unwrap_err().seq, 7);
    }

    #[test]
    fn a_forger_who_computes_the_edited_hash_is_found_at_the_next_entry() {
        let (mut links, head) = chain(20);
        links[6].entry.who = "somebody-else".into();
        links[6].hash = hash(links[6].prev, &links[6].entry);
        assert_eq!(verify(&links, head).unwrap_err().seq, 8);
    }

    #[test]
    fn a_forger_who_rewrites_the_rest_is_found_by_the_head() {
        let (mut links, head) = chain(20);
        links.truncate(10);
        links[9].entry.who = "somebody-else".into();
        links[9].hash = hash(links[9].prev, &links[9].entry);
        assert!(verify(&links, head).is_err());
    }

    proptest! {
        #[test]
        fn what_is_cut_is_missed(length in 2u64..40, from in 0usize..40, count in 1usize..40) {
            let (mut links, head) = chain(length);
            let from = from % links.len();
            let to = (from + count).min(links.len());
            links.drain(from..to);
            prop_assert_eq!(verify(&links, head).unwrap_err().seq, from as u64 + 1);
        }

        #[test]
        fn another_order_is_noticed(length in 2u64..40, a in 0usize..40, b in 0usize..40) {
            let (mut links, head) = chain(length);
            let (a, b) = (a % links.len(), b % links.len());
            prop_assume!(a != b);
            links.swap(a, b);
            prop_assert!(verify(&links, head).is_err());
        }
    }
}
