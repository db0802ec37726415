//! `quorate secret`: set, listed, removed; never read back.

use crate::cli::Context;
use crate::cli::client::Call;
use crate::cli::failure::{Exit, Failure};
use crate::cli::password;
use crate::cli::screen::{self, moment};
use crate::cli::service::confirm;
use clap::Subcommand;
use quorate_api::SecretView;
use quorate_model::access::name::SecretName;
use quorate_model::secret::Secret;
use serde_json::json;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use ureq::http::Method;

#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Set a secret, or give it another value
    #[command(
        after_help = "Examples:\n  quorate secret set pg\n  quorate secret set tls.key --file ./server.key\n  printf %s \"$PASSWORD\" | quorate secret set pg --file -"
    )]
    Set {
        /// Name of the secret
        name: SecretName,
        /// The value is what this file holds, byte by byte; `-` is standard input
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Names of all secrets
    #[command(after_help = "Examples:\n  quorate secret list")]
    List,
    /// What is known of a secret; its value is told to nobody
    #[command(after_help = "Examples:\n  quorate secret show pg")]
    Show {
        /// Name of the secret
        name: SecretName,
    },
    /// Remove a secret for good
    #[command(after_help = "Examples:\n  quorate secret remove pg")]
    Remove {
        /// Name of the secret
        name: SecretName,
        /// Ask nothing
        #[arg(short, long)]
        yes: bool,
    },
}

pub(crate) fn run(context: &Context, command: SecretCommand) -> Result<(), Failure> {
    let client = context.client()?;
    match command {
        SecretCommand::Set { name, file } => {
            let value = match file {
                Some(file) => from_file(&file)?,
                None => {
                    let typed = password::ask(&format!("Value of {name}"), "give it with --file")?;
                    Secret::new(typed.expose().clone().into_bytes())
                }
            };
            let path = format!("/v1/secrets/{name}");
            let body = Some(("application/octet-stream", value.expose().clone()));
            let call = Call { method: Method::PUT, path: &path, body, header: None, mutation: true, patient: true };
            let view: SecretView = client.send(&call)?.json()?;
            context.done(&view, &format!("✔ {} is set, version {}", view.name, view.version))
        }
        SecretCommand::List => {
            let secrets: Vec<SecretView> = client.get("/v1/secrets")?;
            context.show(&secrets, |secrets| {
                let rows =
                    secrets.iter().map(|it| vec![it.name.clone(), it.version.to_string(), moment(it.changed, false)]);
                screen::table(&["SECRET", "VERSION", "CHANGED"], &[1], rows)
            })
        }
        SecretCommand::Show { name } => {
            let secret: SecretView = client.get(&format!("/v1/secrets/{name}"))?;
            context.show(&secret, |it| {
                format!(
                    "Name     {}\nVersion  {}\nChanged  {}\nSealed   with key {} of the cluster",
                    it.name,
                    it.version,
                    moment(it.changed, false),
                    it.key
                )
            })
        }
        SecretCommand::Remove { name, yes } => {
            if !yes {
                confirm(context.screen, &format!("Remove secret {name} for good? [y/N] "), false)?;
            }
            client.change(Method::DELETE, &format!("/v1/secrets/{name}"), None::<&()>)?;
            context.done(&json!({ "name": name, "removed": true }), &format!("✔ {name} is gone"))
        }
    }
}

fn from_file(path: &Path) -> Result<Secret<Vec<u8>>, Failure> {
    let mut value = Vec::new();
    let read = match path == Path::new("-") {
        true => std::io::stdin().read_to_end(&mut value).map(drop),
        false => std::fs::read(path).map(|content| value = content),
    };
    read.map_err(|error| {
        Failure::new(Exit::Usage, "unreadable", format!("{} cannot be read", path.display())).why(error)
    })?;
    Ok(Secret::new(value))
}
