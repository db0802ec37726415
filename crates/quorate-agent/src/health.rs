//! Whether a running process does its work.
//!
//! One task per run of a process. Until the first check passes it asks often, so that a new copy
//! gets requests soon; afterwards every `every`.
//!
//! Databases that speak PostgreSQL's protocol are asked by `sql`, all others by `exec`, with the client that they
//! come with. The cluster's own database says nothing of one copy.

pub(crate) mod exec;
mod grpc;
pub(crate) mod sql;

use exec::Exec;
use quorate_model::spec::HealthCheck;
use sql::Sql;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// A process without a check counts as healthy once it has run this long. Programs that die of a
/// bad option or a taken port do so within a fraction of it, so they are not called healthy first.
const SETTLED_AFTER: Duration = Duration::from_millis(300);

/// The shortest pause between checks of a process that has not passed one yet.
const EAGER_PAUSE_MIN: Duration = Duration::from_millis(50);

/// An answer's status line is shorter than this, or it is not HTTP.
const STATUS_LINE_BYTES_MAX: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No check has been finished.
    Unasked,
    /// Checks have failed and none has passed.
    NotYet,
    Healthy,
    Unhealthy,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) verdict: Verdict,
    /// Why the last `fail_after` checks failed; empty while that is not so.
    pub(crate) detail: String,
}

/// What to ask, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) check: HealthCheck,
    pub(crate) at: Place,
}

/// Where the answer comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Port {
        host: String,
        port: u16,
    },
    Exec(Exec),
    Sql(Sql),
    /// Not known yet: nothing is asked, and nothing is said.
    Unknown,
}

/// Watches one run of a process; ends with the value.
#[derive(Debug)]
pub(crate) struct HealthWatch {
    pub(crate) health: watch::Receiver<Health>,
    task: JoinHandle<()>,
}

impl HealthWatch {
    /// `ran`: how long the process has already been running.
    pub(crate) fn start(target: Option<Target>, ran: Duration) -> HealthWatch {
        let (sender, health) = watch::channel(Health { verdict: Verdict::Unasked, detail: String::new() });
        let task = tokio::spawn(async move {
            match target {
                Some(Target { at: Place::Unknown, .. }) => sender.closed().await,
                Some(target) => ask_forever(target, sender).await,
                None => {
                    sleep(SETTLED_AFTER.saturating_sub(ran)).await;
                    sender.send_replace(Health { verdict: Verdict::Healthy, detail: String::new() });
                    // Keeps the channel open: its end would look like a change.
                    sender.closed().await;
                }
            }
        });
        HealthWatch { health, task }
    }
}

impl Drop for HealthWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn ask_forever(target: Target, sender: watch::Sender<Health>) {
    let every = target.check.every.0;
    let (mut verdict, mut failures) = (Verdict::Unasked, 0);
    loop {
        let begun = Instant::now();
        let answer = timeout(target.check.timeout.0, ask(&target)).await.unwrap_or_else(|_| Err(target.is_late()));
        let mut detail = String::new();
        match answer {
            Ok(()) => (verdict, failures) = (Verdict::Healthy, 0),
            Err(reason) => {
                failures += 1;
                verdict = match verdict {
                    Verdict::Unasked | Verdict::NotYet => Verdict::NotYet,
                    Verdict::Healthy if failures < target.check.fail_after => Verdict::Healthy,
                    Verdict::Healthy | Verdict::Unhealthy => Verdict::Unhealthy,
                };
                if failures >= target.check.fail_after {
                    detail = reason;
                }
            }
        }
        let health = Health { verdict, detail };
        sender.send_if_modified(|last| {
            let differs = *last != health;
            *last = health;
            differs
        });
        let pause = if verdict == Verdict::NotYet { (every / 10).max(EAGER_PAUSE_MIN) } else { every };
        sleep_until(begun + pause).await;
    }
}

impl Target {
    fn is_late(&self) -> String {
        let within = self.check.timeout;
        match &self.at {
            Place::Unknown => "it cannot be asked yet".to_owned(),
            Place::Port { port, .. } | Place::Sql(Sql { port, .. }) => {
                format!("no answer from port {port} within {within}")
            }
            Place::Exec(exec) => {
                format!("{} did not end within {within}", exec.command.first().map_or("", String::as_str))
            }
        }
    }
}

