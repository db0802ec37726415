//! A simulated server: its disk, its clocks, its process, and what its agent runs.
//!
//! The process is what `quorate serve` is: the real core, the real log and the real databases, moved
//! by a loop instead of threads. Jobs of the log and of the databases take simulated time; the work
//! itself is done by the shipped code.

use crate::agent::{Agent, Moment};
use crate::dice::Dice;
use crate::keys::Keys;
use quorate_lease::Clocks;
use quorate_model::id::{ClusterId, LogIndex, NodeId, RequestId, Term};
use quorate_model::observed::TrustReport;
use quorate_model::state::{NodeIdentity, Role};
use quorate_model::time::{Timestamp, WallTime};
use quorate_node::consensus::{Append, CommittedEntry, EntryKind, LogEntry, RecoveredLog};
use quorate_node::{Configuration, Event, Node, NodeOptions, Now, Ticket};
use quorate_store::databases::{Checkpointer, Manifest, Place, Reader};
use quorate_store::disk::memory::MemoryDisk;
use quorate_store::log::{self, LogIdentity, LogOptions};
use quorate_store::storage::{self, DatabaseStorage, LogStorage, OpenStorageError, StorageOptions};
use quorate_store::volume::MemoryVolume;
use quorate_vfs::memory::MemoryFs;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Simulated time begins here: 2026.
const EPOCH_US: i64 = 1_767_225_600_000_000;

/// One server.
#[derive(Debug)]
pub(crate) struct Machine {
    pub id: NodeId,
    pub number: usize,
    /// Dropped before the VFS that its connections use.
    pub process: Option<Process>,
    pub volume: Arc<MemoryVolume>,
    pub fs: MemoryFs,
    pub clock: Clock,
    /// Grows with each process: what was meant for an earlier one is lost.
    pub life: u64,
    pub agent: Agent,
    /// Disk jobs take so many times longer.
    pub slowness: u32,
    /// Each batch takes so much longer to apply.
    pub apply_longer: Duration,
    pub paused_until: Timestamp,
    /// Its log is damaged and it must never vote again.
    pub broken: bool,
    /// What its log has called durable. Entries that are being replaced no longer count.
    pub promised: Durable,
    /// Damage was done to its log on purpose.
    pub rotten: bool,
    /// Where it may find others before it has the cluster's records.
    pub contacts: BTreeMap<NodeId, String>,
    /// What it proves itself with; on its disk.
    pub keys: Keys,
    /// Its process has said so much of that.
    pub told: Option<TrustReport>,
    pub keeper_due: bool,
    /// Its place in the cluster.
    pub standing: Standing,
    /// It was told to end and will.
    pub leaving: bool,
    /// It shall stay off until this fault is over.
    pub off: bool,
    /// Its disk was told to fail; over when the process is.
    pub disk_fails: bool,
    pub disk_full: bool,
    /// For when the next look at its replicas' timers is planned.
    pub timer: Option<Timestamp>,
}

/// What a machine's disk must still hold after whatever happens to it: its newest vote, and the log up
/// to at least here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Durable {
    pub term: u64,
    pub vote: u64,
    pub last: u64,
}

/// What a machine is to the cluster, as its operator knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Not of it yet.
    Spare,
    /// It was admitted, or is to be.
    Joining,
    Member,
    Expelled,
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("opening the disk")]
    Disk(#[source] std::io::Error),
    #[error(transparent)]
    Storage(#[from] OpenStorageError),
}

/// How a machine tells time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    pub drift_ppm: i64,
    pub skew_us: i64,
    slew: Slew,
}

/// Somebody's correction of how fast a machine's clocks go; not of the raw one.
#[derive(Debug, Clone, Copy, Default)]
struct Slew {
    since: Timestamp,
    ppm: i64,
    /// What the clocks were ahead by then.
    gained_ns: i64,
}

impl Slew {
    fn gained_ns(self, now: Timestamp) -> i64 {
        let passed = i128::try_from(now.since(self.since).as_nanos()).expect("short");
        self.gained_ns + i64::try_from(passed * i128::from(self.ppm) / 1_000_000).expect("short")
    }
}

impl Clock {
    pub(crate) fn new(drift_ppm: i64, skew_us: i64) -> Clock {
        Clock { drift_ppm, skew_us, slew: Slew::default() }
    }

