//! An API that answers what a test says and remembers what it was asked.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use tokio::net::TcpSocket;

/// A request that arrived.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Method and target, like `GET /v1/status`.
    pub what: String,
    pub request_id: Option<String>,
    pub content_type: Option<String>,
    pub body: String,
}

/// What to do with a request.
pub(crate) enum Then {
    Answer(u16, Value),
    Text(String),
    /// Close the connection, as a node does that dies.
    Die,
}

#[derive(Debug)]
pub(crate) struct FakeApi {
    pub address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl FakeApi {
    /// Serves until the test ends.
    pub(crate) fn start(answer: impl Fn(&Asked) -> Then + Send + Sync + 'static) -> FakeApi {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (asked.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || serve(stream, &log, &*answer));
            }
        });
        FakeApi { address, asked }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Those that change something.
    pub(crate) fn changes(&self) -> Vec<Asked> {
        self.asked().into_iter().filter(|asked| asked.request_id.is_some()).collect()
    }
}

fn serve(stream: TcpStream, log: &Mutex<Vec<Asked>>, answer: &(impl Fn(&Asked) -> Then + ?Sized)) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut first = String::new();
        reader.read_line(&mut first).ok().filter(|read| *read > 0)?;
        let mut asked = Asked {
            what: first.rsplit_once(' ')?.0.to_owned(),
            request_id: None,
            content_type: None,
            body: String::new(),
        };
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().ok()?,
                "quorate-request-id" => asked.request_id = Some(value.to_owned()),
                "content-type" => asked.content_type = Some(value.to_owned()),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        asked.body = String::from_utf8(body).ok()?;
        log.lock().unwrap().push(asked.clone());
        let (status, kind, text) = match answer(&asked) {
            Then::Answer(status, value) => (status, "application/json", value.to_string()),
            Then::Text(text) => (200, "text/plain", text),
            Then::Die => return None,
        };
        let head = format!("HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", text.len());
        (&stream).write_all((head + &text).as_bytes()).ok()?;
    }
}

/// A port of this machine that refuses connections until a listener is bound to it, and again
/// after that listener: while it lives nobody else gets the port and answers there.
pub(crate) fn refusing() -> (TcpSocket, SocketAddr) {
    let port = TcpSocket::new_v4().unwrap();
    port.set_reuseaddr(true).unwrap();
    port.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = port.local_addr().unwrap();
    (port, address)
}
