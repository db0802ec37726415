//! Sealed datagrams: what gossip says is read and said by members alone.
//!
//! ```text
//! version 1 │ key id 4 │ sender 16 │ epoch 8 │ counter 8 │ ciphertext │ tag 16
//! ```
//! All numbers are big endian. The cluster's gossip key never seals anything itself: each process of
//! a node seals with a key of its own, HKDF-SHA256 of the cluster's key, the sender and its epoch, so
//! that a counter is nonce enough for AES-256-GCM and nodes need not agree on nonces. The header and
//! the receiver's id are authenticated too: a datagram for one node says nothing to another, and
//! nothing to its sender.
//!
//! A datagram that does not open is counted and dropped. It gets no answer, so nobody learns whether a
//! node is here, and nobody can use one to send something to somebody else.
//!
//! Keys are replaced one by one: *install* the new one everywhere (it opens), *use* it everywhere (it
//! seals), *remove* the old one everywhere. A node that was expelled knows only keys that are gone.
//!
//! # Invariants
//! - No two datagrams are sealed with the same key and nonce: an epoch is used by one process once,
//!   and its counter only grows.
//! - Of one epoch, each counter opens at most once; one more than [`window::WIDTH`] behind the newest
//!   does not open at all.
//! - What is remembered is bounded: [`EPOCHS`] streams of each sender, and only of senders that have
//!   shown that they have a key.
//!
//! What this does not keep out: a datagram that was recorded before this process started, that it did
//! not receive in this life, and that is sent to it again. It opens once. Gossip has to bear that: its
//! words carry generations and incarnations, and the newest wins.
//!
//! # Sources
//! RFC 5869 (HKDF), RFC 6479 (window of counters), HashiCorp's memberlist (key ring with install, use
//! and remove).

mod window;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use quorate_model::id::NodeId;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use window::Window;

/// First byte of every datagram.
const VERSION: u8 = 1;
const HEADER: usize = 1 + 4 + 16 + 8 + 8;
const TAG: usize = 16;
/// Bytes that a datagram is longer than what it says.
pub const OVERHEAD: usize = HEADER + TAG;
/// Streams (a key and an epoch) that are remembered of each sender: while keys are replaced a process
/// has two, and it may have been started again meanwhile.
pub const EPOCHS: usize = 4;
/// Keys that are alive at once: the one in use and the one before or after it.
const KEYS_MAX: usize = 2;
/// Makes these keys differ from any other that may once be derived from the cluster's.
const SALT: &[u8] = b"quorate gossip 1";
/// The same for rings that are derived for another purpose.
const PURPOSES: &[u8] = b"quorate purpose 1";

/// Names a key in every datagram. Numbers are not used again: each key's is larger than the last one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId(pub u32);

/// A gossip key of the cluster: 256 random bits.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    pub id: KeyId,
    pub secret: [u8; 32],
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({}, secret)", self.id.0)
    }
}

/// The keys that open datagrams; the first of them seals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRing {
    /// One or two.
    keys: Vec<Key>,
}

/// Why a ring of keys stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    #[error("two gossip keys are installed; remove the old one first")]
    Full,
    #[error("gossip key {} is installed with another secret", .0.0)]
    OtherSecret(KeyId),
    #[error("gossip key {} is not installed", .0.0)]
    Unknown(KeyId),
    #[error("gossip key {} is in use; use another one first", .0.0)]
    InUse(KeyId),
}

/// Why a text is no ring of keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadRing {
    #[error("line {line} is no gossip key: write its number, a space and 64 hexadecimal digits")]
    Line { line: usize },
    #[error("there is no gossip key in it")]
    Empty,
    #[error("these keys do not go together")]
    Ring(#[from] RingError),
}

impl KeyRing {
    #[must_use]
    pub fn new(key: Key) -> KeyRing {
        KeyRing { keys: vec![key] }
    }

