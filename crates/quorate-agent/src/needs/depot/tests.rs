//! Artifacts from real files, archives and HTTP servers.

use super::*;
use quorate_model::need::Needs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;

fn artifact(source: &str, sha256: Digest) -> Artifact {
    Artifact { name: "main".into(), source: source.into(), sha256, unpack: false, s3: None }
}

fn depot() -> (tempfile::TempDir, Depot) {
    let dir = tempfile::tempdir().unwrap();
    let depot = Depot::new(dir.path().join("artifacts"));
    (dir, depot)
}

/// What a server does with one request.
#[derive(Clone, Copy)]
enum Answer {
    Whole,
    /// This many bytes, and then the connection ends.
    Cut(usize),
    Status(u16),
}

/// Serves one file, to each request the next answer; knows ranges. Returns its URL and the ranges that were asked for.
fn serve(content: Vec<u8>, answers: Vec<Answer>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/dir/app.bin", listener.local_addr().unwrap());
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let ranges = asked.clone();
    thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
            let head: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
            let range = head.iter().find_map(|line| line.to_lowercase().strip_prefix("range: ").map(str::to_owned));
            let begin = range.as_deref().map_or(0, |range| range[6..].trim_end_matches('-').parse().unwrap());
            asked.lock().unwrap().push(range.unwrap_or_default());
            let status = match answer {
                Answer::Status(status) => status,
                Answer::Whole | Answer::Cut(_) => {
                    if begin > 0 {
                        206
                    } else {
                        200
                    }
                }
            };
            let body = if status >= 400 { &[] } else { &content[begin..] };
            write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len())
                .unwrap();
            let sent = if let Answer::Cut(bytes) = answer { &body[..bytes] } else { body };
            stream.write_all(sent).unwrap();
        }
    });
    (url, ranges)
}

fn content() -> Vec<u8> {
    (0..3_000_000_u32).map(|at| (at % 251) as u8).collect()
}

#[test]
fn k13_a_file_is_there_only_with_its_hash_and_can_be_run() {
    let (dir, depot) = depot();
    let source = dir.path().join("app");
    fs::write(&source, "#!/bin/sh\necho it runs\n").unwrap();
    let right = artifact(source.to_str().unwrap(), tree::hash(&source).unwrap());
    depot.place(&right, None).unwrap();
    let place = locate(&depot.root, &right).unwrap();
    assert!(place.ends_with("app"));
    assert_eq!(Command::new(&place).output().unwrap().stdout, b"it runs\n");

    let wrong = artifact(source.to_str().unwrap(), Digest::of(b"something else"));
    let error = depot.place(&wrong, None).unwrap_err().to_string();
    assert_eq!(error, format!("its SHA-256 is {}, and the spec says {}", right.sha256, wrong.sha256));
    assert_eq!(locate(&depot.root, &wrong), None);
    assert_eq!(fs::read_dir(depot.root.join(PARTIAL)).unwrap().count(), 0, "nothing is left of it");

    // The source may go.
    fs::remove_file(&source).unwrap();
    depot.place(&right, None).unwrap();
    let renamed = artifact("/elsewhere/other.jar", right.sha256);
    depot.place(&renamed, None).unwrap();
    assert!(locate(&depot.root, &renamed).unwrap().ends_with("other.jar"), "the same bytes are not fetched twice");
}

#[test]
fn k13_a_download_that_was_cut_off_goes_on_where_it_was() {
    let (_dir, depot) = depot();
    let (url, asked) = serve(content(), vec![Answer::Cut(1_000_000), Answer::Whole]);
    let wanted = artifact(&url, Digest::of(&content()));
    assert!(matches!(depot.place(&wanted, None).unwrap_err(), PlaceError::Fetch(FetchError::Http { .. })));
    assert_eq!(locate(&depot.root, &wanted), None, "half of it is none of it");
    depot.place(&wanted, None).unwrap();
    assert_eq!(fs::read(locate(&depot.root, &wanted).unwrap()).unwrap(), content());
    let asked = asked.lock().unwrap().clone();
    assert_eq!(asked[0], "");
    let begin: usize = asked[1].strip_prefix("bytes=").unwrap().trim_end_matches('-').parse().unwrap();
    assert!(begin > 0 && begin <= 1_000_000, "{begin}");
}

