//! S3: the first object of the bucket is asked for, signed.

use super::Try;
use super::wire::{MESSAGE_BYTES_MAX, broken, printable};
use crate::needs::s3::bucket_request;
use quorate_model::external::{LoginProblem, Tls, Why};
use std::io::{ErrorKind, Read, Write};
use std::time::SystemTime;

/// Asks over a connection that is encrypted already, if it is to be.
pub(super) fn login(wire: &mut (impl Read + Write), to: &Try<'_>) -> Result<(), LoginProblem> {
    let bucket = to.external.database.as_deref().unwrap_or_default();
    let region = to.external.set.get("region").map_or("us-east-1", String::as_str);
    let usual = if to.external.tls() == Tls::Off { 80 } else { 443 };
    let host = if to.host.contains(':') { format!("[{}]", to.host) } else { to.host.to_owned() };
    let host = if to.port == usual { host } else { format!("{host}:{}", to.port) };
    let keys = to.external.user.as_deref().zip(to.password);
    let (target, headers) = bucket_request(&host, bucket, region, keys, SystemTime::now());
    let mut request = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    headers.iter().for_each(|(name, value)| request.push_str(&format!("{name}: {value}\r\n")));
    request.push_str("\r\n");
    wire.write_all(request.as_bytes()).and_then(|()| wire.flush()).map_err(|error| broken(&error))?;
    let mut answer = Vec::new();
    match wire.take(MESSAGE_BYTES_MAX as u64).read_to_end(&mut answer) {
        Ok(_) => {}
        // Some end TLS without saying so, after they have said all.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof && !answer.is_empty() => {}
        Err(error) => return Err(broken(&error)),
    }
    understood(&String::from_utf8_lossy(&answer))
}

fn understood(answer: &str) -> Result<(), LoginProblem> {
    let strange = || LoginProblem::new(Why::Protocol, "what answers is no S3");
    let rest = answer.strip_prefix("HTTP/1.").ok_or_else(strange)?;
    let status: u16 = rest.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(strange)?;
    let tag = |name: &str| {
        let (_, rest) = answer.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
    };
    if status == 200 {
        return if answer.contains("<ListBucketResult") { Ok(()) } else { Err(strange()) };
    }
    let code = tag("Code").unwrap_or_default();
    let why = match (code, status) {
        ("NoSuchBucket" | "AllAccessDisabled" | "PermanentRedirect" | "InvalidBucketName", _) => Why::Database,
        ("InvalidAccessKeyId" | "SignatureDoesNotMatch" | "AccessDenied" | "RequestTimeTooSkewed", _)
        | (_, 401 | 403) => Why::Login,
        (_, 500..) => Why::Unready,
        _ => Why::Protocol,
    };
    let text = tag("Message").unwrap_or_default();
    Err(LoginProblem::new(why, format!("S3 says: {}", printable(&format!("{status} {code} {text}")))))
}
