//! What members send each other, byte by byte, and what foca tells while it sends and receives.
//!
//! ```text
//! frame     flags 1 │ notice, if flag 1 │ message
//! notice    identity 26 │ incarnation 2            "you are suspected", for the receiver
//! message   header │ count 2 │ members │ broadcasts (length 2, then that many bytes)
//! header    source 26 │ its incarnation 2 │ destination 26 │ kind 1 │ probe 1, third identity 26: by kind
//! member    identity 26 │ incarnation 2 │ state 1
//! identity  node 16 │ generation 8 │ renewal 2
//! broadcast 1 │ node 16 │ generation 8             "it has left"
//! ```
//! All numbers are big endian. Addresses are not in it: they are decided with the node's record, or are
//! where its datagrams come from, so they need not travel with every rumor.
//!
//! foca writes every change that it makes to a member, in order to tell others. [`Codec`] notes what it
//! writes; that is how suspicions are learnt of, for which foca has no notification.

use bytes::{Buf, BufMut};
use foca::{BroadcastHandler, Header, Incarnation, Invalidates, Member, Message, State};
use quorate_model::id::NodeId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const IDENTITY: usize = 16 + 8 + 2;
const MEMBER: usize = IDENTITY + 2 + 1;
const NOTICE: usize = IDENTITY + 2;
const FLAG_NOTICE: u8 = 1;
const BROADCAST_LEFT: u8 = 1;
/// What a frame adds to a message at most.
pub(super) const FRAME_MAX: usize = 1 + NOTICE;

/// One life of a node, as gossip tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) node: NodeId,
    /// The consensus' count of the node's starts. Only [`super::Input::Generation`] changes it.
    pub(super) generation: u64,
    /// How often the node had to take a new identity because others had declared this one dead.
    pub(super) renewal: u16,
}

impl Identity {
    pub(super) fn age(self) -> (u64, u16) {
        (self.generation, self.renewal)
    }

    fn write(self, mut out: impl BufMut) {
        out.put_u128(self.node.0.as_u128());
        out.put_u64(self.generation);
        out.put_u16(self.renewal);
    }

    fn read(mut from: impl Buf) -> Result<Identity, Truncated> {
        Ok(Identity {
            node: NodeId::from_u128(from.try_get_u128().map_err(|_| Truncated)?),
            generation: from.try_get_u64().map_err(|_| Truncated)?,
            renewal: from.try_get_u16().map_err(|_| Truncated)?,
        })
    }
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Identity> {
        Some(Identity { renewal: self.renewal.checked_add(1)?, ..*self })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, other: &Identity) -> bool {
        self.age() > other.age()
    }
}

/// The bytes are not what members send, or there is no room for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a message of gossip")]
pub(super) struct Truncated;

/// "You are suspected": sent to the suspect itself, which alone can say that it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) suspect: Identity,
    pub(super) incarnation: Incarnation,
}

pub(super) fn write_frame(notice: Option<Notice>, message: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_MAX + message.len());
    match notice {
        None => frame.push(0),
        Some(notice) => {
            frame.push(FLAG_NOTICE);
            notice.suspect.write(&mut frame);
            frame.put_u16(notice.incarnation);
        }
    }
    frame.extend_from_slice(message);
    frame
}

pub(super) fn read_frame(mut frame: &[u8]) -> Result<(Option<Notice>, &[u8]), Truncated> {
    match frame.try_get_u8().map_err(|_| Truncated)? {
        0 => Ok((None, frame)),
        FLAG_NOTICE => {
            let suspect = Identity::read(&mut frame)?;
            let incarnation = frame.try_get_u16().map_err(|_| Truncated)?;
            Ok((Some(Notice { suspect, incarnation }), frame))
        }
        _ => Err(Truncated),
    }
}

/// Who says the message.
pub(super) fn source(message: &[u8]) -> Result<Identity, Truncated> {
    Identity::read(message)
}

