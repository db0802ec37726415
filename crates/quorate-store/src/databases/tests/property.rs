//! Random programs in random batches.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn statement() -> impl Strategy<Value = String> {
    let key = 0..8u8;
    let verb = prop_oneof![
        Just("INSERT"),
        Just("INSERT OR IGNORE"),
        Just("INSERT OR REPLACE"),
        Just("INSERT OR FAIL"),
        Just("INSERT OR ROLLBACK"),
    ];
    prop_oneof![
        6 => (verb, key.clone(), key.clone()).prop_map(|(verb, a, b)| format!("{verb} INTO one (a, b) VALUES ({a}, {b}), ({b}, {a})")),
        2 => key.clone().prop_map(|a| format!("INSERT INTO two (x) SELECT a || random() FROM one WHERE b >= {a} ORDER BY random()")),
        2 => (key.clone(), key.clone()).prop_map(|(a, b)| format!("UPDATE one SET a = a + {a} WHERE b = {b} RETURNING a, at")),
        1 => (key.clone(), key.clone()).prop_map(|(a, b)| format!("UPDATE OR REPLACE one SET b = {a} WHERE a % 3 = {b} % 3")),
        2 => key.clone().prop_map(|a| format!("DELETE FROM one WHERE a = {a}")),
        1 => key.clone().prop_map(|a| format!("DELETE FROM two WHERE id % 8 = {a} RETURNING id")),
        1 => key.clone().prop_map(|a| format!("ALTER TABLE two ADD COLUMN c{a} DEFAULT {a}")),
        1 => Just("SELECT *, changes(), last_insert_rowid() FROM two ORDER BY random() LIMIT 2".to_owned()),
        1 => Just("INSERT INTO nowhere VALUES (1)".to_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_program_ends_the_same_in_any_batches(
        program in vec((vec(statement(), 1..4), any::<bool>(), 0..20u8), 1..30),
        splits in vec((1..9usize, any::<bool>()), 1..8),
    ) {
        let mut log = Log::new();
        log.sql(&[
            "CREATE TABLE one (a INTEGER PRIMARY KEY, b UNIQUE CHECK (b < 7), at DEFAULT (strftime('%f', 'now')))",
            "CREATE TABLE two (id INTEGER PRIMARY KEY AUTOINCREMENT, x DEFAULT (random()))",
            "CREATE TRIGGER r AFTER INSERT ON one WHEN NEW.b = 5 BEGIN SELECT RAISE(ROLLBACK, 'five'); END",
            "CREATE TRIGGER w AFTER DELETE ON one BEGIN INSERT INTO two (x) VALUES (hex(randomblob(3))); END",
        ]);
        for (statements, transaction, id) in &program {
            let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
            log.sql_as(u128::from(*id), &statements, *transaction);
        }
        let (root, databases) = with(&Log::new());
        drop(databases);
        let mut databases = open(root.path());
        let plain = apply(&mut databases, &log);
        let expected = contents(root.path());

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
