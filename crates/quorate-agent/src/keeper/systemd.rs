//! The driver `systemd`: a unit that systemd runs, started, followed and stopped over D-Bus.
//!
//! The unit's processes are systemd's, and so is its log. A keeper asks for the unit to be started and stopped, and
//! hears of every change; it polls nothing.
//!
//! A unit that systemd starts by itself (`enabled`) is refused: a server that boots would run it without having been
//! told to. One that runs already is taken over: that is what a keeper's successor finds after a keeper was killed.
//!
//! # Invariants
//! - A bus that is lost ends nothing: what the unit does is unknown then, and what was known last is assumed.
//! - Whatever ends the unit without having been asked from here is its end: the restart policy decides.
//! - Nothing is claimed of fencing. The kernel ends the keeper with its lease, and not the unit.

mod bus;

use super::desk::{Desk, Patience, Woken};
use super::{Backend, Look, Trouble};
use crate::launch::Launch;
use bus::{Bus, Job, Known, UnitState};
use quorate_model::observed::Fencing;
use quorate_model::time::Span;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

/// For the first word about the unit.
const FIRST_LIMIT: Duration = Duration::from_secs(30);

/// systemd's own limits end a job earlier, unless a unit has none.
const START_LIMIT: Duration = Duration::from_secs(1800);

/// For a stop of what nobody keeps any more; systemd's default is 90 s.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(100);

/// For killed processes to end.
const KILLED_WITHIN: Duration = Duration::from_secs(5);

/// A unit of one replica.
pub(crate) struct Systemd {
    unit: String,
    grace: Duration,
    bus: Bus,
}

impl Systemd {
    pub(crate) fn new(launch: &Launch) -> Result<Systemd, Trouble> {
        let spec = &launch.assigned.spec;
        let table = spec.systemd.as_ref().ok_or_else(|| Trouble::Cannot("the spec has no `systemd`".to_owned()))?;
        let bus = Bus::follow(&table.unit).map_err(|error| Trouble::Failed(error.to_string()))?;
        Ok(Systemd { unit: table.unit.clone(), grace: spec.stop.grace.0, bus })
    }

    /// Waits until something is known of the unit.
    fn first(&self, desk: &mut Desk, patience: Patience) -> Result<UnitState, Trouble> {
        let until = Instant::now() + FIRST_LIMIT;
        loop {
            self.bus.quiet();
            match self.bus.known() {
                Known::Unit(state) => return Ok(state),
                Known::Lost(why) => return Err(Trouble::Failed(lost(&why))),
                Known::Nothing => {}
            }
            match desk.wait_on(self.bus.news(), until, patience) {
                Woken::Stop => return Err(Trouble::AskedToStop),
                Woken::Time => return Err(Trouble::Failed("D-Bus does not answer".to_owned())),
                Woken::News | Woken::Order(_) => {}
            }
        }
    }

    /// Has systemd do a job, to its end.
    fn ask(&self, desk: &mut Desk, job: Job, limit: Duration, patience: Patience) -> Result<(), Trouble> {
        let what = match job {
            Job::Start => "start",
            Job::Stop => "stop",
            Job::Kill => "kill",
        };
        let (answered, until) = (self.bus.ask(job), Instant::now() + limit);
        loop {
            self.bus.quiet();
            match answered.try_recv() {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(why)) => return Err(Trouble::Failed(format!("{what} of {}: {why}", self.unit))),
                Err(TryRecvError::Disconnected) => {
                    return Err(Trouble::Failed(format!("{what} of {}: {}", self.unit, lost("the connection broke"))));
                }
                Err(TryRecvError::Empty) => {}
            }
            match desk.wait_on(self.bus.news(), until, patience) {
                Woken::Stop => return Err(Trouble::AskedToStop),
                Woken::Time => {
                    let detail = format!("{what} of {} did not end within {}", self.unit, Span(limit));
                    return Err(Trouble::Failed(detail));
                }
                Woken::News | Woken::Order(_) => {}
            }
        }
    }

    /// Asks it to end, and kills what does not within a time.
    fn stop_within(&self, desk: &mut Desk, limit: Duration) -> Result<(), Trouble> {
        let asked = self.ask(desk, Job::Stop, limit, Patience::ToTheEnd);
        let Err(trouble) = asked else { return Ok(()) };
        if matches!(self.bus.known(), Known::Lost(_)) {
            return Err(trouble);
        }
        self.ask(desk, Job::Kill, KILLED_WITHIN, Patience::ToTheEnd)?;
        let until = Instant::now() + KILLED_WITHIN;
        loop {
            self.bus.quiet();
            match self.bus.known() {
                Known::Unit(state) if !is_there(&state) => return Ok(()),
                Known::Lost(_) => return Err(trouble),
                Known::Unit(_) | Known::Nothing => {}
            }
            if desk.wait_on(self.bus.news(), until, Patience::ToTheEnd) == Woken::Time {
                return Err(trouble);
            }
        }
    }
}

