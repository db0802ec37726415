//! Agents at the shim's socket: lines that ask, lines that answer, and what a watcher is told unasked.
//!
//! No client can make the shim wait: sockets never block, and who does not read is dropped.

use super::Shim;
use crate::protocol::{Ask, LINE_BYTES_MAX, Order, Request, VERSION};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Agents that talk to one shim at once: the present one, and some that are coming or going.
const CONNECTIONS_MAX: usize = 16;

pub(super) struct Connection {
    pub(super) stream: UnixStream,
    line: Vec<u8>,
    watches: bool,
    /// Dropped at the end of the round, so that indexes stay valid within it.
    pub(super) closed: bool,
}

impl Shim {
    pub(super) fn tell_watchers(&mut self) {
        let line = line_of(&self.state);
        for connection in self.connections.iter_mut().filter(|connection| connection.watches) {
            send(connection, &line);
        }
    }

    pub(super) fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() < CONNECTIONS_MAX && stream.set_nonblocking(true).is_ok() {
                self.connections.push(Connection { stream, line: Vec::new(), watches: false, closed: false });
            }
        }
    }

    pub(super) fn serve(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let mut buffer = [0; 1024];
        match connection.stream.read(&mut buffer) {
            Ok(count @ 1..) => connection.line.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return,
            Ok(_) | Err(_) => connection.closed = true,
        }
        while let Some(end) = self.connections[index].line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.connections[index].line.drain(..=end).collect();
            self.answer(index, &line);
        }
        let connection = &mut self.connections[index];
        connection.closed |= connection.line.len() > LINE_BYTES_MAX;
    }

    fn answer(&mut self, index: usize, line: &[u8]) {
        let request = serde_json::from_slice::<Request>(line);
        match &request {
            Ok(Request { what: Ask::Stop { signal, grace_ms }, .. }) => {
                self.stop(*signal, Duration::from_millis(*grace_ms));
            }
            Ok(Request { what: Ask::Hold { epoch, deadline }, .. }) => {
                self.hold(*epoch, *deadline);
            }
            Ok(Request { what: Ask::Signal { signal }, .. }) => self.signal(*signal),
            Ok(Request { what: Ask::Activate { lease, deadline }, .. }) => self.activate(*lease, *deadline),
            Ok(Request { what: Ask::Resign { epoch }, .. }) => self.resign(*epoch),
            Ok(Request { what: Ask::Promote, .. }) => self.order(Order::Promote),
            Ok(Request { what: Ask::Demote, .. }) => self.order(Order::Demote),
            Ok(Request { what: Ask::Status | Ask::Watch, .. }) | Err(_) => {}
        }
        let connection = &mut self.connections[index];
        let reply = match request {
            // A watcher has heard the outcome already.
            Ok(Request {
                what:
                    Ask::Stop { .. }
                    | Ask::Hold { .. }
                    | Ask::Signal { .. }
                    | Ask::Activate { .. }
                    | Ask::Resign { .. }
                    | Ask::Promote
                    | Ask::Demote,
                ..
            }) if connection.watches => {
                return;
            }
            Ok(Request { what, .. }) => {
                connection.watches |= what == Ask::Watch;
                line_of(&self.state)
            }
            Err(error) => line_of(&serde_json::json!({ "v": VERSION, "error": error.to_string() })),
        };
        send(connection, &reply);
    }
}

/// Sends a whole line, or gives the connection up.
fn send(connection: &mut Connection, line: &[u8]) {
    // A socket buffer takes hundreds of lines: one that is full belongs to a reader who is stuck.
    // It connects again and then gets the newest state.
    connection.closed |= !connection.stream.write(line).is_ok_and(|sent| sent == line.len());
}

fn line_of(value: &impl serde::Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("plain structs with string keys always serialise");
    line.push(b'\n');
    line
}
