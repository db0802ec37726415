//! `quorate user` and `quorate role`: who there is, and who may do what.

use crate::cli::client::Client;
use crate::cli::failure::{self, Exit, Failure};
use crate::cli::screen::{self, moment};
use crate::cli::{Context, password, service};
use clap::{Args, Subcommand};
use quorate_api::{RoleView, UserView};
use quorate_model::access::name::{RoleName, UserName};
use quorate_model::access::policy::Permission;
use serde_json::{Value, json};
use std::fmt::Display;
use std::path::PathBuf;
use ureq::http::Method;

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// All users
    #[command(after_help = "Examples:\n  quorate user list\n  quorate user list -o json")]
    List,
    /// One user
    #[command(after_help = "Examples:\n  quorate user show anna")]
    Show {
        /// Name of the user
        name: UserName,
    },
    /// Make a user
    #[command(
        after_help = "Examples:\n  quorate user create anna --role operator\n  quorate user create ci --role deployer --password-file ./password"
    )]
    Create {
        /// Name of the new user
        name: UserName,
        /// A role; repeat for more
        #[arg(long = "role", value_name = "ROLE")]
        roles: Vec<RoleName>,
        /// Take the password from this file; `-` is standard input. Without it one is chosen and shown
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Set a user's password, or change your own
    #[command(
        after_help = "Examples:\n  quorate user password\n  quorate user password anna\n  quorate user password anna --password-file ./password"
    )]
    Password {
        /// Name of the user; without it: you
        name: Option<UserName>,
        /// Take the new password from this file; `-` is standard input
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Keep a user out: sessions end, tokens are refused
    #[command(after_help = "Examples:\n  quorate user disable anna")]
    Disable {
        /// Name of the user
        name: UserName,
    },
    /// Let a disabled user in again
    #[command(after_help = "Examples:\n  quorate user enable anna")]
    Enable {
        /// Name of the user
        name: UserName,
    },
    /// Remove a user with its sessions and tokens
    #[command(after_help = "Examples:\n  quorate user remove anna --yes")]
    Remove {
        /// Name of the user
        name: UserName,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum RoleCommand {
    /// All roles and who has them
    #[command(after_help = "Examples:\n  quorate role list")]
    List,
    /// What a role may do
    #[command(after_help = "Examples:\n  quorate role show operator")]
    Show {
        /// Name of the role
        name: RoleName,
    },
    /// Make a role that may do what another one may
    #[command(after_help = "Examples:\n  quorate role clone inspector auditor")]
    Clone {
        /// Name of the new role
        name: RoleName,
        /// The role to begin with
        from: RoleName,
    },
    /// Give a role to a user, or a permission to a role
    #[command(
        after_help = "Examples:\n  quorate role grant operator --user anna\n  quorate role grant inspector --permission log-read"
    )]
    Grant {
        /// Name of the role
        name: RoleName,
        #[command(flatten)]
        what: Receiver,
    },
    /// Take a role from a user, or a permission from a role
    #[command(
        after_help = "Examples:\n  quorate role revoke operator --user anna\n  quorate role revoke inspector --permission log-read"
    )]
    Revoke {
        /// Name of the role
        name: RoleName,
        #[command(flatten)]
        what: Receiver,
    },
    /// Remove a role that nobody has
    #[command(after_help = "Examples:\n  quorate role remove inspector --yes")]
    Remove {
        /// Name of the role
        name: RoleName,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Receiver {
    /// The user that gets or loses the role
    #[arg(long, value_name = "USER")]
    user: Option<UserName>,
    /// The permission that the role gets or loses
    #[arg(long, value_name = "PERMISSION")]
    permission: Option<Permission>,
}

pub(crate) fn user(context: &Context, command: UserCommand) -> Result<(), Failure> {
    let client = context.client()?;
    match command {
        UserCommand::List => {
            let users: Vec<UserView> = client.get("/v1/users")?;
            context.show(&users, |users| users_table(users))
        }
        UserCommand::Show { name } => {
            let user: UserView =
                client.get(&format!("/v1/users/{name}")).map_err(|error| user_unknown(&client, &name, error))?;
            context.show(&user, user_text)
        }
        UserCommand::Create { name, roles, password_file } => {
            let mut new = json!({ "name": name, "roles": roles });
            set_password(&mut new, password_file)?;
            let user: UserView = client.change(Method::POST, "/v1/users", Some(&new))?.json()?;
            changed(context, &user, "created")
        }
        UserCommand::Password { name: Some(name), password_file } => {
            let mut new = json!({});
            set_password(&mut new, password_file)?;
            let path = format!("/v1/users/{name}/password");
            let user: UserView = change(&client, &name, Method::PUT, &path, Some(&new))?;
            changed(context, &user, "has a new password")
        }
        UserCommand::Password { name: None, password_file } => {
            let old = password::ask("Password", "name the user: quorate user password NAME")?;
            let new = match password_file {
                Some(file) => password::from_file(&file)?,
                None => password::ask_new("New password")?,
            };
            let body = json!({ "old": old.expose(), "new": new.expose() });
            client.change(Method::POST, "/v1/me/password", Some(&body))?;
            context.done(&json!({ "changed": true }), "✔ your password is changed; your other sessions are over")
        }
        UserCommand::Disable { name } => {
            let user: UserView = change(&client, &name, Method::POST, &format!("/v1/users/{name}/disable"), None)?;
            changed(context, &user, "disabled")
        }
        UserCommand::Enable { name } => {
            let user: UserView = change(&client, &name, Method::POST, &format!("/v1/users/{name}/enable"), None)?;
            changed(context, &user, "enabled")
        }
        UserCommand::Remove { name, yes } => {
            if !yes {
                service::confirm(
                    context.screen,
                    &format!("Remove {name} with all sessions and tokens? [y/N] "),
                    false,
                )?;
            }
            let user: UserView = change(&client, &name, Method::DELETE, &format!("/v1/users/{name}"), None)?;
            changed(context, &user, "removed")
        }
    }
}

fn set_password(body: &mut Value, file: Option<PathBuf>) -> Result<(), Failure> {
    if let Some(file) = file {
        body["password"] = password::from_file(&file)?.expose().as_str().into();
    }
    Ok(())
}

fn change(
    client: &Client,
    name: &UserName,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<UserView, Failure> {
    client
        .change(method, path, body)
        .and_then(|answer| answer.json())
        .map_err(|error| user_unknown(client, name, error))
}

/// Adds to "no such user" who was probably meant.
fn user_unknown(client: &Client, name: &UserName, error: Failure) -> Failure {
    if error.code != "unknown-user" {
        return error;
    }
    let Ok(users) = client.get::<Vec<UserView>>("/v1/users") else { return error };
    failure::unknown("user", name.as_str(), users.iter().map(|user| user.name.as_str()), "quorate user list")
}

fn changed(context: &Context, user: &UserView, what: &str) -> Result<(), Failure> {
    let mut text = format!("✔ {} {what}", user.name);
    if let Some(password) = &user.password {
        text.push_str(&format!("\n  password: {password}   (shown once)"));
    }
    context.done(user, &text)
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "-".into() } else { items.join(",") }
}

fn state(user: &UserView) -> &'static str {
    if user.disabled { "✕ disabled" } else { "● enabled" }
}

