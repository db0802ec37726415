//! After the last fault: the cluster has to come back by itself, and everything is looked at.
//!
//! Nothing here helps the cluster. It waits, measures, ends the clients in the right order (writers,
//! then what is unknown, then followers) and reads what every node holds.

use crate::torture::reach::Node;
use crate::torture::record::{Contents, Healed, Line};
use crate::torture::rig::Stop;
use crate::torture::verdict::{EQUAL_WITHIN_MS, LEADER_WITHIN_MS, SERVICE_WITHIN_MS};
use crate::torture::workload::client::{Client, Reply, Request};
use crate::torture::workload::services::{Copies, ONCE, SCALED};
use crate::torture::workload::sql::{self, Everything};
use crate::torture::workload::{COPIES, Shared, Workload};
use quorate_api::view::{Overview, ReplicaView, ServiceView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use ureq::http::Method;

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Longest wait for one answer while the next look can be elsewhere.
const ANSWER: Duration = Duration::from_secs(2);
/// Longest wait for the contents of a node.
const CONTENTS: Duration = Duration::from_secs(25);
/// Over the allowed time it is waited for this much longer, to say how late it was.
const LATE: u64 = 2;
/// The client of this part; no other has its number.
const CLIENT: u32 = 1_000_000;
/// The service must be right for this long, not for a moment between two mistakes.
const STEADY: Duration = Duration::from_secs(3);

/// Waits, measures and reads everything into the record; nothing of it once `stop` is raised.
pub(crate) fn heal(shared: &Arc<Shared>, mut workload: Workload, stop: &Stop, say: &dyn Fn(&str)) {
    let look = Look { client: Client::new(CLIENT, shared.clone()), began: Instant::now(), stop };
    say("faults are over; waiting for a leader");
    let leader_ms = look.until(LEADER_WITHIN_MS, || look.leader());
    let answering_ms =
        look.until(EQUAL_WITHIN_MS, || look.nodes().iter().all(|node| look.newest_event(node).is_some()));
    say("resolving what is unknown");
    workload.stop_writers();
    say("comparing what the nodes hold");
    let mut held = Vec::new();
    let equal_ms = look.until(EQUAL_WITHIN_MS, || {
        held = look.nodes().iter().filter_map(|node| look.everything(node, "local")).collect();
        held.len() == look.nodes().len() && held.windows(2).all(|pair| pair[0].same(&pair[1]))
    });
    drop(held);
    say("waiting for the services");
    let copies_wanted = COPIES[0];
    let service = Look { client: Client::new(CLIENT, shared.clone()), began: Instant::now(), stop };
    let (mut service_wrong, mut right_since) = (String::new(), None);
    let told = service.until(SERVICE_WITHIN_MS, || service.scale(copies_wanted));
    let service_ms = told.and_then(|_| {
        service.until(SERVICE_WITHIN_MS, || match service.are_whole(copies_wanted) {
            Ok(()) => right_since.get_or_insert_with(Instant::now).elapsed() >= STEADY,
            Err(why) => {
                (service_wrong, right_since) = (why, None);
                false
            }
        })
    });
    let service_ms = service_ms.map(|ms| ms.saturating_sub(u64::try_from(STEADY.as_millis()).unwrap_or(0)));
    let copies_running = Copies::of_run(shared.run_id).running(&shared.nodes());
    say("waiting for the followers of events");
    let newest = look.nodes().iter().find_map(|node| look.newest_event(node)).unwrap_or(0);
    workload.stop_followers(newest);
    if stop.is_raised() {
        return;
    }
    for node in look.nodes().iter() {
        if let Some(Everything { applied, registers, lists, rows }) = look.everything(node, "linearizable") {
            let at = shared.record.now();
            let contents = Contents { node: node.name.clone(), at, applied, registers, lists, rows };
            shared.record.write(Line::Contents(contents));
        }
    }
    let overviews: Vec<Overview> = look.nodes().iter().filter_map(|node| look.overview(node)).collect();
    let digests_compared: BTreeMap<String, u64> =
        overviews.iter().map(|view| (view.answered_by.clone(), view.cluster.digests_compared)).collect();
    let mut diverged: Vec<String> = overviews
        .iter()
        .flat_map(|view| &view.events)
        .filter(|event| event.kind == "diverged")
        .map(|event| event.text.clone())
        .collect();
    diverged.sort();
    diverged.dedup();
    shared.record.write(Line::Healed(Healed {
        leader_ms,
        answering_ms,
        equal_ms,
        service_ms,
        service_wrong,
        copies_wanted,
        copies_running,
        digests_compared,
        diverged,
    }));
}

struct Look<'a> {
    client: Client,
    began: Instant,
    stop: &'a Stop,
}