    /// Reads what [`to_text`](Self::to_text) wrote. Empty lines and lines that begin with `#` say nothing.
    ///
    /// # Errors
    /// [`BadRing`] names the line. Secrets are not in it.
    pub fn from_text(text: &str) -> Result<KeyRing, BadRing> {
        let mut ring: Option<KeyRing> = None;
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = read_key(line).ok_or(BadRing::Line { line: number })?;
            match &mut ring {
                None => ring = Some(KeyRing::new(key)),
                Some(ring) => ring.install(key)?,
            }
        }
        ring.ok_or(BadRing::Empty)
    }

    /// One line a key, the one in use first. It holds the secrets: for a file that only its owner reads.
    #[must_use]
    pub fn to_text(&self) -> String {
        let hex = |secret: &[u8; 32]| secret.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        self.keys.iter().map(|key| format!("{} {}\n", key.id.0, hex(&key.secret))).collect()
    }

    /// Other keys with the same numbers, for what members say to each other beside gossip. Keys for different
    /// purposes open nothing of each other, and nobody gets from them to these.
    #[must_use]
    pub fn derived(&self, purpose: &[u8]) -> KeyRing {
        let derived = |key: &Key| {
            let master = Salt::new(HKDF_SHA256, PURPOSES).extract(&key.secret);
            let mut secret = [0; 32];
            let bytes = master.expand(&[purpose], HKDF_SHA256).and_then(|bytes| bytes.fill(&mut secret));
            bytes.expect("HKDF gives as many bytes as its hash has");
            Key { id: key.id, secret }
        };
        KeyRing { keys: self.keys.iter().map(derived).collect() }
    }

    /// The key that seals.
    #[must_use]
    pub fn in_use(&self) -> KeyId {
        self.keys[0].id
    }

    /// Ids of all keys that open, the one in use first.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.keys.iter().map(|key| key.id)
    }

    /// Lets datagrams under `key` be opened. Installing a key twice changes nothing.
    ///
    /// # Errors
    /// [`RingError::Full`] and [`RingError::OtherSecret`]; nothing has changed then.
    pub fn install(&mut self, key: Key) -> Result<(), RingError> {
        match self.keys.iter().find(|known| known.id == key.id) {
            Some(known) if *known == key => Ok(()),
            Some(_) => Err(RingError::OtherSecret(key.id)),
            None if self.keys.len() == KEYS_MAX => Err(RingError::Full),
            None => {
                self.keys.push(key);
                Ok(())
            }
        }
    }

    /// Seals with that key from now on.
    ///
    /// # Errors
    /// [`RingError::Unknown`]; nothing has changed then.
    pub fn make_use_of(&mut self, id: KeyId) -> Result<(), RingError> {
        let position = self.keys.iter().position(|key| key.id == id).ok_or(RingError::Unknown(id))?;
        self.keys.swap(0, position);
        Ok(())
    }

    /// Nothing under that key opens any more. Removing one that is not there changes nothing.
    ///
    /// # Errors
    /// [`RingError::InUse`]; nothing has changed then.
    pub fn remove(&mut self, id: KeyId) -> Result<(), RingError> {
        if self.in_use() == id {
            return Err(RingError::InUse(id));
        }
        self.keys.retain(|key| key.id != id);
        Ok(())
    }

    /// The newest key, in use or not.
    #[must_use]
    pub fn newest(&self) -> KeyId {
        self.newest_key().id
    }

    /// Takes over what another member has, so that all of them end with the same keys, in whatever
    /// order they speak: a newer key is installed in place of the oldest, and used if the other one
    /// uses it. Of two keys with one number, made by two leaders, the smaller secret stays. Returns
    /// whether anything has changed.
    pub fn learn(&mut self, theirs: &KeyRing) -> bool {
        let (mine, other) = (self.newest_key().clone(), theirs.newest_key().clone());
        let in_use = theirs.in_use() == other.id;
        match other.id.cmp(&mine.id) {
            Ordering::Less => false,
            Ordering::Greater if in_use => {
                self.keys = vec![other, mine];
                true
            }
            Ordering::Greater => {
                self.keys = vec![mine, other];
                true
            }
            Ordering::Equal if other.secret < mine.secret => {
                self.keys.iter_mut().filter(|key| key.id == other.id).for_each(|key| *key = other.clone());
                true
            }
            Ordering::Equal if other.secret == mine.secret && in_use && self.in_use() != mine.id => {
                self.make_use_of(mine.id).is_ok()
            }
            Ordering::Equal => false,
        }
    }

    fn newest_key(&self) -> &Key {
        self.keys.iter().max_by_key(|key| key.id).expect("a ring holds a key")
    }

    fn get(&self, id: KeyId) -> Option<&Key> {
        self.keys.iter().find(|key| key.id == id)
    }
}

