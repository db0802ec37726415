//! A small record that proves everything, and what one changed line does to it.

use super::*;
use crate::torture::record::{Answer, Member};
use expect_test::expect;

/// 3 nodes, one kill, one partition, a server that is replaced, another authority, and one of
/// everything that clients do.
const SMALL: &str = include_str!("../testdata/small.jsonl");

fn small() -> Vec<Line> {
    SMALL.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The verdict after `change` was made to each line.
fn judged(mut change: impl FnMut(&mut Line)) -> Report {
    let mut lines = small();
    lines.iter_mut().for_each(&mut change);
    judge(lines).unwrap()
}

/// The one reason why it fails.
fn only_failure(change: impl FnMut(&mut Line)) -> String {
    let report = judged(change);
    assert_eq!(report.outcome, Outcome::Failed, "{report:?}");
    assert_eq!(report.failures.len(), 1, "{:?}", report.failures);
    report.failures[0].clone()
}

fn with_contents(mut change: impl FnMut(&mut Contents)) -> impl FnMut(&mut Line) {
    move |line| {
        if let Line::Contents(contents) = line {
            change(contents);
        }
    }
}

fn with_faults(mut change: impl FnMut(&mut Fault)) -> impl FnMut(&mut Line) {
    move |line| {
        if let Line::Fault(fault) = line {
            change(fault);
        }
    }
}

fn with_members(mut change: impl FnMut(&mut Members)) -> impl FnMut(&mut Line) {
    move |line| {
        if let Line::Members(members) = line {
            change(members);
        }
    }
}

/// The list of members that a node gave last.
fn with_last_census(mut change: impl FnMut(&mut Census)) -> impl FnMut(&mut Line) {
    move |line| {
        if let Line::Census(census) = line
            && census.applied == 21
        {
            change(census);
        }
    }
}

fn with_over(mut change: impl FnMut(&mut Over)) -> impl FnMut(&mut Line) {
    move |line| {
        if let Line::Over(over) = line {
            change(over);
        }
    }
}

#[test]
fn a_record_in_which_everything_was_tried_and_held_proves_it() {
    let report = judged(|_| {});
    assert_eq!((report.outcome, &report.failures, &report.missing), (Outcome::Proven, &vec![], &vec![]));
    expect![[r#"
        FAULT             MADE  SEEN  LEADERS  NO WRITES  WORST  EVIDENCE (ONE OF THEM)
        ✔ kill             1/1     1        1      1.8 s  1.8 s  ended with signal 9; answers 64 ms after the start
        ✔ partition-node   1/1     1        0      2.8 s  2.8 s  a probe passed before and is dropped now; 43 frames were met by it; a probe passes again

        CHANGE       MADE  IN FAULTS  ASKED   TOOK  WORST  EVIDENCE (ONE OF THEM)
        ✔ replace     1/1          1      3  1.4 s  1.4 s  out of the list at index 21; then serves 653 ms after its start
        ✔ rotate-ca   1/1          1      1  1.4 s  1.4 s  CA 2 is the only one, 1.3 s after the wish

        CHECKER         OPERATIONS  PREMISES  VERDICT
        ✔ witness                8        13  holds
        ✔ linearizable          13        10  holds
        ✔ transactions           9        19  holds
        ✔ events                 8        10  holds

        PROMISE                                         MEASURED
        ✔ inserts acknowledged                          3
        ✔ acknowledged inserts lost                     0
        ✔ inserts done twice                            0
        ✔ refused inserts done                          0
        ✔ nodes whose contents differ                   0
        ✔ nodes compared                                3 of 3
        ✔ a leader within 5 s                           0.0 s
        ✔ all nodes answer within 30 s                  0.1 s
        ✔ all nodes are equal within 30 s               0.3 s
        ✔ the services are whole within 60 s            0.9 s
        ✔ copies of the service that run                2 of 2
        ✔ digests compared                              71
        ✔ nodes diverged                                0
        ✔ services that run once and did                once-a moved 1×, 1.4 s without it at most; once-b moved 0×, 0.0 s without it at most; once-c moved 0×, 0.0 s without it at most
        ✔ two copies at once of what runs once          0
        ✔ epochs that went back                         0
        ✔ two members of one id or name                 0
        ✔ removed members seen again                    0
        ✔ removed servers that know a leader            0
        ✔ members that differ about members             0
        ✔ members that hold other keys                  0
        ✔ members without all inserts that joined late  0
        ✔ voters at the end                             3 of 3 managers
        ✔ the authority at the end                      number 2 after 1 rotations
        ✔ all members agree within 30 s                 0.1 s
        ✔ unexpected deaths                             0
        ✔ errors that no client expects                 0
        ✔ servers that did not come back or stop        0

        ERROR SEEN BY CLIENTS  TIMES
        connection-lost            1
        outcome-unknown            1
        unreachable                3

        ✔ PROVEN: 2 faults of 2 kinds and 2 changes of 2 kinds on 3 nodes in 13s, 15 operations of clients, seed 7"#]].assert_eq(&report.render());
}

#[test]
fn an_acknowledged_insert_that_is_gone_is_lost() {
    let reason = only_failure(with_contents(|contents| contents.rows.retain(|row| *row != 10)));
    assert_eq!(reason, "acknowledged inserts lost: 1, first 10");
}

#[test]
fn an_insert_of_which_nothing_was_known_may_be_there_or_not() {
    let report = judged(with_contents(|contents| contents.rows.retain(|row| *row != 8)));
    assert_eq!(report.outcome, Outcome::Proven);
}

#[test]
fn an_insert_that_was_sent_again_and_acknowledged_must_be_there() {
    let reason = only_failure(with_contents(|contents| contents.rows.retain(|row| *row != 7)));
    assert_eq!(reason, "acknowledged inserts lost: 1, first 7");
}

#[test]
fn a_row_that_is_there_twice_was_done_twice() {
    let reason = only_failure(with_contents(|contents| contents.rows.push(7)));
    assert_eq!(reason, "inserts done twice: 1, first 7");
}

#[test]
fn a_refused_insert_must_not_be_there() {
    let reason = only_failure(with_contents(|contents| contents.rows.push(9)));
    assert_eq!(reason, "refused inserts done: 1, first 9");
}

#[test]
fn one_node_that_holds_something_else_is_named() {
    let reason = only_failure(with_contents(|contents| {
        if contents.node == "n3" {
            contents.rows.retain(|row| *row != 8);
        }
    }));
    assert_eq!(reason, "nodes whose contents differ: n3");
}

#[test]
fn a_register_that_went_back_contradicts_both_checkers() {
    let report = judged(|line| {
        if let Line::Operation(Operation { call: Call::Get { key: 2 }, end: End::Answered { answer, .. }, .. }) = line {
            *answer = Answer::Value(11);
        }
    });
    let reasons: Vec<&str> = report.failures.iter().filter_map(|reason| reason.split(' ').next()).collect();
    assert_eq!(reasons, ["witness", "linearizable"]);
}

#[test]
fn a_read_of_one_node_may_be_old_but_not_invented() {
    let local = |value| {
        judged(move |line| {
            if let Line::Operation(Operation {
                call: Call::GetLocal { .. }, end: End::Answered { answer, .. }, ..
            }) = line
            {
                *answer = Answer::Value(value);
            }
        })
    };
    assert_eq!(local(1).outcome, Outcome::Proven);
    assert_eq!(local(2).outcome, Outcome::Failed, "the index says that it was not written yet");
}

#[test]
fn a_transaction_of_which_half_is_seen_is_found() {
    let report = judged(|line| {
        if let Line::Operation(Operation { call: Call::Transaction { .. }, end: End::Answered { answer, .. }, .. }) =
            line
            && *answer == Answer::Lists(vec![vec![4, 6], vec![5]])
        {
            *answer = Answer::Lists(vec![vec![4, 6], vec![]]);
        }
    });
    assert!(report.failures[0].starts_with("transactions violated"), "{:?}", report.failures);
}

#[test]
fn a_follower_that_missed_an_event_is_found() {
    let reason = only_failure(|line| {
        if let Line::Watched(watched) = line {
            watched.events.retain(|event| event.kind != "service-scaled" || watched.client != 16);
        }
    });
    assert!(reason.starts_with("events violated"), "{reason}");
}

#[test]
fn a_fault_that_nobody_saw_proves_nothing() {
    let unseen = only_failure(with_faults(|fault| {
        if fault.kind == "kill" {
            fault.evidence = None;
        }
    }));
    assert_eq!(unseen, "kill was not seen to be there 1 times");
    let failed = only_failure(with_faults(|fault| {
        if fault.kind == "kill" {
            fault.failed = Some("no server to kill".into());
        }
    }));
    assert_eq!(failed, "kill was planned and never happened: no server to kill");
}

#[test]
fn a_server_that_died_by_itself_fails_the_run() {
    let reason = only_failure(with_over(|over| over.unexpected_deaths.push("n1 panicked".into())));
    assert_eq!(reason, "unexpected deaths: 1: n1 panicked");
}

#[test]
fn a_failure_that_no_client_expects_fails_the_run() {
    let reason = only_failure(with_over(|over| {
        over.errors.insert("sqlite-11".into(), 1);
    }));
    assert_eq!(reason, "errors that no client expects: 1: sqlite-11");
}

#[test]
fn a_cluster_that_heals_too_late_has_not_healed() {
    let reason = only_failure(|line| {
        if let Line::Healed(healed) = line {
            healed.leader_ms = Some(LEADER_WITHIN_MS + 1);
        }
    });
    assert_eq!(reason, "a leader within 5 s: 5.0 s");
}

#[test]
fn what_was_left_out_makes_the_proof_incomplete() {
    let report = judged(|line| {
        if let Line::Run(run) = line {
            run.left_out.push(LeftOut {
                kind: "power-loss".into(),
                why: "not root".into(),
                fix: "run it as root".into(),
            });
        }
    });
    assert_eq!(report.outcome, Outcome::Incomplete);
    assert_eq!(report.missing, ["power-loss was left out: not root"]);
}

#[test]
fn a_run_that_was_stopped_is_incomplete_and_still_tells_what_it_saw_broken() {
    let stopped: Vec<Line> = small()
        .into_iter()
        .filter(|line| !matches!(line, Line::Contents(_) | Line::Healed(_) | Line::Members(_)))
        .map(|mut line| {
            with_over(|over| over.interrupted = true)(&mut line);
            line
        })
        .collect();
    let report = judge(stopped.clone()).unwrap();
    assert_eq!(report.outcome, Outcome::Incomplete);
    assert_eq!(report.missing[0], "the run was stopped");
    let mut broken = stopped;
    broken.iter_mut().for_each(with_over(|over| over.broken.push("n1 did not come back".into())));
    assert_eq!(judge(broken).unwrap().outcome, Outcome::Failed);
    let cut = judge(small()[..5].to_vec()).unwrap();
    assert_eq!(cut.missing[0], "the record ends before its run did");
}

#[test]
fn a_checker_without_anything_to_check_fails_the_run() {
    let report = judge(small().into_iter().filter(|line| !matches!(line, Line::Watched(_))).collect()).unwrap();
    assert_eq!(report.outcome, Outcome::Failed, "{:?}", report.failures);
}

/// The member that was removed, as it was before.
fn removed() -> Member {
    let before = small().into_iter().find_map(|line| match line {
        Line::Census(census) => census.members.into_iter().find(|member| member.name == "n3"),
        _ => None,
    });
    before.unwrap()
}

#[test]
fn e1_a_removed_member_that_is_listed_again_is_found() {
    let reason = only_failure(with_last_census(|census| {
        census.members.retain(|member| member.name != "n3");
        census.members.push(removed());
    }));
    assert_eq!(reason, "removed members seen again: 1: n3 in the list of n1 at index 21, gone at 21");
    let earlier = judged(|line| {
        if let Line::Change(crate::torture::record::Change { removed: Some(removed), .. }) = line {
            removed.gone_at = 22;
        }
    });
    assert_eq!(earlier.outcome, Outcome::Proven, "before its end it may be listed");
    let at_the_end = judged(with_members(|members| members.seen[1].members.push(removed())));
    assert!(at_the_end.failures[1].starts_with("removed members seen again: 1: n3 in the list of n2"));
}

#[test]
fn two_members_of_one_id_and_one_id_of_two_names_are_found() {
    let twice = only_failure(with_last_census(|census| {
        let again = Member { name: "n9".into(), ..census.members[2].clone() };
        census.members.push(again);
    }));
    assert!(twice.starts_with("two members of one id or name: 2: "), "{twice}");
    let renamed = only_failure(with_last_census(|census| census.members[1].name = "n8".into()));
    assert!(renamed.contains("is n2 and n8"), "{renamed}");
}

#[test]
fn members_that_have_not_come_to_agree_fail_the_run() {
    let alone = only_failure(with_members(|members| {
        members.seen[2].members.retain(|member| member.name == "n3");
    }));
    assert_eq!(alone, "members that differ about members: 1: n3 counts n3");
    let silent = only_failure(with_members(|members| members.seen[0].not_alive.push("n2".into())));
    assert_eq!(silent, "members that differ about members: 1: n1 does not hear n2 gossip");
    let late = only_failure(with_members(|members| {
        (members.agreed_ms, members.wrong) = (None, "n1 does not see n2 as joined".into());
    }));
    assert_eq!(late, "all members agree within 30 s: not in time: n1 does not see n2 as joined");
}

#[test]
fn an_even_number_of_voters_fails_the_run() {
    let reason = only_failure(with_members(|members| members.seen[0].members[1].votes = false));
    assert_eq!(reason, "voters at the end: 2 of 3 managers");
}

#[test]
fn a_member_with_other_keys_fails_the_run() {
    let gossip = only_failure(with_members(|members| members.seen[2].gossip_keys = "g1".into()));
    assert_eq!(gossip, "members that hold other keys: 1: n3 has other keys of gossip than n1");
    let both = only_failure(with_members(|members| members.seen[1].only_authority = false));
    assert_eq!(both, "members that hold other keys: 1: n2 believes more than CA 2");
    let not_rotated = only_failure(with_members(|members| members.seen.iter_mut().for_each(|seen| seen.authority = 1)));
    assert_eq!(not_rotated, "the authority at the end: number 1 after 1 rotations");
}

#[test]
fn a_removed_server_that_is_let_in_fails_the_run() {
    let reason = only_failure(with_members(|members| {
        members.outcasts.insert("n3".into(), true);
    }));
    assert_eq!(reason, "removed servers that know a leader: 1: n3");
}

#[test]
fn a_server_that_joined_late_has_to_hold_what_was_acknowledged_before() {
    let report = judged(with_contents(|contents| {
        if contents.node == "n3" {
            contents.rows.retain(|row| *row != 3);
        }
    }));
    let late = "members without all inserts that joined late: 1: n3 lacks 1, first 3";
    assert!(report.failures.iter().any(|reason| reason == late), "{:?}", report.failures);
}

#[test]
fn a_change_that_was_planned_and_never_happened_fails_the_run() {
    let reason = only_failure(|line| {
        if let Line::Change(change) = line
            && change.kind == "replace"
        {
            change.failed = Some("no server is free".into());
        }
    });
    assert_eq!(reason, "replace was planned and never happened: no server is free");
}

#[test]
fn without_the_roll_at_the_end_nothing_is_proven() {
    let lines: Vec<Line> = small().into_iter().filter(|line| !matches!(line, Line::Members(_))).collect();
    let report = judge(lines).unwrap();
    assert!(report.failures.contains(&"who the members are at the end was not asked".to_owned()), "{report:?}");
}

fn with_ran(mut change: impl FnMut(&mut Vec<Ran>)) -> impl FnMut(&mut Line) {
    move |line| {
        if let Line::Once { ran } = line {
            change(ran);
        }
    }
}

#[test]
fn what_runs_once_ran_never_twice_and_its_epochs_only_grow() {
    let twice = only_failure(with_ran(|ran| ran[0].last = 4_500_000_000));
    assert_eq!(twice, "two copies at once of what runs once: 1: once-a of epochs 1 and 2 for 100 ms");
    let back = only_failure(with_ran(|ran| ran[3].epoch = 0));
    assert_eq!(back, "epochs that went back: 1: once-a from 1 to 0");
    let never = only_failure(with_ran(|ran| ran.retain(|ran| ran.service != "once-c")));
    assert!(never.starts_with("services that run once and did: once-a moved 1×, 1.4 s without it at most;"), "{never}");
}

#[test]
fn a_record_that_does_not_say_when_it_ran_what_runs_once_proves_nothing() {
    let lines = small().into_iter().filter(|line| !matches!(line, Line::Once { .. })).collect();
    let report = judge(lines).unwrap();
    assert_eq!((report.outcome, report.failures.len()), (Outcome::Failed, 1), "{:?}", report.failures);
}
