//! SQL values as JSON, read into and written from the model's types without a tree in between:
//! the SQL paths are the hottest ones of this crate.
//!
//! Two dialects differ in blobs and numbers: ours, where nothing is guessed, and rqlite's, which
//! is what its server (written in Go) reads and writes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quorate_model::sql::{NamedValue, Row, Scalar, Statement, Value};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::io::Write as _;
use std::marker::PhantomData;

/// How a facade writes values in JSON.
pub(crate) trait Dialect {
    /// What an integer beyond 64 bits is, if anything.
    fn huge(number: u64) -> Option<Scalar>;
    fn text(text: &str) -> Scalar {
        Scalar::Text(text.to_owned())
    }
    /// Whether an array of bytes is a blob.
    const BYTE_ARRAYS: bool;
    /// Whether `{"base64": "…"}` is a blob.
    const BASE64_OBJECTS: bool;
    fn write_text(out: &mut Vec<u8>, text: &str);
    fn write_real(out: &mut Vec<u8>, number: f64);
    fn write_blob(out: &mut Vec<u8>, bytes: &[u8]);
}

/// Our own dialect: a blob is `{"base64": "…"}` both ways.
#[derive(Debug)]
pub(crate) enum Native {}

/// rqlite's: `"x'AB'"` and `[171]` are blobs on the way in, base64 text on the way out.
#[derive(Debug)]
pub(crate) enum Rqlite {}

impl Dialect for Native {
    const BYTE_ARRAYS: bool = false;
    const BASE64_OBJECTS: bool = true;

    fn huge(_: u64) -> Option<Scalar> {
        None
    }

    fn write_text(out: &mut Vec<u8>, text: &str) {
        write_str(out, text);
    }

    fn write_real(out: &mut Vec<u8>, number: f64) {
        // Infinity has no form in JSON and becomes null, as in JavaScript.
        serde_json::to_writer(out, &number).expect("a vector takes every byte");
    }

    fn write_blob(out: &mut Vec<u8>, bytes: &[u8]) {
        out.extend_from_slice(b"{\"base64\":");
        write_base64(out, bytes);
        out.push(b'}');
    }
}

impl Dialect for Rqlite {
    const BYTE_ARRAYS: bool = true;
    const BASE64_OBJECTS: bool = false;

    #[allow(clippy::cast_precision_loss, reason = "what rqlite does with integers that SQLite cannot hold")]
    fn huge(number: u64) -> Option<Scalar> {
        Some(Scalar::Real(number as f64))
    }

    fn text(text: &str) -> Scalar {
        let digits = text.strip_prefix(['x', 'X']).and_then(|rest| rest.strip_prefix('\'')?.strip_suffix('\''));
        match digits.and_then(from_hex) {
            Some(bytes) => Scalar::Blob(bytes.into()),
            None => Scalar::Text(text.to_owned()),
        }
    }

    /// Go's encoder also escapes what could end a script in a page.
    fn write_text(out: &mut Vec<u8>, text: &str) {
        let start = out.len();
        write_str(out, text);
        let special = |byte: &u8| matches!(byte, b'<' | b'>' | b'&' | 0xe2);
        if !out[start..].iter().any(special) {
            return;
        }
        let plain = out.split_off(start);
        let mut rest = plain.as_slice();
        while let Some(at) = rest.iter().position(special) {
            out.extend_from_slice(&rest[..at]);
            rest = &rest[at..];
            let (escape, length): (&[u8], usize) = match rest {
                [b'<', ..] => (b"\\u003c", 1),
                [b'>', ..] => (b"\\u003e", 1),
                [b'&', ..] => (b"\\u0026", 1),
                [0xe2, 0x80, 0xa8, ..] => (b"\\u2028", 3),
                [0xe2, 0x80, 0xa9, ..] => (b"\\u2029", 3),
                _ => (&rest[..1], 1),
            };
            out.extend_from_slice(escape);
            rest = &rest[length..];
        }
        out.extend_from_slice(rest);
    }

