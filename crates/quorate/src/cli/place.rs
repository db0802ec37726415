//! Where a node is to live on this server: its directory, its addresses, and how it is started.
//! What `quorate init` and `quorate join` have in common.

use crate::cli::failure::{Exit, Failure};
use crate::config::{self, NodeConfig};
use crate::trust;
use clap::Args;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The unit that `init` and `join` write.
const UNIT: &str = "quorate.service";
const UNIT_FILE: &str = "/etc/systemd/system/quorate.service";

/// Where a node lives.
#[derive(Debug, Args)]
pub(crate) struct PlaceArgs {
    /// Where the node keeps everything
    #[arg(long, value_name = "DIR", default_value = "/var/lib/quorate")]
    pub data_dir: PathBuf,
    /// Where the API listens
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:7000")]
    pub listen: SocketAddr,
    /// Where the node link listens; without it, on the port after the API's
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub link: Option<SocketAddr>,
    /// The address under which other servers reach this one; without it, the one that it reaches them from
    #[arg(long, value_name = "ADDRESS")]
    pub advertise: Option<IpAddr>,
    /// Only prepare the node; it is started by hand
    #[arg(long)]
    pub no_start: bool,
}

/// The same with everything decided. Holds both ports.
#[derive(Debug)]
pub(crate) struct Place {
    pub data_dir: PathBuf,
    pub api: TcpListener,
    pub link: TcpListener,
    pub api_listen: SocketAddr,
    pub link_listen: SocketAddr,
    /// `None`: where the API listens.
    pub advertise: Option<IpAddr>,
}

impl PlaceArgs {
    /// Looks at the directory and takes the ports. `towards`: another server, if one is known.
    ///
    /// # Errors
    /// The directory holds a node already, a port is in use, or no address is known.
    pub(crate) fn take(&self, towards: Option<SocketAddr>) -> Result<Place, Failure> {
        refuse_old_data(&self.data_dir)?;
        let after = self.listen.port().checked_add(1).ok_or_else(|| {
            Failure::new(Exit::Usage, "port", "there is no port after that of the API").fix("add --link ADDRESS:PORT")
        })?;
        let link_listen = self.link.unwrap_or(SocketAddr::new(self.listen.ip(), after));
        let (api, link) = (bind(self.listen, "API")?, bind(link_listen, "node link")?);
        let advertise = match self.advertise {
            Some(address) => Some(address),
            None if self.listen.ip().is_unspecified() => Some(source_towards(towards, self.listen.is_ipv6())?),
            None => None,
        };
        let (data_dir, api_listen) = (self.data_dir.clone(), self.listen);
        Ok(Place { data_dir, api, link, api_listen, link_listen, advertise })
    }
}

impl Place {
    pub(crate) fn api_address(&self) -> SocketAddr {
        SocketAddr::new(self.advertise.unwrap_or(self.api_listen.ip()), self.api_listen.port())
    }

    pub(crate) fn link_address(&self) -> SocketAddr {
        SocketAddr::new(self.advertise.unwrap_or(self.link_listen.ip()), self.link_listen.port())
    }
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
        failure.fix("stop what listens there, or choose other ports with --listen and --link")
    })
}

/// The address that this server has on the way to another. Nothing is sent.
fn source_towards(to: Option<SocketAddr>, v6: bool) -> Result<IpAddr, Failure> {
    // Addresses for documentation (RFC 5737, 3849): they lead where the default route does.
    let default = || if v6 { "[2001:db8::1]:9" } else { "192.0.2.1:9" }.parse().expect("it is an address");
    let to: SocketAddr = to.unwrap_or_else(default);
    let from: &str = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let find = || -> io::Result<IpAddr> {
        let socket = UdpSocket::bind(from)?;
        socket.connect(to)?;
        Ok(socket.local_addr()?.ip())
    };
    find().map_err(|error| {
        Failure::new(Exit::Usage, "no-address", "it is not known under which address other servers reach this one")
            .why(error)
            .fix("add --advertise ADDRESS")
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

/// The name of this server, without its domain.
pub(crate) fn host_name() -> String {
    let uname = rustix::system::uname();
    let full = uname.nodename().to_string_lossy();
    full.split('.').next().filter(|name| !name.is_empty()).unwrap_or("node").to_owned()
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
}
