//! Several settings of the cluster and of its services, changed by one entry.
//!
//! Each is what a command of its own does; here they are decided one after another, each on what those before
//! it made of the cluster, and all are carried out or none. What belongs to one server is in its own file and
//! not here.
//!
//! # Invariants
//! - A setting that is refused refuses all of them.
//! - Nothing can be reached by this that the setting's own command would not do.

use crate::autoscale::{AutoscaleCommand, AutoscaleWish};
use crate::command::{Command, Refusal};
use crate::id::ServiceName;
use crate::member::MemberCommand;
use crate::spec::{ServiceSpec, SpecDocument};
use crate::state::{Changes, ClusterState};
use crate::time::Span;
use serde::{Deserialize, Serialize};

/// Settings that one entry may change. More than a person types, and few enough to be decided in a moment.
pub const SETTINGS_MAX: usize = 100;

/// One setting with its new value. In JSON the tag is `setting`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "setting", rename_all = "kebab-case")]
pub enum Setting {
    /// The failover time of the cluster. `None`: its default.
    Failover {
        #[serde(default)]
        failover: Option<Span>,
    },
    /// High availability.
    Ha {
        on: bool,
    },
    /// How many copies of a service run.
    Replicas {
        service: ServiceName,
        replicas: u32,
    },
    /// The failover time of a service that runs once. `None`: that of the cluster.
    ServiceFailover {
        service: ServiceName,
        #[serde(default)]
        failover: Option<Span>,
    },
    Autoscale {
        service: ServiceName,
        wish: AutoscaleWish,
    },
}

impl Setting {
    /// The command that does the same alone.
    fn command(&self, state: &ClusterState) -> Result<Command, Refusal> {
        Ok(match self.clone() {
            Setting::Failover { failover } => Command::Member(MemberCommand::SetFailover { failover }),
            Setting::Ha { on } => Command::Member(MemberCommand::SetHa { on }),
            Setting::Replicas { service, replicas } => Command::ScaleService { service, replicas },
            Setting::Autoscale { service, wish } => Command::Autoscale(AutoscaleCommand::Set { service, wish }),
            Setting::ServiceFailover { service, failover } => {
                let known = state.service(&service)?;
                let spec = ServiceSpec { failover, ..known.spec.clone() };
                Command::ApplySpec { document: SpecDocument { services: vec![spec], routes: known.routes.clone() } }
            }
        })
    }
}

impl ClusterState {
    pub(crate) fn reconfigure(&self, changes: &mut Changes, settings: &[Setting]) -> Result<(), Refusal> {
        if settings.len() > SETTINGS_MAX {
            let problem = format!("are {}; at most {SETTINGS_MAX} change at once", settings.len());
            return Err(Refusal::Invalid { field: "settings".into(), problem });
        }
        let mut state = self.clone();
        for setting in settings {
            let command = setting.command(&state)?;
            let decided = state.decide(changes.index, changes.now, &command)?;
            state.absorb(changes.index, &decided);
            changes.list.extend(decided);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::LogIndex;
    use crate::spec::{Format, parse};
    use crate::time::WallTime;

    const SPEC: &str = "[[service]]\nname = 'web'\ncommand = ['/bin/web']\nreplicas = 3\nresources = { cpu = '100m' }\n\
                        [[service]]\nname = 'db'\nmode = 'singleton'\ncommand = ['/bin/db']\n\
                        [[route]]\nservice = 'db'\npath = '/db'\n";

    fn name(text: &str) -> ServiceName {
        ServiceName::new(text).unwrap()
    }

    fn run(state: &mut ClusterState, index: u64, command: &Command) -> Result<usize, Refusal> {
        let changes = state.decide(LogIndex(index), WallTime(index), command)?;
        state.absorb(LogIndex(index), &changes);
        Ok(changes.len())
    }

    fn cluster() -> ClusterState {
        let mut state = ClusterState::default();
        let document = parse(SPEC, Format::Toml).unwrap();
        run(&mut state, 1, &Command::ApplySpec { document }).unwrap();
        state
    }

    fn autoscale(min: u32, max: u32) -> Setting {
        let cpu = Some("70%".parse().unwrap());
        let wish =
            AutoscaleWish { enabled: Some(true), min: Some(min), max: Some(max), cpu, ..AutoscaleWish::default() };
        Setting::Autoscale { service: name("web"), wish }
    }

    fn all() -> Vec<Setting> {
        let twenty = Some(Span::from_secs(20));
        vec![
            autoscale(2, 6),
            Setting::Failover { failover: Some(Span::from_secs(15)) },
            Setting::ServiceFailover { service: name("db"), failover: twenty },
            Setting::Ha { on: true },
        ]
    }

    #[test]
    fn e5_several_settings_change_by_one_entry_and_again_changes_nothing() {
        let mut state = cluster();
        let command = Command::Reconfigure { settings: all() };
        let text = serde_json::to_string(&command).unwrap();
        assert_eq!(serde_json::from_str::<Command>(&text).unwrap(), command);
        assert!(run(&mut state, 2, &command).unwrap() > 0);
        let (web, db) = (&state.services[&name("web")].spec, &state.services[&name("db")]);
        assert_eq!(web.autoscaled().map(|table| (table.min, table.max)), Some((2, 6)));
        assert_eq!((state.members.failover, state.ha()), (Some(Span::from_secs(15)), true));
        assert_eq!((db.spec.failover, db.routes.len(), db.version), (Some(Span::from_secs(20)), 1, 2));
        assert_eq!(run(&mut state, 3, &command), Ok(0));
    }

    #[test]
    fn e5_one_bad_setting_among_good_ones_changes_nothing() {
        let state = cluster();
        let bad = [
            Setting::Failover { failover: Some(Span::from_secs(5)) },
            Setting::Replicas { service: name("web"), replicas: 0 },
            Setting::Replicas { service: name("wbe"), replicas: 2 },
            Setting::ServiceFailover { service: name("web"), failover: Some(Span::from_secs(20)) },
            // It is autoscaled by the setting before.
            Setting::Replicas { service: name("web"), replicas: 4 },
        ];
        for bad in bad {
            let mut state = state.clone();
            let settings = all().into_iter().chain([bad.clone()]).collect();
            assert!(run(&mut state, 2, &Command::Reconfigure { settings }).is_err(), "{bad:?}");
            assert_eq!(state, cluster());
        }
        let many = vec![Setting::Ha { on: true }; SETTINGS_MAX + 1];
        assert!(run(&mut state.clone(), 2, &Command::Reconfigure { settings: many }).is_err());
    }

    #[test]
    fn e5_a_setting_counts_for_those_after_it() {
        let mut state = cluster();
        run(&mut state, 2, &Command::Reconfigure { settings: vec![autoscale(2, 6)] }).unwrap();
        let wish = AutoscaleWish { enabled: Some(false), ..AutoscaleWish::default() };
        let off = Setting::Autoscale { service: name("web"), wish };
        let five = Setting::Replicas { service: name("web"), replicas: 5 };
        assert!(run(&mut state, 3, &Command::Reconfigure { settings: vec![five.clone(), off.clone()] }).is_err());
        run(&mut state, 3, &Command::Reconfigure { settings: vec![off, five] }).unwrap();
        assert_eq!(state.services[&name("web")].spec.replicas, 5);
    }
}
