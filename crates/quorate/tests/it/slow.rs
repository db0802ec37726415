//! Clients of the API's TLS port that say next to nothing, and make it last.

use crate::access::memory_at_most;
use crate::cluster::{PATIENCE, wait_for};
use crate::tls::{Server, serve};
use rustls::{ClientConfig, ClientConnection};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Of each kind.
const SLOW: usize = 250;
/// Between two bytes of a slow client.
const PAUSE: Duration = Duration::from_millis(500);
/// What the server gives a client for a head or a body; for a handshake it is less.
const SERVERS_PATIENCE: Duration = Duration::from_mins(1);
/// Longest that anybody else may wait for an answer meanwhile.
const SOON: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Connects, and that is all.
    Silent,
    /// Says hello to TLS, byte by byte.
    Hello,
    /// Speaks TLS, and names its request byte by byte.
    Head,
    /// Sends the body of a request byte by byte.
    Body,
}

struct Slow {
    kind: Kind,
    socket: TcpStream,
    /// Before the handshake: what it would say. After it, it is said as it comes.
    tls: ClientConnection,
    hello: std::vec::IntoIter<u8>,
}

impl Slow {
    fn new(server: &Server, config: &Arc<ClientConfig>, kind: Kind) -> Slow {
        let mut socket = TcpStream::connect(format!("127.0.0.1:{}", server.port)).unwrap();
        let mut tls = ClientConnection::new(config.clone(), "localhost".try_into().unwrap()).unwrap();
        let mut hello = Vec::new();
        if kind == Kind::Hello {
            tls.write_tls(&mut hello).unwrap();
        }
        let begun = match kind {
            Kind::Silent | Kind::Hello => "",
            Kind::Head => "GET /v1/health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
            Kind::Body => "POST /v1/db/exec HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n",
        };
        if !begun.is_empty() {
            rustls::Stream::new(&mut tls, &mut socket).write_all(begun.as_bytes()).unwrap();
        }
        socket.set_nonblocking(true).unwrap();
        Slow { kind, socket, tls, hello: hello.into_iter() }
    }

    /// One byte more.
    fn drip(&mut self) {
        // It may have been cut off a moment ago.
        match self.kind {
            Kind::Silent => {}
            Kind::Hello => drop(self.hello.next().map(|byte| self.socket.write(&[byte]))),
            Kind::Head | Kind::Body => {
                self.tls.writer().write_all(b"x").unwrap();
                let _ = self.tls.write_tls(&mut self.socket);
            }
        }
    }

    fn is_ended(&mut self) -> bool {
        let mut piece = [0; 4_096];
        loop {
            match self.socket.read(&mut piece) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() != ErrorKind::WouldBlock,
            }
        }
    }
}

/// A client that means it.
struct Client {
    socket: TcpStream,
    tls: ClientConnection,
}

impl Client {
    fn asks(server: &Server, config: &Arc<ClientConfig>, what: &str, body: &str) -> Client {
        let mut socket = TcpStream::connect(format!("127.0.0.1:{}", server.port)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut tls = ClientConnection::new(config.clone(), "localhost".try_into().unwrap()).unwrap();
        let length = body.len();
        let request = format!("{what} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}");
        rustls::Stream::new(&mut tls, &mut socket).write_all(request.as_bytes()).unwrap();
        Client { socket, tls }
    }

    /// Whatever comes next.
    fn hears(&mut self) -> String {
        let mut piece = [0; 4_096];
        let read = rustls::Stream::new(&mut self.tls, &mut self.socket).read(&mut piece).unwrap();
        String::from_utf8_lossy(&piece[..read]).into_owned()
    }
}

/// This process holds a thousand connections, and so does the server that it starts.
fn may_open_many_files() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
}

fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// reliability.md §5.5, "malformed or slow input", at port 7000.
#[test]
fn slow_clients_of_the_api_s_tls_are_cut_off_while_everybody_else_is_served() {
    may_open_many_files();
    let server = serve(false);
    let authority = std::fs::read_to_string(server.file("quorate.crt")).unwrap();
    let config = Arc::new(quorate_trust::api::client(&authority).unwrap());
    let pid = server.cluster.pid("n1").unwrap();
    let mut stream = Client::asks(&server, &config, "GET /v1/stream", "");
    assert!(stream.hears().starts_with("HTTP/1.1 200"));
    let table = Client::asks(&server, &config, "POST /v1/db/exec", r#"{"sql":"CREATE TABLE t (n INTEGER)"}"#).hears();
    assert!(table.starts_with("HTTP/1.1 200"), "{table}");
    let (memory, files) = (memory_at_most(pid), open_files(pid));

    let kinds = [Kind::Silent, Kind::Hello, Kind::Head, Kind::Body];
    let began = Instant::now();
    let mut slow: Vec<Slow> = (0..SLOW).flat_map(|_| kinds).map(|kind| Slow::new(&server, &config, kind)).collect();
    let mut asked: Vec<Duration> = Vec::new();
    let mut next = Instant::now();
    let mut last_handshake = None;
    wait_for("all of them are cut off", SERVERS_PATIENCE + PATIENCE, || {
        if Instant::now() >= next {
            next += PAUSE;
            slow.iter_mut().for_each(Slow::drip);
            for (what, body) in [("GET /v1/health", ""), ("POST /v1/db/exec", r#"{"sql":"INSERT INTO t VALUES (1)"}"#)]
            {
                let began = Instant::now();
                let answer = Client::asks(&server, &config, what, body).hears();
                assert!(answer.starts_with("HTTP/1.1 200"), "{what}: {answer}");
                asked.push(began.elapsed());
            }
            // Else what the server has to say would stay in its buffers.
            assert!(!stream.hears().is_empty());
        }
        slow.retain_mut(|slow| !slow.is_ended());
        if last_handshake.is_none() && !slow.iter().any(|it| matches!(it.kind, Kind::Silent | Kind::Hello)) {
            last_handshake = Some(began.elapsed());
        }
        slow.is_empty().then_some(())
    });
    assert!(last_handshake.unwrap() < PATIENCE, "a handshake took {last_handshake:?}");
    assert!(asked.iter().max().unwrap() < &SOON, "meanwhile others waited: {asked:?}");
    // Nothing is left of them.
    wait_for("their sockets are closed", PATIENCE, || (open_files(pid) <= files + 8).then_some(()));
    let grew = memory_at_most(pid).saturating_sub(memory);
    let clients = u64::try_from(kinds.len() * SLOW).unwrap();
    assert!(grew <= clients * 128, "{grew} KiB for {clients} slow clients");
    // A stream is no slow client, however long ago its request was.
    assert!(began.elapsed() > SERVERS_PATIENCE);
    assert!(!stream.hears().is_empty());
}
