//! Which copy of an active-passive service is active, plan by plan.

use super::text::{Case, node_id, show, timed};
use crate::{Standby, Survey, plan};
use quorate_model::attribute::{Attribute, score_of};
use quorate_model::command::Command;
use quorate_model::id::{LogIndex, NodeId, ReplicaId, ServiceName};
use quorate_model::lease::LeaseCommand;
use quorate_model::member::MemberCommand;
use quorate_model::observed::{Casting, Part, ReplicaState};
use quorate_model::spec::{Active, Driver};
use quorate_model::state::{Health, ReplicaRecord};
use quorate_model::time::WallTime;

const THREE: &str = "n1 joined | n2 joined | n3 joined | db x3 pair on n1 n2 n3";

/// A cluster whose plans are carried out.
struct World(Case);

impl World {
    fn read(case: &str) -> World {
        World(Case::read(case))
    }

    /// With the first copy as the active one.
    fn active(case: &str) -> World {
        let mut world = World::read(case);
        assert_eq!(world.plan(), "promote db.0 v1 on n1 to epoch 1\n");
        world
    }

    fn name() -> ServiceName {
        ServiceName::new("db").unwrap()
    }

    fn run(&mut self, command: &Command) {
        let index = LogIndex(self.0.state.planned_on.0 + 1);
        let changes = self.0.state.decide(index, WallTime(index.0), command).unwrap();
        self.0.state.absorb(index, &changes);
    }

    /// Makes a plan and carries it out. What it said.
    fn plan(&mut self) -> String {
        let observed = timed(self.0.observed.clone(), &self.0.state, super::text::NOW);
        let plan = plan(&self.0.state, &observed, &self.0.policy);
        let text = show(&self.0.state, &plan);
        self.run(&Command::CarryOut { expected: self.0.state.planned_on, steps: plan.steps });
        let active = self.0.state.replicas.values().filter(|replica| replica.lease.is_some()).count();
        assert!(active <= 1, "{text}");
        text
    }

    fn on(&self, node: u128) -> &ReplicaRecord {
        self.0.state.replicas.values().find(|replica| replica.node == node_id(node)).unwrap()
    }

    fn is(&mut self, node: u128, state: ReplicaState) {
        let id = self.on(node).id;
        self.0.observed.replicas.insert(id, state);
    }

    /// The node says that it gave this epoch back.
    fn gave_back(&mut self, node: u128, yielded: u64) {
        let id: ReplicaId = self.on(node).id;
        self.0.observed.castings.insert(id, Casting { part: Part::Standby, epoch: 0, yielded });
    }

    fn health(&mut self, node: u128, health: Health) {
        let (node, generation) = (node_id(node), self.0.state.nodes[&node_id(node)].generation);
        if health == Health::Joined {
            self.0.state.nodes.get_mut(&node).unwrap().health = health;
            self.0.observed.reported.insert(node);
            return;
        }
        self.run(&Command::ChangeHealth { node, generation, health, at: super::text::NOW });
        self.0.observed.reported.remove(&node);
    }

    /// The lease of this epoch is over by the clocks of a majority.
    fn raise(&mut self, epoch: u64) {
        self.run(&Command::Lease(LeaseCommand::Fence { name: Self::name(), epoch }));
        self.run(&Command::Lease(LeaseCommand::Raise { name: Self::name(), epoch }));
    }

    fn holder(&self) -> Option<NodeId> {
        self.0.state.leases[&Self::name()].holder.map(|holder| holder.node)
    }

    /// What the agent on a node says of its copy.
    fn score(&mut self, node: u128, said: &str) {
        let attribute = Some(Attribute { value: said.into(), lasts: false });
        let name = score_of(World::name().as_str());
        self.run(&Command::Member(MemberCommand::SetAttribute { node: node_id(node), name, attribute }));
    }

    /// Who stands by, in order, and why not.
    fn standbys(&self) -> String {
        let observed = timed(self.0.observed.clone(), &self.0.state, super::text::NOW);
        let survey = Survey { state: self.0.state.clone(), observed, policy: self.0.policy };
        let roles = survey.explain(&World::name()).unwrap().roles.unwrap();
        let each = |it: &Standby| format!("{}: {}", it.node, it.unfit.map(|why| why.to_string()).unwrap_or_default());
        roles.standbys.iter().map(each).collect::<Vec<_>>().join("\n")
    }

