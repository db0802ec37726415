//! Files and names.

use super::super::random::SplitMix;
use super::super::{MemoryFile, MemoryFs};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

fn write(file: &MemoryFile, bytes: &[u8], offset: u64) {
    file.write_at(&mut [IoSlice::new(bytes)], offset).unwrap();
}

fn p(path: &str) -> &Path {
    Path::new(path)
}

/// A file of that many synced bytes of that value, its name synced too.
fn synced(fs: &MemoryFs, path: &str, byte: u8, length: usize) -> MemoryFile {
    let file = fs.create(p(path)).unwrap();
    write(&file, &vec![byte; length], 0);
    file.sync_data().unwrap();
    fs.sync(p(path).parent().unwrap()).unwrap();
    file
}

/// Everything that names lead to below a directory, in order.
fn everything(fs: &MemoryFs, directory: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
    for name in fs.list(directory).unwrap() {
        let path = directory.join(name);
        if let Ok(target) = fs.read_link(&path) {
            found.push((path, target.to_str().unwrap().into()));
        } else if fs.is_dir(&path) {
            everything(fs, &path, found);
            found.push((path, Vec::new()));
        } else {
            found.push((path.clone(), fs.bytes(&path).unwrap()));
        }
    }
}

fn everything_real(directory: &Path, below: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
    let mut names: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let (path, shown) = (directory.join(&name), below.join(&name));
        if let Ok(target) = fs::read_link(&path) {
            found.push((shown, target.to_str().unwrap().into()));
        } else if path.is_dir() {
            everything_real(&path, &shown, found);
            found.push((shown, Vec::new()));
        } else {
            found.push((shown, fs::read(&path).unwrap()));
        }
    }
}

/// Pairs of handles to the same file in both worlds.
struct Worlds {
    real: PathBuf,
    memory: MemoryFs,
    open: Vec<(File, MemoryFile)>,
}

impl Worlds {
    /// Does one random thing in both worlds; the answers.
    fn step(&mut self, random: &mut SplitMix) -> (Result<String, io::ErrorKind>, Result<String, io::ErrorKind>) {
        const PATHS: [&str; 12] = ["a", "b", "d", "e", "l", "d/a", "d/b", "d/d", "d/l", "d/d/a", "l/a", "d/../b"];
        const TARGETS: [&str; 6] = ["a", "b", "d", "../a", "l", "d/d"];
        let mut path = || PATHS[random.below(PATHS.len() as u64) as usize];
        let (one, two) = (path(), path());
        let (real, memory) = (self.real.join(one), Path::new("/x").join(one));
        let (real_to, memory_to) = (self.real.join(two), Path::new("/x").join(two));
        let unit = |()| String::new();
        let (left, right): (io::Result<String>, io::Result<String>) = match random.below(14) {
            0 | 1 => {
                let mut options = OpenOptions::new();
                let left = options.read(true).write(true).create(true).truncate(true).open(real);
                self.both(left, |fs| fs.create(&memory))
            }
            2 => {
                let left = OpenOptions::new().read(true).write(true).open(real);
                self.both(left, |fs| fs.open(&memory))
            }
            3 => (fs::create_dir_all(real).map(unit), self.memory.create_dir_all(&memory).map(unit)),
            4 | 5 => (fs::rename(real, real_to).map(unit), self.memory.rename(&memory, &memory_to).map(unit)),
            6 => (fs::remove_file(real).map(unit), self.memory.remove_file(&memory).map(unit)),
            7 => (fs::remove_dir_all(real).map(unit), self.memory.remove_dir_all(&memory).map(unit)),
            8 => {
                let target = TARGETS[random.below(TARGETS.len() as u64) as usize];
                let left = std::os::unix::fs::symlink(target, real);
                (left.map(unit), self.memory.symlink(Path::new(target), &memory).map(unit))
            }
            9 => {
                let show = |target: PathBuf| target.display().to_string();
                (fs::read_link(real).map(show), self.memory.read_link(&memory).map(show))
            }
            10 => (Ok(real.exists().to_string()), Ok(self.memory.exists(&memory).to_string())),
            _ if self.open.is_empty() => (Ok(String::new()), Ok(String::new())),
            kind => {
                let (real, memory) = &self.open[random.below(self.open.len() as u64) as usize];
                let (offset, length) = (random.below(3_000), random.below(1_500) as usize);
                match kind {
                    11 => {
                        let bytes = vec![random.next() as u8; length];
                        let left = real.write_all_at(&bytes, offset);
                        (left.map(unit), memory.write_at(&mut [IoSlice::new(&bytes)], offset).map(unit))
                    }
                    12 => (real.set_len(offset).map(unit), memory.truncate(offset).map(unit)),
                    _ => {
                        let (mut left, mut right) = (vec![0; length], vec![0; length]);
                        let read = (real.read_exact_at(&mut left, offset), memory.read_at(&mut right, offset));
                        (read.0.map(|()| format!("{left:?}")), read.1.map(|()| format!("{right:?}")))
                    }
                }
            }
        };
        (left.map_err(|error| error.kind()), right.map_err(|error| error.kind()))
    }

