//! How many copies are right for what gateways are asked (K15): single judgements, what holds for all of them,
//! and courses of load with gateways that come, fall silent and begin anew.

use super::autoscale::{Course, table, verdict_by, verdict_told, web};
use crate::autoscale::{Flow, Step, Verdict};
use expect_test::{Expect, expect};
use proptest::collection::vec;
use proptest::prelude::*;
use quorate_model::traffic::{LATENCY_BUCKETS, Latencies, ServiceTraffic, Traffic, bucket};

/// Requests a second, and how long each took.
fn flow(a_second: u64, us: u64, (gateways, silent): (u32, u32)) -> Flow {
    Flow { gateways, silent, millirequests: a_second * 1000, waiting: 0, latencies: latencies(a_second * 15, us) }
}

fn latencies(count: u64, us: u64) -> Latencies {
    let mut counts = vec![0; LATENCY_BUCKETS];
    counts[bucket(us)] = count;
    Latencies::new(counts)
}

fn said(text: &str, wanted: u32, flow: &Flow, highest: u32) -> Verdict {
    verdict_by(&table(text), wanted, &[], flow, highest)
}

fn check(text: &str, wanted: u32, flow: &Flow, expected: Expect) {
    let said = said(text, wanted, flow, 0);
    let lines: Vec<String> = said.limits.iter().map(ToString::to_string).collect();
    expected.assert_eq(&format!("{wanted} → {}: {}", said.to, lines.join("; ")));
}

const RPS: &str = "min = 1, max = 12, rps = 100";
const P95: &str = "min = 1, max = 12, p95 = '100ms'";

#[test]
fn k15_as_many_copies_as_requests_ask_for() {
    check(RPS, 2, &flow(400, 1, (1, 0)), expect!["2 → 4: "]);
    check(RPS, 2, &flow(215, 1, (1, 0)), expect!["2 → 2: there are that many already; the number stays"]);
    check(RPS, 4, &flow(200, 1, (2, 0)), expect!["4 → 3: in steps: 3 first"]);
    check(RPS, 2, &flow(0, 1, (1, 0)), expect!["2 → 1: "]);
    check(RPS, 2, &flow(3000, 1, (1, 0)), expect!["2 → 6: no more than 12, the maximum; in steps: 6 first"]);
}

#[test]
fn k15_slow_answers_are_a_reason_for_more_and_only_very_fast_ones_for_fewer() {
    check(P95, 2, &flow(50, 190_000, (1, 0)), expect!["2 → 4: "]);
    check(P95, 4, &flow(50, 90_000, (1, 0)), expect!["4 → 4: there are that many already; the number stays"]);
    check(P95, 4, &flow(50, 60_000, (1, 0)), expect!["4 → 4: there are that many already; the number stays"]);
    check(P95, 4, &flow(50, 20_000, (1, 0)), expect!["4 → 3: in steps: 3 first"]);
    // Nobody asks: nobody waits.
    check(P95, 4, &flow(0, 0, (1, 0)), expect!["4 → 3: in steps: 3 first"]);
}

#[test]
fn k15_a_gateway_that_is_silent_counts_against_a_change() {
    let nobody =
        expect!["2 → 2: rps is not told by any gateway with a route to it; that is no reason for another number"];
    check(RPS, 2, &Flow::default(), nobody);
    check(
        RPS,
        2,
        &flow(400, 1, (2, 1)),
        expect!["2 → 4: 1 of 2 gateways say nothing now; they count against a change"],
    );
    // Its share may be a half: two of four copies.
    check(
        RPS,
        4,
        &flow(100, 1, (2, 1)),
        expect!["4 → 3: 1 of 2 gateways say nothing now; they count against a change"],
    );
    check(
        RPS,
        4,
        &flow(200, 1, (2, 1)),
        expect![
            "4 → 4: 1 of 2 gateways say nothing now; they count against a change; there are that many already; the number stays"
        ],
    );
    check(
        P95,
        4,
        &flow(50, 1_000, (2, 1)),
        expect![
            "4 → 4: 1 of 2 gateways say nothing now; they count against a change; there are that many already; the number stays"
        ],
    );
}

