//! A log that is kept in a directory: what a replica wrote to stdout and stderr, or what a server says about
//! itself, as bytes with ever-growing offsets.
//!
//! `log/` holds at most two files, each named by the offset of its first byte (20 digits, so that
//! sorting by name is sorting by time and `cat log/*.log` is the log), and `current`, a link to the
//! newer one for `tail --follow=name`. Because the name says the offset, there is no second file
//! that could disagree with it, and a reader who follows by offset never notices a rotation.
//!
//! # Invariants
//! - One process writes: a replica's shim, a node's server. An offset never means two different bytes.
//! - Together the files are at most twice as long as a file may be, and one write more.
//! - A disk that is full costs lines and nothing else: what cannot be written is dropped, and the older file
//!   goes before a new one is begun, so that a log makes room for itself.

use crate::files;
use quorate_model::id::ReplicaId;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A replica's file that reaches this is closed, and the one before it removed.
pub(crate) const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFrom {
    /// An offset that an earlier chunk named. One that is rotated away means the oldest byte there is.
    Offset(u64),
    /// The last so many lines, as far as they fit.
    LastLines(u32),
}

/// Part of a log. `next` is the offset to go on from; with empty `data` nothing is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChunk {
    pub data: Vec<u8>,
    pub next: u64,
}

/// Why a piece of a log cannot be given. Nothing changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadLogError {
    /// The replica never ran here, or too long ago.
    #[error("this node has no log of replica {0}")]
    Unknown(ReplicaId),
    #[error("cannot read the log in {}", dir.display())]
    Io {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The writing end.
#[derive(Debug)]
pub struct LogWriter {
    dir: PathBuf,
    file: File,
    base: u64,
    size: u64,
    size_max: u64,
}

impl LogWriter {
    /// Goes on where the newest file ends. `dir` is made if it is missing; a file that reaches `size_max` bytes is
    /// closed, and two are kept.
    ///
    /// # Errors
    /// The directory or the file cannot be made.
    pub fn open(dir: &Path, size_max: u64) -> io::Result<LogWriter> {
        files::make_private_dir(dir)?;
        let base = segments(dir)?.last().map_or(0, |segment| segment.base);
        let file = open_segment(dir, base)?;
        let size = file.metadata()?.len();
        Ok(LogWriter { dir: dir.to_owned(), file, base, size, size_max })
    }

    /// Appends. When the disk refuses, the bytes are gone: nobody must ever wait for a log.
    ///
    /// # Errors
    /// They are gone, or some of them.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.size >= self.size_max {
            self.rotate()?;
        }
        let result = self.file.write_all(bytes);
        // After an error part of it may be written; the file itself knows.
        self.size = if result.is_ok() { self.size + bytes.len() as u64 } else { self.file.metadata()?.len() };
        result
    }

    fn rotate(&mut self) -> io::Result<()> {
        let base = self.base + self.size;
        // First, because the disk may be full: then there is room for the new one.
        for old in segments(&self.dir)?.into_iter().filter(|segment| segment.base < self.base) {
            fs::remove_file(old.path)?;
        }
        self.file = open_segment(&self.dir, base)?;
        (self.base, self.size) = (base, 0);
        Ok(())
    }
}

fn open_segment(dir: &Path, base: u64) -> io::Result<File> {
    let name = format!("{base:020}.log");
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(dir.join(&name))?;
    let link = dir.join("current.new");
    files::remove_file(&link)?;
    std::os::unix::fs::symlink(&name, &link)?;
    fs::rename(link, dir.join("current"))?;
    Ok(file)
}

struct Segment {
    base: u64,
    path: PathBuf,
}

/// The files of a log, oldest first.
fn segments(dir: &Path) -> io::Result<Vec<Segment>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".log"));
        if let Some(base) = name.and_then(|digits| digits.parse().ok()) {
            found.push(Segment { base, path });
        }
    }
    found.sort_by_key(|segment| segment.base);
    Ok(found)
}

/// Reads up to `bytes_max` bytes of the log of a replica below `services`, also for some time after it has ended.
/// It blocks for as long as the disk does.
///
/// # Errors
/// [`ReadLogError::Unknown`] if the replica never ran there or its log is gone.
pub fn read_replica(
    services: &Path,
    replica: ReplicaId,
    from: LogFrom,
    bytes_max: usize,
) -> Result<LogChunk, ReadLogError> {
    let unusable = |dir: &Path, source| ReadLogError::Io { dir: dir.to_owned(), source };
    let found = find(services, replica).map_err(|source| unusable(services, source))?;
    let dir = found.ok_or(ReadLogError::Unknown(replica))?;
    read(&dir, from, bytes_max).map_err(|source| unusable(&dir, source))
}

fn find(services: &Path, replica: ReplicaId) -> io::Result<Option<PathBuf>> {
    let entries = match fs::read_dir(services) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for service in entries {
        let dir = service?.path().join(replica.to_string()).join("log");
        if dir.is_dir() {
            return Ok(Some(dir));
        }
    }
    Ok(None)
}

