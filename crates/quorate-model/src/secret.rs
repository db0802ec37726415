//! Values that must not be printed: passwords, tokens, keys.

use std::fmt;

/// A value that logs, panics and answers never show: `Debug` and `Display` write `[secret]`, and
/// there is no `Serialize`. Whoever needs it says so with [`expose`](Secret::expose).
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    pub fn new(value: T) -> Secret<T> {
        Secret(value)
    }

    /// The value itself. Never for a message, a log line or a record.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl<T> fmt::Display for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// A secret may be received; it is never sent.
impl<'de, T: serde::Deserialize<'de>> serde::Deserialize<'de> for Secret<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_nothing_of_itself() {
        #[derive(Debug)]
        struct Login {
            #[expect(dead_code, reason = "only printed")]
            password: Secret<String>,
        }
        let password = Secret::new("canary".to_owned());
        assert_eq!(format!("{password} {password:?}"), "[secret] [secret]");
        assert_eq!(format!("{:?}", Login { password }), "Login { password: [secret] }");
    }
}
