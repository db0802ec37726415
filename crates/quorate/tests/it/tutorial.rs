//! The tutorial as its readers follow it: the commands of `docs/guides/tutorial.md` are run in their order on a
//! cluster of their own, and what the page shows has to come.
//!
//! What is read of the page: ```toml blocks whose first line is `# NAME` are files; in ```console blocks a line
//! with `$ ` is a command, and the lines below are what it says. A `…` stands for anything, runs of blanks for one,
//! and lines that are not shown may come between those that are. Commands that only look are repeated until it
//! has come: the page says *after a moment*. The page's directory is a temporary one, and its ports are free ones.

use crate::cluster::{PATIENCE, Ran, TestCluster, wait_for};
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

/// What only looks. Everything else is run once.
const LOOKS: [&str; 7] = ["status", "service", "explain", "whatif", "events", "logs", "node"];

/// A command, and what it is to say.
#[derive(Debug)]
struct Shown {
    line: usize,
    command: String,
    says: Vec<String>,
}

/// What a block of the page is.
enum Block {
    File { name: String, text: String },
    Console(Vec<Shown>),
}

fn page() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/guides/tutorial.md");
    std::fs::read_to_string(path).unwrap()
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = (1..).zip(page.lines());
    while let Some((_, line)) = lines.next() {
        let Some(kind) = line.strip_prefix("```") else { continue };
        let body: Vec<(usize, &str)> = lines.by_ref().take_while(|(_, line)| *line != "```").collect();
        match kind {
            "toml" => {
                let name = body[0].1.strip_prefix("# ").expect("the first line of a file names it").to_owned();
                let text = body.iter().map(|(_, line)| format!("{line}\n")).collect();
                blocks.push(Block::File { name, text });
            }
            "console" => {
                let mut console: Vec<Shown> = Vec::new();
                for (line, text) in body {
                    match text.strip_prefix("$ ") {
                        Some(command) => console.push(Shown { line, command: command.into(), says: Vec::new() }),
                        None => console.last_mut().expect("a command comes first").says.push(text.to_owned()),
                    }
                }
                blocks.push(Block::Console(console));
            }
            other => panic!("nobody runs a block of {other:?}"),
        }
    }
    blocks
}

/// Blanks are as wide as the table needs them.
fn plain(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether a line is as the page has it.
fn is_like(wanted: &str, line: &str) -> bool {
    let (wanted, line) = (plain(wanted), plain(line));
    let parts: Vec<&str> = wanted.split('…').map(str::trim).collect();
    let Some(mut rest) = line.strip_prefix(parts[0]) else { return false };
    for (number, part) in parts.iter().enumerate().skip(1) {
        if number + 1 == parts.len() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty()
}

/// The first line of the page that did not come.
fn missing<'s>(says: &'s [String], output: &str) -> Option<&'s String> {
    let mut lines = output.lines();
    says.iter()
        .filter(|wanted| !plain(wanted).is_empty())
        .find(|wanted| !lines.by_ref().any(|line| is_like(wanted, line)))
}

/// As `curl --silent [--header 'Host: …'] URL` would say it.
fn curl(cluster: &TestCluster, words: &[String]) -> String {
    let header = words.iter().position(|word| word == "--header").map(|at| words[at + 1].clone());
    let header = header.unwrap_or_else(|| "Host: 127.0.0.1".into());
    let path = words.last().unwrap().strip_prefix("http://127.0.0.1:8000").expect("the gateway of the page");
    let mut stream = std::net::TcpStream::connect(cluster.gateway_address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\n{header}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// The words of a command line; quotes keep some together.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (number, part) in command.split('\'').enumerate() {
        if number % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

fn run(cluster: &TestCluster, words: &[String]) -> Ran {
    let args: Vec<&str> = words[1..].iter().map(String::as_str).collect();
    let output = cluster.command(&args).current_dir(&cluster.dir).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// One command of the page.
fn follow(cluster: &TestCluster, shown: &Shown) {
    let words = words(&shown.command);
    let says = |output: &str| missing(&shown.says, output).cloned();
    let place = format!("line {} of the tutorial, `{}`", shown.line, shown.command);
    match (words[0].as_str(), words.get(1).map(String::as_str)) {
        ("curl", _) => {
            wait_for(&place, PATIENCE, || says(&curl(cluster, &words)).is_none().then_some(()));
        }
        ("quorate", Some(verb)) => {
            let changes = words.iter().any(|word| matches!(word.as_str(), "apply" | "remove" | "drain" | "undrain"));
            let looks = LOOKS.contains(&verb) && !changes;
            let patience = if looks { PATIENCE } else { Duration::ZERO };
            let mut last = String::new();
            let deadline = std::time::Instant::now() + patience;
            loop {
                let ran = run(cluster, &words);
                let output = format!("{}{}", ran.stdout, ran.stderr);
                let lacks = says(&output);
                if ran.code == 0 && lacks.is_none() {
                    return;
                }
                let why = format!("exit {}, and not {lacks:?}:\n{output}", ran.code);
                assert!(std::time::Instant::now() < deadline, "{place}: {why}\nbefore: {last}");
                last = why;
                // The poll interval.
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        _ => panic!("{place}: nobody runs this"),
    }
}

#[test]
fn n4_the_tutorial_says_what_happens() {
    let mut cluster: Option<TestCluster> = None;
    let mut commands = 0;
    for block in blocks(&page()) {
        match (block, &cluster) {
            (Block::File { name, text }, Some(cluster)) => {
                std::fs::write(cluster.dir.join(name), text).unwrap();
            }
            (Block::File { .. }, None) => panic!("a file before the cluster's directory"),
            (Block::Console(console), None) => {
                let [dev] = &console[..] else { panic!("the first block starts the cluster, and does nothing else") };
                assert_eq!(dev.command, "quorate dev", "line {}", dev.line);
                let started = TestCluster::start();
                let gateway = started.gateway.clone();
                // What `dev` says to people is another test's; the page's addresses are replaced.
                assert!(dev.says.iter().any(|line| line.contains("http://127.0.0.1:8000")), "not {gateway}");
                cluster = Some(started);
            }
            (Block::Console(console), Some(cluster)) => {
                for shown in console {
                    follow(cluster, &shown);
                    commands += 1;
                }
            }
        }
    }
    assert!(commands > 10, "{commands} commands");
}

#[test]
fn a_line_of_the_tutorial_is_held_against_what_came() {
    assert!(is_like("n1   joined", "n1 joined"));
    assert!(is_like("✔ n2 … after … s", "✔  n2 was back after 20.1 s"));
    assert!(is_like("… ✔ in time", "clock 10s 10s 6.6 s ✔ in time"));
    assert!(!is_like("n1 joined", "n1 joined late") && !is_like("… in time", "in time not"));
    let says = ["a".to_owned(), String::new(), "c …".to_owned()];
    assert_eq!(missing(&says, "x\na\nb\nc d\n"), None);
    assert_eq!(missing(&says, "c d\na\n"), Some(&says[2]), "in their order");
}