    /// From now on the clocks go so much faster.
    pub(crate) fn slew(&mut self, now: Timestamp, ppm: i64) {
        self.slew = Slew { since: now, ppm, gained_ns: self.slew.gained_ns(now) };
    }

    /// What `CLOCK_MONOTONIC_RAW` shows.
    fn raw(self, now: Timestamp) -> Duration {
        self.own(now.0)
    }

    /// What `CLOCK_BOOTTIME` shows.
    pub(crate) fn boot(self, now: Timestamp) -> Duration {
        let nanos = i128::try_from(self.raw(now).as_nanos()).expect("short") + i128::from(self.slew.gained_ns(now));
        Duration::from_nanos(u64::try_from(nanos.max(0)).expect("short"))
    }

    /// When it shows that, if nobody corrects it before.
    pub(crate) fn when_boot(self, now: Timestamp, at: Duration) -> Timestamp {
        let left = i128::try_from(at.saturating_sub(self.boot(now)).as_nanos()).expect("short");
        let real = left * 1_000_000 / (1_000_000 + i128::from(self.drift_ppm + self.slew.ppm)) + 1;
        now.plus(Duration::from_nanos(u64::try_from(real).expect("short")))
    }

    /// How much of its own time passes in this much real time.
    fn own(self, real: Duration) -> Duration {
        let nanos = i128::try_from(real.as_nanos()).expect("short");
        Duration::from_nanos(u64::try_from(nanos + nanos * i128::from(self.drift_ppm) / 1_000_000).expect("short"))
    }

    /// The real time in which at least this much of its own time passes.
    fn real(self, own: Duration) -> Duration {
        let nanos = i128::try_from(own.as_nanos()).expect("short");
        let real = nanos * 1_000_000 / (1_000_000 + i128::from(self.drift_ppm)) + 1;
        Duration::from_nanos(u64::try_from(real).expect("short"))
    }

    pub(crate) fn wall(self, now: Timestamp) -> WallTime {
        let passed = i64::try_from(self.own(now.0).as_micros()).expect("short");
        WallTime((EPOCH_US + passed + self.skew_us).max(0).cast_unsigned())
    }
}

/// Work for the log, as on the server's log thread.
#[derive(Debug)]
pub(crate) enum LogJob {
    Append(Append),
    Read { from: LogIndex, to_exclusive: LogIndex, bytes_max: usize },
    Shorten { durable: LogIndex },
    Reset { index: LogIndex, term: Term, hard_state: (u64, u64, u64) },
}

/// Work for the databases, as on the server's apply thread.
#[derive(Debug)]
pub(crate) enum ApplyJob {
    Apply(Vec<CommittedEntry>),
    Install { incoming: PathBuf, manifest: Manifest, hard_state: (u64, u64, u64) },
}

/// What a disk is doing for the log.
#[derive(Debug)]
pub(crate) enum LogWork {
    /// Everything up to this number of an append is written and being synced.
    Sync {
        number: u64,
        last: Option<LogIndex>,
        /// Term and vote.
        vote: Option<(u64, u64)>,
    },
    Other(LogJob),
}

/// A database that was received and waits.
#[derive(Debug)]
pub(crate) struct Received {
    pub directory: PathBuf,
    pub manifest: Manifest,
}

/// `quorate serve` on one machine.
#[derive(Debug)]
pub(crate) struct Process {
    pub node: Node,
    pub log: LogStorage<MemoryDisk>,
    pub log_jobs: VecDeque<LogJob>,
    pub log_work: Option<LogWork>,
    pub reader: Option<Reader>,
    pub checkpointer: Checkpointer,
    pub databases: DatabaseStorage,
    pub apply_jobs: VecDeque<ApplyJob>,
    pub apply_work: Option<ApplyJob>,
    pub applied: LogIndex,
    /// Events that wait for the node's next turn.
    pub inbox: Vec<Event>,
    pub next_turn: Option<Timestamp>,
    pub started: Timestamp,
    pub durable_at: Timestamp,
    pub received: Option<Received>,
    pub transfers: u64,
    /// Clients that wait for these, by number.
    pub waiters: BTreeMap<RequestId, u32>,
    /// The same for reads, with the number of the client's question.
    pub readers: BTreeMap<Ticket, (u32, u64)>,
    pub tickets: u64,
    /// As of the last sync that succeeded.
    pub durable: Durable,
    /// The runs of terms in the log as it was found, and the position before its first entry.
    pub found: (Vec<(LogIndex, Term)>, LogIndex),
    pub term_seen: Term,
    pub led: bool,
    /// The machines that it keeps links to.
    pub calls: BTreeSet<usize>,
    pub lease_clocks: Clocks,
}

