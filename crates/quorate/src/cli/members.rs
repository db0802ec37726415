//! Who belongs to the cluster: `add-node`, `leave`, `node …`, `cluster quota`.
//!
//! Join tokens are under `node` and not under `token`, which are the tokens of programs: the one kind
//! lets a server in, the other a client.

use crate::cli::client::Client;
use crate::cli::failure::{Exit, Failure};
use crate::cli::join::RoleArg;
use crate::cli::placement::{self, DrainArgs, LabelArgs};
use crate::cli::screen::{self, moment, wall_now};
use crate::cli::{Context, service, status};
use clap::{Args, Subcommand};
use quorate_api::failover::FailoverTime;
use quorate_api::members::{Invite, Invited, Leaving};
use quorate_api::view::{JoinTokenView, NodeState, NodeView, QuotaView, Standing};
use quorate_model::state::Role;
use quorate_model::time::{Span, WallTime};
use serde_json::json;
use ureq::http::Method;

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// All nodes with their state
    #[command(
        after_help = "Examples:\n  quorate node list\n  quorate node list -o json\n  quorate node list --explain"
    )]
    List {
        /// Show how many managers may be lost, for any number of them
        #[arg(long)]
        explain: bool,
    },
    /// One node
    #[command(after_help = "Examples:\n  quorate node show n2\n  quorate node show 3f20")]
    Show {
        /// Name, id, or how the id begins
        node: String,
    },
    /// Give a node another name for people; without one, take it away
    #[command(after_help = "Examples:\n  quorate node alias n2 msk-2\n  quorate node alias n2")]
    Alias {
        /// Name, id, or how the id begins
        node: String,
        /// At most 63 characters
        alias: Option<String>,
    },
    /// Say what a node does
    #[command(after_help = "Examples:\n  quorate node roles n4 worker gateway")]
    Roles {
        /// Name, id, or how the id begins
        node: String,
        /// One or more of manager, worker, gateway
        #[arg(required = true, value_enum)]
        roles: Vec<RoleArg>,
    },
    /// Say something of a node, for services to be placed by
    #[command(after_help = "Examples:\n  quorate node label n2 zone=a disk=ssd\n  quorate node label n2 disk-")]
    Label(LabelArgs),
    /// Give a node no more replicas; those that it has stay
    #[command(after_help = "Examples:\n  quorate node cordon n2")]
    Cordon {
        /// Name, id, or how the id begins
        node: String,
    },
    /// Bring a node's replicas elsewhere, each once its successor is healthy, and give it no more
    #[command(after_help = "Examples:\n  quorate node drain n2\n  quorate node drain n2 --deadline 10m --no-wait")]
    Drain(DrainArgs),
    /// Let a node that was drained or cordoned take replicas again
    #[command(visible_alias = "uncordon", after_help = "Examples:\n  quorate node undrain n2")]
    Undrain {
        /// Name, id, or how the id begins
        node: String,
    },
    /// Remove a node for ever: it is let in nowhere any more, and its id is never used again
    #[command(after_help = "Examples:\n  quorate node remove n2 --yes")]
    Remove {
        /// Name, id, or how the id begins
        node: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Say that a node has no power or is destroyed, so that what it would go on with may start elsewhere
    #[command(after_help = "Examples:\n  quorate node confirm-dead n2")]
    ConfirmDead {
        /// Name, id, or how the id begins
        node: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// The join tokens that wait, were used or expired lately
    #[command(after_help = "Examples:\n  quorate node tokens")]
    Tokens,
    /// Make a join token useless
    #[command(after_help = "Examples:\n  quorate node revoke 7f1de2d3")]
    Revoke {
        /// Id of the token, or how it begins
        token: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AddNodeArgs {
    /// What the server becomes
    #[arg(long, value_enum, default_value = "manager")]
    role: RoleArg,
    /// How long the token may be used; at most 24h
    #[arg(long, value_name = "SPAN", default_value = "1h")]
    ttl: Span,
    /// Only a server of this name may use it
    #[arg(long)]
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LeaveArgs {
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show how many nodes may run, or set it; `none` is any number
    #[command(
        after_help = "Examples:\n  quorate cluster quota\n  quorate cluster quota 5\n  quorate cluster quota 5 --expires 2027-01-01T00:00:00Z\n  quorate cluster quota none"
    )]
    Quota {
        /// Workers and gateways; a node that is both counts once
        #[arg(value_name = "N|none")]
        nodes: Option<String>,
        /// From then on no node is let in; those that run go on
        #[arg(long, value_name = "TIME", requires = "nodes")]
        expires: Option<jiff::Timestamp>,
    },
    /// Show or set how long a node may be away before what ran there runs elsewhere
    #[command(
        after_help = "Examples:\n  quorate cluster failover\n  quorate cluster failover 20s\n  quorate cluster failover default"
    )]
    Failover {
        /// 10s to 300s; a service's own `failover` counts for more
        #[arg(value_name = "SPAN|default")]
        span: Option<String>,
    },
}

