//! Redis: `AUTH`, `SELECT`, `PING`, and of a cluster whether it is whole.
//!
//! Four commands of which each is answered by one line or one text, so the protocol (RESP2) is spoken here.
//!
//! # Sources
//! Redis serialization protocol specification; commands AUTH, SELECT, PING, CLUSTER INFO.

use super::Try;
use super::wire::{MESSAGE_BYTES_MAX, broken, printable};
use quorate_model::external::{LoginProblem, Why};
use std::io::{self, Read, Write};

/// Logs in over a connection, and asks for a sign of life.
pub(super) fn login(wire: &mut (impl Read + Write), to: &Try<'_>) -> Result<(), LoginProblem> {
    match (&to.external.user, to.password) {
        (Some(user), password) => drop(ask(wire, &["AUTH", user, password.unwrap_or_default()])?),
        (None, Some(password)) => drop(ask(wire, &["AUTH", password])?),
        (None, None) => {}
    }
    if let Some(database) = to.external.database.as_deref().filter(|database| *database != "0") {
        ask(wire, &["SELECT", database])?;
    }
    if ask(wire, &["PING"])? != "PONG" {
        return Err(strange());
    }
    if to.external.is_redis_cluster() {
        let info = ask(wire, &["CLUSTER", "INFO"])?;
        let state = info.lines().find_map(|line| line.strip_prefix("cluster_state:")).unwrap_or("unknown");
        if state != "ok" {
            return Err(LoginProblem::new(Why::Unready, format!("its cluster is not whole: the state is {state}")));
        }
    }
    Ok(())
}

fn ask(wire: &mut (impl Read + Write), words: &[&str]) -> Result<String, LoginProblem> {
    let mut request = format!("*{}\r\n", words.len());
    words.iter().for_each(|word| request.push_str(&format!("${}\r\n{word}\r\n", word.len())));
    let sent = wire.write_all(request.as_bytes()).and_then(|()| wire.flush());
    sent.map_err(|error| broken(&error))?;
    let line = line(wire)?;
    match line.split_at_checked(1) {
        Some(("+", text)) => Ok(text.to_owned()),
        Some(("-", error)) => Err(refused(error)),
        Some(("$", length)) => {
            let length = length.parse().ok().filter(|length| *length <= MESSAGE_BYTES_MAX).ok_or_else(strange)?;
            let mut text = vec![0; length + 2];
            wire.read_exact(&mut text).map_err(|error| broken(&error))?;
            text.truncate(length);
            String::from_utf8(text).map_err(|_| strange())
        }
        _ => Err(strange()),
    }
}

fn line(wire: &mut impl Read) -> Result<String, LoginProblem> {
    let mut line = Vec::new();
    // A connection is not buffered: these are a few short lines.
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        match wire.read(&mut byte).map_err(|error| broken(&error))? {
            0 => return Err(broken(&io::ErrorKind::UnexpectedEof.into())),
            _ => line.push(byte[0]),
        }
        if line.len() > MESSAGE_BYTES_MAX {
            return Err(strange());
        }
    }
    String::from_utf8(line).map(|line| line.trim_end().to_owned()).map_err(|_| strange())
}

fn strange() -> LoginProblem {
    LoginProblem::new(Why::Protocol, "what answers is no Redis")
}

fn refused(error: &str) -> LoginProblem {
    let why = match error.split(' ').next().unwrap_or_default() {
        "WRONGPASS" | "NOAUTH" | "NOPERM" => Why::Login,
        "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" => Why::Unready,
        "ERR" if error.contains("AUTH") || error.contains("password") => Why::Login,
        "ERR" if error.contains("DB index") => Why::Database,
        "ERR" if error.contains("cluster support disabled") => {
            return LoginProblem::new(Why::Protocol, "it is no node of a cluster, and several hosts of Redis are one");
        }
        _ => Why::Protocol,
    };
    LoginProblem::new(why, format!("Redis says: {}", printable(error)))
}
