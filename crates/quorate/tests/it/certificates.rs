//! Certificates that live: renewed by themselves, refused where they must be.

use crate::cluster::{PATIENCE, TestCluster, free_addresses, wait_for};
use crate::trusting::{Plan, Trusting, days_ago, issue, now};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quorate_model::id::ClusterId;
use quorate_trust::ca::{Ca, NodeCertificate};
use quorate_trust::key::NodeKey;
use quorate_trust::renewal::vouch;
use serde_json::{Value, json};
use std::process::Command;
use uuid::Uuid;

const ALL: &[&str] = &["n1", "n2", "n3"];

#[test]
fn certificates_are_renewed_for_new_keys_while_the_cluster_serves() {
    // After 24 of 30 days every certificate is due.
    let cluster = Trusting::prepare(&Plan { nodes: 3, keepers: ALL, made: days_ago(25), found_at: None });
    let before: Vec<NodeCertificate> = ALL.iter().map(|name| cluster.certificate(name)).collect();
    let mut cluster = cluster;
    ALL.iter().for_each(|name| cluster.run(name));
    for (name, old) in ALL.iter().zip(&before) {
        wait_for("a new certificate", PATIENCE, || {
            let new = cluster.certificate(name);
            (new.public().unwrap() != old.public().unwrap()).then(|| {
                assert_eq!(new.identity().unwrap(), old.identity().unwrap());
                assert!(new.lasts().unwrap().1 > days_ago(0));
            })
        });
    }
    cluster.whole();
    // The API shows it, and the node starts with it.
    let pin = cluster.ca.certificate().fingerprint().to_string();
    let url = format!("https://{}", cluster.server("n1").api);
    let health = Command::new(env!("CARGO_BIN_EXE_quorate"))
        .args(["--server", &url, "--ca-pin", &pin, "api", "GET", "/v1/health"])
        .output()
        .unwrap();
    assert!(health.status.success(), "{health:?}");
    cluster.kill("n1");
    cluster.run("n1");
    cluster.whole();
}

#[test]
fn a_node_that_was_away_until_its_certificate_ended_gets_a_new_one_and_is_back() {
    let mut cluster = Trusting::start(&Plan { nodes: 4, keepers: ALL, made: now(), found_at: None });
    cluster.kill("n4");
    cluster.certify("n4", days_ago(40));
    let ended = cluster.certificate("n4");
    cluster.run("n4");
    cluster.whole();
    let new = cluster.certificate("n4");
    assert_ne!(new.public().unwrap(), ended.public().unwrap());
    assert!(cluster.log("n4").contains("this node has a new certificate"));
    assert!(!cluster.server("n4").dir.join("tls/ca.key").exists(), "it asked for it");
    assert!(
        cluster.log("n1").contains("gave a node")
            || cluster.log("n2").contains("gave a node")
            || cluster.log("n3").contains("gave a node")
    );
}