#[test]
fn k13_a_download_whose_beginning_is_of_another_file_begins_anew() {
    let (_dir, depot) = depot();
    let (url, asked) = serve(content(), vec![Answer::Whole, Answer::Whole]);
    let wanted = artifact(&url, Digest::of(&content()));
    files::make_private_dir(&depot.root.join(PARTIAL)).unwrap();
    fs::write(depot.root.join(PARTIAL).join(wanted.sha256.to_string()), "of yesterday").unwrap();
    depot.place(&wanted, None).unwrap();
    assert_eq!(*asked.lock().unwrap(), ["bytes=12-", ""]);
}

#[test]
fn k13_a_server_that_has_something_else_or_nothing_is_said() {
    let (_dir, depot) = depot();
    let (url, _) = serve(content(), vec![Answer::Status(404), Answer::Whole]);
    let wanted = artifact(&url, Digest::of(b"else"));
    assert_eq!(depot.place(&wanted, None).unwrap_err().to_string(), format!("{url} answered 404"));
    assert!(matches!(depot.place(&wanted, None).unwrap_err(), PlaceError::WrongHash { .. }));
    assert_eq!(locate(&depot.root, &wanted), None);
}

#[test]
fn k13_archives_and_directories_become_trees() {
    let (dir, depot) = depot();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("bin")).unwrap();
    fs::write(source.join("bin/run"), "#!/bin/sh\necho tree\n").unwrap();
    fs::set_permissions(source.join("bin/run"), Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("bin/run", source.join("start")).unwrap();
    let archive = dir.path().join("app.tgz");
    let packed = Command::new("tar").arg("-czf").arg(&archive).arg("-C").arg(&source).arg(".").status().unwrap();
    assert!(packed.success());

    let tree = artifact(source.to_str().unwrap(), tree::hash(&source).unwrap());
    let packed = Artifact { unpack: true, ..artifact(archive.to_str().unwrap(), tree::hash(&archive).unwrap()) };
    for wanted in [&tree, &packed] {
        depot.place(wanted, None).unwrap();
        let place = locate(&depot.root, wanted).unwrap();
        assert_eq!(Command::new(place.join("start")).output().unwrap().stdout, b"tree\n");
    }
    let error = depot.place(&Artifact { unpack: true, sha256: Digest::of(b"1"), ..tree }, None).unwrap_err();
    assert!(matches!(error, PlaceError::NoArchive));

    let no_archive = dir.path().join("text");
    fs::write(&no_archive, "no archive").unwrap();
    let wanted = Artifact { unpack: true, ..artifact(no_archive.to_str().unwrap(), tree::hash(&no_archive).unwrap()) };
    assert!(matches!(depot.place(&wanted, None).unwrap_err(), PlaceError::Unpack(_)));
    assert_eq!(locate(&depot.root, &wanted), None);
}

#[test]
fn k13_artifacts_stay_for_a_rollback_and_go_with_their_service_unless_something_runs_from_them() {
    let (dir, depot) = depot();
    let service = ServiceName::new("web").unwrap();
    let version = |number: usize| {
        let source = dir.path().join(format!("v{number}"));
        fs::write(&source, format!("version {number}")).unwrap();
        artifact(source.to_str().unwrap(), tree::hash(&source).unwrap())
    };
    let wants = |artifact: &Artifact| {
        let needs = Needs { artifacts: vec![artifact.clone()], ..Needs::default() };
        NodeNeeds { services: BTreeMap::from([(service.clone(), vec![needs])]), ..NodeNeeds::default() }
    };
    let versions: Vec<Artifact> = (0..=VERSIONS_KEPT).map(version).collect();
    for artifact in &versions {
        depot.place(artifact, None).unwrap();
        depot.tidy(&wants(artifact)).unwrap();
    }
    let there = |artifact: &Artifact| locate(&depot.root, artifact).is_some();
    assert!(!there(&versions[0]), "too old to go back to");
    assert!(versions[1..].iter().all(there));

    let in_use = BTreeSet::from([versions[2].sha256]);
    depot.tidy(&NodeNeeds { in_use, ..NodeNeeds::default() }).unwrap();
    assert_eq!(versions.iter().filter(|artifact| there(artifact)).count(), 1);
    assert!(there(&versions[2]), "a replica runs from it");
    depot.tidy(&NodeNeeds::default()).unwrap();
    assert!(!versions.iter().any(there));
}
