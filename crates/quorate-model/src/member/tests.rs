use super::*;
use crate::command::Command;
use crate::id::LogIndex;
use crate::trust::KeyKind;

const HOUR: u64 = 3600 * 1_000_000;

fn secret(number: u8) -> SecretHash {
    SecretHash([number; 32])
}

fn token(number: u8, role: Role) -> JoinToken {
    JoinToken {
        id: TokenId::from_u128(number.into()),
        secret: secret(number),
        role,
        name: None,
        created: WallTime(0),
        expires: WallTime(HOUR),
        used: None,
    }
}

fn identity(number: u128, role: Role) -> NodeIdentity {
    NodeIdentity {
        id: NodeId::from_u128(number << 64),
        name: format!("n{number}"),
        roles: BTreeSet::from([role]),
        api: format!("10.0.0.{number}:7000"),
        link: format!("10.0.0.{number}:7001"),
        host: format!("10.0.0.{number}"),
    }
}

fn admit(with: u8, node: NodeIdentity) -> MemberCommand {
    MemberCommand::Admit { secret: secret(with), node, vote: Vote::Auto }
}

/// A cluster and the index of its last entry.
#[derive(Default)]
struct World {
    state: ClusterState,
    index: u64,
    now: WallTime,
}

impl World {
    /// Decides and absorbs, through the words of the log; `false`: nothing changed.
    fn run(&mut self, command: Command) -> Result<bool, Refusal> {
        let written = serde_json::to_vec(&command).unwrap();
        let command: Command = serde_json::from_slice(&written).unwrap();
        self.index += 1;
        let changes = self.state.decide(LogIndex(self.index), self.now, &command)?;
        let written = serde_json::to_vec(&changes).unwrap();
        let changes: Vec<Change> = serde_json::from_slice(&written).unwrap();
        self.state.absorb(LogIndex(self.index), &changes);
        Ok(!changes.is_empty())
    }

    fn member(&mut self, command: MemberCommand) -> Result<bool, Refusal> {
        self.run(Command::Member(command))
    }

    fn not_admitted(&mut self, command: MemberCommand) -> NotAdmitted {
        match self.member(command) {
            Err(Refusal::NotAdmitted { why }) => why,
            other => panic!("{other:?}"),
        }
    }

    /// With tokens 1 to `tokens` for workers.
    fn with_tokens(tokens: u8) -> World {
        let mut world = World::default();
        for number in 1..=tokens {
            world.member(MemberCommand::CreateToken { token: token(number, Role::Worker), turn_on_ha: false }).unwrap();
        }
        world
    }

    fn start(&mut self, node: &NodeIdentity, boot: u64) -> Result<bool, Refusal> {
        self.run(Command::RegisterNode { node: node.clone(), boot })
    }
}

#[test]
fn e1_a_token_admits_one_server_once() {
    let mut world = World::with_tokens(1);
    let (first, second) = (identity(1, Role::Worker), identity(2, Role::Worker));
    assert!(world.member(admit(1, first.clone())).unwrap());
    assert_eq!(world.not_admitted(admit(1, second)), NotAdmitted::UsedToken { by: "n1".into() });
    assert!(!world.member(admit(1, first)).unwrap(), "asked again, it is told yes and nothing changes");
    assert_eq!(world.state.nodes.len(), 1);
}

#[test]
fn a_token_that_does_not_fit_admits_nobody_and_is_not_used_up() {
    let mut world = World::with_tokens(1);
    world
        .member(MemberCommand::CreateToken {
            token: JoinToken { name: Some("n7".into()), ..token(2, Role::Worker) },
            turn_on_ha: false,
        })
        .unwrap();
    let worker = identity(1, Role::Worker);
    assert_eq!(world.not_admitted(admit(9, worker.clone())), NotAdmitted::UnknownToken);
    assert_eq!(
        world.not_admitted(admit(1, identity(1, Role::Manager))),
        NotAdmitted::WrongRole { allowed: Role::Worker, asked: Role::Manager }
    );
    assert_eq!(
        world.not_admitted(admit(2, worker.clone())),
        NotAdmitted::WrongName { allowed: "n7".into(), asked: "n1".into() }
    );
    world.now = WallTime(HOUR);
    assert_eq!(world.not_admitted(admit(1, worker.clone())), NotAdmitted::ExpiredToken { at: WallTime(HOUR) });
    world.now = WallTime(HOUR - 1);
    assert!(world.member(admit(1, worker)).unwrap());
}

