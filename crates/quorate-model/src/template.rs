//! Files that are made for each replica, right before it starts.
//!
//! The language is Jinja's. What it means is the agent's; here is what a spec may say. Whether a text is a
//! template at all is no rule of the state machine: two versions of a library may differ in that.

use crate::spec::ServiceSpec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Most templates of one service.
pub const TEMPLATES_MAX: usize = 16;
/// The longest text in a spec, in bytes. A longer one is fetched as an artifact.
const TEXT_BYTES_MAX: usize = 64 << 10;
/// The longest path, in bytes.
const PATH_BYTES_MAX: usize = 255;

/// One file. Exactly one of `text` and `from` is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// The template itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The path of a file that holds it, on the node; `{artifact}` is a beginning of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Where the file is made: a path from the replica's working directory.
    pub to: String,
    /// Default `0600`.
    #[serde(default)]
    pub mode: FileMode,
}

/// Who may read, write and execute a file, as chmod writes it: `0600`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMode(u32);

/// The text is no mode of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the mode of a file: write three octal digits, like 0600 or 0644")]
pub struct BadMode(String);

impl FileMode {
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl Default for FileMode {
    fn default() -> Self {
        FileMode(0o600)
    }
}

impl FromStr for FileMode {
    type Err = BadMode;
    fn from_str(text: &str) -> Result<Self, BadMode> {
        let digits = if text.len() == 4 { text.strip_prefix('0').unwrap_or(text) } else { text };
        let octal = digits.len() == 3 && digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        let mode = octal.then(|| u32::from_str_radix(digits, 8).ok()).flatten();
        mode.map(FileMode).ok_or_else(|| BadMode(text.to_owned()))
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl Serialize for FileMode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FileMode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where below the service, and what. Placeholders in `from` are not looked at.
pub(crate) fn validate(spec: &ServiceSpec) -> Result<(), (String, String)> {
    if spec.templates.len() > TEMPLATES_MAX {
        let problem = format!("has {} entries; at most {TEMPLATES_MAX} are allowed", spec.templates.len());
        return Err(("template".into(), problem));
    }
    let mut made = BTreeSet::new();
    for Template { text, from, to, .. } in &spec.templates {
        let below = to.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        if !below || to.len() > PATH_BYTES_MAX || to.chars().any(char::is_control) {
            let problem =
                format!("has the `to` {to:?}; write a path below the working directory, like \"conf/app.conf\"");
            return Err(("template".into(), problem));
        }
        if !made.insert(to) {
            return Err((format!("template.{to}"), "is there twice".into()));
        }
        let at = |problem: String| Err((format!("template.{to}"), problem));
        match (text, from) {
            (Some(text), None) if text.len() > TEXT_BYTES_MAX => {
                return at(format!(
                    "has {} bytes of text; at most {TEXT_BYTES_MAX} are allowed: make it an artifact",
                    text.len()
                ));
            }
            (Some(_), None) => {}
            (None, Some(from)) if from.starts_with('/') || from.starts_with("{artifact") => {}
            (None, Some(from)) => {
                return at(format!("has the `from` {from:?}; write an absolute path, or {{artifact}}/…"));
            }
            _ => return at("has both or none of `text` and `from`: give one".into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::spec::{Format, parse};
    use expect_test::{Expect, expect};

    fn check(template: &str, expected: Expect) {
        let text = format!("[[service]]\nname = 'web'\ncommand = ['x', '{{dir}}/a']\ntemplate = [{template}]");
        let outcome = parse(&text, Format::Toml).map_err(|problem| problem.to_string());
        let outcome = outcome.and_then(|document| document.validate().map_err(|problem| problem.to_string()));
        expected.assert_eq(&outcome.map_or_else(|problem| problem, |()| "ok".into()));
    }

    #[test]
    fn a_template_makes_a_file_below_the_working_directory_from_one_source() {
        check("{ text = 'port {{ port }}', to = 'conf/app.conf', mode = '0644' }", expect!["ok"]);
        check("{ from = '/etc/app.j2', to = 'a' }", expect!["ok"]);
        let outside = |to: &str| {
            format!(
                "`service.web.template` has the `to` {to:?}; write a path below the working directory, like \"conf/app.conf\""
            )
        };
        for to in ["/etc/passwd", "../a", "a/../b", "", "a//b"] {
            let text = format!("[[service]]\nname = 'web'\ncommand = ['x']\ntemplate = [{{ text = '', to = '{to}' }}]");
            let refusal = parse(&text, Format::Toml).unwrap().validate().unwrap_err();
            assert_eq!(refusal.to_string(), outside(to));
        }
        check(
            "{ text = '', from = '/a', to = 'a' }",
            expect!["`service.web.template.a` has both or none of `text` and `from`: give one"],
        );
        check(
            "{ from = 'app.j2', to = 'a' }",
            expect![[r#"`service.web.template.a` has the `from` "app.j2"; write an absolute path, or {artifact}/…"#]],
        );
        check(
            "{ from = '{artifact}/app.j2', to = 'a' }",
            expect!["`service.web.template.a.from` has `{artifact}`, and the service has no artifact"],
        );
        check("{ text = '', to = 'a' }, { text = '', to = 'a' }", expect!["`service.web.template.a` is there twice"]);
        check(
            "{ text = '', to = 'a', mode = '4755' }",
            expect![
                "`mode` in [[template]] `a`: `4755` is not the mode of a file: write three octal digits, like 0600 or 0644 (line 4, column 36)"
            ],
        );
    }
}