fn lost(why: &str) -> String {
    format!("systemd cannot be asked over D-Bus: {why}")
}

/// Whether a unit has processes, or will have.
fn is_there(state: &UnitState) -> bool {
    !matches!(state.active.as_str(), "inactive" | "failed")
}

impl Backend for Systemd {
    fn fencing(&self) -> Fencing {
        Fencing::Asked
    }

    fn start(&mut self, desk: &mut Desk) -> Result<(), Trouble> {
        let (unit, state) = (&self.unit, self.first(desk, Patience::UntilStop)?);
        match state.load.as_str() {
            "loaded" => {}
            "not-found" => return Err(Trouble::Cannot(format!("this node has no unit {unit}"))),
            other => return Err(Trouble::Cannot(format!("{unit} cannot be started: systemd says {other}"))),
        }
        if state.file.starts_with("enabled") {
            return Err(Trouble::Cannot(format!(
                "{unit} is {}, so systemd starts it by itself: systemctl disable {unit}",
                state.file
            )));
        }
        // To the replica's log, which else stays empty.
        let journal = format!("its output is in the journal: journalctl --unit={unit}");
        if state.active == "active" {
            let _ = writeln!(io::stdout(), "{unit} runs already and is taken over; {journal}");
            return Ok(());
        }
        let _ = writeln!(io::stdout(), "{unit} is started; {journal}");
        self.ask(desk, Job::Start, START_LIMIT, Patience::UntilStop)
    }

    fn look(&mut self, _: &mut Desk) -> Look {
        self.bus.quiet();
        let state = match self.bus.known() {
            Known::Unit(state) => state,
            Known::Lost(why) => return Look::Unknown(format!("unknown: {}", lost(&why))),
            Known::Nothing => return Look::Unknown("unknown: systemd has not answered yet".to_owned()),
        };
        let unit = &self.unit;
        match state.active.as_str() {
            "active" | "reloading" | "refreshing" => Look::Up,
            "inactive" => {
                let detail = format!("{unit} has ended, or was stopped by somebody else ({})", state.result);
                Look::Ended { detail, as_it_should: state.result == "success" }
            }
            "failed" => Look::Ended { detail: format!("{unit} failed ({})", state.result), as_it_should: false },
            // systemd starts it again by itself, or stops it for somebody; the outcome is news.
            other => Look::Failing(format!("{unit} is {other} ({})", state.sub)),
        }
    }

    fn stop(&mut self, desk: &mut Desk) -> Result<(), Trouble> {
        if let Known::Unit(state) = self.bus.known()
            && !is_there(&state)
        {
            return Ok(());
        }
        // The rest of the grace is for a kill.
        self.stop_within(desk, self.grace * 7 / 10)
    }

    fn promote(&mut self, _: &mut Desk) -> Result<(), Trouble> {
        Err(Trouble::Cannot("a unit of systemd cannot be promoted".to_owned()))
    }

    fn demote(&mut self, _: &mut Desk) -> Result<(), Trouble> {
        Err(Trouble::Cannot("a unit of systemd cannot be demoted".to_owned()))
    }

    fn clean_up(&mut self, desk: &mut Desk) -> Result<(), Trouble> {
        let state = self.first(desk, Patience::ToTheEnd)?;
        if is_there(&state) { self.stop_within(desk, CLEAN_UP_LIMIT) } else { Ok(()) }
    }

    fn news(&self) -> Option<BorrowedFd<'_>> {
        Some(self.bus.news())
    }

    fn every(&self) -> Option<Duration> {
        None
    }

    fn fail_after(&self) -> u32 {
        // systemd goes on by itself; it says when it gives up.
        u32::MAX
    }
}
