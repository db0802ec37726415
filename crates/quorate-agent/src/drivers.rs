//! What a node has for running services: which drivers would work here.
//!
//! A look at what is installed and running, no more: whether an image can be fetched or a unit exists is found out
//! by starting it.

use crate::launch::SEARCH_PATH;
use rustix::fs::{Access, access};
use std::collections::BTreeSet;
use std::path::Path;

/// Where systemd says that it manages this machine; see sd_booted(3).
const SYSTEMD: &str = "/run/systemd/system";
const BUS: &str = "/run/dbus/system_bus_socket";
const OCF_AGENTS: &str = "/usr/lib/ocf/resource.d";
/// See capabilities(7).
const CAP_NET_ADMIN: u32 = 12;

/// Names of what is here: `process`, `podman`, `docker`, `ocf`, `systemd` and `vip`. Blocks for a moment.
#[must_use]
pub fn drivers_here() -> BTreeSet<String> {
    let is_program = |name: &str| {
        let path = |dir: &str| Path::new(dir).join(name);
        SEARCH_PATH.split(':').map(path).any(|path| path.is_file() && access(&path, Access::EXEC_OK).is_ok())
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let here = [
        ("process", true),
        ("podman", is_program("podman")),
        ("docker", is_program("docker")),
        ("ocf", Path::new(OCF_AGENTS).is_dir()),
        ("systemd", Path::new(SYSTEMD).is_dir() && Path::new(BUS).exists()),
        ("vip", may_change_addresses(&status)),
    ];
    here.into_iter().filter(|(_, is_here)| *is_here).map(|(name, _)| name.to_owned()).collect()
}

/// By `/proc/self/status`; proc(5).
fn may_change_addresses(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or_default();
    bits >> CAP_NET_ADMIN & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_can_always_be_run() {
        assert!(drivers_here().contains("process"));
    }

    #[test]
    fn addresses_are_changed_by_who_has_the_capability() {
        assert!(may_change_addresses("Name:\tquorate\nCapEff:\t0000000000001000\nCapBnd:\t0\n"));
        assert!(!may_change_addresses("Name:\tquorate\nCapEff:\t0000000000000800\nCapBnd:\t000001ffffffffff\n"));
        assert!(!may_change_addresses(""));
    }
}
