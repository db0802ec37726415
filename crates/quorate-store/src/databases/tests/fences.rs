//! Writes under an epoch: only the newest one writes.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use quorate_model::fence::{Fence, FenceRefused};

fn fence(text: &str) -> Fence {
    text.parse().unwrap()
}

fn refusal(applied: &AppliedEntry) -> Option<&FenceRefused> {
    outcome(applied).refused.as_ref()
}

impl Log {
    /// Statements that stand alone, under an epoch.
    fn fenced(&mut self, text: &str, statements: &[&str]) -> &mut Log {
        self.fenced_as(u128::from(self.next()) << 64, text, statements, false)
    }

    fn fenced_as(&mut self, id: u128, text: &str, statements: &[&str], transaction: bool) -> &mut Log {
        let statements = statements.iter().map(|sql| Statement::new(*sql)).collect();
        let batch = SqlBatch { statements, transaction };
        self.push(Proposal::sql(RequestId::from_u128(id), &batch).under(Some(fence(text))));
        self
    }
}

/// A service that runs once.
const ONCE: &str = "[[service]]\nname = 'db'\nmode = 'singleton'\ncommand = ['/bin/db']\n";

fn given(service: &str, epoch: u64) -> Step {
    let Step::Place { replica, ordinal, node, version, epoch, .. } = place(1, epoch) else { unreachable!() };
    Step::Place { replica, service: ServiceName::new(service).unwrap(), ordinal, node, version, epoch }
}

fn place(number: u128, epoch: u64) -> Step {
    let (replica, service) = (ReplicaId::from_u128(number), ServiceName::new("db").unwrap());
    Step::Place { replica, service, ordinal: 0, node: NodeId::from_u128(1), version: None, epoch: Some(epoch) }
}

impl Log {
    /// A plan that nothing has made obsolete.
    fn plan(&mut self, databases: &Databases, steps: Vec<Step>) -> &mut Log {
        self.command(&Command::CarryOut { expected: databases.state().planned_on, steps })
    }

    /// A plan of which the cluster knows better.
    fn old_plan(&mut self, epoch: u64) -> &mut Log {
        self.command(&Command::CarryOut { expected: LogIndex(0), steps: vec![place(9, epoch)] })
    }
}

const TABLE: &str = "CREATE TABLE t (a)";
const ROW: &str = "INSERT INTO t VALUES (1)";

fn rows(root: &Path) -> String {
    ask(root, "SELECT count(*) FROM t")
}

#[test]
fn n2_an_older_epoch_writes_nothing_once_a_newer_one_has_written() {
    let mut log = Log::new();
    log.sql(&[TABLE]).fenced("db@1", &[ROW]).fenced("db@2", &[ROW]);
    log.fenced("db@1", &[ROW, ROW]).fenced("db@2", &[ROW]).fenced("other@1", &[ROW]).sql(&[ROW]);
    let (root, mut databases) = with(&Log::new());
    let applied = apply(&mut databases, &log);
    let refused: Vec<Option<String>> = applied.iter().map(|entry| refusal(entry).map(ToString::to_string)).collect();
    assert_eq!(refused[3].as_deref(), Some("epoch 1 of `db` is over: the newest is 2"));
    assert_eq!(refused.iter().flatten().count(), 1, "neither another service nor a write without a fence");
    assert!(outcome(&applied[3]).results.is_empty() && applied[3].changes.is_empty());
    assert_eq!(rows(root.path()), "Integer(5)");
}

#[test]
fn n2_an_epoch_that_was_given_shuts_older_ones_out_before_its_copy_has_written() {
    let mut log = Log::new();
    log.sql(&[TABLE]).command(&register(1, 1)).command(&apply_spec(ONCE));
    let (root, mut databases) = with(&log);
    log.plan(&databases, vec![place(1, 1)]).fenced("db@1", &[ROW]);
    let applied = apply(&mut databases, &log);
    assert_eq!(refusal(&applied[1]), None);
    log.plan(&databases, vec![Step::Forget { replica: ReplicaId::from_u128(1) }, place(2, 2)]);
    log.fenced("db@1", &[ROW]).fenced("db@3", &[ROW]).fenced("db@2", &[ROW]);
    let applied = apply(&mut databases, &log);
    assert_eq!(databases.state().leases.values().map(|lease| lease.epoch).collect::<Vec<_>>(), [2]);
    let told = |entry| refusal(entry).map(ToString::to_string);
    assert_eq!(told(&applied[1]).unwrap(), "epoch 1 of `db` is over: the newest is 2");
    assert_eq!(told(&applied[2]).unwrap(), "no copy of `db` was given epoch 3: the newest is 2");
    assert_eq!(told(&applied[3]), None, "a mistyped epoch shut nobody out");
    assert_eq!(rows(root.path()), "Integer(2)");
}

