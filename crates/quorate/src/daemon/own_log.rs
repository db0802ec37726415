//! The server's own log in its data directory, beside what goes to standard error (U9): so that any node can show
//! it, whatever watches over the server there.
//!
//! A line goes into a queue, and a thread writes it. Why not whoever has something to say: the core says things too,
//! and it must not wait for a disk that stalls. Until the directory is known, lines wait in the queue.
//!
//! # Invariants
//! - Nobody waits for the disk, with one exception that has an end: an error waits [`LAST_WORDS`] until it is
//!   written, because many a server ends after one.
//! - Lines that the disk or the queue does not take are missing, and how many is said in their place.

use quorate_agent::log::LogWriter;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::{Level, Metadata, warn};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait: more than a server says in the worst second of its life.
const WAITING_MAX: usize = 4_096;
/// How long an error waits for the disk.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// A log that cannot be opened is tried again after this.
const OPEN_AGAIN: Duration = Duration::from_secs(1);
/// How often it is said that the log cannot be written.
const SAID_EVERY: Duration = Duration::from_mins(1);

/// A line, or more of them, and who waits for it.
struct Line {
    text: Vec<u8>,
    written: Option<SyncSender<()>>,
}

/// Where lines are put. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct OwnLog {
    queue: SyncSender<Line>,
    lost: Arc<AtomicU64>,
    /// Until somebody says where they go.
    waiting: Arc<Mutex<Option<Receiver<Line>>>>,
}

impl OwnLog {
    pub(super) fn new() -> OwnLog {
        let (queue, waiting) = sync_channel(WAITING_MAX);
        OwnLog { queue, lost: Arc::default(), waiting: Arc::new(Mutex::new(Some(waiting))) }
    }

    /// Begins to write, into two files of at most `file_bytes` each. The first call counts.
    ///
    /// # Errors
    /// There can be no thread. What a disk has against it is no error: it is said on standard error, and tried
    /// again.
    pub(super) fn keep_in(&self, dir: PathBuf, file_bytes: u64) -> io::Result<()> {
        let Some(queue) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take() else { return Ok(()) };
        let keeper = Keeper { dir, file_bytes, writer: None, tried: None, said: None, lost: self.lost.clone() };
        std::thread::Builder::new().name("own-log".into()).spawn(move || keeper.run(&queue)).map(drop)
    }

    fn put(&self, text: &[u8], wait: bool) {
        let (written, seen) = wait.then(|| sync_channel(1)).unzip();
        if self.queue.try_send(Line { text: text.to_vec(), written }).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if let Some(seen) = seen {
            // Late or never: it has waited enough.
            let _ = seen.recv_timeout(LAST_WORDS);
        }
    }
}

/// The thread that writes.
struct Keeper {
    dir: PathBuf,
    file_bytes: u64,
    writer: Option<LogWriter>,
    tried: Option<Instant>,
    said: Option<Instant>,
    lost: Arc<AtomicU64>,
}

impl Keeper {
    fn run(mut self, queue: &Receiver<Line>) {
        while let Ok(line) = queue.recv() {
            if let Err(error) = self.write(&line.text) {
                self.lost.fetch_add(1, Ordering::Relaxed);
                self.complain(&error);
            }
            if let Some(written) = line.written {
                let _ = written.try_send(());
            }
        }
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => {
                if self.tried.is_some_and(|tried| tried.elapsed() < OPEN_AGAIN) {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                self.tried = Some(Instant::now());
                self.writer.insert(LogWriter::open(&self.dir, self.file_bytes)?)
            }
        };
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > 0 {
            writer.append(format!("--- {lost} lines are missing here\n").as_bytes())?;
            self.lost.fetch_sub(lost, Ordering::Relaxed);
        }
        writer.append(text)
    }

    /// On standard error; the same line comes back to this thread and is lost like others.
    fn complain(&mut self, error: &io::Error) {
        if self.said.is_none_or(|said| said.elapsed() >= SAID_EVERY) {
            self.said = Some(Instant::now());
            warn!(dir = %self.dir.display(), %error, "the server's log is not kept for now; standard error has it");
        }
    }
}

impl<'a> MakeWriter<'a> for OwnLog {
    type Writer = Put<'a>;

    fn make_writer(&'a self) -> Put<'a> {
        Put { log: self, wait: false }
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Put<'a> {
        Put { log: self, wait: *about.level() == Level::ERROR }
    }
}

/// Takes one line.
#[derive(Debug)]
pub(super) struct Put<'a> {
    log: &'a OwnLog,
    wait: bool,
}

impl Write for Put<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.log.put(text, self.wait);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_agent::log::{LogFrom, read};
    use std::path::Path;

    const SOON: Duration = Duration::from_secs(20);

    fn kept(dir: &Path) -> String {
        let chunk = read(dir, LogFrom::Offset(0), 1 << 20);
        chunk.map(|chunk| String::from_utf8(chunk.data).unwrap()).unwrap_or_default()
    }

    fn wait_for(dir: &Path, what: &str) -> String {
        let began = Instant::now();
        loop {
            let text = kept(dir);
            if text.contains(what) {
                return text;
            }
            assert!(began.elapsed() < SOON, "{what:?} is not in {text:?}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn u9_what_was_said_before_the_place_is_known_is_kept_there_and_an_error_is_on_disk_when_it_was_said() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("managers/1/log");
        let log = OwnLog::new();
        log.put(b"early\n", false);
        log.keep_in(dir.clone(), 1 << 20).unwrap();
        log.put(b"last words\n", true);
        // Within the wait, or a moment later on a machine that is slow.
        assert_eq!(wait_for(&dir, "last words\n"), "early\nlast words\n");
    }

    #[test]
    fn lines_that_had_no_room_are_counted_in_their_place() {
        let place = tempfile::tempdir().unwrap();
        let log = OwnLog::new();
        for _ in 0..WAITING_MAX + 3 {
            log.put(b"x\n", false);
        }
        log.keep_in(place.path().to_owned(), 1 << 20).unwrap();
        let text = wait_for(place.path(), &"x\n".repeat(WAITING_MAX));
        assert!(text.starts_with("--- 3 lines are missing here\nx\n"), "{}", &text[..40]);
    }

    #[test]
    fn a_directory_that_cannot_be_made_costs_lines_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("file");
        std::fs::write(&file, "").unwrap();
        let log = OwnLog::new();
        log.keep_in(file.join("log"), 1 << 20).unwrap();
        let began = Instant::now();
        log.put(b"lost\n", true);
        assert!(began.elapsed() < SOON);
        std::fs::remove_file(&file).unwrap();
        while kept(&file.join("log")).is_empty() {
            assert!(began.elapsed() < SOON);
            log.put(b"again\n", true);
        }
        assert!(kept(&file.join("log")).contains("lines are missing here\nagain\n"));
    }
}
