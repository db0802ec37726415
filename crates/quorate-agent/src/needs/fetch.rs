//! Brings an artifact's bytes to a file of this node.
//!
//! A download that was cut off goes on where it was, if the server can do that; whether the whole is right
//! is seen by its hash alone, so a server that changed the file meanwhile does no harm.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use ureq::http::StatusCode;
use ureq::http::header::RANGE;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

/// The largest artifact.
const BYTES_MAX: u64 = 64 << 30;
/// A connection that is not there by then, an answer that does not begin, a body that stands still.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
const READ_WITHIN: Duration = Duration::from_secs(30);

/// Where distributions keep the authorities that they believe.
const AUTHORITIES: &[&str] =
    &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Why an artifact's bytes are not here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    #[error("{url} answered {status}")]
    Status { url: String, status: u16 },
    #[error("{url} cannot be fetched")]
    Http {
        url: String,
        #[source]
        source: Box<ureq::Error>,
    },
    #[error("no file of authorities to believe: give it as SSL_CERT_FILE, or install ca-certificates")]
    Authorities,
    #[error("cannot read {}", path.display())]
    Source {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the disk is full")]
    DiskFull,
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("it has more than {BYTES_MAX} bytes")]
    TooLarge,
}

/// Copies a file, to the end of what is there already.
pub(super) fn copy(source: &Path, into: &Path) -> Result<(), FetchError> {
    let unreadable = |error| FetchError::Source { path: source.to_owned(), source: error };
    let mut from = File::open(source).map_err(unreadable)?;
    let mut to = File::create(into).map_err(|error| write_error(into, error))?;
    pour(&mut from, &mut to, into, unreadable)
}

/// Downloads a URL into a file, which may hold its beginning.
pub(super) fn download(url: &str, headers: &[(&str, String)], into: &Path) -> Result<(), FetchError> {
    let agent = agent(url)?;
    let have = std::fs::metadata(into).map_or(0, |meta| meta.len());
    let mut request = agent.get(url);
    if have > 0 {
        request = request.header(RANGE, format!("bytes={have}-"));
    }
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let failed = |source| FetchError::Http { url: url.to_owned(), source: Box::new(source) };
    let mut answer = request.call().map_err(failed)?;
    let mut file = match answer.status() {
        StatusCode::PARTIAL_CONTENT if have > 0 => OpenOptions::new().append(true).open(into),
        // The whole is there, or what is there is none of it: the hash tells.
        StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => return Ok(()),
        status if status.is_success() => File::create(into),
        status => return Err(FetchError::Status { url: url.to_owned(), status: status.as_u16() }),
    }
    .map_err(|error| write_error(into, error))?;
    let mut body = answer.body_mut().as_reader();
    pour(&mut body, &mut file, into, |error| FetchError::Http { url: url.to_owned(), source: Box::new(error.into()) })
}

fn agent(url: &str) -> Result<ureq::Agent, FetchError> {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT_WITHIN))
        .timeout_recv_response(Some(ANSWER_WITHIN))
        .timeout_per_read(Some(READ_WITHIN));
    // Others than those of the system are nobody's business here.
    let config = match url.starts_with("https:") {
        true => config.tls_config(tls()?),
        // It may lead to the other.
        false => match tls() {
            Ok(tls) => config.tls_config(tls),
            Err(_) => config,
        },
    };
    Ok(config.build().into())
}

/// The certificates (PEM) of the authorities that this system believes.
pub(crate) fn authorities() -> Result<Vec<u8>, FetchError> {
    let given = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let known = AUTHORITIES.iter().map(PathBuf::from);
    given.into_iter().chain(known).find_map(|path| std::fs::read(path).ok()).ok_or(FetchError::Authorities)
}

fn tls() -> Result<TlsConfig, FetchError> {
    let text = authorities()?;
    let certificates = parse_pem(&text).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let roots = RootCerts::Specific(Arc::new(certificates.collect()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(TlsConfig::builder().root_certs(roots).unversioned_rustls_crypto_provider(provider).build())
}

/// All of `from` to `to`, durably.
fn pour(
    from: &mut impl io::Read,
    to: &mut File,
    path: &Path,
    unreadable: impl Fn(io::Error) -> FetchError,
) -> Result<(), FetchError> {
    let mut chunk = vec![0; 256 << 10];
    let mut left = BYTES_MAX;
    loop {
        let read = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unreadable(error)),
        };
        left = left.checked_sub(read as u64).ok_or(FetchError::TooLarge)?;
        to.write_all(&chunk[..read]).map_err(|error| write_error(path, error))?;
    }
    to.sync_all().map_err(|error| write_error(path, error))
}

/// A full disk stays full for everybody else as long as half an artifact lies on it.
fn write_error(path: &Path, error: io::Error) -> FetchError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            let _ = std::fs::remove_file(path);
            FetchError::DiskFull
        }
        _ => FetchError::Write { path: path.to_owned(), source: error },
    }
}