/// One check. The error is a reason for people.
async fn ask(target: &Target) -> Result<(), String> {
    let Target { check, at } = target;
    let (host, port) = match at {
        Place::Port { host, port } => (host, port),
        Place::Exec(exec) => return exec::run(exec).await,
        Place::Sql(sql) => return sql::ask(sql, check.timeout.0).await,
        Place::Unknown => return Err(target.is_late()),
    };
    let mut stream =
        TcpStream::connect((host.as_str(), *port)).await.map_err(|error| format!("port {port}: {}", short(&error)))?;
    if let Some(service) = &check.grpc {
        return grpc::ask(stream, &format!("{host}:{port}"), service).await;
    }
    let Some(path) = &check.http else { return Ok(()) };
    let broken = |error: std::io::Error| format!("GET {path}: {}", short(&error));
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: quorate-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(broken)?;
    let mut head = Vec::with_capacity(256);
    while !head.contains(&b'\n') {
        if head.len() > STATUS_LINE_BYTES_MAX || stream.read_buf(&mut head).await.map_err(broken)? == 0 {
            return Err(format!("GET {path}: the answer is not HTTP"));
        }
    }
    match status_of(&head) {
        Some(200..=399) => Ok(()),
        Some(status) => Err(format!("GET {path}: status {status}")),
        None => Err(format!("GET {path}: the answer is not HTTP")),
    }
}

/// The kind's words, without the number that std puts behind them.
fn short(error: &std::io::Error) -> String {
    error.kind().to_string()
}

fn status_of(head: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(head.split(|byte| *byte == b'\n').next()?).ok()?;
    let mut words = line.split_ascii_whitespace();
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next().filter(|code| code.len() == 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_model::time::Span;
    use tokio::net::TcpListener;

    #[test]
    fn a_status_is_read_from_the_first_line_alone() {
        assert_eq!(status_of(b"HTTP/1.1 204 No Content\r\nX: HTTP/1.1 500\r\n"), Some(204));
        assert_eq!(status_of(b"HTTP/1.0 503\r\n"), Some(503));
        for bad in [&b"SSH-2.0-OpenSSH\r\n"[..], b"HTTP/1.1\r\n", b"HTTP/1.1 20 x\n", b"\xff\xfe\n", b"\n"] {
            assert_eq!(status_of(bad), None);
        }
    }

    /// A server that gives one answer after the other and then hangs.
    async fn server(answers: Vec<&'static str>) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut open = Vec::new();
            let mut answers = answers.into_iter();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                match answers.next() {
                    Some(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
                    None => open.push(stream),
                }
            }
        });
        let ms = Span::from_millis;
        let check = HealthCheck {
            http: Some("/ok".into()),
            tcp: None,
            exec: None,
            grpc: None,
            sql: None,
            port: None,
            every: ms(20),
            timeout: ms(200),
            fail_after: 2,
        };
        Target { check, at: Place::Port { host: "127.0.0.1".into(), port } }
    }

    #[tokio::test]
    async fn one_failure_is_forgiven_and_fail_after_in_a_row_are_not() {
        const OK: &str = "HTTP/1.1 200 OK\r\n\r\n";
        const BAD: &str = "HTTP/1.1 503 Busy\r\n\r\n";
        let target = server(vec![BAD, OK, BAD, OK, BAD, BAD, OK]).await;
        let no_answer = target.is_late();
        let mut watch = HealthWatch::start(Some(target), Duration::ZERO);
        let mut seen = Vec::new();
        // The last is a server that hangs: a timeout counts as a failure.
        while seen.len() < 5 {
            timeout(Duration::from_secs(20), watch.health.changed()).await.unwrap().unwrap();
            let health = watch.health.borrow_and_update().clone();
            seen.push((health.verdict, health.detail));
        }
        assert_eq!(
            seen,
            [
                (Verdict::NotYet, String::new()),
                (Verdict::Healthy, String::new()),
                (Verdict::Unhealthy, "GET /ok: status 503".to_owned()),
                (Verdict::Healthy, String::new()),
                (Verdict::Unhealthy, no_answer),
            ]
        );
    }
}
