//! `quorate reconfigure`: settings of the cluster and of its services, by questions or by `--set`.
//!
//! What a key means and what it takes is decided by the cluster; here it is asked for and shown.

use crate::cli::Context;
use crate::cli::client::Client;
use crate::cli::failure::{Exit, Failure};
use crate::cli::{screen, service};
use clap::Args;
use quorate_api::reconfigure::{Reconfigure, Reconfigured, SettingView};
use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use ureq::http::Method;

#[derive(Debug, Args)]
pub(crate) struct ReconfigureArgs {
    /// Setting and value, without questions; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Only show what would change
    #[arg(long, conflicts_with = "list")]
    plan: bool,
    /// Show every setting with its value
    #[arg(long, conflicts_with = "set")]
    list: bool,
    /// Do not ask whether to do it
    #[arg(long)]
    yes: bool,
}

pub(crate) fn run(context: &Context, args: &ReconfigureArgs) -> Result<(), Failure> {
    let client = context.client()?;
    if args.list {
        let settings: Vec<SettingView> = client.get("/v1/settings")?;
        return context.show(&settings, |settings| {
            let row = |it: &SettingView| vec![it.key.clone(), it.value.clone(), it.takes.clone()];
            screen::table(&["KEY", "VALUE", "TAKES"], &[], settings.iter().map(row))
        });
    }
    if !args.set.is_empty() {
        let set = assignments(&args.set)?;
        let done = send(&client, &set, args.plan)?;
        return context.show(&done, |done| told(done, args.plan));
    }
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(Failure::new(
            Exit::Usage,
            "nobody-to-ask",
            "this asks questions, and nobody is there to answer them",
        )
        .fix("quorate reconfigure --set KEY=VALUE\nquorate reconfigure --list"));
    }
    let settings: Vec<SettingView> = client.get("/v1/settings")?;
    let set = ask(&settings, &mut std::io::stdin().lock(), &mut anstream::stderr())
        .map_err(|error| Failure::new(Exit::Failed, "io", "the answers could not be read").why(error))?;
    let plan = send(&client, &set, true)?;
    if args.plan || plan.changes.is_empty() {
        return context.show(&plan, |plan| told(plan, true));
    }
    if !context.screen.is_json() {
        context.screen.say(&told(&plan, true));
    }
    if !args.yes {
        service::confirm(context.screen, "Change this? [y/N] ", false)?;
    }
    // Thinking takes longer than a command may.
    let done = send(&context.client()?, &set, false)?;
    context.show(&done, |done| told(done, false))
}

fn send(client: &Client, set: &BTreeMap<String, String>, plan: bool) -> Result<Reconfigured, Failure> {
    let body = Reconfigure { set: set.clone(), plan };
    client.change(Method::POST, "/v1/settings", Some(&body))?.json()
}

fn assignments(texts: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let wrong = |what: String| Failure::new(Exit::Usage, "usage", what).fix("--set failover=20s --set replicas.web=4");
    let mut set = BTreeMap::new();
    for text in texts {
        let (key, value) = text.split_once('=').ok_or_else(|| wrong(format!("`{text}` is not KEY=VALUE")))?;
        if set.insert(key.trim().to_owned(), value.trim().to_owned()).is_some() {
            return Err(wrong(format!("`{}` is given twice", key.trim())));
        }
    }
    Ok(set)
}

/// Each setting with its present value; an empty line keeps it, and so does the end of the answers.
fn ask(
    settings: &[SettingView],
    answers: &mut impl BufRead,
    out: &mut impl Write,
) -> std::io::Result<BTreeMap<String, String>> {
    writeln!(out, "Enter keeps what is in brackets.")?;
    let mut set = BTreeMap::new();
    for SettingView { key, value, takes, about } in settings {
        let question = format!("{key}: {about}; {takes} [{value}] ");
        write!(out, "{}", screen::paint(&question))?;
        out.flush()?;
        let mut answer = String::new();
        if answers.read_line(&mut answer)? == 0 {
            writeln!(out)?;
            break;
        }
        let answer = answer.trim();
        if !answer.is_empty() && answer != value {
            set.insert(key.clone(), answer.to_owned());
        }
    }
    Ok(set)
}

fn told(done: &Reconfigured, plan: bool) -> String {
    if done.changes.is_empty() {
        return "every setting has that value already".to_owned();
    }
    let mark = if plan { '~' } else { '✔' };
    let line = |it: &quorate_api::reconfigure::SettingChange| {
        format!("{mark} {} {} → {}   ({})", it.key, it.from, it.to, it.effect)
    };
    done.changes.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use quorate_api::reconfigure::SettingChange;

    #[test]
    fn e5_questions_show_the_present_value_and_enter_keeps_it() {
        let setting = |key: &str, value: &str| SettingView {
            key: key.into(),
            value: value.into(),
            takes: "10s to 300s".into(),
            about: "how long".into(),
        };
        let settings = [setting("failover", "default"), setting("failover.db", "30s"), setting("failover.erp", "20s")];
        let mut out = Vec::new();
        let set = ask(&settings, &mut "\n 15s \n20s\n".as_bytes(), &mut out).unwrap();
        assert_eq!(set, BTreeMap::from([("failover.db".to_owned(), "15s".to_owned())]));
        expect![[r"
            Enter keeps what is in brackets.
            failover: how long; 10s to 300s [default] failover.db: how long; 10s to 300s [30s] failover.erp: how long; 10s to 300s [20s] "]]
        .assert_eq(&String::from_utf8(out).unwrap());
        assert!(ask(&settings, &mut "".as_bytes(), &mut Vec::new()).unwrap().is_empty());
    }

    #[test]
    fn e5_what_changes_is_told_with_its_effect() {
        let change = SettingChange {
            key: "failover".into(),
            from: "default".into(),
            to: "20s".into(),
            effect: "each next holder gets the new one".into(),
        };
        let done = Reconfigured { changes: vec![change], index: None };
        assert_eq!(told(&done, true), "~ failover default → 20s   (each next holder gets the new one)");
        let none = Reconfigured { changes: vec![], index: None };
        assert_eq!(told(&none, false), "every setting has that value already");
        assert!(assignments(&["a=1".into(), "a = 2".into()]).is_err());
        assert!(assignments(&["a".into()]).is_err());
        assert_eq!(assignments(&["x=2..6 cpu=70%".into()]).unwrap()["x"], "2..6 cpu=70%");
    }
}