#[test]
fn a_plan_that_is_refused_ends_older_epochs_all_the_same_and_never_takes_one_back() {
    let mut log = Log::new();
    log.sql(&[TABLE]).old_plan(2).fenced("db@1", &[ROW]).old_plan(1).fenced("db@2", &[ROW]).fenced("db@1", &[ROW]);
    let (_root, mut databases) = with(&Log::new());
    let applied = apply(&mut databases, &log);
    assert!(matches!(applied[1].outcome, Outcome::Command(Err(_))));
    let refused = [2, 4, 5].map(|position: usize| refusal(&applied[position]).is_some());
    assert_eq!(refused, [true, false, true]);
}

#[test]
fn what_was_made_up_before_a_service_was_placed_does_not_outlive_that() {
    let mut log = Log::new();
    log.sql(&[TABLE]).fenced("db@7", &[ROW]).old_plan(1).fenced("db@1", &[ROW]).fenced("db@7", &[ROW]);
    let (_root, mut databases) = with(&Log::new());
    let applied = apply(&mut databases, &log);
    assert_eq!([1, 3, 4].map(|position: usize| refusal(&applied[position]).is_some()), [false, false, true]);
}

/// The files lose power independently: each is at a place of its own then.
#[test]
fn a_file_that_fell_back_judges_as_it_did_whatever_the_other_knows() {
    let mut log = Log::new();
    log.sql(&[TABLE]).old_plan(1).fenced("db@1", &[ROW]).old_plan(2).fenced("db@1", &[ROW]).fenced("db@2", &[ROW]);
    let end = with(&log);
    let expected = contents(end.0.path());
    for cut in 1..log.entries.len() {
        for fell_back in Database::ALL {
            let mut early = log.clone();
            early.entries.truncate(cut);
            let (root, databases) = with(&early);
            drop(databases);
            let (whole, databases) = with(&log);
            drop(databases);
            let file = |root: &Path| writer::file(&Place::from(root).current().unwrap(), fell_back);
            let old = outside(root.path(), fell_back);
            let target = file(whole.path());
            std::fs::remove_file(&target).unwrap();
            for beside in ["-wal", "-shm"] {
                let _ = std::fs::remove_file(format!("{}{beside}", target.display()));
            }
            old.execute("VACUUM INTO ?1", [target.to_str().unwrap()]).unwrap();
            let Opened { mut databases, applied, .. } = Databases::open(whole.path(), b"genesis").unwrap();
            let again = databases.apply(&log.entries[usize::try_from(applied.0).unwrap()..]).unwrap();
            let kept = again.iter().filter_map(|entry| match &entry.outcome {
                Outcome::Sql(outcome) => Some(outcome.refused.is_some() == (entry.index == LogIndex(5))),
                _ => None,
            });
            assert!(kept.into_iter().all(|right| right), "{cut} {fell_back:?}");
            drop(databases);
            let _ = root;
            assert_same_rows(&contents(whole.path()), &expected);
        }
    }
}

