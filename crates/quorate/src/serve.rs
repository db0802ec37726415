//! `quorate serve`: one node. The I/O shell around [`quorate_node::Node`].
//!
//! ```text
//!  API tasks ─┐                         ┌─▶ log thread ── Persisted ─┐
//!  link tasks ─┼─▶ inbox ─▶ core thread ─┼─▶ apply thread ─ Applied ──┼─▶ inbox
//!  agent task ─┘                         └─▶ sockets                  │
//!  clients ◀──────────── answers ───────────── apply thread ◀─────────┘
//! ```
//!
//! Each thread owns its state; nothing is shared but queues and a few published values. This file
//! opens what is on disk, binds the ports and starts the threads, in this order, so that whatever
//! cannot work fails before anything runs.

pub(crate) mod admission;
mod apply;
mod away;
mod backend;
mod bulk;
mod certificates;
mod checkpoint;
mod core;
mod counting;
mod discovery;
mod disk;
mod dns;
mod drills;
mod electors;
mod ending;
mod externals;
mod gossip;
mod ha;
mod inbox;
mod incarnation;
mod keeper;
mod keychain;
mod lease_clock;
mod link;
mod logs;
mod reads;
mod reload;
mod renewal;
mod secrets;
mod service_tokens;
mod spare;
mod survey;
mod tls;
mod turned_away;
mod view;
mod workloads;

pub(crate) use link::{BRING_BACK, MISSED_ROTATION, join_anew};

use crate::config::{self, NodeConfig};
use crate::daemon::LogControl;
use crate::gossip_keys;
use crate::keys::ManagerKeys;
use crate::settings::{Settings, Source};
use crate::trust::NodeFiles;
use admission::Admission;
use anyhow::{Context as _, bail};
use away::Away;
use backend::{Inner, LeaderContact, NodeBackend, Questions};
use bulk::{Bulk, Incoming};
use ending::Why;
use keeper::Keeper;
use keychain::{Held, Keychain};
use link::{Beside, Calls, LinkIdentity};
use logs::{Logs, Shelf};
use quorate_api::backend::AccessView;
use quorate_api::{ApiOptions, AuthMode, Limits};
use quorate_membership::seal::KeyRing;
use quorate_model::command::Refusal;
use quorate_model::member::NotAdmitted;
use quorate_model::state::{NodeIdentity, Role};
use quorate_node::consensus::RecoveredLog;
use quorate_node::{Configuration, Event, Node, NodeOptions, REPLACE_VOTER_AFTER};
use quorate_store::databases::Place;
use quorate_store::disk::real::RealDisk;
use quorate_store::log::{LogIdentity, LogOptions};
use quorate_store::storage::{self, OpenStorageError, StorageOptions, Stored};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tracing::info;

/// Readers: enough that one slow query does not hold up the others, few enough to stay small.
const READERS: usize = 4;
/// A node that is asked to end gets this long to tell the cluster, and to hand over if it leads.
const HANDOVER: Duration = Duration::from_secs(1);
/// What a farewell may take at most. Gossip says it three times within 60 ms.
const FAREWELL: Duration = Duration::from_millis(200);

