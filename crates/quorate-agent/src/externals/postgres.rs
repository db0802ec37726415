//! PostgreSQL: a login by password (SCRAM-SHA-256, MD5 or in clear), and one query.
//!
//! Messages and SCRAM are those of `postgres-protocol`; here is only the order of a login. Externals are asked
//! `SELECT 1`, copies of services what their health check says.
//!
//! # Sources
//! PostgreSQL 15, chapter 55: Frontend/Backend Protocol.

use super::Try;
use super::wire::{MESSAGE_BYTES_MAX, Wire, broken, printable};
use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{ErrorResponseBody, Message};
use postgres_protocol::message::frontend;
use quorate_model::external::{LoginProblem, Tls, Why};
use std::io::{self, Read, Write};
use std::time::Instant;

/// Asks for TLS before anything else is said, if TLS is wanted.
pub(super) fn encrypted(mut wire: Wire, to: &Try<'_>) -> Result<Wire, LoginProblem> {
    if to.external.tls() == Tls::Off {
        return Ok(wire);
    }
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    wire.write_all(&request).map_err(|error| broken(&error))?;
    let mut answer = [0];
    wire.read_exact(&mut answer).map_err(|error| broken(&error))?;
    match answer[0] {
        b'S' => wire.encrypted(to),
        b'N' => Err(LoginProblem::new(Why::Tls, "no TLS: the server has none")),
        _ => Err(LoginProblem::new(Why::Protocol, "what answers is no PostgreSQL")),
    }
}

/// Who logs in, and where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Account<'a> {
    pub(crate) user: &'a str,
    /// Default: the one that is called as the user.
    pub(crate) database: Option<&'a str>,
    pub(crate) password: Option<&'a str>,
}

/// What a query gives first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum First {
    NoRow,
    Null,
    Value(String),
}

/// Logs in over a connection, asks for one row, and leaves.
pub(super) fn login(wire: &mut (impl Read + Write), to: &Try<'_>) -> Result<(), LoginProblem> {
    let (user, database) = (to.external.user.as_deref().unwrap_or_default(), to.external.database.as_deref());
    first(wire, Account { user, database, password: to.password }, "SELECT 1").map(|_| ())
}

/// Logs in without TLS, asks, and leaves.
pub(crate) fn ask(
    (host, port): (&str, u16),
    account: Account<'_>,
    query: &str,
    deadline: Instant,
) -> Result<First, LoginProblem> {
    first(&mut Wire::connect(host, port, deadline)?, account, query)
}

fn first(
    wire: &mut (impl Read + Write),
    Account { user, database, password }: Account<'_>,
    query: &str,
) -> Result<First, LoginProblem> {
    let mut talk = Talk { wire, heard: BytesMut::new() };
    let database = database.unwrap_or(user);
    talk.say(|out| frontend::startup_message([("user", user), ("database", database)], out))?;
    authenticate(&mut talk, user, password)?;
    until_ready(&mut talk)?;
    talk.say(|out| frontend::query(query, out))?;
    let first = until_ready(&mut talk)?;
    talk.say(|out| {
        frontend::terminate(out);
        Ok(())
    })?;
    Ok(first)
}

fn authenticate<W: Read + Write>(
    talk: &mut Talk<'_, W>,
    user: &str,
    password: Option<&str>,
) -> Result<(), LoginProblem> {
    let needed = || {
        let none = || LoginProblem::new(Why::Login, "it asks for a password, and the external has none");
        password.map(str::as_bytes).ok_or_else(none)
    };
    match talk.hear()? {
        Message::AuthenticationOk => return Ok(()),
        Message::AuthenticationCleartextPassword => {
            let password = needed()?;
            talk.say(|out| frontend::password_message(password, out))?;
        }
        Message::AuthenticationMd5Password(body) => {
            let hashed = md5_hash(user.as_bytes(), needed()?, body.salt());
            talk.say(|out| frontend::password_message(hashed.as_bytes(), out))?;
        }
        Message::AuthenticationSasl(body) => {
            let known = body.mechanisms().any(|mechanism| Ok(mechanism == SCRAM_SHA_256)).unwrap_or(false);
            if !known {
                return Err(LoginProblem::new(Why::Login, "it knows no SCRAM-SHA-256, and asks for it"));
            }
            scram(talk, needed()?)?;
        }
        Message::ErrorResponse(body) => return Err(refused(&body)),
        _ => {
            return Err(LoginProblem::new(
                Why::Login,
                "it asks for a way to log in that is none of scram-sha-256, md5, password",
            ));
        }
    }
    match talk.hear()? {
        Message::AuthenticationOk => Ok(()),
        Message::ErrorResponse(body) => Err(refused(&body)),
        _ => Err(strange()),
    }
}

