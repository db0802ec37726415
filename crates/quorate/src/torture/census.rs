//! Who belongs to the cluster, by the word of every node, all the time.
//!
//! One client asks each node in turn for its list of members and writes it down whenever it differs
//! from what that node said before. The verdict finds in these lists who was there twice, or again.

use crate::torture::record::{Census, Line, Member};
use crate::torture::workload::client::{Client, Reply, Request};
use quorate_api::view::{NodeView, Overview, Standing};
use std::collections::BTreeMap;
use std::time::Duration;
use ureq::http::Method;

/// Between two rounds over all nodes.
const EVERY: Duration = Duration::from_millis(300);
/// Longest wait for a node.
const ANSWER: Duration = Duration::from_millis(700);

/// Asks until the writers end.
pub(crate) fn take(client: Client) {
    let mut said: BTreeMap<String, Vec<Member>> = BTreeMap::new();
    while !client.shared.stopped() {
        for node in client.shared.nodes().iter() {
            let request = Request { method: Method::GET, path: "/v1/status".into(), body: Vec::new() };
            let Reply::Answered(answer) = client.attempt(node, &request, None, ANSWER) else { continue };
            let Ok(overview) = serde_json::from_value::<Overview>(answer) else { continue };
            let (at, members) = (client.shared.record.now(), members(&overview));
            if said.get(&node.name) != Some(&members) {
                let applied = overview.cluster.applied.0;
                let census = Census { at, node: node.name.clone(), applied, members: members.clone() };
                client.shared.record.write(Line::Census(census));
                said.insert(node.name.clone(), members);
            }
        }
        client.sleep(EVERY, crate::torture::workload::Shared::stopped);
    }
}

/// The list of members in what a node says, in an order of its own.
pub(crate) fn members(overview: &Overview) -> Vec<Member> {
    let member = |node: &NodeView| Member {
        id: node.id,
        name: node.name.clone(),
        manager: node.standing.is_some(),
        votes: node.standing == Some(Standing::Voter),
    };
    let mut members: Vec<Member> = overview.nodes.iter().map(member).collect();
    members.sort_unstable();
    members
}
