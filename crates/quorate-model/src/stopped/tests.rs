//! Services that are stopped and started, by hand and by moments of their schedules, as the log sees them.

use super::*;
use crate::access::Actor;
use crate::command::Command;
use crate::deployment::Stage;
use crate::spec::{Format, parse};

const HOUR: u64 = 3_600_000_000;
/// Monday, the 5th of January 1970.
const MONDAY: u64 = 4 * 24 * HOUR;
const OFFICE: &str = "schedule = [{ days = 'mon-fri', start = '07:00', stop = '19:00' }]";

fn web() -> ServiceName {
    ServiceName::new("web").unwrap()
}

/// A cluster, and the hour since the beginning of that Monday.
struct World {
    state: ClusterState,
    index: u64,
    hour: u64,
}

impl World {
    fn at(hour: u64, lines: &str) -> World {
        let mut world = World { state: ClusterState::default(), index: 0, hour };
        world.apply(lines);
        world
    }

    fn now(&self) -> WallTime {
        WallTime(MONDAY + self.hour * HOUR)
    }

    fn run(&mut self, command: &Command) -> Result<bool, Refusal> {
        self.index += 1;
        let changes = self.state.decide(LogIndex(self.index), self.now(), command)?;
        self.state.absorb(LogIndex(self.index), &changes);
        Ok(!changes.is_empty())
    }

    fn apply(&mut self, lines: &str) {
        let text = format!("[[service]]\nname = 'web'\ncommand = ['/bin/web']\n{lines}");
        self.run(&Command::ApplySpec { document: parse(&text, Format::Toml).unwrap() }).unwrap();
    }

    fn stop(&mut self) -> bool {
        self.run(&Command::Switch(SwitchCommand::Stop { service: web() })).unwrap()
    }

    fn start(&mut self) -> bool {
        self.run(&Command::Switch(SwitchCommand::Start { service: web() })).unwrap()
    }

    /// What the leader does at this hour: as often as it likes.
    fn look(&mut self, hour: u64) {
        self.hour = hour;
        for round in 0..3 {
            let due: Vec<_> = self.state.moments_due(self.now()).collect();
            assert!(round == 0 || due.is_empty(), "{due:?}");
            for (_, moment) in due {
                assert!(self.run(&Command::Switch(moment)).unwrap());
            }
        }
    }

    fn record(&self) -> &ServiceRecord {
        &self.state.services[&web()]
    }

    /// `runs`, `hand` or `schedule`.
    fn word(&self) -> &'static str {
        match &self.record().stopped {
            None => "runs",
            Some(stopped) if stopped.by_schedule => "schedule",
            Some(_) => "hand",
        }
    }
}

#[test]
fn k12_a_service_is_stopped_and_started_as_it_was_and_twice_is_as_once() {
    let mut world = World::at(0, "replicas = 3");
    let before = world.record().clone();
    assert!(world.stop() && !world.stop());
    assert_eq!((world.record().copies(), world.state.wanted(world.record())), (0, 0));
    assert!(world.start() && !world.start());
    assert_eq!(*world.record(), before);
    let told: Vec<_> = world.state.events.iter().rev().take(2).map(|event| event.what.clone()).collect();
    let (service, by_schedule) = (web(), false);
    assert_eq!(
        told,
        [
            Happening::ServiceStarted { service: service.clone(), by_schedule },
            Happening::ServiceStopped { service, by_schedule }
        ]
    );
    let unknown = ServiceName::new("wbe").unwrap();
    for switch in [SwitchCommand::Stop { service: unknown.clone() }, SwitchCommand::Start { service: unknown }] {
        assert!(matches!(world.run(&Command::Switch(switch)), Err(Refusal::UnknownService { similar: Some(_), .. })));
    }
}

#[test]
fn k12_who_stopped_a_service_is_remembered() {
    let mut world = World::at(0, "");
    let (who, from, what) = ("anna".into(), "-".into(), "service-stop".into());
    let actor = Actor { who, from, what, target: "web".into(), confirmation: None };
    let stop = Command::Switch(SwitchCommand::Stop { service: web() });
    let decided = world.state.decide_for(LogIndex(7), WallTime(7), &stop, Some(&actor));
    world.state.absorb(LogIndex(7), &decided.changes);
    assert_eq!(world.record().stopped.as_ref().unwrap().by.as_deref(), Some("anna"));
}

#[test]
fn k12_what_is_changed_while_a_service_is_stopped_does_not_start_it() {
    let mut world = World::at(0, "replicas = 3");
    world.stop();
    world.run(&Command::ScaleService { service: web(), replicas: 5 }).unwrap();
    world.apply("replicas = 4\nenv = { A = '1' }");
    assert_eq!((world.word(), world.record().version, world.record().spec.replicas), ("hand", 2, 4));
    world.run(&Command::RestartService { service: web() }).unwrap();
    world.run(&Command::RollBackService { service: web(), to: Some(1) }).unwrap();
    assert_eq!((world.word(), world.record().version, world.record().copies()), ("hand", 1, 0));
    assert_eq!(world.state.deploying(&web()).map(|open| open.stage), Some(Stage::Rolling));
    world.start();
    assert_eq!(world.record().copies(), 4);
}