fn users_table(users: &[UserView]) -> String {
    let rows = users.iter().map(|user| {
        vec![
            user.name.clone(),
            state(user).to_owned(),
            list(&user.roles),
            user.sessions.to_string(),
            user.tokens.to_string(),
            moment(user.created, false),
        ]
    });
    screen::table(&["USER", "STATE", "ROLES", "SESSIONS", "TOKENS", "CREATED"], &[3, 4], rows)
}

fn user_text(user: &UserView) -> String {
    format!(
        "{} · {}\nroles             {}\nsessions          {}\ntokens            {}\ncreated           {}\npassword changed  {}",
        user.name,
        state(user),
        list(&user.roles),
        user.sessions,
        user.tokens,
        moment(user.created, false),
        moment(user.password_changed, false)
    )
}

pub(crate) fn role(context: &Context, command: RoleCommand) -> Result<(), Failure> {
    let client = context.client()?;
    match command {
        RoleCommand::List => {
            let roles: Vec<RoleView> = client.get("/v1/roles")?;
            context.show(&roles, |roles| {
                let rows = roles.iter().map(|role| {
                    let kind = if role.fixed {
                        "fixed"
                    } else if role.built_in {
                        "built in"
                    } else {
                        "own"
                    };
                    vec![role.name.clone(), kind.to_owned(), list(&role.users), role.purpose.clone()]
                });
                screen::table(&["ROLE", "KIND", "USERS", "FOR"], &[], rows)
            })
        }
        RoleCommand::Show { name } => {
            let role: RoleView =
                client.get(&format!("/v1/roles/{name}")).map_err(|error| role_unknown(&client, &name, error))?;
            context.show(&role, role_text)
        }
        RoleCommand::Clone { name, from } => {
            let body = json!({ "name": name, "from": from });
            let answer = client.change(Method::POST, "/v1/roles", Some(&body));
            let role: RoleView =
                answer.and_then(|it| it.json()).map_err(|error| role_unknown(&client, &from, error))?;
            context.done(&role, &format!("✔ {name} may do what {from} may"))
        }
        RoleCommand::Grant { name, what } => set(context, &client, Method::PUT, &name, &what),
        RoleCommand::Revoke { name, what } => set(context, &client, Method::DELETE, &name, &what),
        RoleCommand::Remove { name, yes } => {
            if !yes {
                service::confirm(context.screen, &format!("Remove the role {name}? [y/N] "), false)?;
            }
            let answer = client.change(Method::DELETE, &format!("/v1/roles/{name}"), None::<&()>);
            let role: RoleView =
                answer.and_then(|it| it.json()).map_err(|error| role_unknown(&client, &name, error))?;
            context.done(&role, &format!("✔ {name} removed"))
        }
    }
}

