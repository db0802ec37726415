//! E6: externals, against the servers that they stand for.

pub(crate) mod servers;

use crate::cluster::{PATIENCE, Ran, wait_for};
use crate::founded::Founded;
use crate::show::is_whole;
use servers::{ADMIN, Databases, Postgres, RabbitMq, Redis, S3, as_admin};
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

/// Long, and odd enough to be nowhere by chance; with letters that a URL needs encoded.
const PASSWORD: &str = "canary-7c1f0e/@first";
const SECOND: &str = "canary-7c1f0e/@second";
/// What both have in common, as it is and encoded.
const CANARIES: [&str; 2] = ["canary-7c1f0e/@", "canary-7c1f0e%2F%40"];

/// A manager that runs services, and a worker.
fn cluster() -> Founded {
    let mut founded = Founded::new();
    founded.add("n2", &["--role", "worker"]);
    founded.wait_state(&["n1"], "n2", "joined");
    founded.tie("n2");
    founded.tie("n1");
    wait_for("both nodes are there", PATIENCE, || {
        let nodes = founded.try_ask(&["node", "list", "-o", "json"])?;
        let joined = nodes.as_array()?.iter().filter(|node| node["state"] == "joined").count();
        (joined == 2).then_some(())
    });
    founded
}

/// `quorate external add` with this password on standard input.
fn add(founded: &Founded, args: &[&str], password: &str) -> Ran {
    add_with(founded, args, password, &[])
}

fn add_with(founded: &Founded, args: &[&str], password: &str, environment: &[(&str, &str)]) -> Ran {
    let socket = format!("unix:{}", founded.home("n1").join("api.sock").display());
    let args = [&["--server", &socket, "external", "add"], args, &["--password-stdin"]].concat();
    let mut command = crate::founded::quorate(&args);
    command.envs(environment.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    process.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
    let output = process.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let ran =
        Ran { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) };
    for canary in CANARIES {
        assert!(!ran.stdout.contains(canary) && !ran.stderr.contains(canary), "no output holds a password: {ran:?}");
    }
    ran
}

fn refused(founded: &Founded, args: &[&str], password: &str, said: &[&str]) {
    let ran = add(founded, args, password);
    assert_eq!(ran.code, 7, "{ran:?}");
    for text in said {
        assert!(ran.stderr.contains(text), "{text:?} is said: {}", ran.stderr);
    }
    let name = args[0];
    assert_eq!(founded.command(&["external", "show", name]).code, 6, "what is refused is not there");
}

fn accepted(founded: &Founded, args: &[&str], password: &str) -> String {
    let ran = add(founded, args, password);
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.stdout
}

fn apply(founded: &Founded, name: &str, text: &str) {
    let path = founded.dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    let path = path.display().to_string();
    wait_for("the spec is taken", PATIENCE, || {
        (founded.command(&["service", "apply", "-f", &path, "--yes", "--no-wait"]).code == 0).then_some(())
    });
}

/// Waits until a file has these lines, and gives them.
fn written(path: &Path, lines: &[String]) {
    let wanted = lines.join("\n");
    wait_for(&format!("{wanted} in {}", path.display()), PATIENCE, || {
        (std::fs::read_to_string(path).ok()?.trim_end() == wanted).then_some(())
    });
}

/// The files below that have one of the canaries in them, and the processes on whose command line one is.
fn leaks(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                dirs.push(entry.path());
            } else if kind.is_file() {
                let bytes = std::fs::read(entry.path()).unwrap_or_default();
                let text = String::from_utf8_lossy(&bytes);
                found.extend(
                    CANARIES.iter().any(|canary| text.contains(canary)).then(|| entry.path().display().to_string()),
                );
            }
        }
    }
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        found.extend(CANARIES.iter().any(|canary| line.contains(canary)).then_some(line));
    }
    found
}

