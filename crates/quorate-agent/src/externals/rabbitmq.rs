//! RabbitMQ: a connection of AMQP 0-9-1 is opened to a virtual host, with PLAIN, and closed.
//!
//! That is three methods from each side; a whole client would be many times this file.
//!
//! # Sources
//! AMQP 0-9-1: specification, 2.2 (connections), 4.2 (frames); RabbitMQ: authentication failures.

use super::Try;
use super::wire::{MESSAGE_BYTES_MAX, broken, printable};
use quorate_model::external::{LoginProblem, Why};
use std::io::{self, Read, Write};

const METHOD: u8 = 1;
const FRAME_END: u8 = 0xCE;
/// Class and number of the methods of a connection.
const START: (u16, u16) = (10, 10);
const START_OK: (u16, u16) = (10, 11);
const TUNE: (u16, u16) = (10, 30);
const TUNE_OK: (u16, u16) = (10, 31);
const OPEN: (u16, u16) = (10, 40);
const OPEN_OK: (u16, u16) = (10, 41);
const CLOSE: (u16, u16) = (10, 50);
/// Codes of a refusal.
const ACCESS_REFUSED: u16 = 403;
const NOT_ALLOWED: u16 = 530;
const INVALID_PATH: u16 = 402;

/// Opens a connection to the virtual host, and closes it.
pub(super) fn login(wire: &mut (impl Read + Write), to: &Try<'_>) -> Result<(), LoginProblem> {
    send(wire, b"AMQP\x00\x00\x09\x01")?;
    expect(wire, START, Why::Protocol)?;
    let user = to.external.user.as_deref().unwrap_or_default();
    // Capabilities make RabbitMQ say why it refuses a login, where it would only hang up.
    let capability = field("authentication_failure_close", b't', &[1]);
    let properties = field("capabilities", b'F', &long(&capability));
    let plain = format!("\0{user}\0{}", to.password.unwrap_or_default());
    let answer = [long(&properties), short("PLAIN"), long(plain.as_bytes()), short("en_US")].concat();
    method(wire, START_OK, &answer)?;
    let tune = expect(wire, TUNE, Why::Login)?;
    // Channels, length of frames and heartbeat: as the server has them.
    method(wire, TUNE_OK, tune.get(..8).ok_or_else(strange)?)?;
    let host = to.external.database.as_deref().unwrap_or("/");
    method(wire, OPEN, &[short(host), short(""), vec![0]].concat())?;
    expect(wire, OPEN_OK, Why::Database)?;
    method(wire, CLOSE, &[200u16.to_be_bytes().to_vec(), short("bye"), vec![0; 4]].concat())
}

fn short(text: &str) -> Vec<u8> {
    let bytes = &text.as_bytes()[..text.len().min(255)];
    [&[u8::try_from(bytes.len()).unwrap_or(u8::MAX)][..], bytes].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes()[..], bytes].concat()
}

fn field(name: &str, kind: u8, value: &[u8]) -> Vec<u8> {
    [&short(name)[..], &[kind], value].concat()
}

fn send(wire: &mut impl Write, bytes: &[u8]) -> Result<(), LoginProblem> {
    wire.write_all(bytes).and_then(|()| wire.flush()).map_err(|error| broken(&error))
}

fn method(wire: &mut impl Write, (class, number): (u16, u16), arguments: &[u8]) -> Result<(), LoginProblem> {
    let payload = [&class.to_be_bytes()[..], &number.to_be_bytes(), arguments].concat();
    send(wire, &[&[METHOD, 0, 0][..], &long(&payload), &[FRAME_END]].concat())
}

/// The arguments of the next method, which is to be this one. `at`: what a connection that only ends is about.
fn expect(wire: &mut impl Read, wanted: (u16, u16), at: Why) -> Result<Vec<u8>, LoginProblem> {
    let ended = |error: io::Error| match (error.kind(), at) {
        (io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset, Why::Login) => {
            LoginProblem::new(Why::Login, "it ended the connection at the login")
        }
        _ => broken(&error),
    };
    let mut head = [0; 7];
    wire.read_exact(&mut head).map_err(ended)?;
    let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
    // One of another version answers with its own header, which is no frame.
    if head[0] != METHOD || !(4..=MESSAGE_BYTES_MAX).contains(&length) {
        return Err(strange());
    }
    let mut payload = vec![0; length + 1];
    wire.read_exact(&mut payload).map_err(|error| broken(&error))?;
    if payload.pop() != Some(FRAME_END) {
        return Err(strange());
    }
    let arguments = payload.split_off(4);
    match (u16::from_be_bytes([payload[0], payload[1]]), u16::from_be_bytes([payload[2], payload[3]])) {
        found if found == wanted => Ok(arguments),
        CLOSE => Err(refused(&arguments).unwrap_or_else(strange)),
        _ => Err(strange()),
    }
}

fn refused(arguments: &[u8]) -> Option<LoginProblem> {
    let code = u16::from_be_bytes([*arguments.first()?, *arguments.get(1)?]);
    let length = usize::from(*arguments.get(2)?);
    let text = String::from_utf8_lossy(arguments.get(3..3 + length)?).into_owned();
    let why = match code {
        ACCESS_REFUSED => Why::Login,
        NOT_ALLOWED | INVALID_PATH => Why::Database,
        _ => Why::Unready,
    };
    Some(LoginProblem::new(why, format!("RabbitMQ says: {}", printable(&text))))
}

fn strange() -> LoginProblem {
    LoginProblem::new(Why::Protocol, "what answers is no RabbitMQ")
}
