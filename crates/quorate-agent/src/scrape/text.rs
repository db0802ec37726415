//! One number out of a page of metrics in Prometheus' text format.
//!
//! Only lines of the metric that is looked for are read; whatever else is on the page may be as it likes.
//!
//! # Sources
//! The exposition formats of Prometheus, text format 0.0.4; OpenMetrics 1.0 where it is the same.

use std::collections::BTreeMap;

/// Why a page says nothing that counts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoNumber {
    #[error("it has no such metric with these labels")]
    Absent,
    #[error("its line {0} is no sample")]
    Malformed(usize),
    #[error("line {0} has a value that is no amount")]
    NoAmount(usize),
}

/// The sum of all samples of a metric that have these labels, others beside them or not.
///
/// # Errors
/// [`NoNumber`].
pub(crate) fn sum(page: &str, name: &str, labels: &BTreeMap<String, String>) -> Result<f64, NoNumber> {
    let mut sum = None;
    for (number, line) in page.lines().enumerate().map(|(at, line)| (at + 1, line)) {
        let Some(rest) = line.trim_start().strip_prefix(name) else { continue };
        if !rest.starts_with(['{', ' ', '\t']) {
            continue;
        }
        let sample = Sample::parse(rest).ok_or(NoNumber::Malformed(number))?;
        if labels.iter().any(|(label, value)| sample.labels.get(label.as_str()) != Some(value)) {
            continue;
        }
        if !sample.value.is_finite() || sample.value < 0.0 {
            return Err(NoNumber::NoAmount(number));
        }
        sum = Some(sum.unwrap_or_default() + sample.value);
    }
    sum.ok_or(NoNumber::Absent)
}

/// What is behind the name: `{label="value"} 1.5 1700000000000`.
#[derive(Debug, PartialEq)]
struct Sample<'a> {
    labels: BTreeMap<&'a str, String>,
    value: f64,
}

impl<'a> Sample<'a> {
    fn parse(text: &'a str) -> Option<Sample<'a>> {
        let text = text.trim_start();
        let (labels, rest) = match text.strip_prefix('{') {
            Some(rest) => parse_labels(rest)?,
            None => (BTreeMap::new(), text),
        };
        let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
        Some(Sample { labels, value })
    }
}

/// Up to the closing brace, and what is behind it.
fn parse_labels(mut text: &str) -> Option<(BTreeMap<&str, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        text = text.trim_start();
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, rest) = text.split_once('=')?;
        let (value, rest) = parse_value(rest.trim_start().strip_prefix('"')?)?;
        labels.insert(name.trim(), value);
        text = rest.trim_start();
        text = match text.strip_prefix(',') {
            Some(rest) => rest,
            None => text.starts_with('}').then_some(text)?,
        };
    }
}

/// Up to the closing quote, and what is behind it.
fn parse_value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match letters.next()?.1 {
                'n' => '\n',
                plain @ ('\\' | '"') => plain,
                _ => return None,
            }),
            plain => value.push(plain),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: &str = r#"# HELP queue_length Jobs that wait.
# TYPE queue_length gauge
queue_length{queue="mail",shard="a"} 3
queue_length{queue="mail",shard="b",} 4.5 1700000000000
queue_length { queue = "print" } 1e2
queue_length_max 7
odd{path="C:\\a \"b\"\n{}=,"} 2
up 1
broken{ 1
bad NaN
"#;

    fn look(name: &str, labels: &[(&str, &str)]) -> Result<f64, NoNumber> {
        sum(PAGE, name, &labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
    }

    #[test]
    fn samples_with_the_labels_are_added_up() {
        assert_eq!(look("queue_length", &[]), Ok(107.5));
        assert_eq!(look("queue_length", &[("queue", "mail")]), Ok(7.5));
        assert_eq!(look("queue_length", &[("queue", "mail"), ("shard", "b")]), Ok(4.5));
        assert_eq!(look("odd", &[("path", "C:\\a \"b\"\n{}=,")]), Ok(2.0));
        assert_eq!(look("up", &[]), Ok(1.0));
    }

    #[test]
    fn what_is_no_amount_is_told_by_its_line() {
        assert_eq!(look("queue_length", &[("queue", "fax")]), Err(NoNumber::Absent));
        assert_eq!(look("queue", &[]), Err(NoNumber::Absent));
        assert_eq!(look("broken", &[]), Err(NoNumber::Malformed(9)));
        assert_eq!(look("bad", &[]), Err(NoNumber::NoAmount(10)));
    }

    proptest! {
        #[test]
        fn any_value_of_a_label_is_read_as_it_was_written(value in ".*", amount in 0..1_000_000u32) {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            prop_assume!(!value.contains(['\r', '\u{85}', '\u{2028}', '\u{2029}']));
            let page = format!("x{{a=\"1\",b=\"{escaped}\"}} {amount}\n");
            let labels = BTreeMap::from([("b".to_owned(), value)]);
            prop_assert_eq!(sum(&page, "x", &labels), Ok(f64::from(amount)));
        }
    }
}
