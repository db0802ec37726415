//! What happened in a run, as a file of JSON lines that is enough to judge it again.
//!
//! Whatever the verdict says is computed from these lines and from nothing else, so a run can be
//! judged again later, elsewhere, or by a newer checker (`quorate torture --check FILE`).
//!
//! # Invariants
//! - The first line is [`Line::Run`]. Each operation is one line, written when its client gave up
//!   on it or was answered; [`Line::Resolved`] replaces the end of an earlier one.
//! - Times are nanoseconds since the run began, on the one clock that all clients share.
//! - A line that says [`End::Unknown`] is never turned into *refused*: nobody knows.

use crate::demo::ran;
use quorate_model::id::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Version of the lines; a program judges only those that it knows.
pub(crate) const FORMAT: u32 = 3;

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub(crate) enum Line {
    Run(Run),
    Operation(Operation),
    /// The operation with this number, of which nothing was known, was sent again under its id.
    Resolved {
        operation: u64,
        end: End,
    },
    Fault(Fault),
    Change(Change),
    Census(Census),
    Watched(Watched),
    /// Events as the cluster's own table has them, in their order.
    Events {
        events: Vec<Event>,
    },
    /// A follower had time enough for every event up to this index.
    CaughtUp {
        client: u32,
        up_to: u64,
    },
    Healed(Healed),
    Contents(Contents),
    Members(Members),
    /// The processes of services that run once, in the order of their beginnings.
    Once {
        ran: Vec<Ran>,
    },
    Over(Over),
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub format: u32,
    pub version: String,
    pub seed: u64,
    pub nodes: usize,
    /// The command that repeats it.
    pub repeat: String,
    /// Kinds of faults that the schedule has, with how often.
    pub planned: BTreeMap<String, u32>,
    /// The same of changes.
    pub planned_changes: BTreeMap<String, u32>,
    /// Kinds that cannot be had here.
    pub left_out: Vec<LeftOut>,
}

/// A part of the proof that is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeftOut {
    pub kind: String,
    pub why: String,
    pub fix: String,
}

/// One thing that a client asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Operation {
    pub number: u64,
    pub client: u32,
    /// The request id under which a write was sent, however often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<uuid::Uuid>,
    pub asked: u64,
    #[serde(flatten)]
    pub call: Call,
    pub end: End,
}

/// What a client asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub(crate) enum Call {
    /// Write `value`, which nobody else ever writes. An absent register reads as 0.
    Put {
        key: u64,
        value: u64,
    },
    /// Write `value` if the register holds `from`.
    Cas {
        key: u64,
        from: u64,
        value: u64,
    },
    Get {
        key: u64,
    },
    /// A read of one node's own files, however old.
    GetLocal {
        key: u64,
        node: String,
    },
    /// All steps at once, or none.
    Transaction {
        steps: Vec<Step>,
    },
    /// Insert a row that nobody else ever inserts.
    Insert {
        row: u64,
    },
    Scale {
        replicas: u32,
    },
}

impl Call {
    pub(crate) fn writes(&self) -> bool {
        match self {
            Call::Put { .. } | Call::Cas { .. } | Call::Insert { .. } | Call::Scale { .. } => true,
            Call::Get { .. } | Call::GetLocal { .. } => false,
            Call::Transaction { steps } => steps.iter().any(|step| matches!(step, Step::Append { .. })),
        }
    }
}

/// A step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Step {
    /// `value` is unique in its list.
    Append {
        list: u64,
        value: u64,
    },
    Read {
        list: u64,
    },
}

/// What became of it, as the client knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum End {
    /// `index`: the log entry of a write, or how far a read's node had applied the log.
    Answered { at: u64, index: u64, answer: Answer },
    /// It had no effect and will have none.
    Refused { at: u64, code: String },
    /// It may have an effect at any time after it was asked, or never.
    Unknown { at: u64, code: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    Done,
    /// Whether a compare-and-swap found what it wanted.
    Swapped(bool),
    Value(u64),
    /// What each reading step of a transaction found, in their order.
    Lists(Vec<Vec<u64>>),
}

/// A fault that was made, or was to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fault {
    pub kind: String,
    pub began: u64,
    pub ended: u64,
    /// What was done, to whom.
    pub what: String,
    /// How it was seen to be there: a probe that was dropped, a process that is gone.
    pub evidence: Option<String>,
    /// Why it was not made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// It hit the leader.
    #[serde(default)]
    pub leader: bool,
    /// Nodes that may have started anew in it; their own state may have gone back.
    #[serde(default)]
    pub restarted: Vec<String>,
}

