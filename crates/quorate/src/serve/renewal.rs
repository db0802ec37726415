//! This node's certificate, renewed by itself.
//!
//! When it is due (see [`quorate_trust::renewal`]) the node makes a new key and asks for a certificate
//! for it. A manager has the authority's key and makes its own; that way a cluster that was switched
//! off for so long that all its certificates ended starts again by itself. Every other node asks the
//! managers' APIs, one after the other: not the link, which lets nobody in with a certificate that has
//! ended.
//!
//! One that was expelled while it was away for so long hears of it here, and nowhere else: the link does not
//! look further than the end of its certificate. The manager that says so is believed as one that gives a
//! certificate is, by its own.
//!
//! What is answered is believed if it is this node's, for its new key, and by an authority that it
//! believes already. So it does not matter who answers.

use super::admission::certificate_names;
use super::inbox::Inbox;
use super::keychain::Keychain;
use super::link::BRING_BACK;
use crate::cli::pinned;
use crate::cli::screen::wall_now;
use crate::config::NodeConfig;
use crate::trust::{NodeFiles, serial};
use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quorate_api::certificates::{RenewAnswer, RenewRefused, RenewRequest};
use quorate_api::view::Problem;
use quorate_model::id::NodeId;
use quorate_model::state::{ClusterState, Role};
use quorate_node::Event;
use quorate_trust::ca::{CaCertificate, NodeCertificate, NodeCertificateError};
use quorate_trust::fingerprint::Fingerprint;
use quorate_trust::key::{CertificateRequest, NodeKey};
use quorate_trust::renewal::{RenewError, renewing, verified, vouch};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{info, warn};

/// Clocks are set, servers sleep: the moment is looked at again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// The first pause after a failed attempt. Each is twice as long as the one before, up to
/// [`PAUSE_MAX`]; certificates have days left when they are due.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// Longest wait for a manager's answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Runs as long as the server does.
///
/// `known`: nodes of the cluster, as far as this one knows. `signed_by`: the authority whose
/// certificate it is to have; `None`: any that it believes.
pub(super) async fn run(
    config: NodeConfig,
    keychain: Arc<Keychain>,
    mut known: watch::Receiver<Arc<ClusterState>>,
    mut signed_by: watch::Receiver<Option<Fingerprint>>,
    inbox: Inbox,
) {
    let mut pause = PAUSE;
    loop {
        let held = keychain.held();
        let wanted = *signed_by.borrow_and_update();
        let other = wanted.is_some() && held.files.certificate.authority() != wanted;
        let left = Duration::from_micros(held.files.renew_at().0.saturating_sub(wall_now().0));
        let wait = if other || left.is_zero() {
            known.mark_unchanged();
            match renew(&config, &keychain, &known, wanted).await {
                Ok(()) => {
                    pause = PAUSE;
                    continue;
                }
                Err(error) => {
                    let again = pause;
                    warn!("this node's certificate is not renewed yet: {error:#}");
                    if let Some(SaysExpelled { by }) = error.downcast_ref() {
                        inbox.send(Event::Expelled { by: *by }).await;
                    }
                    pause = (pause * 2).min(PAUSE_MAX);
                    again
                }
            }
        } else {
            left.min(LOOK_AGAIN)
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // Another authority is wanted: at once, and not after the pauses of before.
            changed = signed_by.changed() => match changed {
                Ok(()) => pause = PAUSE,
                Err(_) => return,
            },
        }
    }
}

async fn renew(
    config: &NodeConfig,
    keychain: &Keychain,
    known: &watch::Receiver<Arc<ClusterState>>,
    wanted: Option<Fingerprint>,
) -> anyhow::Result<()> {
    let held = keychain.held();
    let key = NodeKey::generate().context("making a new key")?;
    let request = key.request().context("asking for a certificate")?;
    let mine = held.manager.as_ref().map(|manager| &manager.authority);
    let fits = |authority: Fingerprint| {
        wanted.is_none_or(|wanted| wanted == authority)
            && held.files.authorities.iter().any(|ca| ca.fingerprint() == authority)
    };
    let certificate = match mine.filter(|authority| fits(authority.certificate().fingerprint())) {
        Some(authority) => {
            let names = certificate_names(config.node.api_address().ip(), &config.node.name);
            authority.issue(&request, config.node.id, &names, wall_now(), serial()?)?
        }
        None => {
            let managers = managers(config, &known.borrow());
            let (files, plain) = (held.files.clone(), config.node.plain_http);
            let asked = tokio::task::spawn_blocking(move || ask(&managers, &files, &request, plain)).await;
            asked.context("asking the managers")??
        }
    };
    let authority = certificate.authority().filter(|authority| fits(*authority));
    let authority = authority.context("the new certificate is of an authority that is not wanted")?;
    // It says so itself; a stranger may have answered.
    let believed: Vec<CaCertificate> =
        held.files.authorities.iter().filter(|ca| ca.fingerprint() == authority).cloned().collect();
    let identity = verified(&believed, &certificate).context("what a manager answered")?;
    let (_, until) = certificate.lasts()?;
    keychain.exchange(certificate, key)?;
    info!(node = %identity.node, days = (until.0.saturating_sub(wall_now().0)) / 86_400_000_000, "this node has a new certificate");
    Ok(())
}

/// A manager says that this node was expelled.
#[derive(Debug, thiserror::Error)]
#[error("this node was expelled, says node {by}. {BRING_BACK}")]
struct SaysExpelled {
    by: NodeId,
}

