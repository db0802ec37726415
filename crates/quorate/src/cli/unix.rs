//! HTTP over a node's own socket: what `--server unix:PATH` talks to.
//!
//! ureq brings everything but the socket; its interface for that is small, and `Cargo.lock` holds
//! its version.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport};

/// An agent whose every connection goes to this socket. The host in its URLs is only a header.
pub(crate) fn agent(config: ureq::config::Config, path: &str) -> ureq::Agent {
    ureq::Agent::with_parts(config, Socket(path.into()), DefaultResolver::default())
}

#[derive(Debug)]
struct Socket(PathBuf);

impl Connector for Socket {
    type Out = Connection;

    fn connect(&self, details: &ConnectionDetails, _: Option<()>) -> Result<Option<Connection>, ureq::Error> {
        let stream = UnixStream::connect(&self.0)?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Connection { stream, buffers }))
    }
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    buffers: LazyBuffers,
}

/// The system says "would block" when the time that a socket was given is over.
fn in_time<T>(result: std::io::Result<T>, timeout: &NextTimeout) -> Result<T, ureq::Error> {
    result.map_err(|error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => ureq::Error::Timeout(timeout.reason),
        _ => ureq::Error::Io(error),
    })
}

impl Transport for Connection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.set_write_timeout(timeout.not_zero().map(|span| *span))?;
        in_time(self.stream.write_all(&self.buffers.output()[..amount]), &timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.set_read_timeout(timeout.not_zero().map(|span| *span))?;
        let room = self.buffers.input_append_buf();
        let read = loop {
            match self.stream.read(room) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break in_time(read, &timeout)?,
            }
        };
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    fn is_open(&mut self) -> bool {
        let mut byte = [0];
        let peeked =
            rustix::net::recv(&self.stream, &mut byte, rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT);
        // Nothing to read is how an open connection looks between two requests.
        matches!(peeked, Err(rustix::io::Errno::AGAIN))
    }
}
