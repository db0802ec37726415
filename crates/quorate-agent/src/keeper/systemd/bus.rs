//! One unit of systemd, followed over D-Bus by a thread of its own.
//!
//! The keeper waits on descriptors and the bus on a runtime, so between them are a cell with what is known of the
//! unit, a socket that is written to when that changes, and a queue of jobs. A connection that is lost is made again
//! every second; until then nothing is known, and jobs fail at once.
//!
//! Sources: org.freedesktop.systemd1(5): "Subscribe()", "JobRemoved()", "LoadUnit()".

use futures_util::StreamExt as _;
use std::future::Future;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep_until, timeout};
use zbus::proxy::{Builder, CacheProperties};
use zbus::{Connection, OwnedObjectPath, Proxy};

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Before the connection is made again.
const PAUSE: Duration = Duration::from_secs(1);

/// A bus that takes longer for an answer is as good as lost.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// What systemd says of a unit, in its own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnitState {
    /// `loaded`, `not-found`, `masked`, …
    pub(super) load: String,
    /// `active`, `inactive`, `failed`, …
    pub(super) active: String,
    pub(super) sub: String,
    /// How the last run ended: `success`, `exit-code`, `signal`, …
    pub(super) result: String,
    /// Whether systemd starts it by itself: `enabled`, `disabled`, `static`, …
    pub(super) file: String,
}

/// What is known of a unit now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Known {
    /// It was not asked yet.
    Nothing,
    /// Nobody can say, and why.
    Lost(String),
    Unit(UnitState),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Job {
    Start,
    Stop,
    /// Without asking its processes.
    Kill,
}

struct Asked {
    job: Job,
    answer: mpsc::Sender<Result<(), String>>,
}

/// The keeper's end.
#[derive(Debug)]
pub(super) struct Bus {
    known: Arc<Mutex<Known>>,
    jobs: UnboundedSender<Asked>,
    news: UnixStream,
}

impl Bus {
    pub(super) fn follow(unit: &str) -> io::Result<Bus> {
        let (news, wake) = UnixStream::pair()?;
        news.set_nonblocking(true)?;
        wake.set_nonblocking(true)?;
        let (jobs, asked) = unbounded_channel();
        let known = Arc::new(Mutex::new(Known::Nothing));
        let follower = Follower { unit: unit.to_owned(), known: Arc::clone(&known), wake, asked };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("bus".to_owned()).spawn(move || runtime.block_on(follower.run()))?;
        Ok(Bus { known, jobs, news })
    }