#[test]
fn a_revoked_token_is_as_good_as_none() {
    let mut world = World::with_tokens(1);
    world.member(MemberCommand::RevokeToken { token: TokenId::from_u128(1) }).unwrap();
    assert_eq!(world.not_admitted(admit(1, identity(1, Role::Worker))), NotAdmitted::UnknownToken);
    let again = world.member(MemberCommand::RevokeToken { token: TokenId::from_u128(1) });
    assert_eq!(again, Err(Refusal::UnknownToken { token: TokenId::from_u128(1) }));
}

#[test]
fn tokens_are_forgotten_a_day_after_they_expired() {
    let mut world = World::with_tokens(2);
    world.now = WallTime(HOUR + TOKEN_REMEMBERED_US + 1);
    let fresh = JoinToken { expires: WallTime(world.now.0 + HOUR), ..token(3, Role::Worker) };
    world.member(MemberCommand::CreateToken { token: fresh, turn_on_ha: false }).unwrap();
    assert_eq!(world.state.members.tokens.keys().copied().collect::<Vec<_>>(), [TokenId::from_u128(3)]);
}

#[test]
fn names_and_addresses_of_present_nodes_differ() {
    let mut world = World::with_tokens(3);
    let first = identity(1, Role::Worker);
    world.member(admit(1, first.clone())).unwrap();
    let same_name = NodeIdentity { name: "n1".into(), ..identity(2, Role::Worker) };
    assert_eq!(world.not_admitted(admit(2, same_name.clone())), NotAdmitted::NameTaken { name: "n1".into() });
    // Even when it is the link where the other has its API.
    let same_address = NodeIdentity { link: first.api.clone(), ..identity(2, Role::Worker) };
    assert_eq!(
        world.not_admitted(admit(2, same_address)),
        NotAdmitted::AddressTaken { address: first.api.clone(), owner: "n1".into() }
    );
    world.member(MemberCommand::Leave { node: first.id, generation: 0 }).unwrap();
    assert!(world.member(admit(2, same_name)).unwrap());
}

#[test]
fn d3_the_quota_counts_nodes_that_work_and_says_the_seeds_words() {
    let mut world = World::with_tokens(4);
    world.member(MemberCommand::CreateToken { token: token(9, Role::Manager), turn_on_ha: false }).unwrap();
    world.member(MemberCommand::SetQuota { quota: Some(Quota { nodes: 1, expires: None }) }).unwrap();
    let first = identity(1, Role::Worker);
    world.member(admit(1, first.clone())).unwrap();
    let refused = world.not_admitted(admit(2, identity(2, Role::Worker)));
    assert_eq!(refused.to_string(), QUOTA_REACHED);
    assert!(world.member(admit(9, identity(9, Role::Manager))).unwrap(), "a mere manager takes no seat");
    // A node that left frees its place, and finds it taken when it returns.
    world.start(&first, 1).unwrap();
    world.member(MemberCommand::Leave { node: first.id, generation: 1 }).unwrap();
    assert!(world.member(admit(2, identity(2, Role::Worker))).unwrap());
    assert_eq!(world.start(&first, 2).unwrap_err().to_string(), QUOTA_REACHED);
    // Raised while everything runs.
    world.member(MemberCommand::SetQuota { quota: Some(Quota { nodes: 2, expires: None }) }).unwrap();
    assert!(world.start(&first, 2).unwrap());
    // Lowered, it stops nobody and lets nobody in; so does one that expired.
    world.member(MemberCommand::SetQuota { quota: Some(Quota { nodes: 1, expires: None }) }).unwrap();
    assert_eq!(world.not_admitted(admit(3, identity(3, Role::Worker))), NotAdmitted::QuotaReached { nodes: 1 });
    let expired = Quota { nodes: 9, expires: Some(WallTime(5)) };
    world.member(MemberCommand::SetQuota { quota: Some(expired) }).unwrap();
    world.now = WallTime(5);
    assert_eq!(world.not_admitted(admit(3, identity(3, Role::Worker))), NotAdmitted::QuotaExpired { at: WallTime(5) });
    assert_eq!(world.state.nodes.values().filter(|node| ClusterState::has_seat(node)).count(), 2);
}

