//! Certificates that live: renewed by themselves, refused where they must be.

use crate::cluster::{PATIENCE, wait_for};
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
    let mut cluster = Trusting::start(&Plan { nodes: 3, keepers: &["n1", "n2"], made: now(), found_at: None });
    cluster.kill("n3");
    cluster.certify("n3", days_ago(40));
    let ended = cluster.certificate("n3");
    cluster.run("n3");
    cluster.whole();
    let new = cluster.certificate("n3");
    assert_ne!(new.public().unwrap(), ended.public().unwrap());
    assert!(cluster.log("n3").contains("this node has a new certificate"));
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