/// Whether the message asks for the answer of `target` to this node's probe.
pub(super) fn is_probe(message: &[u8], target: Identity, number: u8) -> bool {
    match read_header(message) {
        Ok(Header { dst, message: Message::Ping(probe), .. }) => dst == target && probe == number,
        Ok(Header { message: Message::PingReq { target: third, probe_number }, .. }) => {
            third == target && probe_number == number
        }
        _ => false,
    }
}

/// A message without members; `broadcast` is added to it.
pub(super) fn write_message(header: &Header<Identity>, broadcast: Option<&[u8]>) -> Vec<u8> {
    let mut message = Vec::new();
    write_header(header, &mut message);
    match header.message {
        Message::Announce | Message::TurnUndead | Message::Broadcast => {}
        _ => message.put_u16(0),
    }
    if let Some(broadcast) = broadcast {
        message.put_u16(u16::try_from(broadcast.len()).expect("broadcasts are a few bytes"));
        message.extend_from_slice(broadcast);
    }
    message
}

pub(super) fn write_left(node: NodeId, generation: u64) -> Vec<u8> {
    let mut bytes = vec![BROADCAST_LEFT];
    bytes.put_u128(node.0.as_u128());
    bytes.put_u64(generation);
    bytes
}

fn write_header(header: &Header<Identity>, mut out: impl BufMut) {
    header.src.write(&mut out);
    out.put_u16(header.src_incarnation);
    header.dst.write(&mut out);
    let (kind, probe, third) = match &header.message {
        Message::Ping(probe) => (0, Some(*probe), None),
        Message::Ack(probe) => (1, Some(*probe), None),
        Message::PingReq { target, probe_number } => (2, Some(*probe_number), Some(target)),
        Message::IndirectPing { origin, probe_number } => (3, Some(*probe_number), Some(origin)),
        Message::IndirectAck { target, probe_number } => (4, Some(*probe_number), Some(target)),
        Message::ForwardedAck { origin, probe_number } => (5, Some(*probe_number), Some(origin)),
        Message::Announce => (6, None, None),
        Message::Feed => (7, None, None),
        Message::Gossip => (8, None, None),
        Message::Broadcast => (9, None, None),
        Message::TurnUndead => (10, None, None),
    };
    out.put_u8(kind);
    if let Some(probe) = probe {
        out.put_u8(probe);
    }
    if let Some(third) = third {
        third.write(&mut out);
    }
}

fn read_header(mut from: impl Buf) -> Result<Header<Identity>, Truncated> {
    let src = Identity::read(&mut from)?;
    let src_incarnation = from.try_get_u16().map_err(|_| Truncated)?;
    let dst = Identity::read(&mut from)?;
    let kind = from.try_get_u8().map_err(|_| Truncated)?;
    let mut probe = || from.try_get_u8().map_err(|_| Truncated);
    let message = match kind {
        0 => Message::Ping(probe()?),
        1 => Message::Ack(probe()?),
        2..=5 => {
            let probe_number = probe()?;
            let third = Identity::read(&mut from)?;
            match kind {
                2 => Message::PingReq { target: third, probe_number },
                3 => Message::IndirectPing { origin: third, probe_number },
                4 => Message::IndirectAck { target: third, probe_number },
                _ => Message::ForwardedAck { origin: third, probe_number },
            }
        }
        6 => Message::Announce,
        7 => Message::Feed,
        8 => Message::Gossip,
        9 => Message::Broadcast,
        10 => Message::TurnUndead,
        _ => return Err(Truncated),
    };
    Ok(Header { src, src_incarnation, dst, message })
}

/// What was seen while foca worked.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Members as they are now, in the order of the changes; some are repeated without a change.
    pub(super) members: Vec<Member<Identity>>,
    /// Nodes that left, and in which generation.
    pub(super) left: Vec<(NodeId, u64)>,
    /// This node's own incarnation.
    pub(super) incarnation: Incarnation,
    /// Number of the newest probe.
    pub(super) probe: u8,
    /// Whether anybody answered a probe, or helped to, since this was cleared.
    pub(super) answered: bool,
}

