//! What waits to be written to one peer.
//!
//! The core encodes a message, encrypts it and writes it with one system call, without waking
//! anybody. What the socket does not take at once stays here, and a task goes on when it is ready.
//!
//! Frames wait in clear and are encrypted when there is room for them: a connection that ends leaves
//! nothing half-encrypted, and the limit counts what was asked to be sent.

use super::OUTBOX_MAX;
use crate::serve::away::Away;
use bytes::{Buf as _, BytesMut};
use quorate_node::wire::Body;
use rustls::ClientConnection;
use std::io::{self, IoSlice, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tracing::warn;

/// Bytes that are encrypted at once: as many records of 16 KiB as go out with one system call.
const BATCH: usize = 64 * (16 << 10);

/// What waits to be written to one peer.
#[derive(Debug, Default)]
pub(in crate::serve) struct Outbox {
    inner: Mutex<Waiting>,
    more: Notify,
    away: Away,
}

#[derive(Debug, Default)]
struct Waiting {
    connection: Option<Connection>,
    /// Frames that are not encrypted yet.
    buffer: BytesMut,
    /// The task has taken over, because the socket was full.
    stuck: bool,
}

/// A connection whose handshake is over and whose other side said hello.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: Arc<TcpStream>,
    pub(super) tls: ClientConnection,
}

/// The socket as the TLS library writes to it and reads from it: never waiting.
struct Socket<'a>(&'a TcpStream);

impl io::Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, records: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(records)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl io::Read for Socket<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(into)
    }
}

impl Waiting {
    /// Writes until everything is written (`true`) or the socket is full.
    fn write(&mut self) -> io::Result<bool> {
        let Some(Connection { stream, tls }) = &mut self.connection else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        loop {
            while tls.wants_write() {
                match tls.write_tls(&mut Socket(stream)) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(error) => return Err(error),
                }
            }
            if self.buffer.is_empty() {
                return Ok(true);
            }
            let batch = self.buffer.len().min(BATCH);
            let taken = tls.writer().write(&self.buffer[..batch])?;
            self.buffer.advance(taken);
        }
    }
}

impl Outbox {
    pub(super) fn new(away: Away) -> Outbox {
        Outbox { away, ..Outbox::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A panic while holding the lock leaves a buffer that may end in half a frame; the
        // process is about to stop then, so nothing is lost by going on.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn connect(&self, mut connection: Connection) {
        // `write` gives it no more than a batch at a time; by itself it would take less than that.
        connection.tls.set_buffer_limit(None);
        let mut waiting = self.lock();
        *waiting = Waiting { connection: Some(connection), buffer: std::mem::take(&mut waiting.buffer), stuck: false };
        waiting.buffer.clear();
    }

    pub(super) fn disconnect(&self) {
        let mut waiting = self.lock();
        waiting.connection = None;
        waiting.buffer.clear();
        waiting.stuck = false;
    }

    /// Writes frames now if the socket takes them. Without a connection, and while this node is away, they are
    /// dropped, as the network may do with any message.
    pub(in crate::serve) fn send(&self, messages: impl Iterator<Item = Body>) {
        if self.away.is_now() {
            return;
        }
        let mut waiting = self.lock();
        if waiting.connection.is_none() {
            return;
        }
        for message in messages {
            message.encode_into(&mut waiting.buffer);
        }
        if waiting.buffer.len() > OUTBOX_MAX {
            warn!(bytes = waiting.buffer.len(), "a peer takes nothing any more: disconnecting");
            waiting.connection = None;
            waiting.buffer = BytesMut::new();
            self.more.notify_one();
            return;
        }
        if !waiting.stuck && !matches!(waiting.write(), Ok(true)) {
            // Full or broken: the task finds out which.
            waiting.stuck = true;
            self.more.notify_one();
        }
    }

    /// Writes what [`send`](Self::send) could not. Ends when the connection does.
    pub(super) async fn pump(&self, stream: &TcpStream) -> io::Result<()> {
        loop {
            self.more.notified().await;
            loop {
                stream.writable().await?;
                // What the socket did not take before this node went away.
                self.away.over().await;
                let mut waiting = self.lock();
                if waiting.connection.is_none() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                if waiting.write()? {
                    waiting.stuck = false;
                    break;
                }
            }
        }
    }

    /// Returns when the other side closes: it sends nothing on this connection after its hello.
    pub(super) async fn closed(&self, stream: &TcpStream) -> io::Result<()> {
        loop {
            stream.readable().await?;
            let mut waiting = self.lock();
            let Some(Connection { tls, .. }) = &mut waiting.connection else {
                return Err(io::ErrorKind::TimedOut.into());
            };
            match tls.read_tls(&mut Socket(stream)) {
                Ok(0) => return Ok(()),
                Ok(_) => {
                    let read =
                        tls.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                    if read.peer_has_closed() {
                        return Ok(());
                    }
                    if read.plaintext_bytes_to_read() > 0 {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "unexpected data"));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}
