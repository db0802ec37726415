use super::*;
use expect_test::{Expect, expect};

/// The sample of the plugin's documentation, word for word, as its page prints it: without the
/// braces around the whole, and with the misspelt key.
const SAMPLE: &str = include_str!("sample.txt");

fn check(text: &str, expected: &Expect) {
    let file = Path::new("kuzzlerc");
    let shown = match import(text, file) {
        Err(mistakes) => format!("{mistakes}\n"),
        Ok(import) => {
            let warnings: String = import.warnings.iter().map(|warning| format!("! {warning}\n")).collect();
            format!("{}{warnings}", render(&import, file).unwrap())
        }
    };
    expected.assert_eq(&shown);
}

#[test]
fn z5_the_whole_sample_of_kuzzles_documentation_is_taken_over() {
    check(
        SAMPLE,
        &expect![[r##"
            # Taken over from kuzzlerc by `quorate config import kuzzle`.
            [node]
            link = "tcp://[_site_:ipv4]:7511"

            [cluster]
            minimum_nodes = 1
            timers = { retry_join = 30, discover = "3s", heartbeat = "5s", join_attempt = "2s" }
            ! plugins.cluster.bindings.router (tcp://[_site_:ipv4]:7510): the node link carries both channels on one port, the one of `pub`; nothing listens at this one
            ! plugins.cluster.privileged: Quorate is the cluster and not a plugin of something: it needs no privileges in another server
            ! plugins.cluster.timers.joinAttemptIntervall: misspelt, so Kuzzle never read it; taken for `joinAttemptInterval`, which it was meant to be
            ! plugins.cluster.timers.waitForMissingRooms: this version has no realtime rooms, so nothing waits for one that is missing; keep the value until it has
            ! plugins.common: Quorate calls no plugins, so nothing waits for them: times for pipes are not needed
            ! services.db: Elasticsearch is not needed for the cluster; an application that uses one reaches it as before
            ! services.internalCache: Quorate keeps the cluster's state itself, on its managers: Redis is not needed
            ! services.memoryStorage: Redis is not needed for the cluster; an application that uses one reaches it as before
        "##]],
    );
    let braces = format!("{{\n{SAMPLE}\n}}");
    assert_eq!(import(&braces, Path::new("f")), import(SAMPLE, Path::new("f")));
}

#[test]
fn z5_a_file_with_one_timer_leaves_the_others_at_their_defaults() {
    let text = "{ plugins: { cluster: { timers: { heartbeat: 2000 } } } } // short";
    check(
        text,
        &expect![[r##"
            # Taken over from kuzzlerc by `quorate config import kuzzle`.
            [cluster]
            timers = { heartbeat = "2s" }
        "##]],
    );
    let import = import(text, Path::new("f")).unwrap();
    let file = render(&import, Path::new("f")).unwrap();
    let loaded = read::read(&file, Path::new("f"), &std::collections::BTreeMap::new()).unwrap();
    let timers = loaded.settings.cluster.timers;
    assert_eq!(
        timers,
        quorate_membership::Timers { heartbeat: std::time::Duration::from_secs(2), ..Default::default() }
    );
}

#[test]
fn of_two_spellings_the_right_one_counts() {
    let text = r#"{"plugins":{"cluster":{"timers":{"joinAttemptIntervall":9000,"joinAttemptInterval":1500}}}}"#;
    check(
        text,
        &expect![[r##"
            # Taken over from kuzzlerc by `quorate config import kuzzle`.
            [cluster]
            timers = { join_attempt = "1s500ms" }
            ! plugins.cluster.timers.joinAttemptIntervall: left out, as `joinAttemptInterval` is there too
        "##]],
    );
}

#[test]
fn z4_either_binding_sets_the_node_link() {
    let link = |bindings: &str| {
        let text = format!(r#"{{"plugins":{{"cluster":{{"bindings":{bindings}}}}}}}"#);
        import(&text, Path::new("f"))
            .unwrap()
            .settings
            .into_iter()
            .map(|(path, value, _)| format!("{path} = {value}"))
            .collect::<Vec<_>>()
    };
    assert_eq!(link(r#"{"pub":"tcp://[eth0:ipv4]:7511"}"#), [r#"node.link = "tcp://[eth0:ipv4]:7511""#]);
    assert_eq!(link(r#"{"router":"tcp://[_site_]:7510"}"#), [r#"node.link = "tcp://[_site_]:7510""#]);
    assert_eq!(link("{}"), [""; 0]);
}

#[test]
fn what_cannot_be_taken_over_is_refused_with_its_place() {
    check(
        "{\n  \"plugins\": ,\n}",
        &expect![[r#"
        this is not JSON: a value is missing or is no text, number, list or object (kuzzlerc, line 2, column 14); give Kuzzle's configuration file (.kuzzlerc)
    "#]],
    );
    check(
        "{\"services\": {}}",
        &expect![[r#"
        there is no `plugins.cluster` in this file (kuzzlerc); give the configuration of a Kuzzle with the cluster plugin
    "#]],
    );
    check(
        r#"{"plugins":{"cluster":{"minimumNodes":0,"retryJoin":"x","timers":{"heartbeat":1,"discoverTimeout":-5},"bindings":{"pub":"udp://x"}}}}"#,
        &expect![[r#"
            `plugins.cluster.bindings.pub` cannot be taken over (kuzzlerc): `udp` is not tcp: write tcp://HOST:PORT or HOST:PORT; change it in the file and import it again
            `plugins.cluster.minimumNodes` cannot be taken over (kuzzlerc): 0 is out of range; change it in the file and import it again
            `plugins.cluster.retryJoin` cannot be taken over (kuzzlerc): "x" is not a whole number; change it in the file and import it again
            `plugins.cluster.timers.discoverTimeout` cannot be taken over (kuzzlerc): -5 is not a number of milliseconds; change it in the file and import it again
            `plugins.cluster.timers.heartbeat` cannot be taken over (kuzzlerc): 1ms is out of range; change it in the file and import it again
        "#]],
    );
}
