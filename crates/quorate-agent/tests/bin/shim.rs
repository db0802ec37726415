//! What the tests of the agent run: the hidden `quorate shim` command, also with flaws, and small
//! workloads.

use quorate_agent::boot_time;
use quorate_agent::shim::{Flaw, ShimArgs, flawed_shim, shim};
use rustix::fs::{FlockOperation, flock};
use rustix::thread::{CapabilitySet, capabilities, remove_capability_from_bounding_set, set_capabilities};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["shim", ref rest @ ..] => shim(&shim_args(rest)),
        ["shim-without-timer", ref rest @ ..] => flawed_shim(&shim_args(rest), Flaw::NoTimer),
        ["undying-shim", ref rest @ ..] => flawed_shim(&shim_args(rest), Flaw::Undying),
        ["shim-without-namespaces", ref rest @ ..] => {
            // Also what root would get back with the next program: who gains rights loses its PDEATHSIG.
            remove_capability_from_bounding_set(CapabilitySet::SYS_ADMIN).expect("one's own can be given up");
            let mut rights = capabilities(None).expect("one's own can be read");
            rights.effective.remove(CapabilitySet::SYS_ADMIN);
            rights.permitted.remove(CapabilitySet::SYS_ADMIN);
            set_capabilities(None, rights).expect("one's own can be given up");
            shim(&shim_args(rest))
        }
        ["web", port, sick_file] => web(port.parse().expect("a port"), Path::new(sick_file)),
        ["beat", file, epoch] => beat(Path::new(file), epoch),
        _ => ExitCode::FAILURE,
    }
}

fn shim_args(args: &[&str]) -> ShimArgs {
    let mut parsed = ShimArgs { dir: "".into(), end_with_pid: None, keep: false, clean_up: false };
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match *word {
            "--dir" => parsed.dir = words.next().expect("a directory").into(),
            "--end-with-pid" => parsed.end_with_pid = words.next().map(|pid| pid.parse().expect("a pid")),
            "--as-keeper" => parsed.keep = true,
            "--clean-up" => parsed.clean_up = true,
            _ => panic!("no arguments of a shim: {args:?}"),
        }
    }
    parsed
}

/// Appends `EPOCH BOOTTIME_NS` to the file every millisecond, and has it locked while it lives.
fn beat(path: &Path, epoch: &str) -> ExitCode {
    let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path) else { return ExitCode::FAILURE };
    if flock(&file, FlockOperation::LockExclusive).is_err() {
        return ExitCode::FAILURE;
    }
    // A test that failed removes the file, too.
    while path.exists() && file.write_all(format!("{epoch} {}\n", boot_time().as_nanos()).as_bytes()).is_ok() {
        std::thread::park_timeout(Duration::from_millis(1));
    }
    ExitCode::FAILURE
}

/// Answers 200 to everything, or 503 while `sick_file` exists.
fn web(port: u16, sick_file: &Path) -> ExitCode {
    let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) else { return ExitCode::FAILURE };
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let _ = stream.read(&mut [0; 1024]);
        let status = if sick_file.exists() { "503 Sick" } else { "200 OK" };
        let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    ExitCode::SUCCESS
}
