//! Rules of this workspace that no compiler knows.

use crate::root;
use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Which of our crates may depend on which: the table in ARCHITECTURE.md.
const MAY_DEPEND: &[(&str, &[&str])] = &[
    ("quorate-model", &[]),
    ("quorate-vfs", &[]),
    ("quorate-vip", &["quorate-model"]),
    ("quorate-dns", &["quorate-model"]),
    ("quorate-membership", &["quorate-model"]),
    ("quorate-scheduler", &["quorate-model"]),
    ("quorate-lease", &["quorate-model"]),
    ("quorate-store", &["quorate-model", "quorate-vfs"]),
    ("quorate-agent-core", &["quorate-model"]),
    ("quorate-agent", &["quorate-agent-core", "quorate-model", "quorate-vip"]),
    ("quorate-check", &["quorate-model"]),
    ("quorate-gateway", &["quorate-model"]),
    ("quorate-api", &["quorate-model"]),
    ("quorate-trust", &["quorate-model"]),
    ("quorate-node", &["quorate-lease", "quorate-membership", "quorate-model", "quorate-scheduler"]),
    (
        "quorate-sim",
        &[
            "quorate-agent-core",
            "quorate-check",
            "quorate-lease",
            "quorate-model",
            "quorate-node",
            "quorate-scheduler",
            "quorate-store",
            "quorate-vfs",
        ],
    ),
    (
        "quorate",
        &[
            "quorate-agent",
            "quorate-api",
            "quorate-check",
            "quorate-dns",
            "quorate-gateway",
            "quorate-lease",
            "quorate-membership",
            "quorate-model",
            "quorate-node",
            "quorate-scheduler",
            "quorate-store",
            "quorate-trust",
            "quorate-vfs",
            "quorate-vip",
        ],
    ),
    (
        "quorate-fuzz",
        &[
            "quorate-agent",
            "quorate-api",
            "quorate-dns",
            "quorate-gateway",
            "quorate-membership",
            "quorate-model",
            "quorate-node",
            "quorate-store",
            "quorate-trust",
        ],
    ),
    ("xtask", &[]),
];

/// Crates whose code is deterministic: clippy.toml bans clocks, sleeps and hashed maps there.
const CORES: &[&str] = &["quorate-model", "quorate-membership", "quorate-scheduler", "quorate-node"];

/// Files longer than this are store rooms.
const LINES_MAX: usize = 1_200;

