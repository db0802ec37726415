//! Clients that never stop asking, and remember what they were not given.
//!
//! The load is open: each client asks at its own fixed moments, whether or not the answers come in
//! time, so a stall shows as the time of all requests that should have been sent during it.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longer than any answer may take; the gateway itself gives up sooner.
const PATIENCE: Duration = Duration::from_secs(40);
/// Failures that are kept with their words.
const WORDS_MAX: usize = 20;

pub(crate) struct Load {
    /// Dropped to end the clients.
    clients: Vec<(Sender<()>, JoinHandle<Tally>)>,
    begun: Instant,
}

/// What one or all clients got.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub answered: u64,
    pub failed: u64,
    /// The first failures, each with its time since the beginning.
    pub failures: Vec<String>,
    /// From the moment at which it should have been sent to the last byte of its answer.
    pub slowest: Duration,
    /// How long the load lasted.
    pub lasted: Duration,
}

impl Tally {
    pub(crate) fn per_second(&self) -> f64 {
        self.answered as f64 / self.lasted.as_secs_f64()
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (seconds, per_second) = (self.lasted.as_secs_f64(), self.per_second());
        write!(f, "{} answered in {seconds:.1} s ({per_second:.0}/s), {} failed", self.answered, self.failed)?;
        write!(f, ", slowest {:?}", self.slowest)
    }
}

impl Load {
    /// `clients` connections that together send `per_second` GETs of `path` to `address`.
    pub(crate) fn start(address: &str, path: &str, clients: u32, per_second: u32) -> Load {
        let begun = Instant::now();
        let every = Duration::from_secs(1) * clients / per_second;
        let client = |number: u32| {
            let (stop, stopped) = mpsc::channel::<()>();
            let first = begun + every * number / clients;
            let (address, path) = (address.to_owned(), path.to_owned());
            let run = move || {
                let mut tally = Tally::default();
                let mut connection = None;
                let mut due = first;
                // Waits for the moment of the next request, or for the end.
                while let Err(RecvTimeoutError::Timeout) =
                    stopped.recv_timeout(due.saturating_duration_since(Instant::now()))
                {
                    match get(&mut connection, &address, &path) {
                        Ok(200) => tally.answered += 1,
                        Ok(status) => tally.fail(begun, &format!("status {status}")),
                        Err(error) => {
                            connection = None;
                            tally.fail(begun, &error.to_string());
                        }
                    }
                    tally.slowest = tally.slowest.max(due.elapsed());
                    due += every;
                }
                tally
            };
            (stop, std::thread::spawn(run))
        };
        Load { clients: (0..clients).map(client).collect(), begun }
    }

    /// Ends the clients after their last answer.
    pub(crate) fn stop(self) -> Tally {
        let lasted = self.begun.elapsed();
        let (stops, clients): (Vec<_>, Vec<_>) = self.clients.into_iter().unzip();
        drop(stops);
        let mut all = Tally { lasted, ..Tally::default() };
        for tally in clients.into_iter().map(|client| client.join().unwrap()) {
            all.answered += tally.answered;
            all.failed += tally.failed;
            all.failures.extend(tally.failures);
            all.slowest = all.slowest.max(tally.slowest);
        }
        all
    }
}

impl Tally {
    fn fail(&mut self, begun: Instant, what: &str) {
        self.failed += 1;
        if self.failures.len() < WORDS_MAX {
            self.failures.push(format!("{:.3} s: {what}", begun.elapsed().as_secs_f64()));
        }
    }
}

/// One GET on a connection that is kept, and opened if there is none. Nothing is tried twice: what
/// the gateway does not make good is a failure.
fn get(connection: &mut Option<BufReader<TcpStream>>, address: &str, path: &str) -> std::io::Result<u16> {
    let mut reader = match connection.take() {
        Some(reader) => reader,
        None => {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            BufReader::new(stream)
        }
    };
    write!(reader.get_mut(), "GET {path} HTTP/1.1\r\nHost: load.test\r\n\r\n")?;
    let answer = read_answer(&mut reader)?;
    if answer.keeps {
        *connection = Some(reader);
    }
    Ok(answer.status)
}

/// An answer of an HTTP/1.1 server.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
    keeps: bool,
}

/// Asks once, on a connection of its own.
pub(crate) fn ask(address: &str, path: &str) -> std::io::Result<Answer> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(&stream, "GET {path} HTTP/1.1\r\nHost: load.test\r\nConnection: close\r\n\r\n")?;
    read_answer(&mut BufReader::new(stream))
}

fn read_answer(reader: &mut impl BufRead) -> std::io::Result<Answer> {
    let broken = |what: &str| std::io::Error::other(what.to_owned());
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(broken("the connection was closed without an answer"));
    }
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(|| broken(&line))?;
    let (mut length, mut chunked, mut keeps) = (None, false, true);
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match (name.to_ascii_lowercase().as_str(), value.to_ascii_lowercase().as_str()) {
            ("content-length", value) => length = value.parse().ok(),
            ("transfer-encoding", "chunked") => chunked = true,
            ("connection", "close") => keeps = false,
            _ => {}
        }
    }
    let mut body = Vec::new();
    match (length, chunked) {
        (Some(length), _) => {
            body = vec![0; length];
            reader.read_exact(&mut body)?;
        }
        (None, true) => loop {
            line.clear();
            reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(|_| broken("a chunk without its size"))?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        },
        (None, false) => {
            reader.read_to_end(&mut body)?;
            keeps = false;
        }
    }
    Ok(Answer { status, body, keeps })
}