impl Look<'_> {
    fn nodes(&self) -> Arc<[Node]> {
        self.client.shared.nodes()
    }

    /// Milliseconds from the beginning until `what` is so; `None` if it is not even long after `limit_ms`.
    fn until(&self, limit_ms: u64, mut what: impl FnMut() -> bool) -> Option<u64> {
        loop {
            if what() {
                return u64::try_from(self.began.elapsed().as_millis()).ok();
            }
            if self.stop.wait(LOOK_EVERY) || self.began.elapsed() >= Duration::from_millis(limit_ms * LATE) {
                return None;
            }
        }
    }

    fn ask(&self, node: &Node, request: &Request, limit: Duration) -> Option<Value> {
        match self.client.attempt(node, request, None, limit) {
            Reply::Answered(answer) => Some(answer),
            Reply::NotDone(_) | Reply::Lost(_) => None,
        }
    }

    fn get(&self, node: &Node, path: &str) -> Option<Value> {
        self.ask(node, &Request { method: Method::GET, path: path.into(), body: Vec::new() }, ANSWER)
    }

    fn overview(&self, node: &Node) -> Option<Overview> {
        serde_json::from_value(self.get(node, "/v1/status")?).ok()
    }

    fn leader(&self) -> bool {
        let leads = |view: Overview| view.cluster.leader.as_ref() == Some(&view.answered_by);
        self.nodes().iter().any(|node| self.overview(node).is_some_and(leads))
    }

    /// A linearizable read: the node answers, knows a leader and has caught up with it.
    fn newest_event(&self, node: &Node) -> Option<u64> {
        sql::read_number(&self.ask(node, &sql::newest_event(), ANSWER)?)
    }

    fn everything(&self, node: &Node, consistency: &str) -> Option<Everything> {
        sql::read_everything(&self.ask(node, &sql::everything(consistency), CONTENTS)?)
    }

    fn scale(&self, replicas: u32) -> bool {
        let path = format!("/v1/services/{SCALED}/scale?timeout_ms=1500");
        let request = Request::post(&path, &json!({ "replicas": replicas }));
        self.nodes().iter().any(|node| self.ask(node, &request, ANSWER).is_some())
    }

    /// Whether every node says that all services are as wanted.
    ///
    /// # Errors
    /// What one node says of one instead.
    fn are_whole(&self, copies: u32) -> Result<(), String> {
        let once = ONCE.iter().map(|(name, _)| (*name, 1));
        once.chain([(SCALED, copies)]).try_for_each(|(name, wanted)| self.is_whole(name, wanted))
    }

    /// Exactly so many copies are wanted, there and healthy, each with an ordinal of its own. Where one was lost
    /// while fewer were wanted, its ordinal stays free.
    fn is_whole(&self, service: &str, wanted: u32) -> Result<(), String> {
        for node in self.nodes().iter() {
            let view = self.get(node, &format!("/v1/services/{service}"));
            let Some(view) = view.and_then(|view| serde_json::from_value::<ServiceView>(view).ok()) else {
                return Err(format!("{} says nothing of {service}", node.name));
            };
            let mut ordinals: Vec<u32> = view.replicas.iter().map(|replica| replica.ordinal).collect();
            ordinals.sort_unstable();
            ordinals.dedup();
            let whole = view.want == wanted
                && view.healthy == wanted
                && view.replicas.len() == ordinals.len()
                && ordinals.len() == wanted as usize
                && view.replicas.iter().all(|replica| replica.state == "healthy");
            if !whole {
                let one = |it: &ReplicaView| format!("{} {} on {} {}", it.ordinal, it.state, it.node, it.detail);
                let replicas: Vec<String> = view.replicas.iter().map(one).collect();
                let (want, healthy) = (view.want, view.healthy);
                let list = replicas.join(", ");
                return Err(format!(
                    "{}: {service}: {healthy} of {want} healthy: {list} {}",
                    node.name,
                    view.held.join("; ")
                ));
            }
        }
        Ok(())
    }
}
