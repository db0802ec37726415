//! Names and hashes that access is about.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

/// The text is not such a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}")]
pub struct BadName {
    pub text: String,
    pub what: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $max:literal, $extra:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Upper case becomes lower case: nobody is to tell two names apart by it.
            ///
            /// # Errors
            /// [`BadName`] unless the text has this form.
            pub fn new(text: &str) -> Result<Self, BadName> {
                let name = text.to_ascii_lowercase();
                let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
                let fits = (1..=$max).contains(&name.len())
                    && plain(name.as_bytes()[0])
                    && name.bytes().all(|byte| plain(byte) || $extra.as_bytes().contains(&byte));
                if fits { Ok($name(name)) } else { Err(BadName { text: text.to_owned(), what: $what }) }
            }

            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $name::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $name::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// A user's name: 1 to 64 of `a-z`, `0-9`, `.`, `_`, `-` and `@`, beginning with a letter or digit.
    UserName,
    64,
    "._-@",
    "a user name: use 1 to 64 of a-z, 0-9, . _ - @, beginning with a letter or digit"
);
name!(
    /// A role's name: 1 to 32 of `a-z`, `0-9` and `-`, beginning with a letter or digit.
    RoleName,
    32,
    "-",
    "a role name: use 1 to 32 of a-z, 0-9 and -, beginning with a letter or digit"
);
name!(
    /// The public part of an API token: 16 lower-case letters and digits, random.
    ApiTokenId,
    16,
    "",
    "the id of an API token"
);
name!(
    /// A secret's name: 1 to 64 of `a-z`, `0-9`, `.`, `_` and `-`, beginning with a letter or digit.
    SecretName,
    64,
    "._-",
    "a secret's name: use 1 to 64 of a-z, 0-9, . _ -, beginning with a letter or digit"
);

name!(
    /// An external's name: 1 to 48 of `a-z`, `0-9` and `-`, beginning with a letter or digit.
    ExternalName,
    48,
    "-",
    "an external's name: use 1 to 48 of a-z, 0-9 and -, beginning with a letter or digit"
);

/// A SHA-256, as 64 lower-case hexadecimal digits in JSON. Of random values of 256 bits, which
/// need no slow hash: nobody can try them all.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    #[must_use]
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// Of two parts, one after the other.
    #[must_use]
    pub fn chained(before: Digest, bytes: &[u8]) -> Digest {
        Digest(Sha256::new().chain_update(before.0).chain_update(bytes).finalize().into())
    }

    /// The first 16 digits: enough to name one of many, useless for logging in.
    #[must_use]
    pub fn short(self) -> String {
        self.to_string()[..16].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Digest {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || BadName { text: text.to_owned(), what: "64 hexadecimal digits" };
        let mut digest = Digest::default();
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        for (at, byte) in digest.0.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| wrong())?;
        }
        Ok(digest)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
