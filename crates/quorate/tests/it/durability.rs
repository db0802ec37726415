//! What was acknowledged is there, whatever fails.

use crate::cluster::TestCluster;

/// U2: a node that does not lead passes a write on.
#[test]
fn a_write_sent_to_any_node_is_done_and_seen_there() {
    let cluster = TestCluster::start();
    cluster.exec("n1", "CREATE TABLE t(id INTEGER PRIMARY KEY, by TEXT) STRICT");
    for node in cluster.names() {
        cluster.exec(&node, &format!("INSERT INTO t(by) VALUES ('{node}')"));
        let rows = cluster.local(&node, &format!("SELECT count(*) FROM t WHERE by = '{node}'"));
        assert_eq!(rows["results"][0]["rows"], serde_json::json!([[1]]), "a client reads its own write on {node}");
    }
}
