//! `quorate artifact`: what a spec says of the files that a service needs.

use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use clap::Subcommand;
use quorate_agent::needs;
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum ArtifactCommand {
    /// The hash of a file or a directory here, for `sha256` in a spec
    #[command(after_help = "Examples:\n  quorate artifact hash ./web-1.2.tgz\n  quorate artifact hash /srv/web")]
    Hash {
        /// File or directory
        path: PathBuf,
    },
}

pub(crate) fn run(context: &Context, command: ArtifactCommand) -> Result<(), Failure> {
    match command {
        ArtifactCommand::Hash { path } => {
            let hash = needs::hash(&path).map_err(|error| {
                let why = std::error::Error::source(&error).map(ToString::to_string);
                let failure = Failure::new(Exit::Usage, "unreadable", error.to_string());
                match why {
                    Some(why) => failure.why(why),
                    None => failure,
                }
            })?;
            let result = json!({ "path": path, "sha256": hash });
            context.show(&result, |_| hash.to_string())
        }
    }
}
