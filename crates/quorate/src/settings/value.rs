//! Values as they are written, and what a key takes.

use quorate_model::time::Span;
use std::fmt;
use std::time::Duration;
use toml::de::DeValue;

/// A value as it is written in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    Whole(u64),
    Flag(bool),
    List(Vec<String>),
}

impl Value {
    pub(crate) fn text(text: impl fmt::Display) -> Value {
        Value::Text(text.to_string())
    }

    pub(crate) fn list(items: impl IntoIterator<Item = impl fmt::Display>) -> Value {
        Value::List(items.into_iter().map(|item| item.to_string()).collect())
    }

    /// # Errors
    /// What it is instead.
    pub(crate) fn from_toml(value: &DeValue<'_>) -> Result<Value, &'static str> {
        match value {
            DeValue::String(text) => Ok(Value::Text(text.to_string())),
            DeValue::Boolean(flag) => Ok(Value::Flag(*flag)),
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix())
                .map(Value::Whole)
                .map_err(|_| "a number out of range"),
            DeValue::Array(items) => items
                .iter()
                .map(|item| match item.get_ref() {
                    DeValue::String(text) => Ok(text.to_string()),
                    _ => Err("a list with other things than text in quotes"),
                })
                .collect::<Result<_, _>>()
                .map(Value::List),
            DeValue::Float(_) => Err("a fraction"),
            DeValue::Datetime(_) => Err("a date"),
            DeValue::Table(_) => Err("a table"),
        }
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        match self {
            Value::Text(text) => text.as_str().into(),
            Value::Whole(number) => (*number).into(),
            Value::Flag(flag) => (*flag).into(),
            Value::List(items) => items.as_slice().into(),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "text",
            Value::Whole(_) => "a number",
            Value::Flag(_) => "true or false",
            Value::List(_) => "a list",
        }
    }
}

/// As TOML.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        match self {
            Value::Text(text) => f.write_str(&quoted(text)),
            Value::Whole(number) => write!(f, "{number}"),
            Value::Flag(flag) => write!(f, "{flag}"),
            Value::List(items) => {
                write!(f, "[{}]", items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// What a key takes.
#[derive(Debug)]
pub(crate) enum Kind {
    /// Text; the words say of what kind.
    Text(&'static str),
    OneOf(&'static [&'static str]),
    /// A span of time, from one to the other.
    Span(Span, Span),
    /// A whole number, from one to the other.
    Whole(u64, u64),
    Flag,
    /// A list of texts, or a single text; the words say of what kind each is.
    List(&'static str),
}

impl Kind {
    /// For people, with unit and range.
    pub(crate) fn describe(&self) -> String {
        match self {
            Kind::Text(what) => (*what).to_owned(),
            Kind::OneOf(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
            Kind::Span(least, most) => format!("time span, `{least}` to `{most}`"),
            Kind::Whole(least, most) => format!("whole number, {least} to {most}"),
            Kind::Flag => "`true` or `false`".to_owned(),
            Kind::List(what) => format!("{what}, or a list of them"),
        }
    }

    /// A value from text alone, as the environment and the command line give it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn read(&self, text: &str) -> Result<Value, String> {
        let value = match self {
            Kind::Text(_) | Kind::OneOf(_) | Kind::Span(..) => Value::text(text),
            Kind::Whole(..) => Value::Whole(text.parse().map_err(|_| format!("`{text}` is not a whole number"))?),
            Kind::Flag => match text {
                "true" | "yes" | "1" => Value::Flag(true),
                "false" | "no" | "0" => Value::Flag(false),
                _ => return Err(format!("`{text}` is neither `true` nor `false`")),
            },
            Kind::List(_) => Value::list(text.split(',').map(str::trim).filter(|item| !item.is_empty())),
        };
        self.accept(value)
    }

    /// The value, if it is of this kind and in range; a single text becomes a list where one is taken.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn accept(&self, value: Value) -> Result<Value, String> {
        match (self, value) {
            (Kind::Text(_), value @ Value::Text(_)) | (Kind::Flag, value @ Value::Flag(_)) => Ok(value),
            (Kind::List(_), Value::Text(one)) => Ok(Value::List(vec![one])),
            (Kind::List(_), value @ Value::List(_)) => Ok(value),
            (Kind::OneOf(words), Value::Text(word)) => {
                if words.contains(&word.as_str()) {
                    return Ok(Value::Text(word));
                }
                let hint = crate::cli::failure::nearest(&word, words.iter().copied());
                let hint = hint.map_or_else(String::new, |word| format!("; did you mean \"{word}\"?"));
                Err(format!("there is no `{word}`{hint}"))
            }
            (Kind::Span(least, most), Value::Text(text)) => {
                let span: Span = text.parse().map_err(|problem: quorate_model::time::BadSpan| problem.to_string())?;
                if span < *least || span > *most {
                    return Err(format!("{span} is out of range"));
                }
                Ok(Value::text(span))
            }
            (Kind::Whole(least, most), Value::Whole(number)) => {
                if !(*least..=*most).contains(&number) {
                    return Err(format!("{number} is out of range"));
                }
                Ok(Value::Whole(number))
            }
            (_, value) => Err(format!("it is {}", value.kind())),
        }
    }
}

/// A span that [`Kind::Span`] has accepted.
pub(crate) fn span_of(value: &Value) -> Result<Duration, String> {
    let Value::Text(text) = value else { return Err("it must be a time span".into()) };
    text.parse::<Span>().map(|span| span.0).map_err(|problem| problem.to_string())
}