fn role_unknown(client: &Client, name: &RoleName, error: Failure) -> Failure {
    if error.code != "unknown-role" {
        return error;
    }
    let Ok(roles) = client.get::<Vec<RoleView>>("/v1/roles") else { return error };
    failure::unknown("role", name.as_str(), roles.iter().map(|role| role.name.as_str()), "quorate role list")
}

fn set(context: &Context, client: &Client, method: Method, role: &RoleName, what: &Receiver) -> Result<(), Failure> {
    let granted = method == Method::PUT;
    match (&what.user, what.permission) {
        (Some(user), _) => {
            let path = format!("/v1/users/{user}/roles/{role}");
            let answer = client
                .change(method, &path, None::<&()>)
                .map_err(|error| role_unknown(client, role, user_unknown(client, user, error)))?;
            let text =
                if granted { format!("✔ {user} is {role}") } else { format!("✔ {user} is no longer {role}") };
            context.done(&answer.json::<UserView>()?, &text)
        }
        (None, Some(permission)) => {
            let path = format!("/v1/roles/{role}/permissions/{permission}");
            let answer =
                client.change(method, &path, None::<&()>).map_err(|error| role_unknown(client, role, error))?;
            let word = if granted { "has" } else { "no longer has" };
            context.done(&answer.json::<RoleView>()?, &format!("✔ {role} {word} {permission}"))
        }
        (None, None) => Err(Failure::new(Exit::Usage, "usage", "neither a user nor a permission is named")),
    }
}

fn role_text(role: &RoleView) -> String {
    let kind = if role.fixed { " · fixed" } else { "" };
    format!(
        "{}{kind}\n{}\nusers        {}\npermissions  {}",
        role.name,
        role.purpose,
        list(&role.users),
        list(&role.permissions).replace(',', "\n             ")
    )
}
