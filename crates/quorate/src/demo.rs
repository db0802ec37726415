//! The service that `quorate dev` shows: a page that says which copy answered.
//!
//! Small and dependable, because tests count its failed requests: one thread, connections kept
//! alive, and on SIGTERM it finishes what it was asked before it ends.

pub(crate) mod ran;

use clap::Args;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// Longest head of a request.
const HEAD_MAX: usize = 16 * 1024;
/// Longest wait for requests in flight after SIGTERM.
const FAREWELL: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Args)]
pub(crate) struct DemoArgs {
    /// Port to listen on; 0 lets the system choose
    #[arg(long)]
    port: u16,
    /// Address to listen on
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    /// The id of this copy
    #[arg(long, default_value = "-")]
    replica: String,
    /// The node that it runs on
    #[arg(long, default_value = "-")]
    node: String,
    /// Its number among the copies
    #[arg(long, default_value = "-")]
    ordinal: String,
    /// Write down there when this copy runs
    #[arg(long, value_name = "DIR")]
    ran: Option<PathBuf>,
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let listener = TcpListener::bind(SocketAddr::from((args.address, args.port))).await?;
        if let Some(dir) = &args.ran {
            ran::write(dir)?;
        }
        let stop = async {
            tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
        };
        serve(listener, args.clone(), stop).await;
        Ok(())
    })
}

async fn serve(listener: TcpListener, args: DemoArgs, stop: impl Future<Output = ()>) {
    let page = Arc::new(Page { args, served: AtomicU64::new(0) });
    let (stopping, stopped) = watch::channel(false);
    // Each connection holds a sender; the channel closes when the last one has gone.
    let (connection, mut all_gone) = mpsc::channel::<()>(1);
    tokio::pin!(stop);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (page, stopped, connection) = (page.clone(), stopped.clone(), connection.clone());
                    tokio::spawn(async move {
                        // A client that went away in the middle is its own affair.
                        let _ = answer(stream, &page, stopped).await;
                        drop(connection);
                    });
                }
                // Out of file handles: let some connections end first.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
            () = &mut stop => break,
        }
    }
    drop(listener);
    drop(connection);
    stopping.send_replace(true);
    // Who has not read its answer by then will not.
    let _ = tokio::time::timeout(FAREWELL, all_gone.recv()).await;
}

struct Page {
    args: DemoArgs,
    served: AtomicU64,
}

/// Answers one connection's requests, one after the other.
async fn answer(mut stream: TcpStream, page: &Page, mut stopped: watch::Receiver<bool>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut received = Vec::with_capacity(1024);
    loop {
        let head_end = loop {
            if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if received.len() > HEAD_MAX {
                return stream
                    .write_all(b"HTTP/1.1 431 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                    .await;
            }
            tokio::select! {
                biased;
                read = stream.read_buf(&mut received) => if read? == 0 { return Ok(()) },
                // Between two requests nobody waits for us. In the middle of one somebody does.
                _ = stopped.wait_for(|stopped| *stopped), if received.is_empty() => return Ok(()),
            }
        };
        let Some(head) = Head::parse(&received[..head_end]) else {
            return stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                .await;
        };
        received.drain(..head_end);
        let mut body_left = head.body;
        loop {
            let have = received.len().min(usize::try_from(body_left).unwrap_or(usize::MAX));
            received.drain(..have);
            body_left -= have as u64;
            if body_left == 0 {
                break;
            }
            if stream.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
        }
        let close = head.close || *stopped.borrow();
        stream.write_all(&page.response(&head, close)).await?;
        if close {
            return stream.shutdown().await;
        }
    }
}

/// What matters of a request.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    is_head: bool,
    path: String,
    body: u64,
    close: bool,
}