proptest! {
    #[test]
    fn k15_more_requests_or_slower_ones_never_want_fewer_copies(
        wanted in 1..40u32, highest in 0..40u32, a_second in 0..9_000u64, more in 0..3_000u64, us in 0..9_000_000u64,
        slower in 0..2_000_000u64, gateways in 1..5u32, silent in 0..5u32,
    ) {
        let heard = (gateways, silent.min(gateways));
        let text = "min = 1, max = 40, rps = 100, p95 = '250ms'";
        let less = said(text, wanted, &flow(a_second, us, heard), highest);
        let greater = said(text, wanted, &flow(a_second + more, us + slower, heard), highest);
        prop_assert!(greater.to >= less.to && greater.right >= less.right, "{less:?} {greater:?}");
    }

    #[test]
    fn k15_a_silent_gateway_is_never_a_reason_for_fewer_nor_for_more(
        wanted in 1..40u32, a_second in 0..9_000u64, us in 0..9_000_000u64, gateways in 1..5u32, silent in 0..5u32,
    ) {
        let silent = silent.min(gateways);
        let text = "min = 1, max = 40, rps = 100, p95 = '250ms'";
        let all = said(text, wanted, &flow(a_second, us, (gateways, 0)), 0).right;
        let some = said(text, wanted, &flow(a_second, us, (gateways, silent)), 0).right;
        prop_assert!(some.abs_diff(wanted) <= all.abs_diff(wanted), "{wanted}: {all} {some}");
    }

    #[test]
    fn k15_at_constant_requests_the_number_settles_and_stays(start in 1..40u32, a_second in 0..9_000u64) {
        let mut wanted = start;
        let mut course = vec![wanted];
        for _ in 0..60 {
            let flow = flow(a_second, 1, (1, 0));
            let right = said("min = 1, max = 40, rps = 100", wanted, &flow, 0).right;
            wanted = said("min = 1, max = 40, rps = 100", wanted, &flow, right).to;
            course.push(wanted);
        }
        prop_assert!(course[40..].iter().all(|wanted| *wanted == course[60]), "{course:?}");
        let (ups, downs) = (course.windows(2).any(|two| two[1] > two[0]), course.windows(2).any(|two| two[1] < two[0]));
        prop_assert!(!(ups && downs), "{course:?}");
    }

    /// However its reports come (late, doubled, not at all), what is counted is what it counted.
    #[test]
    fn k15_rates_are_by_the_clock_of_the_gateway(lost in vec(any::<bool>(), 30)) {
        let mut course = Course::new(SHORT, 3);
        let mut lost = lost.into_iter();
        course.gateway("a", 0, 0);
        for second in 1..=30 {
            if !lost.next().unwrap() {
                course.gateway("a", second * 1000, second * 20);
            }
            course.second();
            let report = course.report();
            let flow = report.flow.unwrap();
            prop_assert!(flow.millirequests == 20_000 || flow.millirequests == 0, "{flow:?}");
        }
        prop_assert_eq!(course.wanted(), 2);
    }
}

fn told(wanted: u32, query: &str, counted: Option<Result<u64, String>>) -> String {
    let said = verdict_told(&table(&format!("min = 1, max = 12, {query}")), wanted, &[], counted.as_ref());
    let lines: Vec<String> = said.limits.iter().map(ToString::to_string).collect();
    format!("{wanted} → {}: {}", said.to, lines.join("; "))
}

#[test]
fn k15_copies_follow_a_number_of_the_database() {
    let sql = "sql = { query = 'SELECT count(*) FROM jobs', target = 50 }";
    expect!["2 → 4: "].assert_eq(&told(2, sql, Some(Ok(200_000))));
    expect!["4 → 3: in steps: 3 first"].assert_eq(&told(4, sql, Some(Ok(0))));
    expect!["2 → 2: sql is not known yet; that is no reason for another number"].assert_eq(&told(2, sql, None));
    expect!["2 → 2: the query of sql gives no number: no such table: jobs"].assert_eq(&told(
        2,
        sql,
        Some(Err("no such table: jobs".into())),
    ));
}

