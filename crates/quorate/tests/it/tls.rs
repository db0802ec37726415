//! The API over TLS, as the command line and a client of another making see it.

use crate::cli::{finished, quorate};
use crate::cluster::{PATIENCE, TestCluster, TestNode, free_addresses, wait_for};
use quorate_model::id::{ClusterId, NodeId};
use quorate_model::time::WallTime;
use quorate_trust::ca::{Ca, NodeCertificate};
use quorate_trust::fingerprint::Fingerprint;
use quorate_trust::key::NodeKey;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

fn now() -> WallTime {
    WallTime(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap())
}

/// The authority of a cluster that a test makes by hand.
pub(crate) fn authority(cluster: Uuid) -> Ca {
    Ca::create(ClusterId(cluster), now(), Uuid::new_v4().as_u128()).unwrap()
}

fn issue(ca: &Ca, node: Uuid) -> (NodeCertificate, NodeKey) {
    let key = NodeKey::generate().unwrap();
    let names = [rustls::pki_types::ServerName::try_from("localhost").unwrap()];
    let certificate = ca.issue(&key.request().unwrap(), NodeId(node), &names, now(), 1).unwrap();
    (certificate, key)
}

/// Puts into a node's directory what it proves itself with.
pub(crate) fn certify(ca: &Ca, node: Uuid, data_dir: &Path) {
    let (certificate, key) = issue(ca, node);
    let tls = data_dir.join("tls");
    std::fs::create_dir(&tls).unwrap();
    std::fs::write(tls.join("ca.crt"), ca.certificate().to_pem()).unwrap();
    std::fs::write(tls.join("node.crt"), certificate.to_pem()).unwrap();
    std::fs::write(tls.join("node.key"), key.to_pem().as_str()).unwrap();
}

/// One node whose API is served over TLS.
pub(crate) struct Server {
    pub(crate) cluster: TestCluster,
    pub(crate) port: String,
    pin: Fingerprint,
    /// With certificates of `quorate` and `company`, in PEM.
    dir: std::path::PathBuf,
}