    fn both(
        &mut self,
        left: io::Result<File>,
        open: impl FnOnce(&MemoryFs) -> io::Result<MemoryFile>,
    ) -> (io::Result<String>, io::Result<String>) {
        match (left, open(&self.memory)) {
            (Ok(left), Ok(right)) => {
                self.open.push((left, right));
                if self.open.len() > 4 {
                    self.open.remove(0);
                }
                (Ok(String::new()), Ok(String::new()))
            }
            (left, right) => (left.map(|_| String::new()), right.map(|_| String::new())),
        }
    }
}

#[test]
fn it_does_what_a_real_file_system_does() {
    for seed in 0..60 {
        let directory = tempfile::tempdir().unwrap();
        let mut worlds = Worlds { real: directory.path().join("x"), memory: MemoryFs::new(), open: Vec::new() };
        fs::create_dir(&worlds.real).unwrap();
        worlds.memory.create_dir_all(p("/x")).unwrap();
        let mut random = SplitMix(seed);
        for step in 0..200 {
            let (real, memory) = worlds.step(&mut random);
            assert_eq!(memory, real, "step {step} of seed {seed}");
        }
        let (mut real, mut memory) = (Vec::new(), Vec::new());
        everything_real(directory.path(), p("/"), &mut real);
        everything(&worlds.memory, p("/"), &mut memory);
        assert_eq!(memory, real, "seed {seed}");
        let copied = worlds.memory.copy();
        copied.crash(seed);
        memory.clear();
        everything(&copied, p("/"), &mut memory);
        assert_eq!(memory, real, "a copy is durable");
    }
}

#[test]
fn after_a_crash_each_sector_is_as_it_was_synced_or_as_it_was_seen() {
    const SECTORS: usize = 40;
    let (mut kept_sectors, mut grown, mut shrunk) = (0_u64, 0, 0);
    let mut lost = 0;
    for seed in 0..400 {
        let mut random = SplitMix(seed);
        let fs = MemoryFs::new();
        let file = fs.create(p("/f")).unwrap();
        fs.sync(p("/")).unwrap();
        let mut held = Vec::new();
        for _ in 0..random.below(30) {
            let offset = random.below((SECTORS * 512) as u64 - 3_000);
            match random.below(8) {
                0 => file.truncate(offset).unwrap(),
                1 => {
                    file.sync_data().unwrap();
                    held = fs.bytes(p("/f")).unwrap();
                }
                // May make sectors durable as they are seen; the check below is for the others.
                _ => write(&file, &vec![random.next() as u8; random.below(3_000) as usize], offset),
            }
        }
        let seen = fs.bytes(p("/f")).unwrap();
        fs.crash(random.next());
        let left = fs.bytes(p("/f")).unwrap();
        let byte = |bytes: &[u8], at: usize| bytes.get(at).copied().unwrap_or(0);
        for sector in 0..SECTORS {
            let range = sector * 512..(sector + 1) * 512;
            let is = |bytes: &[u8]| range.clone().all(|at| byte(&left, at) == byte(bytes, at));
            // A file that was cut in between may have zeros in place of what was cut off.
            let zeroed = range.clone().all(|at| byte(&left, at) == 0 || byte(&left, at) == byte(&held, at));
            assert!(is(&seen) || is(&held) || zeroed, "sector {sector} of seed {seed}");
            kept_sectors += u64::from(is(&seen) && !is(&held));
        }
        grown += u32::from(left.len() > held.len());
        shrunk += u32::from(left.len() < held.len());
        lost += fs.lost_sectors();
    }
    assert!(kept_sectors > 100 && lost > 100 && grown > 10 && shrunk > 10, "all of it happens");
}

