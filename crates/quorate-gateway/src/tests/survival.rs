//! What clients notice when replicas, managers and the gateway itself come and go.

use super::rig::{DEADLINE, Gateway, Manager, Replica, config, reaches, table, within};
use crate::{GatewayConfig, Limits};
use quorate_model::id::ReplicaId;
use quorate_model::routing::Endpoint;
use quorate_model::routing::EndpointState::{Draining, Healthy};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// Kills one of three replicas while it holds requests, and returns how many GETs of all clients
/// were not answered with 200.
async fn failures_when_a_replica_dies(retries: bool) -> usize {
    let mut victim = Replica::start(1).await;
    let others = [Replica::start(2).await, Replica::start(3).await];
    for other in &others {
        other.seen.released.send_replace(true);
    }
    let endpoints = [&victim, &others[0], &others[1]].map(|replica| replica.endpoint(Healthy)).to_vec();
    let mut manager = Manager::start(table(1, endpoints)).await;
    let mut config = config(&[&manager]);
    config.retries = retries;
    let gateway = Gateway::start(config).await;
    manager.reported(|report| report.revision == 1).await;
    let mut clients = JoinSet::new();
    for _ in 0..16 {
        let mut client = gateway.client().await;
        clients.spawn(async move {
            let mut failures = 0;
            for _ in 0..50 {
                failures += usize::from(client.get("/hold").await.status != 200);
            }
            failures
        });
    }
    reaches("requests at the victim", &victim.seen.requests, 4).await;
    victim.kill().await;
    let failures = within("all clients", clients.join_all()).await.into_iter().sum();
    let report = manager.reported(|report| report.requests == 16 * 50).await;
    assert_eq!(report.failed, failures as u64);
    failures
}

#[tokio::test]
async fn nobody_notices_when_a_replica_is_killed_under_load() {
    assert_eq!(failures_when_a_replica_dies(true).await, 0);
}

#[tokio::test]
async fn without_retries_the_death_of_a_replica_is_noticed() {
    assert!(failures_when_a_replica_dies(false).await >= 4);
}

#[tokio::test]
async fn a_post_is_sent_elsewhere_when_the_connection_is_refused() {
    let mut dead = Replica::start(1).await;
    let alive = Replica::start(2).await;
    dead.kill().await;
    let manager = Manager::start(table(1, vec![dead.endpoint(Healthy), alive.endpoint(Healthy)])).await;
    let gateway = Gateway::start(config(&[&manager])).await;
    let mut client = gateway.client().await;
    for _ in 0..4 {
        assert_eq!(client.post("/echo", "once").await.text(), "once");
    }
    assert_eq!(alive.requests(), 4);
}

#[tokio::test]
async fn a_post_that_a_replica_may_have_seen_is_not_sent_again() {
    let replicas = [Replica::start(1).await, Replica::start(2).await];
    let manager = Manager::start(table(1, replicas.iter().map(|replica| replica.endpoint(Healthy)).collect())).await;
    let gateway = Gateway::start(config(&[&manager])).await;
    let got = gateway.client().await.post("/hang-up", "once").await;
    assert_eq!((got.status, got.error()), (502, Some("reset")));
    assert_eq!(replicas.iter().map(Replica::requests).sum::<usize>(), 1);
    // Without a body it makes no difference: the method decides.
    let got = gateway.client().await.post("/hang-up", "").await;
    assert_eq!((got.status, got.error()), (502, Some("reset")));
    assert_eq!(replicas.iter().map(Replica::requests).sum::<usize>(), 2);
}

#[tokio::test]
async fn a_get_is_sent_three_times_at_most() {
    let replicas = [Replica::start(1).await, Replica::start(2).await];
    let manager = Manager::start(table(1, replicas.iter().map(|replica| replica.endpoint(Healthy)).collect())).await;
    let gateway = Gateway::start(config(&[&manager])).await;
    let got = gateway.get("/hang-up").await;
    assert_eq!((got.status, got.error()), (502, Some("reset")));
    let mut requests = replicas.each_ref().map(Replica::requests);
    requests.sort_unstable();
    assert_eq!(requests, [1, 2]);
}