    /// What its spec says of the active copy.
    fn wants(&mut self, active: &Active) {
        let service = self.0.state.services.get_mut(&Self::name()).unwrap();
        service.spec.active = Some(active.clone());
        for replica in self.0.state.replicas.values_mut() {
            replica.spec.active = Some(active.clone());
        }
    }
}

#[test]
fn one_copy_is_promoted_and_everything_is_as_wanted() {
    let mut world = World::active(THREE);
    assert_eq!(world.plan(), "nothing to do\n");
    let mut world = World::read("n1 joined | n2 joined | db x2 pair on n1 n2");
    [1, 2].into_iter().for_each(|node| world.is(node, ReplicaState::Starting));
    assert_eq!(world.plan(), "hold db: no copy is active: none is healthy\n");
}

#[test]
fn nobody_is_promoted_before_a_lost_lease_is_raised_and_whoever_returns_takes_nothing_back() {
    let mut world = World::active(THREE);
    world.0.policy.replace_after = std::time::Duration::from_secs(300);
    world.health(1, Health::Down);
    assert!(!world.plan().contains("promote"), "its lease may be held");
    world.raise(1);
    assert!(world.plan().starts_with("promote db.1 v1 on n2 to epoch 2\n"));
    world.health(1, Health::Joined);
    assert_eq!(world.plan(), "nothing to do\n");
    assert_eq!((world.holder(), world.on(1).lease), (Some(node_id(2)), None), "its copy stands by");
}

#[test]
fn the_role_moves_by_the_word_of_its_node_about_that_very_epoch() {
    let mut world = World::active(THREE);
    world.gave_back(1, 0);
    world.is(1, ReplicaState::Unhealthy);
    assert!(world.plan().starts_with("yield db.0 v1 on n1\n"));
    assert!(!world.plan().contains("promote"));
    world.gave_back(1, 7);
    assert!(!world.plan().contains("promote"), "another epoch says nothing");
    world.gave_back(1, 1);
    assert!(world.plan().starts_with("demoted db.0 v1 on n1\npromote db.1 v1 on n2 to epoch 2\n"));
    world.is(1, ReplicaState::Healthy);
    assert_eq!(world.plan(), "nothing to do\n", "it is no reason to go back");
}

#[test]
fn nobody_gives_a_role_up_without_an_heir() {
    let mut world = World::active(THREE);
    [1, 2, 3].into_iter().for_each(|node| world.is(node, ReplicaState::Unhealthy));
    assert!(!world.plan().contains("yield"));
}

#[test]
fn a_drain_moves_the_role_first_and_the_copy_then() {
    let mut world = World::active("n1 joined | n2 joined | n3 joined | db x2 pair on n1 n2");
    let drain = quorate_model::place::Drain { asked: LogIndex(1), deadline: None };
    world.0.state.nodes.get_mut(&node_id(1)).unwrap().availability =
        quorate_model::place::Availability::Draining(drain);
    let mut said = world.plan();
    assert_eq!(said.lines().next(), Some("yield db.0 v1 on n1"));
    world.gave_back(1, 1);
    (0..3).for_each(|_| said += &world.plan());
    assert!(said.contains("demoted db.0 v1 on n1\npromote db.1 v1 on n2 to epoch 2\n"), "{said}");
    assert!(said.contains("place db.0 on n3"), "{said}");
    assert!(!said.contains("retire db.0 v1 on n1"), "not before its successor is healthy: {said}");
}

#[test]
fn fewer_copies_leave_the_active_one() {
    let mut world = World::active(THREE);
    world.is(1, ReplicaState::Healthy);
    world.0.state.services.get_mut(&World::name()).unwrap().spec.replicas = 1;
    let said = world.plan();
    assert_eq!(said, "retire db.2 v1 on n3\nretire db.1 v1 on n2\n");
}