#[test]
fn a_crash_loses_nothing_everything_any_sectors_or_the_last_writes() {
    let mut outcomes = BTreeSet::new();
    let mut torn = 0;
    for seed in 0..200 {
        let fs = MemoryFs::new();
        let file = synced(&fs, "/f", b'.', 3 * 512);
        write(&file, &[b'x'; 3 * 512], 0);
        fs.crash(seed);
        let bytes = fs.bytes(p("/f")).unwrap();
        outcomes.insert([bytes[0], bytes[512], bytes[1_024]].map(char::from).iter().collect::<String>());
        let lost = bytes.iter().filter(|&&byte| byte == b'.').count() / 512;
        assert_eq!(fs.lost_sectors(), lost as u64);
        assert_eq!(fs.torn_writes(), u64::from(lost == 1 || lost == 2));
        torn += fs.torn_writes();
    }
    assert_eq!(Vec::from_iter(outcomes), ["...", "..x", ".x.", ".xx", "x..", "x.x", "xx.", "xxx"]);
    assert!(torn > 20);
}

#[test]
fn the_same_seeds_give_the_same_contents() {
    let run = || {
        let fs = MemoryFs::new();
        for round in 0..20 {
            fs.create_dir_all(&Path::new("/d").join(round.to_string())).unwrap();
            let file = fs.create(&Path::new("/d").join(format!("f{round}"))).unwrap();
            write(&file, &[round; 5_000], 100);
            if round % 3 == 0 {
                file.sync_data().unwrap();
                fs.sync(p("/d")).unwrap();
                fs.sync(p("/")).unwrap();
            }
            if round % 5 == 4 {
                fs.crash(round.into());
                fs.create_dir_all(p("/d")).unwrap();
            }
        }
        let mut found = Vec::new();
        everything(&fs, p("/"), &mut found);
        (found, fs.lost_sectors(), fs.torn_writes(), fs.syncs(), fs.written_bytes(), fs.synced_bytes())
    };
    assert_eq!(run(), run());
}

#[test]
fn a_prefix_of_a_directorys_changes_survives_and_of_each_directory_its_own() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..300 {
        let fs = MemoryFs::new();
        fs.create_dir_all(p("/a")).unwrap();
        fs.create_dir_all(p("/b")).unwrap();
        fs.sync(p("/")).unwrap();
        fs.create(p("/a/1")).unwrap();
        fs.rename(p("/a/1"), p("/a/2")).unwrap();
        fs.create(p("/b/1")).unwrap();
        fs.symlink(p("1"), p("/b/l")).unwrap();
        fs.crash(seed);
        outcomes.insert((fs.list(p("/a")).unwrap().join(" "), fs.list(p("/b")).unwrap().join(" ")));
    }
    assert_eq!(outcomes.len(), 9, "{outcomes:?}");
    assert!(outcomes.iter().all(|(_, b)| b != "l"), "the link came after the file");
}

