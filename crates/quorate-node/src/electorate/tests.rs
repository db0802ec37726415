//! Cases as text.
//!
//! A case is a list of parts between `|`. The first node named leads.
//! - `vote n1 n2 n3`, `old n1 n2`, `stand n4`: the sets of the configuration;
//! - `n4 new` (a record, and in no set), `n4 behind` (has not caught up), `n3 gone 40s` (not heard for so
//!   long), `n3 away` (not heard, not for long yet), `n3 left`, `n3 going` (to be expelled), `n4 expelled` (a learner),
//!   `n3 never`, `n4 asked`, `n4 worker` (no manager).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;
use proptest::prelude::*;
use quorate_model::state::{NodeIdentity, Role};
use quorate_model::time::WallTime;

const REPLACE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Default)]
struct Case {
    me: Option<NodeId>,
    configuration: Configuration,
    nodes: BTreeMap<NodeId, NodeRecord>,
    expelled: BTreeSet<NodeId>,
    unheard: BTreeMap<NodeId, Duration>,
    behind: BTreeSet<NodeId>,
}

fn id(number: u128) -> NodeId {
    NodeId::from_u128(number << 64)
}

fn named(name: &str) -> NodeId {
    id(name.trim_start_matches('n').parse().unwrap())
}

fn names(nodes: &BTreeSet<NodeId>) -> String {
    nodes.iter().map(|node| format!(" n{}", node.raft_id())).collect()
}

impl Case {
    fn read(text: &str) -> Case {
        let mut case = Case::default();
        for part in text.split('|') {
            let words: Vec<&str> = part.split_whitespace().collect();
            let set = match words[0] {
                "vote" => &mut case.configuration.voters,
                "old" => &mut case.configuration.outgoing,
                "stand" => &mut case.configuration.learners,
                _ => {
                    case.about(named(words[0]), &words[1..]);
                    continue;
                }
            };
            let nodes: Vec<NodeId> = words[1..].iter().map(|name| named(name)).collect();
            set.extend(&nodes);
            case.me = case.me.or(nodes.first().copied());
            nodes.into_iter().for_each(|node| case.record(node, |_| {}));
        }
        let gone = case.configuration.outgoing.difference(&case.configuration.voters);
        case.configuration.learners_next = gone.copied().collect();
        case.nodes.retain(|node, _| !case.expelled.contains(node));
        case
    }

    fn record(&mut self, node: NodeId, edit: impl FnOnce(&mut NodeRecord)) {
        let record = self.nodes.entry(node).or_insert_with(|| {
            let identity = NodeIdentity {
                id: node,
                name: format!("n{}", node.raft_id()),
                roles: [Role::Manager, Role::Worker].into(),
                api: String::new(),
                link: String::new(),
                host: String::new(),
            };
            NodeRecord::started(identity, Health::Joined, WallTime(0))
        });
        edit(record);
    }

    fn about(&mut self, node: NodeId, words: &[&str]) {
        match words {
            ["new"] => self.record(node, |_| {}),
            ["behind"] => self.behind.extend([node]),
            ["gone", span] => {
                let seconds = span.trim_end_matches('s').parse().unwrap();
                self.unheard.insert(node, Duration::from_secs(seconds));
                self.record(node, |record| record.health = Health::Down);
            }
            ["away"] => self.unheard.extend([(node, Duration::from_secs(1))]),
            ["left"] => {
                self.unheard.insert(node, Duration::from_secs(3_600));
                self.record(node, |record| record.health = Health::Left);
            }
            ["expelled"] => {
                self.unheard.insert(node, Duration::from_secs(1));
                self.expelled.insert(node);
            }
            ["going"] => self.record(node, |record| record.expelling = true),
            ["never"] => self.record(node, |record| record.vote = Vote::Never),
            ["asked"] => self.record(node, |record| record.vote = Vote::Asked),
            ["worker"] => self.record(node, |record| record.identity.roles.retain(|role| *role != Role::Manager)),
            other => panic!("what is {other:?}?"),
        }
    }

