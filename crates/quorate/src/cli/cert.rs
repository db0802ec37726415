//! `quorate cert`: what nodes prove themselves with, and a new authority for all of them.

use crate::cli::Context;
use crate::cli::failure::Failure;
use crate::cli::screen::{self, moment};
use crate::cli::service::confirm;
use clap::Subcommand;
use quorate_api::certificates::{CertificatesView, KeyView};
use quorate_api::view::{JoinTokenView, NodeState, NodeView};
use quorate_model::time::WallTime;
use quorate_model::trust::{KeyKind, Stage};
use serde_json::{Value, json};
use ureq::http::Method;

#[derive(Debug, Subcommand)]
pub(crate) enum CertCommand {
    /// The CA, every node's certificate, and what to do about them
    #[command(after_help = "Examples:\n  quorate cert show\n  quorate cert show -o json")]
    Show,
    /// Make a new CA and let it take over, step by step, while the cluster serves
    #[command(after_help = "Examples:\n  quorate cert rotate --plan\n  quorate cert rotate --yes")]
    Rotate {
        /// Only say what would be done
        #[arg(long)]
        plan: bool,
        /// Ask nothing
        #[arg(short, long)]
        yes: bool,
    },
}

pub(crate) fn run(context: &Context, command: CertCommand) -> Result<(), Failure> {
    let client = context.client()?;
    match command {
        CertCommand::Show => {
            let view: CertificatesView = client.get("/v1/certificates")?;
            let wide = context.screen.is_wide();
            context.show(&view, |view| describe(view, wide))
        }
        CertCommand::Rotate { plan, yes } => {
            let nodes: Vec<NodeView> = client.get("/v1/nodes")?;
            let tokens: Vec<JoinTokenView> = client.get("/v1/join-tokens").unwrap_or_default();
            let waiting = tokens.iter().filter(|token| token.used_by.is_none()).count();
            let away: Vec<&str> =
                nodes.iter().filter(|node| node.state != NodeState::Joined).map(|node| node.name.as_str()).collect();
            let steps = steps(nodes.len(), &away, waiting);
            if plan {
                let value = json!({ "steps": steps, "nodes": nodes.len(), "away": away, "join_tokens": waiting });
                return context.show(&value, |_| numbered(&steps));
            }
            if !yes {
                context.screen.say(&numbered(&steps));
                confirm(context.screen, "Make a new CA for this cluster? [y/N] ", false)?;
            }
            let done: Value = client.change(Method::POST, "/v1/certificates/rotation", None::<&()>)?.json()?;
            context.done(&done, "✔ a new CA takes over; `quorate cert show` tells how far it is")
        }
    }
}

fn steps(nodes: usize, away: &[&str], tokens: usize) -> Vec<String> {
    let mut steps = vec![
        format!("a new CA is made, its key given to the managers, its certificate to all {nodes} nodes"),
        "when each has it: it signs, and every node gets a new certificate".to_owned(),
        "when each has that: the old CA is not believed any more".to_owned(),
    ];
    if tokens > 0 {
        steps.push(format!("{tokens} join tokens that wait end with step 2: make new ones then"));
    }
    steps.push("give the new fingerprint to those who use --ca-pin, as `quorate cert show` prints it".to_owned());
    if !away.is_empty() {
        let away = away.join(", ");
        steps.push(format!(
            "{away} away: waited for until ten minutes after they went; then they miss it, and have to join anew"
        ));
    }
    steps
}

fn numbered(steps: &[String]) -> String {
    let lines = (1..).zip(steps).map(|(number, step)| format!("{number}. {step}"));
    lines.collect::<Vec<_>>().join("\n")
}

fn describe(view: &CertificatesView, wide: bool) -> String {
    let short = |text: &str| if wide { text.to_owned() } else { text.chars().take(16).collect() };
    let day = |at: Option<WallTime>| at.map_or("-".into(), |at| moment(at, false));
    let authorities = view.authorities.iter().map(|ca| {
        let signs = if ca.signs { "signs" } else { "is believed" };
        vec![ca.fingerprint.clone(), day(Some(ca.from)), day(Some(ca.until)), signs.to_owned()]
    });
    let nodes = view.nodes.iter().map(|node| {
        let print = |text: &Option<String>| text.as_deref().map_or("-".into(), short);
        vec![
            node.name.clone(),
            print(&node.fingerprint),
            print(&node.authority),
            day(node.from),
            day(node.until),
            node.next.clone(),
        ]
    });
    let mut parts = vec![
        screen::table(&["CA", "FROM", "UNTIL", ""], &[], authorities),
        screen::table(&["NODE", "CERTIFICATE", "CA", "FROM", "UNTIL", "NEXT"], &[], nodes),
    ];
    let changes: Vec<String> = view.keys.iter().filter_map(change).collect();
    if !changes.is_empty() {
        parts.push(changes.join("\n"));
    }
    if !view.next.is_empty() {
        parts.push(view.next.iter().map(|next| format!("! {next}")).collect::<Vec<_>>().join("\n"));
    }
    parts.join("\n\n")
}

