//! `quorate init`: the first node of a new cluster.

use crate::cli::client::Client;
use crate::cli::failure::{Exit, Failure};
use crate::cli::place::{self, Place, PlaceArgs};
use crate::cli::screen::{took, wall_now};
use crate::cli::{Context, waiting};
use crate::config::{ClusterConfig, LogConfig, NodeConfig, ThisNode, Timers, Voter, first};
use crate::gossip_keys;
use crate::keys::ManagerKeys;
use crate::serve::admission::{certificate_names, is_node_name};
use crate::trust::{self, NodeFiles};
use anyhow::Context as _;
use clap::Args;
use quorate_api::{AuthMode, UserView};
use quorate_model::id::{ClusterId, NodeId};
use quorate_model::state::Role;
use quorate_trust::key::NodeKey;
use serde_json::json;
use std::time::Instant;
use ureq::http::Method;

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Name of the cluster
    #[arg(long, default_value = "quorate")]
    name: String,
    /// Name of this node; without it, that of the server
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    #[command(flatten)]
    place: PlaceArgs,
}

pub(crate) fn run(context: &Context, args: &InitArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let loaded = args.place.settings()?;
    let node = &loaded.settings.node;
    let node_name = args.node_name.clone().unwrap_or_else(|| node.name_or_host());
    if !node.roles.contains(&Role::Manager) {
        return Err(Failure::new(Exit::Usage, "bad-role", "the first node of a cluster is a manager")
            .why(format!("node.roles is set to something else ({})", loaded.origin("node.roles")))
            .fix("leave node.roles out, or add `manager` to it"));
    }
    for (what, name) in [("--name", &args.name), ("--node-name", &node_name)] {
        if !is_node_name(name) {
            return Err(Failure::new(Exit::Usage, "bad-name", format!("`{name}` cannot be a name"))
                .fix(format!("give {what} 1 to 63 letters, digits, `-`, `_` and `.`")));
        }
    }
    let taken = Place::take(node)?;
    let config = NodeConfig {
        cluster: ClusterConfig {
            id: ClusterId(uuid::Uuid::new_v4()),
            name: args.name.clone(),
            incarnation: first(),
            ha: loaded.settings.ha.enabled,
        },
        node: ThisNode {
            id: NodeId(uuid::Uuid::new_v4()),
            name: node_name.clone(),
            roles: node.roles.clone(),
            api: taken.addresses.api.listen,
            link: taken.addresses.link.listen,
            announced: taken.announced.clone(),
            plain_http: false,
            auth: AuthMode::Required,
            console_token: None,
            api_certificate: None,
            end_with_pid: None,
        },
        timers: Timers::default(),
        log: LogConfig::default(),
        voters: Vec::new(),
        peers: Vec::new(),
    };
    let itself = Voter { id: config.node.id, name: node_name, link: taken.link_address() };
    let config = NodeConfig { voters: vec![itself], ..config };
    let data_dir = taken.data_dir.clone();
    let console = format!("https://{}/ui/", taken.api_address());
    write(&config, &data_dir)?;
    // From here on the ports are the node's.
    drop(taken);
    let start = !args.place.no_start && place::has_systemd();
    if !start {
        let (dir, took) = (data_dir.display(), took(started.elapsed()));
        if context.screen.is_json() {
            context.screen.json(&json!({ "cluster": config.cluster.id, "node": config.node.id, "console": console }));
        } else {
            context.screen.data(&format!(
                "✔ certificates and configuration in {dir}   {took}\n\
                 Cluster {} is prepared with 1 manager\n\
                 ├─ Start    quorate serve --data-dir {dir}\n\
                 ├─ Admin    quorate --server unix:{dir}/api.sock user create admin --role admin\n\
                 └─ Next     quorate --server unix:{dir}/api.sock add-node",
                args.name
            ));
        }
        return Ok(());
    }
    place::start_unit(&data_dir)?;
    let client = waiting::until_serving(context, &data_dir)?;
    let password = first_admin(&client)?;
    if let Some(alias) = &node.alias {
        let path = format!("/v1/nodes/{}/alias", config.node.id);
        client.change(Method::PUT, &path, Some(&json!({ "alias": alias })))?;
    }
    let took = took(started.elapsed());
    if context.screen.is_json() {
        context.screen.json(&json!({
            "cluster": config.cluster.id, "node": config.node.id, "console": console,
            "user": "admin", "password": password,
        }));
    } else {
        context.screen.data(&format!(
            "✔ certificates, database, systemd unit quorate.service   {took}\n\
             Cluster {} is up with 1 manager (cannot lose any; add 2 for high availability)\n\
             ├─ Console  {console}   user admin, password (shown once): {password}\n\
             └─ Next     sudo quorate add-node",
            args.name
        ));
    }
    Ok(())
}

fn write(config: &NodeConfig, data_dir: &std::path::Path) -> Result<(), Failure> {
    let prepare = || -> anyhow::Result<()> {
        let manager = ManagerKeys::create(config.cluster.id, wall_now())?;
        let key = NodeKey::generate().context("making this node's key")?;
        let names = certificate_names(config.node.api_address().ip(), &config.node.name);
        let certificate =
            manager.authority.issue(&key.request()?, config.node.id, &names, wall_now(), trust::serial()?)?;
        let files = NodeFiles {
            authorities: vec![manager.authority.certificate().clone()],
            certificate,
            key: std::sync::Arc::new(key),
        };
        gossip_keys::write(data_dir, &gossip_keys::first()?)?;
        files.write(data_dir).with_context(|| format!("writing into {}", data_dir.display()))?;
        manager.write(data_dir)
    };
    prepare().map_err(|error| Failure::from(error).fix("run it as root, or choose another --data-dir"))?;
    place::write_config(data_dir, config)
}

/// Makes the first user and says the password that was chosen.
fn first_admin(client: &Client) -> Result<String, Failure> {
    let made = client.change(Method::POST, "/v1/first-admin", Some(&json!({ "name": "admin" })))?;
    let users: Vec<UserView> = made.json()?;
    users.into_iter().find_map(|user| user.password).ok_or_else(|| {
        Failure::new(Exit::Conflict, "admin-exists", "the first user was made already")
            .fix("quorate user password admin")
    })
}
