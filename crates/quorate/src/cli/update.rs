//! `quorate service history`, `quorate rollback` and `quorate update …`: the versions of a service, and the way
//! from one to another.

use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::screen::{self, moment};
use crate::cli::service::{self, Follow};
use clap::{Args, Subcommand};
use quorate_api::updates::{DeploymentView, HistoryView, RollBack, UpdateAction, UpdateWish, VersionState};
use quorate_api::view::ServiceView;
use quorate_model::deployment::Stage;
use std::time::Instant;
use ureq::http::Method;

#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// Name of the service
    name: String,
    /// A version of its history; without it, the last stable one that is not the present one
    #[arg(long, value_name = "VERSION")]
    to: Option<u64>,
    /// Do not wait until all copies are healthy
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum UpdateCommand {
    /// Let an update go on that waits after its canaries, or that is held
    #[command(after_help = "Examples:\n  quorate update continue web")]
    Continue(UpdateArgs),
    /// End an update, and go back to the last stable version
    #[command(after_help = "Examples:\n  quorate update abort web")]
    Abort(UpdateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// Name of the service
    name: String,
    /// Do not wait until all copies are healthy
    #[arg(long)]
    no_wait: bool,
}

pub(crate) fn history(context: &Context, name: &str) -> Result<(), Failure> {
    let client = context.client()?;
    service::show(&client, name)?;
    let history: HistoryView = client.get(&format!("/v1/services/{name}/history"))?;
    if context.screen.is_json() {
        context.screen.json(&history);
    } else {
        context.screen.data(&history_table(&history));
    }
    Ok(())
}

fn history_table(history: &HistoryView) -> String {
    let rows = history.versions.iter().map(|version| {
        let state = match version.state {
            VersionState::Running => "▲ tried out",
            VersionState::Stable => "● stable",
            VersionState::Failed => "✕ failed",
            VersionState::Superseded => "○ overtaken",
        };
        let present = if version.version == history.version { "*" } else { "" };
        vec![
            format!("{}{present}", version.version),
            state.to_owned(),
            moment(version.at, false),
            version.by.clone().unwrap_or_else(|| "-".into()),
            version.spec.command.join(" "),
            version.why.clone(),
        ]
    });
    screen::table(&["VERSION", "STATE", "APPLIED", "BY", "COMMAND", "WHY"], &[0], rows)
}

pub(crate) fn rollback(context: &Context, args: &RollbackArgs) -> Result<(), Failure> {
    let wish = RollBack { to: args.to };
    let title = match args.to {
        Some(version) => format!("{} goes back to version {version}", args.name),
        None => format!("{} goes back to the version before", args.name),
    };
    let follow = |before: &ServiceView| {
        let open = before.deployment.as_ref().filter(|deployment| !deployment.stage.is_over());
        intent(open, before.version, args.to)
    };
    ask(context, &args.name, ("rollback", &wish), &title, args.to, follow, args.no_wait)
}

pub(crate) fn update(context: &Context, command: &UpdateCommand) -> Result<(), Failure> {
    let (args, action, title) = match command {
        UpdateCommand::Continue(args) => (args, UpdateAction::Continue, format!("{} goes on", args.name)),
        UpdateCommand::Abort(args) => (args, UpdateAction::Abort, format!("{} goes back", args.name)),
    };
    let follow = |before: &ServiceView| match (action, &before.deployment) {
        (UpdateAction::Continue, Some(deployment)) if !deployment.stage.goes_back() => Follow::Again,
        (UpdateAction::Continue | UpdateAction::Abort, _) => Follow::Back,
    };
    ask(context, &args.name, ("update", &UpdateWish { action }), &title, None, follow, args.no_wait)
}

/// What somebody waits for who wants an earlier version, while `open` is under way.
fn intent(open: Option<&DeploymentView>, present: u64, to: Option<u64>) -> Follow {
    match open {
        // The update that goes on is undone.
        Some(open) if !open.stage.goes_back() && open.from.is_some() && (to.is_none() || to == open.from) => {
            Follow::Back
        }
        // Nothing has to be done, but what is being done.
        Some(open) if to == Some(present) && open.stage.goes_back() => Follow::Back,
        Some(_) if to == Some(present) => Follow::Version(present),
        None if to == Some(present) => Follow::Nothing,
        Some(_) | None => Follow::Again,
    }
}

fn ask<T: serde::Serialize>(
    context: &Context,
    name: &str,
    (what, wish): (&str, &T),
    title: &str,
    to: Option<u64>,
    follow: impl Fn(&ServiceView) -> Follow,
    no_wait: bool,
) -> Result<(), Failure> {
    let client = context.client()?;
    let started = Instant::now();
    let before = service::show(&client, name)?;
    client.change(Method::POST, &format!("/v1/services/{name}/{what}"), Some(wish))?;
    // What is shown may be a moment behind what was done.
    let stage = |view: &ServiceView| view.deployment.as_ref().map(|it| (it.version, it.stage, it.since));
    let accepted = |before: &ServiceView, view: &ServiceView| stage(before) != stage(view) || to == Some(view.version);
    let title = |before: &ServiceView| (title.to_owned(), follow(before));
    service::follow(context, &client, &[before], started, no_wait, title, accepted)
}

/// One line of an update that is not over, or did not end as it was meant to.
pub(crate) fn line(service: &ServiceView) -> Option<String> {
    let deployment = service.deployment.as_ref()?;
    let DeploymentView { version, from, stage, updated, why, held, .. } = deployment;
    let to = from.map_or_else(String::new, |from| format!(" to version {from}"));
    let want = service.want;
    let text = match stage {
        Stage::Canary => format!("version {version}: {updated} of {want} copies, as canaries"),
        Stage::AwaitPromotion => format!(
            "version {version}: {updated} of {want} copies, waits for its promotion: quorate update continue {}",
            service.name
        ),
        Stage::Rolling => format!("version {version}: {updated} of {want} copies"),
        Stage::Verifying => format!("version {version}: {updated} of {want} copies, not yet called stable"),
        Stage::Done => return None,
        Stage::RollingBack => format!("version {version} goes back{to} ({updated} of {want} copies): {why}"),
        Stage::RolledBack => format!("version {version} was rolled back{to}: {why}"),
    };
    Some(match held {
        Some(held) => format!("{text}; held: {held}"),
        None => text,
    })
}

/// Whether an update that a command waits for still replaces copies: what goes back is not what was asked for,
/// however healthy it is, and old copies may still end.
pub(crate) fn is_under_way(view: &ServiceView, follow: Follow) -> bool {
    let replaces = |stage| matches!(stage, Stage::Canary | Stage::Rolling | Stage::RollingBack);
    let deployment = view.deployment.as_ref().filter(|deployment| deployment.from.is_some());
    follow != Follow::Nothing && deployment.is_some_and(|deployment| replaces(deployment.stage))
}

/// What has become of an update that a command waits for. `None`: it goes on.
pub(crate) fn outcome(view: &ServiceView, follow: Follow) -> Option<Result<(), Failure>> {
    let deployment = view.deployment.as_ref()?;
    let failed = |code, error: String, why: &str, fix: String| {
        Some(Err(Failure::new(Exit::NotPlaced, code, error).why(why.to_owned()).fix(fix)))
    };
    let (name, version) = (&view.name, deployment.version);
    match (follow, deployment.stage, &deployment.held) {
        (Follow::Nothing, ..) => None,
        (Follow::Version(wanted), ..) if wanted != version => None,
        (Follow::Version(_) | Follow::Again, Stage::RolledBack, _) => {
            let back = deployment.from.map_or_else(String::new, |from| format!(" to version {from}"));
            let error = format!("{name} was rolled back{back}: version {version} failed");
            failed("rolled-back", error, &deployment.why, format!("quorate service history {name}"))
        }
        (Follow::Version(_) | Follow::Again | Follow::Back, stage, Some(held)) if deployment.from.is_some() => {
            let what = if stage.goes_back() { "going back is held" } else { "the update is held" };
            let fix = format!("quorate update continue {name}\nor give it up: quorate update abort {name}");
            failed("update-held", format!("{name} version {version}: {what}"), held, fix)
        }
        (Follow::Version(_) | Follow::Again, Stage::AwaitPromotion, _) => Some(Ok(())),
        (Follow::Version(_) | Follow::Again | Follow::Back, ..) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_model::time::WallTime;

    fn deployment(version: u64, from: Option<u64>, stage: Stage) -> DeploymentView {
        DeploymentView { version, from, stage, since: WallTime(0), updated: 0, why: String::new(), held: None }
    }

    #[test]
    fn an_earlier_version_that_is_brought_out_may_fail_and_an_update_that_is_undone_has_not() {
        assert_eq!(intent(None, 3, Some(1)), Follow::Again);
        assert_eq!(intent(None, 3, None), Follow::Again);
        assert_eq!(intent(None, 3, Some(3)), Follow::Nothing);
        let rolling = deployment(3, Some(2), Stage::Rolling);
        assert_eq!(intent(Some(&rolling), 3, None), Follow::Back);
        assert_eq!(intent(Some(&rolling), 3, Some(2)), Follow::Back);
        assert_eq!(intent(Some(&rolling), 3, Some(1)), Follow::Again);
        assert_eq!(intent(Some(&rolling), 3, Some(3)), Follow::Version(3));
        let back = deployment(3, Some(2), Stage::RollingBack);
        assert_eq!(intent(Some(&back), 2, Some(2)), Follow::Back);
        assert_eq!(intent(Some(&back), 2, Some(1)), Follow::Again);
    }
}