    /// Go writes the shortest digits, and an exponent only for very large and very small numbers.
    fn write_real(out: &mut Vec<u8>, number: f64) {
        let size = number.abs();
        let written = if !number.is_finite() {
            out.write_all(b"null")
        } else if size != 0.0 && !(1e-6..1e21).contains(&size) {
            let text = format!("{number:e}");
            match text.split_once('e') {
                Some((digits, exponent)) if !exponent.starts_with('-') => write!(out, "{digits}e+{exponent}"),
                _ => out.write_all(text.as_bytes()),
            }
        } else {
            write!(out, "{number}")
        };
        written.expect("a vector takes every byte");
    }

    fn write_blob(out: &mut Vec<u8>, bytes: &[u8]) {
        write_base64(out, bytes);
    }
}

pub(crate) fn write_str(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a vector takes every byte");
}

/// Writes any small number or word that needs no quotes.
pub(crate) fn write_plain(out: &mut Vec<u8>, value: impl fmt::Display) {
    write!(out, "{value}").expect("a vector takes every byte");
}

fn write_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    STANDARD.encode_slice(bytes, &mut out[start..]).expect("the slice was made for the encoded length");
    out.push(b'"');
}

/// Writes `[a,b,…]`.
pub(crate) fn write_list<T>(out: &mut Vec<u8>, items: &[T], mut write: impl FnMut(&mut Vec<u8>, &T)) {
    out.push(b'[');
    for (position, item) in items.iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        write(out, item);
    }
    out.push(b']');
}

pub(crate) fn write_value<D: Dialect>(out: &mut Vec<u8>, value: &Value) {
    match &value.scalar {
        None => out.extend_from_slice(b"null"),
        Some(Scalar::Integer(number)) => write_plain(out, number),
        Some(Scalar::Real(number)) => D::write_real(out, *number),
        Some(Scalar::Text(text)) => D::write_text(out, text),
        Some(Scalar::Blob(bytes)) => D::write_blob(out, bytes),
    }
}

pub(crate) fn write_rows<D: Dialect>(out: &mut Vec<u8>, rows: &[Row]) {
    write_list(out, rows, |out, row| write_list(out, &row.values, write_value::<D>));
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pair = |pair: &[u8]| u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok();
    digits.len().is_multiple_of(2).then(|| digits.as_bytes().chunks_exact(2).map(pair).collect())?
}

/// A value in a dialect.
pub(crate) struct Parameter<D>(pub Value, PhantomData<D>);

impl<'de, D: Dialect> Deserialize<'de> for Parameter<D> {
    fn deserialize<R: Deserializer<'de>>(reader: R) -> Result<Self, R::Error> {
        let value = reader.deserialize_any(ParameterVisitor::<D>(PhantomData))?;
        Ok(Parameter(value, PhantomData))
    }
}

struct ParameterVisitor<D>(PhantomData<D>);