#[tokio::test]
async fn a_request_waits_for_the_replacement_of_the_only_replica() {
    let mut only = Replica::start(1).await;
    let replacement = Replica::start(2).await;
    let mut manager = Manager::start(table(1, vec![only.endpoint(Healthy)])).await;
    let limits = Limits { hold: DEADLINE, ..Limits::default() };
    let gateway = Gateway::start_with(config(&[&manager]), limits).await;
    let mut client = gateway.client().await;
    assert_eq!(client.get("/").await.text(), "r1");
    only.kill().await;
    let waiting = tokio::spawn(async move { client.get("/").await });
    // Counted as soon as the gateway has taken it.
    manager.reported(|report| report.requests == 2).await;
    manager.publish(table(2, vec![replacement.endpoint(Healthy)])).await;
    assert_eq!(within("the request that waited", waiting).await.unwrap().text(), "r2");
}

#[tokio::test]
async fn without_any_replica_the_answer_is_503_after_a_second() {
    let manager = Manager::start(table(1, Vec::new())).await;
    let gateway = Gateway::start(config(&[&manager])).await;
    let before = Instant::now();
    let got = gateway.get("/").await;
    assert_eq!((got.status, got.error()), (503, Some("no-replica")));
    assert_eq!(got.headers["retry-after"], "1");
    assert!(before.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_draining_replica_finishes_what_it_has_and_gets_nothing_new() {
    let (old, new) = (Replica::start(1).await, Replica::start(2).await);
    let mut manager = Manager::start(table(1, vec![old.endpoint(Healthy)])).await;
    // No regular reports: each one here is sent because something changed.
    let limits = Limits { report_every: Duration::from_secs(3600), ..Limits::default() };
    let gateway = Gateway::start_with(config(&[&manager]), limits).await;
    let mut client = gateway.client().await;
    let held = tokio::spawn(async move { client.get("/hold").await });
    reaches("the held request", &old.seen.requests, 1).await;

    manager.publish(table(2, vec![old.endpoint(Draining), new.endpoint(Healthy)])).await;
    assert_eq!(manager.reported(|report| report.revision == 2).await.busy, [old.id]);
    for _ in 0..10 {
        assert_eq!(gateway.get("/").await.text(), "r2");
    }
    // Dropped from the table it is still busy.
    manager.publish(table(3, vec![new.endpoint(Healthy)])).await;
    assert_eq!(manager.reported(|report| report.revision == 3).await.busy, [old.id]);

    old.seen.released.send_replace(true);
    assert_eq!(held.await.unwrap().text(), "r1");
    manager.reported(|report| report.busy.is_empty()).await;
    assert_eq!(old.requests(), 1);
}

#[tokio::test]
async fn with_draining_off_a_draining_replica_still_gets_requests() {
    let old = Replica::start(1).await;
    let mut manager = Manager::start(table(1, vec![old.endpoint(Healthy)])).await;
    let mut config = config(&[&manager]);
    config.draining = false;
    let gateway = Gateway::start(config).await;
    manager.publish(table(2, vec![old.endpoint(Draining)])).await;
    assert_eq!(gateway.get("/").await.text(), "r1");
}

#[tokio::test]
async fn traffic_goes_on_without_managers_and_another_one_takes_over() {
    let (first, second) = (Replica::start(1).await, Replica::start(2).await);
    let mut managers =
        [Manager::start(table(5, vec![first.endpoint(Healthy)])).await, Manager::start(table(4, Vec::new())).await];
    let gateway = Gateway::start(config(&[&managers[0], &managers[1]])).await;
    managers[0].reported(|report| report.revision == 5).await;
    managers[0].kill().await;
    // The second one is behind: what it says is older than what is in force.
    managers[1].reported(|report| report.revision == 5).await;
    assert_eq!(gateway.get("/").await.text(), "r1");
    managers[1].publish(table(6, vec![second.endpoint(Healthy)])).await;
    assert_eq!(gateway.get("/").await.text(), "r2");
    managers[1].kill().await;
    for _ in 0..10 {
        assert_eq!(gateway.get("/").await.text(), "r2");
    }
}

#[tokio::test]
async fn a_silent_manager_is_left() {
    let replica = Replica::start(1).await;
    // Accepts connections and never says a word.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let manager = Manager::start(table(1, vec![replica.endpoint(Healthy)])).await;
    let mut config = config(&[&manager]);
    config.managers.insert(0, format!("http://{}", silent.local_addr().unwrap()));
    let limits = Limits { manager_silence: Duration::from_millis(200), hold: DEADLINE, ..Limits::default() };
    let gateway = Gateway::start_with(config, limits).await;
    assert_eq!(gateway.get("/").await.text(), "r1");
}

#[tokio::test]
async fn a_gateway_starts_from_its_last_table_when_no_manager_answers() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    let replica = Replica::start(1).await;
    let mut manager = Manager::start(table(7, vec![replica.endpoint(Healthy)])).await;
    let mut settings = config(&[&manager]);
    settings.snapshot_file = Some(file.clone());
    let mut gateway = Gateway::start(settings.clone()).await;
    manager.reported(|report| report.revision == 7).await;
    let written = async {
        while !file.exists() {
            tokio::task::yield_now().await;
        }
    };
    within("the file", written).await;
    gateway.tell_to_stop();
    gateway.stopped().await;
    manager.kill().await;

    let gateway = Gateway::start(settings.clone()).await;
    assert_eq!(gateway.get("/").await.text(), "r1");

    // A cluster that was made anew counts from the beginning: its table replaces what the file said.
    let mut fresh = Manager::start(table(1, vec![replica.endpoint(Healthy)])).await;
    settings.managers = vec![fresh.url.clone()];
    let _gateway = Gateway::start(settings).await;
    fresh.reported(|report| report.revision == 1).await;
}

#[tokio::test]
async fn a_gateway_that_ends_finishes_what_it_has() {
    let replica = Replica::start(1).await;
    let manager = Manager::start(table(1, vec![replica.endpoint(Healthy)])).await;
    let mut gateway = Gateway::start(config(&[&manager])).await;
    let mut client = gateway.client().await;
    let mut idle = gateway.client().await;
    assert_eq!(idle.get("/").await.status, 200);
    let held = tokio::spawn(async move { client.get("/hold").await });
    reaches("the held request", &replica.seen.requests, 2).await;
    gateway.tell_to_stop();
    let refused = async { while tokio::net::TcpStream::connect(gateway.address).await.is_ok() {} };
    within("the listener closing", refused).await;
    replica.seen.released.send_replace(true);
    assert_eq!(held.await.unwrap().status, 200);
    gateway.stopped().await;
}

#[tokio::test]
async fn active_checks_find_a_dead_replica_before_a_request_does() {
    let mut dead = Replica::start(1).await;
    let alive = Replica::start(2).await;
    dead.kill().await;
    let manager = Manager::start(table(1, vec![dead.endpoint(Healthy), alive.endpoint(Healthy)])).await;
    let mut config = config(&[&manager]);
    config.active_checks = true;
    config.retries = false;
    let limits = Limits { check_every: Duration::from_millis(10), ..Limits::default() };
    let gateway = Gateway::start_with(config, limits).await;
    // One check of the living one follows another after a period, of the dead one after a quarter.
    reaches("checks", &alive.seen.connections, 4).await;
    for _ in 0..10 {
        assert_eq!(gateway.get("/").await.text(), "r2");
    }
}

#[tokio::test]
async fn a_get_that_waits_for_a_server_without_power_is_sent_elsewhere() {
    // Its system answers no connect once two connections wait to be accepted: they never are.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let silent = socket.listen(1).unwrap();
    let mut dead = Replica::start(1).await;
    dead.kill().await;
    dead.address = silent.local_addr().unwrap();
    let alive = Replica::start(2).await;
    let mut manager = Manager::start(table(1, vec![dead.endpoint(Healthy)])).await;
    let mut config = config(&[&manager]);
    config.active_checks = true;
    let limits = Limits { check_every: Duration::from_millis(400), ..Limits::default() };
    let gateway = Gateway::start_with(config, limits).await;
    manager.reported(|report| report.revision == 1).await;
    let mut client = gateway.client().await;
    let waiting = tokio::spawn(async move { client.get("/").await });
    let mut taken = Vec::new();
    let request = async {
        loop {
            let (mut stream, _) = silent.accept().await.unwrap();
            let mut head = [0; 10];
            let read = stream.read_exact(&mut head).await;
            taken.push(stream);
            if read.is_ok() && head == *b"GET / HTTP" {
                return;
            }
        }
    };
    within("the request", request).await;
    manager.publish(table(2, vec![dead.endpoint(Healthy), alive.endpoint(Healthy)])).await;
    assert_eq!(within("the request", waiting).await.unwrap().text(), "r2");
}

#[tokio::test]
async fn a_replica_that_leaves_requests_waiting_is_checked_out_of_turn() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    // Its first check is not put off, and the next one by its turn is an hour away.
    let mut slow = Replica::start(64).await;
    slow.kill().await;
    slow.address = silent.local_addr().unwrap();
    let mut table = table(1, vec![slow.endpoint(Healthy)]);
    table.services[0].check_path = None;
    let mut manager = Manager::start(table).await;
    let mut config = config(&[&manager]);
    config.active_checks = true;
    let limits = Limits { check_every: Duration::from_secs(3600), ..Limits::default() };
    let gateway = Gateway::start_with(config, limits).await;
    manager.reported(|report| report.revision == 1).await;
    let mut taken = vec![within("the first check", silent.accept()).await.unwrap()];
    let mut client = gateway.client().await;
    let _waiting = tokio::spawn(async move { client.get("/").await });
    taken.push(within("the request", silent.accept()).await.unwrap());
    taken.push(within("a check out of turn", silent.accept()).await.unwrap());
}

