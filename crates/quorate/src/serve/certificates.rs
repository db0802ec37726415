//! What nodes prove themselves with, for people.

use super::keychain::Held;
use super::view::Proofs;
use crate::cli::screen::{age, moment, wall_now};
use quorate_api::certificates::{AuthorityView, CertificatesView, KeyView, NodeCertificateView};
use quorate_model::access::name::Digest;
use quorate_model::id::NodeId;
use quorate_model::observed::TrustReport;
use quorate_model::state::{ClusterState, Health, NodeRecord};
use quorate_model::time::WallTime;
use quorate_model::trust::{KeyKind, KeyRecord, Stage};
use quorate_node::succession;
use quorate_trust::fingerprint::Fingerprint;
use quorate_trust::renewal::renew_at;
use std::collections::BTreeSet;

/// Joins what was decided with what nodes say.
pub(super) fn view(known: &ClusterState, proofs: &Proofs, held: &Held) -> CertificatesView {
    let now = wall_now();
    let signs = signing(&known.trust.key(KeyKind::Authority), held);
    let authorities: Vec<AuthorityView> = held
        .files
        .authorities
        .iter()
        .map(|ca| {
            let (from, until) = ca.lasts().unwrap_or_default();
            let signs = Some(ca.fingerprint()) == signs;
            AuthorityView { fingerprint: ca.fingerprint().to_string(), from, until, signs }
        })
        .collect();
    let believed: Vec<Digest> = held.files.authorities.iter().map(|ca| Digest(*ca.fingerprint().as_bytes())).collect();
    let behind = behind(&known.trust.key(KeyKind::Authority), proofs);
    let mut nodes: Vec<NodeCertificateView> = known
        .nodes
        .values()
        .map(|record| {
            let id = record.identity.id;
            let proof = proofs.of.get(&id);
            NodeCertificateView {
                node: id,
                name: record.identity.name.clone(),
                fingerprint: proof.map(|proof| proof.certificate.to_string()),
                authority: proof.map(|proof| proof.authority.to_string()),
                from: proof.map(|proof| proof.from),
                until: proof.map(|proof| proof.until),
                next: next(record, proof, &believed, behind.contains(&id), now),
            }
        })
        .collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let keys: Vec<KeyView> = KeyKind::ALL.map(|kind| key(known, proofs, &known.trust.key(kind))).into();
    CertificatesView { next: advice(&keys), authorities, nodes, keys }
}

/// The authority whose certificates nodes get now.
fn signing(record: &KeyRecord, held: &Held) -> Option<Fingerprint> {
    let text = match record.stage {
        Stage::Spread => &record.former,
        Stage::Use | Stage::Drop | Stage::Done => &record.certificate,
    };
    let decided = quorate_trust::ca::CaCertificate::all_from_pem(text).ok().map(|all| all[0].fingerprint());
    decided.or_else(|| held.files.certificate.authority())
}

fn next(record: &NodeRecord, proof: Option<&TrustReport>, believed: &[Digest], behind: bool, now: WallTime) -> String {
    let name = &record.identity.name;
    if behind {
        return format!(
            "it missed the rotation: quorate node remove {name}, empty its data directory, and join it anew"
        );
    }
    let Some(proof) = proof else {
        return match record.health {
            Health::Joined => "it is not heard; it renews its certificate by itself when it is back".into(),
            Health::Down | Health::Left => "it is away; it renews its certificate by itself when it is back".into(),
        };
    };
    if !believed.contains(&proof.authority) {
        return format!("it is of a CA that is not believed here: see the log of {name}");
    }
    // The latest of the moments between which each node draws its own.
    let latest = renew_at(proof.from, proof.until, u64::MAX);
    if now >= proof.until {
        format!("it ended {} ago, and is being renewed: see the log of {name}", age(now.since(proof.until)))
    } else if now >= latest {
        format!("it should have been renewed by now: see the log of {name}")
    } else {
        format!("renewed by itself before {}", moment(latest, false))
    }
}

fn key(known: &ClusterState, proofs: &Proofs, record: &KeyRecord) -> KeyView {
    let name = |id: &NodeId| known.nodes.get(id).map_or_else(|| id.to_string(), |node| node.identity.name.clone());
    let (waited, _) = match record.stage {
        Stage::Done => Default::default(),
        _ => succession::missing(record, &known.nodes, |node| proofs.of.get(&node), |_, _| None),
    };
    let away = |id: &NodeId| known.nodes.get(id).is_some_and(|node| node.health != Health::Joined);
    let waits_for = waited.iter().map(|id| if away(id) { format!("{} (away)", name(id)) } else { name(id) }).collect();
    KeyView {
        key: record.kind,
        number: record.number,
        stage: record.stage,
        since: record.since,
        waits_for,
        behind: behind(record, proofs).iter().map(name).collect(),
        exposed_by: record.exposed.as_ref().map(|exposed| exposed.by.clone()),
    }
}

/// Nodes without which a stage began. One that uses the new key was only thought to have missed it: the leader
/// of then had not heard how far it was.
fn behind(record: &KeyRecord, proofs: &Proofs) -> BTreeSet<NodeId> {
    let is_behind = |id: &&NodeId| !succession::is_believed(record, proofs.of.get(id));
    record.behind.iter().filter(is_behind).copied().collect()
}

fn advice(keys: &[KeyView]) -> Vec<String> {
    let mut advice = Vec::new();
    for key in keys {
        if let (KeyKind::Authority, Stage::Done, Some(by)) = (key.key, key.stage, &key.exposed_by) {
            advice.push(format!(
                "{by} was removed and held the CA's key, with which certificates can be made: quorate cert rotate"
            ));
        }
    }
    advice
}
