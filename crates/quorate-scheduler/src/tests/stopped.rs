//! Services that are stopped.

use super::text::{check_plan, spec};
use super::world::{Action, World, histories};
use crate::Policy;
use expect_test::expect;
use proptest::prelude::*;
use quorate_model::command::Command;
use quorate_model::id::ServiceName;
use quorate_model::spec::{Mode, ServiceSpec};
use quorate_model::stopped::SwitchCommand;

#[test]
fn k12_all_copies_of_a_stopped_service_end_and_nothing_is_said_of_it() {
    check_plan(
        "n1 joined | n2 joined | web x2 stopped on n1 n2 | api x1 on n1",
        expect!["retire web.1 v1 on n2\nretire web.0 v1 on n1\n"],
    );
    check_plan(
        "n1 joined | n2 joined | web every stopped on n1 n2",
        expect!["retire web.0 v1 on n1\nretire web.1 v1 on n2\n"],
    );
    check_plan("n1 joined | db once stopped on n1", expect!["retire db.0 v1 on n1\n"]);
    check_plan(
        "n1 joined | n2 joined | web x2 stopped | every every stopped | db once stopped | pg x2 pair stopped",
        expect!["nothing to do\n"],
    );
}

#[test]
fn k12_time_does_not_pass_for_the_update_of_a_stopped_service() {
    check_plan("n1 joined | web x2 v2 stopped rolling from:1 stage-for:1h stalled-for:1h", expect!["nothing to do\n"]);
    check_plan("n1 joined | web x2 v2 stopped canary from:1 canary:1 stalled-for:1h", expect!["nothing to do\n"]);
}

proptest! {
    /// Whatever was before, and for whatever mode.
    #[test]
    fn k12_a_service_that_was_stopped_runs_again_as_it_was(
        nodes in 1..4u128, replicas in 1..4u32,
        mode in prop_oneof![Just(Mode::Replicated), Just(Mode::EveryNode)],
    ) {
        let mut world = World::new(nodes, Policy::default());
        let replicas = if mode == Mode::Replicated { replicas } else { 1 };
        let service = ServiceName::new("web").unwrap();
        world.apply(ServiceSpec { mode, ..spec("web", replicas, 1, None) });
        world.settle(|_| ());
        let wanted = world.state.wanted(&world.state.services[&service]);
        world.command(&Command::Switch(SwitchCommand::Stop { service: service.clone() }));
        world.settle(|_| ());
        prop_assert!(world.state.replicas.is_empty());
        prop_assert_eq!(world.plan().held, vec![]);
        world.command(&Command::Switch(SwitchCommand::Start { service: service.clone() }));
        world.settle(|_| ());
        prop_assert_eq!(world.healthy(&service), wanted as usize);
        prop_assert_eq!(world.plan().held, vec![]);
    }

    #[test]
    fn k12_from_wherever_a_history_leads_nothing_of_a_stopped_service_is_left(mut world in histories()) {
        for name in 0..3 {
            world.act(&Action::Switch { name, runs: false });
        }
        world.recover();
        world.settle(|_| ());
        prop_assert!(world.state.replicas.is_empty());
        prop_assert!(world.plan().steps.is_empty());
    }
}