/// Reads up to `bytes_max` bytes of the log in `dir`. It blocks for as long as the disk does.
///
/// # Errors
/// The directory or its files cannot be read.
pub fn read(dir: &Path, from: LogFrom, bytes_max: usize) -> io::Result<LogChunk> {
    // A rotation may remove a file between listing and opening it; the next listing is then right.
    const ATTEMPTS: u32 = 3;
    for _ in 1..ATTEMPTS {
        match read_once(dir, from, bytes_max) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && dir.exists() => {}
            result => return result,
        }
    }
    read_once(dir, from, bytes_max)
}

fn read_once(dir: &Path, from: LogFrom, bytes_max: usize) -> io::Result<LogChunk> {
    let mut open = Vec::new();
    for segment in segments(dir)? {
        let file = File::open(&segment.path)?;
        let size = file.metadata()?.len();
        open.push((segment.base, size, file));
    }
    let (Some(&(oldest, ..)), Some(&(newest, size, _))) = (open.first(), open.last()) else {
        return Ok(LogChunk { data: Vec::new(), next: 0 });
    };
    let end = newest + size;
    let bytes_max = bytes_max as u64;
    let begin = match from {
        LogFrom::Offset(offset) => offset.clamp(oldest, end),
        LogFrom::LastLines(_) => end.saturating_sub(bytes_max).max(oldest),
    };
    let stop = end.min(begin.saturating_add(bytes_max));
    let mut data = Vec::with_capacity(usize::try_from(stop - begin).unwrap_or(0));
    for (base, size, file) in &open {
        let (first, last) = (begin.max(*base), stop.min(base + size));
        if first < last {
            let filled = data.len();
            data.resize(filled + usize::try_from(last - first).map_err(io::Error::other)?, 0);
            file.read_exact_at(&mut data[filled..], first - base)?;
        }
    }
    if let LogFrom::LastLines(lines) = from {
        data.drain(..start_of_last_lines(&data, lines));
    }
    Ok(LogChunk { data, next: stop })
}

fn start_of_last_lines(data: &[u8], lines: u32) -> usize {
    if lines == 0 {
        return data.len();
    }
    let body = data.strip_suffix(b"\n").unwrap_or(data);
    let mut ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
    ends.nth(lines as usize - 1).map_or(0, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_who_follows_by_offset_gets_every_byte_once_over_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path(), 100).unwrap();
        let (mut written, mut seen, mut next) = (Vec::new(), Vec::new(), 0);
        for number in 0..100 {
            let line = format!("line {number}\n");
            log.append(line.as_bytes()).unwrap();
            written.extend_from_slice(line.as_bytes());
            let chunk = read(dir.path(), LogFrom::Offset(next), 7).unwrap();
            seen.extend_from_slice(&chunk.data);
            next = chunk.next;
            if number % 10 == 9 {
                while next < written.len() as u64 {
                    let chunk = read(dir.path(), LogFrom::Offset(next), 7).unwrap();
                    seen.extend_from_slice(&chunk.data);
                    next = chunk.next;
                }
            }
        }
        assert_eq!(String::from_utf8(seen).unwrap(), String::from_utf8(written).unwrap());
        assert_eq!(segments(dir.path()).unwrap().len(), 2);
        assert!(read(dir.path(), LogFrom::Offset(next), 7).unwrap().data.is_empty());
    }

    #[test]
    fn an_offset_that_is_rotated_away_means_the_oldest_byte_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path(), 10).unwrap();
        for _ in 0..5 {
            log.append(b"0123456789").unwrap();
        }
        let chunk = read(dir.path(), LogFrom::Offset(3), 1000).unwrap();
        assert_eq!((chunk.data.len(), chunk.next), (20, 50));
    }

    #[test]
    fn a_log_that_cannot_begin_a_file_has_made_room_and_goes_on_when_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path(), 4).unwrap();
        for text in [b"abcd", b"efgh"] {
            log.append(text).unwrap();
        }
        let in_the_way = dir.path().join(format!("{:020}.log", 8));
        fs::create_dir(&in_the_way).unwrap();
        log.append(b"lost").unwrap_err();
        assert!(!dir.path().join(format!("{:020}.log", 0)).exists(), "its room is free");
        fs::remove_dir(&in_the_way).unwrap();
        log.append(b"ijkl").unwrap();
        let chunk = read(dir.path(), LogFrom::Offset(0), 1000).unwrap();
        assert_eq!((chunk.data.as_slice(), chunk.next), (&b"efghijkl"[..], 12));
    }

    #[test]
    fn a_writer_goes_on_where_the_last_one_ended() {
        let dir = tempfile::tempdir().unwrap();
        LogWriter::open(dir.path(), 4).unwrap().append(b"abcd").unwrap();
        LogWriter::open(dir.path(), 4).unwrap().append(b"ef").unwrap();
        let chunk = read(dir.path(), LogFrom::Offset(0), 1000).unwrap();
        assert_eq!((chunk.data.as_slice(), chunk.next), (&b"abcdef"[..], 6));
        assert_eq!(fs::read(dir.path().join("current")).unwrap(), b"ef");
    }

    #[test]
    fn the_last_lines_are_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        LogWriter::open(dir.path(), 1000).unwrap().append(b"a\nb\nc\n").unwrap();
        let last = |lines, bytes| read(dir.path(), LogFrom::LastLines(lines), bytes).unwrap().data;
        assert_eq!(last(2, 1000), b"b\nc\n");
        assert_eq!(last(9, 1000), b"a\nb\nc\n");
        assert_eq!(last(0, 1000), b"");
    }
}
