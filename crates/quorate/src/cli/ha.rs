//! High availability: `ha show`, `ha enable`, `ha disable` (K6).

use crate::cli::Context;
use crate::cli::failure::Failure;
use clap::Subcommand;
use quorate_api::ha::{HaView, HaWish};
use ureq::http::Method;

/// What is said where managers would be listed.
pub(crate) const OFF: &str = "high availability is off: there is one node.  Next: quorate ha enable";

#[derive(Debug, Subcommand)]
pub(crate) enum HaCommand {
    /// Whether it is on, and what it bears
    #[command(after_help = "Examples:\n  quorate ha show\n  quorate ha show -o json")]
    Show,
    /// Switch it on; the first `add-node` does it too
    #[command(after_help = "Examples:\n  quorate ha enable")]
    Enable,
    /// Switch it off: one node that coordinates with nobody
    #[command(after_help = "Examples:\n  quorate ha disable")]
    Disable,
}

pub(crate) fn run(context: &Context, command: &HaCommand) -> Result<(), Failure> {
    let client = context.client()?;
    let enabled = match command {
        HaCommand::Show => {
            let view: HaView = client.get("/v1/ha")?;
            return context.show(&view, text);
        }
        HaCommand::Enable => true,
        HaCommand::Disable => false,
    };
    let view: HaView = client.change(Method::PUT, "/v1/ha", Some(&HaWish { enabled }))?.json()?;
    context.done(&view, &format!("✔ {}", text(&view)))
}

fn text(view: &HaView) -> String {
    let next = match (view.enabled, view.can_lose) {
        (false, _) => "  Next: quorate ha enable",
        (true, Some(0)) => "  Next: quorate add-node",
        (true, _) => "",
    };
    let active = view.active.as_ref().map_or_else(String::new, |active| format!(" · {active} is Active"));
    format!("{}{active}{next}", view.summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k6_it_is_told_in_one_line_what_is_on_and_what_to_do_next() {
        let off = HaView { enabled: false, summary: "it is off".into(), active: None, voters: None, can_lose: None };
        assert_eq!(text(&off), "it is off  Next: quorate ha enable");
        let on = HaView { enabled: true, active: Some("n1".into()), voters: Some(1), can_lose: Some(0), ..off };
        assert_eq!(text(&on), "it is off · n1 is Active  Next: quorate add-node");
    }
}
