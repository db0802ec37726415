//! Wall clocks that jump.

use super::{Active, Begun, OWN_TABLE, within};
use crate::torture::fault::FaultKind;
use crate::torture::rig::clock;
use crate::torture::rig::dice::Dice;
use crate::torture::rig::{Rig, RigError};
use serde_json::json;
use std::time::Duration;

const TIME_ROW: &str = "INSERT OR REPLACE INTO torture_rig VALUES (2, unixepoch('now')) RETURNING text";
/// How far a clock jumps, in seconds.
const JUMP: i64 = 3_600;
/// The log's time may be off the true one by this, in seconds: far less than a jump.
const SAME_TIME: i64 = 300;
/// Two looks at clocks that agree, in seconds.
const SAME_SECOND: i64 = 2;
/// How soon a server sees that its clock has jumped: libfaketime looks into its file now and then.
const FOLLOWS: Duration = Duration::from_secs(8);

impl Rig {
    pub(super) fn jump_clock(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<Begun, RigError> {
        let node = self.victim(kind, dice)?;
        let pid = self.pid(kind, node)?;
        let seconds = if dice.happens(500) { JUMP } else { -JUMP };
        let not = |why: String| RigError::NotInjected { kind, why };
        let this = &self.nodes[node];
        let Some(clock) = &this.seat.clock else { return Err(not("the node has no clock of its own".into())) };
        if !clock::is_ruled(pid) {
            return Err(not("libfaketime is not in force in the server".into()));
        }
        let before = self.log_time(node);
        clock.shift(seconds).map_err(|error| not(error.to_string()))?;
        if !self.clock_is_off(node, seconds) {
            // It was right before.
            let _ = clock.shift(0);
            return Err(not(format!("the server's clock did not follow in {FOLLOWS:?}")));
        }
        let after = self.log_time(node);
        let all_well = self.present().all(|node| self.is_free(node));
        let alone = all_well && self.active.is_empty();
        let wrong = |off: Option<i64>| off.is_some_and(|off| off.abs() > SAME_TIME);
        // While nodes are away, two clocks that differ cannot outvote each other.
        if alone && !wrong(before) && wrong(after) {
            let _ = clock.shift(0);
            let off = after.unwrap_or_default();
            return Err(this.broken(kind, format!("its clock jumped by {seconds:+} s and the log's by {off:+} s")));
        }
        let log = after.map_or("no write was answered".into(), |off| format!("the log's time is off by {off} s"));
        let what = format!("the clock of {} jumped by {seconds:+} s", this.name);
        let evidence = format!("the node's own clock shows it; {log}");
        self.nodes[node].busy = true;
        Ok((Active::Clock { node }, self.names(&[node]), what, evidence))
    }

    pub(super) fn right_clock(&mut self, kind: FaultKind, node: usize) -> Result<String, RigError> {
        let shifted = self.nodes[node].seat.clock.as_ref().map_or(Ok(()), |clock| clock.shift(0));
        shifted.map_err(|error| RigError::NotInjected { kind, why: error.to_string() })?;
        self.wait_back(kind, node)?;
        match self.clock_is_off(node, 0) {
            true => Ok("the clock is right again, and the node answers".into()),
            false => Err(RigError::NotInjected { kind, why: "the server's clock did not jump back".into() }),
        }
    }

    /// Waits until a node's own clock, which a local read shows, is off by so much.
    pub(super) fn clock_is_off(&self, node: usize, seconds: i64) -> bool {
        within(FOLLOWS, || {
            let now = self.ask.local(self.nodes[node].seat.api, "SELECT unixepoch('now')").and_then(|now| now.as_i64());
            now.is_some_and(|now| (now - clock::now() - seconds).abs() <= SAME_SECOND)
        })
    }

    /// By how many seconds the time that is written is off: that of the log, which the most agree on.
    pub(super) fn log_time(&self, node: usize) -> Option<i64> {
        let api = self.nodes[node].seat.api;
        let ask = || self.ask.exec_value(api, TIME_ROW, &json!([]))?.as_str()?.parse::<i64>().ok();
        let told = ask().or_else(|| {
            self.ask.exec_value(api, OWN_TABLE, &json!([]));
            ask()
        })?;
        Some(told - clock::now())
    }
}
