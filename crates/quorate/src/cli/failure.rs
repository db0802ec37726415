//! How a command fails: what to print, what a script sees, which status the process ends with.

use quorate_api::view::Problem;
use std::borrow::Cow;
use std::fmt;

/// How the process ends. The numbers are a contract with scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It was tried and did not work.
    Failed = 1,
    /// What was given is wrong; nothing was done.
    Usage = 2,
    /// No node of the cluster can be reached, or not the one that alone has what is wanted.
    Unreachable = 3,
    /// Nobody knows who asks, or they may not.
    NotAllowed = 4,
    /// No quorum, or not healthy.
    Unhealthy = 5,
    NotFound = 6,
    /// The cluster is in another state than the command needs.
    Conflict = 7,
    /// Wanted copies have no place or cannot be started.
    NotPlaced = 9,
    TimedOut = 10,
    /// Nothing is wrong as far as it was looked, and not everything could be looked at.
    Incomplete = 11,
    /// A signal came first.
    Interrupted = 130,
}

/// Why a command did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub exit: Exit,
    /// Stable, for programs.
    pub code: Cow<'static, str>,
    /// What went wrong.
    pub error: String,
    /// The cause, if it adds something.
    pub why: String,
    /// What to do about it.
    pub fix: String,
    /// What the API said besides; null elsewhere.
    pub details: Box<serde_json::Value>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, code: &'static str, error: impl Into<String>) -> Failure {
        Failure {
            exit,
            code: code.into(),
            error: error.into(),
            why: String::new(),
            fix: String::new(),
            details: Box::default(),
        }
    }

    pub(crate) fn why(mut self, why: impl fmt::Display) -> Failure {
        self.why = why.to_string();
        self
    }

    pub(crate) fn fix(mut self, fix: impl Into<String>) -> Failure {
        self.fix = fix.into();
        self
    }

    /// What the API refused, with HTTP status `status`.
    pub(crate) fn from_problem(status: u16, problem: Problem) -> Failure {
        Failure {
            exit: exit_of(status, &problem.code),
            code: problem.code.into(),
            error: problem.message,
            why: String::new(),
            fix: problem.fix,
            details: Box::new(problem.details),
        }
    }

    /// For `-o json`.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let message = if self.why.is_empty() { self.error.clone() } else { format!("{}: {}", self.error, self.why) };
        serde_json::json!({ "error": { "code": self.code, "message": message, "fix": self.fix } })
    }
}

/// The exit status for an answer of the API. Codes come first: they say more than the HTTP status.
fn exit_of(status: u16, code: &str) -> Exit {
    match (code, status) {
        ("no-quorum" | "no-leader", _) => Exit::Unhealthy,
        ("outcome-unknown" | "unknown-outcome", _) => Exit::TimedOut,
        ("node-unreachable", _) => Exit::Unreachable,
        // SQLite looked at it and refused: the command was right, its work failed.
        ("sql" | "sql-error", _) => Exit::Failed,
        (_, 401 | 403) => Exit::NotAllowed,
        (_, 404) => Exit::NotFound,
        (_, 409 | 412) => Exit::Conflict,
        (_, 400 | 405 | 413 | 415 | 422) => Exit::Usage,
        (_, 503) => Exit::Unhealthy,
        (_, 408 | 504) => Exit::TimedOut,
        _ => Exit::Failed,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", indented(&self.error))?;
        for (label, text) in [("why", &self.why), ("fix", &self.fix)] {
            if !text.is_empty() {
                write!(f, "\n{label}:   {}", indented(text))?;
            }
        }
        Ok(())
    }
}

/// Later lines begin under the first.
fn indented(text: &str) -> String {
    text.trim_end().replace('\n', "\n       ")
}

impl std::error::Error for Failure {}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let failure = Failure::new(Exit::Failed, "failed", error.to_string());
        let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
        if causes.is_empty() { failure } else { failure.why(causes.join(": ")) }
    }
}

/// The name among `known` that `wrong` was probably meant to be.
pub(crate) fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(wrong, name), name))
        .filter(|(distance, name)| *distance <= 2 && *distance < name.len().max(2))
        .min()
        .map(|(_, name)| name)
}

/// The failure of naming a `what` that does not exist.
pub(crate) fn unknown<'a>(
    what: &'static str,
    wrong: &str,
    known: impl IntoIterator<Item = &'a str>,
    list_command: &str,
) -> Failure {
    let known: Vec<&str> = known.into_iter().collect();
    let code = match what {
        "service" => "unknown-service",
        "node" => "unknown-node",
        "user" => "unknown-user",
        "role" => "unknown-role",
        _ => "not-found",
    };
    let failure = Failure::new(Exit::NotFound, code, format!("there is no {what} `{wrong}`"));
    match nearest(wrong, known.iter().copied()) {
        Some(name) => failure.fix(format!("did you mean `{name}`?")),
        None if known.is_empty() => failure.why(format!("the cluster has no {what}")),
        None => failure.fix(format!("choose one of {}; see `{list_command}`", known.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn problem(status: u16, code: &str) -> Exit {
        let problem = Problem { code: code.into(), message: "m".into(), fix: String::new(), details: ().into() };
        Failure::from_problem(status, problem).exit
    }

    #[test]
    fn scripts_can_tell_failures_apart_by_the_exit_status() {
        assert_eq!(problem(404, "unknown-service"), Exit::NotFound);
        assert_eq!(problem(409, "route-taken"), Exit::Conflict);
        assert_eq!(problem(422, "invalid"), Exit::Usage);
        assert_eq!(problem(503, "no-leader"), Exit::Unhealthy);
        assert_eq!(problem(503, "node-unreachable"), Exit::Unreachable);
        assert_eq!(problem(504, "outcome-unknown"), Exit::TimedOut);
        assert_eq!(problem(400, "sql-error"), Exit::Failed);
        assert_eq!(problem(500, "whatever"), Exit::Failed);
        assert_eq!(problem(401, "login-needed"), Exit::NotAllowed);
        assert_eq!(problem(403, "not-allowed"), Exit::NotAllowed);
    }

    #[test]
    fn a_failure_says_what_why_and_what_to_do() {
        let failure = Failure::new(Exit::Conflict, "port-in-use", "port 8001 is taken")
            .why("Address already in use (os error 98)")
            .fix("quorate dev --port-base 8200\nor stop what listens there");
        expect![[r"
            error: port 8001 is taken
            why:   Address already in use (os error 98)
            fix:   quorate dev --port-base 8200
                   or stop what listens there"]]
        .assert_eq(&failure.to_string());
    }

    #[test]
    fn a_misspelt_name_gets_a_suggestion_and_a_strange_one_gets_the_list() {
        let known = ["web", "demo"];
        assert_eq!(unknown("service", "wbe", known, "quorate service list").fix, "did you mean `web`?");
        assert_eq!(
            unknown("service", "billing", known, "quorate service list").fix,
            "choose one of web, demo; see `quorate service list`"
        );
        assert_eq!(nearest("n9", ["n1", "n2"]), Some("n1"));
        assert_eq!(nearest("x", ["n1"]), None);
    }
}