/// How far a change is, in a line. Nothing for a key that is just in use.
fn change(key: &KeyView) -> Option<String> {
    let what = match key.key {
        KeyKind::Authority => format!("CA {}", key.number),
        KeyKind::Secrets => format!("key {} of secrets", key.number),
    };
    let step = match (key.stage, key.key) {
        (Stage::Spread, _) => "step 1 of 3: it is given to every node that needs it",
        (Stage::Use, KeyKind::Authority) => "step 2 of 3: it signs, and certificates are made anew",
        (Stage::Use, _) => "step 2 of 3: it seals, and what is sealed is sealed anew",
        (Stage::Drop, _) => "step 3 of 3: the one before is forgotten",
        (Stage::Done, _) if key.behind.is_empty() => return None,
        (Stage::Done, _) => "it is the only one",
    };
    let mut line = format!("{what}, {step}");
    if !key.waits_for.is_empty() {
        line.push_str(&format!("; waits for {}", key.waits_for.join(", ")));
    }
    if !key.behind.is_empty() {
        line.push_str(&format!("; without {}, away for too long", key.behind.join(", ")));
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use quorate_api::certificates::{AuthorityView, NodeCertificateView};
    use quorate_model::id::NodeId;

    const DAY: u64 = 86_400_000_000;

    fn key(stage: Stage) -> KeyView {
        KeyView {
            key: KeyKind::Authority,
            number: 2,
            stage,
            since: WallTime(1),
            waits_for: vec!["n2".into()],
            behind: Vec::new(),
            exposed_by: None,
        }
    }

    #[test]
    fn a_rotation_is_shown_with_its_step_and_who_is_waited_for() {
        let authority = |digit: &str, signs| AuthorityView {
            fingerprint: digit.repeat(64),
            from: WallTime(0),
            until: WallTime(7_300 * DAY),
            signs,
        };
        let view = CertificatesView {
            authorities: vec![authority("a", false), authority("b", true)],
            nodes: vec![NodeCertificateView {
                node: NodeId::from_u128(1),
                name: "n1".into(),
                fingerprint: Some("c".repeat(64)),
                authority: Some("b".repeat(64)),
                from: Some(WallTime(0)),
                until: Some(WallTime(30 * DAY)),
                next: "renewed by itself before 1970-01-25 00:00:00Z".into(),
            }],
            keys: vec![key(Stage::Use)],
            next: vec!["do this".into()],
        };
        let text: Vec<String> = describe(&view, false).lines().map(|line| line.trim_end().to_owned()).collect();
        expect![[r#"
            CA                                                                FROM                  UNTIL
            aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa  1970-01-01 00:00:00Z  1989-12-27 00:00:00Z  is believed
            bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb  1970-01-01 00:00:00Z  1989-12-27 00:00:00Z  signs

            NODE  CERTIFICATE       CA                FROM                  UNTIL                 NEXT
            n1    cccccccccccccccc  bbbbbbbbbbbbbbbb  1970-01-01 00:00:00Z  1970-01-31 00:00:00Z  renewed by itself before 1970-01-25 00:00:00Z

            CA 2, step 2 of 3: it signs, and certificates are made anew; waits for n2

            ! do this"#]]
        .assert_eq(&text.join("\n"));
        assert_eq!(change(&KeyView { waits_for: Vec::new(), ..key(Stage::Done) }), None);
        let behind = KeyView { waits_for: Vec::new(), behind: vec!["n3".into()], ..key(Stage::Done) };
        assert_eq!(change(&behind).unwrap(), "CA 2, it is the only one; without n3, away for too long");
    }

    #[test]
    fn a_plan_names_who_is_away_and_what_ends() {
        expect![[r#"
            1. a new CA is made, its key given to the managers, its certificate to all 3 nodes
            2. when each has it: it signs, and every node gets a new certificate
            3. when each has that: the old CA is not believed any more
            4. 1 join tokens that wait end with step 2: make new ones then
            5. give the new fingerprint to those who use --ca-pin, as `quorate cert show` prints it
            6. n3 away: waited for until ten minutes after they went; then they miss it, and have to join anew"#]]
        .assert_eq(&numbered(&steps(3, &["n3"], 1)));
    }
}