/// K8: the role is added later.
#[test]
fn a_worker_goes_along_with_a_rotation_and_gets_the_keys_when_it_becomes_a_manager() {
    let cluster = Trusting::start(&Plan { nodes: 4, keepers: ALL, made: now(), found_at: None });
    let refused = cluster.ran("n4", &["-o", "json", "cert", "rotate", "--yes"]);
    assert!(refused.code == 7 && refused.stderr.contains("no-authority"), "{refused:?}");
    assert_eq!(cluster.ran("n1", &["cert", "rotate", "--yes"]).code, 0);
    let names = ["n1", "n2", "n3", "n4"];
    names.iter().for_each(|name| wait_key(&cluster, name, "authority", 2, "done"));
    assert_eq!(authority_of(&cluster, "n4"), authority_of(&cluster, "n1"));
    let tls = |name: &str| cluster.server(name).dir.join("tls");
    assert!(!tls("n4").join("ca.key").exists() && !tls("n4").join("cluster.key").exists());

    cluster.ask("n1", &["node", "roles", "n4", "manager", "worker"]);
    wait_for("the keys of a manager", PATIENCE, || tls("n4").join("ca.key").exists().then_some(()));
    for file in ["ca.key", "cluster.key"] {
        let [mine, theirs] = ["n4", "n1"].map(|name| std::fs::read_to_string(tls(name).join(file)).unwrap());
        assert_eq!(mine, theirs, "{file}");
        let mode = std::os::unix::fs::PermissionsExt::mode(&tls("n4").join(file).metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    assert_eq!(cluster.ran("n4", &["cert", "rotate", "--yes"]).code, 0);
    names.iter().for_each(|name| wait_key(&cluster, name, "authority", 3, "done"));
}

/// K8: the role is taken away. What is on its disk fits no later CA, and is of no use to it.
#[test]
fn k8_a_manager_that_became_a_worker_starts_after_a_rotation_and_has_no_keys_of_a_manager() {
    let mut cluster =
        Trusting::start(&Plan { nodes: 4, keepers: &["n1", "n2", "n3", "n4"], made: now(), found_at: None });
    cluster.ask("n1", &["node", "roles", "n4", "worker"]);
    assert_eq!(cluster.ran("n1", &["cert", "rotate", "--yes"]).code, 0);
    ["n1", "n2", "n3", "n4"].iter().for_each(|name| wait_key(&cluster, name, "authority", 2, "done"));
    cluster.kill("n4");
    cluster.run("n4");
    cluster.whole();
    let tls = cluster.server("n4").dir.join("tls");
    wait_for("it gives the keys up", PATIENCE, || (!tls.join("ca.key").exists()).then_some(()));
    wait_for("both of them", PATIENCE, || (!tls.join("cluster.key").exists()).then_some(()));
    // It may become one again, and is handed those of now.
    cluster.ask("n1", &["node", "roles", "n4", "manager", "worker"]);
    let key = |name: &str| std::fs::read_to_string(cluster.server(name).dir.join("tls/ca.key")).ok();
    wait_for("the keys of a manager", PATIENCE, || (key("n4").is_some() && key("n4") == key("n1")).then_some(()));
}

/// A cluster that was switched off for months has nobody with a good certificate to ask.
#[test]
fn a_whole_cluster_whose_certificates_ended_starts_again() {
    let mut cluster = Trusting::prepare(&Plan { nodes: 3, keepers: ALL, made: days_ago(60), found_at: None });
    ALL.iter().for_each(|name| cluster.run(name));
    cluster.whole();
}

/// What a node asks for a new certificate with.
fn renewal(old: &NodeCertificate, signed_by: &NodeKey) -> Value {
    let request = NodeKey::generate().unwrap().request().unwrap();
    let voucher = vouch(signed_by, &request).unwrap();
    json!({
        "certificate": old.to_pem(),
        "request": STANDARD.encode(request.as_der()),
        "voucher": STANDARD.encode(voucher),
    })
}

#[test]
fn only_members_get_new_certificates_and_who_is_refused_is_in_the_audit() {
    let mut cluster = Trusting::start(&Plan { nodes: 3, keepers: ALL, made: now(), found_at: None });
    let ask = |cluster: &Trusting, body: &Value| {
        let ran = cluster.ran("n1", &["-o", "json", "api", "POST", "/v1/certificates", "--data", &body.to_string()]);
        let problem: Value = serde_json::from_str(if ran.code == 0 { &ran.stdout } else { &ran.stderr }).unwrap();
        problem["error"]["code"].as_str().unwrap_or("given").to_owned()
    };
    let n3 = cluster.server("n3").id;
    let (ended, key) = issue(&cluster.ca, n3, days_ago(40));
    assert_eq!(ask(&cluster, &renewal(&ended, &key)), "given");
    // Somebody who has the certificate, which everybody is shown, and not its key.
    assert_eq!(ask(&cluster, &renewal(&ended, &NodeKey::generate().unwrap())), "not-proved");
    let foreign = Ca::create(ClusterId(cluster.ca.certificate().cluster().0), now(), 1).unwrap();
    let (certificate, foreign_key) = issue(&foreign, n3, now());
    assert_eq!(ask(&cluster, &renewal(&certificate, &foreign_key)), "not-proved");
    let other = Ca::create(ClusterId(Uuid::new_v4()), now(), 1).unwrap();
    let (certificate, other_key) = issue(&other, n3, now());
    assert_eq!(ask(&cluster, &renewal(&certificate, &other_key)), "not-proved");
    let (certificate, stranger) = issue(&cluster.ca, Uuid::new_v4(), now());
    assert_eq!(ask(&cluster, &renewal(&certificate, &stranger)), "unknown-node");
    assert_eq!(ask(&cluster, &json!({ "certificate": "", "request": "", "voucher": "" })), "bad-renewal");
    cluster.kill("n3");
    assert_eq!(cluster.ran("n1", &["node", "remove", "n3", "--yes"]).code, 0);
    assert_eq!(ask(&cluster, &renewal(&ended, &key)), "node-expelled");
    let audit = cluster.ask("n1", &["audit", "list"]).to_string();
    for code in ["not-proved", "unknown-node", "node-expelled"] {
        wait_for("the audit", PATIENCE, || {
            cluster.ask("n1", &["audit", "list"]).to_string().contains(code).then_some(())
        });
    }
    assert!(audit.contains("certificate-renew"), "{audit}");
}

fn authority_of(cluster: &Trusting, node: &str) -> Option<String> {
    cluster.certificate(node).authority().map(|authority| authority.to_string())
}

fn key<'a>(shown: &'a Value, kind: &str) -> &'a Value {
    shown["keys"].as_array().unwrap().iter().find(|key| key["key"] == kind).unwrap()
}

