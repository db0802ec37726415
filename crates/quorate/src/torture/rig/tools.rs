//! What this machine has of what faults need, and what to do about what it has not.

use crate::torture::fault::{FaultKind, Need};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Debian's place for the library, on every architecture: the loader knows `$LIB`.
pub(super) const FAKETIME: &str = "/usr/$LIB/faketime/libfaketime.so.1";

/// Where administrators' programs are although a user's `PATH` may not say so.
const MORE_PATH: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// A kind of fault that this run leaves out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    pub kind: FaultKind,
    pub why: String,
    /// What to do about it.
    pub fix: String,
}

/// Why a need is not met, and what would meet it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lack {
    pub why: String,
    pub fix: String,
}

impl Lack {
    pub(super) fn new(why: impl Into<String>, fix: impl Into<String>) -> Lack {
        Lack { why: why.into(), fix: fix.into() }
    }

    fn package(program: &str, package: &str) -> Lack {
        Lack::new(format!("there is no `{program}`"), format!("apt install {package}"))
    }
}

/// Why each need that is not met is not.
pub(crate) type Lacks = BTreeMap<Need, Lack>;

/// The kinds that cannot be brought about, with the reason of the first need that is not met.
pub(super) fn missing(lacks: &Lacks) -> Vec<Missing> {
    FaultKind::ALL
        .into_iter()
        .filter_map(|kind| {
            let lack = kind.needs().iter().find_map(|need| lacks.get(need))?;
            Some(Missing { kind, why: lack.why.clone(), fix: lack.fix.clone() })
        })
        .collect()
}

/// Where `program` is.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    find_in(program, std::env::var_os("PATH").as_deref())
}

fn find_in(program: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    let directories = std::env::split_paths(path.unwrap_or_default());
    directories.chain(MORE_PATH.map(PathBuf::from)).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// What is lacking before anything is tried. What only shows later (a kernel that refuses a mount)
/// is added by whoever meets it.
pub(super) fn look(root: bool) -> Lacks {
    let mut lacks = Lacks::new();
    if let Some(lack) = network(root) {
        lacks.insert(Need::Network, lack);
    }
    if let Some(lack) = disks(root) {
        lacks.insert(Need::Disks, lack);
    }
    if let Some(lack) = trace(root) {
        lacks.insert(Need::Trace, lack);
    }
    if !faketime_is_there() {
        lacks.insert(Need::Clock, Lack::new("there is no libfaketime", "apt install libfaketime"));
    }
    lacks
}

fn not_root() -> Lack {
    Lack::new("this user may not make namespaces and disks", "run it as root")
}

fn network(root: bool) -> Option<Lack> {
    match () {
        () if !root => Some(not_root()),
        () if find("unshare").is_none() => Some(Lack::package("unshare", "util-linux")),
        () if find("ip").is_none() => Some(Lack::package("ip", "iproute2")),
        () if !Path::new("/dev/net/tun").exists() => {
            Some(Lack::new("this kernel has no TUN driver at /dev/net/tun", "modprobe tun"))
        }
        () => None,
    }
}

/// A disk of its own is only worth it where mounts vanish by themselves: in a namespace.
fn disks(root: bool) -> Option<Lack> {
    let programs = [("mkfs.ext4", "e2fsprogs"), ("mount", "mount"), ("umount", "mount"), ("losetup", "mount")];
    match network(root) {
        Some(lack) => Some(lack),
        None if !Path::new("/dev/loop-control").exists() => {
            Some(Lack::new("this kernel has no loop devices at /dev/loop-control", "modprobe loop"))
        }
        None => programs
            .into_iter()
            .find(|(program, _)| find(program).is_none())
            .map(|(program, package)| Lack::package(program, package)),
    }
}

fn trace(root: bool) -> Option<Lack> {
    if find("strace").is_none() {
        return Some(Lack::package("strace", "strace"));
    }
    // 0: each process of the same user; 1: only a process's own children; 2 and 3: root or nobody.
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    match scope.trim() {
        "" | "0" => None,
        "1" | "2" if root => None,
        "3" => Some(Lack::new(
            "kernel.yama.ptrace_scope is 3: nobody may use strace",
            "sysctl kernel.yama.ptrace_scope=0, after a reboot",
        )),
        scope => Some(Lack::new(
            format!("kernel.yama.ptrace_scope is {scope}: this user may not use strace"),
            "run it as root",
        )),
    }
}

/// Whether the loader finds the library: one that it does not find is only a warning to it.
fn faketime_is_there() -> bool {
    let directories =
        ["/usr/lib64".into(), "/usr/lib".into(), format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH)];
    directories.iter().any(|lib| Path::new(&FAKETIME.replace("/usr/$LIB", lib)).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_root_only_faults_of_processes_are_left() {
        let lacks = Lacks::from([(Need::Network, not_root()), (Need::Disks, not_root())]);
        let missing = missing(&lacks);
        let left: Vec<&str> = FaultKind::ALL
            .into_iter()
            .filter(|kind| missing.iter().all(|missing| missing.kind != *kind))
            .map(FaultKind::name)
            .collect();
        assert_eq!(
            left,
            ["kill", "kill-all", "pause", "freeze", "restart", "sync-error", "slow-disk", "clock-jump", "snapshot"]
        );
        assert!(missing.iter().all(|missing| missing.fix == "run it as root"));
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        assert_eq!(find_in("no-such-program", Some(OsStr::new("/usr/bin"))), None);
        assert!(find_in("sh", Some(OsStr::new("/usr/bin:/bin"))).is_some());
        assert_eq!(Lack::package("strace", "strace").fix, "apt install strace");
    }
}
