//! Numbers that copies tell of themselves, on a page of metrics as Prometheus reads them.
//!
//! # Invariants
//! - A page is read for [`WITHIN`] and up to [`PAGE_BYTES_MAX`]: a copy that hangs, or tells without end, costs no
//!   more than that.
//! - What a copy did not tell this time is not told of it, and why not is said instead.

mod text;

use futures_util::{StreamExt as _, stream};
use quorate_model::id::{ReplicaId, ServiceName};
use quorate_model::observed::Told;
use quorate_model::spec::Scrape;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::spawn_blocking;

const WITHIN: Duration = Duration::from_secs(1);
/// Pages of big programs have some hundred KiB.
const PAGE_BYTES_MAX: u64 = 2 << 20;
/// Copies that are asked at a time.
const AT_ONCE: usize = 8;

/// Longest reason that is passed on, in characters.
const REASON_MAX: usize = 300;

/// What to ask one copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) service: ServiceName,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) scrape: Scrape,
}

/// Why a copy told nothing.
#[derive(Debug, thiserror::Error)]
enum Untold {
    #[error("no answer within {}s", WITHIN.as_secs())]
    TooSlow,
    #[error("the page is larger than {} MiB", PAGE_BYTES_MAX >> 20)]
    TooLarge,
    #[error(transparent)]
    Http(ureq::Error),
    #[error("the answer has status {0}")]
    Status(u16),
    #[error("there is no {0}")]
    Absent(String),
    #[error(transparent)]
    NoNumber(text::NoNumber),
}

impl From<ureq::Error> for Untold {
    fn from(error: ureq::Error) -> Untold {
        match error {
            ureq::Error::Timeout(_) => Untold::TooSlow,
            ureq::Error::BodyExceedsLimit(_) => Untold::TooLarge,
            other => Untold::Http(other),
        }
    }
}

/// What each copy tells; of each service, what was wrong with the first of its copies that tells nothing.
pub(crate) async fn scrape(pages: BTreeMap<ReplicaId, Page>) -> Told {
    let asked = pages.into_iter().map(|(replica, page)| async move {
        let (service, url) = (page.service.clone(), page.url());
        let answer = spawn_blocking(move || page.ask()).await.ok()?;
        Some((replica, service, answer.map_err(|error| format!("{url}: {error}"))))
    });
    let mut answers: Vec<_> =
        stream::iter(asked).buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await;
    answers.sort();
    let mut told = Told::default();
    for (replica, service, answer) in answers {
        match answer {
            Ok(number) => drop(told.numbers.insert(replica, number)),
            Err(why) => drop(told.untold.entry(service).or_insert_with(|| why.chars().take(REASON_MAX).collect())),
        }
    }
    told
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
        match text::sum(&page, &self.scrape.name, &self.scrape.labels) {
            Ok(sum) => Ok(thousandths(sum)),
            Err(text::NoNumber::Absent) => Err(Untold::Absent(self.sample())),
            Err(other) => Err(Untold::NoNumber(other)),
        }
    }

    /// As it would be on the page.
    fn sample(&self) -> String {
        let Scrape { name, labels, .. } = &self.scrape;
        let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}={value:?}")).collect();
        if labels.is_empty() { name.clone() } else { format!("{name}{{{}}}", labels.join(",")) }
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
        Page { service: ServiceName::new("web").unwrap(), host: "127.0.0.1".into(), port, scrape }
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
        assert_eq!(told.numbers, BTreeMap::from([(ReplicaId::from_u128(1), 2500)]));
        let [(service, why)] = &told.untold.into_iter().collect::<Vec<_>>()[..] else { panic!("one service") };
        assert_eq!(service.as_str(), "web");
        assert!(why.starts_with("http://127.0.0.1:") && why.ends_with("/metrics: the answer has status 302"), "{why}");
    }

    #[tokio::test]
    async fn k15_what_is_wrong_with_a_page_is_said() {
        let silent = copy(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
        let other = answer("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nwork 1\n");
        let mut labelled = answer("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\njobs 1\n");
        labelled.scrape.labels = BTreeMap::from([("queue".into(), "mail".into())]);
        let negative = answer("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\njobs -1\n");
        let endless = copy(|mut stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[b'#'; 1 << 16]).is_ok() {}
        });
        let ask = async |page: Page| {
            let told = scrape(BTreeMap::from([(ReplicaId::from_u128(1), page)])).await;
            let why = told.untold.into_values().next().unwrap();
            why.split_once("/metrics: ").unwrap().1.to_owned()
        };
        assert_eq!(ask(silent).await, "no answer within 1s");
        assert_eq!(ask(other).await, "there is no jobs");
        assert_eq!(ask(labelled).await, "there is no jobs{queue=\"mail\"}");
        assert_eq!(ask(negative).await, "line 1 has a value that is no amount");
        let endless = ask(endless).await;
        assert!(endless == "the page is larger than 2 MiB" || endless == "no answer within 1s", "{endless}");
    }

    #[test]
    fn amounts_are_told_in_thousandths_as_far_as_that_goes() {
        assert_eq!([0.0004, 0.0006, 1.5, 1e300].map(thousandths), [0, 1, 1500, u64::MAX]);
    }
}