#[test]
fn a_synced_directory_keeps_its_names_and_not_those_of_others() {
    for seed in 0..50 {
        let fs = MemoryFs::new();
        fs.create_dir_all(p("/a/deep")).unwrap();
        fs.create(p("/a/f")).unwrap();
        fs.sync(p("/a")).unwrap();
        fs.crash(seed);
        if fs.exists(p("/a")) {
            assert_eq!(fs.list(p("/a")).unwrap(), ["deep", "f"]);
        }
        fs.create_dir_all(p("/a")).unwrap();
        fs.sync(p("/")).unwrap();
        fs.create(p("/a/g")).unwrap();
        fs.create(p("/g")).unwrap();
        fs.sync(p("/a")).unwrap();
        fs.crash(seed);
        assert!(fs.exists(p("/a/g")));
    }
    let lost = (0..50).any(|seed| {
        let fs = MemoryFs::new();
        fs.create_dir_all(p("/a")).unwrap();
        fs.sync(p("/a")).unwrap();
        fs.crash(seed);
        !fs.exists(p("/a"))
    });
    assert!(lost, "the name of a directory is in the one above");
}

#[test]
fn a_file_that_moves_is_in_one_of_both_directories_after_a_crash() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..100 {
        let fs = MemoryFs::new();
        fs.create_dir_all(p("/a/moved")).unwrap();
        fs.create_dir_all(p("/b")).unwrap();
        synced(&fs, "/a/moved/f", 1, 1);
        fs.sync(p("/a")).unwrap();
        fs.sync(p("/")).unwrap();
        fs.create(p("/b/before")).unwrap();
        fs.rename(p("/a/moved"), p("/b/moved")).unwrap();
        fs.create(p("/b/after")).unwrap();
        if seed % 2 == 0 {
            fs.sync(p("/a")).unwrap();
        }
        fs.crash(seed);
        let (from, to) = (fs.exists(p("/a/moved/f")), fs.exists(p("/b/moved/f")));
        assert!(from != to, "seed {seed}");
        assert!(!to || fs.exists(p("/b/before")), "what came before it in a directory is there too");
        assert!(seed % 2 == 1 || to, "it was synced");
        outcomes.insert((seed % 2, to, fs.exists(p("/b/after"))));
    }
    assert_eq!(outcomes.len(), 5, "{outcomes:?}");
}

#[test]
fn a_process_that_dies_loses_its_handles_and_nothing_else() {
    let fs = MemoryFs::new();
    let file = fs.create(p("/f")).unwrap();
    write(&file, b"seen", 0);
    fs.fail_syncs(0);
    fs.fail_reads(p("/f")).unwrap();
    assert!(file.sync_data().is_err() && file.read_at(&mut [0], 0).is_err());
    fs.kill();
    assert_eq!(fs.bytes(p("/f")).unwrap(), b"seen");
    assert!(file.bytes().is_err() && file.read_at(&mut [0], 0).is_err() && file.sync_data().is_err());
    assert!(file.write_at(&mut [IoSlice::new(b"late")], 0).is_err() && file.truncate(0).is_err());
    assert!(file.allocate_zeroed(9).is_err());
    let again = fs.open(p("/f")).unwrap();
    drop(file);
    again.read_at(&mut [0; 4], 0).unwrap();
    again.sync_data().unwrap();
    assert_eq!((fs.lost_sectors(), fs.used()), (0, 4));
}

#[test]
fn what_a_failed_sync_should_have_written_is_lost_unless_it_is_written_again() {
    for seed in 0..20 {
        let fs = MemoryFs::new();
        let file = synced(&fs, "/f", b'.', 2 * 512);
        write(&file, &[b'x'; 2 * 512], 0);
        fs.fail_syncs(0);
        assert!(file.sync_data().is_err());
        fs.fail_syncs(9);
        write(&file, b"y", 0);
        file.sync_data().unwrap();
        assert_eq!(fs.bytes(p("/f")).unwrap()[512], b'x', "it is seen until the crash");
        fs.crash(seed);
        let bytes = fs.bytes(p("/f")).unwrap();
        assert_eq!((&bytes[..2], bytes[512]), (&b"yx"[..], b'.'));
    }
}

#[test]
fn what_the_kernel_wrote_on_its_own_is_not_lost() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..300 {
        let fs = MemoryFs::new();
        let file = synced(&fs, "/f", b'.', 2 * 512);
        write(&file, &[b'x'; 2 * 512], 0);
        fs.write_back(seed);
        write(&file, &[b'y'; 2 * 512], 0);
        fs.crash(seed + 1_000);
        let bytes = fs.bytes(p("/f")).unwrap();
        outcomes.insert([bytes[0], bytes[512]].map(char::from));
    }
    assert_eq!(outcomes.len(), 9, "each sector is of any of the three times: {outcomes:?}");
}