#[test]
fn d3_a_node_that_is_down_frees_its_place() {
    let mut world = World::with_tokens(2);
    world.member(MemberCommand::SetQuota { quota: Some(Quota { nodes: 1, expires: None }) }).unwrap();
    let first = identity(1, Role::Worker);
    world.member(admit(1, first.clone())).unwrap();
    let down = Command::ChangeHealth { node: first.id, generation: 0, health: Health::Down, at: WallTime(0) };
    world.run(down).unwrap();
    assert!(world.member(admit(2, identity(2, Role::Worker))).unwrap());
}

#[test]
fn an_expelled_node_is_gone_and_its_id_is_never_used_again() {
    let mut world = World::with_tokens(2);
    let first = identity(1, Role::Worker);
    world.member(admit(1, first.clone())).unwrap();
    world.member(MemberCommand::Expel { node: first.id }).unwrap();
    assert!(world.state.nodes[&first.id].expelling, "its vote is taken away first");
    world.start(&first, 2).unwrap();
    assert!(world.state.nodes[&first.id].expelling, "a restart changes nothing");
    world.member(MemberCommand::CutOff { node: first.id }).unwrap();
    assert!(world.state.nodes.is_empty());
    assert_eq!(world.not_admitted(admit(2, first.clone())), NotAdmitted::Expelled { node: first.id });
    let why = NotAdmitted::Expelled { node: first.id };
    assert_eq!(world.start(&first, 3), Err(Refusal::NotAdmitted { why }));
    assert!(!world.member(MemberCommand::Expel { node: first.id }).unwrap());
    assert!(!world.member(MemberCommand::CutOff { node: first.id }).unwrap());
}

#[test]
fn nobody_is_cut_off_whose_end_was_not_asked_for() {
    let mut world = World::with_tokens(1);
    let first = identity(1, Role::Worker);
    world.member(admit(1, first.clone())).unwrap();
    assert!(matches!(world.member(MemberCommand::CutOff { node: first.id }), Err(Refusal::Invalid { .. })));
    assert!(world.state.nodes.contains_key(&first.id));
}

#[test]
fn the_last_manager_that_may_vote_is_neither_expelled_nor_stopped_nor_made_a_worker() {
    let mut world = World::with_tokens(0);
    let (first, second) = (identity(1, Role::Manager), identity(2, Role::Manager));
    world.start(&first, 1).unwrap();
    world.start(&second, 1).unwrap();
    world.member(MemberCommand::Expel { node: second.id }).unwrap();
    let roles = BTreeSet::from([Role::Worker]);
    for wish in [
        MemberCommand::Expel { node: first.id },
        MemberCommand::SetVote { node: first.id, vote: Vote::Never },
        MemberCommand::StopManagers { nodes: [first.id, second.id].into() },
        MemberCommand::SetRoles { node: first.id, roles },
    ] {
        assert!(matches!(world.member(wish), Err(Refusal::Harm { harm: Harm::LastVoter { .. } })));
    }
}

