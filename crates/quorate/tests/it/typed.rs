//! The commands of the first five minutes, typed on servers as people type them, and all that they print.

use crate::cluster::PATIENCE;
use crate::lan::Lan;
use expect_test::expect_file;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::time::Instant;

/// What was typed and what was printed, as people see it.
struct Session {
    lan: Lan,
    transcript: String,
}

impl Session {
    fn types(&mut self, server: &str, line: &str) -> String {
        let ran = self.lan.types(server, line);
        assert_eq!(ran.code, 0, "{line}: {}{}", ran.stdout, ran.stderr);
        // A String takes all that is written into it.
        let _ = write!(self.transcript, "{server}$ {line}\n{}{}", ran.stderr, ran.stdout);
        ran.stdout
    }

    /// Types it again until all of this is printed; the last time counts. What is lost is replaced after half a minute.
    fn types_until(&mut self, server: &str, line: &str, wanted: &[&str]) {
        let (before, deadline) = (self.transcript.len(), Instant::now() + PATIENCE * 3);
        loop {
            let printed = self.types(server, line);
            match wanted.iter().find(|words| !printed.contains(**words)) {
                None => return,
                Some(missing) => assert!(Instant::now() < deadline, "no `{missing}` in\n{printed}"),
            }
            self.transcript.truncate(before);
        }
    }

    /// The command that `add-node` printed.
    fn add_node(&mut self, server: &str) -> String {
        let printed = self.types(server, "quorate add-node");
        printed.lines().nth(1).unwrap().trim().strip_prefix("sudo ").unwrap().to_owned()
    }

    /// Nothing is on its way any more: what `status` says now it says until something happens.
    fn settled(&self, server: &str, voters: u64) {
        self.lan.wait_status(server, "all is settled", |status| {
            let nodes = status["nodes"].as_array()?;
            let joined = |node: &serde_json::Value| node["state"] == "joined" && node["lag"] == 0;
            let cluster = &status["cluster"];
            let votes = cluster["voters_joined"] == voters && cluster["voters_change"].is_null();
            (nodes.iter().all(joined) && votes && cluster["voters_next"].is_null()).then_some(())
        });
    }
}

/// Names instead of what differs each time: measured times, ages, sizes, ids, secrets, passwords.
fn normalised(text: &str) -> String {
    let lines = text.split_inclusive('\n').map(|line| {
        // What is to be is what was written.
        if line.starts_with("  + ") {
            return line.to_owned();
        }
        let mut words: Vec<String> = line.split(' ').map(word).collect();
        for i in 1..words.len() {
            let unit = words[i].trim_end_matches(['\n', ')', ',']).to_owned();
            let number = words[i - 1].trim_start_matches('(');
            if ["s", "MB"].contains(&&*unit) && number.parse::<f64>().is_ok() {
                let open = if words[i - 1].starts_with('(') { "(" } else { "" };
                words[i - 1] = format!("{open}N");
            }
            if words[i - 1] == "(term" || words[i - 1] == "term" {
                words[i] = words[i].replacen(|it: char| it.is_ascii_digit(), "N", 1);
            }
            if words[i - 1] == "once):" {
                words[i] = "PASSWORD\n".into();
            }
            if words[i - 1] == "certificate" && words[i].len() == 12 {
                words[i] = "PIN".into();
            }
        }
        // A healthy manager may be an entry behind at the moment that it is asked.
        let roles = words.iter().position(|word| word == "manager,worker").unwrap_or(words.len());
        if let Some(lag) = words.iter_mut().skip(roles + 1).find(|word| !word.is_empty()).filter(|lag| *lag == "1") {
            *lag = "0".into();
        }
        // Where the first two copies run is nobody's choice.
        if words[0] == "web" && words[1] == "create" && words.len() > 4 {
            words.iter_mut().for_each(|word| {
                *word =
                    word.replace("elma365-3", "SERVER").replace("elma365-2", "SERVER").replace("elma365-1", "SERVER")
            });
        }
        words.join(" ")
    });
    lines.collect()
}

fn word(word: &str) -> String {
    let core = word.trim_matches(['\n', '(', ')', ',', ';', '.']);
    let age = core.strip_suffix('s').is_some_and(|number| number.parse::<u64>().is_ok());
    let day = core.len() == 10 && core.split('-').all(|part| part.parse::<u16>().is_ok()) && core.contains('-');
    let time = core.ends_with('Z') && core.matches(':').count() == 2;
    let name = match core.split('/').collect::<Vec<_>>().as_slice() {
        _ if age => "AGE",
        _ if day => "DAY",
        _ if time => "TIME",
        _ if uuid::Uuid::parse_str(core).is_ok() => "ID",
        [address, secret, pin] if secret.len() == 32 && pin.len() == 64 => &format!("{address}/SECRET/PIN"),
        _ => return word.to_owned(),
    };
    word.replacen(core, name, 1)
}