/// Root pages aside, which a copy chooses anew.
fn assert_same_rows(one: &str, other: &str) {
    let rows = |text: &str| text.lines().filter(|line| !line.starts_with("==")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(rows(one), rows(other));
}

#[test]
fn a_request_that_is_sent_again_gets_its_answer_although_its_epoch_is_over() {
    let mut log = Log::new();
    log.sql(&[TABLE]).fenced_as(7, "db@1", &[ROW], false).fenced("db@2", &[ROW]).fenced_as(8, "db@1", &[ROW], false);
    log.fenced_as(7, "db@1", &[ROW], false).fenced_as(8, "db@2", &[ROW], false);
    let (root, mut databases) = with(&Log::new());
    let applied = apply(&mut databases, &log);
    assert!(applied[4].repeated && refusal(&applied[4]).is_none());
    assert_eq!((applied[4].done_at, &applied[4].outcome), (LogIndex(2), &applied[1].outcome));
    assert!(applied[5].repeated, "what was refused stays refused, under any epoch");
    assert_eq!(refusal(&applied[5]), refusal(&applied[3]));
    assert_eq!(rows(root.path()), "Integer(2)");
}

#[test]
fn an_epoch_counts_although_its_statements_fail() {
    let failing: [(&str, bool); 3] =
        [("INSERT INTO nowhere VALUES (1)", false), ("SELEC 1", true), ("INSERT OR ROLLBACK INTO u VALUES (1)", true)];
    for (statement, transaction) in failing {
        let mut log = Log::new();
        log.sql(&[TABLE, "CREATE TABLE u (a UNIQUE)", "INSERT INTO u VALUES (1)"]).fenced("db@1", &[ROW]);
        log.fenced_as(1, "db@2", &[statement], transaction).fenced("db@1", &[ROW]);
        let (root, mut databases) = with(&Log::new());
        // In one batch, so that a statement that ends the transaction takes the others with it at first.
        let applied = databases.apply(&log.entries).unwrap();
        assert!(outcome(&applied[2]).results[0].error.is_some(), "{statement}");
        assert_eq!(refusal(&applied[3]).map(|refused| refused.newest), Some(2), "{statement}");
        assert_eq!(rows(root.path()), "Integer(1)");
    }
}

#[test]
fn a_snapshot_and_a_restart_keep_the_fences() {
    let mut log = Log::new();
    log.sql(&[TABLE]).fenced("db@3", &[ROW]).command(&register(1, 1));
    let (root, databases) = with(&log);
    drop(databases);
    let incoming = root.path().join("incoming-1");
    let manifest = snapshot(root.path(), &incoming).unwrap();
    let other = tempfile::tempdir().unwrap();
    drop(open(other.path()));
    std::fs::rename(&incoming, other.path().join("incoming-1")).unwrap();
    install(other.path(), &other.path().join("incoming-1"), &manifest).unwrap();
    log.fenced("db@2", &[ROW]);
    for root in [root.path(), other.path()] {
        let mut databases = open(root);
        assert!(refusal(&apply(&mut databases, &log)[0]).is_some());
    }
    assert!(contents(root.path()) == contents(other.path()));
}

#[test]
fn a_file_of_before_there_were_fences_gets_them() {
    let mut log = Log::new();
    log.sql(&[TABLE]);
    let (root, databases) = with(&log);
    drop(databases);
    let path = writer::file(&Place::from(root.path()).current().unwrap(), Database::Main);
    Connection::open(path).unwrap().execute_batch("DROP TABLE _quorate_fences").unwrap();
    let mut databases = open(root.path());
    log.fenced("db@2", &[ROW]).fenced("db@1", &[ROW]);
    let applied = apply(&mut databases, &log);
    assert_eq!(applied.iter().map(|entry| refusal(entry).is_some()).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn an_entry_whose_fence_is_none_stops_the_node() {
    let mut log = Log::new();
    log.sql(&[TABLE]);
    let (_root, mut databases) = with(&log);
    log.fenced("db@1", &[ROW]);
    let Item::Data(data) = &log.entries[1].item else { panic!("it is data") };
    let envelope = Envelope { fence: "db:1".into(), ..Envelope::read(data.clone()).unwrap() };
    assert_eq!(envelope.version, 2, "a node that knows no fences must not do it");
    let bad = ToApply { item: Item::Data(prost_bytes(&envelope)), ..log.entries[1].clone() };
    let failed = databases.apply(&[bad]).unwrap_err();
    assert!(matches!(failed, ApplyError::Entry { source: EntryError::Fence(_), .. }), "{failed:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whoever writes under any epochs in any order, in any batches: what is done never goes back.
    #[test]
    fn n2_accepted_epochs_never_go_down(
        writes in vec((0..3u8, 1..6u64, 0..24u8, any::<bool>()), 1..40),
        grants in vec((0..40usize, 1..4u64), 0..4),
        splits in vec((1..6usize, any::<bool>()), 1..6),
    ) {
        let mut log = Log::new();
        log.sql(&["CREATE TABLE done (n INTEGER PRIMARY KEY, service TEXT, epoch INTEGER, a UNIQUE ON CONFLICT ROLLBACK)"]);
        // The cluster gives the first service one epoch after another.
        log.command(&Command::CarryOut { expected: LogIndex(0), steps: vec![given("s0", 1)] });
        let mut newest = 1;
        for (position, (service, epoch, id, odd)) in writes.iter().enumerate() {
            for (_, more) in grants.iter().filter(|(at, _)| *at == position) {
                newest += more;
                log.command(&Command::CarryOut { expected: LogIndex(0), steps: vec![given("s0", newest)] });
            }
            let insert = format!("INSERT INTO done (service, epoch, a) VALUES ('s{service}', {epoch}, {})", if *odd { "1" } else { "NULL" });
            log.fenced_as(u128::from(*id), &format!("s{service}@{epoch}"), &[&insert], *odd);
        }
        let (root, mut databases) = with(&Log::new());
        let plain = apply(&mut databases, &log);
        let expected = contents(root.path());
        let done = outside(root.path(), Database::Main);
        let backwards: i64 = done
            .query_row("SELECT count(*) FROM done a JOIN done b USING (service) WHERE a.n < b.n AND a.epoch > b.epoch", [], |row| row.get(0))
            .unwrap();
        prop_assert_eq!(backwards, 0);

        let root = tempfile::tempdir().unwrap();
        let mut databases = open(root.path());
        let (mut rest, mut applied) = (log.entries.as_slice(), Vec::new());
        for (size, reopen) in splits.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (batch, later) = rest.split_at((*size).min(rest.len()));
            rest = later;
            applied.extend(databases.apply(batch).unwrap());
            if *reopen {
                drop(databases);
                databases = open(root.path());
            }
        }
        prop_assert_eq!(plain, applied);
        prop_assert_eq!(expected, contents(root.path()));
    }
}