#[test]
fn d4_a_node_that_left_comes_back_with_a_higher_generation_and_is_not_called_down_meanwhile() {
    let mut world = World::with_tokens(1);
    let node = identity(1, Role::Worker);
    world.member(admit(1, node.clone())).unwrap();
    world.start(&node, 1).unwrap();
    assert!(!world.member(MemberCommand::Leave { node: node.id, generation: 0 }).unwrap(), "of an earlier life");
    world.member(MemberCommand::Leave { node: node.id, generation: 1 }).unwrap();
    let down = Command::ChangeHealth { node: node.id, generation: 1, health: Health::Down, at: WallTime(0) };
    assert!(!world.run(down).unwrap());
    assert_eq!(world.state.nodes[&node.id].health, Health::Left);
    world.start(&node, 2).unwrap();
    let record = &world.state.nodes[&node.id];
    assert_eq!((record.health, record.generation), (Health::Joined, 2));
}

#[test]
fn k2_alias_and_k8_roles_are_the_clusters_word_and_outlive_a_restart() {
    let mut world = World::with_tokens(1);
    let node = identity(1, Role::Worker);
    world.member(admit(1, node.clone())).unwrap();
    world.member(MemberCommand::SetAlias { node: node.id, alias: Some(" msk-1 ".into()) }).unwrap();
    let roles = BTreeSet::from([Role::Worker, Role::Gateway]);
    world.member(MemberCommand::SetRoles { node: node.id, roles: roles.clone() }).unwrap();
    world.start(&node, 1).unwrap();
    let record = &world.state.nodes[&node.id];
    assert_eq!((record.alias.as_deref(), &record.identity.roles), (Some("msk-1"), &roles));
    assert!(!world.start(&node, 1).unwrap(), "nothing to say twice");
    for bad in ["x".repeat(64), "a\nb".into()] {
        let refused = world.member(MemberCommand::SetAlias { node: node.id, alias: Some(bad) });
        assert!(matches!(refused, Err(Refusal::Invalid { .. })));
    }
    let none = world.member(MemberCommand::SetRoles { node: node.id, roles: BTreeSet::new() });
    assert!(matches!(none, Err(Refusal::Invalid { .. })));
    let vote = world.member(MemberCommand::SetVote { node: node.id, vote: Vote::Asked });
    assert!(matches!(vote, Err(Refusal::Invalid { .. })), "a worker has no vote");
}

fn managers(count: u128) -> World {
    let mut world = World::default();
    for number in 1..=count {
        let node = NodeIdentity { roles: [Role::Manager, Role::Worker].into(), ..identity(number, Role::Manager) };
        world.start(&node, number as u64).unwrap();
    }
    world
}

fn ids(numbers: &[u128]) -> BTreeSet<NodeId> {
    numbers.iter().map(|number| NodeId::from_u128(number << 64)).collect()
}

#[test]
fn k4_managers_are_stopped_all_or_none_and_it_outlives_their_starts() {
    let mut world = managers(3);
    world.member(MemberCommand::SetRoles { node: NodeId::from_u128(3 << 64), roles: [Role::Worker].into() }).unwrap();
    let refused = world.member(MemberCommand::StopManagers { nodes: ids(&[2, 3]) });
    assert_eq!(refused, Err(Refusal::NotManager { node: "n3".into() }));
    let vote = |world: &World| world.state.nodes[&NodeId::from_u128(2 << 64)].vote;
    assert_eq!(vote(&world), Vote::Auto, "none of them");
    assert!(world.member(MemberCommand::StopManagers { nodes: ids(&[2]) }).unwrap());
    assert!(!world.member(MemberCommand::StopManagers { nodes: ids(&[2]) }).unwrap());
    world.start(&identity(2, Role::Manager), 77).unwrap();
    assert_eq!(vote(&world), Vote::Never);
    assert!(world.member(MemberCommand::StartManagers { nodes: ids(&[2]) }).unwrap());
    assert_eq!(vote(&world), Vote::Auto);
}

