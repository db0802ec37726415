//! Changes single settings in the file and leaves everything else in it as it was: comments, order,
//! empty lines.
//!
//! # Invariants
//! - What is written was read again first and is good; otherwise the file is not touched.
//! - At every moment, also after a power cut, the file is the old one or the new one: the new text
//!   goes to another file beside it, is synced, and takes its name.

use super::keys::Key;
use super::mistake::{Mistake, Mistakes, Place};
use super::value::Value;
use super::{keys, read};
use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::Path;
use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, TableLike};

/// What to do with one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Edit {
    Set(&'static str, Value),
    Unset(&'static str),
}

impl Edit {
    /// `KEY=VALUE`; `KEY=` unsets.
    ///
    /// # Errors
    /// An unknown key or a value that it cannot have.
    pub(crate) fn parse(text: &str) -> Result<Edit, Mistakes> {
        let Some((path, value)) = text.split_once('=') else {
            let fix = "write KEY=VALUE, like cluster.minimum_nodes=2";
            return Err(
                Mistake::new("config-bad-value", Place::CommandLine, format!("`{text}` has no `=`"), fix).into()
            );
        };
        let key = known(path.trim())?;
        let value = value.trim();
        if value.is_empty() {
            return Ok(Edit::Unset(key.path));
        }
        value_of(key, value).map(|value| Edit::Set(key.path, value)).map_err(|problem| {
            let error = format!("`{}` cannot have the value `{value}`", key.path);
            let fix = format!("it takes: {}", key.kind.describe());
            Mistake::new("config-bad-value", Place::CommandLine, error, fix).why(problem).into()
        })
    }
}

/// The key with this path.
///
/// # Errors
/// It is unknown; the mistake says what was probably meant.
pub(crate) fn known(path: &str) -> Result<&'static Key, Mistakes> {
    keys::find(path).ok_or_else(|| read::unknown_key(path, Place::CommandLine).into())
}

/// A value as it would be in the file (`"…"`, `[…]`), or plain text.
fn value_of(key: &Key, text: &str) -> Result<Value, String> {
    let value = if text.starts_with(['"', '\'', '[']) {
        let value = toml::de::DeValue::parse(text).map_err(|problem| problem.message().to_owned())?;
        key.kind.accept(Value::from_toml(value.get_ref()).map_err(|found| format!("it is {found}"))?)?
    } else {
        key.kind.read(text)?
    };
    // Whether it is good is for the setting itself to say.
    key.set(&mut super::Settings::default(), value.clone())?;
    Ok(value)
}

/// The text of `file` with the edits made.
///
/// # Errors
/// The text is no good before or after.
pub(crate) fn edit(text: &str, file: &Path, edits: &[Edit]) -> Result<String, Mistakes> {
    let mut document: DocumentMut = text.parse().map_err(|problem: toml_edit::TomlError| {
        let (line, column) = read::position(text, problem.span().map_or(0, |span| span.start));
        let place = Place::File { file: file.to_owned(), line, column };
        Mistake::new(
            "config-syntax",
            place,
            format!("this is not TOML: {}", problem.message()),
            "correct the line first",
        )
    })?;
    for edit in edits {
        match edit {
            Edit::Set(path, value) => set(document.as_table_mut(), path, value),
            Edit::Unset(path) => unset(document.as_table_mut(), path),
        }
    }
    let text = document.to_string();
    read::read(&text, file, &BTreeMap::new())?;
    Ok(text)
}

fn set(root: &mut Table, path: &str, value: &Value) {
    let (section, rest) = path.split_once('.').unwrap_or(("", path));
    let section = root.entry(section).or_insert_with(|| Item::Table(Table::new()));
    // A section written as `node = { … }` is left in that form. It is a table, or reading would fail.
    if let Some(section) = section.as_table_like_mut() {
        set_below(section, rest, value);
    }
}

fn set_below(table: &mut dyn TableLike, path: &str, value: &Value) {
    match path.split_once('.') {
        None => {
            let mut new = to_edit(value);
            if let Some(old) = table.get(path).and_then(Item::as_value) {
                // The comment behind it stays.
                *new.decor_mut() = old.decor().clone();
            }
            table.insert(path, Item::Value(new));
        }
        Some((inner, rest)) => {
            if table.get(inner).is_none() {
                table.insert(inner, Item::Value(InlineTable::new().into()));
            }
            let Some(item) = table.get_mut(inner) else { return };
            if let Some(below) = item.as_table_like_mut() {
                set_below(below, rest, value);
            }
            // The space before the closing brace is the last value's, and it is not the last any more.
            if let Some(inline) = item.as_inline_table_mut().filter(|inline| !inline.to_string().contains('\n')) {
                inline.fmt();
            }
        }
    }
}