fn scram<W: Read + Write>(talk: &mut Talk<'_, W>, password: &[u8]) -> Result<(), LoginProblem> {
    let mut scram = ScramSha256::new(password, ChannelBinding::unsupported());
    talk.say(|out| frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), out))?;
    match talk.hear()? {
        Message::AuthenticationSaslContinue(body) => scram.update(body.data()).map_err(|error| broken(&error))?,
        Message::ErrorResponse(body) => return Err(refused(&body)),
        _ => return Err(strange()),
    }
    talk.say(|out| frontend::sasl_response(scram.message(), out))?;
    match talk.hear()? {
        // The server proves that it knows the password as well.
        Message::AuthenticationSaslFinal(body) => scram.finish(body.data()).map_err(|error| broken(&error)),
        Message::ErrorResponse(body) => Err(refused(&body)),
        _ => Err(strange()),
    }
}

/// Waits until it takes the next query. Of the rows until then, the first value of the first one.
fn until_ready<W: Read + Write>(talk: &mut Talk<'_, W>) -> Result<First, LoginProblem> {
    let mut first = First::NoRow;
    loop {
        match talk.hear()? {
            Message::ReadyForQuery(_) => return Ok(first),
            Message::ErrorResponse(body) => return Err(refused(&body)),
            Message::DataRow(row) if first == First::NoRow => {
                let value = row.ranges().next().map_err(|error| broken(&error))?.flatten();
                let text = |range| printable(&String::from_utf8_lossy(row.buffer().get(range).unwrap_or_default()));
                first = value.map_or(First::Null, |range| First::Value(text(range)));
            }
            _ => {}
        }
    }
}

fn strange() -> LoginProblem {
    LoginProblem::new(Why::Protocol, "what answers is no PostgreSQL")
}

/// What the server says, sorted by its code.
fn refused(body: &ErrorResponseBody) -> LoginProblem {
    let (mut code, mut message) = (String::new(), String::new());
    let mut fields = body.fields();
    while let Ok(Some(field)) = fields.next() {
        let text = || printable(&String::from_utf8_lossy(field.value_bytes()));
        match field.type_() {
            b'C' => code = text(),
            b'M' => message = text(),
            _ => {}
        }
    }
    let why = match code.as_str() {
        "3D000" | "42501" => Why::Database,
        "28000" | "28P01" => Why::Login,
        "57P03" | "53300" => Why::Unready,
        _ => Why::Protocol,
    };
    LoginProblem::new(why, format!("PostgreSQL says: {message}"))
}

/// Messages over a connection.
struct Talk<'a, W> {
    wire: &'a mut W,
    heard: BytesMut,
}

impl<W: Read + Write> Talk<'_, W> {
    fn say(&mut self, write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<(), LoginProblem> {
        let mut out = BytesMut::new();
        let sent = write(&mut out).and_then(|()| self.wire.write_all(&out)).and_then(|()| self.wire.flush());
        sent.map_err(|error| broken(&error))
    }

    fn hear(&mut self) -> Result<Message, LoginProblem> {
        loop {
            // The length of a message is behind its kind.
            if let Some(length) = self.heard.get(1..5) {
                let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]);
                if length as usize > MESSAGE_BYTES_MAX {
                    return Err(strange());
                }
            }
            if let Some(message) = Message::parse(&mut self.heard).map_err(|_| strange())? {
                return Ok(message);
            }
            let mut chunk = [0; 1024];
            match self.wire.read(&mut chunk).map_err(|error| broken(&error))? {
                0 => return Err(broken(&io::ErrorKind::UnexpectedEof.into())),
                got => self.heard.extend_from_slice(&chunk[..got]),
            }
        }
    }
}