#[test]
fn k5_a_restart_is_for_one_run_of_a_server() {
    let mut world = managers(1);
    let node = NodeId::from_u128(1 << 64);
    let restart = |generation| MemberCommand::RestartServer { node, generation, alone: false };
    assert!(!world.member(restart(7)).unwrap(), "of a run that is not this one");
    assert!(world.member(restart(1)).unwrap());
    assert_eq!(world.state.nodes[&node].restart, Some(1));
    assert!(!world.member(restart(1)).unwrap(), "asked twice, it restarts once");
    world.start(&identity(1, Role::Manager), 2).unwrap();
    assert_eq!(world.state.nodes[&node].restart, None);
    assert!(!world.member(restart(1)).unwrap(), "a late one changes nothing");
}

#[test]
fn e5_no_second_server_begins_anew_while_one_is_away() {
    let mut world = managers(3);
    let node = |number: u128| NodeId::from_u128(number << 64);
    let restart = |number| MemberCommand::RestartServer { node: node(number), generation: 1, alone: true };
    let away = Err(Refusal::OtherAway { node: "n1".into() });
    assert!(world.member(restart(1)).unwrap());
    assert!(!world.member(restart(1)).unwrap(), "the same one again");
    assert_eq!(world.member(restart(2)), away, "it was only asked");
    world.member(MemberCommand::Leave { node: node(1), generation: 1 }).unwrap();
    assert_eq!(world.member(restart(2)), away, "it has ended");
    world.start(&identity(1, Role::Manager), 2).unwrap();
    assert!(world.member(restart(2)).unwrap(), "it is back");
    assert!(world.member(MemberCommand::RestartServer { node: node(3), generation: 1, alone: false }).unwrap());
}

#[test]
fn k8_a_manager_is_only_where_its_rule_allows() {
    let mut world = managers(2);
    let node = NodeId::from_u128(2 << 64);
    let rule = |requires| MemberCommand::SetManagerRule { requires };
    world.member(rule(Some(Role::Worker))).unwrap();
    let alone = MemberCommand::SetRoles { node, roles: [Role::Manager].into() };
    let refusal = Refusal::ManagerNeeds { node: "n2".into(), requires: Role::Worker };
    assert_eq!(world.member(alone.clone()), Err(refusal));
    let token = token(9, Role::Manager);
    world.member(MemberCommand::CreateToken { token, turn_on_ha: false }).unwrap();
    let why = world.not_admitted(admit(9, identity(9, Role::Manager)));
    assert_eq!(why, NotAdmitted::ManagerNeeds { requires: Role::Worker });
    world.member(rule(None)).unwrap();
    world.member(alone).unwrap();
    assert!(world.member(rule(Some(Role::Worker))).is_err(), "n2 would be where it may not be");
    assert!(world.member(rule(Some(Role::Manager))).is_err());
}

#[test]
fn a_recovered_cluster_forgets_the_lost_and_counts_on() {
    let mut world = managers(3);
    let survivor = NodeId::from_u128(1 << 64);
    let recover = |incarnation| MemberCommand::Recover { survivor, incarnation, lost: ids(&[1, 2, 3]) };
    world.member(MemberCommand::StopManagers { nodes: ids(&[1]) }).unwrap();
    assert_eq!(world.state.incarnation(), 1);
    assert!(world.member(recover(2)).unwrap());
    assert_eq!(world.state.incarnation(), 2);
    assert_eq!(world.state.nodes.keys().copied().collect::<BTreeSet<_>>(), ids(&[1]));
    assert_eq!(world.state.nodes[&survivor].vote, Vote::Auto, "there is nobody else to start it");
    assert_eq!(world.state.members.expelled, ids(&[2, 3]));
    let secrets = world.state.trust.key(KeyKind::Secrets);
    assert_eq!(secrets.exposed.expect("those who have the lost disks have it").by, "n2, n3");
    assert!(world.state.trust.key(KeyKind::Authority).is_due());
    let returned = world.start(&identity(2, Role::Manager), 99);
    assert!(matches!(returned, Err(Refusal::NotAdmitted { why: NotAdmitted::Expelled { .. } })));
    assert!(!world.member(recover(2)).unwrap(), "an old one changes nothing");
}