/// Something that an operator did to the cluster, or was to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Change {
    pub kind: String,
    pub began: u64,
    pub ended: u64,
    /// What was done, to whom.
    pub what: String,
    /// How it was seen to have come about.
    pub evidence: Option<String>,
    /// Why it was not made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// How often the cluster was asked until it had answered.
    pub asked: u32,
    /// Kinds of the faults that were in force meanwhile.
    #[serde(default)]
    pub during: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<Removed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined: Option<Joined>,
    /// Nodes whose own state may have gone back in it.
    #[serde(default)]
    pub restarted: Vec<String>,
}

/// Who was removed for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Removed {
    pub id: NodeId,
    pub name: String,
    /// No list of this index of the log or a later one names it.
    pub gone_at: u64,
}

/// Who joined while the run went on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Joined {
    pub id: NodeId,
    pub name: String,
}

/// Whom a node calls members of the cluster: written when it is not what it said before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Census {
    pub at: u64,
    /// The node that says so.
    pub node: String,
    /// What it had applied.
    pub applied: u64,
    pub members: Vec<Member>,
}

/// A member, as a node says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Member {
    pub id: NodeId,
    pub name: String,
    pub manager: bool,
    pub votes: bool,
}

/// The members at the end, when all has healed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Members {
    /// Until all said the same, and were heard; absent: not in time.
    pub agreed_ms: Option<u64>,
    /// What was not so, last.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub wrong: String,
    /// Who should be one: by name, whether as a manager.
    pub expected: BTreeMap<String, bool>,
    pub seen: Vec<Seen>,
    /// Servers that were removed and run: by name, whether they know a leader.
    pub outcasts: BTreeMap<String, bool>,
}

/// What one member says and has at the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub node: String,
    pub members: Vec<Member>,
    /// Names of those that it does not see as joined.
    pub not_joined: Vec<String>,
    /// Names of those of whom its gossip did not say last that they are alive.
    pub not_alive: Vec<String>,
    /// Number of the newest authority, and whether it is the only one.
    pub authority: u32,
    pub only_authority: bool,
    /// SHA-256 of the authorities that lie on its disk, and of its gossip's keys.
    pub authorities: String,
    pub gossip_keys: String,
}

/// What one connection of a follower of events brought.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Watched {
    pub client: u32,
    pub node: String,
    pub at: u64,
    /// Log index of the last event that it had seen.
    pub after: u64,
    /// The node's window began later than `after`: what lies between was not to be had.
    pub missed: bool,
    pub events: Vec<Event>,
}

/// An event of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Event {
    pub index: u64,
    pub kind: String,
}

/// How the cluster came back after the last fault, without an operator. Milliseconds after the
/// faults ended; absent: not in time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Healed {
    pub leader_ms: Option<u64>,
    pub answering_ms: Option<u64>,
    /// All nodes hold the same at one index.
    pub equal_ms: Option<u64>,
    /// Exactly the wanted copies of the service run and are healthy.
    pub service_ms: Option<u64>,
    /// What was last seen of the service that was not right yet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service_wrong: String,
    pub copies_wanted: u32,
    /// Processes of the service that run on this machine.
    pub copies_running: u32,
    /// Per node, how often it compared digests with another since its start.
    pub digests_compared: BTreeMap<String, u64>,
    /// Events that say that two nodes differ.
    pub diverged: Vec<String>,
}

/// What one node holds at the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Contents {
    pub node: String,
    pub at: u64,
    pub applied: u64,
    pub registers: Vec<(u64, u64)>,
    /// Values of each list, in their order.
    pub lists: Vec<(u64, Vec<u64>)>,
    /// Every row, as often as it is there.
    pub rows: Vec<u64>,
}

/// The span in which a process ran, at least.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ran {
    pub service: String,
    pub epoch: u64,
    pub first: u64,
    pub last: u64,
}

/// How the run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Over {
    pub at: u64,
    /// Whether somebody stopped it.
    pub interrupted: bool,
    pub unexpected_deaths: Vec<String>,
    /// How often each attempt failed with which code.
    pub errors: BTreeMap<String, u64>,
    /// Faults that could not be ended and servers that did not come back, or did not stop in order.
    pub broken: Vec<String>,
}

/// The file of a run that goes on. Shared by all clients.
#[derive(Debug)]
pub(crate) struct Recorder {
    start: Instant,
    /// The same moment on CLOCK_BOOTTIME.
    start_boot: Duration,
    numbers: AtomicU64,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    file: BufWriter<File>,
    lines: Vec<Line>,
    failed: Option<io::Error>,
}