pub(crate) fn node(context: &Context, command: NodeCommand) -> Result<(), Failure> {
    match command {
        NodeCommand::List { explain } => status::list_nodes(context, explain),
        NodeCommand::Show { node } => {
            let view: NodeView = context.client()?.get(&format!("/v1/nodes/{}", in_path(&node)))?;
            context.show(&view, describe)
        }
        NodeCommand::Alias { node, alias } => {
            let path = format!("/v1/nodes/{}/alias", in_path(&node));
            let view: NodeView =
                context.client()?.change(Method::PUT, &path, Some(&json!({ "alias": alias })))?.json()?;
            let text = match &view.alias {
                Some(alias) => format!("✔ {} is called {alias}", view.name),
                None => format!("✔ {} has no alias", view.name),
            };
            context.done(&view, &text)
        }
        NodeCommand::Roles { node, roles } => {
            let roles: Vec<Role> = roles.into_iter().map(Role::from).collect();
            let path = format!("/v1/nodes/{}/roles", in_path(&node));
            let view: NodeView =
                context.client()?.change(Method::PUT, &path, Some(&json!({ "roles": roles })))?.json()?;
            context.done(&view, &format!("✔ {} is {}", view.name, words(view.roles.iter())))
        }
        NodeCommand::Label(args) => placement::label(context, &args),
        NodeCommand::Cordon { node } => placement::cordon(context, &node),
        NodeCommand::Drain(args) => placement::drain(context, &args),
        NodeCommand::Undrain { node } => placement::undrain(context, &node),
        NodeCommand::Remove { node, yes } => remove(context, &node, yes),
        NodeCommand::ConfirmDead { node, yes } => confirm_dead(context, &node, yes),
        NodeCommand::Tokens => {
            let tokens: Vec<JoinTokenView> = context.client()?.get("/v1/join-tokens")?;
            context.show(&tokens, |tokens| tokens_table(tokens, wall_now()))
        }
        NodeCommand::Revoke { token } => {
            let path = format!("/v1/join-tokens/{}", in_path(&token));
            let done: serde_json::Value = context.client()?.change(Method::DELETE, &path, None::<&()>)?.json()?;
            context.done(&done, &format!("✔ join token {token} is useless now"))
        }
    }
}

fn remove(context: &Context, node: &str, yes: bool) -> Result<(), Failure> {
    let client = context.client()?;
    let view: NodeView = client.get(&format!("/v1/nodes/{}", in_path(node)))?;
    if !yes {
        service::confirm(context.screen, &format!("Remove {} ({}) for ever? [y/N] ", view.name, view.id), false)?;
    }
    let done: serde_json::Value =
        client.change(Method::DELETE, &format!("/v1/nodes/{}", view.id), None::<&()>)?.json()?;
    context.done(&done, &format!("✔ {} is removed; its id is never used again", view.name))
}

fn confirm_dead(context: &Context, node: &str, yes: bool) -> Result<(), Failure> {
    let client = context.client()?;
    let view: NodeView = client.get(&format!("/v1/nodes/{}", in_path(node)))?;
    if !yes {
        let question = format!(
            "If {} runs on, two copies of its services will run. Has it no power, or is it destroyed? [y/N] ",
            view.name
        );
        service::confirm(context.screen, &question, false)?;
    }
    let path = format!("/v1/nodes/{}/confirm-dead", view.id);
    let view: NodeView = client.change(Method::POST, &path, None::<&()>)?.json()?;
    context.done(&view, &format!("✔ {} counts as dead: what it kept may start elsewhere", view.name))
}