#[test]
fn e6_postgres_is_taken_when_every_node_can_log_in_and_services_are_told_of_it() {
    let founded = cluster();
    let postgres = Postgres::start();
    postgres.sql(&format!("CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'"));
    postgres.sql("CREATE DATABASE orders");
    let url = |database: &str| format!("postgres://app@{}/{database}", postgres.address);
    let (good, no_database) = (url("orders"), url("nothing"));
    let define = |url| ["orders-db", "--kind", "postgres", "--url", url];
    let wrong = ["n1, n2 cannot log in", "password authentication failed", "correct the user or the password"];
    refused(&founded, &define(&good), "wrong", &wrong);
    refused(&founded, &define(&no_database), PASSWORD, &["database \"nothing\" does not exist", "create it"]);
    let nobody = servers::free_address();
    let dead = format!("postgres://app@{nobody}/orders");
    refused(&founded, &define(&dead), PASSWORD, &["it refuses the connection", "start the server there"]);
    let tls = [&define(&good)[..], &["--tls", "verify"]].concat();
    refused(&founded, &tls, PASSWORD, &["the server has none"]);

    // One of several may be away: that is what several are for.
    let several = format!("postgres://app@{nobody},{}/orders", postgres.address);
    let said = accepted(&founded, &define(&several), PASSWORD);
    assert!(said.contains("2 nodes logged in") && said.contains("it refuses the connection"), "{said}");
    assert!(accepted(&founded, &define(&good), PASSWORD).contains("2 nodes logged in"));

    // Outside of the cluster's directories, which are looked through below.
    let seen = tempfile::tempdir().unwrap();
    let file = seen.path().join("seen");
    let script = format!(
        "printf '%s\\n' \"$ORDERS_DB_URL\" \"$ORDERS_DB_HOSTS\" \"$ORDERS_DB_USER\" \"$ORDERS_DB_PASSWORD\" \
                          \"$ORDERS_DB_DATABASE\" > {}; exec sleep 100000",
        file.display()
    );
    apply(
        &founded,
        "shop.toml",
        &format!(
            "[[service]]\nname = 'shop'\ncommand = ['/bin/sh', '-c', '''{script}''']\nexternals = ['orders-db']\n"
        ),
    );
    let lines = |password: &str| {
        let encoded = password.replace('/', "%2F").replace('@', "%40");
        [
            format!("postgres://app:{encoded}@{}/orders?sslmode=disable", postgres.address),
            postgres.address.clone(),
            "app".into(),
            password.into(),
            "orders".into(),
        ]
    };
    written(&file, &lines(PASSWORD));
    let before = founded.ask(&["service", "show", "shop"]);

    // A new password rolls what uses it.
    postgres.sql(&format!("ALTER ROLE app PASSWORD '{SECOND}'"));
    accepted(&founded, &define(&good), SECOND);
    written(&file, &lines(SECOND));
    let after = wait_for("the next copy runs", PATIENCE, || {
        founded.try_ask(&["service", "show", "shop", "-o", "json"]).filter(is_whole)
    });
    assert_ne!(before["replicas"][0]["id"], after["replicas"][0]["id"]);

    let used = founded.command(&["external", "remove", "orders-db", "--yes"]);
    assert!(used.code == 7 && used.stderr.contains("`shop` uses the external `orders-db`"), "{used:?}");
    assert_eq!(founded.command(&["external", "test", "orders-db"]).code, 0);
    let shown = founded.command(&["external", "show", "orders-db"]).stdout;
    assert!(shown.contains("the secret external.orders-db"), "{shown}");
    assert_eq!(leaks(founded.dir.path()), [""; 0], "a password is in none of these");
}

#[test]
fn e6_a_node_that_cannot_log_in_does_not_run_the_service_and_says_why() {
    let founded = cluster();
    let address = servers::free_address();
    let late = ["late", "--kind", "postgres", "--host", &address, "--user", "app", "--database", "postgres"];
    let said = accepted(&founded, &[&late[..], &["--unchecked"]].concat(), PASSWORD);
    assert!(said.contains("set unchecked") && said.contains("it refuses the connection"), "{said}");
    apply(
        &founded,
        "needy.toml",
        "[[service]]\nname = 'needy'\ncommand = ['sleep', '100000']\nrequires = [{ external = 'late' }]\n",
    );
    let lacks = format!("lacks external late ({address}: it refuses the connection)");
    wait_for("what it lacks is said", PATIENCE, || {
        let shown = founded.try_ask(&["service", "show", "needy", "-o", "json"])?;
        shown["held"].to_string().contains(&lacks).then_some(())
    });
    assert_eq!(founded.command(&["external", "test", "late"]).code, 1);
    let postgres = Postgres::start_at(&address);
    postgres.sql(&format!("CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'"));
    wait_for("it runs as soon as its nodes can log in", PATIENCE, || {
        founded.try_ask(&["service", "show", "needy", "-o", "json"]).filter(is_whole)
    });
}

