//! Ids are types, so that two of them in a row cannot be swapped.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map($name)
            }
        }

        impl $name {
            /// The id with these 128 bits.
            #[must_use]
            pub fn from_u128(bits: u128) -> Self {
                $name(Uuid::from_u128(bits))
            }
        }
    };
}

uuid_id!(
    /// A cluster. Written into every data directory, so that two clusters never mix.
    ClusterId
);
uuid_id!(
    /// A server of the cluster. Assigned once, never used again after the node was expelled.
    NodeId
);
uuid_id!(
    /// One running copy of a service. A replacement on another node is another replica.
    ReplicaId
);
uuid_id!(
    /// A permission to join the cluster.
    TokenId
);
uuid_id!(
    /// One mutation, however often it is sent. The state machine answers a repeated id with the
    /// outcome of the first.
    RequestId
);

impl NodeId {
    /// The number under which consensus knows this node: the first half of the UUID.
    ///
    /// Never 0, which the consensus library reserves. Two random UUIDs share it with probability
    /// 2^-64.
    #[must_use]
    pub fn raft_id(self) -> u64 {
        (self.0.as_u64_pair().0).max(1)
    }
}

/// Position of an entry in the replicated log. The first entry has index 1; 0 means "before it".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogIndex(pub u64);

impl LogIndex {
    #[must_use]
    pub fn next(self) -> Self {
        LogIndex(self.0 + 1)
    }
}

impl fmt::Display for LogIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for LogIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Reign of one leader. Grows by elections.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(pub u64);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}", self.0)
    }
}

/// A service's name: 1 to 63 of `a-z`, `0-9` and `-`, beginning and ending with a letter or digit
/// (a DNS label, because it becomes one).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ServiceName(String);

/// The text is not a service name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a service name: use 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit")]
pub struct BadServiceName(pub String);

impl ServiceName {
    /// # Errors
    /// [`BadServiceName`] unless the text is a DNS label in lower case.
    pub fn new(text: &str) -> Result<Self, BadServiceName> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let ok = (1..=63).contains(&bytes.len())
            && inner(bytes[0])
            && inner(bytes[bytes.len() - 1])
            && bytes.iter().all(|&b| inner(b) || b == b'-');
        if ok { Ok(ServiceName(text.to_owned())) } else { Err(BadServiceName(text.to_owned())) }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = BadServiceName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        ServiceName::new(text)
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl<'de> Deserialize<'de> for ServiceName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        ServiceName::new(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_name_is_a_dns_label() {
        for good in ["web", "a", "web-2", "0"] {
            assert!(ServiceName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-web", "web-", "Web", "web.1", "wéb", &"x".repeat(64)] {
            assert!(ServiceName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn consensus_never_sees_node_zero() {
        assert_eq!(NodeId::from_u128(7).raft_id(), 1);
        assert_eq!(NodeId::from_u128(5 << 64).raft_id(), 5);
    }
}