fn unset(table: &mut dyn TableLike, path: &str) {
    match path.split_once('.') {
        None => drop(table.remove(path)),
        Some((inner, rest)) => {
            let Some(below) = table.get_mut(inner).and_then(Item::as_table_like_mut) else { return };
            unset(below, rest);
            // An empty `timers = {}` says nothing; an empty section may have comments.
            let nothing = below.is_empty() && table.get(inner).is_some_and(Item::is_inline_table);
            if nothing {
                table.remove(inner);
            }
        }
    }
}

fn to_edit(value: &Value) -> toml_edit::Value {
    match value {
        Value::Text(text) => text.as_str().into(),
        // Ranges end far below.
        Value::Whole(number) => i64::try_from(*number).unwrap_or(i64::MAX).into(),
        Value::Flag(flag) => (*flag).into(),
        Value::List(items) => items.iter().map(String::as_str).collect::<Array>().into(),
    }
}

/// Puts `text` into `file`, which need not exist; its directory is made if it does not.
///
/// # Errors
/// What the system says. The old file is then still there.
pub(crate) fn write(file: &Path, text: &str) -> io::Result<()> {
    // A link is followed: what it points to is the file.
    let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    let mut new = tempfile::Builder::new().prefix(".quorate.toml-").tempfile_in(directory)?;
    new.write_all(text.as_bytes())?;
    // Everybody may read it, as there are no secrets in it; a stricter file stays so.
    let permissions = match std::fs::metadata(&file) {
        Ok(old) => old.permissions(),
        Err(_) => std::os::unix::fs::PermissionsExt::from_mode(0o644),
    };
    new.as_file().set_permissions(permissions)?;
    new.as_file().sync_all()?;
    new.persist(&file).map_err(|error| error.error)?;
    std::fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    const FILE: &str = "\
# Ours since 2026.
[cluster]
minimum_nodes = 1   # raised when the third server comes
timers = { heartbeat = \"5s\" }

[log]
# how much
level = \"info\"
";

    fn edits(text: &str, wanted: &[&str]) -> String {
        let edits: Vec<Edit> = wanted.iter().map(|text| Edit::parse(text).unwrap()).collect();
        edit(text, Path::new("quorate.toml"), &edits).unwrap()
    }

    #[test]
    fn a_changed_value_leaves_comments_and_everything_else_in_place() {
        let changed = edits(FILE, &["cluster.minimum_nodes=3", "cluster.timers.retry_join=5", "node.name=n1"]);
        expect![[r##"
            # Ours since 2026.
            [cluster]
            minimum_nodes = 3   # raised when the third server comes
            timers = { heartbeat = "5s", retry_join = 5 }

            [log]
            # how much
            level = "info"

            [node]
            name = "n1"
        "##]]
        .assert_eq(&changed);
    }

    #[test]
    fn taking_a_value_away_takes_an_empty_inline_table_too() {
        expect![[r#"
            # Ours since 2026.
            [cluster]
            minimum_nodes = 1   # raised when the third server comes

            [log]
        "#]]
        .assert_eq(&edits(FILE, &["cluster.timers.heartbeat=", "log.level="]));
        assert_eq!(edits(FILE, &["console.redirect="]), FILE);
    }

    #[test]
    fn a_list_is_given_with_commas_or_as_in_the_file() {
        let expected = "[cluster]\nseed = [\"10.0.0.1:7000\", \"core-2.example.com:7000\"]\n";
        assert_eq!(edits("", &["cluster.seed=10.0.0.1, core-2.example.com"]), expected.replace(":7000", ""));
        assert_eq!(edits("", &[r#"cluster.seed=["10.0.0.1:7000", "core-2.example.com:7000"]"#]), expected);
    }

    #[test]
    fn nothing_bad_is_ever_written() {
        let error = |text: &str| Edit::parse(text).unwrap_err().0.remove(0);
        assert_eq!(error("cluster.minimum_node=2").fix, "did you mean `minimum_nodes`?");
        assert_eq!(error("minimum_nodes=2").fix, "did you mean `cluster.minimum_nodes`?");
        assert_eq!(error("ha.failover_time=5s").why, "5s is out of range");
        assert_eq!(error("ha.failover_time=5s").fix, "it takes: time span, `10s` to `5m`");
        assert_eq!(error("node.roles=managre").why, "there is no `managre`; did you mean \"manager\"?");
        assert_eq!(error("cluster.minimum_nodes").code, "config-bad-value");
        let balancer = [Edit::parse("console.redirect=balancer").unwrap()];
        assert_eq!(edit(FILE, Path::new("f"), &balancer).unwrap_err().0[0].code, "config-contradiction");
        assert_eq!(edit("[cluster", Path::new("f"), &balancer).unwrap_err().0[0].code, "config-syntax");
    }

    #[test]
    fn a_file_is_replaced_whole_and_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("etc/quorate.toml");
        write(&file, "a").unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let link = directory.path().join("link.toml");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, "b").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "b");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }
}