#[test]
fn a_device_that_lies_about_syncs_loses_what_was_synced() {
    let lost = (0..20).filter(|&seed| {
        let fs = MemoryFs::new();
        let file = synced(&fs, "/f", b'.', 512);
        fs.ignore_syncs(true);
        write(&file, &[b'x'; 512], 0);
        file.sync_data().unwrap();
        fs.crash(seed);
        fs.bytes(p("/f")).unwrap()[0] == b'.'
    });
    assert!(lost.count() > 3);
}

#[test]
fn a_full_device_takes_nothing_more_until_there_is_room() {
    let fs = MemoryFs::new();
    let file = synced(&fs, "/f", 1, 1_000);
    let other = synced(&fs, "/g", 1, 500);
    fs.set_capacity(Some(2_000));
    let full = |outcome: io::Result<()>| assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::StorageFull);
    full(file.write_at(&mut [IoSlice::new(&[2; 501])], 1_000));
    full(file.truncate(1_501));
    full(file.allocate_zeroed(1_501));
    write(&file, &[2; 1_000], 500);
    assert_eq!((fs.used(), fs.free_bytes()), (2_000, 0));
    fs.remove_file(p("/g")).unwrap();
    assert_eq!(fs.free_bytes(), 0, "who has it open still uses it");
    drop(other);
    assert_eq!(fs.free_bytes(), 500);
    fs.set_capacity(None);
    assert_eq!(fs.free_bytes(), u64::MAX);
}

#[test]
fn the_power_goes_in_place_of_the_chosen_change() {
    for after in 0..5 {
        let fs = MemoryFs::new();
        fs.crash_after(after, 0);
        let work = || -> io::Result<()> {
            let file = fs.create(p("/f"))?;
            fs.sync(p("/"))?;
            file.write_at(&mut [IoSlice::new(b"x")], 0)?;
            file.sync_data()?;
            fs.rename(p("/f"), p("/g"))
        };
        assert!(work().is_err() && fs.is_off(), "after {after}");
        assert!(work().is_err(), "a process that has not noticed changes nothing");
        assert!(fs.exists(p("/f")) || after < 2, "after {after}: its name was synced");
        assert!(!fs.exists(p("/f")) || after > 0, "after {after}: it was not made");
        assert!(!fs.exists(p("/g")));
        if after == 4 {
            assert_eq!(fs.bytes(p("/f")).unwrap(), b"x");
            assert!(fs.open(p("/f")).is_err());
        }
        fs.start();
        work().unwrap();
    }
}

#[test]
fn writes_fail_on_demand_and_change_nothing() {
    let fs = MemoryFs::new();
    let file = synced(&fs, "/f", b'.', 4);
    fs.fail_writes(1);
    write(&file, b"x", 0);
    assert!(file.write_at(&mut [IoSlice::new(b"y")], 1).is_err());
    assert_eq!(fs.bytes(p("/f")).unwrap(), b"x...");
    assert_eq!(fs.written_bytes(), 5);
}

#[test]
fn rot_is_on_the_device_too() {
    for seed in 0..10 {
        let fs = MemoryFs::new();
        let file = synced(&fs, "/f", 0, 1_024);
        write(&file, &[8; 512], 0);
        fs.flip(p("/f"), 511, 1).unwrap();
        fs.flip(p("/f"), 512, 1).unwrap();
        assert_eq!(fs.bytes(p("/f")).unwrap()[511..513], [9, 1]);
        fs.crash(seed);
        let bytes = fs.bytes(p("/f")).unwrap();
        assert!(bytes[511..513] == [9, 1] && bytes[0] == 8 || bytes[511..513] == [1, 1] && bytes[0] == 0);
        assert_eq!(fs.flip(p("/f"), 1_024, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
