//! `quorate logs`: what the copies of a service print, and what nodes' servers say about themselves. One node is
//! asked for all of it, and passes on what others have.

use crate::cli::client::Client;
use crate::cli::failure::{self, Exit, Failure};
use crate::cli::members::in_path;
use crate::cli::{Context, service};
use clap::Args;
use quorate_api::view::{NodeView, ReplicaView, ServiceView};
use quorate_model::id::ReplicaId;
use serde_json::json;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

/// Bytes in one piece: the most that the API gives.
const PIECE: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Name of the service
    #[arg(required_unless_present = "node")]
    name: Option<String>,
    /// What the server of this node says about itself: name, id, or how the id begins
    #[arg(long, value_name = "NODE", conflicts_with_all = ["name", "replica"])]
    node: Option<String>,
    /// Go on with what is printed from now on
    #[arg(short, long)]
    follow: bool,
    /// Only this copy: its number, or the beginning of its id; the whole id of one that has ended
    #[arg(long, value_name = "REPLICA")]
    replica: Option<String>,
    /// How many of the last lines of each copy
    #[arg(short = 'n', long, value_name = "LINES", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    lines: u32,
    /// Write all that is kept into files below this directory, which is made
    #[arg(long, value_name = "DIR", conflicts_with_all = ["follow", "lines"])]
    download: Option<PathBuf>,
}

/// One log.
#[derive(Debug, Clone)]
struct Wanted {
    /// What people call it.
    label: String,
    /// Where the API has it.
    path: String,
    /// Where its files go below the directory of a download.
    place: PathBuf,
}

impl Wanted {
    fn replica(service: &str, id: ReplicaId, label: String) -> Wanted {
        let place = Path::new(service).join(id.to_string());
        Wanted { label, path: format!("/v1/replicas/{id}/log"), place }
    }
}

pub(crate) fn run(context: &Context, args: &LogsArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let wanted = match (&args.node, &args.name) {
        (Some(node), _) => {
            let node: NodeView = client.get(&format!("/v1/nodes/{}", in_path(node)))?;
            let place = Path::new("managers").join(node.id.to_string());
            vec![Wanted { label: node.name, path: format!("/v1/nodes/{}/log", node.id), place }]
        }
        (None, name) => of_service(&client, name.as_deref().unwrap_or_default(), args.replica.as_deref())?,
    };
    match &args.download {
        Some(dir) => download(context, &client, &wanted, dir),
        None => print(context, &wanted, args),
    }
}

fn of_service(client: &Client, name: &str, only: Option<&str>) -> Result<Vec<Wanted>, Failure> {
    // One that has ended is known to its node alone, and so may be its service.
    let ended = only.and_then(|only| only.parse::<ReplicaId>().ok());
    let by_id = |id: ReplicaId| vec![Wanted::replica(name, id, id.to_string())];
    let service: ServiceView = match (service::show(client, name), ended) {
        (Err(failure), Some(id)) if failure.code == "unknown-service" => return Ok(by_id(id)),
        (service, _) => service?,
    };
    let chosen = service.replicas.iter().filter(|replica| only.is_none_or(|only| is_meant(replica, only)));
    let found: Vec<Wanted> = chosen.map(|replica| Wanted::replica(name, replica.id, label(name, replica))).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    if let Some(id) = ended {
        return Ok(by_id(id));
    }
    let names: Vec<String> = service.replicas.iter().map(|replica| replica.ordinal.to_string()).collect();
    let list = format!("quorate service show {name}");
    Err(failure::unknown("replica", only.unwrap_or("any"), names.iter().map(String::as_str), &list))
}

fn print(context: &Context, wanted: &[Wanted], args: &LogsArgs) -> Result<(), Failure> {
    let several = wanted.len() > 1;
    let width = wanted.iter().map(|wanted| wanted.label.chars().count()).max().unwrap_or(0);
    let clients = wanted.iter().map(|_| context.client()).collect::<Result<Vec<Client>, Failure>>()?;
    // Each log has a thread that reads; this one writes, so that lines stay whole.
    let (lines, printed) = mpsc::sync_channel::<Result<Vec<u8>, Failure>>(1024);
    std::thread::scope(|scope| {
        for (wanted, client) in wanted.iter().zip(clients) {
            let prefix = if several { format!("{:width$} │ ", wanted.label) } else { String::new() };
            let lines = lines.clone();
            let follow = if args.follow { "&follow=true" } else { "" };
            let path = format!("{}?bytes={PIECE}&lines={}{follow}", wanted.path, args.lines);
            scope.spawn(move || match client.stream(&path) {
                Ok(reader) => read_lines(reader, &prefix, &lines),
                // The reader may be gone because another log failed; nothing is left to say.
                Err(failure) => drop(lines.send(Err(failure))),
            });
        }
        drop(lines);
        // One log that cannot be had does not silence the others.
        let mut first_failure = Ok(());
        for line in printed {
            match line {
                Ok(line) => context.screen.raw(&line),
                Err(failure) if several => {
                    context.screen.say(&failure.to_string());
                    first_failure = first_failure.and(Err(failure));
                }
                Err(failure) => return Err(failure),
            }
        }
        first_failure
    })
}

