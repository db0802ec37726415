//! How long the certificates of the nodes on this machine last.

use super::Finding;
use crate::cli::screen::age;
use quorate_model::time::WallTime;
use quorate_trust::ca::{NodeCertificate, NodeCertificateError};
use std::path::{Path, PathBuf};

const CHECK: &str = "certificates";
/// A node renews its certificate while more than a fifth of its life is left.
const RENEWED_WITH: u32 = 5;

/// From when to when a node's certificate is valid.
type Lasts = Result<(WallTime, WallTime), NodeCertificateError>;

/// Nothing if no node here has one.
pub(super) fn examine(data_dirs: &[PathBuf], now: WallTime) -> Option<Finding> {
    let certificates: Vec<(String, Lasts)> = data_dirs
        .iter()
        .filter_map(|dir| {
            let text = std::fs::read_to_string(place(dir)).ok()?;
            let name = dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned();
            Some((name, NodeCertificate::from_pem(&text).and_then(|certificate| certificate.lasts())))
        })
        .collect();
    // The one that ends first speaks for all; one that cannot be read, before it.
    let ends = |(_, lasts): &&(String, Lasts)| lasts.as_ref().map_or(WallTime(0), |(_, until)| *until);
    certificates.iter().min_by_key(ends).map(|(name, lasts)| judge(name, lasts, now))
}

fn judge(name: &str, lasts: &Lasts, now: WallTime) -> Finding {
    let why = "without a valid one no other node talks to it";
    let fix =
        format!("see the log of the server in {name}: it renews the certificate by itself while it hears a manager");
    let (from, until) = match lasts {
        Ok(lasts) => *lasts,
        Err(error) => return Finding::bad(CHECK, format!("that of {name} cannot be read: {error}"), why, fix),
    };
    if now >= until {
        return Finding::bad(CHECK, format!("that of {name} ended {} ago", age(now.since(until))), why, fix);
    }
    if now < from {
        let fix = format!("set the clock of {name}: systemctl enable --now chronyd");
        return Finding::bad(CHECK, format!("that of {name} begins in {}", age(from.since(now))), why, fix);
    }
    let what = format!("{} left, the first to end is that of {name}", age(until.since(now)));
    if until.since(now) < until.since(from) / RENEWED_WITH {
        return Finding::doubtful(CHECK, what, "it should have been renewed by now", fix);
    }
    Finding::well(CHECK, what)
}

/// Where the certificate of the node with this data directory is.
fn place(dir: &Path) -> PathBuf {
    dir.join("tls/node.crt")
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Bad, Doubtful, Well};
    use super::*;
    use quorate_model::id::{ClusterId, NodeId};
    use quorate_trust::ca::Ca;
    use quorate_trust::key::NodeKey;

    const DAY: u64 = 86_400_000_000;

    fn day(days: u64) -> WallTime {
        WallTime(20_000 * DAY + days * DAY)
    }

    #[test]
    fn a_certificate_is_judged_by_how_much_of_its_life_is_left() {
        let judged = |now| judge("n1", &Ok((day(0), day(30))), day(now));
        assert_eq!([judged(1), judged(25), judged(31)].map(|finding| finding.verdict), [Well, Doubtful, Bad]);
        assert_eq!(judged(1).what, "29d 0h left, the first to end is that of n1");
        assert_eq!(judged(31).what, "that of n1 ended 1d 0h ago");
        let early = judge("n1", &Ok((day(2), day(30))), day(1));
        assert_eq!((early.verdict, early.what.as_str()), (Bad, "that of n1 begins in 1d 0h"));
    }

    #[test]
    fn real_certificates_are_read_and_where_there_are_none_nothing_is_said() {
        let ca = Ca::create(ClusterId::from_u128(1), day(0), 1).unwrap();
        let home = tempfile::tempdir().unwrap();
        let dirs: Vec<PathBuf> = ["n1", "n2", "n3"].map(|name| home.path().join(name)).into();
        assert_eq!(examine(&dirs, day(1)), None);
        for (number, issued) in [(1_u128, 5), (2, 0)] {
            let request = NodeKey::generate().unwrap().request().unwrap();
            let made = ca.issue(&request, NodeId::from_u128(number), &[], day(issued), number).unwrap();
            let file = place(&home.path().join(format!("n{number}")));
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, made.to_pem()).unwrap();
        }
        let finding = examine(&dirs, day(6)).unwrap();
        assert_eq!((finding.verdict, finding.what.as_str()), (Well, "24d 0h left, the first to end is that of n2"));
        let torn = place(&dirs[2]);
        std::fs::create_dir_all(torn.parent().unwrap()).unwrap();
        std::fs::write(torn, "-----BEGIN CERTIFICATE-----\n").unwrap();
        let finding = examine(&dirs, day(6)).unwrap();
        assert_eq!(finding.verdict, Bad);
        assert!(finding.what.starts_with("that of n3 cannot be read"), "{}", finding.what);
    }
}