    pub(super) fn known(&self) -> Known {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Readable when something has changed since it was last [read](Bus::quiet).
    pub(super) fn news(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    /// Waits for the next change.
    pub(super) fn quiet(&self) {
        let mut seen = [0; 64];
        while io::Read::read(&mut &self.news, &mut seen).is_ok_and(|count| count > 0) {}
    }

    /// The answer comes when systemd's job is done, with news.
    pub(super) fn ask(&self, job: Job) -> mpsc::Receiver<Result<(), String>> {
        let (answer, answered) = mpsc::channel();
        // Should the thread be gone, the receiver says so.
        let _ = self.jobs.send(Asked { job, answer });
        answered
    }
}

struct Follower {
    unit: String,
    known: Arc<Mutex<Known>>,
    wake: UnixStream,
    asked: UnboundedReceiver<Asked>,
}

impl Follower {
    async fn run(mut self) {
        loop {
            let lost = match self.session().await {
                // The keeper is ending.
                Ok(()) => return,
                Err(lost) => lost,
            };
            self.tell(Known::Lost(lost.clone()));
            let again = Instant::now() + PAUSE;
            loop {
                tokio::select! {
                    asked = self.asked.recv() => match asked {
                        Some(asked) => self.answer(&asked.answer, Err(lost.clone())),
                        None => return,
                    },
                    () = sleep_until(again) => break,
                }
            }
        }
    }

    /// One connection's life. `Ok`: nobody listens any more.
    async fn session(&mut self) -> Result<(), String> {
        let connection = within(Connection::system()).await?;
        let manager = proxy(&connection, MANAGER_PATH, MANAGER).await?;
        // Without it systemd tells nobody anything.
        within(manager.call::<_, _, ()>("Subscribe", &())).await?;
        let mut removed = within(manager.receive_signal("JobRemoved")).await?;
        let path: OwnedObjectPath = within(manager.call("LoadUnit", &(self.unit.as_str(),))).await?;
        let properties = proxy(&connection, path.as_str(), PROPERTIES).await?;
        let mut changed = within(properties.receive_signal("PropertiesChanged")).await?;
        let unit = proxy(&connection, path.as_str(), UNIT).await?;
        let service = proxy(&connection, path.as_str(), SERVICE).await?;
        let mut waiting: Vec<(OwnedObjectPath, mpsc::Sender<Result<(), String>>)> = Vec::new();
        loop {
            let state = UnitState {
                load: within(unit.get_property("LoadState")).await?,
                active: within(unit.get_property("ActiveState")).await?,
                sub: within(unit.get_property("SubState")).await?,
                file: within(unit.get_property("UnitFileState")).await?,
                // A unit that was never found has none.
                result: within(service.get_property("Result")).await.unwrap_or_default(),
            };
            self.tell(Known::Unit(state));
            tokio::select! {
                change = changed.next() => {
                    change.ok_or("the bus is gone")?;
                }
                job = removed.next() => {
                    let job = job.ok_or("the bus is gone")?;
                    let (_, path, _, result): (u32, OwnedObjectPath, String, String) =
                        job.body().deserialize().map_err(|error| error.to_string())?;
                    for (_, answer) in waiting.extract_if(.., |(of, _)| *of == path) {
                        let done = if result == "done" { Ok(()) } else { Err(format!("systemd says {result}")) };
                        self.answer(&answer, done);
                    }
                }
                asked = self.asked.recv() => {
                    let Some(Asked { job, answer }) = asked else { return Ok(()) };
                    match order(&manager, &self.unit, job).await {
                        Ok(Some(path)) => waiting.push((path, answer)),
                        Ok(None) => self.answer(&answer, Ok(())),
                        Err(error) => self.answer(&answer, Err(error)),
                    }
                }
            }
        }
    }

    fn tell(&self, known: Known) {
        let mut before = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if *before != known {
            *before = known;
            self.wake();
        }
    }

    fn answer(&self, answer: &mpsc::Sender<Result<(), String>>, done: Result<(), String>) {
        // Nobody waits any more: fine.
        let _ = answer.send(done);
        self.wake();
    }

    fn wake(&self) {
        // Full means that there is enough to read.
        let _ = (&self.wake).write(b"x");
    }
}

/// Gives systemd a job, and returns its path if there is an end to wait for.
async fn order(manager: &Proxy<'_>, unit: &str, job: Job) -> Result<Option<OwnedObjectPath>, String> {
    match job {
        Job::Start => within(manager.call("StartUnit", &(unit, "replace"))).await.map(Some),
        Job::Stop => within(manager.call("StopUnit", &(unit, "replace"))).await.map(Some),
        Job::Kill => within(manager.call::<_, _, ()>("KillUnit", &(unit, "all", 9))).await.map(|()| None),
    }
}

async fn proxy<'a>(connection: &Connection, path: &'a str, interface: &'a str) -> Result<Proxy<'a>, String> {
    // Its cache would be told by the same signals, one step behind.
    let builder = Builder::<Proxy<'a>>::new(connection).destination(SYSTEMD).path(path).interface(interface);
    within(builder.cache_properties(CacheProperties::No).build()).await
}

async fn within<T>(answer: impl Future<Output = zbus::Result<T>>) -> Result<T, String> {
    match timeout(ANSWER_LIMIT, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the bus does not answer".to_owned()),
    }
}