/// Writes all that is kept of each log into files of its own, named by the offset of their first byte, as the
/// servers name theirs: one file a log, more only if the log moved on faster than it was read.
///
/// Why no archive: files are what one greps, and whoever wants one archive has `tar`.
fn download(context: &Context, client: &Client, wanted: &[Wanted], dir: &Path) -> Result<(), Failure> {
    let is_empty = std::fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
    if !is_empty {
        let error = format!("{} exists, and there is something in it", dir.display());
        return Err(Failure::new(Exit::Usage, "not-empty", error).fix("name a directory that does not exist yet"));
    }
    let several = wanted.len() > 1;
    let mut done = Vec::new();
    let mut first_failure = Ok(());
    for wanted in wanted {
        let into = dir.join(&wanted.place);
        match download_one(client, wanted, &into) {
            Ok(bytes) if context.screen.is_json() => {
                done.push(json!({ "log": wanted.label, "dir": into, "bytes": bytes }));
            }
            Ok(bytes) => context.screen.data(&format!("✔ {}   {bytes} bytes in {}", wanted.label, into.display())),
            // One log that cannot be had does not keep the others.
            Err(failure) => {
                if several {
                    context.screen.say(&failure.to_string());
                }
                first_failure = first_failure.and(Err(failure));
            }
        }
    }
    if context.screen.is_json() {
        context.screen.json(&done);
    }
    first_failure
}

fn download_one(client: &Client, wanted: &Wanted, into: &Path) -> Result<u64, Failure> {
    let piece = |query: String| client.log_piece(&format!("{}?{query}", wanted.path));
    // What is written from now on is no part of it, so that there is an end.
    let (end, _) = piece("lines=1&bytes=1".into())?;
    let io = |error| failed_to_write(into, error);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(into).map_err(io)?;
    let (mut at, mut bytes) = (0, 0);
    let mut file: Option<std::fs::File> = None;
    while at < end {
        let (next, data) = piece(format!("offset={at}&bytes={PIECE}"))?;
        let (begin, length) = (next.saturating_sub(data.len() as u64), data.len() as u64);
        if data.is_empty() {
            break;
        }
        let open = match file.take().filter(|_| begin == at) {
            Some(open) => open,
            None => {
                let path = into.join(format!("{begin:020}.log"));
                std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?
            }
        };
        file.insert(open).write_all(&data).map_err(io)?;
        (at, bytes) = (next, bytes + length);
    }
    Ok(bytes)
}

fn failed_to_write(into: &Path, error: std::io::Error) -> Failure {
    Failure::new(Exit::Failed, "not-written", format!("cannot write to {}", into.display()))
        .why(error)
        .fix("name a directory with room in it, which you may write to: --download DIR")
}

fn read_lines(reader: impl std::io::Read, prefix: &str, lines: &mpsc::SyncSender<Result<Vec<u8>, Failure>>) {
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = prefix.as_bytes().to_vec();
        match reader.read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) => {
                if line.last() != Some(&b'\n') {
                    line.push(b'\n');
                }
                if lines.send(Ok(line)).is_err() {
                    return;
                }
            }
            Err(error) => {
                let failure = Failure::new(Exit::Unreachable, "log-cut", "the log ended in the middle").why(error);
                drop(lines.send(Err(failure)));
                return;
            }
        }
    }
}

fn is_meant(replica: &ReplicaView, wanted: &str) -> bool {
    match wanted.parse::<u32>() {
        Ok(ordinal) if wanted.len() < 6 => replica.ordinal == ordinal,
        _ => !wanted.is_empty() && replica.id.to_string().starts_with(wanted),
    }
}

fn label(service: &str, replica: &ReplicaView) -> String {
    format!("{service}.{} {}", replica.ordinal, replica.node)
}