/// A program for the service.
const SERVER: &str = env!("CARGO_BIN_EXE_quorate");
const WEB: &str = r#"[[service]]
name = "web"
replicas = 2
command = ["/opt/web/server", "demo", "--address", "0.0.0.0", "--port", "{port}"]
ports = { http = "auto" }
health = { http = "/healthz", every = "500ms" }

[[route]]
service = "web"
"#;

/// E1, U4, U8, K2: three servers, one command each; a service; a server that falls silent, and its work elsewhere.
#[test]
fn e1_a_cluster_of_three_servers_and_a_service_as_they_are_typed() {
    let lan = Lan::new(&["elma365-1", "elma365-2", "elma365-3"]);
    let mut session = Session { lan, transcript: String::new() };
    session.types("elma365-1", "quorate init --name prod --advertise 192.168.1.51");
    let join = session.add_node("elma365-1");
    session.types("elma365-2", &join);
    session.settled("elma365-2", 1);
    session.types("elma365-2", "quorate status");
    let join = session.add_node("elma365-2");
    session.types("elma365-3", &join);
    std::fs::write(session.lan.home("elma365-1").join("web.toml"), WEB.replace("/opt/web/server", SERVER)).unwrap();
    session.types("elma365-1", "quorate service apply -f web.toml --yes");
    // As many on each of three servers, and on each of two.
    session.types("elma365-1", "quorate scale web 6");
    session.types("elma365-1", "quorate node alias elma365-1 msk-1");
    session.settled("elma365-1", 3);
    session.types("elma365-1", "quorate status");
    session.lan.signal("elma365-3", "STOP");
    // What is true a moment before, and for how long, depends on the machine; this stays.
    let replaced =
        ["2/3 managers", "● joined  manager,worker    0         3", "elma365-3 is down", "web         6        6"];
    session.types_until("elma365-1", "quorate status", &replaced);
    expect_file!["typed/first_five_minutes.txt"]
        .assert_eq(&normalised(&session.transcript.replace(SERVER, "/opt/web/server")));
}

/// What `quorate dev` says, with names instead of what differs each time.
fn of_dev(text: &str, names: &[(&str, &str)]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in normalised(text).lines() {
        let line = line.split_once("?t=").map_or(line.to_owned(), |(url, rest)| {
            let after = rest.find(' ').map_or("", |at| &rest[at..]);
            format!("{url}?t=TOKEN{after}")
        });
        let renamed = |line: String, (from, to): &(&str, &str)| line.replace(&format!(" {from} "), &format!(" {to} "));
        lines.push(names.iter().fold(line, renamed));
    }
    lines.join("\n") + "\n"
}

#[test]
fn dev_and_the_death_of_its_leader_as_they_are_typed() {
    let lan = Lan::new(&["laptop"]);
    let mut dev = lan.begin("laptop", "quorate dev");
    let mut lines = BufReader::new(dev.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut said = String::from("laptop$ quorate dev\n");
    for line in lines.by_ref() {
        said.push_str(&format!("{line}\n"));
        if line.starts_with("Try it") {
            break;
        }
    }
    // Who leads is nobody's choice.
    assert_eq!(said.matches("Active    leader, term").count(), 1, "{said}");
    let modes = ["Active    leader, term 1", "Active    leader, term 2", "Passive"];
    modes.iter().for_each(|mode| said = said.replace(mode, "MODE"));
    let leads = || lan.wait_status("laptop", "a leader", |it| it["cluster"]["leader"].as_str().map(str::to_owned));
    let leader = leads();
    let line = format!("quorate dev kill {leader}");
    let told = lan.ok("laptop", &line);
    let next = leads();
    let told = of_dev(&told, &[(&leader, "LEADER"), (&next, "NEXT")]);
    let mut told: Vec<&str> = told.lines().collect();
    // The three things that are waited for happen at once.
    told[1..].sort_unstable();
    let transcript = of_dev(&said, &[]) + "laptop$ quorate dev kill LEADER\n" + &told.join("\n") + "\n";
    expect_file!["typed/dev.txt"].assert_eq(&transcript);
    lan.interrupt("laptop");
    assert_eq!(lines.count(), 0, "Ctrl-C is clean");
    assert!(dev.wait().unwrap().success());
}
