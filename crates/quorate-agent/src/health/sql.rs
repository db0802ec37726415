//! A check that is a query: the first value of its first row says whether the database is well.
//!
//! It logs in anew each time, as a client of the database would: one that still holds old connections but takes no
//! new one is not well. The protocol is PostgreSQL's ([`crate::externals::postgres`]), without TLS: the database is on
//! this server.

use crate::externals::postgres::{self, Account, First};
use quorate_model::secret::Secret;
use std::time::{Duration, Instant};
use tokio::task::spawn_blocking;

/// Whoever asks stops waiting at the check's own timeout; the thread that waits for the database ends this much later.
const MARGIN: Duration = Duration::from_secs(1);

/// Who asks what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sql {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) query: String,
    pub(crate) user: String,
    pub(crate) password: Option<Secret<String>>,
    pub(crate) database: Option<String>,
}

/// Asks once. The error is a reason for people.
pub(super) async fn ask(sql: &Sql, within: Duration) -> Result<(), String> {
    let (sql, deadline) = (sql.clone(), Instant::now() + within + MARGIN);
    let asked = spawn_blocking(move || {
        let password = sql.password.as_ref().map(|password| password.expose().as_str());
        let account = Account { user: &sql.user, database: sql.database.as_deref(), password };
        postgres::ask((&sql.host, sql.port), account, &sql.query, deadline)
    });
    let first = asked.await.map_err(|error| format!("sql: {error}"))?.map_err(|problem| format!("sql: {problem}"))?;
    verdict(&first)
}

fn verdict(first: &First) -> Result<(), String> {
    match first {
        First::Value(value) if value != "f" && value != "0" => Ok(()),
        First::Value(value) => Err(format!("sql: the query gives {value}")),
        First::Null => Err("sql: the query gives NULL".into()),
        First::NoRow => Err("sql: the query gives no row".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    /// A message of a server: its kind, its length, its words.
    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[kind][..], &length, body].concat()
    }

    /// A server that lets everybody in and answers each query with these messages.
    fn server(answer: Vec<u8>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = [0; 512];
            assert!(stream.read(&mut heard).unwrap() > 0);
            stream.write_all(&[message(b'R', &[0; 4]), message(b'Z', b"I")].concat()).unwrap();
            assert!(stream.read(&mut heard).unwrap() > 0);
            stream.write_all(&[answer, message(b'Z', b"I")].concat()).unwrap();
            // Until the client has gone.
            while stream.read(&mut heard).is_ok_and(|read| read > 0) {}
        });
        port
    }

    async fn asked(answer: Vec<u8>) -> Result<(), String> {
        let sql = Sql {
            host: "127.0.0.1".into(),
            port: server(answer),
            query: "SELECT well FROM me".into(),
            user: "joe".into(),
            password: None,
            database: None,
        };
        ask(&sql, Duration::from_secs(20)).await
    }

    fn row(values: &[Option<&str>]) -> Vec<u8> {
        let mut body = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
        for value in values {
            body.extend(value.map_or(-1, |value| i32::try_from(value.len()).unwrap()).to_be_bytes());
            body.extend(value.unwrap_or_default().as_bytes());
        }
        message(b'D', &body)
    }

    #[tokio::test]
    async fn a_database_is_well_when_the_first_value_is_neither_false_nor_missing() {
        assert_eq!(asked(row(&[Some("1")])).await, Ok(()));
        assert_eq!(asked(row(&[Some("t"), Some("f")])).await, Ok(()));
        assert_eq!(asked([row(&[Some("streaming")]), row(&[Some("f")])].concat()).await, Ok(()));
        let bad = |text: &str| Err(format!("sql: the query gives {text}"));
        assert_eq!(asked(row(&[Some("f"), Some("t")])).await, bad("f"));
        assert_eq!(asked(row(&[Some("0")])).await, bad("0"));
        assert_eq!(asked(row(&[None, Some("1")])).await, bad("NULL"));
        assert_eq!(asked(Vec::new()).await, bad("no row"));
        assert_eq!(asked(row(&[])).await, bad("NULL"), "a row of no columns");
    }

    #[tokio::test]
    async fn what_a_database_refuses_and_what_is_none_is_said() {
        let error = message(b'E', b"SERROR\0C42P01\0Mrelation \"me\" does not exist\0\0");
        assert_eq!(asked(error).await, Err("sql: PostgreSQL says: relation \"me\" does not exist".into()));
        assert_eq!(asked(vec![0xff; 64]).await, Err("sql: what answers is no PostgreSQL".into()));
    }
}
