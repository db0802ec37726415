//! Writes the seeds of all targets into the directory that is named: `DIRECTORY/TARGET/seed-NUMBER`.

use anyhow::{Context as _, Result};
use quorate_fuzz::{TARGETS, seeds};
use std::fs;
use std::path::PathBuf;

fn main() -> Result<()> {
    let root: PathBuf = std::env::args_os().nth(1).context("name the directory of the corpora")?.into();
    for (target, _) in TARGETS {
        let directory = root.join(target);
        fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        for (number, seed) in seeds::of(target).into_iter().enumerate() {
            let path = directory.join(format!("seed-{number}"));
            fs::write(&path, seed).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    Ok(())
}
