//! What services need of a node, with a real S3 service that verifies signatures.

use super::DEADLINE;
use quorate_agent::{HeldSecret, Secrets, needs};
use quorate_model::access::name::{Digest, SecretName};
use quorate_model::id::ServiceName;
use quorate_model::need::{Artifact, Needs, NodeNeeds, Prepared, S3, SecretStamp};
use quorate_model::secret::Secret;
use quorate_model::time::WallTime;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::timeout;

const OBJECT: &str = "#!/bin/sh\n";

/// Moto, with one object and one key.
struct S3Server {
    process: Child,
    said: Value,
}

impl Drop for S3Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl S3Server {
    fn start() -> S3Server {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut process = Command::new("python3")
            .arg(here.join("tests/it/s3_server.py"))
            // Where `cargo xtask ci` puts it, if the system has none.
            .env("PYTHONPATH", here.join("../../target/tools/moto"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        process.stdin.as_mut().unwrap().write_all(OBJECT.as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said = serde_json::from_str(&line)
            .expect("moto serves S3: `cargo xtask ci` installs it, as does `pip install 'moto[s3,server]'`");
        S3Server { process, said }
    }

    fn said(&self, what: &str) -> String {
        self.said[what].as_str().unwrap().to_owned()
    }
}

fn secrets(value: &str) -> Arc<Secrets> {
    let stamp = SecretStamp { version: 1, changed: WallTime(1) };
    let held = HeldSecret { stamp, value: Secret::new(value.as_bytes().to_vec()) };
    Arc::new(Secrets(BTreeMap::from([(SecretName::new("s3").unwrap(), held)])))
}

#[tokio::test]
async fn k13_an_object_is_fetched_from_s3_with_the_key_that_is_a_secret() {
    let server = S3Server::start();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("artifacts");
    let s3 = S3 {
        endpoint: Some(server.said("endpoint")),
        access_key: Some(server.said("id")),
        secret_key: Some(SecretName::new("s3").unwrap()),
        ..S3::default()
    };
    let sha256 = Digest::of(OBJECT.as_bytes());
    let artifact = Artifact {
        name: "main".into(),
        source: "s3://apps/dir/my app.bin".into(),
        sha256,
        unpack: false,
        s3: Some(s3),
    };
    let needs = Needs { artifacts: vec![artifact], ..Needs::default() };
    let services = BTreeMap::from([(ServiceName::new("web").unwrap(), vec![needs])]);
    let wanted = watch::Sender::new(Arc::new(NodeNeeds { services, ..NodeNeeds::default() }));
    let held = watch::Sender::new(secrets("a wrong key"));
    let (told, mut heard) = watch::channel(Arc::<Vec<Prepared>>::default());
    tokio::spawn(needs::prepare(root.clone(), wanted.subscribe(), held.subscribe(), told));

    let lacks =
        |all: &Arc<Vec<Prepared>>, what: &str| all.iter().any(|one| one.lacks.iter().any(|it| it.contains(what)));
    let refused = timeout(DEADLINE, heard.wait_for(|all| lacks(all, "answered 403"))).await;
    drop(refused.expect("the service refuses the wrong key").unwrap());
    held.send_replace(secrets(&server.said("key")));
    let prepared = timeout(DEADLINE, heard.wait_for(|all| all.iter().any(|one| one.lacks.is_empty()))).await;
    drop(prepared.expect("the right key is taken").unwrap());
    let file = root.join(sha256.to_string()).join("my_app.bin");
    assert_eq!(fs::read_to_string(file).unwrap(), OBJECT);
}
