//! What can be wrong with settings, each with its place and a stable code.

use crate::cli::failure::{Exit, Failure};
use std::fmt;
use std::path::{Path, PathBuf};

/// Where a mistake was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Both count from 1, the column in characters.
    File {
        file: PathBuf,
        line: usize,
        column: usize,
    },
    WholeFile(PathBuf),
    /// The variable's name.
    Environment(String),
    CommandLine,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { file, line, column } => write!(f, "{}, line {line}, column {column}", file.display()),
            Place::WholeFile(file) => write!(f, "{}", file.display()),
            Place::Environment(name) => write!(f, "environment variable {name}"),
            Place::CommandLine => f.write_str("command line"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// Stable: `config-unknown-key`, `config-bad-value`, `config-contradiction`, `config-syntax`,
    /// `config-unreadable`.
    pub code: &'static str,
    pub place: Place,
    pub error: String,
    pub why: String,
    pub fix: String,
}

impl Mistake {
    pub(crate) fn new(code: &'static str, place: Place, error: impl Into<String>, fix: impl Into<String>) -> Mistake {
        Mistake { code, place, error: error.into(), why: String::new(), fix: fix.into() }
    }

    pub(crate) fn why(self, why: impl Into<String>) -> Mistake {
        Mistake { why: why.into(), ..self }
    }

    pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> Mistake {
        let fix = match error.kind() {
            std::io::ErrorKind::NotFound => "name a file that exists; an empty one is valid",
            std::io::ErrorKind::PermissionDenied => "run it as root, or as the owner of the file",
            _ => "look at the file and the disk that it is on",
        };
        Mistake::new("config-unreadable", Place::WholeFile(path.to_owned()), "the configuration cannot be read", fix)
            .why(error.to_string())
    }

    /// For `-o json`.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let place = match &self.place {
            Place::File { file, line, column } => serde_json::json!({ "file": file, "line": line, "column": column }),
            Place::WholeFile(file) => serde_json::json!({ "file": file }),
            Place::Environment(name) => serde_json::json!({ "environment": name }),
            Place::CommandLine => serde_json::json!({ "command_line": true }),
        };
        let message = if self.why.is_empty() { self.error.clone() } else { format!("{}: {}", self.error, self.why) };
        serde_json::json!({ "code": self.code, "message": message, "fix": self.fix, "place": place })
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.error, self.place)?;
        if !self.why.is_empty() {
            write!(f, ": {}", self.why)?;
        }
        write!(f, "; {}", self.fix)
    }
}

/// Everything that is wrong, at least one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistakes(pub Vec<Mistake>);

impl From<Mistake> for Mistakes {
    fn from(mistake: Mistake) -> Self {
        Mistakes(vec![mistake])
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Mistakes {}

impl From<Mistakes> for Failure {
    fn from(mistakes: Mistakes) -> Failure {
        let exit = match mistakes.0.first().map(|mistake| mistake.code) {
            Some("config-unreadable") => Exit::Failed,
            _ => Exit::Usage,
        };
        match &mistakes.0[..] {
            [one] => Failure::new(exit, one.code, format!("{} ({})", one.error, one.place))
                .why(&one.why)
                .fix(one.fix.clone()),
            all => {
                let code = all.first().map_or("config-bad-value", |first| first.code);
                Failure::new(exit, code, format!("the configuration has {} mistakes", all.len()))
                    .why(&mistakes)
                    .fix("correct them and try again; nothing was changed")
            }
        }
    }
}