/// Runs one node until it is told to end (SIGTERM or SIGINT).
///
/// # Errors
/// What cannot work at the start: the configuration, the disk, a port. Nothing runs then.
pub(crate) fn run(data_dir: &Path, configured: Configured) -> anyhow::Result<()> {
    let config = read_config(data_dir)?;
    let files = NodeFiles::read(data_dir)?;
    let manager = ManagerKeys::read(data_dir, &files.authorities)?;
    let ring = gossip_keys::read(data_dir)?;
    let acceptor = tls::Acceptor::new(&config, &files)?;
    let held = Held { files, manager };
    let _lock = lock(data_dir)?;
    let config = incarnation::carry_out(data_dir, config)?;
    // Behind the lock: a log has one writer.
    configured.log.keep_in(logs::own_dir(data_dir, config.node.id), configured.settings.log.keep_bytes())?;
    let stored = open(data_dir, &config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("io")
        .enable_all()
        .build()
        .context("starting the I/O threads")?;
    let trust = Trust { held, ring, acceptor };
    runtime.block_on(serve(data_dir, config, trust, stored, configured))
}

/// What this node proves itself with.
struct Trust {
    held: Held,
    /// Seals gossip.
    ring: Option<KeyRing>,
    acceptor: tls::Acceptor,
}

/// What the operator wants, and how it is changed later.
pub(crate) struct Configured {
    pub(crate) source: Source,
    pub(crate) settings: Settings,
    pub(crate) log: LogControl,
    /// Gossip's; on, unless to see what happens without.
    pub(crate) local_health: bool,
}

pub(crate) fn read_config(data_dir: &Path) -> anyhow::Result<NodeConfig> {
    let path = data_dir.join(config::FILE);
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let config: NodeConfig = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
    if config.log.retain < config::RETAIN_MIN {
        bail!("{}: log.retain is {} bytes; give {} or more", path.display(), config.log.retain, config::RETAIN_MIN);
    }
    Ok(config)
}

/// Two processes on one data directory would destroy it.
pub(crate) fn lock(data_dir: &Path) -> anyhow::Result<std::fs::File> {
    let path = data_dir.join("lock");
    let file = std::fs::File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    if file.try_lock().is_err() {
        bail!("{} is in use by another quorate serve", data_dir.display());
    }
    Ok(file)
}

/// The voters of a cluster that begins, as they are kept beside the database. A node that joined is told.
fn genesis(config: &NodeConfig) -> Vec<u8> {
    if config.voters.is_empty() {
        return Vec::new();
    }
    Configuration::of(config.voters.iter().map(|voter| voter.id).collect()).to_bytes()
}

/// Databases know no cluster, but they know its nodes, and ids of nodes are never used again: those
/// of another cluster have none in common with ours.
fn same_cluster(voters: &[u8], config: &NodeConfig) -> bool {
    let Ok(known) = Configuration::read(voters) else { return false };
    let ours = config.voters.iter().chain(&config.peers).map(|node| node.id);
    !known.is_known() || ours.chain([config.node.id]).any(|node| known.contains(node))
}

pub(crate) fn open(data_dir: &Path, config: &NodeConfig) -> anyhow::Result<(Stored<RealDisk>, LogOptions)> {
    quorate_agent::check_owner(&data_dir.join("services"), config.node.id).context("looking at the services here")?;
    let (log_dir, db_dir) = (data_dir.join("log"), data_dir.join("db"));
    for directory in [&log_dir, &db_dir] {
        std::fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    }
    // A power cut must not take the directories with everything in them.
    std::fs::File::open(data_dir)
        .and_then(|directory| directory.sync_all())
        .with_context(|| format!("syncing {}", data_dir.display()))?;
    let disk = RealDisk::at(&log_dir).with_context(|| format!("opening {}", log_dir.display()))?;
    let options = StorageOptions {
        identity: LogIdentity { cluster: config.cluster.id, node: config.node.id },
        log: LogOptions { segment_bytes: config.log.segment_bytes(), ..LogOptions::new(random_u128()?) },
        retain: config.log.retain,
        place: Place::from(&*db_dir),
        voters: genesis(config),
    };
    let stored = storage::open(disk, &options, |voters| same_cluster(voters, config)).map_err(|error| match error {
        OpenStorageError::Log(error) => {
            anyhow::Error::new(error).context(format!("opening the log in {}", log_dir.display()))
        }
        OpenStorageError::Databases(error) => {
            anyhow::Error::new(error).context(format!("opening the databases in {}", db_dir.display()))
        }
        error => anyhow::Error::new(error).context(format!("opening what is in {}", data_dir.display())),
    })?;
    Ok((stored, options.log))
}

/// The log as consensus wants to know it.
pub(crate) fn recovered_log(stored: &Stored<RealDisk>) -> anyhow::Result<RecoveredLog> {
    Ok(RecoveredLog {
        configuration: Configuration::read(&stored.databases.voters())?,
        configured: stored.databases.voters_as_of(),
        term: stored.hard_state.term,
        vote: stored.hard_state.vote,
        commit: stored.hard_state.commit,
        before: stored.before,
        terms: stored.terms.clone(),
        // The bytes themselves are shared.
        unapplied: stored.unapplied.iter().cloned().map(disk::entry_of_consensus).collect(),
    })
}

async fn serve(
    data_dir: &Path,
    config: NodeConfig,
    Trust { held, ring, acceptor }: Trust,
    (stored, log_options): (Stored<RealDisk>, LogOptions),
    Configured { source, settings, log: log_control, local_health }: Configured,
) -> anyhow::Result<()> {
    // From here on a SIGHUP does not end the process.
    let hangup = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
    if config.node.auth == AuthMode::Open && !config.node.api.ip().is_loopback() {
        tracing::warn!(api = %config.node.api, "whoever reaches the API may do everything: node.auth is open");
    }
    let api_listener = bind(config.node.api, "API").await?;
    let local_socket = bind_local(data_dir, config.node.auth)?;
    let dns = match settings.dns.listen {
        Some(address) => Some(dns::bind(address).await?),
        None => None,
    };
    let clock = core::Clock { started: Instant::now() };
    let mut lease_clock = lease_clock::LeaseClock::start();
    let identity = NodeIdentity {
        id: config.node.id,
        name: config.node.name.clone(),
        roles: config.node.roles.clone(),
        api: config.node.api_address().to_string(),
        link: config.node.link_address().to_string(),
        host: config.node.api_address().ip().to_string(),
    };
    let boot = random_u128()?;
    let replace_after = config.timers.replace_after.map_or(settings.ha.failover_time, |span| span.0);
    let options = NodeOptions {
        identity,
        boot: (boot >> 64) as u64,
        contacts: config.voters.iter().chain(&config.peers).map(|node| (node.id, node.link.to_string())).collect(),
        replace_after,
        replace_voter_after: config.timers.replace_voter_after.map_or(REPLACE_VOTER_AFTER, |span| span.0),
        seed: boot as u64,
    };
    let state = stored.databases.state().clone();
    let (expelled, expelled_seen) = watch::channel(state.cut_off());
    let lost = state.members.recovery.as_ref().map(|recovery| recovery.lost.clone()).unwrap_or_default();
    let (lost, lost_seen) = watch::channel(lost);
    let incarnation = config.cluster.incarnation.max(state.incarnation());
    let tls = Arc::new(link::LinkTls::new(&held.files, &config, expelled_seen)?);
    let keychain = Arc::new(Keychain::new(data_dir, &config, held, tls.clone(), acceptor.clone()));
    let mut node = Node::new(options, recovered_log(&stored)?, state, stored.applied, lease_clock.now(clock))?;
    node.show_unreachable_after(settings.cluster.timers.unreachable_after());
    if config.node.roles.contains(&Role::Worker) {
        node.offers(quorate_agent::capacity());
    }
    node.keeps_its_log_in(logs::own_dir(data_dir, config.node.id).display().to_string());
    info!(name = %config.node.name, id = %config.node.id, applied = %stored.applied, "starting");
    let (coordinates, coordinates_seen) = watch::channel(node.coordinates());
    // What cannot work fails now; where nobody is to be listened for, the port stays closed.
    let link_listener = if node.coordinates() { Some(bind(config.node.link, "node link").await?) } else { None };

    let (inbox, events) = inbox::inbox();
    let (disk_jobs, disk_queue) = channel();
    let (apply_jobs, apply_queue) = channel();
    let waiters = Arc::new(apply::Waiters::default());
    let questions = Arc::new(Questions::default());
    let contact = Arc::new(LeaderContact::default());
    let readers = reads::ReaderPool::start(stored.databases.readers(), READERS)?;
    let checkpoints = checkpoint::Checkpoints::start(stored.databases.checkpointer())?;
    let incoming = Incoming::new(data_dir.join("db"), inbox.clone());
    let shelf = Shelf::new(data_dir, config.node.id);
    let spare = spare::SpareMaker::start(data_dir.join("log"), log_options)?;

    let (log, disk_inbox) = (stored.log, inbox.clone());
    thread("log", move || disk::run(log, &disk_queue, &disk_inbox, &spare))?;
    let applier = apply::Applier {
        databases: stored.databases,
        jobs: apply_queue,
        disk: disk_jobs.clone(),
        inbox: inbox.clone(),
        waiters: waiters.clone(),
        readers: readers.clone(),
        checkpoints,
    };
    thread("apply", move || applier.run())?;

    let (beside, heard) = Beside::new();
    let newer = watch::Sender::new(incarnation);
    let away = Away::default();
    let me = LinkIdentity {
        cluster: config.cluster.id,
        node: config.node.id,
        link: config.node.link_address(),
        version: quorate_node::wire::VERSION,
        incarnation,
        newer: newer.clone(),
        lost: lost_seen,
        tls,
        beside: beside.clone(),
        away: away.clone(),
    };
    let calls = Calls::new(me.clone(), tokio::runtime::Handle::current(), inbox.clone());
    let (refused_peers, turned_away) = mpsc::channel(turned_away::WAITING);
    let (link, link_seen) = watch::channel(link_listener.is_some());
    let door = ha::Door {
        address: config.node.link,
        me: me.clone(),
        inbox: inbox.clone(),
        bulk: Bulk { incoming: incoming.clone(), shelf: shelf.clone() },
        refused: refused_peers,
        listens: link,
    };
    tokio::spawn(door.run(link_listener, coordinates_seen));

    let (snapshots, orders) = mpsc::unbounded_channel();
    tokio::spawn(send_snapshots(me.clone(), data_dir.join("db"), orders, inbox.clone()));

    let (overview, overview_seen) = watch::channel(Arc::new(view::overview(&node, &config, clock.now(), 0)));
    let (routing, routing_seen) = watch::channel(Arc::new(view::routing(&node)));
    let (directory, directory_seen) = watch::channel(Arc::new(discovery::directory(&node)));
    if let Some(sockets) = dns {
        dns::start(sockets, directory_seen.clone());
    }
    let (members, members_seen) = watch::channel(Arc::new(view::members(&node)));
    let (drills, drills_seen) = watch::channel(Arc::new(drills::view(&node)));
    let (known, known_seen) = watch::channel(Arc::new(view::known(&node)));
    let (proofs, proofs_seen) = watch::channel(Arc::new(view::proofs(&node)));
    let gossip = match ring {
        None => None,
        Some(ring) => {
            let (ring, ring_seen) = watch::channel(ring);
            let start = gossip::Start {
                generation: node.state().nodes.get(&config.node.id).map_or(0, |record| record.generation),
                timers: settings.cluster.timers,
                local_health,
                clock,
                ring: ring_seen.clone(),
                known: known_seen.clone(),
                beside: beside.clone(),
                away: away.clone(),
                answered: heard.answered,
                inbox: inbox.clone(),
            };
            let farewell = gossip::start(&config, start).await?;
            let (known, overview) = (known_seen.clone(), overview_seen.clone());
            let (data_dir, beside) = (data_dir.to_owned(), beside.clone());
            let keeper = gossip::keys::Keeper { data_dir, ring, beside, known, overview };
            tokio::spawn(keeper.run(heard.keys));
            Some((farewell, ring_seen))
        }
    };
    let (farewell, ring_seen) = gossip.unzip();
    let (refused, refused_seen) = watch::channel(None);
    let first = AccessView { applied: node.applied(), access: node.state().access.clone() };
    let (access, access_seen) = watch::channel(first);
    let (left, mut left_seen) = watch::channel(false);
    let (handed_over, handed_over_seen) = watch::channel(false);
    let (restart, mut restart_seen) = watch::channel(false);
    let (assignment, assignments) = watch::channel(None);
    let (holds, held_now) = watch::channel(BTreeMap::new());
    let (needs, needed) = watch::channel(Arc::new(node.state().needs_on(config.node.id)));
    let (queries, asked) = watch::channel(Arc::new(counting::queries(&node)));
    tokio::spawn(counting::run(asked, readers.clone(), inbox.clone()));
    let (may_read, may_read_seen) = watch::channel(Arc::default());
    let (held_secrets, secrets_held) = watch::channel(Arc::new(secrets::read(data_dir)));
    let giver = secrets::Giver {
        keychain: keychain.clone(),
        access: access_seen.clone(),
        readers: may_read_seen,
        beside: beside.clone(),
    };
    tokio::spawn(giver.run(heard.asked));
    let (service_tokens, service_tokens_seen) = watch::channel(Arc::default());
    let assigned = assignments.clone();
    let asker = externals::Asker::new(config.node.id, keychain.clone(), known_seen.clone(), beside.clone())?;
    tokio::spawn(asker.clone().hear(heard.tried));
    if config.node.roles.contains(&Role::Worker) {
        let dir = data_dir.to_owned();
        let wanted = workloads::Wanted {
            assignments,
            holds: held_now,
            secrets: secrets_held.clone(),
            tokens: service_tokens_seen,
            directory: directory_seen,
        };
        let taker = secrets::Taker {
            me: config.node.id,
            data_dir: dir.clone(),
            keychain: keychain.clone(),
            access: access_seen.clone(),
            known: known_seen.clone(),
            needs: needed.clone(),
            beside: beside.clone(),
            held: held_secrets,
        };
        tokio::spawn(taker.run(heard.given));
        let trier = externals::Trier { known: known_seen.clone(), beside: beside.clone() };
        tokio::spawn(trier.run(heard.tries));
        let given = workloads::Needed { needs: needed, secrets: secrets_held };
        tokio::spawn(workloads::look_for_drivers(inbox.clone()));
        tokio::spawn(workloads::prepare(dir.clone(), given, inbox.clone()));
        tokio::spawn(workloads::run(config.clone(), dir, wanted, inbox.clone()));
    }

    let core = core::Core {
        node,
        config: config.clone(),
        clock,
        lease_clock,
        events,
        disk: disk_jobs,
        apply: apply_jobs,
        calls,
        away: away.clone(),
        waiters: waiters.clone(),
        questions: questions.clone(),
        contact: contact.clone(),
        incoming,
        snapshots,
        expelled,
        lost,
        assignment,
        holds,
        needs,
        queries,
        readers: may_read,
        overview,
        members,
        drills,
        known,
        proofs,
        routing,
        directory,
        coordinates,
        refused,
        access,
        restart,
        handed_over,
        left,
    };
    thread("core", move || core.run())?;

    // Over plain HTTP a server that joins could not know to whom it speaks.
    let admission = (!config.node.plain_http).then(|| Admission::new(&config, keychain.clone(), ring_seen.clone()));
    let (signed_by, signed_by_seen) = watch::channel(None);
    tokio::spawn(renewal::run(config.clone(), keychain.clone(), known_seen.clone(), signed_by_seen, inbox.clone()));
    let leave = Arc::new(Notify::new());
    let (still_known, last_contact) = (known_seen.clone(), contact.clone());
    let ha_wished = config.cluster.ha || settings.ha.enabled;
    let (settings, settings_seen) = watch::channel(Arc::new(settings));
    tokio::spawn(reload::watch(source.clone(), settings_seen.clone(), inbox.clone()));
    tokio::spawn(reload::run(hangup, source, settings, log_control));
    let backend = NodeBackend(Arc::new(Inner {
        inbox: inbox.clone(),
        waiters,
        questions,
        readers,
        overview: overview_seen.clone(),
        members: members_seen,
        drills: drills_seen,
        away,
        externals: asker,
        known: known_seen,
        routing: routing_seen,
        access: access_seen,
        logs: Logs { shelf, me, overview: overview_seen },
        config: config.clone(),
        keychain: keychain.clone(),
        link: link_seen,
        proofs: proofs_seen.clone(),
        admission,
        leave: leave.clone(),
        contact,
        settings: settings_seen,
        replace_after,
        started: clock.started,
    }));
    if config.node.roles.contains(&Role::Worker) {
        let minter = service_tokens::Minter {
            data_dir: data_dir.to_owned(),
            assignments: assigned,
            access: backend.0.access.clone(),
            backend: backend.clone(),
            tokens: service_tokens,
        };
        tokio::spawn(minter.run());
    }
    tokio::spawn(turned_away::run(config.node.id, backend.clone(), turned_away));
    if ha_wished {
        tokio::spawn(ha::switch_on(config.node.id, backend.clone()));
    }
    let seen = keeper::Seen { known: backend.0.known.clone(), access: backend.0.access.clone(), proofs: proofs_seen };
    let keeper = Keeper { config: config.clone(), keychain, backend: backend.clone(), inbox: inbox.clone(), signed_by };
    tokio::spawn(keeper.run(seen));
    let api_options = ApiOptions {
        node_name: config.node.name.clone(),
        console_token: config.node.console_token.clone(),
        hosts: hosts(&config),
        auth: config.node.auth,
        tls: !config.node.plain_http,
        limits: client_limits(),
        ..ApiOptions::default()
    };
    let (stop, stopped) = watch::channel(false);
    let ends = |mut stopped: watch::Receiver<bool>| async move {
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    if let Some(socket) = local_socket {
        let owner = rustix::process::geteuid().as_raw();
        let (backend, options) = (backend.clone(), api_options.clone());
        tokio::spawn(quorate_api::serve_unix(socket, owner, backend, options, ends(stopped.clone())));
    }
    let api = tokio::spawn(quorate_api::serve(api_listener, acceptor, backend, api_options, ends(stopped)));
    info!(api = %config.node.api, "serving");

    tokio::spawn(tell_refusals(refused_seen));

    let follower = incarnation::Follower {
        config: config.clone(),
        incarnation,
        newer: newer.subscribe(),
        known: still_known,
        contact: last_contact,
        started: clock.started,
    };
    let why = tokio::select! {
        () = follower.wait(data_dir) => Why::Anew,
        () = crate::daemon::end_signal()? => Why::Signal,
        () = leave.notified() => Why::Leave,
        Ok(_) = restart_seen.wait_for(|asked| *asked) => Why::Anew,
    };
    if why.is_for_long().await {
        ending::hand_over(&inbox, handed_over_seen).await?;
    }
    info!(?why, "ending: the cluster is told and led by another, replicas live on");
    if let Some(farewell) = farewell {
        farewell.say(FAREWELL).await;
    }
    inbox.send(Event::Leave).await;
    let _ = tokio::time::timeout(HANDOVER, left_seen.wait_for(|left| *left)).await;
    let _ = stop.send(true);
    let _ = tokio::time::timeout(HANDOVER, api).await;
    // Everything acknowledged is in the log; threads need no orderly end.
    if why == Why::Anew {
        return Err(begin_anew());
    }
    std::process::exit(0);
}

/// Runs this program again in this process, so that whoever watches over it notices nothing. Files and
/// sockets are closed by it, the data directory's lock too. Returns only when that does not work.
fn begin_anew() -> anyhow::Error {
    use std::os::unix::process::CommandExt as _;
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "quorate".into());
    // The file may have been replaced by a newer one meanwhile, which is then what is to run.
    let program =
        std::env::current_exe().ok().filter(|program| program.exists()).unwrap_or_else(|| name.clone().into());
    let error = std::process::Command::new(program).arg0(name).args(arguments).exec();
    anyhow::Error::new(error).context("beginning anew")
}

/// Names under which clients may address the API.
fn hosts(config: &NodeConfig) -> Vec<String> {
    let mut hosts = vec![config.node.name.clone(), config.node.api_address().ip().to_string()];
    if let Ok(name) = rustix::system::uname().nodename().to_str() {
        hosts.push(name.to_owned());
    }
    hosts
}

/// Clients that are waited for get a quarter of the files that this process may open, at the most: the log, the
/// databases and other nodes need theirs.
fn client_limits() -> Limits {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let quarter = files.map_or(usize::MAX, |files| usize::try_from(files / 4).unwrap_or(usize::MAX));
    let limits = Limits::default();
    Limits { waiting: limits.waiting.min(quarter), ..limits }
}

/// A node that the cluster does not have says why, each time that the reason changes.
async fn tell_refusals(mut place: watch::Receiver<Option<Refusal>>) {
    let mut told = None;
    loop {
        let refused = place.borrow_and_update().clone();
        if refused != told {
            match &refused {
                Some(Refusal::NotAdmitted { why: why @ NotAdmitted::Expelled { .. } }) => {
                    tracing::error!("{why}. {}", link::BRING_BACK);
                }
                Some(why) => tracing::warn!("this node has no place in the cluster: {why}"),
                None => info!("this node has its place in the cluster"),
            }
            told = refused;
        }
        if place.changed().await.is_err() {
            return;
        }
    }
}

async fn bind(address: SocketAddr, what: &str) -> anyhow::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("binding {address} for the {what} (is another process using the port?)"))
}

