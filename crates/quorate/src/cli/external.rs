//! `quorate external`: systems that services use and that others run.

use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::password;
use crate::cli::screen::{self, moment};
use crate::cli::service::confirm;
use clap::{Args, Subcommand};
use quorate_api::externals::{ExternalRemoved, ExternalSet, ExternalTested, ExternalView};
use quorate_model::access::name::{ExternalName, SecretName};
use quorate_model::external::{External, ExternalKind, FromUrl, NodeLogin, Tls};
use quorate_model::secret::Secret;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use ureq::http::Method;

#[derive(Debug, Subcommand)]
pub(crate) enum ExternalCommand {
    /// Add an external, or change it, once every node that runs services could log in
    #[command(
        after_help = "Examples:\n  quorate external add orders-db --kind postgres --url postgres://app@db1,db2/orders --password-file ./pw\n  quorate external add orders-db --kind postgres --url-file - < url\n  quorate external add files --kind s3 --host minio:9000 --tls off --user KEY --password-file - --database bucket"
    )]
    Add(Box<AddArgs>),
    /// All externals
    #[command(after_help = "Examples:\n  quorate external list")]
    List,
    /// One external; its password is told to nobody
    #[command(after_help = "Examples:\n  quorate external show orders-db")]
    Show {
        /// Name of the external
        name: ExternalName,
    },
    /// Log in from every node that runs services
    #[command(after_help = "Examples:\n  quorate external test orders-db")]
    Test {
        /// Name of the external
        name: ExternalName,
    },
    /// Remove an external that no service uses
    #[command(after_help = "Examples:\n  quorate external remove orders-db")]
    Remove {
        /// Name of the external
        name: ExternalName,
        /// Ask nothing
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// Name of the external: variables of services begin with it
    name: ExternalName,
    /// postgres, redis, rabbitmq or s3
    #[arg(long)]
    kind: ExternalKind,
    /// Connection string; a password is better not in it, for everybody on this server sees command lines
    #[arg(long, value_name = "URL", conflicts_with = "url_file")]
    url: Option<String>,
    /// The connection string is the first line of this file; `-` is standard input
    #[arg(long, value_name = "FILE")]
    url_file: Option<PathBuf>,
    /// HOST[:PORT]; repeat for each
    #[arg(long = "host", value_name = "HOST[:PORT]")]
    hosts: Vec<String>,
    /// The hosts stand in this variable of your environment, with commas between them
    #[arg(long, value_name = "VARIABLE", conflicts_with = "hosts")]
    hosts_from_env: Option<String>,
    /// Port of hosts that say none
    #[arg(long)]
    port: Option<u16>,
    /// Who logs in; the access key of S3
    #[arg(long)]
    user: Option<String>,
    /// The password (of S3 the secret key) is the first line of this file; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["password_stdin", "password_secret"])]
    password_file: Option<PathBuf>,
    /// The password is the first line of standard input
    #[arg(long, conflicts_with = "password_secret")]
    password_stdin: bool,
    /// The password is this secret of the cluster
    #[arg(long, value_name = "SECRET")]
    password_secret: Option<SecretName>,
    /// Database; a number for Redis, the virtual host of RabbitMQ, the bucket of S3
    #[arg(long)]
    database: Option<String>,
    /// Whether connections are encrypted. Default: off; for S3: verify
    #[arg(long)]
    tls: Option<TlsWord>,
    /// Certificates (PEM) of the authorities to believe instead of the system's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// A setting, like region=eu-west-1; repeat for each
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Take it whatever comes of the logins
    #[arg(long, alias = "force")]
    unchecked: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum TlsWord {
    Off,
    Unverified,
    Verify,
}

impl From<TlsWord> for Tls {
    fn from(word: TlsWord) -> Tls {
        match word {
            TlsWord::Off => Tls::Off,
            TlsWord::Unverified => Tls::Unverified,
            TlsWord::Verify => Tls::Verify,
        }
    }
}

pub(crate) fn run(context: &Context, command: ExternalCommand) -> Result<(), Failure> {
    let client = context.client()?;
    match command {
        ExternalCommand::Add(args) => add(context, *args),
        ExternalCommand::List => {
            let externals: Vec<ExternalView> = client.get("/v1/externals")?;
            context.show(&externals, |externals| {
                let header = ["EXTERNAL", "KIND", "HOSTS", "USER", "DATABASE", "CHANGED", "NOTE"];
                screen::table(&header, &[], externals.iter().map(row))
            })
        }
        ExternalCommand::Show { name } => {
            let external: ExternalView = client.get(&format!("/v1/externals/{name}"))?;
            context.show(&external, shown)
        }
        ExternalCommand::Test { name } => {
            let path = format!("/v1/externals/{name}/test");
            let tested: ExternalTested = client.change(Method::POST, &path, None::<&()>)?.json()?;
            context.show(&tested, |tested| logins(&tested.logins))?;
            if tested.ok {
                return Ok(());
            }
            let failure = Failure::new(Exit::Failed, "login-failed", format!("not every node can log in to {name}"));
            Err(failure.fix(fixes(&tested.logins)))
        }
        ExternalCommand::Remove { name, yes } => {
            if !yes {
                confirm(context.screen, &format!("Remove external {name}? [y/N] "), false)?;
            }
            let path = format!("/v1/externals/{name}");
            let removed: ExternalRemoved = client.change(Method::DELETE, &path, None::<&()>)?.json()?;
            context.done(&removed, &format!("✔ {name} is gone"))
        }
    }
}

fn add(context: &Context, args: AddArgs) -> Result<(), Failure> {
    let (name, unchecked) = (args.name.clone(), args.unchecked);
    let (external, password) = defined(context, args)?;
    let body = json!({
        "external": external,
        "password": password.as_ref().map(Secret::expose),
        "unchecked": unchecked,
    });
    let sent = context.client()?.change(Method::PUT, &format!("/v1/externals/{name}"), Some(&body));
    let set: ExternalSet = sent.map_err(explained)?.json()?;
    let nodes = set.tested.logins.len();
    let note = if set.tested.ok {
        format!("✔ {name} is set: {nodes} {} logged in", if nodes == 1 { "node" } else { "nodes" })
    } else {
        format!("✔ {name} is set unchecked: not every node can log in")
    };
    let silent = set.tested.ok && set.tested.logins.iter().flat_map(|it| &it.hosts).all(|host| host.problem.is_none());
    let text = if silent { note } else { format!("{note}\n{}", logins(&set.tested.logins)) };
    context.done(&set, &text)
}

/// What the nodes found, as the cause.
fn explained(failure: Failure) -> Failure {
    match serde_json::from_value::<Vec<NodeLogin>>(failure.details["logins"].clone()) {
        Ok(found) => failure.why(logins(&found)),
        Err(_) => failure,
    }
}

fn defined(context: &Context, args: AddArgs) -> Result<(External, Option<Secret<String>>), Failure> {
    let usage = |code, problem: String| Failure::new(Exit::Usage, code, problem);
    let url = match (&args.url, &args.url_file) {
        (Some(url), _) => Some(Secret::new(url.clone())),
        (None, Some(file)) => Some(password::from_file(file)?),
        (None, None) => None,
    };
    let FromUrl { mut external, mut password } = match url {
        Some(url) => FromUrl::read(args.name.clone(), args.kind, url.expose())
            .map_err(|error| usage("bad-url", error.to_string()).fix("quorate external add --help"))?,
        None => FromUrl { external: empty(args.name.clone(), args.kind), password: None },
    };
    if args.url.is_some() && password.is_some() {
        context
            .screen
            .say("a password on a command line can be read by everybody on this server: --url-file, --password-file");
    }
    let hosts = match &args.hosts_from_env {
        Some(variable) => {
            let none = || usage("no-variable", format!("the variable {variable} is not set, or is no text"));
            let text = std::env::var(variable).map_err(|_| none())?;
            text.split(',').map(|host| host.trim().to_owned()).filter(|host| !host.is_empty()).collect()
        }
        None => args.hosts,
    };
    if !hosts.is_empty() {
        external.hosts = hosts;
    }
    if let Some(port) = args.port {
        for host in external.hosts.iter_mut().filter(|host| !has_port(host)) {
            *host = format!("{host}:{port}");
        }
    }
    external.user = args.user.or(external.user);
    external.database = args.database.or(external.database);
    external.tls = args.tls.map(Tls::from).or(external.tls);
    external.password = args.password_secret;
    if let Some(file) = &args.ca_file {
        let unreadable = |error| usage("unreadable", format!("{} cannot be read", file.display())).why(error);
        external.ca = Some(std::fs::read_to_string(file).map_err(unreadable)?);
    }
    for text in &args.settings {
        let bad = || usage("bad-setting", format!("`{text}` is no setting")).fix(format!("--set {text}=VALUE"));
        let (key, value) = text.split_once('=').ok_or_else(bad)?;
        external.set.insert(key.to_owned(), value.to_owned());
    }
    match (&args.password_file, args.password_stdin) {
        (Some(file), _) => password = Some(password::from_file(file)?),
        (None, true) => password = Some(password::from_file(Path::new("-"))?),
        (None, false) => {}
    }
    if external.password.is_some() && password.is_some() {
        return Err(usage("two-passwords", "the URL has a password, and --password-secret names another".into()));
    }
    Ok((external, password))
}

fn empty(name: ExternalName, kind: ExternalKind) -> External {
    let set = BTreeMap::new();
    External { name, kind, hosts: Vec::new(), user: None, password: None, database: None, tls: None, ca: None, set }
}

fn has_port(host: &str) -> bool {
    match host.strip_prefix('[') {
        Some(rest) => rest.contains("]:"),
        None => host.contains(':'),
    }
}

fn row(view: &ExternalView) -> Vec<String> {
    let External { name, kind, hosts, user, database, .. } = &view.external;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    vec![
        name.to_string(),
        kind.to_string(),
        hosts.join(", "),
        text(user),
        text(database),
        moment(view.changed, false),
        if view.unchecked { "unchecked".into() } else { String::new() },
    ]
}

fn shown(view: &ExternalView) -> String {
    let External { name, kind, hosts, user, password, database, set, .. } = &view.external;
    let tls = match view.external.tls() {
        Tls::Off => "off",
        Tls::Unverified => "unverified",
        Tls::Verify => "verify",
    };
    let none = || "none".to_owned();
    let settings: Vec<String> = set.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let settings = if settings.is_empty() { none() } else { settings.join(", ") };
    format!(
        "Name      {name}\nKind      {kind}\nHosts     {}\nUser      {}\nPassword  {}\nDatabase  {}\nTLS       {tls}\nSettings  {settings}\nVersion   {}\nChanged   {}{}",
        hosts.join(", "),
        user.clone().unwrap_or_else(none),
        password.as_ref().map_or_else(none, |secret| format!("the secret {secret}")),
        database.clone().unwrap_or_else(none),
        view.version,
        moment(view.changed, false),
        if view.unchecked { "\nNote      taken though not every node could log in" } else { "" },
    )
}

fn logins(found: &[NodeLogin]) -> String {
    let rows = found.iter().flat_map(|login| {
        let silent = login.silent.iter().map(|why| vec![login.node.clone(), String::new(), why.clone()]);
        let hosts = login.hosts.iter().map(|host| {
            let said = host.problem.as_ref().map_or_else(|| "logged in".to_owned(), ToString::to_string);
            vec![login.node.clone(), host.host.clone(), said]
        });
        silent.chain(hosts).collect::<Vec<_>>()
    });
    screen::table(&["NODE", "HOST", "LOGIN"], &[], rows)
}

/// Each thing to do once.
fn fixes(found: &[NodeLogin]) -> String {
    let problems = found.iter().flat_map(|login| &login.hosts).filter_map(|host| host.problem.as_ref());
    let mut fixes: Vec<&str> = problems.map(|problem| problem.why.fix()).collect();
    fixes.sort_unstable();
    fixes.dedup();
    fixes.join("; ")
}
