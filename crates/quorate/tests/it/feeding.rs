//! Gateways of a cluster whose API speaks TLS and asks who is there: how they come by their routes.

use crate::cluster::{PATIENCE, free_addresses, signal, wait_for};
use crate::founded::{Founded, quorate, run};
use crate::load;
use rustix::process::Signal;
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Child, Stdio};

/// A gateway's process.
struct Gateway {
    process: Child,
    address: String,
    log: PathBuf,
}

impl Gateway {
    fn start(founded: &Founded, name: &str, more: &[&str]) -> Gateway {
        let address = free_addresses(1).remove(0);
        let dir = founded.home(name);
        std::fs::create_dir(&dir).unwrap();
        let log = dir.join("gateway.log");
        let (dir, url) = (dir.display().to_string(), format!("http://{address}"));
        let mut command = quorate(&["gateway", "--listen", &address, "--name", name, "--url", &url]);
        command.args(["--data-dir", &dir, "--end-with-pid", &std::process::id().to_string()]).args(more);
        let process = command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
        Gateway { process, address, log }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn answers(&self) -> bool {
        load::ask(&self.address, "/whoami").is_ok_and(|answer| answer.status == 200)
    }

    fn wait_routes(&self) {
        wait_for("the gateway has routes", PATIENCE, || self.answers().then_some(()));
    }

    /// Waits until `node` shows that it hears of this gateway, and from whom.
    fn wait_shown(founded: &Founded, node: &str, name: &str, fed_by: &str) {
        wait_for(&format!("{node} shows {name}"), PATIENCE, || {
            let status = founded.status(node)?;
            let gateways = status["gateways"].as_array()?;
            gateways.iter().any(|view: &Value| view["name"] == name && view["fed_by"] == fed_by).then_some(())
        });
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        signal(self.process.id(), Signal::KILL);
        let _ = self.process.wait();
        if std::thread::panicking() {
            #[allow(clippy::print_stderr, reason = "it explains a failed test")]
            {
                eprintln!("{}:\n{}", self.log.display(), self.said());
            }
        }
    }
}

/// A gateway that stands alone proves itself by a token that is good for nothing else, and managers prove
/// themselves to it first.
#[test]
fn a_gateway_that_stands_alone_takes_its_routes_over_tls_with_a_token_for_nothing_else() {
    let (mut founded, _) = Founded::with_a_service();
    let fingerprint = founded.token(&[]).rsplit('/').next().unwrap().to_owned();
    let manager = format!("https://{}", founded.api);
    let ok = |args: &[&str]| {
        let ran = founded.command(args);
        assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
        ran.stdout
    };
    ok(&["user", "create", "gateways", "--role", "integration"]);
    let token = ok(&["token", "create", "gw1", "--user", "gateways", "--scope", "gateway-feed"]);
    let file = founded.home("token");
    std::fs::write(&file, "qt_gw1_nothingthatanybodymade\n").unwrap();
    let token_file = file.display().to_string();

    // Whoever the manager does not let in says what it needs, and goes on asking.
    let trusted = ["--manager", &manager, "--ca-pin", &fingerprint, "--token-file", &token_file];
    let gateway = Gateway::start(&founded, "gw1", &trusted);
    wait_for("it says what is missing", PATIENCE, || {
        gateway.said().contains("it wants a token of a user who may feed gateways").then_some(())
    });
    assert!(!gateway.answers());
    std::fs::write(&file, &token).unwrap();
    gateway.wait_routes();
    // Its reports are taken as well: drains wait for them.
    Gateway::wait_shown(&founded, "n1", "gw1", "n1");
    assert!(!gateway.said().contains(token.trim()), "the log does not show it");

    // The token of a gateway that was stolen reads no status and no database.
    for command in [&["status"][..], &["db", "query", "SELECT 1"], &["service", "list"]] {
        let ran =
            run(&[&["--server", &manager, "--ca-pin", &fingerprint, "--token-file", &token_file], command].concat());
        assert_eq!(ran.code, 4, "{command:?}: {ran:?}");
    }

    // To a server of another cluster, or somebody in between, nothing is said.
    let other = "0".repeat(64);
    let deceived =
        Gateway::start(&founded, "gw2", &["--manager", &manager, "--ca-pin", &other, "--token-file", &token_file]);
    wait_for("it says so", PATIENCE, || deceived.said().contains("it does not prove itself").then_some(()));
    assert!(!deceived.answers());

    // Without managers it goes on.
    founded.kill("n1");
    for _ in 0..20 {
        assert!(gateway.answers());
    }
    founded.start("n1");
    Gateway::wait_shown(&founded, "n1", "gw1", "n1");
}

/// D2: beside a node nothing more is needed: the node is a member, and feeds its gateway on its own socket.
#[test]
fn d2_a_gateway_node_feeds_its_gateway_without_a_second_credential() {
    let (mut founded, running) = Founded::with_a_service();
    founded.add("gw", &["--role", "gateway"]);
    founded.wait_state(&["n1", "gw"], "gw", "joined");
    let socket = format!("unix:{}", founded.home("gw").join("api.sock").display());
    let gateway = Gateway::start(&founded, "gw1", &["--manager", &socket]);
    gateway.wait_routes();
    Gateway::wait_shown(&founded, "gw", "gw1", "gw");
    Gateway::wait_shown(&founded, "n1", "gw1", "gw");

    // The last manager is lost: what it was told last stays in force, at the node and at its gateway.
    founded.kill("n1");
    for _ in 0..20 {
        assert!(gateway.answers());
    }
    founded.kill("gw");
    assert!(gateway.answers());
    assert!(running.iter().all(|pid| crate::show::lives(*pid)));
}

#[test]
fn a_gateway_that_would_tell_its_token_to_anybody_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "qt_gw1_x\n").unwrap();
    let (file, dir) = (file.display().to_string(), dir.path().display().to_string());
    let begin = ["gateway", "--listen", "127.0.0.1:0", "--name", "gw", "--url", "http://gw", "--data-dir", &dir];
    for (more, says) in [
        (&["--manager", "http://192.0.2.1:7000", "--token-file", &file][..], "where others can read it"),
        (&["--manager", "https://192.0.2.1:7000", "--token-file", &file], "--ca-pin FINGERPRINT"),
        (&["--manager", "n1:7000"], "is not a manager's address"),
    ] {
        let ran = run(&[&begin, more].concat());
        assert!(ran.code != 0 && ran.stderr.contains(says), "{more:?}: {ran:?}");
    }
}
