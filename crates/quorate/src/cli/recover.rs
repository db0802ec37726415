//! `quorate recover`: the majority of the managers is lost for ever, and one goes on.

use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::screen::{age, moment, took, wall_now};
use crate::recover::{NoSurvivor, Survivor};
use clap::Args;
use quorate_model::time::WallTime;
use quorate_node::recovery::{CannotRecover, Recovery};
use serde_json::{Value, json};
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Instant;

#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    /// Where the node keeps everything
    #[arg(long, value_name = "DIR", default_value = "/var/lib/quorate")]
    data_dir: PathBuf,
    /// Only tell what would happen
    #[arg(long)]
    plan: bool,
    /// Do not ask: the other managers are destroyed, or will be before anybody starts them
    #[arg(long)]
    others_are_destroyed: bool,
}

pub(crate) fn run(context: &Context, args: &RecoverArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let survivor = Survivor::find(&args.data_dir).map_err(failure)?;
    let present = survivor.still_there();
    if args.plan {
        return context.show(&as_json(&survivor, &present), |_| told(&survivor, &present));
    }
    if let Some((name, address)) = present.first() {
        return Err(Failure::new(
            Exit::Conflict,
            "still-there",
            format!("{name} answers at {address}: it is not destroyed"),
        )
        .why("two halves of one cluster would go on without knowing of each other")
        .fix(format!("start this server as it is; or stop {name} for ever, and repeat this")));
    }
    if !args.others_are_destroyed {
        confirm(context, &survivor)?;
    }
    let result = as_json(&survivor, &present);
    let text = told(&survivor, &present);
    let name = survivor.config.node.name.clone();
    let recovery = survivor.go_on().map_err(|error| {
        Failure::new(Exit::Failed, "disk", "the recovery could not be written")
            .why(format!("{error:#}"))
            .fix("look at the disk, and repeat it")
    })?;
    let dir = args.data_dir.display();
    context.show(&result, |_| {
        let done = format!(
            "✔ {name} goes on alone, in incarnation {}   {}\n├─ Start    systemctl start quorate   (or: quorate serve --data-dir {dir})\n\
             └─ Next     sudo quorate add-node, twice: one manager cannot be lost",
            recovery.incarnation,
            took(started.elapsed())
        );
        // Who was asked has read it already.
        if args.others_are_destroyed { format!("{text}\n{done}") } else { done }
    })
}

fn failure(error: NoSurvivor) -> Failure {
    let message = error.to_string();
    match error {
        NoSurvivor::Serves { .. } => Failure::new(Exit::Conflict, "serving", message)
            .why("its log can be written by one process only")
            .fix("stop it first: systemctl stop quorate"),
        NoSurvivor::Cannot(cannot) => {
            let (code, fix) = match cannot {
                CannotRecover::KnowsNothing => ("knows-nothing", "recover on a manager that was of the cluster"),
                CannotRecover::Expelled => ("node-expelled", "recover on a manager that is still a member"),
                CannotRecover::NotManager => ("not-manager", "recover on a manager; this node is kept by it"),
                CannotRecover::NotNeeded => ("not-needed", "start the server: systemctl start quorate"),
                _ => ("cannot-recover", "recover with the newest version that ran in the cluster"),
            };
            Failure::new(Exit::Conflict, code, message).fix(fix)
        }
        NoSurvivor::Unusable(_) => Failure::new(Exit::Failed, "unusable", message)
            .fix("give --data-dir the directory of a manager, and run it as root or as the server's own user"),
    }
}

/// The cluster's name is typed: a `y` is typed too easily.
fn confirm(context: &Context, survivor: &Survivor) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(Failure::new(Exit::Usage, "needs-yes", "nobody is there to say that the others are destroyed")
            .fix("add --others-are-destroyed if they are"));
    }
    context.screen.say(&told(survivor, &[]));
    let name = &survivor.config.cluster.name;
    let mut err = anstream::stderr();
    let asked = write!(err, "If the other managers are destroyed, type the cluster's name ({name}): ");
    let mut line = String::new();
    let read = asked.and_then(|()| err.flush()).and_then(|()| std::io::stdin().lock().read_line(&mut line));
    let io = |error| Failure::new(Exit::Failed, "io", "the answer could not be read").why(error);
    read.map_err(io)?;
    if line.trim() == name {
        return Ok(());
    }
    Err(Failure::new(Exit::Usage, "not-confirmed", "this is not the cluster's name; nothing was changed")
        .fix(format!("type {name}")))
}

fn names(survivor: &Survivor, nodes: &std::collections::BTreeSet<quorate_model::id::NodeId>) -> Vec<String> {
    let mut names: Vec<String> = nodes.iter().map(|node| survivor.name(*node)).collect();
    names.sort();
    names
}

fn as_json(survivor: &Survivor, present: &[(String, std::net::SocketAddr)]) -> Value {
    let Recovery { incarnation, lost, stay, last, last_made, confirmed, .. } = &survivor.recovery;
    json!({
        "cluster": survivor.config.cluster.id,
        "cluster_name": survivor.config.cluster.name,
        "survivor": survivor.config.node.name,
        "incarnation": incarnation,
        "expelled": names(survivor, lost),
        "kept": names(survivor, stay),
        "still_there": present.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        "last_index": last,
        "confirmed_index": confirmed,
        "last_entry_at": last_made,
    })
}

/// What is kept, what is given up and what may be lost.
fn told(survivor: &Survivor, present: &[(String, std::net::SocketAddr)]) -> String {
    let recovery = &survivor.recovery;
    let me = &survivor.config.node.name;
    let lost = names(survivor, &recovery.lost);
    let stay = names(survivor, &recovery.stay);
    let managers = lost.len() + 1;
    let when = |made: WallTime| format!("made {} ({} ago)", moment(made, false), age(wall_now().since(made)));
    let made = recovery.last_made.map_or_else(|| "of unknown age".to_owned(), when);
    let mut lines = vec![
        format!("Cluster {} · {me} is one of {managers} managers and would go on alone", survivor.config.cluster.name),
        format!("  keeps    the cluster's id and certificates, and all data up to entry {}", recovery.last),
        format!("  expels   {}: never let in again; their servers may join anew, empty", lost.join(", ")),
        format!("  may lose what the others decided after entry {}, {made}", recovery.last),
    ];
    if recovery.confirmed < recovery.last {
        let (from, to) = (recovery.confirmed.next(), recovery.last);
        lines.push(format!(
            "  keeps too entries {from} to {to}, of which nobody here knows whether they were confirmed"
        ));
    }
    if !stay.is_empty() {
        lines.push(format!("  keeps too {}, which take a new copy of the data from it", stay.join(", ")));
    }
    lines.push(format!("  begins   incarnation {}: members of an earlier one are refused", recovery.incarnation));
    lines.extend(
        present
            .iter()
            .map(|(name, at)| format!("! {name} answers at {at}: it is not destroyed, and this would be refused")),
    );
    lines.join("\n")
}
