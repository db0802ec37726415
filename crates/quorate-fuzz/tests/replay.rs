//! What fuzzing found worth keeping, on the stable compiler.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use quorate_fuzz::{TARGETS, Target, seeds};
use std::fs;
use std::path::{Path, PathBuf};

/// All corpora together. They are in everybody's checkout for ever.
const CORPORA_BYTES_MAX: u64 = 200 << 10;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// Files of a directory that may be missing, sorted.
fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn replay(target: Target, inputs: &[PathBuf]) {
    for path in inputs {
        let input = fs::read(path).unwrap();
        let outcome = std::panic::catch_unwind(|| target(&input));
        assert!(outcome.is_ok(), "{} breaks it", path.display());
    }
}

#[test]
fn nothing_in_a_corpus_breaks_its_target() {
    for (name, target) in TARGETS {
        let inputs = files(&root().join("corpus").join(name));
        assert!(!inputs.is_empty(), "{name} has no corpus: cargo xtask fuzz --seed-corpus");
        replay(*target, &inputs);
    }
}

#[test]
fn what_broke_a_target_once_breaks_it_no_more() {
    for (name, target) in TARGETS {
        replay(*target, &files(&root().join("regressions").join(name)));
    }
    let known: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    for directory in files(&root().join("regressions")) {
        let name = directory.file_name().unwrap().to_str().unwrap();
        assert!(known.contains(&name), "regressions of {name}, which is no target");
    }
}

/// Else a target that refuses everything would never fail.
#[test]
fn what_the_encoders_write_is_taken() {
    for (name, target) in TARGETS {
        for (number, seed) in seeds::of(name).iter().enumerate() {
            assert!(target(seed), "{name} refuses its seed {number}: {:?}", String::from_utf8_lossy(seed));
        }
    }
}

#[test]
fn bytes_that_mean_nothing_are_refused() {
    for (name, target) in TARGETS {
        assert!(!target(b"") && !target(b"\x07\xff\xff\xff\xff\xff\xff\xff\xff"), "{name} takes anything");
    }
}

#[test]
fn each_target_has_its_fuzzer() {
    let fuzzers = files(&root().join("fuzz_targets"));
    let fuzzers: Vec<&str> = fuzzers.iter().map(|path| path.file_stem().unwrap().to_str().unwrap()).collect();
    let targets: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(fuzzers, targets);
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for name in targets {
        let source = fs::read_to_string(root().join("fuzz_targets").join(name).with_extension("rs")).unwrap();
        assert!(source.contains(&format!("quorate_fuzz::{name}(data)")), "{name}.rs feeds another target");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not in fuzz/Cargo.toml");
    }
}

#[test]
fn the_corpora_are_small() {
    let directories = files(&root().join("corpus"));
    let bytes: u64 = directories.iter().flat_map(|name| files(name)).map(|path| path.metadata().unwrap().len()).sum();
    assert!(bytes <= CORPORA_BYTES_MAX, "{bytes} bytes of corpora; {CORPORA_BYTES_MAX} is the limit");
}