pub(crate) fn run() -> Result<()> {
    let mut problems = Vec::new();
    dependencies(&mut problems)?;
    sources(&mut problems)?;
    decisions(&mut problems)?;
    documents(&mut problems)?;
    console(&mut problems)?;
    for problem in &problems {
        println!("   {problem}");
    }
    if !problems.is_empty() {
        bail!("{} things are untidy", problems.len());
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

fn manifest(name: &str) -> PathBuf {
    if name == "xtask" { root().join("xtask/Cargo.toml") } else { root().join("crates").join(name).join("Cargo.toml") }
}

fn dependencies(problems: &mut Vec<String>) -> Result<()> {
    let allowed: BTreeMap<&str, &[&str]> = MAY_DEPEND.iter().copied().collect();
    let mut found: BTreeSet<String> = BTreeSet::from(["xtask".to_owned()]);
    for entry in std::fs::read_dir(root().join("crates"))? {
        found.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    for name in &found {
        let Some(allowed) = allowed.get(name.as_str()) else {
            problems.push(format!("crate {name} is not in tidy's table of crates"));
            continue;
        };
        let text = read(&manifest(name))?;
        let parsed: toml::Table = text.parse().with_context(|| format!("in {name}/Cargo.toml"))?;
        let none = toml::Table::new();
        let uses = parsed.get("dependencies").and_then(toml::Value::as_table).unwrap_or(&none);
        for dependency in uses.keys().filter(|key| key.starts_with("quorate")) {
            if !allowed.contains(&dependency.as_str()) {
                problems.push(format!("{name} must know nothing of {dependency} (ARCHITECTURE.md)"));
            }
        }
        if !text.contains("[lints]\nworkspace = true") {
            problems.push(format!("{name} does not take the workspace's lints"));
        }
        if CORES.contains(&name.as_str()) && !root().join("crates").join(name).join("clippy.toml").is_file() {
            problems.push(format!("{name} is a core and has no clippy.toml with the bans"));
        }
    }
    Ok(())
}

fn sources(problems: &mut Vec<String>) -> Result<()> {
    let mut files = Vec::new();
    for top in ["crates", "xtask"] {
        walk(&root().join(top), &mut files)?;
    }
    for path in files.iter().filter(|path| path.extension().is_some_and(|ext| ext == "rs")) {
        let text = read(path)?;
        let shown = path.strip_prefix(root()).unwrap_or(path).display().to_string();
        if shown.starts_with("xtask/src/tidy.rs") {
            continue;
        }
        if text.lines().count() > LINES_MAX {
            problems.push(format!("{shown} has more than {LINES_MAX} lines"));
        }
        let opens = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!["));
        let is_test = shown.contains("/tests/") || shown.ends_with("tests.rs");
        if !is_test && !opens.is_some_and(|line| line.starts_with("//!")) {
            problems.push(format!("{shown} does not open with what it is"));
        }
        let test_code = if is_test {
            text.as_str()
        } else {
            text.split_once("#[cfg(test)]\nmod tests").map_or("", |(_, test)| test)
        };
        for (word, why) in [
            ("thread::sleep(", "a test waits for a value with a deadline, it does not sleep"),
            ("#[ignore", "an ignored test shows nothing"),
        ] {
            if test_code.contains(word) && !test_code.contains("poll interval") {
                problems.push(format!("{shown}: {word}: {why}"));
            }
        }
        for word in ["todo!(", "unimplemented!("] {
            if text.contains(word) {
                problems.push(format!("{shown}: {word} in code"));
            }
        }
        if path.file_name().is_some_and(|name| name == "mod.rs") {
            problems.push(format!("{shown}: write foo.rs beside foo/, not mod.rs"));
        }
    }
    Ok(())
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name();
        if name == "target" || name == "node_modules" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            walk(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// `docs/adr/NNNN-title.md`, each number once.
fn decisions(problems: &mut Vec<String>) -> Result<()> {
    let mut numbers = BTreeMap::new();
    for entry in std::fs::read_dir(root().join("docs/adr"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let number = name.split('-').next().unwrap_or_default().to_owned();
        if number.len() != 4 || number.parse::<u32>().is_err() || !name.ends_with(".md") {
            problems.push(format!("docs/adr/{name} is not NNNN-title.md"));
        }
        if let Some(other) = numbers.insert(number, name.clone()) {
            problems.push(format!("docs/adr: {name} and {other} share a number"));
        }
    }
    Ok(())
}

fn documents(problems: &mut Vec<String>) -> Result<()> {
    let readme = read(&root().join("README.md"))?;
    let lines = readme.lines().count();
    if lines > 150 {
        problems.push(format!("README.md has {lines} lines; 150 is the limit"));
    }
    for command in ["cargo run --release -- dev", "cargo xtask ci"] {
        if !readme.contains(command) {
            problems.push(format!("README.md does not name `{command}`"));
        }
    }
    let architecture = read(&root().join("ARCHITECTURE.md"))?;
    for (name, _) in MAY_DEPEND {
        if !architecture.contains(&format!("`{name}`")) {
            problems.push(format!("ARCHITECTURE.md does not speak of `{name}`"));
        }
    }
    Ok(())
}

/// The committed console was built from the committed sources; seen without Node, by the hash that
/// `console/scripts/source-hash.mjs` wrote.
fn console(problems: &mut Vec<String>) -> Result<()> {
    let sources = root().join("console");
    let single = [".npmrc", "index.html", "package-lock.json", "package.json", "tsconfig.json", "vite.config.ts"];
    let mut files: Vec<PathBuf> = single.iter().map(|name| sources.join(name)).collect();
    walk(&sources.join("public"), &mut files)?;
    walk(&sources.join("src"), &mut files)?;
    let mut named: Vec<(String, PathBuf)> = files
        .into_iter()
        .filter_map(|path| Some((path.strip_prefix(&sources).ok()?.to_str()?.to_owned(), path)))
        .collect();
    named.sort();
    let mut hash = Sha256::new();
    for (name, path) in named {
        hash.update(name.as_bytes());
        hash.update([0]);
        hash.update(std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
        hash.update([0]);
    }
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let built = read(&root().join("crates/quorate-api/console/.source-hash"))?;
    if built.trim() != found {
        problems.push("the committed console is older than its sources: run `cargo xtask console` and commit".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_workspace_is_tidy() {
        super::run().expect("the list above says what to do");
    }
}
