//! A node that is away until it has missed more than the others keep for it.

use super::{Active, Begun, OWN_TABLE, PADDING, PADDING_ROW, millis, within};
use crate::torture::fault::FaultKind;
use crate::torture::rig::dice::Dice;
use crate::torture::rig::{LOOK_EVERY, Rig, RigError};
use serde_json::json;
use std::time::{Duration, Instant};

/// How long the others may take to forget what a node that was away needs, and that node to get it all.
const FORGET: Duration = Duration::from_secs(30);
const INSTALL: Duration = Duration::from_secs(60);

impl Rig {
    pub(super) fn send_away(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<Begun, RigError> {
        let node = self.victim(kind, dice)?;
        let Some(overview) = self.ask.status(self.nodes[node].seat.api) else {
            return Err(RigError::NoTarget { kind, why: format!("{} does not answer", self.nodes[node].name) });
        };
        // It may apply more before it dies, and the others keep what comes after this for a while.
        let how = self.take_down(node);
        let applied = self.present().filter(|other| *other != node).filter_map(|other| self.applied(other));
        let applied = applied.max().unwrap_or(0).max(overview.cluster.applied.0);
        let what = format!("{} is away until the others have forgotten what it needs", self.nodes[node].name);
        let evidence = format!("ended with {how} at index {applied} or before");
        Ok((Active::Away { node, applied }, self.names(&[node]), what, evidence))
    }

    pub(super) fn return_by_snapshot(
        &mut self,
        kind: FaultKind,
        node: usize,
        applied: u64,
    ) -> Result<String, RigError> {
        let forgotten = self.make_forget(node, applied);
        let from = self.nodes[node].log.length();
        self.start_again(kind, &[node], false)?;
        if !forgotten {
            let why = format!("the leader still had all that {} needs after {FORGET:?}", self.nodes[node].name);
            return Err(RigError::NotInjected { kind, why });
        }
        let began = Instant::now();
        let installed = |rig: &Rig| rig.nodes[node].log.after(from).contains("installed a snapshot");
        let caught_up = |rig: &Rig| rig.applied(node).is_some_and(|now| now > applied);
        within(INSTALL, || installed(self) || caught_up(self));
        match (installed(self), caught_up(self)) {
            (true, _) => Ok(format!("installed a snapshot {} after it was back", millis(began.elapsed()))),
            (false, true) => {
                let why = "another node led, which still had all that it needs".into();
                Err(RigError::NotInjected { kind, why })
            }
            (false, false) => {
                let what = format!("it needs a snapshot and has none after {INSTALL:?}");
                Err(self.nodes[node].broken(kind, what))
            }
        }
    }

    pub(super) fn applied(&self, node: usize) -> Option<u64> {
        self.ask.status(self.nodes[node].seat.api).map(|overview| overview.cluster.applied.0)
    }

    /// Writes until the leader's log begins after what `node` needs next.
    pub(super) fn make_forget(&self, node: usize, applied: u64) -> bool {
        let text = "x".repeat(PADDING);
        let deadline = Instant::now() + FORGET;
        let mut leader = None;
        while Instant::now() < deadline {
            let Some(at) = leader.or_else(|| self.leading(node)) else {
                std::thread::sleep(LOOK_EVERY);
                continue;
            };
            if first_in_log(&self.nodes[at].data_dir).is_some_and(|first| first > applied + 1) {
                return true;
            }
            let api = self.nodes[at].seat.api;
            let written = self.ask.exec_value(api, PADDING_ROW, &json!([text])).is_some()
                || self.ask.exec_value(api, OWN_TABLE, &json!([])).is_some();
            leader = Some(at).filter(|_| written);
        }
        false
    }

    pub(super) fn leading(&self, but: usize) -> Option<usize> {
        let name = self.leader()?;
        self.present().find(|node| self.nodes[*node].name == name).filter(|leader| *leader != but)
    }
}

/// Index of the first entry that a node's log still has.
fn first_in_log(data_dir: &std::path::Path) -> Option<u64> {
    let files = std::fs::read_dir(data_dir.join("log")).ok()?.flatten();
    let first = |name: &str| u64::from_str_radix(name.strip_prefix("log-")?.strip_suffix(".seg")?, 16).ok();
    files.filter_map(|file| first(file.file_name().to_str()?)).min()
}
