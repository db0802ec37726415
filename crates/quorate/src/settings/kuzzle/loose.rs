//! JSON as people write it into configuration files and documents: with comments, keys without
//! quotes, a comma too many, single quotes, and without the braces around the whole.

use serde_json::{Map, Number, Value};

/// Deeper nesting is refused, so that no text exhausts the stack.
const DEPTH_MAX: usize = 64;

/// Where reading stopped, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// Byte of the text.
    pub at: usize,
    pub what: &'static str,
}

/// Reads an object, or what is between its braces. Of two equal keys the last one counts.
pub(super) fn parse(text: &str) -> Result<Map<String, Value>, Problem> {
    let mut parser = Parser { text, at: 0 };
    parser.blank()?;
    let braces = parser.takes('{');
    let map = parser.members(if braces { Some('}') } else { None }, DEPTH_MAX)?;
    parser.blank()?;
    // Documents print two objects one after the other without a comma between them, too.
    if parser.peek().is_some() { Err(parser.problem("there is more behind the end of the object")) } else { Ok(map) }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn problem(&self, what: &'static str) -> Problem {
        Problem { at: self.at, what }
    }

    fn takes(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    /// Takes what is `while_so`.
    fn span(&mut self, while_so: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !while_so(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// Passes over white space and comments.
    fn blank(&mut self) -> Result<(), Problem> {
        loop {
            self.span(|c| c.is_whitespace() || c == '\u{feff}');
            let rest = self.rest();
            if rest.starts_with("//") || rest.starts_with('#') {
                self.span(|c| c != '\n');
            } else if rest.starts_with("/*") {
                let end = rest.find("*/").ok_or_else(|| self.problem("a comment has no end"))?;
                self.at += end + 2;
            } else {
                return Ok(());
            }
        }
    }

    /// Members up to `close`, or to the end of the text.
    fn members(&mut self, close: Option<char>, depth: usize) -> Result<Map<String, Value>, Problem> {
        let mut map = Map::new();
        loop {
            self.blank()?;
            match (self.peek(), close) {
                (None, None) => return Ok(map),
                (None, Some(_)) => return Err(self.problem("an object has no end")),
                (Some(c), Some(close)) if c == close => {
                    self.at += close.len_utf8();
                    return Ok(map);
                }
                (Some(_), _) => {}
            }
            let key = self.key()?;
            self.blank()?;
            if !self.takes(':') {
                return Err(self.problem("a key needs a colon behind it"));
            }
            let value = self.value(depth)?;
            map.insert(key, value);
            self.blank()?;
            let more = self.takes(',');
            self.blank()?;
            if !more && self.peek() != close {
                return Err(self.problem("a comma or the end of the object is missing"));
            }
        }
    }

    fn key(&mut self) -> Result<String, Problem> {
        match self.peek() {
            Some(quote @ ('"' | '\'')) => self.string(quote),
            _ => match self.span(|c| c.is_alphanumeric() || matches!(c, '_' | '$' | '-')) {
                "" => Err(self.problem("a key is missing")),
                word => Ok(word.to_owned()),
            },
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, Problem> {
        let Some(depth) = depth.checked_sub(1) else { return Err(self.problem("it is nested too deeply")) };
        self.blank()?;
        match self.peek() {
            Some('{') => {
                self.at += 1;
                self.members(Some('}'), depth).map(Value::Object)
            }
            Some('[') => {
                self.at += 1;
                self.items(depth).map(Value::Array)
            }
            Some(quote @ ('"' | '\'')) => self.string(quote).map(Value::String),
            _ => self.word(),
        }
    }

    fn items(&mut self, depth: usize) -> Result<Vec<Value>, Problem> {
        let mut items = Vec::new();
        loop {
            self.blank()?;
            if self.takes(']') {
                return Ok(items);
            }
            items.push(self.value(depth)?);
            self.blank()?;
            if !self.takes(',') && self.peek() != Some(']') {
                return Err(self.problem("a comma or the end of the list is missing"));
            }
        }
    }

    fn word(&mut self) -> Result<Value, Problem> {
        let start = self.at;
        let word = self.span(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+'));
        match word {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            "null" => Ok(Value::Null),
            number => number
                .parse::<Number>()
                .map(Value::Number)
                .map_err(|_| Problem { at: start, what: "a value is missing or is no text, number, list or object" }),
        }
    }

    fn string(&mut self, quote: char) -> Result<String, Problem> {
        let start = self.at;
        let endless = Problem { at: start, what: "a text has no closing quote" };
        self.at += 1;
        let mut text = String::new();
        loop {
            let c = self.peek().ok_or(endless.clone())?;
            self.at += c.len_utf8();
            match c {
                '\n' => return Err(endless),
                '\\' => text.push(self.escape()?),
                c if c == quote => return Ok(text),
                c => text.push(c),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Problem> {
        let bad = self.problem("an escape in a text is none that JSON has");
        let c = self.peek().ok_or(bad.clone())?;
        self.at += c.len_utf8();
        match c {
            '"' | '\'' | '\\' | '/' => Ok(c),
            'n' => Ok('\n'),
            't' => Ok('\t'),
            'r' => Ok('\r'),
            'b' => Ok('\u{8}'),
            'f' => Ok('\u{c}'),
            'u' => {
                let digits = self.rest().get(..4).ok_or(bad.clone())?;
                // Halves of a pair are no characters; nothing in such a file has one.
                let c = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32).ok_or(bad)?;
                self.at += 4;
                Ok(c)
            }
            _ => Err(bad),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(text: &str) -> Value {
        Value::Object(parse(text).unwrap())
    }

    #[test]
    fn json_is_read_as_it_is_and_what_people_leave_out_is_forgiven() {
        let strict = r#"{"a":{"b":[1,-2.5,"x\"\u00e9\n",true,null,{}]},"c":false}"#;
        assert_eq!(read(strict), serde_json::from_str::<Value>(strict).unwrap());
        assert_eq!(read("\"a\": 1,\n\"b\": {}"), json!({ "a": 1, "b": {} }));
        assert_eq!(
            read("// first\n{ a: 'x', /* two */ b_c: [1, 2,], # three\n}\n"),
            json!({ "a": "x", "b_c": [1, 2] })
        );
        assert_eq!(read(""), json!({}));
    }

    #[test]
    fn what_cannot_be_read_says_where() {
        for (text, at, what) in [
            ("{", 1, "an object has no end"),
            ("{\"a\" 1}", 5, "a key needs a colon behind it"),
            ("{a: }", 4, "a value is missing or is no text, number, list or object"),
            ("{a: 1 b: 2}", 6, "a comma or the end of the object is missing"),
            ("{a: \"x}", 4, "a text has no closing quote"),
            ("{} x", 3, "there is more behind the end of the object"),
            ("/* x", 0, "a comment has no end"),
            ("<html>", 0, "a key is missing"),
        ] {
            assert_eq!(parse(text), Err(Problem { at, what }), "{text}");
        }
        assert_eq!(parse(&"{a:".repeat(1_000)).unwrap_err().what, "it is nested too deeply");
        assert_eq!(parse(&format!("a:{}", "[".repeat(100_000))).unwrap_err().what, "it is nested too deeply");
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(".{0,6}", inner, 0..4).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_json_object_is_read_as_serde_reads_it(members in prop::collection::btree_map(".{0,6}", json(), 0..4)) {
            let object: Value = members.into_iter().collect();
            prop_assert_eq!(read(&object.to_string()), object.clone());
            prop_assert_eq!(read(&serde_json::to_string_pretty(&object).unwrap()), object);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[\\PC{}\\[\\]:,'\"/*\n#]{0,60}") {
            let _ = parse(&text);
        }
    }
}
