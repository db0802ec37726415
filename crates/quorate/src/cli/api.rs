//! `quorate api`: the HTTP API for those who know what they ask.

use crate::cli::Context;
use crate::cli::client::Call;
use crate::cli::failure::{Exit, Failure};
use clap::Args;
use std::io::Read;
use ureq::http::Method;

#[derive(Debug, Args)]
pub(crate) struct ApiArgs {
    /// GET, POST, PUT or DELETE
    method: String,
    /// Path with its query, beginning with a slash
    path: String,
    /// Body; @FILE takes it from a file and @- from standard input
    #[arg(long, value_name = "TEXT")]
    data: Option<String>,
    /// Content type of the body
    #[arg(long = "type", value_name = "MIME", default_value = "application/json")]
    content_type: String,
}

pub(crate) fn run(context: &Context, args: &ApiArgs) -> Result<(), Failure> {
    let usage = |message: String| Failure::new(Exit::Usage, "usage", message).fix("quorate api GET /v1/status");
    let method = args.method.to_ascii_uppercase();
    let method: Method = match method.as_str() {
        "GET" | "POST" | "PUT" | "DELETE" => method.parse().expect("these four are methods"),
        _ => return Err(usage(format!("`{}` is not a method of the API", args.method))),
    };
    if !args.path.starts_with('/') {
        return Err(usage(format!("the path `{}` does not begin with a slash", args.path)));
    }
    let content = match args.data.as_deref() {
        None => Vec::new(),
        Some("@-") => {
            let mut content = Vec::new();
            std::io::stdin()
                .read_to_end(&mut content)
                .map_err(|error| usage("standard input ended badly".into()).why(error))?;
            content
        }
        Some(data) => match data.strip_prefix('@') {
            Some(file) => std::fs::read(file).map_err(|error| usage(format!("cannot read {file}")).why(error))?,
            None => data.as_bytes().to_vec(),
        },
    };
    let mutation = method != Method::GET;
    let body = (mutation && method != Method::DELETE).then_some((args.content_type.as_str(), content));
    let answer =
        context.client()?.send(&Call { method, path: &args.path, body, header: None, mutation, patient: true })?;
    context.screen.raw(&answer.body);
    if answer.body.last().is_some_and(|last| *last != b'\n') {
        context.screen.raw(b"\n");
    }
    Ok(())
}