/// The token of a gateway that stands alone ends some day. Its file gets another one, and nothing restarts.
#[tokio::test]
async fn a_token_that_was_replaced_in_its_file_is_shown_at_the_next_attempt_and_in_reports() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "qt_old_1\n").unwrap();
    let replica = Replica::start(1).await;
    let mut manager = Manager::start(table(1, vec![replica.endpoint(Healthy)])).await;
    manager.token.send_replace(Some("qt_new_2".into()));
    let gateway = Gateway::start(GatewayConfig { token_file: Some(file.clone()), ..config(&[&manager]) }).await;
    reaches("being turned away", &manager.turned_away, 2).await;
    assert!(manager.reports.borrow().is_none());
    std::fs::write(&file, "qt_new_2\n").unwrap();
    manager.reported(|report| report.revision == 1).await;
    assert_eq!(gateway.client().await.get("/").await.status, 200);

    // The stream that is open goes on; reports show the token that is good by then.
    std::fs::write(&file, "qt_newest_3\n").unwrap();
    manager.token.send_replace(Some("qt_newest_3".into()));
    manager.publish(table(2, vec![replica.endpoint(Healthy)])).await;
}

/// A replica that answers each connection's first request with this and then, once it is told to, hangs up
/// with the rest. Returns where it listens and how often it was asked.
async fn in_two(
    begin: &'static str,
    rest: &'static str,
    goes_on: &Arc<Notify>,
) -> (SocketAddr, watch::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, seen) = watch::channel(0);
    let goes_on = goes_on.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && matches!(stream.read_buf(&mut head).await, Ok(1..)) {}
            if head.is_empty() {
                continue;
            }
            asked.send_modify(|asked| *asked += 1);
            stream.write_all(begin.as_bytes()).await.unwrap();
            goes_on.notified().await;
            let _ = stream.write_all(rest.as_bytes()).await;
        }
    });
    (address, seen)
}

