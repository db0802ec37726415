//! `quorate login`, `logout`, `session` and `token`: how people and programs are let in.

use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::password::{self, Sessions};
use crate::cli::screen::{self, moment};
use clap::{Args, Subcommand};
use quorate_api::{LoggedIn, SessionView, TokenView};
use quorate_model::access::name::{ApiTokenId, UserName};
use quorate_model::access::policy::Permission;
use quorate_model::secret::Secret;
use quorate_model::time::Span;
use serde_json::json;
use std::path::PathBuf;
use ureq::http::Method;

#[derive(Debug, Args)]
pub(crate) struct LogInArgs {
    /// Name of the user
    user: String,
    /// Take the password from this file; `-` is standard input
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SessionCommand {
    /// Who is logged in
    #[command(after_help = "Examples:\n  quorate session list")]
    List,
    /// End a session
    #[command(after_help = "Examples:\n  quorate session revoke 0123456789abcdef")]
    Revoke {
        /// Id of the session, as `session list` shows it
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Your API tokens, or everybody's
    #[command(after_help = "Examples:\n  quorate token list\n  quorate token list --all")]
    List {
        /// Those of all users
        #[arg(long)]
        all: bool,
    },
    /// Make an API token for a program
    #[command(
        after_help = "Examples:\n  quorate token create 'build server' --scope service-apply --scope cluster-read\n  quorate token create drill --user ops --scope manager-control --dangerous --lasts 7d"
    )]
    Create {
        /// What it is for
        label: String,
        /// A permission that it has, as far as its user has it; repeat for more
        #[arg(long = "scope", value_name = "PERMISSION", required = true)]
        scopes: Vec<Permission>,
        /// It may do without a password what a person has to confirm
        #[arg(long)]
        dangerous: bool,
        /// How long it is valid, at most 366d
        #[arg(long, value_name = "SPAN", default_value = "90d")]
        lasts: Span,
        /// Whose rights it has; without it: yours
        #[arg(long, value_name = "USER")]
        user: Option<UserName>,
    },
    /// End an API token
    #[command(after_help = "Examples:\n  quorate token revoke 0123456789abcdef")]
    Revoke {
        /// Id of the token, as `token list` shows it
        id: ApiTokenId,
    },
}

pub(crate) fn log_in(context: &Context, args: &LogInArgs) -> Result<(), Failure> {
    let target = context.choice.find()?;
    let no_home = || Failure::new(Exit::Failed, "no-home", "there is nowhere to keep the session").fix("set HOME");
    let sessions = Sessions::here().ok_or_else(no_home)?;
    let password = match &args.password_file {
        Some(file) => password::from_file(file)?,
        None => password::ask(&format!("Password of {}", args.user), "give it with --password-file")?,
    };
    let client = context.client_for(&target).without_token();
    let body = json!({ "user": args.user, "password": password.expose(), "token": true });
    let answer: LoggedIn = client.change(Method::POST, "/v1/login", Some(&body))?.json()?;
    let token = answer.token.clone().map(Secret::new);
    sessions.keep(&target.servers, token.as_ref())?;
    let shown = LoggedIn { token: None, ..answer };
    context
        .done(&shown, &format!("✔ logged in as {}; over after {} min without a command", shown.user, shown.idle_s / 60))
}

pub(crate) fn log_out(context: &Context) -> Result<(), Failure> {
    let target = context.choice.find()?;
    let Some((sessions, token)) = Sessions::here().and_then(|known| known.of(&target.servers).map(|it| (known, it)))
    else {
        return context.done(&json!({ "logged_out": false }), "nobody was logged in");
    };
    let ended = context.client_for(&target).with_token(token).change(Method::POST, "/v1/logout", None::<&()>);
    match ended {
        // What is over already needs no end.
        Err(failure) if failure.code != "session-over" => return Err(failure),
        _ => sessions.keep(&target.servers, None)?,
    }
    context.done(&json!({ "logged_out": true }), "✔ logged out")
}

pub(crate) fn session(context: &Context, command: SessionCommand) -> Result<(), Failure> {
    let client = context.client()?;
    match command {
        SessionCommand::List => {
            let sessions: Vec<SessionView> = client.get("/v1/sessions")?;
            context.show(&sessions, |sessions| {
                let rows = sessions.iter().map(|it| {
                    vec![
                        it.id.clone(),
                        it.user.clone(),
                        it.from.clone(),
                        moment(it.created, false),
                        moment(it.seen, false),
                    ]
                });
                screen::table(&["SESSION", "USER", "FROM", "SINCE", "LAST USED"], &[], rows)
            })
        }
        SessionCommand::Revoke { id } => {
            if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(Failure::new(Exit::Usage, "bad-id", format!("`{id}` is not the id of a session"))
                    .fix("see `quorate session list`"));
            }
            client.change(Method::DELETE, &format!("/v1/sessions/{id}"), None::<&()>)?;
            context.done(&json!({ "id": id, "revoked": true }), &format!("✔ session {id} is over"))
        }
    }
}

pub(crate) fn token(context: &Context, command: TokenCommand) -> Result<(), Failure> {
    let client = context.client()?;
    match command {
        TokenCommand::List { all } => {
            let own = if all { None } else { Some(client.get::<Vec<TokenView>>("/v1/me/tokens")) };
            let tokens = match own {
                Some(Err(failure)) if failure.code == "no-user" => client.get("/v1/tokens")?,
                Some(own) => own?,
                None => client.get("/v1/tokens")?,
            };
            context.show(&tokens, |tokens| {
                let rows = tokens.iter().map(|it| {
                    let scopes: Vec<&str> = it.scopes.iter().map(|scope| scope.word()).collect();
                    let scopes = scopes.join(",") + if it.dangerous { " ! dangerous" } else { "" };
                    vec![it.id.clone(), it.user.clone(), it.label.clone(), moment(it.expires, false), scopes]
                });
                screen::table(&["TOKEN", "USER", "FOR", "EXPIRES", "SCOPES"], &[], rows)
            })
        }
        TokenCommand::Create { label, scopes, dangerous, lasts, user } => {
            let path = user.map_or("/v1/me/tokens".to_owned(), |user| format!("/v1/users/{user}/tokens"));
            let body = json!({ "label": label, "scopes": scopes, "dangerous": dangerous, "lasts": lasts });
            let made: TokenView = client.change(Method::POST, &path, Some(&body))?.json()?;
            let text = format!("{}\n", made.token.as_deref().unwrap_or_default());
            if !context.screen.is_json() {
                context.screen.say("the token, shown once:");
            }
            context.done(&made, &text)
        }
        TokenCommand::Revoke { id } => {
            let own = client.change(Method::DELETE, &format!("/v1/me/tokens/{id}"), None::<&()>);
            match own {
                // Somebody else's, for those who may.
                Err(failure) if ["no-user", "unknown-token"].contains(&failure.code.as_ref()) => {
                    client.change(Method::DELETE, &format!("/v1/tokens/{id}"), None::<&()>)?;
                }
                own => drop(own?),
            }
            context.done(&json!({ "id": id, "revoked": true }), &format!("✔ token {id} is revoked"))
        }
    }
}
