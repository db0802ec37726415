//! One node asks for logs, others have them or do not answer: over real sockets.

use super::super::bulk::{Bulk, Incoming};
use super::super::inbox::inbox;
use super::super::link::tests::{Member, member};
use super::*;
use quorate_agent::log::LogWriter;
use serde_json::json;
use std::net::SocketAddr;
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

const DEADLINE: Duration = Duration::from_secs(20);
const REPLICA: ReplicaId = ReplicaId(uuid::Uuid::from_u128(9));

/// A node with logs, at an address.
struct Keeper {
    member: Member,
    address: SocketAddr,
    shelf: Shelf,
    data_dir: tempfile::TempDir,
}

impl Keeper {
    async fn start(authority: &tempfile::TempDir, number: u128) -> Keeper {
        let (member, data_dir) = (member(authority, number), tempfile::tempdir().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // Nothing of this test sends an event.
        let (inbox, events) = inbox();
        std::mem::forget(events);
        let shelf = Shelf::new(data_dir.path(), member.me.node);
        let incoming = Incoming::new(data_dir.path().join("db"), inbox.clone());
        let bulk = Bulk { incoming, shelf: shelf.clone() };
        let (refused, _) = mpsc::channel(16);
        tokio::spawn(link::accept(listener, member.me.clone(), inbox, bulk, refused));
        Keeper { member, address, shelf, data_dir }
    }

    fn of_replica(&self) -> LogWriter {
        let dir = self.data_dir.path().join("services/web").join(REPLICA.to_string()).join("log");
        LogWriter::open(&dir, 1 << 20).unwrap()
    }

    fn own(&self) -> LogWriter {
        LogWriter::open(&own_dir(self.data_dir.path(), self.member.me.node), 1 << 20).unwrap()
    }

    fn view(&self) -> serde_json::Value {
        view(self.member.me.node.0.as_u128(), self.address, "joined")
    }

    /// Waits until so many others read here.
    async fn readers(&self, readers: usize) {
        let began = Instant::now();
        while READERS_MAX - self.shelf.readers.available_permits() != readers {
            assert!(began.elapsed() < DEADLINE, "{readers} readers");
            tokio::task::yield_now().await;
        }
    }
}

fn view(number: u128, link: SocketAddr, state: &str) -> serde_json::Value {
    json!({ "id": NodeId::from_u128(number), "name": format!("n{number}"), "state": state, "mode": null, "roles": [],
        "api": "", "link": link.to_string(), "generation": 1, "since": 1, "lag": null, "replicas": 0 })
}

/// A place where nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// What node 2 finds, with these others in the cluster.
fn asking(me: &Member, data_dir: &Path, others: &[serde_json::Value]) -> Logs {
    let mut nodes = vec![view(2, SocketAddr::from(([127, 0, 0, 1], 1)), "joined")];
    nodes.extend_from_slice(others);
    let overview = json!({ "sequence": 1, "answered_by": "n2", "nodes": nodes, "services": [], "gateways": [],
        "events": [], "cluster": { "id": NodeId::from_u128(1), "name": "test", "health": "healthy", "summary": "",
        "leader": null, "term": 1, "applied": 1, "version": "0" } });
    let overview: Overview = serde_json::from_value(overview).unwrap();
    let (_, overview) = watch::channel(Arc::new(overview));
    Logs { shelf: Shelf::new(data_dir, me.me.node), me: me.me.clone(), overview }
}

#[tokio::test]
async fn a_log_of_another_node_is_read_on_one_connection_that_ends_with_its_reader() {
    let (authority, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (me, keeper) = (member(&authority, 2), Keeper::start(&authority, 3).await);
    let logs = asking(&me, here.path(), &[keeper.view()]);
    let of = LogOf::Replica(REPLICA);
    let mut writer = keeper.of_replica();
    writer.append(b"one\ntwo\n").unwrap();

    // No record says where it is.
    let (first, mut log) = logs.open(of, LogFrom::LastLines(1), 100).await.unwrap();
    assert_eq!((&first.data[..], first.next), (&b"two\n"[..], 8));
    assert!(log.read(LogFrom::Offset(8), 100).await.unwrap().data.is_empty());
    writer.append(b"three\n").unwrap();
    let next = log.read(LogFrom::Offset(8), 3).await.unwrap();
    assert_eq!((&next.data[..], next.next), (&b"thr"[..], 11));
    keeper.readers(1).await;
    drop(log);
    keeper.readers(0).await;

    keeper.own().append(b"serving\n").unwrap();
    let (own, _) = logs.open(LogOf::Node(keeper.member.me.node), LogFrom::Offset(0), 100).await.unwrap();
    assert_eq!(&own.data[..], b"serving\n");
    let nothing = logs.open(LogOf::Node(me.me.node), LogFrom::Offset(0), 100).await.unwrap_err();
    assert_eq!(nothing, LogError::Unknown(LogOf::Node(me.me.node)), "it has written none");
}

#[tokio::test]
async fn that_nobody_has_a_log_is_said_only_when_everybody_was_asked() {
    let (authority, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (me, keeper) = (member(&authority, 2), Keeper::start(&authority, 3).await);
    let of = LogOf::Replica(REPLICA);
    let open = |others: &[serde_json::Value]| {
        let logs = asking(&me, here.path(), others);
        async move { logs.open(of, LogFrom::Offset(0), 100).await.map(|(chunk, _)| chunk.data) }
    };
    let silent = |result: Result<Bytes, LogError>| match result {
        Err(LogError::Unreachable { nodes, .. }) => nodes,
        other => panic!("{other:?}"),
    };
    let nobody = nobody().await;
    assert_eq!(open(&[keeper.view()]).await, Err(LogError::Unknown(of)));
    assert_eq!(silent(open(&[keeper.view(), view(4, nobody, "joined")]).await), ["n4"]);
    assert_eq!(silent(open(&[view(5, nobody, "down"), view(4, nobody, "unreachable")]).await), ["n4", "n5"]);
    keeper.of_replica().append(b"here\n").unwrap();
    assert_eq!(open(&[view(4, nobody, "joined"), keeper.view()]).await, Ok("here\n".into()));

    let logs = asking(&me, here.path(), &[view(4, nobody, "joined")]);
    let away = logs.open(LogOf::Node(NodeId::from_u128(4)), LogFrom::Offset(0), 100).await.map(drop).unwrap_err();
    assert!(matches!(&away, LogError::Unreachable { nodes, .. } if nodes == &["n4"]), "{away:?}");
}

#[tokio::test]
async fn a_node_that_is_read_by_too_many_says_so() {
    let (authority, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (me, keeper) = (member(&authority, 2), Keeper::start(&authority, 3).await);
    let logs = asking(&me, here.path(), &[keeper.view()]);
    keeper.own().append(b"serving\n").unwrap();
    let of = LogOf::Node(keeper.member.me.node);
    let all = keeper.shelf.readers.acquire_many(u32::try_from(READERS_MAX).unwrap()).await.unwrap();
    let refused = logs.open(of, LogFrom::Offset(0), 100).await.map(drop).unwrap_err();
    assert_eq!(refused, LogError::Busy("n3".into()));
    drop(all);
    assert!(logs.open(of, LogFrom::Offset(0), 100).await.is_ok());
}

#[tokio::test]
async fn a_node_that_was_expelled_is_given_no_further_piece() {
    let (authority, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (me, keeper) = (member(&authority, 2), Keeper::start(&authority, 3).await);
    let logs = asking(&me, here.path(), &[keeper.view()]);
    keeper.own().append(b"serving\n").unwrap();
    let of = LogOf::Node(keeper.member.me.node);
    let (_, mut log) = logs.open(of, LogFrom::Offset(0), 100).await.unwrap();
    keeper.member.expelled.send_replace([me.me.node].into());
    let began = Instant::now();
    while log.read(LogFrom::Offset(0), 100).await.is_ok() {
        assert!(began.elapsed() < DEADLINE);
    }
    assert!(logs.open(of, LogFrom::Offset(0), 100).await.is_err());
}