#[test]
fn a_preferred_node_is_chosen_and_gets_its_role_back_only_where_that_is_wanted() {
    let prefer = vec!["node=n3".parse().unwrap(), "node=n2".parse().unwrap()];
    for failback in [false, true] {
        let mut world = World::read(THREE);
        world.wants(&Active { prefer: prefer.clone(), failback, ..Active::default() });
        world.is(3, ReplicaState::Starting);
        assert!(world.plan().contains("promote db.1 v1 on n2 to epoch 1"));
        world.is(3, ReplicaState::Healthy);
        assert_eq!(world.plan().contains("yield db.1 v1 on n2"), failback);
    }
}

#[test]
fn a_preferred_node_that_is_about_to_end_gets_no_role_back() {
    let mut world = World::read("n1 joined | n2 joined | db x2 pair on n1 n2");
    world.wants(&Active { prefer: vec!["node=n2".parse().unwrap()], failback: true, ..Active::default() });
    assert_eq!(world.plan(), "promote db.1 v1 on n2 to epoch 1\n");
    world.0.state.nodes.get_mut(&node_id(2)).unwrap().handing_over = true;
    assert_eq!(world.plan(), "yield db.1 v1 on n2\n");
    world.gave_back(2, 1);
    assert_eq!(world.plan(), "demoted db.1 v1 on n2\npromote db.0 v1 on n1 to epoch 2\n");
    assert_eq!(world.plan(), "nothing to do\n", "it would go to and fro until the server has ended");
    world.0.state.nodes.get_mut(&node_id(2)).unwrap().handing_over = false;
    assert_eq!(world.plan(), "yield db.0 v1 on n1\n");
}

#[test]
fn somebody_says_who_is_next() {
    let mut world = World::active(THREE);
    world.run(&Command::Activate { service: World::name(), node: Some(node_id(3)) });
    assert!(!world.plan().contains("promote"));
    world.gave_back(1, 1);
    assert!(world.plan().starts_with("demoted db.0 v1 on n1\npromote db.2 v1 on n3 to epoch 2\n"));
    world.run(&Command::Activate { service: World::name(), node: Some(node_id(3)) });
    assert_eq!(world.plan(), "nothing to do\n", "it is active already");
}

#[test]
fn a_server_that_is_about_to_end_loses_the_role_and_keeps_its_copy() {
    let mut world = World::active(THREE);
    world.0.state.nodes.get_mut(&node_id(1)).unwrap().handing_over = true;
    assert_eq!(world.plan(), "yield db.0 v1 on n1\n");
    world.gave_back(1, 1);
    assert_eq!(world.plan(), "demoted db.0 v1 on n1\npromote db.1 v1 on n2 to epoch 2\n");
    assert_eq!(world.plan(), "nothing to do\n", "nobody takes its place: it comes back");
}

#[test]
fn no_two_copies_are_on_one_node() {
    let mut world = World::active("n1 joined | n2 joined | db x2 pair on n1 n2");
    world.0.state.services.get_mut(&World::name()).unwrap().spec.replicas = 3;
    assert_eq!(world.plan(), "hold db: no node can take db.2: n1 has db.0 already, n2 has db.1 already\n");
}

#[test]
fn agents_of_a_database_say_who_may_be_promoted_and_who_is_best() {
    let ocf = |world: &mut World| {
        world.0.state.services.get_mut(&World::name()).unwrap().spec.driver = Driver::Ocf;
        world.0.state.replicas.values_mut().for_each(|replica| replica.spec.driver = Driver::Ocf);
    };
    let mut world = World::read(THREE);
    ocf(&mut world);
    world.score(1, "-INFINITY");
    assert_eq!(world.plan(), "hold db: no copy is active: no agent says that its copy may be promoted\n");
    assert_eq!(
        world.standbys(),
        "n1: its agent says that it is not to be promoted
n2: its agent has not said that it may be promoted
n3: its agent has not said that it may be promoted"
    );
    world.score(2, "100");
    world.score(3, "1000");
    assert_eq!(world.plan(), "promote db.2 v1 on n3 to epoch 1\n");
    // Another one that would do better takes nothing from a copy that is well.
    world.score(3, "-INFINITY");
    assert_eq!(world.plan(), "nothing to do\n");
    assert_eq!(world.standbys(), "n2: \nn1: its agent says that it is not to be promoted");

    // What no agent says anything of is as it was.
    let mut world = World::read(THREE);
    ocf(&mut world);
    assert_eq!(world.plan(), "promote db.0 v1 on n1 to epoch 1\n");
}