pub(crate) fn add_node(context: &Context, args: &AddNodeArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let wish = Invite { role: args.role.into(), ttl: args.ttl, name: args.name.clone() };
    let invited = match invite(&client, &wish) {
        // The first node that was asked did it and could not say so: its token is lost, and expires.
        Err(failure) if failure.code == "token-made-before" => invite(&client, &wish)?,
        invited => invited?,
    };
    context.show(&invited, |invited| {
        let commands: String = invited.commands.iter().map(|command| format!("  sudo {command}\n")).collect();
        let role = match args.role {
            RoleArg::Manager => "role manager; --role worker|gateway for others".to_owned(),
            other => format!("role {}", format!("{other:?}").to_lowercase()),
        };
        format!(
            "From the node you wish to join to this cluster, run the following:\n{commands}\
             The token works once and expires in {} ({role}). Join servers one at a time.",
            spaced(args.ttl)
        )
    })
}

fn invite(client: &Client, wish: &Invite) -> Result<Invited, Failure> {
    client.change(Method::POST, "/v1/join-tokens", Some(wish))?.json()
}

/// `1h30m` as people write it: `1 h 30 m`.
fn spaced(span: Span) -> String {
    let mut text = String::new();
    let mut before = ' ';
    for c in span.to_string().chars() {
        if c.is_ascii_digit() != before.is_ascii_digit() && !text.is_empty() {
            text.push(' ');
        }
        text.push(c);
        before = c;
    }
    text
}

pub(crate) fn leave(context: &Context, args: &LeaveArgs) -> Result<(), Failure> {
    let target = context.choice.find()?;
    if target.servers.len() != 1 {
        return Err(Failure::new(Exit::Usage, "which-node", "it is not clear which node is to leave")
            .fix("run it on that server, or name it: --server URL"));
    }
    let client = context.client_for(&target);
    let overview: quorate_api::view::Overview = client.get("/v1/status")?;
    if !args.yes {
        let question = format!("Shall {} leave cluster {}? [y/N] ", overview.answered_by, overview.cluster.name);
        service::confirm(context.screen, &question, false)?;
    }
    let leaving: Leaving = client.change(Method::POST, "/v1/leave", None::<&()>)?.json()?;
    let text = format!("✔ {} leaves; its place is free. Started again, it comes back", leaving.node);
    context.done(&leaving, &text)
}

pub(crate) fn cluster(context: &Context, command: ClusterCommand) -> Result<(), Failure> {
    let (nodes, expires) = match command {
        ClusterCommand::Quota { nodes, expires } => (nodes, expires),
        ClusterCommand::Failover { span } => return failover(context, span.as_deref()),
    };
    let client = context.client()?;
    let Some(nodes) = nodes else {
        let quota: QuotaView = client.get("/v1/quota")?;
        return context.show(&quota, quota_text);
    };
    let nodes: Option<u32> = match nodes.as_str() {
        "none" => None,
        number => Some(number.parse().map_err(|_| {
            Failure::new(Exit::Usage, "bad-quota", format!("`{number}` is not a number of nodes"))
                .fix("quorate cluster quota 5\nquorate cluster quota none")
        })?),
    };
    let expires = expires.map(|at| WallTime(u64::try_from(at.as_microsecond()).unwrap_or(0)));
    client.change(Method::PUT, "/v1/quota", Some(&json!({ "nodes": nodes, "expires": expires })))?;
    let quota: QuotaView = client.get("/v1/quota")?;
    context.show(&quota, quota_text)
}

fn failover(context: &Context, span: Option<&str>) -> Result<(), Failure> {
    let client = context.client()?;
    let Some(span) = span else {
        let failover: FailoverTime = client.get("/v1/failover")?;
        return context.show(&failover, failover_text);
    };
    let failover = match span {
        "default" => None,
        span => Some(span.parse::<Span>().map_err(|error| {
            Failure::new(Exit::Usage, "bad-span", error.to_string())
                .fix("quorate cluster failover 20s\nquorate cluster failover default")
        })?),
    };
    let answer = client.change(Method::PUT, "/v1/failover", Some(&FailoverTime { failover }))?;
    let failover: FailoverTime = answer.json()?;
    context.done(&failover, &format!("✔ {}", failover_text(&failover)))
}

fn failover_text(failover: &FailoverTime) -> String {
    match failover.failover {
        Some(span) => format!("failover time {span}, for every service that names none"),
        None => "no failover time was decided: 30s for what runs once, `ha.failover_time` for the rest".to_owned(),
    }
}