    fn look<T>(&self, look: impl FnOnce(&Electorate<'_>) -> T) -> T {
        let nodes = self.configuration.nodes();
        let heard = nodes.iter().filter(|node| !self.unheard.contains_key(node)).copied().collect();
        let caught_up = nodes.difference(&self.behind).copied().collect();
        look(&Electorate {
            me: self.me.unwrap(),
            configuration: &self.configuration,
            nodes: &self.nodes,
            expelled: &self.expelled,
            heard: &heard,
            unheard_for: &self.unheard,
            caught_up: &caught_up,
            replace_voter_after: REPLACE,
        })
    }

    fn next(&self) -> Option<Step> {
        self.look(next)
    }
}

fn show(step: Option<Step>) -> String {
    let Some(Step { action, why }) = step else { return "rest".into() };
    let what = match action {
        Action::Change(to) => {
            let mut text = format!("vote{}", names(&to.voters));
            for (word, set) in [("old", &to.outgoing), ("stand", &to.learners), ("then stand", &to.learners_next)] {
                if !set.is_empty() {
                    text.push_str(&format!(" | {word}{}", names(set)));
                }
            }
            text
        }
        Action::HandOver(node) => format!("n{} leads", node.raft_id()),
        Action::Wait => "wait".into(),
    };
    // An expelled node has no record with its name any more.
    let why = (1..=9).fold(why, |why, number| why.replace(&id(number).to_string(), &format!("n{number}")));
    format!("{what}: {why}")
}

#[track_caller]
fn check(case: &str, expected: &str) {
    assert_eq!(show(Case::read(case).next()), expected, "{case}");
}

#[test]
fn a_new_node_gets_the_log_first() {
    check("vote n1 | n2 new", "vote n1 | stand n2: n2 is new and gets the log");
    check("vote n1 | stand n2 | n3 new | n4 new", "vote n1 | stand n2 n3: n3 is new and gets the log");
    check("vote n1 n2 n3 | n4 new | n4 worker", "vote n1 n2 n3 | stand n4: n4 is new and gets the log");
}

#[test]
fn u4_the_second_and_the_fourth_manager_stand_by_and_pairs_are_promoted() {
    check("vote n1 | stand n2", "rest");
    check("vote n1 | stand n2 n3", "vote n1 n2 n3 | old n1: n2 and n3 vote from now on, as a pair");
    check("vote n1 n2 n3 | stand n4", "rest");
    check(
        "vote n1 n2 n3 | stand n4 n5 n6",
        "vote n1 n2 n3 n4 n5 | old n1 n2 n3 | stand n6: n4 and n5 vote from now on, as a pair",
    );
}

#[test]
fn only_who_has_caught_up_is_heard_and_may_vote_is_promoted() {
    check("vote n1 | stand n2 n3 | n3 behind", "rest");
    check("vote n1 | stand n2 n3 | n3 away", "rest");
    check("vote n1 | stand n2 n3 | n3 gone 5s", "rest");
    check("vote n1 | stand n2 n3 | n3 never", "rest");
    check("vote n1 | stand n2 n3 | n3 worker", "rest");
    check("vote n1 | stand n2 n3 | n3 left", "rest");
}

#[test]
fn who_was_asked_for_is_promoted_before_others() {
    check(
        "vote n1 | stand n2 n3 n4 | n4 asked",
        "vote n1 n2 n4 | old n1 | stand n3: n4 and n2 vote from now on, as a pair",
    );
    check("vote n1 | stand n2 | n2 asked", "rest");
}

#[test]
fn a_lost_voter_is_replaced_in_one_change_and_stands_by() {
    check(
        "vote n1 n2 n3 | stand n4 | n3 gone 40s",
        "vote n1 n2 n4 | old n1 n2 n3 | then stand n3: n4 votes in place of n3, which was not heard for 40 s",
    );
    check("vote n1 n2 n3 | stand n4 | n3 gone 29s", "rest");
    check("vote n1 n2 n3 | n3 gone 400s", "rest");
    check("vote n1 n2 n3 | stand n4 | n3 gone 400s | n4 behind", "rest");
    check("vote n1 n2 n3 | stand n4 | n3 left", "rest");
}

#[test]
fn of_two_lost_voters_the_one_lost_longer_is_replaced_when_one_stands_by() {
    check(
        "vote n1 n2 n3 n4 n5 | stand n6 | n3 gone 40s | n5 gone 50s",
        "vote n1 n2 n3 n4 n6 | old n1 n2 n3 n4 n5 | then stand n5: n6 votes in place of n5, which was not heard for \
         50 s",
    );
}

#[test]
fn a_voter_to_be_expelled_is_replaced_or_dropped_with_one_more_to_stay_odd() {
    check(
        "vote n1 n2 n3 | stand n4 | n3 going",
        "vote n1 n2 n4 | old n1 n2 n3 | then stand n3: n4 votes in place of n3, which is to be expelled",
    );
    check(
        "vote n1 n2 n3 | n3 going",
        "vote n1 | old n1 n2 n3 | then stand n2 n3: n3 is to be expelled; n2 stands by, so that the number of voters is odd",
    );
    check("vote n1 n2 n3 | stand n4 | n4 expelled", "vote n1 n2 n3: n4 was expelled");
    check(
        "vote n1 n2 n3 n4 n5 | n4 going | n5 going",
        "vote n1 n2 n3 | old n1 n2 n3 n4 n5 | then stand n4 n5: n4 is to be expelled; n5 is to be expelled",
    );
}

#[test]
fn to_stay_odd_one_that_is_not_heard_is_dropped_first() {
    check(
        "vote n1 n2 n3 n4 n5 | n5 going | n2 away",
        "vote n1 n3 n4 | old n1 n2 n3 n4 n5 | then stand n2 n5: n5 is to be expelled; n2 stands by, so that the number of \
         voters is odd",
    );
    check(
        "vote n1 n2 | n2 away | n1 asked",
        "wait: n2 stands by, so that the number of voters is odd; too few of the voters answer to change that now",
    );
}

#[test]
fn k4_a_manager_that_is_stopped_or_no_manager_any_more_stands_by() {
    check(
        "vote n1 n2 n3 | stand n4 | n2 never",
        "vote n1 n3 n4 | old n1 n2 n3 | then stand n2: n4 votes in place of n2, which is not to vote",
    );
    check(
        "vote n1 n2 n3 | stand n4 | n2 worker",
        "vote n1 n3 n4 | old n1 n2 n3 | then stand n2: n4 votes in place of n2, which is no manager any more",
    );
    check(
        "vote n1 n2 n3 | n2 never | n3 never",
        "vote n1 | old n1 n2 n3 | then stand n2 n3: n2 is not to vote; n3 is not to vote",
    );
    check("vote n1 | n1 never", "wait: n1 is not to vote; nobody would vote");
}

#[test]
fn a_leader_that_is_to_go_hands_over_first() {
    check(
        "vote n1 n2 n3 | stand n4 | n1 never",
        "n2 leads: n2 is to lead first: n4 votes in place of n1, which is not to vote",
    );
    check(
        "vote n1 n2 n3 | n1 never | n2 away",
        "n3 leads: n3 is to lead first: n1 is not to vote; n2 stands by, so that the number of voters is odd",
    );
    check(
        "vote n1 | stand n2 | n1 never",
        "vote n2 | old n1 | then stand n1: n2 votes in place of n1, which is not to vote",
    );
    check(
        "old n1 | vote n2 | n2 behind",
        "wait: both sets of voters know of the change; nobody who votes then could lead now",
    );
}

#[test]
fn a_joint_configuration_is_left_by_whoever_leads() {
    check("vote n1 n2 n4 | old n1 n2 n3", "vote n1 n2 n4 | stand n3: both sets of voters know of the change");
    check("old n3 n1 n2 | vote n1 n2 n4", "n1 leads: n1 is to lead first: both sets of voters know of the change");
    check(
        "vote n1 n4 n5 | old n1 n2 n3 | n4 away | n5 away",
        "wait: both sets of voters know of the change; too few of the voters answer to change that now",
    );
}

#[test]
fn nothing_is_begun_that_those_who_are_heard_could_not_commit() {
    check(
        "vote n1 n2 n3 | stand n4 | n2 going | n2 away | n3 away",
        "wait: n4 votes in place of n2, which is to be expelled; too few of the voters answer to change that now",
    );
}

fn harm(case: &str, wish: impl FnOnce(NodeId) -> Wish<'static>, node: u128) -> String {
    let case = Case::read(case);
    case.look(|seen| judge(seen, wish(id(node)))).map_or_else(|harm| harm.to_string(), |()| "granted".into())
}

#[test]
fn u4_a_vote_that_would_make_the_number_even_is_refused_with_the_reason() {
    let refusal = "with n2 there would be 2 voters, which tolerate no more losses than 1; it stands by until another \
                   manager joins";
    assert_eq!(harm("vote n1 | stand n2", Wish::AskVote, 2), refusal);
    assert_eq!(harm("vote n1 | stand n2 n3 | n3 never", Wish::AskVote, 2), refusal);
    assert_eq!(harm("vote n1 | stand n2 n3", Wish::AskVote, 2), "granted");
    assert_eq!(harm("vote n1 n2 n3 | stand n4", Wish::AskVote, 2), "granted");
}

#[test]
fn a_node_without_which_nothing_could_be_decided_is_not_expelled() {
    assert_eq!(harm("vote n1 n2 n3", Wish::Expel, 2), "granted");
    // It helps to vote itself out; two of three are enough for that.
    assert_eq!(harm("vote n1 n2 n3 | n3 away", Wish::Expel, 2), "granted");
    assert_eq!(harm("vote n1 n2 n3 | n3 away", Wish::Expel, 3), "granted");
    let refusal = "without n2 the managers that answer would be no majority: it is a voter; too few of the voters \
                   answer to change that now";
    assert_eq!(harm("vote n1 n2 n3 | n2 away | n3 away", Wish::Expel, 2), refusal);
    assert_eq!(harm("vote n1 n2 n3 | stand n4", Wish::Expel, 4), "granted");
    assert_eq!(harm("vote n1", Wish::Expel, 1), "n1 is the last manager that may vote");
    assert_eq!(harm("vote n1 | stand n2", Wish::Expel, 1), "granted");
}

#[test]
fn k4_a_stop_that_would_lose_the_majority_is_refused() {
    assert_eq!(harm("vote n1 n2 n3", Wish::StopVoting, 2), "granted");
    assert_eq!(harm("vote n1 | stand n2", Wish::StopVoting, 1), "granted");
    assert_eq!(harm("vote n1", Wish::StopVoting, 1), "n1 is the last manager that may vote");
    let refusal = harm("vote n1 n2 n3 n4 n5 | n4 away | n5 away | n1 never", Wish::StopVoting, 2);
    assert!(refusal.starts_with("without n2 the managers"), "{refusal}");
}

fn stop(case: &str, nodes: &[u128]) -> String {
    let case = Case::read(case);
    let nodes = nodes.iter().map(|node| id(*node)).collect();
    case.look(|seen| judge(seen, Wish::Stop(&nodes))).map_or_else(|harm| harm.to_string(), |()| "granted".into())
}

#[test]
fn k4_passive_managers_are_stopped_one_or_all_and_the_active_one_never() {
    assert_eq!(stop("vote n1 n2 n3", &[2]), "granted");
    assert_eq!(stop("vote n1 n2 n3 n4 n5", &[2, 3, 4, 5]), "granted", "the voters shrink to the active one first");
    assert_eq!(stop("vote n1 n2 n3", &[1]), "n1 is the Active manager, and only passive ones are stopped");
    assert!(stop("vote n1 n2 n3", &[1, 2, 3]).starts_with("n1 is the Active manager"));
    // Two are away: without these two, one of three new voters would answer.
    let refusal = "without n2, n3 the managers that answer would be no majority: it is a voter; too few of the voters \
                   answer to change that now";
    assert_eq!(stop("vote n1 n2 n3 n4 n5 | n4 away | n5 away", &[2, 3]), refusal);
    assert_eq!(stop("vote n1 n2 n3 n4 n5 | n4 away | n5 away", &[2]), "granted");
    assert_eq!(stop("vote n1 n2 n3 n4 n5 | n4 away | n5 away", &[2, 3, 4, 5]), "granted", "then n1 alone decides");
}

/// Any state of up to 9 managers, one of which can lead.
fn any_case() -> impl Strategy<Value = Case> {
    let node = (0..4_u8, 0..8_u8, 0..8_u8, 0..4_u8);
    (proptest::collection::vec(node, 1..=9), any::<bool>()).prop_map(|(nodes, joint)| {
        let mut case = Case::default();
        for (number, (place, health, wish, behind)) in nodes.into_iter().enumerate() {
            let node = id(number as u128 + 1);
            case.record(node, |_| {});
            let configuration = &mut case.configuration;
            match (place, joint) {
                (0, _) => configuration.learners.extend([node]),
                (1, true) => {
                    configuration.voters.insert(node);
                }
                (2, true) => {
                    configuration.outgoing.insert(node);
                }
                _ => {
                    configuration.voters.insert(node);
                    if joint {
                        configuration.outgoing.insert(node);
                    }
                }
            }
            match health {
                0 => case.about(node, &["gone", "40s"]),
                1 => case.about(node, &["away"]),
                2 => case.about(node, &["left"]),
                _ => {}
            }
            match wish {
                0 => case.about(node, &["never"]),
                1 => case.about(node, &["asked"]),
                2 if place == 0 => case.about(node, &["expelled"]),
                2 => case.about(node, &["going"]),
                3 => case.about(node, &["worker"]),
                _ => {}
            }
            if behind == 0 {
                case.about(node, &["behind"]);
            }
        }
        case.nodes.retain(|node, _| !case.expelled.contains(node));
        if case.configuration.voters.is_empty() {
            case.configuration = Configuration::of(case.nodes.keys().copied().collect());
        }
        let outgoing = &case.configuration.outgoing;
        let gone = outgoing.difference(&case.configuration.voters);
        case.configuration.learners_next = gone.copied().collect();
        let able = case.leaders().first().copied();
        case.me = able;
        case
    })
}

impl Case {
    fn heard(&self) -> BTreeSet<NodeId> {
        let nodes = self.configuration.nodes();
        nodes.into_iter().filter(|node| !self.unheard.contains_key(node)).collect()
    }