/// What does not change in a run.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub cluster: ClusterId,
    /// With whom the cluster begins.
    pub voters: BTreeSet<NodeId>,
    /// All machines, those that join later too, by number.
    pub machines: Vec<NodeId>,
    pub replace_voter_after: Duration,
    pub segment_bytes: u64,
    pub retain: u64,
    pub replace_after: Duration,
}

impl Identity {
    /// The voters with which the cluster begins, as they are kept.
    pub(crate) fn genesis(&self) -> Vec<u8> {
        Configuration::of(self.voters.clone()).to_bytes()
    }
}

/// An entry of the log as consensus knows it.
pub(crate) fn entry_of_consensus(entry: log::LogEntry) -> LogEntry {
    let kind = match entry.kind {
        log::EntryKind::Normal => EntryKind::Normal,
        log::EntryKind::Membership => EntryKind::Membership,
    };
    LogEntry { index: entry.index, term: entry.term, kind, data: entry.data }
}

/// The other way.
pub(crate) fn entry_of_log(entry: LogEntry) -> log::LogEntry {
    let kind = match entry.kind {
        EntryKind::Normal => log::EntryKind::Normal,
        EntryKind::Membership => log::EntryKind::Membership,
    };
    log::LogEntry { index: entry.index, term: entry.term, kind, data: entry.data }
}

impl Machine {
    pub(crate) fn new(number: usize, id: NodeId, clock: Clock) -> Machine {
        let fs = MemoryFs::new();
        Machine {
            id,
            number,
            process: None,
            volume: Arc::new(MemoryVolume::new(&fs)),
            fs,
            clock,
            life: 0,
            agent: Agent::new(id),
            slowness: 1,
            apply_longer: Duration::ZERO,
            paused_until: Timestamp::default(),
            broken: false,
            promised: Durable::default(),
            rotten: false,
            contacts: BTreeMap::new(),
            keys: Keys::default(),
            told: None,
            keeper_due: false,
            standing: Standing::Member,
            leaving: false,
            off: false,
            disk_fails: false,
            disk_full: false,
            timer: None,
        }
    }

    /// Starts the process on what the disk holds.
    ///
    /// # Errors
    /// As the server: it does not start then.
    pub(crate) fn start(&mut self, now: Timestamp, identity: &Identity, dice: &mut Dice) -> Result<(), StartError> {
        self.life += 1;
        self.volume.set_now(self.clock.wall(now).as_micros());
        let disk = MemoryDisk::at(&self.fs, Path::new("/log")).map_err(StartError::Disk)?;
        let options = StorageOptions {
            identity: LogIdentity { cluster: identity.cluster, node: self.id },
            log: LogOptions { segment_bytes: identity.segment_bytes, ..LogOptions::new(dice.wide()) },
            retain: identity.retain,
            place: Place::on(self.volume.clone(), Path::new("/db")),
            voters: if identity.voters.contains(&self.id) { identity.genesis() } else { Vec::new() },
        };
        // Every machine is of this one cluster: that others are refused is seen elsewhere.
        let stored = storage::open(disk, &options, |_| true)?;
        let durable = Durable {
            term: stored.hard_state.term,
            vote: stored.hard_state.vote,
            last: stored.unapplied.last().map_or(stored.applied, |entry| entry.index).0,
        };
        let found = (stored.terms.clone(), stored.before.0);
        let configuration = Configuration::read(&stored.databases.voters()).expect("this version wrote it");
        let recovered = RecoveredLog {
            configuration,
            configured: stored.databases.voters_as_of(),
            term: stored.hard_state.term,
            vote: stored.hard_state.vote,
            commit: stored.hard_state.commit,
            before: stored.before,
            terms: stored.terms,
            unapplied: stored.unapplied.into_iter().map(entry_of_consensus).collect(),
        };
        let node_options = NodeOptions {
            identity: self.identity(),
            boot: dice.next(),
            contacts: self.contacts.clone(),
            replace_after: identity.replace_after,
            replace_voter_after: identity.replace_voter_after,
            seed: dice.next(),
        };
        let state = stored.databases.state().clone();
        let clocks = Now::of(Timestamp::default(), self.clock.wall(now));
        let node =
            Node::new(node_options, recovered, state, stored.applied, clocks).expect("a log that was just opened");
        let reader = stored.databases.readers().reader().ok();
        let checkpointer = stored.databases.checkpointer();
        self.process = Some(Process {
            node,
            log: stored.log,
            log_jobs: VecDeque::new(),
            log_work: None,
            reader,
            checkpointer,
            databases: stored.databases,
            apply_jobs: VecDeque::new(),
            apply_work: None,
            applied: stored.applied,
            inbox: Vec::new(),
            next_turn: None,
            started: now,
            durable_at: now,
            received: None,
            transfers: 0,
            waiters: BTreeMap::new(),
            readers: BTreeMap::new(),
            tickets: 0,
            durable,
            found,
            term_seen: Term(stored.hard_state.term),
            led: false,
            calls: BTreeSet::new(),
            lease_clocks: Clocks::starting(self.clock.boot(now), self.clock.raw(now)),
        });
        Ok(())
    }