/// The socket on which root and the server's own user need no login.
fn bind_local(data_dir: &Path, auth: AuthMode) -> anyhow::Result<Option<tokio::net::UnixListener>> {
    let path = data_dir.join(config::API_SOCKET);
    // Nobody may connect before its mode is set, so it gets its name after that. One that an
    // earlier run left is of no use: the data directory is locked.
    let unfinished = data_dir.join("api.new");
    let bound =
        remove_if_there(&unfinished).and_then(|()| tokio::net::UnixListener::bind(&unfinished)).and_then(|listener| {
            std::fs::set_permissions(&unfinished, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
            std::fs::rename(&unfinished, &path)?;
            Ok(listener)
        });
    match bound {
        Ok(listener) => Ok(Some(listener)),
        // Its path may be too long for a socket; a cluster that asks nobody can do without.
        Err(error) if auth == AuthMode::Open => {
            tracing::warn!(path = %path.display(), %error, "there is no local socket");
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("binding {}", path.display())),
    }
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let guarded = move || {
        // A thread that panics leaves a node that only looks alive: better none.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
            tracing::error!("a thread of this node failed; the node stops");
            std::process::exit(1);
        }
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(guarded).context("starting a thread")?;
    Ok(())
}

/// One snapshot at a time for each peer: consensus asks again while one is on its way.
async fn send_snapshots(
    me: LinkIdentity,
    root: std::path::PathBuf,
    mut orders: mpsc::UnboundedReceiver<core::SnapshotOrder>,
    inbox: inbox::Inbox,
) {
    while let Some(order) = orders.recv().await {
        bulk::send(&me, root.clone(), order, inbox.clone()).await;
    }
}

pub(crate) fn random_u128() -> anyhow::Result<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("the system gives no randomness: {error}"))?;
    Ok(u128::from_le_bytes(bytes))
}