/// `own`: the API shows a certificate of the company's authority.
pub(crate) fn serve(own: bool) -> Server {
    let private = tempfile::Builder::new().prefix("quorate-it-").tempdir().unwrap();
    let dir = private.path().canonicalize().unwrap();
    let addresses = free_addresses(2);
    let (cluster, id, node) = (Uuid::new_v4(), Uuid::new_v4(), dir.join("n1"));
    std::fs::create_dir(&node).unwrap();
    let ca = authority(cluster);
    certify(&ca, id, &node);
    let company = authority(Uuid::new_v4());
    std::fs::write(dir.join("quorate.crt"), ca.certificate().to_pem()).unwrap();
    std::fs::write(dir.join("company.crt"), company.certificate().to_pem()).unwrap();
    let (certificate, key) = issue(&company, Uuid::new_v4());
    std::fs::write(dir.join("own.crt"), certificate.to_pem()).unwrap();
    std::fs::write(dir.join("own.key"), key.to_pem().as_str()).unwrap();
    let shown = match own {
        true => "[node.api_certificate]\ncertificate = 'DIR/own.crt'\nkey = 'DIR/own.key'\n",
        false => "",
    };
    let text = format!(
        "[cluster]\nid = '{cluster}'\nname = 'tls'\n[[voter]]\nid = '{id}'\nname = 'n1'\nlink = '{link}'\n\
         [node]\nid = '{id}'\nname = 'n1'\nroles = ['manager']\nauth = 'open'\napi = '{api}'\nlink = '{link}'\n{shown}",
        api = addresses[0],
        link = addresses[1],
        shown = shown.replace("DIR", dir.to_str().unwrap()),
    );
    std::fs::write(node.join("node.toml"), text).unwrap();
    let log = std::fs::File::create(node.join("server.log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(["serve", "--data-dir"]).arg(&node).stdin(Stdio::null()).stderr(log);
    let process = command.spawn().unwrap();
    let port = addresses[0].rsplit(':').next().unwrap().to_owned();
    let nodes = vec![TestNode { name: "n1".into(), api: format!("https://{}", addresses[0]) }];
    let server = Server {
        cluster: TestCluster::of(nodes, vec![process], private),
        port,
        pin: ca.certificate().fingerprint(),
        dir,
    };
    let pin = server.pin.to_string();
    wait_for("the node answers and leads", PATIENCE, || {
        (server.ask(&["--ca-pin", &pin, "status", "--check"]).0 == 0).then_some(())
    });
    server
}

impl Server {
    /// A command that reaches it by address.
    fn ask(&self, args: &[&str]) -> (i32, String, String) {
        self.ask_at(&self.cluster.nodes[0].api, args)
    }

    fn ask_at(&self, url: &str, args: &[&str]) -> (i32, String, String) {
        finished(quorate(&["--server", url]).args(args).output().unwrap())
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    fn by_name(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// The status of `curl`, and what it got.
    fn curl(&self, args: &[&str]) -> (i32, String) {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "10"]).args(args);
        let (code, out, _) = finished(command.arg(format!("{}/v1/health", self.by_name())).output().unwrap());
        (code, out)
    }
}

#[test]
fn the_api_is_reached_over_tls_by_a_pin_or_a_file_and_by_nothing_else() {
    let server = serve(false);
    let (pin, file) = (server.pin.to_string(), server.file("quorate.crt"));
    let (code, out, err) = server.ask(&["--ca-pin", &pin, "status", "-o", "json"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains(&format!("\"api\":\"{}\"", server.cluster.nodes[0].api)), "{out}");
    // A change, whose body goes up, and by a name that is in the certificate.
    let sql = ["--ca-file", &file, "db", "exec", "CREATE TABLE t(n)"];
    assert_eq!(server.ask_at(&server.by_name(), &sql).0, 0);

    let (code, _, err) = server.ask(&["--ca-pin", &"0".repeat(64), "status"]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("the server's CA is not the one with fingerprint 0000"), "{err}");
    let (code, _, err) = server.ask(&["--ca-file", &server.file("company.crt"), "status"]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("not from the CA"), "{err}");
    // The address is not in the certificate, and a file of authorities is believed by name only.
    assert_eq!(server.ask(&["--ca-file", &file, "status"]).0, 3);
    let (code, _, err) = server.ask(&["status"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("--ca-pin"), "{err}");
}

#[test]
fn a_client_of_another_making_speaks_tls_1_3_and_1_2_to_the_api_and_nothing_in_clear() {
    let server = serve(false);
    let file = server.file("quorate.crt");
    for version in ["1.3", "1.2"] {
        let (code, _) = server.curl(&["--cacert", &file, "--tls-max", version]);
        assert_eq!(code, 0, "TLS {version}");
    }
    // 60: the server's certificate is not believed.
    assert_eq!(server.curl(&["--cacert", &server.file("company.crt")]).0, 60);
    let plain = Command::new("curl")
        .args([
            "--silent",
            "--noproxy",
            "*",
            "--max-time",
            "10",
            &format!("http://localhost:{}/v1/health", server.port),
        ])
        .output()
        .unwrap();
    assert!(plain.stdout.iter().all(|byte| *byte < 32 || *byte > 126), "{plain:?}");
}

#[test]
fn with_a_certificate_of_the_company_the_pin_of_the_cluster_still_fits() {
    let server = serve(true);
    let pin = server.pin.to_string();
    assert_eq!(server.curl(&["--cacert", &server.file("company.crt")]).0, 0);
    assert_eq!(server.curl(&["--cacert", &server.file("quorate.crt")]).0, 60);
    assert_eq!(server.ask_at(&server.by_name(), &["--ca-file", &server.file("company.crt"), "status"]).0, 0);
    assert_eq!(server.ask(&["--ca-pin", &pin, "status"]).0, 0);
}
