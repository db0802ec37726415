//! Autoscaling as decided: who switches it, and what the leader makes of it.
//!
//! What copies use, what was recommended and for how long is nowhere in the log: every manager watches for
//! itself, and the leader asks for a change only when the number of copies is to be another one. What was
//! changed last, and why, is in the events.
//!
//! # Invariants
//! - While a service is autoscaled, nothing but this changes how many copies it has.
//! - A number that the leader found is taken only if the service is still as it was then.

use crate::command::Refusal;
use crate::event::Happening;
use crate::id::ServiceName;
use crate::spec::{Autoscale, Share, SpecDocument};
use crate::state::{Change, Changes, ClusterState};
use crate::time::Span;
use serde::{Deserialize, Serialize};

/// What may be asked of the cluster about autoscaling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "autoscale", rename_all = "kebab-case")]
pub enum AutoscaleCommand {
    /// An operator switches it, or changes what it goes by.
    Set { service: ServiceName, wish: AutoscaleWish },
    /// The leader has found that another number is right. Nothing happens if the service is not as it was then.
    Adjust { service: ServiceName, version: u64, from: u32, to: u32, why: String },
}

/// What is to be different in a service's table `autoscale`; what is absent stays as it is.
///
/// Whom to ask for a number, and with which query, is no part of it: that takes the right to write the spec.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoscaleWish {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Share>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Share>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rps: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_after: Option<Span>,
}

impl AutoscaleWish {
    /// The table afterwards. `None`: there is none yet, and this does not make one.
    #[must_use]
    pub fn over(&self, present: Option<&Autoscale>) -> Option<Autoscale> {
        let mut table = match present {
            Some(present) => present.clone(),
            None => Autoscale::new(self.min?, self.max?),
        };
        let AutoscaleWish { enabled, min, max, cpu, memory, rps, p95, every, warmup, down_after } = self.clone();
        table.enabled = enabled.unwrap_or(table.enabled);
        table.min = min.unwrap_or(table.min);
        table.max = max.unwrap_or(table.max);
        table.cpu = cpu.or(table.cpu);
        table.memory = memory.or(table.memory);
        table.rps = rps.or(table.rps);
        table.p95 = p95.or(table.p95);
        table.every = every.unwrap_or(table.every);
        table.warmup = warmup.unwrap_or(table.warmup);
        table.down_after = down_after.unwrap_or(table.down_after);
        Some(table)
    }
}

impl ClusterState {
    pub(crate) fn decide_autoscale(&self, changes: &mut Changes, command: &AutoscaleCommand) -> Result<(), Refusal> {
        match command {
            AutoscaleCommand::Set { service, wish } => self.set_autoscale(changes, service, wish),
            AutoscaleCommand::Adjust { service, version, from, to, why } => {
                self.adjust(changes, service, (*version, *from), *to, why);
                Ok(())
            }
        }
    }

    fn set_autoscale(&self, changes: &mut Changes, name: &ServiceName, wish: &AutoscaleWish) -> Result<(), Refusal> {
        let known = self.service(name)?;
        let present = known.spec.autoscale.as_ref();
        if present.is_none() && wish.enabled == Some(false) {
            return Ok(());
        }
        let table = wish.over(present).ok_or_else(|| Refusal::Invalid {
            field: format!("service.{name}.autoscale"),
            problem: "is not there yet: it begins with `min` and `max`, and a target like `cpu` or `rps`".into(),
        })?;
        let mut service = known.clone();
        service.spec.autoscale = Some(table.clone());
        // What was above the limits while nobody looked is brought between them.
        service.spec = service.spec.settled(Some(known.spec.replicas));
        if service == *known {
            return Ok(());
        }
        SpecDocument { services: vec![service.spec.clone()], routes: Vec::new() }.validate()?;
        let (from, to) = (known.spec.replicas, service.spec.replicas);
        changes.list.push(Change::Service(service));
        let (min, max, service) = (table.min, table.max, name.clone());
        changes.event(Happening::AutoscaleSet { service: service.clone(), on: table.enabled, min, max });
        if from != to {
            changes.event(Happening::ServiceAutoscaled { service, from, to, why: OUT_OF_LIMITS.to_owned() });
        }
        Ok(())
    }

    fn adjust(&self, changes: &mut Changes, name: &ServiceName, was: (u64, u32), to: u32, why: &str) {
        let Some(known) = self.services.get(name) else { return };
        let Some(autoscale) = known.spec.autoscaled() else { return };
        let from = known.spec.replicas;
        let is_as_it_was = (known.version, from) == was && self.deploying(name).is_none();
        if !is_as_it_was || known.stopped.is_some() || autoscale.widest().clamp(to) != to || from == to {
            return;
        }
        let mut service = known.clone();
        service.spec.replicas = to;
        changes.list.push(Change::Service(service));
        changes.event(Happening::ServiceAutoscaled { service: name.clone(), from, to, why: why.to_owned() });
    }

    /// # Errors
    /// [`Refusal::Autoscaled`] if nobody but the leader says how many copies it has.
    pub(crate) fn may_be_scaled(&self, name: &ServiceName) -> Result<(), Refusal> {
        let autoscale = self.services.get(name).and_then(|known| known.spec.autoscaled());
        match autoscale.map(Autoscale::widest) {
            None => Ok(()),
            Some(bounds) => Err(Refusal::Autoscaled { service: name.clone(), min: bounds.min, max: bounds.max }),
        }
    }
}

const OUT_OF_LIMITS: &str = "the limits were changed";

#[cfg(test)]
mod tests;
