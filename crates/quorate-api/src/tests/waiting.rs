//! Clients that keep a real server waiting, over sockets, with limits that are short enough to be seen.

use super::*;
use crate::server::Accept;
use crate::waiting::Limits;
use std::io;
use std::net::SocketAddr;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, timeout};

/// A handshake of four bytes.
#[derive(Clone)]
struct Hello;

impl Accept<TcpStream> for Hello {
    type Stream = TcpStream;

    async fn accept(&self, mut socket: TcpStream) -> io::Result<TcpStream> {
        socket.read_exact(&mut [0; 4]).await.map(|_| socket)
    }
}

struct Server {
    address: SocketAddr,
    fake: Fake,
    _end: oneshot::Sender<()>,
    _server: JoinHandle<()>,
}

async fn server(limits: Limits) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_end, ended) = oneshot::channel::<()>();
    let options = ApiOptions { auth: AuthMode::Open, limits, ..ApiOptions::default() };
    let fake = Fake::new();
    let shutdown = async {
        let _ = ended.await;
    };
    let _server = tokio::spawn(serve(listener, Hello, fake.clone(), options, shutdown));
    Server { address, fake, _end, _server }
}

impl Server {
    /// A connection on which this has been said.
    async fn said(&self, text: &str) -> TcpStream {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        // It may have been cut off before all was said.
        let _ = socket.write_all(text.as_bytes()).await;
        socket
    }

    fn head(&self, request: &str) -> String {
        format!("helo{request} HTTP/1.1\r\nHost: {}\r\n", self.address)
    }

    async fn asking(&self, path: &str) -> TcpStream {
        self.said(&format!("{}\r\n", self.head(&format!("GET {path}")))).await
    }

    async fn is_well(&self) {
        let mut socket = self.asking("/v1/health").await;
        read_until(&mut socket, &mut Vec::new(), "HTTP/1.1 200", 1).await;
    }
}

/// Says one byte after the other until the connection ends; returns what was heard.
async fn drip(mut socket: TcpStream) -> String {
    let mut heard = Vec::new();
    let mut piece = [0; 1_024];
    let mut next = interval(Duration::from_millis(20));
    let mut refused = false;
    loop {
        tokio::select! {
            // Nobody takes it any more: what was answered before that is still to be read.
            _ = next.tick(), if !refused => refused = socket.write_all(b"x").await.is_err(),
            read = socket.read(&mut piece) => match read {
                Ok(0) | Err(_) => break,
                Ok(read) => heard.extend_from_slice(&piece[..read]),
            },
        }
    }
    String::from_utf8(heard).unwrap()
}

/// Short times at one stage, and the usual ones at the others.
fn short(set: impl FnOnce(&mut Limits)) -> Limits {
    let mut limits = Limits::default();
    set(&mut limits);
    limits
}

const SHORT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn whoever_drips_is_cut_off_at_every_stage() {
    let handshake = server(short(|limits| limits.handshake = SHORT)).await;
    let head = server(short(|limits| limits.head = SHORT)).await;
    let body = server(short(|limits| limits.body = SHORT)).await;
    let began = Instant::now();
    let silent = handshake.said("").await;
    let greeting = handshake.said("hel").await;
    let naming = head.said(&head.head("GET /v1/health")).await;
    let posting = body.said(&(body.head("POST /v1/login") + "Content-Length: 5000\r\n\r\n")).await;
    let silence = |mut socket: TcpStream| async move { socket.read(&mut [0; 16]).await.unwrap_or(0) };
    let all = async { tokio::join!(silence(silent), silence(greeting), drip(naming), drip(posting)) };
    let (silent, greeting, _, posting) = timeout(SOON, all).await.unwrap();
    assert!(began.elapsed() >= SHORT, "{:?}", began.elapsed());
    assert_eq!((silent, greeting), (0, 0));
    assert!(posting.starts_with("HTTP/1.1 408 ") && posting.contains("body-too-slow"), "{posting}");
    for server in [&handshake, &head, &body] {
        server.is_well().await;
    }
}

#[tokio::test]
async fn a_connection_that_is_kept_open_without_a_request_is_cut_off() {
    let server = server(short(|limits| limits.head = SHORT)).await;
    let mut socket = server.asking("/v1/health").await;
    let mut heard = Vec::new();
    timeout(SOON, socket.read_to_end(&mut heard)).await.unwrap().unwrap();
    assert!(heard.starts_with(b"HTTP/1.1 200"), "{heard:?}");
}

#[tokio::test]
async fn a_stream_outlives_every_time_that_is_meant_for_clients_who_are_waited_for() {
    let every = Limits { handshake: SHORT, head: SHORT, body: SHORT, answer: SHORT, waiting: 4 };
    let server = server(every).await;
    let replica = ReplicaId::from_u128(9);
    let mut log = server.asking(&format!("/v1/replicas/{replica}/log?follow=true")).await;
    let mut heard = Vec::new();
    read_until(&mut log, &mut heard, "two", 1).await;
    let mut routes = server.asking("/v1/gateway/stream?name=g1").await;
    // An empty line comes every second: this is the clock, too.
    read_until(&mut routes, &mut Vec::new(), "\r\n1\r\n\n\r\n", 2).await;
    let mut flood = Vec::new();
    for _ in 0..20 {
        flood.push(server.said("hel").await);
    }
    server.fake.set(|state| state.log.extend_from_slice(b"three\n"));
    read_until(&mut log, &mut heard, "three", 1).await;
    read_until(&mut routes, &mut Vec::new(), "\n", 1).await;
}

#[tokio::test]
async fn a_flood_of_clients_that_say_too_little_pushes_itself_out() {
    const MOST: usize = 8;
    let server = server(short(|limits| limits.waiting = MOST)).await;
    let mut stream = server.asking("/v1/gateway/stream?name=g1").await;
    read_until(&mut stream, &mut Vec::new(), "\n", 1).await;
    let head = server.head("POST /v1/login");
    let slow = ["".to_owned(), "hel".to_owned(), head.clone(), head + "Content-Length: 9\r\n\r\n{"];
    let mut held = Vec::new();
    for _ in 0..25 {
        for said in &slow {
            held.push(server.said(said).await);
        }
        server.is_well().await;
    }
    let newest = held.split_off(held.len() - MOST);
    for mut socket in held {
        let read = timeout(SOON, socket.read(&mut [0; 512])).await.expect("it was cut off");
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
    let mut last = newest.into_iter().last().unwrap();
    assert!(timeout(SHORT, last.read(&mut [0; 512])).await.is_err(), "the newest is waited for");
    read_until(&mut stream, &mut Vec::new(), "\n", 1).await;
}

#[tokio::test]
async fn strangers_may_send_less_than_friends() {
    let fake = Fake::new();
    for path in ["/v1/login", "/v1/join", "/v1/join/check", "/v1/certificates"] {
        let refused = post(&fake, path, vec![b' '; (64 << 10) + 1]).await;
        assert_eq!(code(&refused), "413 body-too-large", "{path}");
        assert!(refused.1.contains("65536"), "{}", refused.1);
    }
}
