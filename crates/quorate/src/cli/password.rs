//! Passwords and tokens: asked for on the terminal, read from files, kept between commands.

use crate::cli::failure::{Exit, Failure};
use quorate_model::secret::Secret;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Asks on the terminal, without an echo. `otherwise`: what to use where nobody can be asked.
pub(crate) fn ask(question: &str, otherwise: &str) -> Result<Secret<String>, Failure> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() || !std::io::stderr().is_terminal() {
        return Err(Failure::new(Exit::Usage, "needs-password", "this needs a password, and nobody is there to ask")
            .fix(otherwise.to_owned()));
    }
    let failed = |error: std::io::Error| Failure::new(Exit::Failed, "io", "the password could not be read").why(error);
    let quiet = Quiet::new(&stdin).map_err(failed)?;
    let mut err = anstream::stderr();
    let mut line = String::new();
    let read = write!(err, "{question}: ").and_then(|()| err.flush()).and_then(|()| stdin.read_line(&mut line));
    drop(quiet);
    // The line end that was typed was not shown.
    let _ = writeln!(err);
    read.map_err(failed)?;
    Ok(Secret::new(line.trim_end_matches(['\r', '\n']).to_owned()))
}

/// A new password, typed twice.
pub(crate) fn ask_new(question: &str) -> Result<Secret<String>, Failure> {
    let otherwise = "give it with --password-file";
    let (once, again) = (ask(question, otherwise)?, ask("Once more", otherwise)?);
    if once == again { Ok(once) } else { Err(Failure::new(Exit::Usage, "differ", "the two passwords differ")) }
}

/// The terminal without its echo, until this is dropped.
struct Quiet<'a>(&'a std::io::Stdin, Termios);

impl<'a> Quiet<'a> {
    fn new(stdin: &'a std::io::Stdin) -> std::io::Result<Quiet<'a>> {
        let before = tcgetattr(stdin)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(stdin, OptionalActions::Flush, &quiet)?;
        Ok(Quiet(stdin, before))
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // There is nobody to tell that the terminal stays mute.
        let _ = tcsetattr(self.0, OptionalActions::Flush, &self.1);
    }
}

/// The first line of a file; `-` is standard input.
pub(crate) fn from_file(path: &Path) -> Result<Secret<String>, Failure> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.map_err(|error| {
        Failure::new(Exit::Usage, "unreadable", format!("{} cannot be read", path.display())).why(error)
    })?;
    match text.lines().next().map(str::trim_end).filter(|line| !line.is_empty()) {
        Some(line) => Ok(Secret::new(line.to_owned())),
        None => Err(Failure::new(Exit::Usage, "empty", format!("{} is empty", path.display()))),
    }
}

/// Sessions of `quorate login` by the servers that they are for, readable by their user alone.
#[derive(Debug)]
pub(crate) struct Sessions(PathBuf);

impl Sessions {
    /// `None`: the system knows no home.
    pub(crate) fn here() -> Option<Sessions> {
        let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let state = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")))?;
        Some(Sessions(state.join("quorate/sessions.json")))
    }

    fn read(&self) -> BTreeMap<String, String> {
        // A file that is missing, or that nobody can read any more, means a login.
        std::fs::read(&self.0).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    pub(crate) fn of(&self, servers: &[String]) -> Option<Secret<String>> {
        self.read().remove(&servers.join(",")).map(Secret::new)
    }

    /// `None` forgets it.
    pub(crate) fn keep(&self, servers: &[String], token: Option<&Secret<String>>) -> Result<(), Failure> {
        let mut all = self.read();
        match token {
            Some(token) => all.insert(servers.join(","), token.expose().clone()),
            None => all.remove(&servers.join(",")),
        };
        let text = serde_json::to_vec(&all).expect("texts by text are valid JSON");
        let unfinished = self.0.with_extension("new");
        let write = || {
            std::fs::create_dir_all(self.0.parent().unwrap_or(Path::new("/")))?;
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
            file.write_all(&text)?;
            std::fs::rename(&unfinished, &self.0)
        };
        write().map_err(|error: std::io::Error| {
            Failure::new(Exit::Failed, "io", format!("{} cannot be written", self.0.display())).why(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_session_is_kept_for_its_servers_and_for_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let sessions = Sessions(dir.path().join("deep/sessions.json"));
        let (a, b) = (["http://a".to_owned()], ["http://b".to_owned()]);
        let token = Secret::new("qs_1".to_owned());
        sessions.keep(&a, Some(&token)).unwrap();
        assert_eq!(sessions.of(&a), Some(token));
        assert_eq!(sessions.of(&b), None);
        assert_eq!(std::fs::metadata(&sessions.0).unwrap().permissions().mode() & 0o777, 0o600);
        sessions.keep(&a, None).unwrap();
        assert_eq!(sessions.of(&a), None);
    }

    #[test]
    fn a_password_is_the_first_line_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "correct horse \r\nsecond").unwrap();
        assert_eq!(from_file(&path).unwrap().expose(), "correct horse");
        std::fs::write(&path, "\n").unwrap();
        assert_eq!(from_file(&path).unwrap_err().exit, Exit::Usage);
    }
}
