//! `quorate config …`: looking at an operator's settings, checking and changing them.
//!
//! All of it works on the file of this machine, and none of it asks a cluster: a file must be
//! repairable while nothing runs.

use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::screen;
use crate::settings::edit::{self, Edit};
use crate::settings::keys::{self, Applies, KEYS};
use crate::settings::mistake::{Mistake, Mistakes};
use crate::settings::reload::{Change, changes};
use crate::settings::{Loaded, Settings, Source, binding, kuzzle, read};
use clap::{Args, Subcommand};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Which file is meant.
#[derive(Debug, Args)]
pub(crate) struct ConfigFile {
    /// The configuration; without it /etc/quorate/quorate.toml, if there is one
    #[arg(long, value_name = "FILE", env = "QUORATE_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
}

impl ConfigFile {
    pub(crate) fn source(&self) -> Source {
        Source::of_process(self.config.clone())
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Every setting with its value
    #[command(
        after_help = "Examples:\n  quorate config show\n  quorate config show --origin\n  quorate config show cluster.minimum_nodes -o json"
    )]
    Show {
        /// Only this setting, or this section
        key: Option<String>,
        /// Also where each value comes from
        #[arg(long)]
        origin: bool,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Check a file before a server reads it
    #[command(
        after_help = "Examples:\n  quorate config validate\n  quorate config validate new.toml && sudo systemctl reload quorate"
    )]
    Validate {
        /// The file to check, instead of the configuration
        candidate: Option<PathBuf>,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// What would change if a file took the configuration's place; without one, what is not the default
    #[command(after_help = "Examples:\n  quorate config diff\n  quorate config diff new.toml")]
    Diff {
        /// The file to compare with
        candidate: Option<PathBuf>,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Change settings in the file; comments stay
    #[command(
        after_help = "Examples:\n  sudo quorate config set cluster.minimum_nodes=2\n  sudo quorate config set log.level=debug ha.failover_time=20s --plan\n  sudo quorate config set cluster.seed=192.168.1.100:7000,192.168.1.101:7000"
    )]
    Set {
        /// Setting and value; a list has commas
        #[arg(value_name = "KEY=VALUE", required = true)]
        settings: Vec<String>,
        /// Only show what would change
        #[arg(long)]
        plan: bool,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Take settings out of the file, so that their defaults count
    #[command(
        after_help = "Examples:\n  sudo quorate config unset node.alias\n  sudo quorate config unset log.level --plan"
    )]
    Unset {
        /// The settings
        #[arg(value_name = "KEY", required = true)]
        keys: Vec<String>,
        /// Only show what would change
        #[arg(long)]
        plan: bool,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Take over the configuration of another product
    #[command(subcommand)]
    Import(ImportCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImportCommand {
    /// A Kuzzle with the cluster plugin: prints the file it becomes
    #[command(
        after_help = "Examples:\n  quorate config import kuzzle /etc/kuzzlerc\n  quorate config import kuzzle .kuzzlerc > quorate.toml\n  sudo quorate config import kuzzle .kuzzlerc --write"
    )]
    Kuzzle {
        /// Kuzzle's configuration, in JSON; comments are allowed
        source: PathBuf,
        /// Put the settings into the configuration, beside what is in it
        #[arg(long)]
        write: bool,
        /// Only show what `--write` would change
        #[arg(long, requires = "write")]
        plan: bool,
        #[command(flatten)]
        file: ConfigFile,
    },
}