fn quota_text(quota: &QuotaView) -> String {
    let used = quota.used;
    match (quota.nodes, quota.expires) {
        (None, _) => format!("any number of nodes may run; {used} do"),
        (Some(nodes), None) => format!("{used} of {nodes} nodes"),
        (Some(nodes), Some(at)) => format!("{used} of {nodes} nodes; none is let in from {}", moment(at, false)),
    }
}

/// Bytes that have a meaning in a path are escaped.
pub(crate) fn in_path(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn words<'a>(roles: impl Iterator<Item = &'a Role>) -> String {
    roles.map(|role| format!("{role:?}").to_lowercase()).collect::<Vec<_>>().join(", ")
}

pub(crate) fn describe(node: &NodeView) -> String {
    let state = match node.state {
        NodeState::Joined => "joined",
        NodeState::Unreachable => "unreachable",
        NodeState::Down => "down",
        NodeState::Removed => "removed",
    };
    let standing = match node.standing {
        Some(Standing::Voter) => "votes",
        Some(Standing::Standby) => "stands by",
        Some(Standing::Stopped) => "stopped",
        None => "-",
    };
    // While high availability is off there is nothing to say about managers, nor is the link open.
    let about_managers = |row: &str| ["Mode", "Vote", "Link", "Lag"].contains(&row);
    let ha_off = node.mode.is_none() && node.roles.contains(&Role::Manager);
    let rows = [
        ("Name", node.name.clone()),
        ("Alias", node.alias.clone().unwrap_or_else(|| "-".into())),
        ("ID", node.id.to_string()),
        ("State", format!("{state} since {}", moment(node.since, false))),
        ("Mode", node.mode.map_or("-".into(), |mode| format!("{mode:?}"))),
        ("Vote", standing.into()),
        ("Roles", words(node.roles.iter())),
        ("API", node.api.clone()),
        ("Link", node.link.clone()),
        ("Starts", node.generation.to_string()),
        ("Takes", placement::availability_text(node)),
        ("Labels", if node.labels.is_empty() { "-".into() } else { placement::labels_text(&node.labels) }),
        (
            "Drivers",
            node.drivers
                .as_ref()
                .map_or("-".into(), |drivers| drivers.iter().map(String::as_str).collect::<Vec<_>>().join(", ")),
        ),
        ("Replicas", node.replicas.to_string()),
        ("Lag", node.lag.map_or("-".into(), |lag| format!("{lag} entries"))),
        ("Log", node.log_dir.clone().unwrap_or_else(|| "-".into())),
    ]
    .into_iter()
    .filter(|(row, _)| !(ha_off && about_managers(row)));
    rows.map(|(name, value)| format!("{name:<9} {value}")).collect::<Vec<_>>().join("\n")
}

fn tokens_table(tokens: &[JoinTokenView], now: WallTime) -> String {
    let row = |token: &JoinTokenView| {
        let state = match &token.used_by {
            Some(by) => format!("used by {by}"),
            None if token.expires <= now => "expired".to_owned(),
            None => "waits".to_owned(),
        };
        vec![
            token.id.to_string().chars().take(8).collect(),
            format!("{:?}", token.role).to_lowercase(),
            token.name.clone().unwrap_or_else(|| "any".into()),
            moment(token.expires, false),
            state,
        ]
    };
    screen::table(&["TOKEN", "ROLE", "FOR", "EXPIRES", "STATE"], &[], tokens.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_written_with_room_between_number_and_unit() {
        for (text, expected) in [("1h", "1 h"), ("1h30m", "1 h 30 m"), ("250ms", "250 ms"), ("24h", "1 d")] {
            assert_eq!(spaced(text.parse().unwrap()), expected);
        }
    }

    #[test]
    fn a_name_is_one_part_of_a_path() {
        assert_eq!(in_path("n1"), "n1");
        assert_eq!(in_path("../x?y"), "..%2Fx%3Fy");
    }

    #[test]
    fn e8_the_failover_time_is_told_in_one_line() {
        let text = |failover| failover_text(&FailoverTime { failover });
        assert_eq!(text(Some(Span::from_secs(20))), "failover time 20s, for every service that names none");
        assert!(text(None).starts_with("no failover time was decided: 30s"));
    }

    #[test]
    fn d3_the_quota_is_told_in_one_line() {
        let quota = QuotaView { nodes: Some(5), expires: None, used: 3 };
        assert_eq!(quota_text(&quota), "3 of 5 nodes");
        assert_eq!(quota_text(&QuotaView { nodes: None, ..quota }), "any number of nodes may run; 3 do");
    }
}