#[test]
fn k6_a_single_node_is_without_high_availability_until_somebody_switches_it_on_and_two_are_never_without() {
    let mut world = managers(1);
    let set = |on| MemberCommand::SetHa { on };
    assert!(!world.state.ha());
    let before = world.state.planned_on;
    assert!(world.member(set(true)).unwrap());
    assert!(world.state.ha());
    assert!(!world.member(set(true)).unwrap(), "asked twice, it changes once");
    assert!(world.member(set(false)).unwrap());
    assert!(!world.state.ha());
    assert_eq!(world.state.planned_on, before, "no plan depends on it, so no service moves");

    world.start(&identity(2, Role::Worker), 2).unwrap();
    assert!(world.state.ha(), "switched off before, and two nodes need it");
    assert_eq!(world.member(set(true)), Err(Refusal::Harm { harm: Harm::TwoNodes }));
    let in_use = Harm::HaInUse { nodes: "n1, n2".into() };
    assert_eq!(world.member(set(false)), Err(Refusal::Harm { harm: in_use.clone() }));
    world.start(&identity(3, Role::Manager), 3).unwrap();
    assert!(world.member(set(true)).unwrap(), "three are enough");

    // One that left may come back, and is to find somebody.
    for number in [3, 2] {
        let node = NodeId::from_u128(number << 64);
        world.member(MemberCommand::Leave { node, generation: 1 }).unwrap();
    }
    assert!(matches!(world.member(set(false)), Err(Refusal::Harm { harm: Harm::HaInUse { .. } })));
    for number in [3, 2] {
        let node = NodeId::from_u128(number << 64);
        world.member(MemberCommand::Expel { node }).unwrap();
        world.member(MemberCommand::CutOff { node }).unwrap();
    }
    assert!(world.state.ha(), "it stays on until somebody switches it off");
    assert!(world.member(set(false)).unwrap());
    assert!(!world.state.ha());
}

#[test]
fn k6_a_join_token_switches_it_on_and_none_waits_when_it_is_off() {
    let mut world = managers(1);
    world.member(MemberCommand::CreateToken { token: token(1, Role::Worker), turn_on_ha: true }).unwrap();
    assert!(world.state.ha());
    world.member(MemberCommand::SetHa { on: false }).unwrap();
    assert!(world.state.members.tokens.is_empty());
    assert_eq!(world.not_admitted(admit(1, identity(2, Role::Worker))), NotAdmitted::UnknownToken);
}

/// Entries that are older than the switch mean what they meant.
#[test]
fn k6_a_log_that_is_older_than_the_switch_decides_nothing_about_it() {
    let mut world = managers(1);
    let old = serde_json::json!({ "do": "member", "member": "create-token", "token": token(1, Role::Worker) });
    world.run(serde_json::from_value(old).unwrap()).unwrap();
    assert_eq!(world.state.members.ha, None);
    world.member(admit(1, identity(2, Role::Worker))).unwrap();
    assert!(world.state.ha());
    world.member(MemberCommand::Expel { node: NodeId::from_u128(2 << 64) }).unwrap();
    world.member(MemberCommand::CutOff { node: NodeId::from_u128(2 << 64) }).unwrap();
    assert!(world.state.ha(), "who was expelled is told so when it calls");
}

#[test]
fn a_node_hands_over_in_one_of_its_runs_and_its_next_start_ends_that() {
    let mut world = managers(2);
    let node = NodeId::from_u128(1 << 64);
    let hand_over = |generation| MemberCommand::HandOver { node, generation };
    assert!(!world.member(hand_over(7)).unwrap(), "of a run that is not this one");
    assert!(world.member(hand_over(1)).unwrap());
    assert!(world.state.nodes[&node].handing_over);
    assert!(!world.member(hand_over(1)).unwrap(), "asked twice, it is said once");
    world.member(MemberCommand::Leave { node, generation: 1 }).unwrap();
    world.start(&identity(1, Role::Manager), 2).unwrap();
    assert!(!world.state.nodes[&node].handing_over);
    assert!(!world.member(hand_over(1)).unwrap(), "a late one changes nothing");
}