fn read_key(line: &str) -> Option<Key> {
    let (id, hex) = line.split_once(' ')?;
    let hex = hex.trim().as_bytes();
    if hex.len() != 64 || !hex.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut secret = [0; 32];
    for (byte, digits) in secret.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(Key { id: KeyId(id.parse().ok()?), secret })
}

/// Why a datagram says nothing. It is dropped without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    #[error("too short for a sealed datagram")]
    Short,
    #[error("sealed in another version")]
    Version,
    #[error("sealed with a key that is not installed")]
    UnknownKey,
    #[error("it names this node as its sender")]
    FromMyself,
    #[error("it was not sealed by a member for this node")]
    Forged,
    #[error("it was here before, or is too old to tell")]
    Replayed,
}

/// What a datagram says, and who says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    pub from: NodeId,
    pub payload: Vec<u8>,
}

/// Seals what one process of a node says and opens what it hears.
#[derive(Debug)]
pub struct Seal {
    me: NodeId,
    epoch: u64,
    counter: u64,
    ring: KeyRing,
    mine: LessSafeKey,
    streams: BTreeMap<NodeId, Vec<Stream>>,
    rejected: BTreeMap<Rejected, u64>,
}

/// What one process of a sender seals with one of the cluster's keys.
#[derive(Debug)]
struct Stream {
    key_id: KeyId,
    epoch: u64,
    key: LessSafeKey,
    window: Window,
}

impl Seal {
    /// `epoch` differs from process to process of this node: 64 random bits, drawn at its start.
    #[must_use]
    pub fn new(me: NodeId, epoch: u64, ring: KeyRing) -> Seal {
        let mine = derive(&ring.keys[0], me, epoch);
        Seal { me, epoch, counter: 0, ring, mine, streams: BTreeMap::new(), rejected: BTreeMap::new() }
    }

    /// Puts other keys in force; counters go on.
    pub fn set_ring(&mut self, ring: KeyRing) {
        self.mine = derive(&ring.keys[0], self.me, self.epoch);
        self.ring = ring;
        for streams in self.streams.values_mut() {
            streams.retain(|stream| self.ring.get(stream.key_id).is_some());
        }
    }

    #[must_use]
    pub fn ring(&self) -> &KeyRing {
        &self.ring
    }

    /// How many datagrams said nothing since the start, by reason.
    #[must_use]
    pub fn rejected(&self) -> &BTreeMap<Rejected, u64> {
        &self.rejected
    }

    /// A datagram that says `payload` to `to` and to nobody else.
    #[must_use]
    pub fn seal(&mut self, to: NodeId, payload: &[u8]) -> Vec<u8> {
        self.counter += 1;
        let mut datagram = Vec::with_capacity(payload.len() + OVERHEAD);
        datagram.push(VERSION);
        datagram.extend(self.ring.in_use().0.to_be_bytes());
        datagram.extend(self.me.0.as_bytes());
        datagram.extend(self.epoch.to_be_bytes());
        datagram.extend(self.counter.to_be_bytes());
        let aad = aad(&datagram, to);
        datagram.extend_from_slice(payload);
        let tag = self
            .mine
            .seal_in_place_separate_tag(nonce(self.counter), Aad::from(aad), &mut datagram[HEADER..])
            .expect("a datagram is shorter than what AES-GCM can seal at once");
        datagram.extend_from_slice(tag.as_ref());
        datagram
    }

