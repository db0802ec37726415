//! The figures of gossip, from simulated clusters of up to a thousand nodes: false alarms and
//! convergence under loss, partitions and slow CPUs; how soon a crash and a clean stop are known
//! everywhere; what a node sends.
//!
//! `cargo run --release -p quorate-membership --example convergence [quick] [traffic]`
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program that prints what it measured")]
#![allow(dead_code, reason = "the tests use more of the bed")]

#[path = "../tests/it/bed.rs"]
mod bed;

use bed::{Bed, Conditions, ms};
use quorate_membership::swim::Rumor;
use std::time::Duration;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn main() {
    let asked = |word: &str| std::env::args().any(|argument| argument == word);
    let quick = asked("quick");
    let sizes: &[usize] = if quick { &[10, 50, 100] } else { &[10, 50, 100, 300, 1_000] };
    if asked("traffic") {
        traffic(sizes);
        return;
    }
    storms(if quick { 100 } else { 1_000 });
    lifeguard(if quick { 20 } else { 100 });
    speed(if quick { 50 } else { 300 });
    traffic(sizes);
}

/// Name, seconds, and on which side each node is.
type Part = (&'static str, u64, fn(usize) -> u8);

/// Loss and slow CPUs all the time; two partitions of 30 s.
fn storms(nodes: usize) {
    println!("## {nodes} nodes, 25 % loss, 10 % slow CPUs, partitions");
    println!(
        "| partition | dead | unreachable, of nodes that are well | of slow ones | all well after healing | bytes/s a node |"
    );
    println!("|---|---|---|---|---|---|");
    let parts: [Part; 4] = [
        ("none, 30 s", 30, |_| 0),
        ("half and half, 30 s", 30, |node| (node % 2) as u8),
        ("a tenth alone and three parts, 30 s", 30, |node| if node % 10 == 0 { 9 } else { (node % 3) as u8 }),
        // Longer than a suspicion lives.
        ("none, 90 s", 90, |_| 0),
    ];
    let mut bed = Bed::converged(nodes, 1, Conditions { loss: 250, slow: 100, ..Conditions::default() });
    for (name, span, side) in parts {
        bed.false_alarms = Default::default();
        bed.reset_traffic();
        bed.sides = (0..nodes).map(side).collect();
        let cut = bed.sides.iter().any(|side| *side != 0);
        bed.run(seconds(span));
        let bytes = bed.bytes.iter().sum::<u64>() / span / nodes as u64;
        bed.sides = vec![0; nodes];
        // Everybody shows every node whose CPU is well as alive; the others are now and then not there.
        let converged = if cut { bed.settle(seconds(60)) } else { Some(Duration::ZERO) };
        let converged = converged.map_or("not in 60 s".to_owned(), |span| format!("{:.1} s", span.as_secs_f64()));
        let alarms = bed.false_alarms;
        let converged = if cut { &converged } else { "–" };
        println!("| {name} | {} | {} | {} | {converged} | {bytes} |", alarms.dead, alarms.of_healthy, alarms.of_slow);
    }
}

/// What local health is good for: alarms about nodes whose CPU is well.
fn lifeguard(nodes: usize) {
    println!("## {nodes} nodes, 10 % slow CPUs, 10 minutes: false alarms");
    println!("| loss | local health | of nodes that are well | of slow ones | dead |");
    println!("|---|---|---|---|---|");
    for loss in [0, 50, 250] {
        for local_health in [true, false] {
            let conditions = Conditions { loss, slow: 100, local_health, ..Conditions::default() };
            let mut bed = Bed::converged(nodes, 1, conditions);
            bed.run(seconds(600));
            let alarms = bed.false_alarms;
            let word = if local_health { "on" } else { "off" };
            println!("| {} % | {word} | {} | {} | {} |", loss / 10, alarms.of_healthy, alarms.of_slow, alarms.dead);
        }
    }
}

/// Ten nodes: a crash and a clean stop, until the last of the others shows it.
fn speed(runs: u64) {
    println!("## 10 nodes: from the event until every other node shows it, {runs} runs");
    println!("| event | loss | p50 | p99 | max |");
    println!("|---|---|---|---|---|");
    for (event, rumor) in [("crash → unreachable", Rumor::Unreachable), ("clean stop → left", Rumor::Left)] {
        for loss in [0, 50, 250] {
            let mut spans: Vec<Duration> = (0..runs)
                .map(|seed| {
                    let mut bed = Bed::converged(10, seed, Conditions { loss, ..Conditions::default() });
                    bed.run(ms(seed * 37 % 1_000));
                    let at = bed.now;
                    match rumor {
                        Rumor::Left => bed.leave(3),
                        _ => bed.crash(3),
                    }
                    bed.run(seconds(10));
                    bed.shown_everywhere(3, rumor).map_or(Duration::MAX, |shown| shown.since(at))
                })
                .collect();
            spans.sort_unstable();
            let part = |percent: usize| spans[(spans.len() * percent).div_ceil(100) - 1].as_secs_f64();
            println!("| {event} | {} % | {:.2} s | {:.2} s | {:.2} s |", loss / 10, part(50), part(99), part(100));
        }
    }
}

fn traffic(sizes: &[usize]) {
    println!("## What a node sends, sealed payload, over one idle minute");
    println!("| nodes | lost | bytes a second | datagrams a second | most of one node |");
    println!("|---|---|---|---|---|");
    for (nodes, loss) in sizes.iter().flat_map(|nodes| [(*nodes, 0), (*nodes, 250)]) {
        let mut bed = Bed::converged(nodes, 1, Conditions { loss, ..Conditions::default() });
        bed.reset_traffic();
        bed.run(seconds(60));
        let (sum, most) = (bed.bytes.iter().sum::<u64>(), bed.bytes.iter().max().unwrap());
        let count = nodes as u64 * 60;
        let (bytes, datagrams) = (sum / count, bed.datagrams as f64 / count as f64);
        println!("| {nodes} | {} % | {bytes} | {datagrams:.1} | {} |", loss / 10, most / 60);
    }
}
