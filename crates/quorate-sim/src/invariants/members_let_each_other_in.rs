//! While the CA is exchanged, every two members believe each other's certificates, however far each is.
//!
//! `quorate_model::trust`: at each moment every two nodes understand each other. A node that the cluster
//! does not wait for any more is named, and is none of these.

use super::Invariant;
use crate::seen::Seen;

#[derive(Debug, Default)]
pub(super) struct MembersLetEachOtherIn {
    different: u64,
}

impl Invariant for MembersLetEachOtherIn {
    fn name(&self) -> &'static str {
        "members_let_each_other_in"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Keys { members } = seen else { return Ok(()) };
        for (n, one) in *members {
            for (m, other) in members.iter().filter(|(m, _)| m > n) {
                self.different += u64::from(one != other);
                if !one.meets(other) {
                    let (n, m) = (n + 1, m + 1);
                    return Err(format!("n{n} and n{m} are strangers to each other: {one:?} and {other:?}"));
                }
            }
        }
        Ok(())
    }

    fn premises(&self) -> u64 {
        self.different
    }
}
