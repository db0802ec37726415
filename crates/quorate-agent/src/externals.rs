//! Logs this node in to externals, as their clients do: whether one can be used is not guessed from an open port.
//!
//! Each host of an external is tried by itself, all at a time, and each try ends by [`WITHIN`]. What is found is
//! said in words that hold no password. A try changes nothing in the system: it logs in, asks for a sign of life,
//! and leaves.

pub(crate) mod postgres;
mod rabbitmq;
mod redis;
mod s3;
mod wire;

use quorate_model::external::{External, ExternalKind, HostLogin, LoginProblem, Why};
use quorate_model::secret::Secret;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};
use tokio::task::{JoinSet, spawn_blocking};
use wire::Wire;

/// How long one host may take from its name to its answer.
pub const WITHIN: Duration = Duration::from_secs(5);
/// A resolver that hangs does not know of our deadline.
const RESOLVER_MARGIN: Duration = Duration::from_secs(1);

/// One host to log in to.
pub(crate) struct Try<'a> {
    pub(crate) external: &'a External,
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) password: Option<&'a str>,
    pub(crate) deadline: Instant,
}

/// Logs in to every host. In the order of the external.
pub async fn login(external: &External, password: Option<&Secret<Vec<u8>>>) -> Vec<HostLogin> {
    let mut tries = JoinSet::new();
    for (at, (host, port)) in external.addresses().into_iter().enumerate() {
        let (external, password, host) = (external.clone(), password.cloned(), host.to_owned());
        let name = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        tries.spawn(async move {
            let tried = spawn_blocking(move || one(&external, &host, port, password.as_ref()));
            let problem = match tokio::time::timeout(WITHIN + RESOLVER_MARGIN, tried).await {
                Ok(Ok(tried)) => tried.err(),
                Ok(Err(error)) => Some(LoginProblem::new(Why::Protocol, error.to_string())),
                Err(_) => Some(LoginProblem::new(Why::Unresolved, "its name was not looked up in time")),
            };
            (at, HostLogin { host: name, problem })
        });
    }
    let mut found = tries.join_all().await;
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, login)| login).collect()
}

fn one(external: &External, host: &str, port: u16, password: Option<&Secret<Vec<u8>>>) -> Result<(), LoginProblem> {
    let password = password.map(|password| std::str::from_utf8(password.expose())).transpose();
    let password = password.map_err(|_| LoginProblem::new(Why::Login, "the password is no text"))?;
    let to = Try { external, host, port, password, deadline: Instant::now() + WITHIN };
    let wire = Wire::connect(host, port, to.deadline)?;
    match external.kind {
        ExternalKind::Postgres => postgres::login(&mut postgres::encrypted(wire, &to)?, &to),
        ExternalKind::Redis => redis::login(&mut wire.encrypted(&to)?, &to),
        ExternalKind::Rabbitmq => rabbitmq::login(&mut wire.encrypted(&to)?, &to),
        ExternalKind::S3 => s3::login(&mut wire.encrypted(&to)?, &to),
    }
}

/// What a login makes of a server that says these bytes, whatever it is told. For fuzzing and tests.
pub(crate) fn answered(kind: ExternalKind, answer: &[u8], password: &str) -> Result<(), LoginProblem> {
    /// Says what is to be heard, and hears nothing.
    struct Said<'a>(&'a [u8]);

    impl Read for Said<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.0.read(into)
        }
    }

    impl Write for Said<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let external = serde_json::json!({
        "name": "x", "kind": kind, "hosts": ["h1", "h2"], "user": "joe", "database": "0", "tls": "off",
    });
    let external: External = serde_json::from_value(external).expect("a whole external");
    let deadline = Instant::now() + WITHIN;
    let to = Try { external: &external, host: "h1", port: 1, password: Some(password), deadline };
    let mut said = Said(answer);
    match kind {
        ExternalKind::Postgres => postgres::login(&mut said, &to),
        ExternalKind::Redis => redis::login(&mut said, &to),
        ExternalKind::Rabbitmq => rabbitmq::login(&mut said, &to),
        ExternalKind::S3 => s3::login(&mut said, &to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(kind: ExternalKind, answer: &[u8]) -> Option<Why> {
        answered(kind, answer, "pw").err().map(|problem| problem.why)
    }

    #[test]
    fn e6_what_a_redis_says_is_sorted_by_what_to_do() {
        let why = |answer: &str| why(ExternalKind::Redis, answer.as_bytes());
        let state = |word: &str| format!("+OK\r\n+PONG\r\n${}\r\ncluster_state:{word}\r\n", 14 + word.len());
        assert_eq!(why(&state("ok")), None);
        assert_eq!(why(&state("fail")), Some(Why::Unready));
        assert_eq!(why("-WRONGPASS invalid username-password pair\r\n"), Some(Why::Login));
        assert_eq!(why("+OK\r\n-LOADING Redis is loading the dataset in memory\r\n"), Some(Why::Unready));
        assert_eq!(why("HTTP/1.1 400 Bad Request\r\n"), Some(Why::Protocol));
        assert_eq!(why("+OK\r\n+PONG\r\n$999999999\r\n"), Some(Why::Protocol), "nobody waits for that much");
        assert_eq!(why(""), Some(Why::Protocol));
    }

    #[test]
    fn e6_what_others_say_that_are_no_such_server_is_no_login() {
        for kind in ExternalKind::ALL {
            for answer in [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], b"AMQP\x00\x00\x09\x01", &[0; 64], &[0xff; 64]] {
                assert_eq!(why(kind, answer), Some(Why::Protocol), "{kind}: {answer:?}");
            }
        }
    }

    #[test]
    fn e6_what_an_s3_says_is_sorted_by_its_code() {
        let why = |status: &str, body: &str| {
            why(ExternalKind::S3, format!("HTTP/1.1 {status}\r\nserver: x\r\n\r\n{body}").as_bytes())
        };
        assert_eq!(why("200 OK", "<ListBucketResult></ListBucketResult>"), None);
        assert_eq!(why("200 OK", "<html></html>"), Some(Why::Protocol));
        assert_eq!(why("403 Forbidden", "<Error><Code>SignatureDoesNotMatch</Code></Error>"), Some(Why::Login));
        assert_eq!(why("404 Not Found", "<Error><Code>NoSuchBucket</Code></Error>"), Some(Why::Database));
        assert_eq!(why("503 Slow Down", ""), Some(Why::Unready));
    }
}
