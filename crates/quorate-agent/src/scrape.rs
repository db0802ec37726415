//! Numbers that copies tell of themselves, on a page of metrics as Prometheus reads them.
//!
//! # Invariants
//! - A page is read for [`WITHIN`] and up to [`PAGE_BYTES_MAX`]: a copy that hangs, or tells without end, costs no
//!   more than that.
//! - What a copy did not tell this time is not told of it.

mod text;

use futures_util::{StreamExt as _, stream};
use quorate_model::id::ReplicaId;
use quorate_model::spec::Scrape;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::spawn_blocking;

const WITHIN: Duration = Duration::from_secs(1);
/// Pages of big programs have some hundred KiB.
const PAGE_BYTES_MAX: u64 = 2 << 20;
/// Copies that are asked at a time.
const AT_ONCE: usize = 8;

/// What to ask one copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) scrape: Scrape,
}

/// Why a copy told nothing.
#[derive(Debug, thiserror::Error)]
enum Untold {
    #[error(transparent)]
    Http(#[from] ureq::Error),
    #[error("status {0}")]
    Status(u16),
    #[error(transparent)]
    NoNumber(#[from] text::NoNumber),
}

/// What each copy tells, in thousandths.
pub(crate) async fn scrape(pages: BTreeMap<ReplicaId, Page>) -> BTreeMap<ReplicaId, u64> {
    let asked = pages.into_iter().map(|(replica, page)| async move {
        let url = page.url();
        match spawn_blocking(move || page.ask()).await.ok()? {
            Ok(number) => Some((replica, number)),
            Err(error) => {
                tracing::debug!(%replica, %url, %error, "a copy does not tell the number that it is scaled by");
                None
            }
        }
    });
    stream::iter(asked).buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await
}

impl Page {
    fn url(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("http://{host}:{}{}", self.port, self.scrape.path)
    }

    /// Blocks.
    fn ask(&self) -> Result<u64, Untold> {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // It is this copy that is asked, and nobody else.
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(WITHIN));
        let agent: ureq::Agent = config.build().into();
        let mut answer = agent.get(self.url()).header("accept", "text/plain; version=0.0.4").call()?;
        if !answer.status().is_success() {
            return Err(Untold::Status(answer.status().as_u16()));
        }
        let page = answer.body_mut().with_config().limit(PAGE_BYTES_MAX).lossy_utf8(true).read_to_string()?;
        Ok(thousandths(text::sum(&page, &self.scrape.name, &self.scrape.labels)?))
    }
}

/// An amount that is too large to tell is as large as can be told.
fn thousandths(amount: f64) -> u64 {
    (amount * 1000.0).round() as u64
}

/// For who tries to break it: the sum of the samples of `m{l="v"}`.
pub(crate) fn fuzz(page: &str) -> bool {
    let labels = BTreeMap::from([("l".to_owned(), "v".to_owned())]);
    let found = text::sum(page, "m", &labels);
    assert!(found.as_ref().is_ok_and(|sum| *sum >= 0.0) || found.is_err(), "{found:?}");
    found.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    fn page(port: u16) -> Page {
        let scrape =
            Scrape { port: None, path: "/metrics".into(), name: "jobs".into(), labels: BTreeMap::new(), target: 1 };
        Page { host: "127.0.0.1".into(), port, scrape }
    }

    /// A copy that answers one request like that.
    fn copy(answer: impl FnOnce(TcpStream) + Send + 'static) -> Page {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            answer(stream);
        });
        page(port)
    }

    fn answer(text: &'static str) -> Page {
        copy(move |mut stream| drop(stream.write_all(text.as_bytes())))
    }

    #[tokio::test]
    async fn k15_copies_tell_a_number_and_those_that_do_not_keep_nobody_waiting() {
        let well = answer("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\njobs 2.5\n");
        let away = answer("HTTP/1.1 302 Found\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n");
        let other = answer("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nwork 1\n");
        let endless = copy(|mut stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[b'#'; 4096]).is_ok() {}
        });
        let silent = copy(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
        let gone = page(TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
        let pages = [well, away, other, endless, silent, gone];
        let ids = (1..).map(ReplicaId::from_u128);
        let told = scrape(ids.zip(pages).collect()).await;
        assert_eq!(told, BTreeMap::from([(ReplicaId::from_u128(1), 2500)]));
    }

    #[test]
    fn amounts_are_told_in_thousandths_as_far_as_that_goes() {
        assert_eq!([0.0004, 0.0006, 1.5, 1e300].map(thousandths), [0, 1, 1500, u64::MAX]);
    }
}