impl Recorder {
    /// # Errors
    /// When the file cannot be made.
    pub(crate) fn create(path: &Path) -> io::Result<Recorder> {
        let open = Open { file: BufWriter::new(File::create(path)?), lines: Vec::new(), failed: None };
        Ok(Recorder {
            start: Instant::now(),
            start_boot: ran::now(),
            numbers: AtomicU64::new(0),
            open: Mutex::new(open),
        })
    }

    /// Now, in nanoseconds since the run began.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A span in the run's own time.
    pub(crate) fn ran(&self, ran: ran::Ran) -> Ran {
        let since = |at: Duration| u64::try_from(at.saturating_sub(self.start_boot).as_nanos()).unwrap_or(u64::MAX);
        Ran { service: ran.service, epoch: ran.epoch, first: since(ran.first), last: since(ran.last) }
    }

    /// A number for the next operation.
    pub(crate) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn write(&self, line: Line) {
        let mut open = self.lock();
        let written = serde_json::to_writer(&mut open.file, &line)
            .map_err(io::Error::from)
            .and_then(|()| open.file.write_all(b"\n"));
        if let Err(error) = written {
            open.failed.get_or_insert(error);
        }
        open.lines.push(line);
    }

    /// Everything that was written, and whether it is all in the file.
    pub(crate) fn finish(&self) -> (Vec<Line>, io::Result<()>) {
        let mut open = self.lock();
        let flushed = open.file.flush();
        let written = match open.failed.take() {
            Some(error) => Err(error),
            None => flushed,
        };
        (std::mem::take(&mut open.lines), written)
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a record cannot be judged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    #[error("line {line} is not one of a record: {source}")]
    Line { line: usize, source: serde_json::Error },
    #[error("it does not begin with what was asked for")]
    NoRun,
    #[error("it has format {found}, and this program knows {FORMAT}")]
    Format { found: u32 },
}

/// Reads a record.
///
/// # Errors
/// [`RecordError`]; a last line that was cut off is one too.
pub(crate) fn read(path: &Path) -> Result<Vec<Line>, RecordError> {
    let mut lines = Vec::new();
    for (number, text) in BufReader::new(File::open(path)?).lines().enumerate() {
        let line = serde_json::from_str(&text?).map_err(|source| RecordError::Line { line: number + 1, source })?;
        lines.push(line);
    }
    match lines.first() {
        Some(Line::Run(run)) if run.format == FORMAT => Ok(lines),
        Some(Line::Run(run)) => Err(RecordError::Format { found: run.format }),
        _ => Err(RecordError::NoRun),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_what_it_was_written_as() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.jsonl");
        let recorder = Recorder::create(&path).unwrap();
        let run = Run {
            format: FORMAT,
            version: "0".into(),
            seed: 7,
            nodes: 3,
            repeat: "quorate torture --seed 7".into(),
            planned: BTreeMap::from([("kill".into(), 2)]),
            planned_changes: BTreeMap::from([("remove".into(), 1)]),
            left_out: Vec::new(),
        };
        recorder.write(Line::Run(run));
        for (call, answer) in [
            (Call::Put { key: 1, value: 2 }, Answer::Done),
            (Call::Cas { key: 1, from: 2, value: 3 }, Answer::Swapped(false)),
            (Call::GetLocal { key: 1, node: "n1".into() }, Answer::Value(2)),
            (
                Call::Transaction { steps: vec![Step::Append { list: 1, value: 2 }, Step::Read { list: 1 }] },
                Answer::Lists(vec![vec![2]]),
            ),
        ] {
            let end = End::Answered { at: recorder.now(), index: 9, answer };
            let number = recorder.number();
            recorder.write(Line::Operation(Operation { number, client: 1, id: None, asked: 0, call, end }));
        }
        let (lines, written) = recorder.finish();
        written.unwrap();
        assert_eq!(read(&path).unwrap(), lines);
        assert_eq!(lines.len(), 5);
    }

    #[test]
    fn what_is_no_record_is_refused_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.jsonl");
        std::fs::write(&path, "{\"is\":\"watching\"}\n").unwrap();
        assert!(matches!(read(&path), Err(RecordError::Line { line: 1, .. })));
        std::fs::write(&path, "").unwrap();
        assert!(matches!(read(&path), Err(RecordError::NoRun)));
    }
}