#[test]
fn a_database_is_as_well_as_the_query_of_its_check_says() {
    let founded = cluster();
    let databases = Databases::new();
    let secret = founded.dir.path().join("pg");
    std::fs::write(&secret, ADMIN).unwrap();
    let set = founded.command(&["secret", "set", "pg", "--file", &secret.display().to_string()]);
    assert_eq!(set.code, 0, "{set:?}");
    let query = "SELECT count(*) > 0 FROM pg_roles WHERE rolname = $$well$$";
    let check = format!(
        "{{ sql = {{ query = '{query}', user = 'admin', database = 'postgres', password = '{{secret.pg}}' }}, \
         every = '100ms', timeout = '20s', fail_after = 1 }}"
    );
    let command = databases.command("{port}");
    let spec = format!(
        "[[service]]\nname = 'db'\ncommand = {command:?}\nports = {{ sql = 'auto' }}\nsecrets = ['pg']\n\
         stop = {{ signal = 'INT' }}\nhealth = {check}\n"
    );
    apply(&founded, "db.toml", &spec);
    let replica = |what: &str, state: &str, detail: &str| {
        wait_for(what, PATIENCE, || {
            let shown = founded.try_ask(&["service", "show", "db", "-o", "json"])?;
            let replica = shown["replicas"].get(0)?.clone();
            (replica["state"] == state && replica["detail"] == detail).then_some(replica)
        })
    };
    let starting = replica("it runs and is asked", "starting", "sql: the query gives f");
    let address = starting["addresses"]["sql"].as_str().unwrap();
    as_admin(address, "CREATE ROLE well");
    let healthy = replica("it is well", "healthy", "");
    assert_eq!(starting["pid"], healthy["pid"], "nothing was restarted for that");
    as_admin(address, "ALTER ROLE admin PASSWORD 'another'");
    let refused = "sql: PostgreSQL says: password authentication failed for user \"admin\"";
    replica("nobody is let in", "unhealthy", refused);
}

#[test]
fn e6_redis_is_one_host_with_databases_or_the_nodes_of_a_whole_cluster() {
    let founded = cluster();
    let redis = Redis::start(PASSWORD, false);
    let one = ["cache", "--kind", "redis", "--host", &redis.address, "--database", "3"];
    refused(&founded, &one, "wrong", &["WRONGPASS"]);
    refused(&founded, &[&one[..6], &["99"]].concat(), PASSWORD, &["DB index is out of range"]);
    accepted(&founded, &one, PASSWORD);

    let nodes: Vec<Redis> = (0..3).map(|_| Redis::start(PASSWORD, true)).collect();
    let hosts: Vec<&str> = nodes.iter().map(|node| node.address.as_str()).collect();
    let list = hosts.join(",");
    let environment = [("QUORATE_TEST_REDIS", list.as_str())];
    let with_variable = |more: &[&str]| {
        let args = ["sessions", "--kind", "redis", "--hosts-from-env", "QUORATE_TEST_REDIS"];
        let ran = add_with(&founded, &[&args[..], more].concat(), PASSWORD, &environment);
        (ran.code, ran.stdout + &ran.stderr)
    };
    let (code, said) = with_variable(&[]);
    assert!(code == 7 && said.contains("its cluster is not whole: the state is fail"), "{said}");
    Redis::join(PASSWORD, &nodes);
    let (code, said) = with_variable(&["--database", "2"]);
    assert!(code == 2 && said.contains("a cluster of Redis nodes has the database 0 alone"), "{said}");
    let (code, said) = with_variable(&[]);
    assert!(code == 0 && said.contains("2 nodes logged in"), "{said}");
}

#[test]
fn e6_s3_is_asked_with_a_signature() {
    let founded = cluster();
    let s3 = S3::start();
    let files = ["files", "--kind", "s3", "--tls", "off", "--host", &s3.address, "--user", &s3.id, "--database"];
    let bucket = |name| [&files[..], &[name]].concat();
    refused(&founded, &bucket("apps"), "wrong", &["SignatureDoesNotMatch"]);
    refused(&founded, &bucket("nothing"), &s3.key, &["NoSuchBucket"]);
    accepted(&founded, &bucket("apps"), &s3.key);
}

#[test]
fn e6_rabbitmq_is_logged_in_to_by_its_virtual_host() {
    let founded = cluster();
    let rabbit = RabbitMq::start(PASSWORD);
    let host = |name: &'static str| {
        ["jobs", "--kind", "rabbitmq", "--host", &rabbit.address, "--user", "app", "--database", name]
    };
    refused(&founded, &host("/"), "wrong", &["ACCESS_REFUSED"]);
    refused(&founded, &host("nothing"), PASSWORD, &["vhost nothing not found"]);
    accepted(&founded, &host("/"), PASSWORD);
}

#[test]
fn e6_kinds_that_nobody_tests_yet_are_said_to_be_so() {
    let ran = crate::founded::run(&["external", "add", "x", "--kind", "mongodb", "--host", "h"]);
    assert!(ran.code == 2 && ran.stderr.contains("mongodb are not supported yet"), "{ran:?}");
}