pub(crate) fn run(context: &Context, command: &ConfigCommand) -> Result<ExitCode, Failure> {
    match command {
        ConfigCommand::Show { key, origin, file } => show(context, &file.source(), key.as_deref(), *origin)?,
        ConfigCommand::Validate { candidate, file } => {
            return validate(context, &candidate.as_deref().map_or_else(|| file.source(), alone));
        }
        ConfigCommand::Diff { candidate, file } => diff(context, &file.source(), candidate.as_ref())?,
        ConfigCommand::Set { settings, plan, file } => {
            let edits = all(settings.iter().map(|text| Edit::parse(text)))?;
            change(context, &file.source(), &edits, *plan)?;
        }
        ConfigCommand::Unset { keys, plan, file } => {
            let edits = all(keys.iter().map(|path| edit::known(path).map(|key| Edit::Unset(key.path))))?;
            change(context, &file.source(), &edits, *plan)?;
        }
        ConfigCommand::Import(ImportCommand::Kuzzle { source, write, plan, file }) => {
            import(context, source, &file.source(), *write, *plan)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A file by itself: what the environment says is another matter.
fn alone(file: &Path) -> Source {
    Source { file: Some(file.to_owned()), environment: BTreeMap::new() }
}

fn all(edits: impl Iterator<Item = Result<Edit, Mistakes>>) -> Result<Vec<Edit>, Mistakes> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for edit in edits {
        match edit {
            Ok(edit) => good.push(edit),
            Err(mistakes) => bad.extend(mistakes.0),
        }
    }
    if bad.is_empty() { Ok(good) } else { Err(Mistakes(bad)) }
}

fn show(context: &Context, source: &Source, wanted: Option<&str>, origin: bool) -> Result<(), Failure> {
    let loaded = source.load()?;
    let inside = |path: &str| {
        wanted
            .is_none_or(|wanted| path.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    };
    let keys: Vec<_> = KEYS.iter().filter(|key| inside(key.path)).collect();
    if let (Some(wanted), true) = (wanted, keys.is_empty()) {
        let mistake = read::unknown_key(wanted, crate::settings::mistake::Place::CommandLine);
        return Err(Failure { exit: Exit::NotFound, ..Mistakes::from(mistake).into() });
    }
    let resolved = resolved(&loaded.settings);
    if context.screen.is_json() {
        let settings: Vec<Json> = keys
            .iter()
            .map(|key| {
                json!({
                    "key": key.path, "value": key.get(&loaded.settings).map(|value| value.to_json()),
                    "default": key.get(&Settings::default()).map(|value| value.to_json()),
                    "origin": loaded.origin(key.path).to_string(), "applies": key.applies.words(),
                    "takes": key.kind.describe(), "about": key.about, "means": resolved.get(key.path),
                })
            })
            .collect();
        context.screen.json(&json!({ "file": source.path(), "settings": settings }));
        return Ok(());
    }
    let mut header = vec!["KEY", "VALUE"];
    if origin || context.screen.is_wide() {
        header.extend(["ORIGIN", "APPLIES"]);
    }
    let rows = keys.iter().map(|key| {
        let value = key.get(&loaded.settings).map_or_else(|| "-".to_owned(), |value| value.to_string());
        let mut row = vec![key.path.to_owned(), value];
        if header.len() > 2 {
            row.extend([loaded.origin(key.path).to_string(), key.applies.words().to_owned()]);
        }
        row
    });
    context.screen.data(&screen::table(&header, &[], rows));
    for (path, means) in resolved.iter().filter(|(path, _)| inside(path)) {
        context.screen.say(&format!("{path}: {means}"));
    }
    Ok(())
}

/// What the settings of the node mean on this machine, where they do not say it themselves.
fn resolved(settings: &Settings) -> BTreeMap<&'static str, String> {
    let node = &settings.node;
    let found = binding::interfaces().map_err(|error| error.to_string());
    let found = found.and_then(|interfaces| node.addresses(&interfaces).map_err(|error| error.to_string()));
    let mut means = match found {
        Ok(addresses) => BTreeMap::from([
            ("node.listen", format!("{} ({})", addresses.api.advertise, addresses.api.because)),
            ("node.link", format!("{} ({})", addresses.link.advertise, addresses.link.because)),
        ]),
        Err(problem) => BTreeMap::from([("node.listen", format!("means nothing here: {problem}"))]),
    };
    if node.name.is_none() {
        means.insert("node.name", format!("{} (the host name)", node.name_or_host()));
    }
    means
}

fn validate(context: &Context, source: &Source) -> Result<ExitCode, Failure> {
    let (screen, path) = (context.screen, source.path());
    match source.load() {
        Ok(loaded) if screen.is_json() => {
            screen.json(&json!({ "file": path, "valid": true, "set": loaded.origins.len(), "mistakes": [] }));
        }
        Ok(_) if source.file.is_none() && !path.exists() => {
            screen.data(&format!("✔ there is no {}, so every setting has its default", path.display()));
        }
        Ok(loaded) => {
            screen.data(&format!(
                "✔ {} is valid, {} settings are not their defaults",
                path.display(),
                not_default(&loaded)
            ));
        }
        Err(mistakes) if screen.is_json() => {
            let list: Vec<Json> = mistakes.0.iter().map(Mistake::to_json).collect();
            screen.json(&json!({ "file": path, "valid": false, "mistakes": list }));
            return Ok(ExitCode::from(Exit::Usage as u8));
        }
        Err(mistakes) => return Err(mistakes.into()),
    }
    Ok(ExitCode::SUCCESS)
}

fn not_default(loaded: &Loaded) -> usize {
    changes(&Settings::default(), &loaded.settings).len()
}

fn diff(context: &Context, source: &Source, candidate: Option<&PathBuf>) -> Result<(), Failure> {
    let (from, to) = match candidate {
        Some(candidate) => {
            let with_environment = Source { file: Some(candidate.clone()), environment: source.environment.clone() };
            (source.load()?.settings, with_environment.load()?.settings)
        }
        None => (Settings::default(), source.load()?.settings),
    };
    let changes = changes(&from, &to);
    if context.screen.is_json() {
        context.screen.json(&json!({ "changes": to_json(&changes) }));
    } else if changes.is_empty() {
        context.screen.say(if candidate.is_some() { "nothing would change" } else { "every setting has its default" });
    } else {
        context.screen.data(&lines(&changes));
    }
    Ok(())
}

fn to_json(changes: &[Change]) -> Vec<Json> {
    let value =
        |value: &Option<crate::settings::value::Value>| value.as_ref().map(crate::settings::value::Value::to_json);
    changes
        .iter()
        .map(|change| {
            json!({ "key": change.path, "from": value(&change.from), "to": value(&change.to), "applies": change.applies.words() })
        })
        .collect()
}

fn lines(changes: &[Change]) -> String {
    changes.iter().map(|change| format!("~ {change}   ({})\n", when(change.applies))).collect()
}

fn when(applies: Applies) -> &'static str {
    match applies {
        Applies::Live => "live: systemctl reload quorate",
        Applies::Restart => "after systemctl restart quorate",
        Applies::Join => "when a node is created or joins; a member changes it with the cluster's commands",
    }
}

fn change(context: &Context, source: &Source, edits: &[Edit], plan: bool) -> Result<(), Failure> {
    let path = source.path();
    // A file that is to be made need not exist yet.
    let old = if path.exists() { source.text()? } else { String::new() };
    let new = edit::edit(&old, path, edits)?;
    let nothing = BTreeMap::new();
    // The old file may be broken in a way that the edit repairs.
    let before = read::read(&old, path, &nothing).map(|loaded| loaded.settings).unwrap_or_default();
    let changes = changes(&before, &read::read(&new, path, &nothing)?.settings);
    let hidden = hidden(source, &changes);
    if !plan && new != old {
        edit::write(path, &new).map_err(|error| {
            Failure::new(Exit::Failed, "config-unwritable", format!("{} cannot be written", path.display()))
                .why(error)
                .fix("run it as root, or name a file of yours: --config FILE")
        })?;
    }
    if context.screen.is_json() {
        context.screen.json(&json!({ "file": path, "written": !plan && new != old, "changes": to_json(&changes) }));
    } else if changes.is_empty() {
        context.screen.say(&format!("{} says that already", path.display()));
    } else {
        context.screen.data(&lines(&changes));
        context.screen.say(&if plan {
            format!("nothing was written; without --plan it goes to {}", path.display())
        } else {
            format!("✔ written to {}", path.display())
        });
    }
    for line in hidden {
        context.screen.say(&line);
    }
    Ok(())
}

/// Changes that do nothing, because a variable goes before the file.
fn hidden(source: &Source, changes: &[Change]) -> Vec<String> {
    let variable = |change: &Change| {
        let key = keys::find(change.path)?;
        let names = [Some(key.variable()), key.short_variable().map(str::to_owned)];
        let name = names.into_iter().flatten().find(|name| source.environment.contains_key(name))?;
        Some(format!("! {} stays what {name} says: the environment goes before the file", change.path))
    };
    changes.iter().filter_map(variable).collect()
}

fn import(context: &Context, from: &Path, to: &Source, write: bool, plan: bool) -> Result<(), Failure> {
    let text = std::fs::read_to_string(from).map_err(|error| Mistakes::from(Mistake::unreadable(from, &error)))?;
    let import = kuzzle::import(&text, from)?;
    let rendered = kuzzle::render(&import, from)?;
    if context.screen.is_json() {
        let settings: Vec<Json> = import
            .settings
            .iter()
            .map(|(key, value, from)| json!({ "key": key, "value": value.to_json(), "from": from }))
            .collect();
        if !write {
            context.screen.json(&json!({ "settings": settings, "warnings": import.warnings, "file": rendered }));
            return Ok(());
        }
    } else if !write {
        context.screen.data(&rendered);
    }
    for warning in &import.warnings {
        context.screen.say(&format!("! {warning}"));
    }
    if write { change(context, to, &import.edits(), plan) } else { Ok(()) }
}
