//! What is asked of the cluster for each change, and what is waited for.

use crate::torture::rig::found::{Ground, NotMade};
use crate::torture::rig::node::Node;
use crate::torture::rig::operator::Operator;
use crate::torture::rig::seat::Seat;
use quorate_api::view::{NodeMode, NodeState, NodeView, Overview, Standing};
use quorate_model::id::NodeId;
use quorate_model::state::Role;
use quorate_model::trust::{KeyKind, Stage};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;
use ureq::http::Method;

/// A server that asks to join may be refused for these, which pass.
const ASK_AGAIN: [&str; 14] = [
    "unreachable",
    "outcome-unknown",
    "port-unreachable",
    "ports-not-tried",
    "clock-off",
    "no-leader",
    "overloaded",
    "shutting-down",
    "manager-stopped",
    "no-authority",
    "not-signed",
    "too-many-attempts",
    "strange-answer",
    "io",
];
/// And for these, which a new token may end: the authority was exchanged, or a node is behind.
const ANOTHER_TOKEN: [&str; 4] = ["token-unknown", "token-expired", "token-used", "other-cluster"];

/// What came of it.
#[derive(Debug)]
pub(super) struct Done {
    pub evidence: String,
    /// How often the cluster was asked.
    pub asked: u32,
    /// Who was removed is in no list of an index from this on.
    pub gone_at: Option<u64>,
    /// It runs, and belongs to the cluster.
    pub newcomer: Option<Node>,
}

impl Done {
    fn new(evidence: String, asked: u32) -> Done {
        Done { evidence, asked, gone_at: None, newcomer: None }
    }
}

fn of(overview: &Overview, node: NodeId) -> Option<&NodeView> {
    overview.nodes.iter().find(|known| known.id == node)
}

/// How many vote, once they are those that there should be.
fn settled(overview: &Overview) -> Option<u32> {
    overview.cluster.leader.as_ref()?;
    let electors = overview.cluster.electors.as_ref()?;
    let rests = electors.voters_change.is_none() && electors.voters_next.is_none();
    Some(electors.voters).filter(|voters| rests && voters % 2 == 1)
}

/// Removes a node for ever.
pub(super) fn remove(operator: &Operator, node: NodeId) -> Result<Done, NotMade> {
    let asked = operator.wish(&Method::DELETE, &format!("/v1/nodes/{node}"), &Value::Null)?;
    // Not by its own word: it knows nothing of what comes after its end.
    let gone_at = operator.until(|overview| {
        let knows = overview.cluster.leader.is_some() && of(overview, node).is_none();
        knows.then_some(overview.cluster.applied.0)
    })?;
    let evidence = format!("out of the list at index {gone_at}");
    Ok(Done { gone_at: Some(gone_at), ..Done::new(evidence, asked) })
}

/// Lets a server join, starts it, and waits until it has the cluster's data.
pub(super) fn join(
    operator: &Operator,
    ground: &Ground,
    seat: &Arc<Seat>,
    name: &str,
    role: Role,
) -> Result<Done, NotMade> {
    let data_dir = seat.emptied()?;
    let (mut token, mut asked, mut at) = (None, 0, 0);
    let mut node = loop {
        let current = match token.take() {
            Some(token) => token,
            None => operator.invite(role, name)?,
        };
        asked += 1;
        let why = match ground.join(seat, name, &operator.at_another(&current, at), &data_dir, role) {
            Ok(node) => break node,
            Err(why) => why,
        };
        at += 1;
        match why.code.as_str() {
            code if ASK_AGAIN.contains(&code) => token = Some(current),
            code if ANOTHER_TOKEN.contains(&code) => {}
            _ => return Err(why),
        }
        operator.pause()?;
    };
    let started = Instant::now();
    node.spawn(&ground.executable)?;
    let url = node.reached().url;
    loop {
        let overview = operator.attempt::<Overview>(&url, &Method::GET, "/v1/status", &Value::Null, None);
        let serves = |overview: &Overview| {
            let itself = of(overview, node.id);
            overview.cluster.leader.is_some() && itself.is_some_and(|it| it.state == NodeState::Joined)
        };
        if overview.is_ok_and(|overview| serves(&overview)) {
            break;
        }
        if operator.pause().is_err() {
            let message = format!("it joined and does not serve:\n{}", node.log.tail());
            node.kill();
            return Err(NotMade { code: "not-serving".into(), message });
        }
    }
    let evidence = format!("serves {} ms after its start", started.elapsed().as_millis());
    Ok(Done { newcomer: Some(node), ..Done::new(evidence, asked) })
}

