//! What a replica is told of the cluster: where the services are that it uses, and its own token.

use super::*;
use quorate_model::discovery::{Instance, Listed};
use quorate_model::id::ServiceName;
use quorate_model::routing::EndpointState;
use quorate_model::secret::Secret;

/// A directory in which `db` is reached at these ports.
fn db(ports: &[u16]) -> Arc<Directory> {
    let instance = |(ordinal, port): (u32, &u16)| Instance {
        replica: replica(0),
        ordinal,
        node: NODE,
        node_name: "n7".into(),
        address: "10.0.0.7".parse().unwrap(),
        ports: BTreeMap::from([("sql".to_owned(), *port)]),
        state: EndpointState::Healthy,
    };
    let listed = Listed {
        main_port: Some("sql".into()),
        fixed_port: Some(5432),
        ports: vec!["sql".into()],
        instances: (0..).zip(ports).map(instance).collect(),
    };
    let services = BTreeMap::from([(ServiceName::new("db").unwrap(), listed)]);
    Arc::new(Directory { revision: 1, services })
}

#[tokio::test]
async fn files_follow_what_they_name_also_under_the_next_agent_and_the_last_that_was_known_stays() {
    let (node, id) = (Node::new(), replica(0));
    node.directory.send_replace(db(&[1]));
    let agent = node.agent().await;
    let spec = shell(
        "trap 'cat peers' HUP; echo $QUORATE_SERVICE_DB_HOST:$QUORATE_SERVICE_DB_PORT; cat peers
         while :; do sleep 1000 & wait; done",
        json!({
            "uses": ["db"],
            "reload": "HUP",
            "template": [{
                "text": "{% for it in endpoints.db %}{{ it.node }}.{{ it.ordinal }}={{ it.address }}:{{ it.port }} {% endfor %}.\n",
                "to": "peers"
            }],
        }),
    );
    run_one(&agent, 1, id, &spec);
    let first = logged(&agent, id, "n7.0=10.0.0.7:1 .").await;
    assert!(first.contains("db.quorate:5432"), "{first}");
    node.directory.send_replace(db(&[1, 2]));
    logged(&agent, id, "n7.0=10.0.0.7:1 n7.1=10.0.0.7:2 .").await;
    let before = healthy(&agent, id).await;
    agent.stop().await;

    // A server that has just started has not heard of anything.
    node.directory.send_replace(Arc::default());
    let agent = node.agent().await;
    node.directory.send_replace(db(&[]));
    node.directory.send_replace(db(&[3]));
    let log = logged(&agent, id, "n7.0=10.0.0.7:3 .").await;
    assert_eq!(log.lines().filter(|line| line.ends_with('.')).count(), 3, "nobody was told of an empty list: {log}");
    assert_eq!(healthy(&agent, id).await.pid, before.pid);
}

#[tokio::test]
async fn a_replica_that_is_granted_something_waits_for_its_token_which_goes_with_it() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let spec = shell(
        "cat \"$QUORATE_TOKEN_FILE\"; echo \" at $QUORATE_API\"; exec sleep 1000",
        json!({ "grants": [{ "database": "main" }] }),
    );
    run_one(&agent, 1, id, &spec);
    status(&agent, id, |status| status.detail.contains("it waits for its token")).await;
    let tokens = ServiceTokens(BTreeMap::from([(id, Secret::new("qr_canary".to_owned()))]));
    node.tokens.send_replace(Arc::new(tokens));
    logged(&agent, id, "qr_canary at http://127.0.0.1:7000").await;
    let file = node.replica_dir(id).join("work/.quorate-token");
    assert!(file.exists());
    agent.assign(assignment(2, Vec::new()));
    forgotten(&agent).await;
    let begun = Instant::now();
    while file.exists() && begun.elapsed() < DEADLINE {
        tokio::task::yield_now().await;
    }
    assert!(!file.exists(), "its logs stay, its token does not");
}