/// Waits until a node shows this kind of key in this state.
fn wait_key(cluster: &Trusting, node: &str, kind: &str, number: u64, stage: &str) {
    wait_for(&format!("{kind} {number} {stage}"), PATIENCE, || {
        let shown = cluster.try_ask(node, &["cert", "show"])?;
        let key = key(&shown, kind);
        (key["number"] == number && key["stage"] == stage).then_some(())
    });
}

#[test]
fn the_ca_is_rotated_while_the_cluster_serves_and_its_leader_dies() {
    let mut cluster = Trusting::start(&Plan { nodes: 3, keepers: ALL, made: now(), found_at: None });
    let old = cluster.ca.certificate().fingerprint().to_string();
    let shown = cluster.ask("n2", &["cert", "show"]);
    assert_eq!(shown["authorities"][0]["fingerprint"], old);
    assert_eq!(shown["nodes"].as_array().unwrap().len(), 3);
    let token = cluster.ask("n1", &["add-node"])["commands"][0].as_str().unwrap().to_owned();
    assert!(token.ends_with(&old), "{token}");
    let plan = cluster.ran("n1", &["cert", "rotate", "--plan"]);
    assert!(plan.code == 0 && plan.stdout.contains("1. a new CA is made"), "{plan:?}");
    assert_eq!(key(&cluster.ask("n1", &["cert", "show"]), "authority")["number"], 1, "a plan changes nothing");
    assert_eq!(cluster.ran("n1", &["cert", "rotate"]).code, 2, "nobody is asked without a terminal");

    // A node is away, so that the rotation waits for it, and then the leader dies.
    let leader = cluster.leader();
    let others: Vec<&str> = ALL.iter().copied().filter(|name| *name != leader).collect();
    cluster.kill(others[0]);
    assert_eq!(cluster.ran(&leader, &["cert", "rotate", "--yes"]).code, 0);
    wait_key(&cluster, others[1], "authority", 2, "spread");
    assert_eq!(cluster.ran(others[1], &["cert", "rotate", "--yes"]).code, 7, "one at a time");
    cluster.kill(&leader);
    cluster.run(others[0]);
    cluster.run(&leader);
    ALL.iter().for_each(|name| wait_key(&cluster, name, "authority", 2, "done"));

    let new = cluster.ask("n1", &["cert", "show"])["authorities"].clone();
    assert_eq!(new.as_array().unwrap().len(), 1);
    let new = new[0]["fingerprint"].as_str().unwrap().to_owned();
    assert_ne!(new, old);
    for name in ALL {
        assert_eq!(authority_of(&cluster, name).unwrap(), new, "{name}");
        let tls = cluster.server(name).dir.join("tls");
        let believed = std::fs::read_to_string(tls.join("ca.crt")).unwrap();
        assert_eq!(believed.matches("BEGIN CERTIFICATE").count(), 1, "{name}");
        let keys = std::fs::read_to_string(tls.join("ca.key")).unwrap();
        assert_eq!(keys.matches("BEGIN PRIVATE KEY").count(), 1, "{name}");
        assert_ne!(keys, cluster.ca.key_pem().as_str(), "{name}");
    }
    cluster.whole();
    // A token of before is refused in words, before its secret is sent; it is of no use anyway.
    let free = free_addresses(2);
    let joined = Command::new(env!("CARGO_BIN_EXE_quorate"))
        .args(["join", token.strip_prefix("quorate join ").unwrap(), "--name", "n4", "--no-start"])
        .args(["--listen", &free[0], "--link", &free[1], "--data-dir"])
        .arg(cluster.dir.path().join("n4"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&joined.stderr).into_owned();
    assert!(!joined.status.success() && said.contains("add-node"), "{said}");
    assert_eq!(cluster.ask("n1", &["node", "tokens"]), json!([]));
    let fresh = cluster.ask("n1", &["add-node"])["commands"][0].as_str().unwrap().to_owned();
    assert!(fresh.ends_with(&new), "{fresh}");
    // All of them start with what is on their disks.
    ALL.iter().for_each(|name| cluster.kill(name));
    ALL.iter().for_each(|name| cluster.run(name));
    cluster.whole();
    let audit = cluster.ask("n1", &["audit", "list"]).to_string();
    assert!(audit.contains("certificate-rotate"), "{audit}");
    let events = cluster.ask("n1", &["events"]).to_string();
    assert!(events.contains("CA 2 is the only one"), "{events}");
}

#[test]
fn an_expelled_manager_is_cut_off_and_what_it_knew_is_exchanged() {
    let mut cluster = Trusting::start(&Plan { nodes: 3, keepers: ALL, made: now(), found_at: None });
    let secret = cluster.dir.path().join("value");
    std::fs::write(&secret, "before-the-removal").unwrap();
    cluster.ask("n1", &["secret", "set", "pg", "--file", secret.to_str().unwrap()]);
    let sealed_key = |name: &str| std::fs::read_to_string(cluster.server(name).dir.join("tls/cluster.key")).unwrap();
    let known_to_n3 = sealed_key("n3");
    let leader = cluster.leader();
    let out = ALL.iter().copied().find(|name| *name != leader).unwrap();
    let stay: Vec<&str> = ALL.iter().copied().filter(|name| *name != out).collect();
    cluster.ask(&leader, &["node", "remove", out, "--yes"]);
    for name in &stay {
        wait_key(&cluster, name, "secrets", 2, "done");
        assert!(!sealed_key(name).contains(&known_to_n3[20..60]), "{name} has forgotten the key");
        let shown = cluster.ask(name, &["cert", "show"]);
        assert_eq!(key(&shown, "authority")["exposed_by"], out);
        assert!(shown["next"][0].as_str().unwrap().contains("quorate cert rotate"), "{shown}");
        assert_eq!(cluster.ask(name, &["secret", "show", "pg"])["key"], 2, "sealed anew");
    }
    // It is told so, has got none of the new keys, and knocks in vain.
    wait_for("it is told", PATIENCE, || cluster.log(out).contains("was expelled").then_some(()));
    assert_eq!(sealed_key(out), known_to_n3);
    cluster.kill(out);
    cluster.run(out);
    wait_for("an event of it", PATIENCE, || {
        cluster.ask(&leader, &["events"]).to_string().contains("was expelled from this cluster").then_some(())
    });
}

#[test]
fn a_cluster_of_dev_goes_on_with_its_new_ca_and_its_secrets_after_a_restart() {
    let kept = tempfile::Builder::new().prefix("quorate-it-").tempdir().unwrap();
    let dir = kept.path().canonicalize().unwrap().join("cluster");
    let start = || TestCluster::start_in(tempfile::tempdir().unwrap(), dir.clone(), &[]);
    let value = kept.path().join("value");
    std::fs::write(&value, "of dev").unwrap();
    let shown = |cluster: &TestCluster| -> Value {
        serde_json::from_str(&cluster.ok(&["cert", "show", "-o", "json"])).unwrap()
    };
    let rotated = {
        let cluster = start();
        cluster.wait_whole();
        cluster.ok(&["secret", "set", "pg", "--file", value.to_str().unwrap()]);
        cluster.ok(&["cert", "rotate", "--yes"]);
        wait_for("the rotation", PATIENCE, || (key(&shown(&cluster), "authority")["stage"] == "done").then_some(()));
        shown(&cluster)["authorities"].clone()
    };
    let cluster = start();
    cluster.wait_whole();
    wait_for("all nodes to say what they have", PATIENCE, || {
        let shown = shown(&cluster);
        let of_it = |node: &Value| node["authority"] == rotated[0]["fingerprint"];
        (shown["authorities"] == rotated && shown["nodes"].as_array().unwrap().iter().all(of_it)).then_some(())
    });
    let secret: Value = serde_json::from_str(&cluster.ok(&["secret", "show", "pg", "-o", "json"])).unwrap();
    assert_eq!(secret["version"], 1);
    // A manager is removed: whoever stays opens the secret, and seals it anew.
    let gone = cluster.followers().remove(0);
    cluster.ok(&["node", "remove", &gone, "--yes"]);
    // Not of the removed one, which knows what it knew.
    let leader = cluster.node(&cluster.leader()).api.clone();
    wait_for("the secret is sealed anew", PATIENCE, || {
        let (_, secret) = cluster.http.get(&format!("{leader}/v1/secrets/pg")).ok()?;
        (secret["key"] == 2).then_some(())
    });
}
