//! Where a node is to live on this server: its directory, its addresses, and how it is started.
//! What `quorate init` and `quorate join` have in common.

use crate::cli::config::ConfigFile;
use crate::cli::failure::{Exit, Failure};
use crate::config::{self, Announced, NodeConfig};
use crate::settings::binding::{self, Binding, Host};
use crate::settings::{API_PORT, Addresses, Loaded, NodeSettings};
use crate::trust;
use clap::Args;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The unit that `init` and `join` write.
const UNIT: &str = "quorate.service";
const UNIT_FILE: &str = "/etc/systemd/system/quorate.service";

/// Where a node lives; what is not said here is as the settings say.
#[derive(Debug, Args)]
pub(crate) struct PlaceArgs {
    /// Where the node keeps everything; without it, `node.data_dir`
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where the API listens, by an address, an interface or `_site_`; without it, `node.listen`
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<Binding>,
    /// Where the node link listens; without it, on the port after `--listen`, or `node.link`
    #[arg(long, value_name = "HOST:PORT")]
    pub link: Option<Binding>,
    /// How other servers reach this one; without it, `node.advertise`, or what `listen` means
    #[arg(long, value_name = "HOST")]
    pub advertise: Option<Binding>,
    /// Only prepare the node; it is started by hand
    #[arg(long)]
    pub no_start: bool,
    #[command(flatten)]
    pub file: ConfigFile,
}

/// The same with everything decided. Holds both ports.
#[derive(Debug)]
pub(crate) struct Place {
    pub data_dir: PathBuf,
    pub api: TcpListener,
    pub link: TcpListener,
    pub addresses: Addresses,
    /// `None`: where they listen, as it was configured.
    pub announced: Option<Announced>,
}

impl PlaceArgs {
    /// The settings, with what was said here over them.
    ///
    /// # Errors
    /// What is wrong with the settings.
    pub(crate) fn settings(&self) -> Result<Loaded, Failure> {
        let mut loaded = self.file.source().load()?;
        let node = &mut loaded.settings.node;
        if let Some(dir) = &self.data_dir {
            node.data_dir.clone_from(dir);
        }
        if let Some(listen) = &self.listen {
            let after = listen.port.unwrap_or(API_PORT).checked_add(1).ok_or_else(|| {
                Failure::new(Exit::Usage, "port", "there is no port after that of the API").fix("add --link HOST:PORT")
            });
            if self.link.is_none() {
                node.link = Binding { host: listen.host.clone(), port: Some(after?) };
            }
            node.listen = listen.clone();
        }
        if let Some(link) = &self.link {
            node.link = link.clone();
        }
        if self.advertise.is_some() {
            node.advertise.clone_from(&self.advertise);
        }
        Ok(loaded)
    }
}

impl Place {
    /// Looks at the directory and takes the ports.
    ///
    /// # Errors
    /// The directory holds a node already, a port is in use, or no address is known.
    pub(crate) fn take(node: &NodeSettings) -> Result<Place, Failure> {
        refuse_old_data(&node.data_dir)?;
        let unknown = |why: &dyn std::fmt::Display| {
            Failure::new(Exit::Usage, "no-address", "it is not known under which address other servers reach this one")
                .why(why)
                .fix("add --advertise ADDRESS, or set node.advertise")
        };
        let interfaces = binding::interfaces().map_err(|error| unknown(&error))?;
        let addresses = node.addresses(&interfaces).map_err(|error| unknown(&error))?;
        let (api, link) = (bind(addresses.api.listen, "API")?, bind(addresses.link.listen, "node link")?);
        let announced = announced(node, &addresses);
        Ok(Place { data_dir: node.data_dir.clone(), api, link, addresses, announced })
    }

    pub(crate) fn api_address(&self) -> SocketAddr {
        self.addresses.api.advertise
    }

    pub(crate) fn link_address(&self) -> SocketAddr {
        self.addresses.link.advertise
    }
}

/// What was chosen; nothing was if both addresses are as they were written.
fn announced(node: &NodeSettings, addresses: &Addresses) -> Option<Announced> {
    let Addresses { api, link } = addresses;
    let written = |binding: &Binding| matches!(binding.host, Host::Address(_));
    let as_written = node.advertise.is_none() && written(&node.listen) && written(&node.link);
    if as_written && api.listen == api.advertise && link.listen == link.advertise {
        return None;
    }
    let because = if api.because == link.because {
        api.because.clone()
    } else {
        format!("{}; for the node link, {}", api.because, link.because)
    };
    Some(Announced { api: api.advertise, link: link.advertise, because })
}

/// A directory that holds a node is never written over: it may be the only copy of something.
fn refuse_old_data(dir: &Path) -> Result<(), Failure> {
    let old = [config::FILE, "log", "db", "services"].into_iter().find(|name| dir.join(name).exists());
    let Some(old) = old else { return Ok(()) };
    let text = std::fs::read_to_string(dir.join(config::FILE)).unwrap_or_default();
    let whose = match toml::from_str::<NodeConfig>(&text) {
        Ok(config) => format!("it is node {} of cluster {}", config.node.name, config.cluster.name),
        Err(_) => format!("there is `{old}` in it"),
    };
    Err(Failure::new(Exit::Conflict, "old-data", format!("{} holds the data of a node already", dir.display()))
        .why(whose)
        .fix(format!(
            "start that node: quorate serve --data-dir {0}\nor choose another --data-dir\nor, if nobody needs it, remove {0} yourself",
            dir.display()
        )))
}

