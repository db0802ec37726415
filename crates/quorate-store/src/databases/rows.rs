//! The cluster's state as rows of `system`: columns for people, `body` for Quorate.

pub(super) mod access;

use super::OpenDatabasesError;
use super::execute::Stop;
use super::writer::Writer;
use quorate_model::id::NodeId;
use quorate_model::member::MemberChange;
use quorate_model::state::{Change, ClusterState, EVENTS_KEPT};
use rusqlite::types::Type;
use rusqlite::{Connection, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::sync::Arc;

pub(super) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS nodes (id TEXT PRIMARY KEY, name TEXT NOT NULL, health TEXT NOT NULL,
        generation INTEGER NOT NULL, api TEXT NOT NULL, since_us INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS services (name TEXT PRIMARY KEY, mode TEXT NOT NULL, replicas INTEGER NOT NULL,
        version INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS replicas (id TEXT PRIMARY KEY, service TEXT NOT NULL, ordinal INTEGER NOT NULL,
        node TEXT NOT NULL, phase TEXT NOT NULL, version INTEGER NOT NULL, since_us INTEGER NOT NULL,
        body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS leases (name TEXT PRIMARY KEY, epoch INTEGER NOT NULL, replica TEXT, node TEXT,
        fenced INTEGER NOT NULL, since_us INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS service_versions (service TEXT NOT NULL, version INTEGER NOT NULL, trial TEXT NOT NULL,
        by TEXT, at_us INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (service, version)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS deployments (service TEXT PRIMARY KEY, version INTEGER NOT NULL, stage TEXT NOT NULL,
        since_us INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS vips (ip TEXT PRIMARY KEY, address TEXT NOT NULL, since_us INTEGER NOT NULL,
        body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS externals (name TEXT PRIMARY KEY, kind TEXT NOT NULL, version INTEGER NOT NULL,
        changed_us INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS drills (id INTEGER PRIMARY KEY, node TEXT NOT NULL, name TEXT NOT NULL,
        began_us INTEGER NOT NULL, over INTEGER NOT NULL, body TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS join_tokens (id TEXT PRIMARY KEY, role TEXT NOT NULL, expires_us INTEGER NOT NULL,
        used_by TEXT, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS expelled (id TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS quota (one INTEGER PRIMARY KEY CHECK (one = 1), body TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS cluster_keys (kind TEXT PRIMARY KEY, number INTEGER NOT NULL, stage TEXT NOT NULL,
        body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS member_rules (name TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS events (position INTEGER PRIMARY KEY, idx INTEGER NOT NULL, at_us INTEGER NOT NULL,
        kind TEXT NOT NULL, body TEXT NOT NULL);";

/// Writes what an entry changed.
pub(super) fn write(connection: &Connection, changes: &[Change]) -> Result<(), Stop> {
    for change in changes {
        match change {
            Change::Node(node) => {
                let identity = &node.identity;
                run(
                    connection,
                    "/*quorate*/ INSERT OR REPLACE INTO nodes VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    params![
                        identity.id.to_string(),
                        identity.name,
                        word(&node.health)?,
                        node.generation.cast_signed(),
                        identity.api,
                        node.since.0.cast_signed(),
                        body(node)?
                    ],
                )?;
            }
            Change::Service(service) => run(
                connection,
                "/*quorate*/ INSERT OR REPLACE INTO services VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    service.spec.name.as_str(),
                    word(&service.spec.mode)?,
                    service.spec.replicas,
                    service.version.cast_signed(),
                    body(service)?
                ],
            )?,
            Change::ServiceGone { service } => {
                run(connection, "/*quorate*/ DELETE FROM services WHERE name = ?1", [service.as_str()])?;
                run(connection, "/*quorate*/ DELETE FROM service_versions WHERE service = ?1", [service.as_str()])?;
                run(connection, "/*quorate*/ DELETE FROM deployments WHERE service = ?1", [service.as_str()])?;
            }
            Change::Version(record) => run(
                connection,
                "/*quorate*/ INSERT OR REPLACE INTO service_versions
                    VALUES (?1, ?2, json_extract(?5, '$.trial'), ?3, ?4, ?5)",
                params![
                    record.service.as_str(),
                    record.version.cast_signed(),
                    record.by,
                    record.at.0.cast_signed(),
                    body(record)?
                ],
            )?,
            Change::VersionGone { service, version } => run(
                connection,
                "/*quorate*/ DELETE FROM service_versions WHERE service = ?1 AND version = ?2",
                params![service.as_str(), version.cast_signed()],
            )?,
            Change::Deployment(deployment) => run(
                connection,
                "/*quorate*/ INSERT OR REPLACE INTO deployments VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    deployment.service.as_str(),
                    deployment.version.cast_signed(),
                    word(&deployment.stage)?,
                    deployment.since.0.cast_signed(),
                    body(deployment)?
                ],
            )?,
            Change::Replica(replica) => run(
                connection,
                "/*quorate*/ INSERT OR REPLACE INTO replicas VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    replica.id.to_string(),
                    replica.service.as_str(),
                    replica.ordinal,
                    replica.node.to_string(),
                    word(&replica.phase)?,
                    replica.version.cast_signed(),
                    replica.since.0.cast_signed(),
                    body(replica)?
                ],
            )?,
            Change::ReplicaGone { replica } => {
                run(connection, "/*quorate*/ DELETE FROM replicas WHERE id = ?1", [replica.to_string()])?;
            }
            Change::Vip(vip) => run(
                connection,
                "/*quorate*/ INSERT OR REPLACE INTO vips VALUES (?1, ?2, ?3, ?4)",
                params![vip.address.ip().to_string(), vip.address.to_string(), vip.since.0.cast_signed(), body(vip)?],
            )?,
            Change::VipGone { address } => {
                run(connection, "/*quorate*/ DELETE FROM vips WHERE ip = ?1", [address.to_string()])?;
            }
            Change::External(record) => run(
                connection,
                "/*quorate*/ INSERT OR REPLACE INTO externals VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    record.external.name.as_str(),
                    record.external.kind.word(),
                    record.version.cast_signed(),
                    record.changed.0.cast_signed(),
                    body(record)?
                ],
            )?,
            Change::ExternalGone { external } => {
                run(connection, "/*quorate*/ DELETE FROM externals WHERE name = ?1", [external.as_str()])?;
            }
            Change::Drill(drill) => run(
                connection,
                "/*quorate*/ INSERT OR REPLACE INTO drills VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    drill.id.cast_signed(),
                    drill.node.to_string(),
                    drill.name,
                    drill.began.0.cast_signed(),
                    drill.is_over(),
                    body(drill)?
                ],
            )?,
            Change::DrillGone { drill } => {
                run(connection, "/*quorate*/ DELETE FROM drills WHERE id = ?1", [drill.cast_signed()])?;
            }
            Change::Lease(lease) => run(
                connection,
                "/*quorate*/ INSERT OR REPLACE INTO leases VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    lease.name.as_str(),
                    lease.epoch.cast_signed(),
                    lease.holder.map(|holder| holder.replica.to_string()),
                    lease.holder.map(|holder| holder.node.to_string()),
                    lease.fenced,
                    lease.since.0.cast_signed(),
                    body(lease)?
                ],
            )?,
            Change::Member(change) => member(connection, change)?,
            Change::Access(change) => access::write(connection, change)?,
            Change::Trust(record) => run(
                connection,
                "/*quorate*/ INSERT OR REPLACE INTO cluster_keys VALUES (?1, ?2, ?3, ?4)",
                params![record.kind.word(), record.number, word(&record.stage)?, body(record)?],
            )?,
            Change::Event(event) => {
                run(
                    connection,
                    "/*quorate*/ INSERT INTO events (idx, at_us, kind, body) VALUES (?1, ?2, json_extract(?3, '$.kind'), ?3)",
                    params![event.index.0.cast_signed(), event.at.0.cast_signed(), body(event)?],
                )?;
                run(
                    connection,
                    "/*quorate*/ DELETE FROM events WHERE position <= (SELECT max(position) FROM events) - ?1",
                    [i64::try_from(EVENTS_KEPT).expect("small")],
                )?;
            }
        }
    }
    Ok(())
}

fn member(connection: &Connection, change: &MemberChange) -> Result<(), Stop> {
    match change {
        MemberChange::Token(token) => run(
            connection,
            "/*quorate*/ INSERT OR REPLACE INTO join_tokens VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                token.id.to_string(),
                word(&token.role)?,
                token.expires.0.cast_signed(),
                token.used.as_ref().map(|used| used.by.to_string()),
                body(token)?
            ],
        ),
        MemberChange::TokenGone { token } => {
            run(connection, "/*quorate*/ DELETE FROM join_tokens WHERE id = ?1", [token.to_string()])
        }
        MemberChange::NodeGone { node } => {
            run(connection, "/*quorate*/ DELETE FROM nodes WHERE id = ?1", [node.to_string()])
        }
        MemberChange::Expelled { node } => {
            run(connection, "/*quorate*/ INSERT OR REPLACE INTO expelled VALUES (?1)", [node.to_string()])
        }
        MemberChange::Quota { quota } => {
            run(connection, "/*quorate*/ INSERT OR REPLACE INTO quota VALUES (1, ?1)", [body(quota)?])
        }
        MemberChange::ManagerRule { .. } => rule(connection, "manager-rule", change),
        MemberChange::Ha { .. } => rule(connection, "ha", change),
        MemberChange::Failover { .. } => rule(connection, "failover", change),
        MemberChange::Recovered(_) => rule(connection, "recovered", change),
    }
}

/// A change of which there is one, as a whole.
fn rule(connection: &Connection, name: &str, change: &MemberChange) -> Result<(), Stop> {
    let sql = "/*quorate*/ INSERT OR REPLACE INTO member_rules VALUES (?1, ?2)";
    run(connection, sql, params![name, body(change)?])
}

fn run(connection: &Connection, sql: &str, values: impl rusqlite::Params) -> Result<(), Stop> {
    connection.prepare_cached(sql)?.execute(values)?;
    Ok(())
}

fn body<T: Serialize>(record: &T) -> Result<String, Stop> {
    serde_json::to_string(record).map_err(Stop::Record)
}

/// The word that an enum has in JSON.
fn word<T: Serialize>(value: &T) -> Result<String, Stop> {
    Ok(body(value)?.trim_matches('"').to_owned())
}

/// Reads the state back.
pub(super) fn load(system: &Writer, directory: &Path) -> Result<ClusterState, OpenDatabasesError> {
    let connection = &system.connection;
    let wrong = |source| OpenDatabasesError::Sqlite { database: "system", path: directory.to_owned(), source };
    let mut state = ClusterState { planned_on: system.planned_on(), ..ClusterState::default() };
    for node in records(connection, directory, "nodes", "id")? {
        state.absorb(state.planned_on, &[Change::Node(node)]);
    }
    for service in records(connection, directory, "services", "name")? {
        state.absorb(state.planned_on, &[Change::Service(service)]);
    }
    for replica in records(connection, directory, "replicas", "id")? {
        state.absorb(state.planned_on, &[Change::Replica(replica)]);
    }
    for lease in records(connection, directory, "leases", "name")? {
        state.absorb(state.planned_on, &[Change::Lease(lease)]);
    }
    for version in records(connection, directory, "service_versions", "service, version")? {
        state.absorb(state.planned_on, &[Change::Version(version)]);
    }
    for deployment in records(connection, directory, "deployments", "service")? {
        state.absorb(state.planned_on, &[Change::Deployment(deployment)]);
    }
    for vip in records(connection, directory, "vips", "ip")? {
        state.absorb(state.planned_on, &[Change::Vip(vip)]);
    }
    for record in records(connection, directory, "externals", "name")? {
        state.absorb(state.planned_on, &[Change::External(Box::new(record))]);
    }
    for drill in records(connection, directory, "drills", "id")? {
        state.absorb(state.planned_on, &[Change::Drill(drill)]);
    }
    for token in records(connection, directory, "join_tokens", "id")? {
        state.absorb(state.planned_on, &[Change::Member(MemberChange::Token(token))]);
    }
    for quota in records(connection, directory, "quota", "one")? {
        state.absorb(state.planned_on, &[Change::Member(MemberChange::Quota { quota })]);
    }
    for record in records(connection, directory, "cluster_keys", "kind")? {
        state.absorb(state.planned_on, &[Change::Trust(record)]);
    }
    for rule in records(connection, directory, "member_rules", "name")? {
        state.absorb(state.planned_on, &[Change::Member(rule)]);
    }
    for node in expelled(connection).map_err(wrong)? {
        state.absorb(state.planned_on, &[Change::Member(MemberChange::Expelled { node })]);
    }
    for event in records(connection, directory, "events", "position")? {
        state.absorb(state.planned_on, &[Change::Event(event)]);
    }
    state.access = Arc::new(access::load(connection, directory)?);
    Ok(state)
}

fn expelled(connection: &Connection) -> rusqlite::Result<Vec<NodeId>> {
    let mut select = connection.prepare("/*quorate*/ SELECT id FROM expelled ORDER BY id")?;
    let ids = select.query_map([], |row| row.get::<_, String>(0))?;
    ids.map(|id| {
        let wrong = |error: uuid::Error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error));
        id?.parse().map_err(wrong)
    })
    .collect()
}

fn records<T: DeserializeOwned>(
    connection: &Connection,
    directory: &Path,
    table: &'static str,
    order: &str,
) -> Result<Vec<T>, OpenDatabasesError> {
    let wrong = |source| OpenDatabasesError::Sqlite { database: "system", path: directory.to_owned(), source };
    let mut select =
        connection.prepare(&format!("/*quorate*/ SELECT body FROM {table} ORDER BY {order}")).map_err(wrong)?;
    let mut rows = select.query([]).map_err(wrong)?;
    let mut records = Vec::new();
    while let Some(row) = rows.next().map_err(wrong)? {
        let text: String = row.get(0).map_err(wrong)?;
        records.push(serde_json::from_str(&text).map_err(|source| OpenDatabasesError::Record { table, source })?);
    }
    Ok(records)
}
