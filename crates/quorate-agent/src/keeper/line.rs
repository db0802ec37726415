//! One JSON object a line, between a shim and its keeper. Neither end ever waits for the other.

use crate::protocol::LINE_BYTES_MAX;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, ErrorKind, Read, Write};
use std::marker::PhantomData;
use std::os::unix::net::UnixStream;

/// One end, which hears `T`.
#[derive(Debug)]
pub(crate) struct Line<T> {
    stream: UnixStream,
    heard: Vec<u8>,
    closed: bool,
    of: PhantomData<T>,
}

impl<T: DeserializeOwned> Line<T> {
    pub(crate) fn new(stream: UnixStream) -> io::Result<Line<T>> {
        stream.set_nonblocking(true)?;
        Ok(Line { stream, heard: Vec::new(), closed: false, of: PhantomData })
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether nothing more will come.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// What has come since the last time. What is not understood is left out: it is of another version.
    pub(crate) fn read(&mut self) -> Vec<T> {
        let mut buffer = [0; 4096];
        while !self.closed {
            match self.stream.read(&mut buffer) {
                Ok(count @ 1..) => self.heard.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => self.closed = true,
            }
        }
        let mut all = Vec::new();
        while let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.heard.drain(..=end).collect();
            all.extend(serde_json::from_slice(&line).ok());
        }
        self.closed |= self.heard.len() > LINE_BYTES_MAX;
        all
    }

    /// Lost, if the other end has not read for hundreds of lines: the next one says what is true then.
    pub(crate) fn send(&mut self, what: &impl Serialize) {
        if let Ok(mut line) = serde_json::to_vec(what) {
            line.push(b'\n');
            let _ = self.stream.write(&line);
        }
    }
}
