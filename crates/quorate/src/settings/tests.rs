use super::keys::KEYS;
use super::*;
use expect_test::{Expect, expect};

fn environment(variables: &[(&str, &str)]) -> BTreeMap<String, String> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn read(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, Mistakes> {
    read::read(text, Path::new("quorate.toml"), &environment(variables))
}

/// The mistakes as a person sees them.
fn mistakes(text: &str, variables: &[(&str, &str)], expected: &Expect) {
    let mistakes = read(text, variables).unwrap_err();
    let lines: Vec<String> = mistakes.0.iter().map(|mistake| format!("{}: {mistake}", mistake.code)).collect();
    expected.assert_eq(&lines.join("\n"));
}

#[test]
fn an_empty_file_and_no_file_at_the_default_place_are_the_defaults() {
    let loaded = read("", &[]).unwrap();
    assert_eq!(loaded, Loaded { settings: Settings::default(), origins: BTreeMap::new() });
    assert_eq!(loaded.origin("node.name"), Origin::Default);
    let missing = Source { file: Some("/nowhere/quorate.toml".into()), environment: BTreeMap::new() };
    assert_eq!(missing.load().unwrap_err().0[0].code, "config-unreadable");
}

#[test]
fn every_default_is_a_value_that_its_setting_takes() {
    let defaults = Settings::default();
    for key in KEYS {
        let mut settings = defaults.clone();
        if let Some(value) = key.get(&defaults) {
            key.set(&mut settings, value).unwrap();
        }
        assert_eq!(settings, defaults, "{}", key.path);
        assert!(key.about.ends_with('.') && key.about.len() > 20, "{}: {}", key.path, key.about);
    }
}

#[test]
fn the_environment_goes_before_the_file_and_the_file_before_the_default() {
    let text =
        "[cluster]\nseed = \"10.0.0.1\"\nminimum_nodes = 2\ntimers = { heartbeat = \"5s\" }\n[cluster.timers2]\n";
    let text = text.replace("[cluster.timers2]\n", "");
    let variables = [("QUORATE_SEED", "core-1:7000,core-2"), ("QUORATE_CLUSTER_TIMERS_RETRY_JOIN", "3")];
    let loaded = read(&text, &variables).unwrap();
    let cluster = &loaded.settings.cluster;
    let seeds: Vec<String> = cluster.seed.iter().map(ToString::to_string).collect();
    assert_eq!(seeds, ["core-1:7000", "core-2:7000"]);
    assert_eq!(
        (cluster.minimum_nodes, cluster.timers.heartbeat, cluster.timers.retry_join),
        (2, Duration::from_secs(5), 3)
    );
    let origin = |path| loaded.origin(path).to_string();
    assert_eq!(origin("cluster.seed"), "QUORATE_SEED");
    assert_eq!(origin("cluster.minimum_nodes"), "quorate.toml:3");
    assert_eq!(origin("cluster.timers.heartbeat"), "quorate.toml:4");
    assert_eq!(origin("cluster.timers.retry_join"), "QUORATE_CLUSTER_TIMERS_RETRY_JOIN");
    assert_eq!(origin("cluster.timers.discover"), "default");
    let both = [("QUORATE_SEED", "short"), ("QUORATE_CLUSTER_SEED", "long")];
    assert_eq!(read("", &both).unwrap().settings.cluster.seed[0].host, "long");
}

#[test]
fn timers_may_be_a_section_or_a_table_in_one_line() {
    let one = read("[cluster]\ntimers = { discover = \"4s\", retry_join = 2 }", &[]).unwrap();
    let other = read("[cluster.timers]\ndiscover = \"4s\"\nretry_join = 2", &[]).unwrap();
    assert_eq!(one.settings, other.settings);
}

#[test]
fn an_unknown_key_is_an_error_with_what_was_meant() {
    mistakes(
        "name = \"n1\"\n[cluster]\nminimum_node = 2\nminimumNodes = 2\n[nod]\n[cluster.timer]\n[cluster.timers]\nhearbeat = \"1s\"\nwait = \"1s\"\n",
        &[],
        &expect![[r#"
            config-unknown-key: unknown key `name` (quorate.toml, line 1, column 1); did you mean `node.name`?
            config-unknown-key: unknown key `minimum_node` in [cluster] (quorate.toml, line 3, column 1); did you mean `minimum_nodes`?
            config-unknown-key: unknown key `minimumNodes` in [cluster] (quorate.toml, line 4, column 1); did you mean `minimum_nodes`?
            config-unknown-key: unknown key `nod` (quorate.toml, line 5, column 2); did you mean `node`?
            config-unknown-key: unknown key `timer` in [cluster] (quorate.toml, line 6, column 10); did you mean `timers`?
            config-unknown-key: unknown key `hearbeat` in [cluster.timers] (quorate.toml, line 8, column 1); did you mean `heartbeat`?
            config-unknown-key: unknown key `wait` in [cluster.timers] (quorate.toml, line 9, column 1); there is heartbeat, discover, join_attempt, retry_join"#]],
    );
    mistakes(
        "",
        &[("QUORATE_CLUSTER_SEEDS", "a"), ("QUORATE_LOG_COLOUR", "red")],
        &expect![[r#"
            config-unknown-key: there is no setting of that name (environment variable QUORATE_CLUSTER_SEEDS); did you mean QUORATE_CLUSTER_SEED?
            config-unknown-key: there is no setting of that name (environment variable QUORATE_LOG_COLOUR); take it away; `quorate config show` lists every setting"#]],
    );
    // What a replica is told about itself must not stop a command in it.
    read("", &[("QUORATE_NODE_ID", "x"), ("QUORATE_NODE", "n1"), ("QUORATE_SERVER", "http://n1"), ("LANG", "C")])
        .unwrap();
}

#[test]
fn every_mistake_is_named_at_once_with_its_place() {
    mistakes(
        "[node]\nname = \"-n1\"\nroles = [\"managre\"]\ndata_dir = \"data\"\nlisten = \"eth0:0\"\n\
         [cluster]\nminimum_nodes = 0\n  seed = [\"10.0.0.300:7000\", 1]\ntimers = { heartbeat = \"5\", retry_join = \"x\" }\n\
         [ha]\nfailover_time = \"5s\"\nenabled = 1\n\
         [console]\nredirect = \"activ\"\nbalancer_url = \"lb\"\n\
         [log]\nlevel = \"inof\"\nformat = 3\n",
        &[("QUORATE_HA_ENABLED", "perhaps")],
        &expect![[r#"
            config-bad-value: `node.name` has a value that it cannot have (quorate.toml, line 2, column 1): `-n1` is not such a name; it takes: 1 to 63 letters, digits, `-`, `_` or `.`, with none of these three at its ends
            config-bad-value: `node.roles` has a value that it cannot have (quorate.toml, line 3, column 1): there is no `managre`; did you mean "manager"?; it takes: `manager`, `worker` or `gateway`, or a list of them
            config-bad-value: `node.data_dir` has a value that it cannot have (quorate.toml, line 4, column 1): `data` is not an absolute path; it takes: absolute path
            config-bad-value: `node.listen` has a value that it cannot have (quorate.toml, line 5, column 1): `0` is not a port: give 1 to 65535; it takes: an address, `_site_` or the name of an interface, with or without a port
            config-bad-value: `cluster.minimum_nodes` has a value that it cannot have (quorate.toml, line 7, column 1): 0 is out of range; it takes: whole number, 1 to 1000
            config-bad-value: `cluster.seed` has a value that it cannot have (quorate.toml, line 8, column 3): it is a list with other things than text in quotes; it takes: HOST:PORT with a name or an address, or a list of them
            config-bad-value: `cluster.timers.heartbeat` has a value that it cannot have (quorate.toml, line 9, column 12): `5` is not a time span: write a number with its unit, like 250ms, 10s or 1m30s; it takes: time span, `100ms` to `1m`
            config-bad-value: `cluster.timers.retry_join` has a value that it cannot have (quorate.toml, line 9, column 29): it is text; it takes: whole number, 1 to 10000
            config-bad-value: `ha.failover_time` has a value that it cannot have (quorate.toml, line 11, column 1): 5s is out of range; it takes: time span, `10s` to `5m`
            config-bad-value: `ha.enabled` has a value that it cannot have (quorate.toml, line 12, column 1): it is a number; it takes: `true` or `false`
            config-bad-value: `console.redirect` has a value that it cannot have (quorate.toml, line 14, column 1): there is no `activ`; did you mean "active"?; it takes: `active`, `balancer`, `off`
            config-bad-value: `console.balancer_url` has a value that it cannot have (quorate.toml, line 15, column 1): `lb` is not a URL like https://console.example.com; it takes: URL with http or https
            config-bad-value: `log.level` has a value that it cannot have (quorate.toml, line 17, column 1): there is no level `inof`; it takes: `error`, `warn`, `info`, `debug`, `trace`, or a filter like `info,quorate_node=debug`
            config-bad-value: `log.format` has a value that it cannot have (quorate.toml, line 18, column 1): it is a number; it takes: `text`, `json`
            config-bad-value: `ha.enabled` has a value that it cannot have (environment variable QUORATE_HA_ENABLED): `perhaps` is neither `true` nor `false`; it takes: `true` or `false`"#]],
    );
}

#[test]
fn what_is_not_toml_is_named_with_line_and_column() {
    mistakes(
        "[cluster]\nseed = \n",
        &[],
        &expect![
            "config-syntax: this is not TOML: string values must be quoted, expected literal string (quorate.toml, line 2, column 8); correct the line; the others were not looked at"
        ],
    );
    mistakes(
        "node = 1\n",
        &[],
        &expect![
            "config-bad-value: `node` is a section, not a value (quorate.toml, line 1, column 1); write it as a section, [node]"
        ],
    );
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    mistakes(
        "[console]\nredirect = \"balancer\"\n[node]\nlink = \"0.0.0.0:7000\"\n",
        &[],
        &expect![[r#"
        config-contradiction: `console.redirect` is "balancer" and there is no balancer (quorate.toml, line 2, column 1); set `console.balancer_url`, or redirect to "active"
        config-contradiction: the API and the node link cannot both listen at 0.0.0.0:7000 (quorate.toml, line 4, column 1); give `node.link` another port"#]],
    );
}

#[test]
fn a_bad_value_in_the_environment_names_the_variable() {
    mistakes(
        "",
        &[("QUORATE_CLUSTER_MINIMUM_NODES", "two"), ("QUORATE_LOG", "loud")],
        &expect![[r#"
            config-bad-value: `log.level` has a value that it cannot have (environment variable QUORATE_LOG): there is no level `loud`; it takes: `error`, `warn`, `info`, `debug`, `trace`, or a filter like `info,quorate_node=debug`
            config-bad-value: `cluster.minimum_nodes` has a value that it cannot have (environment variable QUORATE_CLUSTER_MINIMUM_NODES): `two` is not a whole number; it takes: whole number, 1 to 1000"#]],
    );
}

#[test]
fn d2_a_seed_is_a_name_or_an_address_one_or_a_list() {
    let seeds = |text: &str| {
        let loaded = read(text, &[]).unwrap();
        loaded.settings.cluster.seed.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(seeds("[cluster]\nseed = \"192.168.1.100:7000\""), ["192.168.1.100:7000"]);
    assert_eq!(
        seeds("[cluster]\nseed = [\"core-1.example.com\", \"[fd00::1]:7100\", \"fd00::2\", \"cm\"]"),
        ["core-1.example.com:7000", "[fd00::1]:7100", "[fd00::2]:7000", "cm:7000"]
    );
    for bad in ["", ":7000", "cm:0", "cm:70000", "http://cm:7000", "a b", "1.2.3"] {
        assert!(bad.parse::<Seed>().is_err(), "{bad}");
    }
}

fn machine() -> Vec<Interface> {
    let interface = |name: &str, index, address: &str| Interface {
        name: name.into(),
        index,
        addresses: vec![address.parse().unwrap()],
    };
    vec![interface("lo", 1, "127.0.0.1"), interface("eth0", 2, "192.168.1.51"), interface("eth1", 3, "10.0.0.7")]
}

#[test]
fn one_address_is_enough_to_configure() {
    let addresses = |text: &str| {
        let found = read(text, &[]).unwrap().settings.node.addresses(&machine()).unwrap();
        let show = |bound: &Bound| format!("{} as {}", bound.listen, bound.advertise);
        [show(&found.api), show(&found.link)]
    };
    assert_eq!(addresses(""), ["0.0.0.0:7000 as 192.168.1.51:7000", "0.0.0.0:7001 as 192.168.1.51:7001"]);
    assert_eq!(
        addresses("[node]\nadvertise = \"eth1\""),
        ["0.0.0.0:7000 as 10.0.0.7:7000", "0.0.0.0:7001 as 10.0.0.7:7001"]
    );
    assert_eq!(
        addresses("[node]\nlisten = \"eth0:7100\"\nlink = \"tcp://[eth1:ipv4]:7511\""),
        ["192.168.1.51:7100 as 192.168.1.51:7100", "10.0.0.7:7511 as 10.0.0.7:7511"]
    );
    let nowhere = read("[node]\nadvertise = \"eth9\"", &[]).unwrap().settings.node.addresses(&machine());
    assert_eq!(nowhere.unwrap_err().to_string(), "this machine has no interface `eth9`; it has lo, eth0, eth1");
}

/// The page of the documentation, made from the table.
fn page() -> String {
    let mut page = String::from(HEAD);
    for section in keys::sections() {
        page.push_str(&format!(
            "\n## [{section}]\n| key | takes | default | applies | meaning |\n|---|---|---|---|---|\n"
        ));
        let prefix = format!("{section}.");
        for key in KEYS.iter().filter(|key| key.path.starts_with(&prefix)) {
            let default = key.get(&Settings::default()).map_or_else(|| "–".to_owned(), |value| format!("`{value}`"));
            let short = key.short_variable().map_or_else(String::new, |variable| format!(" Also `{variable}`."));
            page.push_str(&format!(
                "| `{}` | {} | {default} | {} | {}{short} |\n",
                &key.path[prefix.len()..],
                key.kind.describe(),
                key.applies.words(),
                key.about,
            ));
        }
    }
    page.push_str(TAIL);
    page
}

const HEAD: &str = "\
# quorate.toml
What an operator sets on a server, in `/etc/quorate/quorate.toml`; `--config FILE` or `QUORATE_CONFIG` names another file. An empty file is valid, and so is none at the default place. An unknown key is an error that says what was probably meant.

A variable of the environment goes before the file: `QUORATE_` and the key in capitals with `_` for each dot, like `QUORATE_CLUSTER_MINIMUM_NODES`; lists have commas. `quorate config show --origin` says where each value comes from.

**applies** says when a changed value is in force. *live*: after `systemctl reload quorate` (SIGHUP); a file with a mistake then changes nothing, and the log says what is wrong with it. *restart*: after a restart of the server, which leaves its services running. *join*: when the node is created or joins; afterwards the cluster knows it, and its commands change it.

Time spans have units: `250ms`, `10s`, `1m30s`, `2h`.
";

const TAIL: &str = "
## Addresses
Wherever an address of this machine is configured, it can be written as

| written | listens at | is announced as |
|---|---|---|
| `192.168.1.51:7000`, `[fd00::51]:7000` | that address | that address |
| `eth0`, `eth0:ipv6`, `[eth0:ipv4]:7000` | the first address of the interface, IPv4 unless it says `ipv6` | the same |
| `_site_`, `_site_:ipv6` | the first public address of the family in the order of the interfaces; if there is none, the first private one | the same |
| `0.0.0.0`, `[::]:7000` | every address | `_site_` of that family |

`tcp://` may stand before it and brackets around the host, as in Kuzzle's bindings: `tcp://[_site_:ipv4]:7511`. Loopback and link-local addresses are never chosen, only used when they are written. `quorate config show` says which address was chosen, and why.

## Commands
```
quorate config show [KEY] [--origin]     every setting, or one, or one section
quorate config validate [FILE]           all mistakes at once, with line and column
quorate config diff [FILE]               what FILE would change; without it, what is not the default
quorate config set KEY=VALUE ...         changes the file and keeps its comments; --plan only shows
quorate config unset KEY ...
quorate config import kuzzle FILE        what a Kuzzle configuration becomes; --write puts it into the file
```
Nothing bad is ever written: the new text is read before it takes the old one's place, in one step.

## Coming from Kuzzle
`quorate config import kuzzle .kuzzlerc` takes over `plugins.cluster`; comments and missing outer braces do not matter. Keys that the file does not have keep the defaults above, one by one.

| Kuzzle | here |
|---|---|
| `bindings.pub`, else `bindings.router` | `node.link`: one port carries both channels |
| `minimumNodes` | `cluster.minimum_nodes` |
| `retryJoin` | `cluster.timers.retry_join` |
| `timers.discoverTimeout` | `cluster.timers.discover` |
| `timers.joinAttemptInterval`, and the misspelt `joinAttemptIntervall` | `cluster.timers.join_attempt` |
| `timers.heartbeat` | `cluster.timers.heartbeat` |

Everything else is named with what replaces it. Load balancers that ask `/_plugin/cluster/health` (200 `ok`, else 404 `ko`) and `/_plugin/cluster/status` get the answers they know, on the API's port. `/v1/health` says the same with 200 or 503 and the reason; `/v1/health?quorum=1` is 200 only while writes are possible, too.

Source: `crates/quorate/src/settings/keys.rs`, from which a test makes this page.
";

#[test]
fn the_page_of_the_documentation_says_what_the_table_says() {
    expect_test::expect_file!["../../../../docs/reference/config.md"].assert_eq(&page());
}