impl Head {
    fn parse(head: &[u8]) -> Option<Head> {
        let head = std::str::from_utf8(head).ok()?;
        let mut lines = head.split("\r\n");
        let mut first = lines.next()?.split(' ');
        let (method, target, version) = (first.next()?, first.next()?, first.next()?);
        let mut parsed = Head {
            is_head: method == "HEAD",
            path: target.split('?').next()?.to_owned(),
            body: 0,
            close: version != "HTTP/1.1",
        };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => parsed.body = value.parse().ok()?,
                // Its end is unknown to us, so nothing can follow it.
                "transfer-encoding" => parsed.close = true,
                "connection" if value.eq_ignore_ascii_case("close") => parsed.close = true,
                _ => {}
            }
        }
        Some(parsed)
    }
}

impl Page {
    fn response(&self, head: &Head, close: bool) -> Vec<u8> {
        let DemoArgs { replica, node, ordinal, .. } = &self.args;
        let pid = std::process::id();
        let (status, kind, body) = match head.path.as_str() {
            "/healthz" => ("200 OK", "text/plain", "ok\n".to_owned()),
            "/whoami" => {
                let who = serde_json::json!({ "replica": replica, "node": node, "ordinal": ordinal, "pid": pid });
                ("200 OK", "application/json", format!("{who}\n"))
            }
            "/" => {
                let count = self.served.fetch_add(1, Ordering::Relaxed) + 1;
                let body = include_str!("demo/page.html")
                    .replace("{replica}", &escaped(replica))
                    .replace("{node}", &escaped(node))
                    .replace("{ordinal}", &escaped(ordinal))
                    .replace("{pid}", &pid.to_string())
                    .replace("{count}", &count.to_string());
                ("200 OK", "text/html; charset=utf-8", body)
            }
            "/metrics" => {
                let served = self.served.load(Ordering::Relaxed);
                let page = format!("# TYPE demo_pages_served counter\ndemo_pages_served{{path=\"/\"}} {served}\n");
                ("200 OK", "text/plain; version=0.0.4", page)
            }
            _ => ("404 Not Found", "text/plain", "There are /, /whoami, /metrics and /healthz.\n".to_owned()),
        };
        let connection = if close { "Connection: close\r\n" } else { "" };
        let mut response = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n{connection}\r\n",
            body.len()
        );
        if !head.is_head {
            response.push_str(&body);
        }
        response.into_bytes()
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> DemoArgs {
        DemoArgs {
            port: 0,
            address: Ipv4Addr::LOCALHOST.into(),
            replica: "r<1>".into(),
            node: "n2".into(),
            ordinal: "0".into(),
            ran: None,
        }
    }

    /// Reads exactly one response.
    async fn response(stream: &mut TcpStream) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).await.unwrap();
        head + std::str::from_utf8(&body).unwrap()
    }

    #[tokio::test]
    async fn one_connection_carries_many_requests_and_bodies_do_not_confuse_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, args(), std::future::pending()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhelloGET /healthz HTTP/1.1\r\n\r\n")
            .await
            .unwrap();
        assert!(response(&mut stream).await.contains("r&lt;1>"));
        assert!(response(&mut stream).await.ends_with("ok\n"));
        stream.write_all(b"GET /nothing HTTP/1.1\r\nConnection: close\r\n\r\n").await.unwrap();
        assert!(response(&mut stream).await.starts_with("HTTP/1.1 404"));
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_request_that_began_before_the_stop_is_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, args(), async { drop(stopped.await) }));
        let (mut busy, mut idle) =
            (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
        for stream in [&mut busy, &mut idle] {
            stream.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").await.unwrap();
            response(stream).await;
        }
        busy.write_all(b"GET /whoami HT").await.unwrap();
        // The server has read the half request once it has answered something that came later.
        idle.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").await.unwrap();
        response(&mut idle).await;
        stop.send(()).unwrap();
        assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0, "an idle connection is closed");
        busy.write_all(b"TP/1.1\r\n\r\n").await.unwrap();
        let answer = response(&mut busy).await;
        assert!(answer.contains("Connection: close") && answer.contains("\"node\":\"n2\""), "{answer}");
        server.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[test]
    fn a_broken_head_is_refused() {
        for bad in ["", "GET\r\n\r\n", "GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n"] {
            assert_eq!(Head::parse(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
