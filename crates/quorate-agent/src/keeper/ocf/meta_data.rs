//! What an agent says about itself, in XML.
//!
//! Only names, advice about times, and which parameters must be given are read; the rest is for people.

use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;
use quorate_model::spec::nearest;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct MetaData {
    params: BTreeMap<String, bool>,
    actions: BTreeMap<String, Action>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Action {
    timeout: Option<Duration>,
    interval: Option<Duration>,
}

impl MetaData {
    /// # Errors
    /// What is wrong with the text, for people.
    pub(super) fn parse(text: &str) -> Result<MetaData, String> {
        let mut reader = Reader::from_str(text);
        let (mut found, mut is_agent) = (MetaData::default(), false);
        loop {
            match reader.read_event() {
                Ok(Event::Eof) if is_agent => return Ok(found),
                Ok(Event::Eof) => return Err("there is no <resource-agent> in it".to_owned()),
                Ok(Event::Start(tag) | Event::Empty(tag)) => match tag.name().as_ref() {
                    "resource-agent" => is_agent = true,
                    "parameter" => {
                        if let Some(name) = attribute(&tag, "name")? {
                            let required = attribute(&tag, "required")?;
                            found.params.insert(name, matches!(required.as_deref(), Some("1" | "true" | "yes")));
                        }
                    }
                    "action" => {
                        if let Some(name) = attribute(&tag, "name")? {
                            let time = |name| Ok::<_, String>(attribute(&tag, name)?.as_deref().and_then(duration));
                            let action = Action { timeout: time("timeout")?, interval: time("interval")? };
                            // Of monitors for several roles, the first is for what is not promoted.
                            found.actions.entry(name).or_insert(action);
                        }
                    }
                    _ => {}
                },
                Ok(_) => {}
                Err(error) => return Err(format!("{error} (byte {})", reader.error_position())),
            }
        }
    }

    /// Whether the agent says that it has this operation.
    pub(super) fn has(&self, operation: &str) -> bool {
        self.actions.contains_key(operation)
    }

    /// How long it advises to wait for an operation.
    pub(super) fn timeout(&self, operation: &str) -> Option<Duration> {
        self.actions.get(operation)?.timeout.filter(|timeout| !timeout.is_zero())
    }

    /// How often it advises to do it.
    pub(super) fn interval(&self, operation: &str) -> Option<Duration> {
        self.actions.get(operation)?.interval
    }

    /// # Errors
    /// A parameter that the agent does not know, or that it must be given and is not.
    pub(super) fn check(&self, given: &BTreeSet<String>) -> Result<(), String> {
        let known: Vec<&str> = self.params.keys().map(String::as_str).collect();
        for name in given {
            if !self.params.contains_key(name) {
                return Err(match nearest(name, &known) {
                    Some(similar) => format!("`{name}` is unknown; did you mean `{similar}`?"),
                    None if known.is_empty() => format!("`{name}` is unknown: there are none"),
                    None => format!("`{name}` is unknown; known are {}", known.join(", ")),
                });
            }
        }
        match self.params.iter().find(|(name, required)| **required && !given.contains(*name)) {
            Some((name, _)) => Err(format!("`{name}` is required")),
            None => Ok(()),
        }
    }
}

fn attribute(tag: &BytesStart<'_>, name: &str) -> Result<Option<String>, String> {
    let found = tag.try_get_attribute(name).map_err(|error| error.to_string())?;
    Ok(found.map(|attribute| attribute.value.trim().to_owned()))
}

/// `20`, `20s`, `20000ms`, `1min`: seconds, unless a unit is said. `None` for what is none of that.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let unit = match unit.trim() {
        "" | "s" | "sec" => Duration::from_secs(1),
        "ms" | "msec" => Duration::from_millis(1),
        "us" | "usec" => Duration::from_micros(1),
        "m" | "min" => Duration::from_secs(60),
        "h" | "hr" => Duration::from_secs(3600),
        _ => return None,
    };
    unit.checked_mul(u32::try_from(number).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMMY: &str = r#"<?xml version="1.0"?>
<!DOCTYPE resource-agent SYSTEM "ra-api-1.dtd">
<resource-agent name="Dummy" version="1.0">
<longdesc lang="en">It's a &quot;dummy&quot; &amp; more.</longdesc>
<parameters>
<parameter name="state" unique-group="state"><content type="string" default="/run/x" /></parameter>
<parameter name="ip" required="1" unique="1"><content type="string"/></parameter>
</parameters>
<actions>
<action name="start" timeout="20s" />
<action name="monitor" timeout="15" interval="5000ms" depth="0" />
<action name="monitor" timeout="99s" interval="99s" role="Promoted" />
<action name="validate-all" timeout="20s" />
</actions>
</resource-agent>"#;

    fn given(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn advice_about_times_is_read_in_every_unit() {
        let meta = MetaData::parse(DUMMY).unwrap();
        let seconds = |count| Some(Duration::from_secs(count));
        assert_eq!((meta.timeout("start"), meta.timeout("monitor")), (seconds(20), seconds(15)));
        assert_eq!((meta.interval("monitor"), meta.interval("start")), (seconds(5), None));
        assert!(meta.has("validate-all") && !meta.has("promote"));
        for (text, expected) in [("1min", seconds(60)), ("2h", seconds(7200)), ("7 s", seconds(7))] {
            assert_eq!(duration(text), expected);
        }
        for bad in ["", "s", "-1", "1.5s", "20 parsecs", "99999999999999999999", "9999999999"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_parameter_that_is_unknown_or_missing_is_named() {
        let meta = MetaData::parse(DUMMY).unwrap();
        let check = |names| meta.check(&given(names)).err().unwrap_or_default();
        assert_eq!(check(&["ip", "state"]), "");
        assert_eq!(check(&["ip", "sate"]), "`sate` is unknown; did you mean `state`?");
        assert_eq!(check(&["address"]), "`address` is unknown; known are ip, state");
        assert_eq!(check(&["state"]), "`ip` is required");
        let none = MetaData::parse("<resource-agent name='x'/>").unwrap();
        assert_eq!(none.check(&given(&["x"])).unwrap_err(), "`x` is unknown: there are none");
    }

    #[test]
    fn what_is_no_meta_data_is_refused() {
        for bad in
            ["", "usage: x {start|stop}", "<a/>", "<resource-agent><parameter name=></resource-agent>", "<a><b></a>"]
        {
            assert!(MetaData::parse(bad).is_err(), "{bad}");
        }
    }
}