const HALF: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe";

#[tokio::test]
async fn a_get_whose_short_answer_breaks_off_is_sent_elsewhere() {
    let (alive, goes_on) = (Replica::start(1).await, Arc::new(Notify::new()));
    let (address, mut asked) = in_two(HALF, "", &goes_on).await;
    let broken = Endpoint { replica: ReplicaId::from_u128(2), address, ..alive.endpoint(Healthy) };
    let manager = Manager::start(table(1, vec![alive.endpoint(Healthy), broken])).await;
    let gateway = Gateway::start(config(&[&manager])).await;
    let mut seen = 0;
    // Whichever is asked first.
    while *asked.borrow_and_update() == 0 {
        goes_on.notify_one();
        let got = gateway.get("/").await;
        assert_eq!((got.status, got.text()), (200, "r1"));
        seen += 1;
        assert!(seen < 100, "the other one is never asked");
    }
}

#[tokio::test]
async fn an_answer_that_comes_slowly_is_passed_on_as_it_comes() {
    let (any, goes_on) = (Replica::start(1).await, Arc::new(Notify::new()));
    let (address, _asked) = in_two(HALF, "llo", &goes_on).await;
    let slow = Endpoint { replica: ReplicaId::from_u128(2), address, ..any.endpoint(Healthy) };
    let manager = Manager::start(table(1, vec![slow])).await;
    let gateway = Gateway::start(config(&[&manager])).await;
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"\r\n\r\nhe") {
        assert_ne!(within("the first half", client.read_buf(&mut got)).await.unwrap(), 0);
    }
    goes_on.notify_one();
    within("the second half", client.read_to_end(&mut got)).await.unwrap();
    assert!(got.ends_with(b"\r\n\r\nhello"));
}