impl<'de, D: Dialect> Visitor<'de> for ParameterVisitor<D> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("null, a boolean, a number, a text or a blob")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::NULL)
    }

    fn visit_bool<E>(self, yes: bool) -> Result<Value, E> {
        Ok(Scalar::Integer(yes.into()).into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Scalar::Integer(number).into())
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Value, E> {
        if let Ok(number) = i64::try_from(number) {
            return Ok(Scalar::Integer(number).into());
        }
        D::huge(number).map(Value::from).ok_or_else(|| E::custom(format!("{number} is larger than a 64-bit integer")))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Scalar::Real(number).into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(D::text(text).into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        if !D::BYTE_ARRAYS {
            return Err(A::Error::custom("an array is not a value; a blob is {\"base64\":\"…\"}"));
        }
        let mut bytes = Vec::new();
        while let Some(byte) = items.next_element::<u8>().map_err(|_| A::Error::custom(UNSUPPORTED))? {
            bytes.push(byte);
        }
        Ok(Scalar::Blob(bytes.into()).into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        if !D::BASE64_OBJECTS {
            return Err(A::Error::custom(UNSUPPORTED));
        }
        let refused = || A::Error::custom("an object is not a value; a blob is {\"base64\":\"…\"}");
        let Some((name, text)) = fields.next_entry::<String, String>().map_err(|_| refused())? else {
            return Err(refused());
        };
        if name != "base64" || fields.next_key::<IgnoredAny>()?.is_some() {
            return Err(refused());
        }
        let bytes = STANDARD.decode(text).map_err(|error| A::Error::custom(format!("base64: {error}")))?;
        Ok(Scalar::Blob(bytes.into()).into())
    }
}

/// What rqlite says about a parameter that it cannot bind.
pub(crate) const UNSUPPORTED: &str = "unsupported type";

/// A statement of the native API: `{"sql": "…", "params": […] or {…}}`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NativeStatement {
    sql: String,
    #[serde(default)]
    params: Params,
}

impl NativeStatement {
    pub(crate) fn new(sql: String, params: Params) -> Self {
        NativeStatement { sql, params }
    }
}

impl From<NativeStatement> for Statement {
    fn from(statement: NativeStatement) -> Statement {
        let NativeStatement { sql, params: Params { positional, named } } = statement;
        Statement { sql, positional, named }
    }
}

/// Parameters: an array, or an object of names.
#[derive(Debug, Default)]
pub(crate) struct Params {
    positional: Vec<Value>,
    named: Vec<NamedValue>,
}

impl<'de> Deserialize<'de> for Params {
    fn deserialize<R: Deserializer<'de>>(reader: R) -> Result<Self, R::Error> {
        struct ParamsVisitor;
        impl<'de> Visitor<'de> for ParamsVisitor {
            type Value = Params;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of values or an object of named values")
            }

            fn visit_unit<E>(self) -> Result<Params, E> {
                Ok(Params::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Params, A::Error> {
                let mut params = Params::default();
                while let Some(Parameter(value, _)) = items.next_element::<Parameter<Native>>()? {
                    params.positional.push(value);
                }
                Ok(params)
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Params, A::Error> {
                Ok(Params { positional: Vec::new(), named: read_named::<Native, A>(fields)? })
            }
        }
        reader.deserialize_any(ParamsVisitor)
    }
}

fn read_named<'de, D: Dialect, A: MapAccess<'de>>(mut fields: A) -> Result<Vec<NamedValue>, A::Error> {
    let mut named = Vec::new();
    while let Some((name, Parameter(value, _))) = fields.next_entry::<String, Parameter<D>>()? {
        let name = name.strip_prefix([':', '@', '$']).map(str::to_owned).unwrap_or(name);
        named.push(NamedValue { name, value });
    }
    Ok(named)
}

/// A statement of rqlite's API: `"SQL"`, `["SQL", p1, p2, …]` or `["SQL", {"name": value}]`.
pub(crate) struct RqliteStatement(pub Statement);

impl<'de> Deserialize<'de> for RqliteStatement {
    fn deserialize<R: Deserializer<'de>>(reader: R) -> Result<Self, R::Error> {
        struct StatementVisitor;
        impl<'de> Visitor<'de> for StatementVisitor {
            type Value = Statement;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a statement")
            }

            fn visit_str<E>(self, sql: &str) -> Result<Statement, E> {
                Ok(Statement::new(sql))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Statement, A::Error> {
                let sql: String = items.next_element()?.ok_or_else(|| A::Error::custom("no SQL"))?;
                let mut statement = Statement::new(sql);
                while let Some(argument) = items.next_element::<Argument>()? {
                    match argument {
                        Argument::Value(value) => statement.positional.push(value),
                        Argument::Named(named) => statement.named.extend(named),
                    }
                }
                Ok(statement)
            }
        }
        reader.deserialize_any(StatementVisitor).map(RqliteStatement)
    }
}

/// One element after the SQL of a rqlite statement.
enum Argument {
    Value(Value),
    Named(Vec<NamedValue>),
}

impl<'de> Deserialize<'de> for Argument {
    fn deserialize<R: Deserializer<'de>>(reader: R) -> Result<Self, R::Error> {
        struct ArgumentVisitor;
        type Plain = ParameterVisitor<Rqlite>;
        const PLAIN: Plain = ParameterVisitor(PhantomData);
        impl<'de> Visitor<'de> for ArgumentVisitor {
            type Value = Argument;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                PLAIN.expecting(f)
            }
            fn visit_unit<E: serde::de::Error>(self) -> Result<Argument, E> {
                PLAIN.visit_unit().map(Argument::Value)
            }
            fn visit_bool<E: serde::de::Error>(self, yes: bool) -> Result<Argument, E> {
                PLAIN.visit_bool(yes).map(Argument::Value)
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Argument, E> {
                PLAIN.visit_i64(number).map(Argument::Value)
            }
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Argument, E> {
                PLAIN.visit_u64(number).map(Argument::Value)
            }
            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Argument, E> {
                PLAIN.visit_f64(number).map(Argument::Value)
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Argument, E> {
                PLAIN.visit_str(text).map(Argument::Value)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Argument, A::Error> {
                PLAIN.visit_seq(items).map(Argument::Value)
            }
            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Argument, A::Error> {
                read_named::<Rqlite, A>(fields).map(Argument::Named)
            }
        }
        reader.deserialize_any(ArgumentVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written<D: Dialect>(scalar: Scalar) -> String {
        let mut out = Vec::new();
        write_value::<D>(&mut out, &scalar.into());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_we_write_we_read_back() {
        let scalars = [
            Scalar::Integer(i64::MIN),
            Scalar::Integer(i64::MAX),
            Scalar::Real(1.0),
            Scalar::Real(-0.1),
            Scalar::Text("a\"\\\n\u{1}é\u{2028}</script>".into()),
            Scalar::Blob(bytes::Bytes::from_static(&[0, 255, 7, 8])),
            Scalar::Blob(bytes::Bytes::new()),
        ];
        for scalar in scalars {
            let text = written::<Native>(scalar.clone());
            let back: Parameter<Native> = serde_json::from_str(&text).unwrap();
            assert_eq!(back.0, scalar.into(), "{text}");
        }
    }

    #[test]
    fn a_number_is_the_nearest_one_to_its_digits() {
        for digits in ["1844674407370951.614", "9223023736854775744073709551610.0", "4.9e-324", "0.1"] {
            let nearest = Value::from(Scalar::Real(digits.parse().unwrap()));
            assert_eq!(serde_json::from_str::<Parameter<Native>>(digits).unwrap().0, nearest);
            assert_eq!(serde_json::from_str::<Parameter<Rqlite>>(digits).unwrap().0, nearest);
        }
    }

    #[test]
    fn numbers_and_texts_look_as_go_writes_them() {
        let reals = [
            (1.0, "1"),
            (0.0, "0"),
            (-2.5, "-2.5"),
            (1e20, "100000000000000000000"),
            (1e21, "1e+21"),
            (1.5e-7, "1.5e-7"),
            (1e-6, "0.000001"),
        ];
        for (real, text) in reals {
            assert_eq!(written::<Rqlite>(Scalar::Real(real)), text);
        }
        let text = Scalar::Text("<a&b>\u{2028}€\n".into());
        assert_eq!(written::<Rqlite>(text), r#""\u003ca\u0026b\u003e\u2028€\n""#);
    }

    #[test]
    fn a_value_that_sqlite_cannot_hold_is_refused() {
        for bad in
            ["[1]", "{}", "{\"base64\":1}", "{\"base64\":\"!\"}", "{\"base64\":\"\",\"x\":1}", "9223372036854775808"]
        {
            assert!(serde_json::from_str::<Parameter<Native>>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rqlite_statements_take_blobs_in_two_ways_and_names_in_an_object() {
        let read = |text: &str| serde_json::from_str::<RqliteStatement>(text).map(|statement| statement.0);
        let statement =
            read(r#"["INSERT", "x'AbFF'", [1, 255], "x'1'", 18446744073709551615, true, {"$n": 1.5}]"#).unwrap();
        let blob = |bytes: &'static [u8]| Value::from(Scalar::Blob(bytes::Bytes::from_static(bytes)));
        assert_eq!(
            statement.positional,
            [
                blob(&[0xab, 0xff]),
                blob(&[1, 255]),
                Scalar::Text("x'1'".into()).into(),
                Scalar::Real(18_446_744_073_709_551_615.0).into(),
                Scalar::Integer(1).into(),
            ]
        );
        assert_eq!(statement.named, [NamedValue { name: "n".into(), value: Scalar::Real(1.5).into() }]);
        assert!(read(r#"["SELECT ?", [256]]"#).is_err());
        assert!(read("[]").is_err());
        assert!(read("{}").is_err());
    }
}
