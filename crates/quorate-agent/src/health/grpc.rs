//! The standard health check of gRPC services: `grpc.health.v1.Health/Check`, without TLS.
//!
//! One call on a connection of its own, as the other checks do. The message and its answer have one field each,
//! so they are written and read by hand.
//!
//! Sources: grpc/grpc, doc/health-checking.md and doc/PROTOCOL-HTTP2.md.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use tokio::net::TcpStream;

/// `SERVING`.
const SERVING: u64 = 1;
/// An answer is 7 bytes long; one that is much longer is something else.
const ANSWER_BYTES_MAX: usize = 1024;

/// Ends with the connection's task.
struct Connection(tokio::task::JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Asks once.
pub(super) async fn ask(stream: TcpStream, authority: &str, service: &str) -> Result<(), String> {
    let broken = |error: h2::Error| format!("grpc: {error}");
    let (sender, connection) = h2::client::handshake(stream).await.map_err(broken)?;
    let _connection = Connection(tokio::spawn(async move {
        // Whoever waits for the answer hears of it.
        let _ = connection.await;
    }));
    let mut sender = sender.ready().await.map_err(broken)?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .header("user-agent", "quorate-health")
        .body(())
        .map_err(|error| format!("grpc: {error}"))?;
    let (answer, mut body) = sender.send_request(request, false).map_err(broken)?;
    body.send_data(question(service), true).map_err(broken)?;
    let (head, mut body) = answer.await.map_err(broken)?.into_parts();
    if head.status != StatusCode::OK {
        return Err(format!("grpc: HTTP status {}", head.status.as_u16()));
    }
    let mut message = Vec::new();
    while let Some(part) = body.data().await {
        let part = part.map_err(broken)?;
        message.extend_from_slice(&part);
        // More would only be refused below.
        let _ = body.flow_control().release_capacity(part.len());
        if message.len() > ANSWER_BYTES_MAX {
            return Err("grpc: the answer is too long".into());
        }
    }
    // An answer without a message has its status in the head.
    let trailers = body.trailers().await.map_err(broken)?.unwrap_or(head.headers);
    verdict(&trailers, &message, service)
}

/// `HealthCheckRequest { service }`, with gRPC's five bytes before it.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        // Field 1, length-delimited. Names have at most 127 bytes, so the length is one byte.
        message.extend([0x0a, u8::try_from(service.len()).unwrap_or(u8::MAX)]);
        message.extend(service.as_bytes());
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0], length.as_slice(), &message].concat().into()
}

fn verdict(trailers: &HeaderMap, message: &[u8], service: &str) -> Result<(), String> {
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text("grpc-status") {
        "0" => {}
        "5" => return Err(format!("grpc: the service {service:?} is not known there")),
        "12" => return Err("grpc: it does not offer grpc.health.v1.Health".into()),
        "" => return Err("grpc: the answer has no status".into()),
        status => return Err(format!("grpc: status {status} {}", text("grpc-message")).trim_end().to_owned()),
    }
    match status_of(message) {
        Some(SERVING) => Ok(()),
        Some(0) => Err("grpc: it says UNKNOWN".into()),
        Some(2) => Err("grpc: it says NOT_SERVING".into()),
        Some(3) => Err("grpc: it says SERVICE_UNKNOWN".into()),
        Some(status) => Err(format!("grpc: it says {status}")),
        None => Err("grpc: the answer cannot be read".into()),
    }
}

/// `HealthCheckResponse { status }`: field 1 as a varint. One that is not there is 0.
fn status_of(message: &[u8]) -> Option<u64> {
    let (head, rest) = message.split_at_checked(5)?;
    let length = u32::from_be_bytes(head[1..].try_into().ok()?);
    if head[0] != 0 || usize::try_from(length) != Ok(rest.len()) {
        return None;
    }
    match rest {
        [] => Some(0),
        [0x08, status] if *status < 0x80 => Some(u64::from(*status)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// A server of one call, which answers with this message and status.
    async fn answers(message: &'static [u8], status: &'static str, service: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let (request, mut respond) = connection.accept().await.unwrap().unwrap();
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            assert_eq!(request.headers()["content-type"], "application/grpc");
            let serve = async move {
                let mut body = request.into_body();
                let asked = body.data().await.unwrap().unwrap();
                let head = http::Response::builder().header("content-type", "application/grpc");
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", status.parse().unwrap());
                if message.is_empty() {
                    let head = head.header("grpc-status", status);
                    respond.send_response(head.body(()).unwrap(), true).unwrap();
                } else {
                    let mut body = respond.send_response(head.body(()).unwrap(), false).unwrap();
                    body.send_data(Bytes::from_static(message), false).unwrap();
                    body.send_trailers(trailers).unwrap();
                }
                asked
            };
            let drive = async { while connection.accept().await.is_some() {} };
            tokio::join!(serve, drive).0
        });
        let stream = TcpStream::connect(address).await.unwrap();
        let answer = ask(stream, &address.to_string(), service).await;
        assert_eq!(server.await.unwrap(), question(service));
        answer
    }

    #[tokio::test]
    async fn a_service_is_well_when_it_says_that_it_is_serving_and_says_else_what_it_is() {
        assert_eq!(answers(&[0, 0, 0, 0, 2, 8, 1], "0", "").await, Ok(()));
        assert_eq!(answers(&[0, 0, 0, 0, 2, 8, 1], "0", "my.Service").await, Ok(()));
        let not_serving = answers(&[0, 0, 0, 0, 2, 8, 2], "0", "").await;
        assert_eq!(not_serving, Err("grpc: it says NOT_SERVING".into()));
        assert_eq!(answers(&[0, 0, 0, 0, 0], "0", "").await, Err("grpc: it says UNKNOWN".into()));
        let none = answers(&[], "12", "").await;
        assert_eq!(none, Err("grpc: it does not offer grpc.health.v1.Health".into()));
        let unknown = answers(&[], "5", "my.Srvice").await;
        assert_eq!(unknown, Err("grpc: the service \"my.Srvice\" is not known there".into()));
        assert_eq!(answers(b"hello", "0", "").await, Err("grpc: the answer cannot be read".into()));
    }
}