/// Managers other than this node, with their APIs.
fn managers(config: &NodeConfig, known: &ClusterState) -> Vec<(NodeId, String)> {
    let others = known.nodes.values().map(|record| &record.identity);
    let others = others.filter(|other| other.id != config.node.id && other.roles.contains(&Role::Manager));
    others.map(|other| (other.id, other.api.clone())).collect()
}

/// The first certificate that one of the managers gives.
fn ask(
    managers: &[(NodeId, String)],
    files: &NodeFiles,
    request: &CertificateRequest,
    plain: bool,
) -> anyhow::Result<NodeCertificate> {
    let voucher = vouch(&files.key, request)?;
    let body = RenewRequest {
        certificate: files.certificate.to_pem(),
        request: STANDARD.encode(request.as_der()),
        voucher: STANDARD.encode(voucher),
    };
    let body = serde_json::to_string(&body)?;
    let mut failure = anyhow::anyhow!("this node knows of no other manager");
    for (manager, api) in managers {
        // Whichever authority the manager's own certificate is of.
        for authority in &files.authorities {
            let agent = agent((!plain).then(|| authority.fingerprint()))?;
            let url = if plain { format!("http://{api}") } else { format!("https://{api}") };
            match answer(&agent, &url, &body) {
                Ok(certificate) => return Ok(certificate),
                // Over plain HTTP anybody could say so.
                Err(NotGiven::Refused(problem)) if problem.code == "node-expelled" && !plain => {
                    return Err(SaysExpelled { by: *manager }.into());
                }
                Err(error) => failure = anyhow::Error::new(error).context(format!("asking {api}")),
            }
        }
    }
    Err(failure)
}

fn agent(pin: Option<Fingerprint>) -> anyhow::Result<ureq::Agent> {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .timeout_global(Some(ANSWER_WITHIN))
        .build();
    Ok(match pin {
        Some(pin) => pinned::agent(config, pin)?,
        None => config.into(),
    })
}

/// Why a manager gave no certificate.
#[derive(Debug, thiserror::Error)]
enum NotGiven {
    #[error("{} ({})", .0.message, .0.code)]
    Refused(Problem),
    #[error("HTTP status {0}")]
    Status(ureq::http::StatusCode),
    #[error("no answer")]
    NoAnswer(#[from] ureq::Error),
    #[error("reading the answer")]
    NoJson(#[from] serde_json::Error),
    #[error("reading the new certificate")]
    NoCertificate(#[from] NodeCertificateError),
}

fn answer(agent: &ureq::Agent, url: &str, body: &str) -> Result<NodeCertificate, NotGiven> {
    let url = format!("{url}/v1/certificates");
    let mut response = agent.post(&url).header("content-type", "application/json").send(body)?;
    let text = response.body_mut().read_to_string()?;
    if !response.status().is_success() {
        let problem = serde_json::from_str(&text);
        return Err(problem.map_or(NotGiven::Status(response.status()), NotGiven::Refused));
    }
    let answer: RenewAnswer = serde_json::from_str(&text)?;
    Ok(NodeCertificate::from_pem(&answer.certificate)?)
}

/// A manager's part: a new certificate for a node that shows its old one.
///
/// # Errors
/// [`RenewRefused`]; nothing was made.
pub(super) fn issue(
    config: &NodeConfig,
    keychain: &Keychain,
    known: &ClusterState,
    asked: &RenewRequest,
) -> Result<(NodeId, RenewAnswer), RenewRefused> {
    let malformed = |field, problem: String| RenewRefused::Malformed { field, problem };
    let held = keychain.held();
    let manager = held.manager.as_ref().ok_or(RenewRefused::NoAuthority)?;
    let old = NodeCertificate::from_pem(&asked.certificate)
        .map_err(|error| malformed("certificate", format!("cannot be used: {error}")))?;
    let decode = |field, text: &str| STANDARD.decode(text).map_err(|_| malformed(field, "is not base64".into()));
    let request = CertificateRequest::from_der(&decode("request", &asked.request)?)
        .map_err(|error| malformed("request", format!("cannot be used: {error}")))?;
    let voucher = decode("voucher", &asked.voucher)?;
    let refused = |error: RenewError| RenewRefused::NotProved { why: error.to_string() };
    let identity = renewing(&held.files.authorities, &old, &request, &voucher).map_err(refused)?;
    let node = identity.node;
    if identity.cluster != config.cluster.id {
        return Err(RenewRefused::NotProved { why: format!("it is a certificate of cluster {}", identity.cluster) });
    }
    if known.members.expelled.contains(&node) {
        return Err(RenewRefused::Expelled { node });
    }
    let host: Option<SocketAddr> = known.nodes.get(&node).and_then(|record| record.identity.api.parse().ok());
    let name = known.nodes.get(&node).map(|record| record.identity.name.clone());
    let founder = config.voters.iter().find(|voter| voter.id == node);
    let (ip, name) = match (host, name, founder) {
        (Some(api), Some(name), _) => (api.ip(), name),
        (_, _, Some(founder)) => (founder.link.ip(), founder.name.clone()),
        _ => return Err(RenewRefused::Unknown { node }),
    };
    let sign = || -> anyhow::Result<NodeCertificate> {
        Ok(manager.authority.issue(&request, node, &certificate_names(ip, &name), wall_now(), serial()?)?)
    };
    let certificate = sign().map_err(|error| RenewRefused::NotSigned(format!("{error:#}")))?;
    Ok((node, RenewAnswer { certificate: certificate.to_pem() }))
}
