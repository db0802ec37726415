//! A real PostgreSQL of three nodes by Debian's resource agent: Quorate in the place of Pacemaker.
//!
//! The agent writes down in the cluster how far each copy has come, and its scores say who may be promoted: the copy
//! that has each committed row, which is known to nobody else.

use crate::cluster::{PATIENCE, TestCluster, free_addresses, wait_for};
use crate::externals::servers::{ids, newest, succeeded};
use serde_json::Value;
use std::fmt::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The agent sleeps for seconds where it waits, and three of its looks must agree before a first copy is promoted.
const SLOW: Duration = Duration::from_secs(180);

const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// The data of three servers that are copies of each other, each on an address of its own.
struct Databases {
    dir: tempfile::TempDir,
    bin: PathBuf,
    port: String,
}

impl Databases {
    fn prepare() -> Databases {
        let dir = tempfile::Builder::new().prefix("quorate-it-pgsql-").tempdir().unwrap();
        let (user, group) = ids("postgres");
        chown(dir.path(), Some(user), Some(group)).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let port = free_addresses(1).remove(0).rsplit_once(':').unwrap().1.to_owned();
        let bin = newest(Path::new("/usr/lib/postgresql")).join("bin");
        let databases = Databases { dir, bin, port };
        let first = databases.data(NODES[0]);
        let mut initdb = Command::new(databases.bin.join("initdb"));
        initdb.args(["--auth=trust", "--no-sync", "-D"]).arg(&first).uid(user).gid(group);
        succeeded(initdb.current_dir(databases.dir.path()).output().unwrap());
        let mut access = std::fs::read_to_string(first.join("pg_hba.conf")).unwrap();
        access += "host replication all 127.0.0.0/8 trust\nhost all all 127.0.0.0/8 trust\n";
        std::fs::write(first.join("pg_hba.conf"), access).unwrap();
        for node in &NODES[1..] {
            succeeded(Command::new("cp").arg("-a").arg(&first).arg(databases.data(node)).output().unwrap());
        }
        for node in NODES {
            let config = databases.data(node).join("postgresql.conf");
            let mut text = std::fs::read_to_string(&config).unwrap();
            let _ = writeln!(
                text,
                "port = {}\nlisten_addresses = '{}'\nunix_socket_directories = '{}.socket'\nfsync = off\n\
                 wal_receiver_timeout = 2s",
                databases.port,
                address(node),
                databases.data(node).display()
            );
            std::fs::write(&config, text).unwrap();
        }
        databases
    }

    fn data(&self, node: &str) -> PathBuf {
        self.dir.path().join(node)
    }

    fn spec(&self) -> String {
        let (dir, bin, port) = (self.dir.path().display(), self.bin.display(), &self.port);
        // Whoever is not the primary asks all of them for it; with a virtual address it would ask that.
        let all = NODES.map(address).join(",");
        format!(
            "[[service]]\nname = 'db'\nmode = 'active-passive'\ndriver = 'ocf'\nreplicas = 3\nfailover = '10s'\n\
             [service.ocf]\nagent = 'heartbeat:pgsql'\nevery = '1s'\n\
             [service.ocf.params]\npgctl = '{bin}/pg_ctl'\npsql = '{bin}/psql'\npgdata = '{dir}/{{node}}'\n\
             config = '{dir}/{{node}}/postgresql.conf'\nlogfile = '{dir}/{{node}}.log'\n\
             socketdir = '{dir}/{{node}}.socket'\ntmpdir = '{dir}/{{node}}.tmp'\npgport = '{port}'\n\
             rep_mode = 'sync'\nnode_list = '{}'\nmaster_ip = '{all}'\nrepuser = 'postgres'\n\
             primary_conninfo_opt = 'target_session_attrs=primary'\nrestore_command = ''\n",
            NODES.join(" "),
        )
    }

    /// `None`: it was not done.
    fn try_sql(&self, node: &str, sql: &str) -> Option<String> {
        let url = format!("postgres://postgres@{}:{}/postgres?connect_timeout=5", address(node), self.port);
        let ran = Command::new(self.bin.join("psql")).args([&url, "-Atqc", sql]).output().unwrap();
        ran.status.success().then(|| String::from_utf8(ran.stdout).unwrap().trim().to_owned())
    }

    /// What each agent has written into the log of its copy, for whoever looks at a failure.
    fn sql(&self, node: &str, sql: &str) -> String {
        self.try_sql(node, sql).unwrap_or_else(|| {
            let log = std::fs::read_to_string(self.dir.path().join(format!("{node}.log"))).unwrap_or_default();
            panic!("{node} did not do {sql}; its log: {log}")
        })
    }
}

fn address(node: &str) -> String {
    format!("127.0.1.{}", &node[1..])
}

fn attribute<'a>(nodes: &'a Value, node: &str, name: &str) -> &'a str {
    let found = nodes.as_array().unwrap().iter().find(|it| it["name"] == node).unwrap();
    found["attributes"][name].as_str().unwrap_or_default()
}

/// The nodes of the copies with this role.
fn with_role(view: &Value, role: &str) -> Vec<String> {
    let replicas = view["replicas"].as_array().into_iter().flatten();
    let mut nodes: Vec<String> =
        replicas.filter(|it| it["role"] == role).map(|it| it["node"].as_str().unwrap().to_owned()).collect();
    nodes.sort();
    nodes
}

#[test]
fn debians_postgresql_is_promoted_where_all_of_its_data_is() {
    let databases = Databases::prepare();
    let cluster = TestCluster::start();
    let spec = cluster.spec_file("db.toml", &databases.spec());
    cluster.ok(&["service", "apply", "-f", &spec, "--yes", "--no-wait"]);
    let show = || cluster.service("db");
    let active = wait_for("one copy is active and two stand by", SLOW, || {
        let view = show();
        (with_role(&view, "standby").len() == 2).then(|| with_role(&view, "active").pop()).flatten()
    });
    // The active copy's agent finds out who follows it, and has one of them confirm what is committed.
    let heir = wait_for("one standby has everything", SLOW, || {
        let nodes = cluster.json(&["node", "list"]);
        let synchronous = |node: &&&str| attribute(&nodes, node, "db-status") == "HS:sync";
        NODES.iter().find(synchronous).map(|node| (*node).to_owned())
    });
    assert_ne!(heir, active);
    let other = NODES.iter().find(|node| **node != heir && **node != active).unwrap();
    let explained = cluster.ok(&["explain", "db"]);
    assert!(explained.contains("its agent says that it is not to be promoted"), "{other}: {explained}");
    databases.sql(&active, "CREATE TABLE t (n int); INSERT INTO t VALUES (7)");

    cluster.kill(&active);
    wait_for("the one that has everything is active", SLOW, || {
        (with_role(&show(), "active") == [heir.clone()]).then_some(())
    });
    assert_eq!(databases.sql(&heir, "SELECT n FROM t"), "7");
    wait_for("it takes writes", PATIENCE, || databases.try_sql(&heir, "INSERT INTO t VALUES (8)"));
    wait_for("the third follows it", SLOW, || {
        (databases.try_sql(other, "SELECT count(*) FROM t WHERE n = 8")? != "0").then_some(())
    });

    // What was the active copy has perhaps what nobody else has, so its agent does not start it unasked.
    cluster.start_node(&active);
    wait_for("it is said why the lost one stays away", SLOW, || {
        show().to_string().contains("My data may be inconsistent").then_some(())
    });
    assert_eq!(with_role(&show(), "active"), [heir]);
}
