//! `quorate logs`: what the copies of a service print.

use crate::cli::client::Client;
use crate::cli::failure::{self, Exit, Failure};
use crate::cli::{Context, service};
use clap::Args;
use quorate_api::view::{NodeView, ReplicaView};
use std::io::{BufRead, BufReader};
use std::sync::mpsc;

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Name of the service
    name: String,
    /// Go on with what is printed from now on
    #[arg(short, long)]
    follow: bool,
    /// Only this copy: its number, or the beginning of its id
    #[arg(long, value_name = "REPLICA")]
    replica: Option<String>,
    /// How many of the last lines of each copy
    #[arg(short = 'n', long, value_name = "LINES", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    lines: u32,
}

pub(crate) fn run(context: &Context, args: &LogsArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let service = service::show(&client, &args.name)?;
    let nodes: Vec<NodeView> = client.get("/v1/nodes")?;
    let chosen: Vec<&ReplicaView> = service
        .replicas
        .iter()
        .filter(|replica| args.replica.as_deref().is_none_or(|wanted| is_meant(replica, wanted)))
        .collect();
    if chosen.is_empty() {
        let wanted = args.replica.as_deref().unwrap_or("any");
        let names: Vec<String> = service.replicas.iter().map(|replica| replica.ordinal.to_string()).collect();
        return Err(failure::unknown(
            "replica",
            wanted,
            names.iter().map(String::as_str),
            &format!("quorate service show {}", service.name),
        ));
    }
    let several = chosen.len() > 1;
    let width = chosen.iter().map(|replica| label(&args.name, replica).chars().count()).max().unwrap_or(0);
    // Each copy has a thread that reads; this one writes, so that lines stay whole.
    let (lines, printed) = mpsc::sync_channel::<Result<Vec<u8>, Failure>>(1024);
    std::thread::scope(|scope| {
        for replica in chosen {
            let prefix = if several { format!("{:width$} │ ", label(&args.name, replica)) } else { String::new() };
            let lines = lines.clone();
            let server = nodes.iter().find(|node| node.id == replica.node_id).map(|node| node.api.clone());
            let path = format!(
                "/v1/replicas/{}/log?bytes=1048576&lines={}{}",
                replica.id,
                args.lines,
                if args.follow { "&follow=true" } else { "" }
            );
            let reader = open(context, server.as_deref(), &path);
            scope.spawn(move || match reader {
                Ok(reader) => read_lines(reader, &prefix, &lines),
                // The reader may be gone because another copy's log failed; nothing is left to say.
                Err(failure) => drop(lines.send(Err(failure))),
            });
        }
        drop(lines);
        // One copy whose log cannot be had does not silence the others.
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

fn open(context: &Context, server: Option<&str>, path: &str) -> Result<impl std::io::Read + Send + use<>, Failure> {
    let client: Client = context.client()?;
    let server = server.ok_or_else(|| {
        Failure::new(Exit::NotFound, "unknown-node", "the node of this copy is not in the cluster any more")
    })?;
    client.stream(server, path)
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
