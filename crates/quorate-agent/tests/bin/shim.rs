//! What the tests of the agent run: the hidden `quorate shim` command, and a small web server as
//! the workload.

use quorate_agent::shim::{ShimArgs, shim};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["shim", "--dir", dir] => shim(&ShimArgs { dir: dir.into(), end_with_pid: None }),
        ["shim", "--dir", dir, "--end-with-pid", pid] => {
            shim(&ShimArgs { dir: dir.into(), end_with_pid: Some(pid.parse().expect("a pid")) })
        }
        ["web", port, sick_file] => web(port.parse().expect("a port"), Path::new(sick_file)),
        _ => ExitCode::FAILURE,
    }
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