    pub(crate) fn identity(&self) -> NodeIdentity {
        NodeIdentity {
            id: self.id,
            name: format!("n{}", self.number + 1),
            roles: BTreeSet::from([Role::Manager, Role::Worker]),
            api: format!("10.0.0.{}:7000", self.number + 1),
            link: format!("10.0.0.{}:7001", self.number + 1),
            host: format!("10.0.0.{}", self.number + 1),
        }
    }

    /// What the process reads off its clocks. Its monotonic one begins when it does.
    pub(crate) fn clocks(&self, now: Timestamp) -> Now {
        let started = self.process.as_ref().map_or(now, |process| process.started);
        let now = Now::of(Timestamp(self.clock.own(now.since(started))), self.clock.wall(now));
        match &self.process {
            Some(process) => {
                let clocks = &process.lease_clocks;
                Now { held: clocks.held(), waited: clocks.waited(), ..now }
            }
            None => now,
        }
    }

    /// The process reads the clocks by which leases are kept, as at each of its turns.
    pub(crate) fn read_lease_clocks(&mut self, now: Timestamp) {
        let (boot, raw) = (self.clock.boot(now), self.clock.raw(now));
        if let Some(process) = &mut self.process {
            process.lease_clocks.read(boot, raw);
        }
    }

    /// The moment as its agent sees it.
    pub(crate) fn moment(&self, now: Timestamp) -> Moment {
        Moment { now, boot: self.clock.boot(now) }
    }

    /// The real moment at which the process's monotonic clock shows this.
    pub(crate) fn real(&self, mono: Timestamp) -> Timestamp {
        let started = self.process.as_ref().map_or(Timestamp::default(), |process| process.started);
        started.plus(self.clock.real(mono.0))
    }

    /// Sectors of its log that a power cut could take.
    pub(crate) fn unsynced_log(&self) -> u64 {
        self.unsynced(Path::new("/log"), |name| name.starts_with("log-"))
    }

    /// Sectors of its databases' write-ahead logs that a power cut could take.
    pub(crate) fn unsynced_databases(&self) -> u64 {
        self.unsynced(Path::new("/db/current"), |name| name.ends_with("-wal"))
    }

    fn unsynced(&self, directory: &Path, counts: impl Fn(&str) -> bool) -> u64 {
        let names = self.fs.list(directory).unwrap_or_default();
        let files = names.iter().filter(|name| counts(name)).map(|name| directory.join(name));
        files.filter_map(|file| self.fs.unsynced_sectors(&file).ok()).sum()
    }

    /// When to look again whether a stopped process goes on; `None` if it runs.
    pub(crate) fn paused(&self, now: Timestamp) -> Option<Timestamp> {
        // A pause may end early, so nothing is put off to its end.
        let soon = now.plus(Duration::from_millis(200));
        (self.paused_until > now).then(|| self.paused_until.min(soon))
    }

    /// Whether an error of its disk is to be expected.
    pub(crate) fn disk_faulty(&self) -> bool {
        self.disk_fails || self.disk_full
    }

    /// Ends the process: `power` takes what was not synced and everything that the agent runs.
    pub(crate) fn end(&mut self, power: Option<u64>) {
        match power {
            Some(seed) => {
                self.fs.crash(seed);
                self.agent.lose_power();
            }
            None => self.fs.kill(),
        }
        self.disk_fails = false;
        self.leaving = false;
        (self.told, self.keeper_due) = (None, false);
        self.process = None;
        self.life += 1;
        self.paused_until = Timestamp::default();
    }
}
