//! DNS on this node: two sockets, and between them what [`quorate_dns`] answers from this node's own view.
//!
//! No quorum is asked and nobody is waited for: a node that is cut off answers with what it knew last.
//!
//! # Bounds
//! One datagram is looked at after the other; what the kernel cannot keep meanwhile it drops, and clients ask
//! again. At most [`CONNECTIONS`] are open over TCP, each for at most [`IDLE`] between two questions; one more
//! is closed at once.

use anyhow::Context as _;
use quorate_dns::{Transport, answer};
use quorate_model::discovery::{Directory, ZONE};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tracing::{debug, info, warn};

/// Questions come in few bytes; a longer datagram is cut off, and so answered as one that makes no sense.
const QUESTION_MAX: usize = 4096;
/// Clients come over TCP only when an answer was too long for a datagram.
const CONNECTIONS: usize = 64;
/// How long a client may take for its next question, and for taking an answer.
const IDLE: Duration = Duration::from_secs(5);
/// When the system has no more files for connections, it may have some after this.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The two sockets, of one address.
pub(super) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

/// # Errors
/// What is in the way of listening there.
pub(super) async fn bind(address: SocketAddr) -> anyhow::Result<Sockets> {
    let why = || format!("binding {address} for DNS (`dns.listen`; is another resolver using the port?)");
    let udp = UdpSocket::bind(address).await.with_context(why)?;
    let tcp = TcpListener::bind(address).await.with_context(why)?;
    Ok(Sockets { udp, tcp })
}

/// Answers for as long as the process lives.
pub(super) fn start(Sockets { udp, tcp }: Sockets, directory: watch::Receiver<Arc<Directory>>) {
    if let Ok(address) = udp.local_addr() {
        info!(%address, zone = ZONE, "answering DNS");
    }
    tokio::spawn(datagrams(udp, directory.clone()));
    tokio::spawn(connections(tcp, directory));
}

async fn datagrams(socket: UdpSocket, directory: watch::Receiver<Arc<Directory>>) {
    let mut question = vec![0; QUESTION_MAX];
    loop {
        let (length, from) = match socket.recv_from(&mut question).await {
            Ok(received) => received,
            // About an answer that nobody waited for: of this one, not of the socket.
            Err(error) => {
                debug!(%error, "a datagram did not arrive");
                continue;
            }
        };
        let directory = directory.borrow().clone();
        let Some(reply) = answer(&directory, &question[..length], Transport::Udp) else { continue };
        if let Err(error) = socket.send_to(&reply, from).await {
            debug!(%error, %from, "an answer was not sent");
        }
    }
}

async fn connections(listener: TcpListener, directory: watch::Receiver<Arc<Directory>>) {
    let seats = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "no connection for DNS was taken");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let Ok(seat) = seats.clone().try_acquire_owned() else { continue };
        let directory = directory.clone();
        tokio::spawn(async move {
            if let Err(error) = converse(stream, &directory).await {
                debug!(%error, "a connection for DNS ended");
            }
            drop(seat);
        });
    }
}

/// Each message comes behind its length, two bytes (RFC 1035, 4.2.2).
async fn converse(mut stream: TcpStream, directory: &watch::Receiver<Arc<Directory>>) -> io::Result<()> {
    let mut question = Vec::new();
    loop {
        let read = async {
            let length = stream.read_u16().await?;
            question.resize(usize::from(length), 0);
            stream.read_exact(&mut question).await
        };
        tokio::time::timeout(IDLE, read).await??;
        let directory = directory.borrow().clone();
        let Some(reply) = answer(&directory, &question, Transport::Tcp) else { return Ok(()) };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &reply].concat();
        tokio::time::timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