    /// What a datagram says to this node.
    ///
    /// # Errors
    /// [`Rejected`], which is also counted. Nothing is to be answered.
    pub fn open(&mut self, datagram: &[u8]) -> Result<Opened, Rejected> {
        self.try_open(datagram).inspect_err(|why| *self.rejected.entry(*why).or_default() += 1)
    }

    fn try_open(&mut self, datagram: &[u8]) -> Result<Opened, Rejected> {
        if datagram.first().is_some_and(|version| *version != VERSION) {
            return Err(Rejected::Version);
        }
        let (header, sealed) = datagram.split_at_checked(HEADER).ok_or(Rejected::Short)?;
        if sealed.len() < TAG {
            return Err(Rejected::Short);
        }
        let key_id = KeyId(u32::from_be_bytes(array(&header[1..5])));
        let from = NodeId::from_u128(u128::from_be_bytes(array(&header[5..21])));
        let epoch = u64::from_be_bytes(array(&header[21..29]));
        let counter = u64::from_be_bytes(array(&header[29..37]));
        let key = self.ring.get(key_id).ok_or(Rejected::UnknownKey)?;
        if from == self.me {
            return Err(Rejected::FromMyself);
        }
        let known = self.streams.get(&from).map_or(&[][..], Vec::as_slice);
        let known = known.iter().position(|stream| stream.key_id == key_id && stream.epoch == epoch);
        let aad = aad(header, self.me);
        match known {
            Some(position) => {
                let streams = self.streams.get_mut(&from).expect("it was just found");
                let stream = &mut streams[position];
                // The window is asked first: a flood of old datagrams shall not cost a decryption each.
                if !stream.window.would_take(counter) {
                    return Err(Rejected::Replayed);
                }
                let payload = decrypt(&stream.key, counter, aad, sealed)?;
                stream.window.take(counter);
                // The stream that was heard last stays longest.
                streams[position..].rotate_left(1);
                Ok(Opened { from, payload })
            }
            None => {
                let key = derive(key, from, epoch);
                let payload = decrypt(&key, counter, aad, sealed)?;
                let mut window = Window::default();
                window.take(counter);
                let streams = self.streams.entry(from).or_default();
                if streams.len() == EPOCHS {
                    streams.remove(0);
                }
                streams.push(Stream { key_id, epoch, key, window });
                Ok(Opened { from, payload })
            }
        }
    }

    /// Forgets what is remembered of a node that is of the cluster no more.
    pub fn forget(&mut self, node: NodeId) {
        self.streams.remove(&node);
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the header's fields have these lengths")
}

/// All that is authenticated beside the ciphertext.
fn aad(header: &[u8], to: NodeId) -> [u8; HEADER + 16] {
    let mut aad = [0; HEADER + 16];
    aad[..HEADER].copy_from_slice(header);
    aad[HEADER..].copy_from_slice(to.0.as_bytes());
    aad
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn derive(key: &Key, sender: NodeId, epoch: u64) -> LessSafeKey {
    let master = Salt::new(HKDF_SHA256, SALT).extract(&key.secret);
    let info: [&[u8]; 2] = [sender.0.as_bytes(), &epoch.to_be_bytes()];
    let derived = master.expand(&info, &AES_256_GCM).expect("HKDF gives as many bytes as a key has");
    LessSafeKey::new(UnboundKey::from(derived))
}

fn decrypt(key: &LessSafeKey, counter: u64, aad: [u8; HEADER + 16], sealed: &[u8]) -> Result<Vec<u8>, Rejected> {
    let mut buffer = sealed.to_vec();
    let opened = key.open_in_place(nonce(counter), Aad::from(aad), &mut buffer);
    let length = opened.map_err(|Unspecified| Rejected::Forged)?.len();
    buffer.truncate(length);
    Ok(buffer)
}

#[cfg(test)]
mod tests;