/// Makes a worker of a manager, or a manager of a worker.
pub(super) fn roles(operator: &Operator, node: NodeId, manager: bool) -> Result<Done, NotMade> {
    let roles: &[Role] = if manager { &[Role::Manager, Role::Worker] } else { &[Role::Worker] };
    let path = format!("/v1/nodes/{node}/roles");
    let asked = operator.wish(&Method::PUT, &path, &json!({ "roles": roles }))?;
    let standing = operator.until(|overview| {
        let standing = of(overview, node)?.standing;
        let voters = settled(overview).filter(|_| standing.is_some() == manager)?;
        Some((standing, voters))
    })?;
    let part = match standing.0 {
        Some(Standing::Voter) => "votes",
        Some(_) => "stands by",
        None => "has no part in decisions",
    };
    Ok(Done::new(format!("it {part}, {} vote", standing.1), asked))
}

/// Takes a manager's vote away, and leaves it to the cluster again.
pub(super) fn vote(operator: &Operator, node: NodeId) -> Result<Done, NotMade> {
    let path = format!("/v1/nodes/{node}/vote");
    let never = operator.wish(&Method::PUT, &path, &json!({ "vote": "never" }))?;
    let without = operator.until(|overview| {
        let votes = of(overview, node)?.standing == Some(Standing::Voter);
        settled(overview).filter(|_| !votes)
    })?;
    let auto = operator.wish(&Method::PUT, &path, &json!({ "vote": "auto" }))?;
    let with = operator.until(|overview| {
        let may_vote = of(overview, node)?.standing.is_some();
        settled(overview).filter(|_| may_vote)
    })?;
    Ok(Done::new(format!("{without} voted without it, {with} afterwards"), never + auto))
}

/// Makes another manager the Active one.
pub(super) fn promote(operator: &Operator, choice: usize) -> Result<Done, NotMade> {
    let mut asked = 0;
    loop {
        let (before, name) = operator.until(|overview| {
            let leader = overview.cluster.leader.clone()?;
            let is_one = |it: &&NodeView| it.standing == Some(Standing::Voter) && it.mode == Some(NodeMode::Passive);
            let others: Vec<&NodeView> =
                overview.nodes.iter().filter(is_one).filter(|it| it.state == NodeState::Joined).collect();
            Some((leader, others.get(choice % others.len().max(1))?.name.clone()))
        })?;
        let handed = operator.once(&Method::POST, "/v1/raft/transfer", &json!({ "node": name }));
        asked += 1;
        if handed.is_ok() {
            let term = operator.until(|overview| {
                (overview.cluster.leader.as_ref() != Some(&before)).then_some(overview.cluster.term)
            })?;
            return Ok(Done::new(format!("{name} instead of {before}, in term {term}"), asked));
        }
        operator.pause()?;
    }
}

/// Stops a passive manager until the faults are over, and starts it again.
pub(super) fn stop_manager(operator: &Operator, node: NodeId, url: &str) -> Result<Done, NotMade> {
    let which = json!({ "nodes": [node] });
    let mut asked = 0;
    loop {
        match operator.wish(&Method::POST, "/v1/managers/stop", &which) {
            Ok(stopped) => {
                asked += stopped;
                break;
            }
            // It became so meanwhile.
            Err(why) if why.code == "is-active" => asked += promote(operator, asked as usize)?.asked,
            Err(why) => return Err(why),
        }
    }
    let shut = loop {
        let asked = operator.attempt::<Overview>(url, &Method::GET, "/v1/status", &Value::Null, None);
        match asked {
            Err(why) if why.code == "manager-stopped" => break why.message,
            _ => operator.pause()?,
        }
    };
    while !operator.patience().faults_are_over() {
        operator.pause()?;
    }
    let started = operator.wish(&Method::POST, "/v1/managers/start", &which)?;
    loop {
        let overview = operator.attempt::<Overview>(url, &Method::GET, "/v1/status", &Value::Null, None);
        if overview.is_ok_and(|it| of(&it, node).is_some_and(|me| me.standing != Some(Standing::Stopped))) {
            return Ok(Done::new(format!("it said: {shut}; and answered again"), asked + started));
        }
        operator.pause()?;
    }
}

/// Begins an exchange of the authority, and waits until the new one is the only one.
pub(super) fn rotate(operator: &Operator, number: u32) -> Result<Done, NotMade> {
    let began = Instant::now();
    let begun = operator.wish(&Method::POST, "/v1/certificates/rotation", &Value::Null)?;
    operator.until_certificates(|view| {
        let is_it = view.keys.iter().find(|key| key.key == KeyKind::Authority)?;
        (is_it.number == number && is_it.stage == Stage::Done && view.authorities.len() == 1).then_some(())
    })?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Done::new(format!("CA {number} is the only one, {seconds:.1} s after the wish"), begun))
}
