//! Installs what a step needs and the machine lacks.

use crate::{must, root};
use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Whether a program is there.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps servers in sbin, which not every user has on the path.
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .any(|dir| dir.join(program).is_file())
}

/// Debian packages, each with a program that shows that it is installed.
pub(crate) fn debian(packages: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> =
        packages.iter().filter(|(_, program)| !has(program)).map(|(package, _)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(" "));
    if !has("apt-get") {
        bail!("{} missing and this is no Debian: install them by hand", missing.join(", "));
    }
    let apt = |args: &[&str]| -> Result<()> {
        let status = Command::new("apt-get")
            .args(["-qq", "-y", "-o", "Dpkg::Use-Pty=0"])
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            // Debian would start the servers that we only want to have.
            .env("RUNLEVEL", "1")
            .stdout(Stdio::null())
            .status()
            .context("starting apt-get")?;
        if !status.success() {
            bail!("apt-get {} failed: {status} (are you root?)", args.join(" "));
        }
        Ok(())
    };
    apt(&["update"])?;
    let mut install = vec!["install", "--no-install-recommends"];
    install.extend(&missing);
    apt(&install)
}

/// cargo-deny, built once into target/tools.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    cargo_tool("cargo-deny", "0.20.2")
}

/// cargo-fuzz, built once into target/tools, beside the nightly compiler that it needs.
pub(crate) fn cargo_fuzz() -> Result<PathBuf> {
    let nightly = Command::new("rustup").args(["run", "nightly", "rustc", "--version"]).output();
    if !nightly.is_ok_and(|found| found.status.success()) {
        bail!("fuzzing needs a nightly compiler: rustup toolchain install nightly --profile minimal");
    }
    cargo_tool("cargo-fuzz", "0.13.1")
}

fn cargo_tool(name: &str, version: &str) -> Result<PathBuf> {
    let tools = root().join("target/tools");
    let program = tools.join("bin").join(name);
    let found = Command::new(&program).arg("--version").output();
    if found.is_ok_and(|found| String::from_utf8_lossy(&found.stdout).contains(version)) {
        return Ok(program);
    }
    println!("building {name} {version} (once)");
    let tools = tools.display().to_string();
    // It runs for seconds; to optimise it takes minutes.
    must("cargo", &["install", "--debug", "--quiet", "--locked", "--root", &tools, "--version", version, name])?;
    Ok(program)
}

/// Moto, the S3 service that tests fetch from, in target/tools: one that verifies signatures.
pub(crate) fn moto() -> Result<()> {
    let tools = root().join("target/tools/moto");
    let found = Command::new("python3").args(["-c", "import boto3, moto.server"]).env("PYTHONPATH", &tools).output();
    if found.is_ok_and(|found| found.status.success()) {
        return Ok(());
    }
    debian(&[("python3-pip", "pip3")])?;
    println!("installing moto (once)");
    let tools = tools.display().to_string();
    let wanted = ["boto3", "moto[s3,server]==5.2.1"];
    must("python3", &[&["-m", "pip", "install", "--quiet", "--target", &tools][..], &wanted[..]].concat())
}

/// Node 20.19 or newer with npm. Debian 12's own is older; then npm brings a newer one.
pub(crate) fn node() -> Result<()> {
    if recent_node() {
        return Ok(());
    }
    debian(&[("nodejs", "node"), ("npm", "npm")])?;
    if recent_node() {
        return Ok(());
    }
    let tools = root().join("target/tools/node");
    std::fs::create_dir_all(&tools)?;
    let prefix = tools.display().to_string();
    must("npm", &["install", "--silent", "--no-audit", "--no-fund", "--prefix", &prefix, "node@20.20.2"])?;
    let mut path = std::ffi::OsString::from(tools.join("node_modules/node/bin"));
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    // SAFETY: xtask has one thread.
    #[allow(unsafe_code, reason = "the children of this process must find the newer Node first")]
    unsafe {
        std::env::set_var("PATH", path);
    }
    if recent_node() { Ok(()) } else { bail!("Node 20.19 or newer is needed and could not be installed") }
}

fn recent_node() -> bool {
    let Ok(found) = Command::new("node").arg("--version").output() else { return false };
    let text = String::from_utf8_lossy(&found.stdout).trim().trim_start_matches('v').to_owned();
    let mut parts = text.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    version >= (20, 19) && has("npm")
}