#[test]
fn k15_copies_follow_what_they_tell_of_themselves() {
    let queue =
        "min = 2, max = 6, scrape = { name = 'jobs', target = 10 }, every = '5s', warmup = '2s', down_after = '20s'";
    let mut course = Course::new(queue, 3);
    let mut run = |seconds: u64, all: u64| {
        for _ in 0..seconds {
            let copies: Vec<_> = course.world.state.replicas.keys().copied().collect();
            let each = all * 1000 / copies.len() as u64;
            course.world.observed.scraped = copies.into_iter().map(|id| (id, each)).collect();
            course.second();
        }
        course.wanted()
    };
    // Five for a load of five and a half: that is near enough.
    assert_eq!([run(20, 40), run(20, 55), run(90, 3)], [4, 5, 2]);
    course.world.observed.scraped.clear();
    course.world.observed.untold.insert(web(), "http://127.0.0.1:1/metrics: there is no jobs".into());
    course.requests(12, (0, 0));
    let limits = course.report().verdict.unwrap().limits;
    expect!["scrape is not told by any copy that is ready; that is no reason for another number"]
        .assert_eq(&limits[0].to_string());
    expect!["a copy tells nothing of itself: http://127.0.0.1:1/metrics: there is no jobs"]
        .assert_eq(&limits[1].to_string());
    assert_eq!(course.wanted(), 2);
}

const SHORT: &str = "min = 2, max = 6, rps = 10, every = '5s', warmup = '2s', down_after = '20s'";

impl Course {
    /// What a gateway tells from now on.
    fn gateway(&mut self, name: &str, uptime_ms: u64, requests: u64) {
        let of = ServiceTraffic { service: web(), requests, waiting: 1, latencies: latencies(requests, 3_000) };
        self.world.observed.traffic.insert(name.into(), Traffic { uptime_ms, services: vec![of] });
    }

    /// Seconds in which two gateways take so many requests each.
    fn requests(&mut self, seconds: u64, (a, b): (u64, u64)) {
        for _ in 0..seconds {
            for (name, more) in [("a", a), ("b", b)] {
                let told = self.world.observed.traffic.get(name);
                let (uptime, had) = told.map_or((0, 0), |told| (told.uptime_ms, told.services[0].requests));
                self.gateway(name, uptime + 1000, had + more);
            }
            self.second();
        }
    }
}

#[test]
fn k15_copies_follow_requests_from_low_over_moderate_to_high_and_back() {
    let mut course = Course::new(SHORT, 3);
    let mut steps = Vec::new();
    for (each, seconds) in [(1, 12), (7, 12), (20, 12), (1, 60)] {
        course.requests(seconds, (each, each));
        steps.push((each, course.wanted()));
    }
    assert_eq!(steps, [(1, 2), (7, 2), (20, 4), (1, 2)]);
    course.check(expect![[r#"
        26s 2 → 3: rps is at 122% of its target, 3 would do
        32s 3 → 4: rps is at 133% of its target, 4 would do
        53s 4 → 3: rps is at 5% of its target, 1 would do; no fewer than 2, the minimum
        59s 3 → 2: rps is at 6% of its target, 1 would do; no fewer than 2, the minimum"#]]);
    assert_eq!(course.report().step, Some(Step::Low));
}

#[test]
fn k15_a_gateway_that_falls_silent_keeps_the_number_until_it_is_forgotten() {
    let mut course = Course::new(SHORT, 3);
    course.requests(20, (20, 20));
    assert_eq!(course.wanted(), 4);
    course.check(expect!["6s 2 → 4: rps is at 200% of its target, 4 would do"]);
    // One of two is lost with its power, and its clients come back slowly: what the other has is no reason to
    // believe that half of the load is gone, until nobody can be waiting for it any more.
    let began = course.seconds;
    // Its node is not heard either.
    course.world.observed.traffic.remove("b");
    for _ in 0..60 {
        let told = course.world.observed.traffic["a"].clone();
        course.gateway("a", told.uptime_ms + 1000, told.services[0].requests + 20);
        course.second();
        if course.seconds < began + 20 {
            assert_eq!(course.wanted(), 4, "{}", course.seconds);
        }
    }
    assert_eq!(course.wanted(), 2, "{:?}", course.log);
    assert_eq!(course.report().flow.unwrap().gateways, 1);
}

#[test]
fn k15_a_gateway_that_begins_anew_is_not_idle() {
    let mut course = Course::new(SHORT, 3);
    course.requests(20, (20, 20));
    assert_eq!(course.wanted(), 4);
    course.log.clear();
    course.gateway("b", 0, 0);
    course.requests(60, (20, 20));
    course.check(expect![[""]]);
    assert_eq!(course.wanted(), 4);
}
