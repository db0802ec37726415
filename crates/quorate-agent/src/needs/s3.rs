//! Requests to an S3 service, signed.
//!
//! A GET of an object, or of a bucket's first, is all that is needed, so the signature is made here and no client is
//! brought along. The bucket is in the path: every service of this kind understands that.
//!
//! # Sources
//! AWS: Authenticating Requests (AWS Signature Version 4), Signature Calculations for the Authorization Header:
//! Transferring Payload in a Single Chunk.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{HMAC_SHA256, Key, Tag, sign};
use quorate_model::need::S3;
use quorate_model::secret::Secret;
use std::fmt::Write as _;
use std::time::SystemTime;

/// SHA-256 of nothing, which is what a GET's body is.
const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// A request without its headers' signature, and what is signed.
struct Get<'a> {
    host: &'a str,
    /// Encoded, with its first slash.
    path: &'a str,
    /// Encoded and sorted.
    query: &'a str,
    region: &'a str,
    /// `20260102T030405Z`
    time: &'a str,
}

/// Where an object is, and the headers that a request for it needs.
pub(super) fn request(
    source: &str,
    s3: &S3,
    key: Option<&Secret<Vec<u8>>>,
    now: SystemTime,
) -> (String, Vec<(&'static str, String)>) {
    let (bucket, object) = source.trim_start_matches("s3://").split_once('/').unwrap_or((source, ""));
    let path = encoded(&format!("/{bucket}/{object}"));
    let endpoint = s3.endpoint.clone().unwrap_or_else(|| format!("https://s3.{}.amazonaws.com", s3.region));
    let endpoint = endpoint.trim_end_matches('/');
    let url = format!("{endpoint}{path}");
    let (Some(access_key), Some(key)) = (&s3.access_key, key) else { return (url, Vec::new()) };
    let (scheme, host) = endpoint.split_once("://").unwrap_or(("https", endpoint));
    // As an HTTP client says it.
    let usual = if scheme == "http" { ":80" } else { ":443" };
    let host = host.strip_suffix(usual).unwrap_or(host);
    let time = timestamp(now);
    let get = Get { host, path: &path, query: "", region: &s3.region, time: &time };
    let authorization = get.authorization(access_key, key.expose(), &[]);
    let headers =
        vec![("authorization", authorization), ("x-amz-content-sha256", NOTHING.to_owned()), ("x-amz-date", time)];
    (url, headers)
}

/// The target of a request for the first object of a bucket, and its headers. `keys`: the access key and the secret
/// key.
pub(crate) fn bucket_request(
    host: &str,
    bucket: &str,
    region: &str,
    keys: Option<(&str, &str)>,
    now: SystemTime,
) -> (String, Vec<(&'static str, String)>) {
    const QUERY: &str = "list-type=2&max-keys=1";
    let (path, time) = (encoded(&format!("/{bucket}")), timestamp(now));
    let target = format!("{path}?{QUERY}");
    let Some((access_key, key)) = keys else { return (target, Vec::new()) };
    let get = Get { host, path: &path, query: QUERY, region, time: &time };
    let authorization = get.authorization(access_key, key.as_bytes(), &[]);
    let headers =
        vec![("authorization", authorization), ("x-amz-content-sha256", NOTHING.to_owned()), ("x-amz-date", time)];
    (target, headers)
}

fn timestamp(now: SystemTime) -> String {
    let now = jiff::Timestamp::try_from(now).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    now.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// All but what never needs it, and slashes.
fn encoded(path: &str) -> String {
    path.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => text.push(char::from(byte)),
            // A String takes all that is written into it.
            _ => drop(write!(text, "%{byte:02X}")),
        }
        text
    })
}

impl Get<'_> {
    /// `more`: further headers that are signed, in lower case.
    fn authorization(&self, access_key: &str, key: &[u8], more: &[(&str, &str)]) -> String {
        let Get { host, path, query, region, time } = self;
        let mut headers = vec![("host", *host), ("x-amz-content-sha256", NOTHING), ("x-amz-date", *time)];
        headers.extend(more);
        headers.sort_unstable();
        let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let canonical = format!("GET\n{path}\n{query}\n{lines}\n{names}\n{NOTHING}");
        let day = &time[..8];
        let scope = format!("{day}/{region}/s3/aws4_request");
        let hashed = hex(digest(&SHA256, canonical.as_bytes()).as_ref());
        let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{hashed}");
        let first = [b"AWS4", key].concat();
        let signing =
            [day, region, "s3", "aws4_request"].iter().fold(first, |key, part| mac(&key, part).as_ref().to_vec());
        let signature = hex(mac(&signing, &to_sign).as_ref());
        format!("AWS4-HMAC-SHA256 Credential={access_key}/{scope},SignedHeaders={names},Signature={signature}")
    }
}

fn mac(key: &[u8], text: &str) -> Tag {
    sign(&Key::new(HMAC_SHA256, key), text.as_bytes())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    /// The first example of the source.
    #[test]
    fn the_signature_is_that_of_the_specification() {
        let get = Get {
            host: "examplebucket.s3.amazonaws.com",
            path: "/test.txt",
            query: "",
            region: "us-east-1",
            time: "20130524T000000Z",
        };
        let key = b"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
        assert_eq!(
            get.authorization("AKIAIOSFODNN7EXAMPLE", key, &[("range", "bytes=0-9")]),
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
             SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,\
             Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
    }

    #[test]
    fn an_object_is_addressed_by_its_path() {
        let s3 = S3 { endpoint: Some("http://minio:80/".into()), ..S3::default() };
        let (url, headers) = request("s3://apps/a b/ü+1.tgz", &s3, None, UNIX_EPOCH);
        assert_eq!((url.as_str(), headers.len()), ("http://minio:80/apps/a%20b/%C3%BC%2B1.tgz", 0));
        let (url, _) = request("s3://apps/a", &S3 { endpoint: None, ..s3 }, None, UNIX_EPOCH);
        assert_eq!(url, "https://s3.us-east-1.amazonaws.com/apps/a");
        assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(1_369_353_600)), "20130524T000000Z");
    }
}