#[test]
fn k12_a_schedule_starts_and_stops_each_once() {
    let mut world = World::at(12, OFFICE);
    assert_eq!(world.word(), "runs");
    world.look(18);
    assert_eq!(world.word(), "runs");
    world.look(19);
    assert_eq!((world.word(), world.record().copies()), ("schedule", 0));
    let next = world.record().next_moment(world.now()).unwrap();
    assert_eq!((next.starts, next.at), (true, WallTime(MONDAY + 31 * HOUR)));
    world.look(31);
    assert_eq!(world.word(), "runs");
    // Nobody led for days: only what is newest counts.
    world.look(24 * 5 + 3);
    assert_eq!(world.word(), "schedule");
}

#[test]
fn k12_what_is_done_by_hand_holds_until_the_next_moment() {
    let mut world = World::at(12, OFFICE);
    world.stop();
    world.look(13);
    assert_eq!(world.word(), "hand");
    world.look(20);
    assert_eq!(world.word(), "hand", "what stops finds it stopped");
    world.look(31);
    assert_eq!(world.word(), "runs");
    world.look(43);
    assert_eq!(world.word(), "schedule");
    world.start();
    world.look(44);
    assert_eq!(world.word(), "runs");
    world.look(55);
    assert_eq!(world.word(), "runs", "what starts finds it running");
    world.look(67);
    assert_eq!(world.word(), "schedule");
}

#[test]
fn k12_a_schedule_is_in_force_at_once_and_gone_at_once() {
    let mut world = World::at(3, OFFICE);
    assert_eq!(world.word(), "schedule", "it is applied at night");
    world.apply(&format!("{OFFICE}\nreplicas = 2"));
    assert_eq!(world.word(), "schedule", "the same schedule");
    world.apply("");
    assert_eq!(world.word(), "runs", "nothing would ever start it");
    world.apply(OFFICE);
    assert_eq!(world.word(), "schedule");
    world.apply("schedule = [{ start = '02:00', stop = '04:00' }]");
    assert_eq!(world.word(), "runs");
    world.stop();
    world.apply(OFFICE);
    assert_eq!(world.word(), "hand");
    world.apply("");
    assert_eq!(world.word(), "hand", "nobody has started it");
    let once = World::at(3, "schedule = [{ stop = '22:00' }]");
    assert_eq!(once.word(), "runs", "it is started by hand, and stopped in the evening");
}

#[test]
fn a_moment_counts_only_after_the_one_that_it_was_seen_after() {
    let mut world = World::at(12, OFFICE);
    world.look(12);
    let (at, after) = (WallTime(MONDAY + 19 * HOUR), world.record().moment);
    let moment = |at, after| Command::Switch(SwitchCommand::Moment { service: web(), at, after });
    assert!(!world.run(&moment(at, None)).unwrap(), "another was carried out since");
    assert!(!world.run(&moment(WallTime(at.0 + HOUR), after)).unwrap(), "there is no such moment");
    assert!(world.run(&moment(at, after)).unwrap());
    assert!(!world.run(&moment(at, after)).unwrap(), "it is done");
    world.apply("");
    assert!(!world.run(&moment(at, None)).unwrap(), "there is no schedule any more");
    world.run(&Command::RemoveService { service: web() }).unwrap();
    assert!(!world.run(&moment(at, None)).unwrap());
}

#[test]
fn a_clock_that_was_ahead_is_waited_for_and_one_that_was_wrong_is_made_up_for() {
    let mut world = World::at(12, OFFICE);
    // The leader's clock is half an hour ahead, and another leads then.
    world.look(19);
    let real = WallTime(MONDAY + 18 * HOUR + HOUR / 2);
    assert_eq!(world.state.moments_due(real).count(), 0, "nothing is undone and done again");
    // It was a year ahead.
    world.look(24 * 7 * 52 + 12);
    assert_eq!(world.word(), "runs");
    world.look(20);
    assert_eq!(world.word(), "schedule");
}

#[test]
fn k12_records_of_before_are_read_and_what_runs_is_written_as_before() {
    let mut world = World::at(0, "");
    let written = serde_json::to_value(world.record()).unwrap();
    assert!(written.get("stopped").is_none() && written.get("moment").is_none(), "{written}");
    assert_eq!(serde_json::from_value::<ServiceRecord>(written).unwrap(), *world.record());
    world.stop();
    let text = serde_json::to_string(world.record()).unwrap();
    assert_eq!(serde_json::from_str::<ServiceRecord>(&text).unwrap(), *world.record());
    let command = Command::Switch(SwitchCommand::Moment { service: web(), at: WallTime(1), after: None });
    let text = serde_json::to_string(&command).unwrap();
    assert_eq!(text, r#"{"do":"switch","switch":"moment","service":"web","at":1}"#);
    assert_eq!(serde_json::from_str::<Command>(&text).unwrap(), command);
}
