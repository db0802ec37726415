//! Which hierarchies of cgroups this machine has, and where in them something may be made.
//!
//! Three layouts are found on servers: v2 alone, v1 alone with a hierarchy for each controller, and both
//! beside each other ("hybrid"), with v2 for processes and v1 for limits. A process knows its own place in
//! each from `/proc/self/cgroup`; where that is in the file system says `/proc/self/mountinfo`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// One hierarchy that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Version 2; there is at most one.
    pub(super) unified: bool,
    /// Of version 1, and `name=…` for one without a controller.
    pub(super) controllers: BTreeSet<String>,
    /// Where a tree may begin: from the top to the parent of this process's own group. Its own is none: what
    /// is in there ends with this process's unit.
    pub(super) bases: Vec<PathBuf>,
}

/// Reads `/proc/self/mountinfo` and `/proc/self/cgroup`. What is not understood is passed over.
pub(super) fn hierarchies(mountinfo: &str, own: &str) -> Vec<Hierarchy> {
    mountinfo.lines().filter_map(|line| hierarchy(line, own)).collect()
}

fn hierarchy(line: &str, own: &str) -> Option<Hierarchy> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, top) = (mount.next()?, Path::new(mount.next()?));
    let mut filesystem = filesystem.split(' ');
    let (kind, options) = (filesystem.next()?, filesystem.nth(1)?);
    let controllers: BTreeSet<String> = match kind {
        "cgroup2" => BTreeSet::new(),
        "cgroup" => options.split(',').filter(|option| *option != "rw" && *option != "ro").map(str::to_owned).collect(),
        _ => return None,
    };
    let unified = kind == "cgroup2";
    let place = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, theirs, place) = (fields.next()?, fields.next()?, fields.next()?);
        let same = if unified { number == "0" } else { theirs.split(',').any(|one| controllers.contains(one)) };
        same.then_some(place)
    });
    // Of a mount that does not show this process's own group, only the top is known.
    let below = place.and_then(|place| Path::new(place).strip_prefix(root).ok()).unwrap_or(Path::new(""));
    let mut bases = vec![top.to_owned()];
    for name in below.parent().into_iter().flat_map(Path::components) {
        bases.push(bases.last()?.join(name));
    }
    Some(Hierarchy { unified, controllers, bases })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(mountinfo: &str, own: &str) -> Vec<String> {
        let describe = |found: Hierarchy| {
            let name = if found.unified { "v2".into() } else { Vec::from_iter(found.controllers).join(",") };
            let bases: Vec<String> = found.bases.iter().map(|base| base.display().to_string()).collect();
            format!("{name}: {}", bases.join(" "))
        };
        hierarchies(mountinfo, own).into_iter().map(describe).collect()
    }

    #[test]
    fn with_v2_alone_a_tree_begins_at_the_top_or_above_the_units_own_group() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n\
                      31 23 0:27 / /sys/fs/pstore rw shared:5 - pstore pstore rw\n";
        assert_eq!(
            bases(mounts, "0::/system.slice/quorate.service\n"),
            ["v2: /sys/fs/cgroup /sys/fs/cgroup/system.slice"]
        );
        assert_eq!(
            bases(mounts, "0::/user.slice/user-7.slice/user@7.service/app.slice/q.service\n"),
            ["v2: /sys/fs/cgroup /sys/fs/cgroup/user.slice /sys/fs/cgroup/user.slice/user-7.slice \
              /sys/fs/cgroup/user.slice/user-7.slice/user@7.service \
              /sys/fs/cgroup/user.slice/user-7.slice/user@7.service/app.slice"]
        );
    }

    #[test]
    fn hierarchies_of_v1_are_told_apart_by_their_controllers() {
        let mounts = "41 32 0:35 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      42 32 0:36 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                      43 32 0:37 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = "3:cpu,cpuacct:/a/b\n1:name=systemd:/system.slice/q.service\n0::/system.slice/q.service\n";
        assert_eq!(
            bases(mounts, own),
            [
                "cpu,cpuacct: /sys/fs/cgroup/cpu,cpuacct /sys/fs/cgroup/cpu,cpuacct/a",
                "name=systemd,xattr: /sys/fs/cgroup/systemd /sys/fs/cgroup/systemd/system.slice",
                "v2: /sys/fs/cgroup/unified /sys/fs/cgroup/unified/system.slice",
            ]
        );
    }

    #[test]
    fn a_container_that_sees_a_part_begins_where_that_does() {
        let mounts = "50 40 0:26 /lxc/c1 /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        assert_eq!(bases(mounts, "0::/lxc/c1/q.service\n"), ["v2: /sys/fs/cgroup"]);
        assert_eq!(bases(mounts, "0::/elsewhere/q.service\n"), ["v2: /sys/fs/cgroup"]);
        assert_eq!(bases("nonsense\n", "0::/\n"), Vec::<String>::new());
    }
}