/// [`Notes`] that foca's helpers and its owner share. All of them are in one thread at a time.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedNotes(Arc<Mutex<Notes>>);

impl SharedNotes {
    pub(super) fn lock(&self) -> MutexGuard<'_, Notes> {
        // Notes are whole after each statement, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes and reads foca's messages.
#[derive(Debug)]
pub(super) struct Codec(pub(super) SharedNotes);

impl foca::Codec<Identity> for Codec {
    type Error = Truncated;

    fn encode_header(&mut self, header: &Header<Identity>, out: impl BufMut) -> Result<(), Truncated> {
        // The longest header; datagrams have room for many.
        if out.remaining_mut() < 3 * IDENTITY + 4 {
            return Err(Truncated);
        }
        let mut notes = self.0.lock();
        notes.incarnation = header.src_incarnation;
        if let Message::Ping(probe) = header.message {
            notes.probe = probe;
        }
        write_header(header, out);
        Ok(())
    }

    fn decode_header(&mut self, from: impl Buf) -> Result<Header<Identity>, Truncated> {
        let header = read_header(from)?;
        if let Message::Ack(probe) | Message::ForwardedAck { probe_number: probe, .. } = header.message {
            let mut notes = self.0.lock();
            notes.answered |= notes.probe == probe;
        }
        Ok(header)
    }

    fn encode_member(&mut self, member: &Member<Identity>, mut out: impl BufMut) -> Result<(), Truncated> {
        if out.remaining_mut() < MEMBER {
            return Err(Truncated);
        }
        member.id().write(&mut out);
        out.put_u16(member.incarnation());
        out.put_u8(match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        });
        self.0.lock().members.push(member.clone());
        Ok(())
    }

    fn decode_member(&mut self, mut from: impl Buf) -> Result<Member<Identity>, Truncated> {
        let identity = Identity::read(&mut from)?;
        let incarnation = from.try_get_u16().map_err(|_| Truncated)?;
        let state = match from.try_get_u8().map_err(|_| Truncated)? {
            0 => State::Alive,
            1 => State::Suspect,
            2 => State::Down,
            _ => return Err(Truncated),
        };
        Ok(Member::new(identity, incarnation, state))
    }
}

/// Passes on what nodes say beside foca's own: that they leave.
#[derive(Debug)]
pub(super) struct Broadcasts {
    pub(super) me: NodeId,
    pub(super) notes: SharedNotes,
    /// The newest generation in which each node left.
    pub(super) left: BTreeMap<NodeId, u64>,
}

/// Names a broadcast, so that a newer one takes its place.
#[derive(Debug)]
pub(super) struct Left {
    node: NodeId,
    generation: u64,
}

impl Invalidates for Left {
    fn invalidates(&self, other: &Left) -> bool {
        self.node == other.node && self.generation >= other.generation
    }
}

impl BroadcastHandler<Identity> for Broadcasts {
    type Key = Left;
    type Error = Truncated;

    fn receive_item(&mut self, mut data: &[u8], sender: Option<&Identity>) -> Result<Option<Left>, Truncated> {
        if data.len() != 25 || data.get_u8() != BROADCAST_LEFT {
            // Of a newer version: it is no harm, and not passed on by those who do not understand it.
            return Ok(None);
        }
        let (node, generation) = (NodeId::from_u128(data.get_u128()), data.get_u64());
        // Nobody else tells a node that it left. What it hears of that is of an earlier life.
        let of_myself = node == self.me && sender.is_some();
        if of_myself || self.left.get(&node).is_some_and(|known| *known >= generation) {
            return Ok(None);
        }
        self.left.insert(node, generation);
        self.notes.lock().left.push((node, generation));
        Ok(Some(Left { node, generation }))
    }
}
