use super::*;
use crate::spec::{Format, parse};
use expect_test::{Expect, expect};
use proptest::collection::vec;
use proptest::prelude::*;

const HOUR: u64 = 3_600_000_000;
/// Monday, the 5th of January 1970.
const MONDAY: u64 = 4 * 24 * HOUR;

fn text(schedule: &str) -> String {
    format!("[[service]]\nname = 'web'\ncommand = ['web']\nschedule = [{schedule}]")
}

fn schedule(entries: &str) -> ServiceSpec {
    parse(&text(entries), Format::Toml).unwrap().services.remove(0)
}

/// A moment as the hours since the beginning of that Monday.
fn shown(moment: Option<Moment>) -> String {
    moment.map_or_else(
        || "never".to_owned(),
        |moment| {
            let hours = (i128::from(moment.at.0) - i128::from(MONDAY)) / i128::from(HOUR);
            format!("{} {hours}", if moment.starts { "start" } else { "stop" })
        },
    )
}

fn until(spec: &ServiceSpec, hours: u64) -> String {
    shown(spec.moment_until(WallTime(MONDAY + hours * HOUR)))
}

#[test]
fn k12_a_schedule_starts_in_the_morning_and_stops_in_the_evening_of_its_days() {
    let spec = schedule("{ days = 'mon-fri', start = '07:00', stop = '19:00' }");
    assert_eq!(until(&spec, 6), "stop -53", "the stop of Friday");
    assert_eq!([7, 12, 18].map(|hours| until(&spec, hours)), ["start 7", "start 7", "start 7"]);
    assert_eq!([19, 24].map(|hours| until(&spec, hours)), ["stop 19", "stop 19"]);
    let monday = WallTime(MONDAY + 7 * HOUR);
    assert_eq!(shown(spec.moment_after(monday, true)), "start 31");
    assert_eq!(shown(spec.moment_after(monday, false)), "stop 19");
    let friday = WallTime(MONDAY + (4 * 24 + 19) * HOUR);
    assert_eq!(shown(spec.moment_after(friday, true)), "start 175");
}

#[test]
fn what_stops_after_midnight_stops_on_the_day_after() {
    let spec = schedule("{ days = 'sun', start = '22:00', stop = '06:00' }");
    assert_eq!(until(&spec, 5), "start -2");
    assert_eq!(until(&spec, 6), "stop 6");
    assert_eq!(shown(spec.moment_after(WallTime(MONDAY), false)), "stop 6");
    let midnight = schedule("{ days = 'sun', start = '22:00', stop = '24:00' }");
    assert_eq!((until(&midnight, 0), until(&midnight, 1)), ("stop 0".into(), "stop 0".into()));
}

#[test]
fn what_another_entry_runs_beyond_is_not_stopped() {
    let spec = schedule("{ start = '08:00', stop = '18:00' }, { days = 'mon', start = '12:00', stop = '20:00' }");
    assert_eq!(until(&spec, 19), "start 12");
    assert_eq!(until(&spec, 20), "stop 20");
    assert_eq!(until(&spec, 24 + 19), "stop 42", "on Tuesday there is no other entry");
    let always = schedule("{ start = '00:00', stop = '12:00' }, { start = '12:00', stop = '24:00' }");
    assert_eq!(shown(always.moment_after(WallTime(MONDAY), false)), "never");
}

#[test]
fn an_entry_may_only_stop_or_only_start() {
    let spec = schedule("{ days = 'sat', stop = '22:00' }");
    assert_eq!(until(&spec, 0), "stop -26");
    assert_eq!(shown(spec.moment_after(WallTime(MONDAY), true)), "never");
    assert!(!spec.starts_by_schedule());
    assert_eq!(shown(schedule("").moment_until(WallTime(MONDAY))), "never");
}

#[test]
fn k12_mistakes_in_a_schedule_are_told_with_what_to_write() {
    let check = |schedule: &str, expected: Expect| {
        let document = parse(&text(schedule), Format::Toml);
        let error = match document {
            Ok(document) => document.validate().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&error);
    };
    check("{ days = 'mon' }", expect!["`service.web.schedule` does nothing on mon: give `start`, `stop` or both"]);
    check(
        "{ start = '07:00', stop = '07:00' }",
        expect!["`service.web.schedule` starts and stops at 07:00: give two times of day"],
    );
    check(
        "{ start = '24:00', stop = '00:00' }",
        expect!["`service.web.schedule` starts and stops at 24:00: give two times of day"],
    );
    check(
        "{ start = '7:00' }",
        expect![
            "`start` in [[schedule]] number 1: `7:00` is no time of day: write HH:MM in UTC, 00:00 to 24:00 (line 4, column 15)"
        ],
    );
    check(
        "{ begin = '07:00' }",
        expect!["unknown key `begin` in [[schedule]] number 1 (line 4, column 15); known keys: days, start, stop"],
    );
    check(&"{ stop = '07:00' },".repeat(17), expect!["`service.web.schedule` has 17 entries; at most 16 are allowed"]);
}

fn schedules() -> impl Strategy<Value = Vec<StartStop>> {
    let clock = || {
        (0..=24u16, 0..60u16).prop_map(|(hour, minute)| {
            let minute = if hour == 24 { 0 } else { minute };
            format!("{hour:02}:{minute:02}").parse::<Clock>().unwrap()
        })
    };
    let days = prop_oneof![Just("mon"), Just("sat-mon"), Just("mon-fri,sun"), Just("mon-sun")];
    let entry = (days, proptest::option::of(clock()), proptest::option::of(clock()));
    vec(entry.prop_map(|(days, start, stop)| StartStop { days: days.parse().unwrap(), start, stop }), 1..4)
}

proptest! {
    /// With entries that have both, a service that goes by its schedule alone runs at the hours of any of them.
    #[test]
    fn by_its_schedule_alone_a_service_runs_at_the_hours_of_its_entries(
        schedule in schedules(), minute in 20_000..60_000u64,
    ) {
        let mut spec = ServiceSpec { schedule, ..self::schedule("") };
        spec.schedule.retain(|entry| entry.start.is_some() && entry.stop.is_some());
        prop_assume!(!spec.schedule.is_empty() && validate(&spec).is_ok());
        let runs = spec.moment_until(WallTime(minute * MINUTE_MICROS)).is_none_or(|moment| moment.starts);
        prop_assert_eq!(runs, spec.schedule.iter().any(|entry| entry.holds(minute)));
    }
}
