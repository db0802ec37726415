//! What everybody else notices while somebody guesses passwords.

use crate::access::Guarded;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Other calls, of each kind on each node.
const CALLS: usize = 40;
/// Of the calls, the slowest hundredth aside. Alone they take some milliseconds; this is no measurement of how much
/// longer they take, but nobody may have to wait for a guess after the other.
const SOON: Duration = Duration::from_secs(5);

/// What became of guesses.
#[derive(Default)]
struct Guesses {
    /// The password was compared.
    evaluated: AtomicU32,
    /// The account or the source had to wait.
    throttled: AtomicU32,
    /// Too many were being compared.
    overloaded: AtomicU32,
}

/// reliability.md §5.5, "login guessing": two of those who guess ask each node, one of them at one account, the other
/// at another each time, from another address each time, so that it is not throttled and costs a hash.
#[test]
fn while_passwords_are_guessed_on_every_node_all_other_calls_are_answered_soon() {
    let guarded = Guarded::start(5);
    guarded.create("victim", "admin");
    guarded.create("honest", "admin");
    let nodes = guarded.cluster.names();
    let bearer = guarded.log_in(&nodes[0], "honest");
    let headers = [("Authorization", bearer.as_str())];
    let made = guarded.ask(&nodes[0], "POST", "/v1/db/exec", &headers, &sql("CREATE TABLE t (n INTEGER)")).unwrap();
    assert_eq!(made.status, 200, "{made:?}");

    let (guesses, over) = (Guesses::default(), AtomicBool::new(false));
    let guess = |node: &str, kind: u32, number: u32| {
        let (user, from) = match kind % 2 {
            0 => ("victim".to_owned(), 0x7f05_0000 + number % 200),
            _ => (format!("user{kind}x{number}"), 0x7f06_0000 + kind * 0x1_0000 + number % 0xffff),
        };
        let body = json!({ "user": user, "password": "wrong password", "token": true });
        let from = IpAddr::V4(Ipv4Addr::from(from));
        let answer = guarded.ask_from(from, node, "POST", "/v1/login", &[], &body).unwrap();
        match (answer.status, answer.code()) {
            (401, "wrong-credentials") => &guesses.evaluated,
            (429, "too-many-tries") => &guesses.throttled,
            (503, "overloaded") => &guesses.overloaded,
            _ => panic!("{user}: {answer:?}"),
        }
        .fetch_add(1, Ordering::Relaxed);
    };
    let mut took = Vec::new();
    std::thread::scope(|scope| {
        // They end even if an assertion below fails.
        let _over = SetOnDrop(&over);
        for kind in 0..2 * u32::try_from(nodes.len()).unwrap() {
            let (guess, over, node) = (&guess, &over, &nodes[kind as usize / 2]);
            scope.spawn(move || {
                (0..).take_while(|_| !over.load(Ordering::Relaxed)).for_each(|it| guess(node, kind, it))
            });
        }
        let write = sql("INSERT INTO t VALUES (1)");
        let calls = [
            ("GET", "/v1/status", &Value::Null),
            ("GET", "/v1/services", &Value::Null),
            ("POST", "/v1/db/exec", &write),
        ];
        for _ in 0..CALLS {
            for node in &nodes {
                for (method, path, body) in calls {
                    let began = Instant::now();
                    let answer = guarded.ask(node, method, path, &headers, body);
                    let answer = answer.unwrap_or_else(|| panic!("{method} {path} at {node}: no answer"));
                    assert_eq!(answer.status, 200, "{method} {path} at {node}: {answer:?}");
                    took.push((began.elapsed(), node, path));
                }
            }
        }
    });
    let (evaluated, throttled) = (guesses.evaluated.into_inner(), guesses.throttled.into_inner());
    assert!(evaluated >= 20 && throttled >= 20, "nobody guessed: {evaluated} evaluated, {throttled} throttled");
    took.sort();
    let slowest = &took[took.len() * 99 / 100..];
    assert!(slowest[0].0 < SOON, "{slowest:?} with {evaluated} guesses evaluated, {throttled} throttled");
    // Every write is there, once.
    let count = json!({ "sql": "SELECT count(*) FROM t", "consistency": "linearizable" });
    let count = guarded.ask(&nodes[1], "POST", "/v1/db/query", &headers, &count).unwrap();
    assert_eq!(count.body["results"][0]["rows"], json!([[CALLS * nodes.len()]]), "{count:?}");
    guarded.log_in(&nodes[2], "honest");
}

fn sql(text: &str) -> Value {
    json!({ "sql": text })
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