    /// Who could lead.
    fn leaders(&self) -> Vec<NodeId> {
        let configuration = &self.configuration;
        let able = |node: &NodeId| configuration.votes(*node) && !self.behind.contains(node);
        if !configuration.is_majority(&self.heard()) {
            return Vec::new();
        }
        self.heard().into_iter().filter(able).collect()
    }
}

proptest! {
    #[test]
    fn from_any_state_the_steps_end_and_lose_no_majority_on_the_way(case in any_case()) {
        let mut case = case;
        prop_assume!(case.me.is_some());
        let mut steps = 0;
        let last = loop {
            let step = case.next();
            match step.as_ref().map(|step| &step.action) {
                None | Some(Action::Wait) => break step,
                Some(Action::HandOver(to)) => {
                    prop_assert!(case.leaders().contains(to), "{to} cannot lead");
                    prop_assert_ne!(case.me, Some(*to));
                    case.me = Some(*to);
                }
                Some(Action::Change(to)) => {
                    prop_assert!(case.configuration.is_majority(&case.heard()));
                    prop_assert!(to.is_majority(&case.heard()), "a live majority is lost");
                    prop_assert!(!to.voters.is_empty());
                    prop_assert!(to.votes(case.me.unwrap()), "the leader removes itself");
                    prop_assert!(!case.configuration.is_joint() || *to == case.configuration.left());
                    if to.is_joint() && !case.configuration.is_joint() {
                        for node in to.voters.difference(&case.configuration.voters) {
                            prop_assert!(!case.behind.contains(node) && case.heard().contains(node));
                        }
                    }
                    case.configuration = to.clone();
                }
            }
            steps += 1;
            prop_assert!(steps < 40, "no end: {:?}", show(step));
        };
        prop_assert!(!case.configuration.voters.is_empty());
        if last.is_none() {
            let configuration = &case.configuration;
            prop_assert!(!configuration.is_joint());
            prop_assert_eq!(configuration.voters.len() % 2, 1, "even at rest");
            prop_assert!(case.nodes.keys().all(|node| configuration.contains(*node)));
            prop_assert!(configuration.nodes().is_disjoint(&case.expelled));
        }
    }

    #[test]
    fn when_all_is_well_nothing_waits(case in any_case()) {
        let mut case = case;
        case.unheard.clear();
        case.behind.clear();
        case.nodes.values_mut().for_each(|record| record.health = Health::Joined);
        case.me = case.leaders().first().copied();
        let nobody = !case.nodes.values().any(NodeRecord::may_vote);
        prop_assume!(case.me.is_some() && !nobody);
        for _ in 0..40 {
            match case.next().map(|step| step.action) {
                None => {
                    let able = case.nodes.keys().filter(|node| case.look(|seen| seen.may_vote(**node))).count();
                    prop_assert_eq!(case.configuration.voters.len(), able - (able + 1) % 2, "as many as can vote");
                    return Ok(());
                }
                Some(Action::Wait) => prop_assert!(false, "waits: {}", show(case.next())),
                Some(Action::HandOver(to)) => case.me = Some(to),
                Some(Action::Change(to)) => case.configuration = to,
            }
        }
        prop_assert!(false, "no end");
    }
}
