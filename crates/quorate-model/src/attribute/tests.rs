//! What agents say of nodes, as the log takes it.

use super::*;
use crate::command::Command;
use crate::id::LogIndex;
use crate::member::MemberCommand;
use crate::state::{Change, Health, NodeIdentity, Role};
use crate::time::WallTime;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn node() -> NodeId {
    NodeId::from_u128(1)
}

/// A cluster of one node.
struct World(ClusterState);

impl World {
    fn new() -> World {
        let mut world = World(ClusterState::default());
        world.register(1);
        world
    }

    fn run(&mut self, command: &Command) -> Result<Vec<Change>, Refusal> {
        let index = LogIndex(self.0.planned_on.0 + 1);
        let changes = self.0.decide(index, WallTime(index.0), command)?;
        self.0.absorb(index, &changes);
        Ok(changes)
    }

    fn register(&mut self, boot: u64) {
        let roles = BTreeSet::from([Role::Worker]);
        let [name, api, link, host] = ["n1", "a:1", "a:2", "127.0.0.1"].map(str::to_owned);
        let identity = NodeIdentity { id: node(), name, roles, api, link, host };
        self.run(&Command::RegisterNode { node: identity, boot }).unwrap();
    }

    fn set(&mut self, name: &str, value: Option<&str>, lasts: bool) -> Result<Vec<Change>, Refusal> {
        let attribute = value.map(|value| Attribute { value: value.to_owned(), lasts });
        self.run(&Command::Member(MemberCommand::SetAttribute { node: node(), name: name.to_owned(), attribute }))
    }

    fn shown(&self) -> String {
        let all = self.0.nodes[&node()].attributes.iter();
        all.map(|(name, attribute)| format!("{name}={}", attribute.value)).collect::<Vec<_>>().join(" ")
    }

    fn score(&mut self, said: &str) -> Option<i64> {
        self.set("master-db", Some(said), false).unwrap();
        self.0.nodes[&node()].score(&"db".parse().unwrap())
    }
}

#[test]
fn what_is_said_is_replaced_and_taken_back_and_saying_it_again_changes_nothing() {
    let mut world = World::new();
    assert_eq!(world.set("db-status", Some("HS:alone"), false).unwrap().len(), 1);
    assert_eq!(world.set("db-status", Some("HS:alone"), false).unwrap(), []);
    world.set("db-status", Some("PRI"), false).unwrap();
    world.set("db-data-status", Some("STREAMING|SYNC"), true).unwrap();
    assert_eq!(world.shown(), "db-data-status=STREAMING|SYNC db-status=PRI");
    world.set("db-status", None, false).unwrap();
    assert_eq!(world.set("db-status", None, false).unwrap(), []);
    assert_eq!(world.shown(), "db-data-status=STREAMING|SYNC");
}

#[test]
fn a_node_that_is_away_keeps_what_lasts_and_a_server_that_begins_anew_keeps_all() {
    let mut world = World::new();
    let say = |world: &mut World| {
        world.set("db-status", Some("PRI"), false).unwrap();
        world.set("db-data-status", Some("LATEST"), true).unwrap();
    };
    say(&mut world);
    world.register(2);
    assert_eq!(world.shown(), "db-data-status=LATEST db-status=PRI", "its replicas went on");
    let generation = world.0.nodes[&node()].generation;
    let away = Command::ChangeHealth { node: node(), generation, health: Health::Down, at: WallTime(9) };
    world.run(&away).unwrap();
    assert_eq!(world.shown(), "db-data-status=LATEST");
    world.register(3);
    say(&mut world);
    let generation = world.0.nodes[&node()].generation;
    world.run(&Command::Member(MemberCommand::Leave { node: node(), generation })).unwrap();
    assert_eq!(world.shown(), "db-data-status=LATEST");
}

#[test]
fn scores_are_numbers_of_pacemaker() {
    let mut world = World::new();
    assert_eq!(world.0.nodes[&node()].score(&"db".parse().unwrap()), None);
    for (said, score) in
        [("1000", 1_000), ("-INFINITY", -1_000_000), ("+INFINITY", 1_000_000), ("99999999", 1_000_000), ("much", 0)]
    {
        assert_eq!(world.score(said), Some(score), "{said}");
    }
}

#[test]
fn what_is_too_long_or_too_much_is_refused_and_nothing_is_lost() {
    let mut world = World::new();
    let mut refused = |name: &str, value: &str| world.set(name, Some(value), false).unwrap_err().to_string();
    assert_eq!(refused("", "x"), "`name` is empty");
    assert_eq!(refused("a\nb", "x"), "`name` has a control character, like the end of a line");
    assert_eq!(refused(&"n".repeat(129), "x"), "`name` has 129 bytes; at most 128 are allowed");
    assert_eq!(refused("n", &"x".repeat(257)), "`value` has 257 bytes; at most 256 are allowed");
    for number in 0..ATTRIBUTES_MAX {
        world.set(&format!("a{number}"), Some("x"), false).unwrap();
    }
    let one_more = world.set("b", Some("x"), false).unwrap_err().to_string();
    assert_eq!(one_more, "`name` would be attribute 65 of one node; at most 64 are allowed");
    world.set("a0", Some("y"), false).unwrap();
    let nowhere = MemberCommand::SetAttribute { node: NodeId::from_u128(7), name: "a".into(), attribute: None };
    assert!(matches!(world.run(&Command::Member(nowhere)), Err(Refusal::UnknownNode { .. })));
}

proptest! {
    /// Any text is a score of some worth, and none makes the arithmetic of the ranks go over.
    #[test]
    fn any_text_is_worth_something(said in "[-+]?[a-zA-Z0-9-]{0,30}") {
        let score = World::new().score(&said).unwrap();
        prop_assert!((-INFINITY..=INFINITY).contains(&score));
    }
}