fn bind(address: SocketAddr, what: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).map_err(|error| {
        let failure = match error.kind() {
            io::ErrorKind::AddrInUse => {
                Failure::new(Exit::Conflict, "port-in-use", format!("{address} ({what}) is in use"))
            }
            _ => Failure::new(Exit::Failed, "port", format!("{address} ({what}) cannot be used")).why(error),
        };
        failure.fix(
            "stop what listens there, or choose other ports with --listen and --link, or node.listen and node.link",
        )
    })
}

/// Writes what the node is, as the last thing: from then on the directory holds a node.
///
/// # Errors
/// The disk.
pub(crate) fn write_config(data_dir: &Path, config: &NodeConfig) -> Result<(), Failure> {
    let text = toml::to_string(config).expect("a configuration can be written down");
    let write = || -> io::Result<()> {
        std::fs::create_dir_all(data_dir)?;
        trust::replace(data_dir, config::FILE, 0o640, &text)?;
        std::fs::File::open(data_dir)?.sync_all()
    };
    write().map_err(|error| {
        Failure::new(Exit::Failed, "disk", format!("cannot write into {}", data_dir.display()))
            .why(error)
            .fix("run it as root, or choose another --data-dir")
    })
}

/// Whether systemd runs this server.
pub(crate) fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Writes the unit, starts it now and at each boot.
///
/// # Errors
/// What systemd says.
pub(crate) fn start_unit(data_dir: &Path) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Failed, "systemd", format!("{UNIT} cannot be started"))
            .why(error)
            .fix(format!("journalctl -u {UNIT}\nor start it by hand: quorate serve --data-dir {}", data_dir.display()))
    };
    let program = std::env::current_exe().map_err(|error| failed(&error))?;
    std::fs::write(UNIT_FILE, unit(&program, data_dir)).map_err(|error| failed(&error))?;
    for args in [&["daemon-reload"][..], &["enable", "--now", UNIT]] {
        let ran = Command::new("systemctl").args(args).output().map_err(|error| failed(&error))?;
        if !ran.status.success() {
            return Err(failed(&String::from_utf8_lossy(&ran.stderr).trim()));
        }
    }
    Ok(())
}

/// A node that was told to leave ends with success and is not started again before the next boot;
/// services outlive it (`KillMode=process`).
fn unit(program: &Path, data_dir: &Path) -> String {
    format!(
        "[Unit]\nDescription=Quorate node\nDocumentation=man:quorate(1)\nWants=network-online.target\n\
         After=network-online.target\n\n[Service]\nExecStart={} serve --data-dir {}\nExecReload=/bin/kill -HUP $MAINPID\n\
         Restart=on-failure\nRestartSec=1\nKillMode=process\nLimitNOFILE=1048576\n\n[Install]\nWantedBy=multi-user.target\n",
        program.display(),
        data_dir.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_a_node_in_it_is_never_written_over() {
        let dir = tempfile::tempdir().unwrap();
        refuse_old_data(dir.path()).unwrap();
        refuse_old_data(&dir.path().join("new")).unwrap();
        // An earlier attempt to join left its key.
        std::fs::create_dir(dir.path().join("tls")).unwrap();
        refuse_old_data(dir.path()).unwrap();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        let failure = refuse_old_data(dir.path()).unwrap_err();
        assert_eq!((failure.exit, &*failure.code), (Exit::Conflict, "old-data"));
        assert!(failure.fix.contains("quorate serve --data-dir"), "{failure}");
    }

    #[test]
    fn the_unit_starts_this_program_and_does_not_restart_one_that_left() {
        let text = unit(Path::new("/usr/bin/quorate"), Path::new("/var/lib/quorate"));
        assert!(text.contains("\nExecStart=/usr/bin/quorate serve --data-dir /var/lib/quorate\n"), "{text}");
        assert!(text.contains("\nRestart=on-failure\n") && text.contains("\nKillMode=process\n"), "{text}");
    }

    /// Z4.
    #[test]
    fn z4_the_address_that_was_chosen_is_kept_with_its_reason() {
        let interface = |name: &str, index, address: [u8; 4]| binding::Interface {
            name: name.into(),
            index,
            addresses: vec![address.into()],
        };
        let machine = [interface("lo", 1, [127, 0, 0, 1]), interface("eth0", 2, [192, 168, 1, 51])];
        let chosen = |listen: &str, link: &str| {
            let node = NodeSettings {
                listen: listen.parse().unwrap(),
                link: link.parse().unwrap(),
                ..NodeSettings::default()
            };
            announced(&node, &node.addresses(&machine).unwrap())
        };
        assert_eq!(chosen("127.0.0.1:7000", "127.0.0.1:7001"), None);
        for listen in ["0.0.0.0:7000", "_site_:7000", "eth0:7000", "tcp://[eth0:ipv4]:7000"] {
            let announced = chosen(listen, "0.0.0.0:7001").unwrap();
            assert_eq!(
                (announced.api, announced.link),
                addresses("192.168.1.51:7000", "192.168.1.51:7001"),
                "{listen}"
            );
            assert!(announced.because.contains("192.168.1.51") && announced.because.contains("eth0"), "{announced:?}");
        }
        let apart = chosen("eth0:7000", "127.0.0.1:7511").unwrap();
        assert_eq!((apart.api, apart.link), addresses("192.168.1.51:7000", "127.0.0.1:7511"));
        assert!(apart.because.contains("for the node link, 127.0.0.1"), "{apart:?}");
    }

    fn addresses(api: &str, link: &str) -> (SocketAddr, SocketAddr) {
        (api.parse().unwrap(), link.parse().unwrap())
    }
}
