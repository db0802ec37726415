//! `quorate vip`: virtual addresses that gateways hold.

use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::placement::labels_text;
use crate::cli::screen;
use crate::cli::service::confirm;
use clap::Subcommand;
use quorate_api::vips::{CandidateState, NewVip, VipChanged, VipView};
use quorate_model::vip::{Interface, VipAddress};
use std::net::IpAddr;
use ureq::http::Method;

#[derive(Debug, Subcommand)]
pub(crate) enum VipCommand {
    /// Add an address that gateways hold; when the one that has it is lost, another takes it within 0.4 s
    #[command(
        after_help = "Examples:\n  quorate vip add 10.0.0.9/24\n  quorate vip add 10.0.0.9/24 --interface eth1\n  quorate vip add 2001:db8::9/64 --gateways zone=a"
    )]
    Add {
        /// The address with the length of its subnet's prefix
        address: VipAddress,
        /// Where it goes; default: the interface with an address in the same subnet
        #[arg(long, value_name = "NAME")]
        interface: Option<Interface>,
        /// Labels that a gateway's node must have to hold it; repeat for each. Default: any gateway may
        #[arg(long, value_name = "KEY=VALUE")]
        gateways: Vec<String>,
    },
    /// All virtual addresses of gateways, and who holds them
    #[command(after_help = "Examples:\n  quorate vip list\n  quorate vip list -o json")]
    List,
    /// Remove an address; whoever holds it takes it down
    #[command(after_help = "Examples:\n  quorate vip remove 10.0.0.9\n  quorate vip remove 10.0.0.9 --yes")]
    Remove {
        /// The address, with or without its prefix
        address: String,
        /// Ask nothing
        #[arg(short, long)]
        yes: bool,
    },
}

pub(crate) fn run(context: &Context, command: VipCommand) -> Result<(), Failure> {
    let client = context.client()?;
    match command {
        VipCommand::Add { address, interface, gateways } => {
            let gateways = gateways.iter().map(|text| read_label(text)).collect::<Result<_, _>>()?;
            let interface = interface.map(|interface| interface.to_string());
            let wish = NewVip { address: address.to_string(), interface, gateways };
            let changed: VipChanged = client.change(Method::POST, "/v1/vips", Some(&wish))?.json()?;
            context.done(&changed, &format!("✔ gateways hold {address} from now on"))
        }
        VipCommand::List => {
            let vips: Vec<VipView> = client.get("/v1/vips")?;
            context.show(&vips, |vips| {
                screen::table(&["VIP", "HOLDER", "EPOCH", "OTHERS", "GATEWAYS", "NOTE"], &[2], vips.iter().map(row))
            })
        }
        VipCommand::Remove { address, yes } => {
            let ip = read_ip(&address)?;
            if !yes {
                confirm(context.screen, &format!("Remove {ip}? Connections through it break. [y/N] "), false)?;
            }
            let path = format!("/v1/vips/{ip}");
            let changed: VipChanged = client.change(Method::DELETE, &path, None::<&()>)?.json()?;
            context.done(&changed, &format!("✔ {ip} is nobody's"))
        }
    }
}

fn row(vip: &VipView) -> Vec<String> {
    let holder = vip.candidates.iter().find(|candidate| Some(&candidate.node) == vip.holder.as_ref());
    let others = vip.candidates.iter().filter(|candidate| Some(&candidate.node) != vip.holder.as_ref());
    let others: Vec<String> = others
        .map(|candidate| match candidate.state {
            CandidateState::Standby => candidate.node.clone(),
            CandidateState::Holding => format!("{} (holds it too)", candidate.node),
            CandidateState::Unfit => format!("{} (unfit)", candidate.node),
            CandidateState::Silent => format!("{} (silent)", candidate.node),
        })
        .collect();
    let noted = vip.candidates.iter().filter(|candidate| !candidate.detail.is_empty());
    let mut notes: Vec<String> = noted.map(|candidate| format!("{}: {}", candidate.node, candidate.detail)).collect();
    if vip.candidates.is_empty() {
        notes.push("no node with the role gateway may hold it".into());
    }
    vec![
        vip.interface.as_ref().map_or(vip.address.to_string(), |interface| format!("{} on {interface}", vip.address)),
        vip.holder.clone().unwrap_or_else(|| "nobody".into()),
        holder.map(|holder| holder.epoch.to_string()).unwrap_or_default(),
        others.join(", "),
        if vip.gateways.is_empty() { "any".into() } else { labels_text(&vip.gateways) },
        notes.join("; "),
    ]
}

fn read_label(text: &str) -> Result<(String, String), Failure> {
    let label = text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    label.ok_or_else(|| {
        Failure::new(Exit::Usage, "bad-label", format!("`{text}` is no label"))
            .fix(format!("quorate vip add … --gateways {text}=VALUE"))
    })
}

fn read_ip(text: &str) -> Result<IpAddr, Failure> {
    let ip = text.split_once('/').map_or(text, |(ip, _)| ip);
    ip.parse().map_err(|_| {
        Failure::new(Exit::Usage, "bad-address", format!("`{text}` is no address"))
            .fix("quorate vip list   shows those that there are")
    })
}
