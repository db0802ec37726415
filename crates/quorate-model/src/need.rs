//! What a service needs of a node before it may run there: artifacts that are placed on it, secrets that it has
//! been given, and requirements that are checked on it.
//!
//! All are looked after on every node that may run the service, and before it is to: a failover then waits
//! for no download, and does not end on a node that lacks something. What a node found out it reports
//! ([`Prepared`]); that is observed, so it is never written to the log.
//!
//! # Invariants
//! - An artifact is named by the SHA-256 of its content, and what was placed under a hash never changes.
//! - A report counts only for exactly the needs that it was made for: those of another version of the
//!   service have another [`Needs::key`].
//! - A node is to have those secrets alone that services which it may run, or replicas that it has, name.

use crate::access::SecretRecord;
use crate::access::name::{Digest, ExternalName, SecretName};
use crate::deployment::Trial;
use crate::external::External;
use crate::id::{NodeId, ServiceName};
use crate::spec::ServiceSpec;
use crate::state::{Changes, ClusterState, Role, ServiceRecord};
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Most artifacts, and most requirements, of one service.
pub const NEEDS_MAX: usize = 16;
/// Longest name of an artifact, in bytes.
const NAME_BYTES_MAX: usize = 63;
/// Longest source, path or address, in bytes.
const TEXT_BYTES_MAX: usize = 2048;

/// A file or a tree of files that is brought to each node that may run the service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// For `{artifact.NAME}`. 1 to 63 of a-z, 0-9 and -; default `main`.
    #[serde(default = "main", skip_serializing_if = "is_main")]
    pub name: String,
    /// Where it is fetched: `https://…`, `http://…`, `s3://BUCKET/OBJECT`, or an absolute path of a file or a directory on the node.
    pub source: String,
    /// Of the file's bytes; of a directory what `quorate artifact hash` prints.
    pub sha256: Digest,
    /// Whether it is an archive (tar, also compressed) whose content is wanted. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unpack: bool,
    /// How a source `s3://…` is reached. Default: AWS in the region us-east-1, without a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3>,
}

/// How objects of an S3 service are reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3 {
    /// `https://HOST[:PORT]` or `http://HOST[:PORT]`. Default: that of AWS in the region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Default `us-east-1`, which services other than AWS take as a rule.
    #[serde(default = "us_east_1")]
    pub region: String,
    /// The id of the key. Without it requests are not signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key: Option<String>,
    /// The name of the secret that holds the key, one of the service's `secrets`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key: Option<SecretName>,
}

impl Default for S3 {
    fn default() -> Self {
        S3 { endpoint: None, region: us_east_1(), access_key: None, secret_key: None }
    }
}

fn us_east_1() -> String {
    "us-east-1".into()
}

fn main() -> String {
    "main".into()
}

fn is_main(name: &str) -> bool {
    name == "main"
}

impl Artifact {
    /// What its file is called: the last part of its source, for programs that go by endings. Letters that
    /// would need quoting become `_`.
    #[must_use]
    pub fn file_name(&self) -> String {
        let path = self.source.split(['?', '#']).next().unwrap_or_default();
        let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "._+-".contains(letter);
        let name: String = last.chars().take(100).map(|letter| if plain(letter) { letter } else { '_' }).collect();
        if name.trim_matches('.').is_empty() { "artifact".into() } else { name }
    }
}

/// What must be true of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Requirement {
    /// A program: a name that is looked for where services look, or an absolute path.
    Command(String),
    /// A file or directory that is there.
    File(String),
    /// A directory on which a file system is mounted.
    Mount(String),
    /// `HOST:PORT` that accepts a connection.
    Reach(String),
    /// An external of the cluster that lets the node in. One of the service's `externals` need not be here.
    External(ExternalName),
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Requirement::Command(name) => write!(f, "command {name}"),
            Requirement::File(path) => write!(f, "file {path}"),
            Requirement::Mount(path) => write!(f, "mount {path}"),
            Requirement::Reach(address) => write!(f, "reach {address}"),
            Requirement::External(name) => write!(f, "external {name}"),
        }
    }
}

/// All that a service needs of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Needs {
    pub artifacts: Vec<Artifact>,
    pub requires: Vec<Requirement>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: WantedSecrets,
    /// Externals by name; `None`: there is no such external.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub externals: BTreeMap<ExternalName, Option<External>>,
}

/// Secrets by name, each as it is now; `None`: there is no such secret.
pub type WantedSecrets = BTreeMap<SecretName, Option<SecretStamp>>;

/// Which value of a secret: a version alone begins anew when a secret was removed and set again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SecretStamp {
    pub version: u64,
    pub changed: WallTime,
}

impl Needs {
    /// Differs where the needs differ.
    #[must_use]
    pub fn key(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).expect("needs have no maps and write to memory"))
    }
}

/// What a node says about a service that it may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    pub service: ServiceName,
    /// Of the needs that it looked after.
    pub needs: Digest,
    /// What is not there, each in words; empty: the service may start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacks: Vec<String>,
}

/// What one node is to look after.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeNeeds {
    /// Services that it may run and that need something: now, and, while an update may fail, before it.
    pub services: BTreeMap<ServiceName, Vec<Needs>>,
    /// Artifacts of replicas that it has, and of versions that ran well, by their hash. They are not removed.
    pub in_use: BTreeSet<Digest>,
    /// Secrets of those services, and of replicas that it has.
    pub secrets: WantedSecrets,
}

impl ServiceSpec {
    #[must_use]
    pub fn has_needs(&self) -> bool {
        !(self.artifacts.is_empty() && self.requires.is_empty() && self.secrets.is_empty() && self.externals.is_empty())
    }
}

impl ClusterState {
    /// What a service needs of a node. `None`: any node has it.
    #[must_use]
    pub fn needs(&self, spec: &ServiceSpec) -> Option<Needs> {
        spec.has_needs().then(|| Needs {
            artifacts: spec.artifacts.clone(),
            requires: spec.requires.clone(),
            secrets: self.wanted_secrets(spec),
            externals: spec.wanted_externals().map(|name| (name.clone(), self.definition(name).cloned())).collect(),
        })
    }

    fn wanted_secrets(&self, spec: &ServiceSpec) -> WantedSecrets {
        let stamp = |record: &SecretRecord| SecretStamp { version: record.version, changed: record.changed };
        let externals = spec.wanted_externals().filter_map(|name| self.definition(name)?.password.as_ref());
        let names = spec.secrets.iter().chain(externals);
        names.map(|name| (name.clone(), self.access.secrets.get(name).map(stamp))).collect()
    }

    fn definition(&self, name: &ExternalName) -> Option<&External> {
        self.externals.get(name).map(|record| &record.external)
    }

    /// Which secrets each node may have; nodes that may have none are left out.
    #[must_use]
    pub fn secrets_by_node(&self) -> BTreeMap<NodeId, BTreeSet<SecretName>> {
        let named = self.services.values().map(|service| &service.spec);
        let mut all = named.chain(self.replicas.values().map(|replica| &replica.spec));
        if all.all(|spec| spec.secrets.is_empty() && spec.wanted_externals().next().is_none()) {
            return BTreeMap::new();
        }
        let of = |node: &NodeId| (*node, self.needs_on(*node).secrets.into_keys().collect::<BTreeSet<_>>());
        self.nodes.keys().map(of).filter(|(_, names)| !names.is_empty()).collect()
    }

    /// What `node` is to look after; nothing if it runs no services.
    #[must_use]
    pub fn needs_on(&self, node: NodeId) -> NodeNeeds {
        let Some(record) = self.nodes.get(&node).filter(|record| record.identity.roles.contains(&Role::Worker)) else {
            return NodeNeeds::default();
        };
        let may_run = || self.services.values().filter(|service| service.spec.place.unmet(record).is_none());
        let before: Vec<ServiceRecord> = may_run().filter_map(|service| self.fallback(&service.spec.name)).collect();
        let mine = || self.replicas.values().filter(|replica| replica.node == node).map(|replica| &replica.spec);
        let versions = self.versions.values().flat_map(|versions| versions.values());
        let stable = versions.filter(|version| matches!(version.trial, Trial::Stable { .. })).map(|it| &it.spec);
        let hashes = |spec: &'_ ServiceSpec| spec.artifacts.iter().map(|it| it.sha256).collect::<Vec<_>>();
        let present = may_run().chain(&before).map(|service| &service.spec);
        NodeNeeds {
            services: may_run()
                .map(|it| (it.spec.name.clone(), self.all_needs(it)))
                .filter(|it| !it.1.is_empty())
                .collect(),
            in_use: mine().chain(stable).flat_map(hashes).collect(),
            secrets: present.chain(mine()).flat_map(|spec| self.wanted_secrets(spec)).collect(),
        }
    }

    /// Replicas that run with a secret's old value are replaced by such with the new one, as by an update.
    pub(crate) fn restart_for_secret(&self, changes: &mut Changes, secret: &SecretName) {
        let given = |service: &&ServiceRecord| self.wanted_secrets(&service.spec).contains_key(secret);
        for service in self.services.values().filter(given) {
            self.restart(changes, service);
        }
    }

    /// The present needs of a service last.
    fn all_needs(&self, service: &ServiceRecord) -> Vec<Needs> {
        let now = self.needs(&service.spec);
        let before = self.fallback(&service.spec.name).and_then(|before| self.needs(&before.spec));
        before.filter(|before| now.as_ref() != Some(before)).into_iter().chain(now).collect()
    }
}

/// Where below the service, and what.
pub(crate) fn validate(spec: &ServiceSpec) -> Result<(), (String, String)> {
    if spec.artifacts.len() > NEEDS_MAX {
        return Err((
            "artifact".into(),
            format!("has {} entries; at most {NEEDS_MAX} are allowed", spec.artifacts.len()),
        ));
    }
    if spec.requires.len() > NEEDS_MAX {
        return Err((
            "requires".into(),
            format!("has {} entries; at most {NEEDS_MAX} are allowed", spec.requires.len()),
        ));
    }
    if spec.secrets.len() > NEEDS_MAX {
        return Err(("secrets".into(), format!("has {} entries; at most {NEEDS_MAX} are allowed", spec.secrets.len())));
    }
    if spec.externals.len() > NEEDS_MAX {
        let problem = format!("has {} entries; at most {NEEDS_MAX} are allowed", spec.externals.len());
        return Err(("externals".into(), problem));
    }
    let mut names = BTreeSet::new();
    for artifact in &spec.artifacts {
        let name = &artifact.name;
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(plain) {
            return Err(("artifact".into(), format!("has the name {name:?}: use 1 to 63 of a-z, 0-9 and -")));
        }
        if !names.insert(name) {
            return Err((format!("artifact.{name}"), "is there twice: give each a `name` of its own".into()));
        }
        source(&artifact.source).map_err(|problem| (format!("artifact.{name}.source"), problem))?;
        if let Some(reached) = &artifact.s3 {
            s3(reached, artifact, spec).map_err(|problem| (format!("artifact.{name}.s3"), problem))?;
        }
    }
    spec.requires.iter().try_for_each(|one| requirement(one).map_err(|problem| ("requires".into(), problem)))
}

fn s3(s3: &S3, artifact: &Artifact, spec: &ServiceSpec) -> Result<(), String> {
    let S3 { endpoint, region, access_key, secret_key } = s3;
    if !artifact.source.starts_with("s3://") {
        return Err("is for a source s3://BUCKET/OBJECT: leave it out".into());
    }
    if let Some(endpoint) = endpoint {
        let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://")).unwrap_or_default();
        let host = host.strip_suffix('/').unwrap_or(host);
        if host.is_empty() || !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte)) {
            return Err(format!("has the endpoint {endpoint:?}; write https://HOST[:PORT] or http://HOST[:PORT]"));
        }
    }
    let word = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !word(region) {
        return Err(format!("has the region {region:?}; use letters, digits and -"));
    }
    match (access_key, secret_key) {
        (None, None) => Ok(()),
        (Some(id), Some(_))
            if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_graphic() && !b"/,".contains(&byte)) =>
        {
            Err(format!("has the access_key {id:?}, which is none"))
        }
        (Some(_), Some(secret)) if !spec.secrets.contains(secret) => {
            Err(format!("has the secret_key `{secret}`, and `secrets` does not list it"))
        }
        (Some(_), Some(_)) => Ok(()),
        (Some(_), None) | (None, Some(_)) => Err("has one of access_key and secret_key: give both or none".into()),
    }
}

fn source(source: &str) -> Result<(), String> {
    plain(source)?;
    if let Some(place) = source.strip_prefix("s3://") {
        let bucket = |text: &str| {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
            (3..=63).contains(&text.len()) && text.bytes().all(plain)
        };
        return match place.split_once('/') {
            Some((name, object)) if bucket(name) && !object.is_empty() => Ok(()),
            _ => Err(format!("is {source:?}; write s3://BUCKET/OBJECT")),
        };
    }
    if source.starts_with('/') {
        return Ok(());
    }
    let Some(rest) = source.strip_prefix("https://").or_else(|| source.strip_prefix("http://")) else {
        return Err(format!("is {source:?}; write https://…, http://…, s3://… or an absolute path"));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        // The spec is shown to everybody who may read it.
        return Err("has a user or a password in it, which everybody could read".into());
    }
    if authority.is_empty() || !source.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("is {source:?}, which is no URL: write spaces and letters beyond ASCII as %XX"));
    }
    Ok(())
}

fn requirement(requirement: &Requirement) -> Result<(), String> {
    let of = |problem: String| format!("has `{requirement}`, which {problem}");
    match requirement {
        Requirement::Command(text) | Requirement::File(text) | Requirement::Mount(text) | Requirement::Reach(text) => {
            plain(text).map_err(of)?;
        }
        Requirement::External(_) => {}
    }
    match requirement {
        Requirement::Command(name) if name.contains('/') && !name.starts_with('/') => {
            Err(of("is neither a program's name nor an absolute path".into()))
        }
        Requirement::File(path) | Requirement::Mount(path) if !path.starts_with('/') => {
            Err(of("is no absolute path".into()))
        }
        Requirement::Reach(address) => match address.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(()),
            _ => Err(of("is not HOST:PORT".into())),
        },
        Requirement::Command(_) | Requirement::File(_) | Requirement::Mount(_) | Requirement::External(_) => Ok(()),
    }
}

fn plain(text: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Err("is empty".into());
    }
    if text.len() > TEXT_BYTES_MAX {
        return Err(format!("has {} bytes; at most {TEXT_BYTES_MAX} are allowed", text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err("has a character that is not printed".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Format, parse};
    use expect_test::{Expect, expect};

    const HASH: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn check(lines: &str, expected: Expect) {
        let text = format!("[[service]]\nname = 'web'\ncommand = ['{{artifact}}']\n{}", lines.replace("HASH", HASH));
        let outcome = parse(&text, Format::Toml).map_err(|problem| problem.to_string());
        let outcome = outcome.and_then(|document| document.validate().map_err(|problem| problem.to_string()));
        expected.assert_eq(&outcome.map_or_else(|problem| problem, |()| "ok".into()));
    }

    #[test]
    fn k13_an_artifact_has_a_source_that_shows_no_password_and_a_hash() {
        check("artifact = [{ source = 'https://a.test/web-1.2.tgz', sha256 = 'HASH', unpack = true }]", expect!["ok"]);
        check("artifact = [{ source = '/opt/web', sha256 = 'HASH' }]", expect!["ok"]);
        check(
            "artifact = [{ source = 'ftp://a/b', sha256 = 'HASH' }]",
            expect![[
                r#"`service.web.artifact.main.source` is "ftp://a/b"; write https://…, http://…, s3://… or an absolute path"#
            ]],
        );
        check(
            "artifact = [{ source = 'https://joe:pw@a.test/b', sha256 = 'HASH' }]",
            expect!["`service.web.artifact.main.source` has a user or a password in it, which everybody could read"],
        );
        check(
            "artifact = [{ source = '/opt/web' }]",
            expect!["missing key `sha256` in [[artifact]] number 1 (line 4, column 13)"],
        );
        check(
            "artifact = [{ source = '/a', sha256 = '12' }]",
            expect!["`sha256` in [[artifact]] number 1: `12` is not 64 hexadecimal digits (line 4, column 30)"],
        );
        check(
            "artifact = [{ source = '/a', sha256 = 'HASH' }, { source = '/b', sha256 = 'HASH' }]",
            expect!["`service.web.artifact.main` is there twice: give each a `name` of its own"],
        );
    }

    #[test]
    fn k13_an_object_of_s3_is_reached_with_a_key_that_is_a_secret_of_the_service() {
        let s3 = |source: &str, s3: &str, expected: Expect| {
            let artifact = format!("artifact = [{{ source = '{source}', sha256 = 'HASH', s3 = {{ {s3} }} }}]");
            check(&format!("secrets = ['s3']\n{artifact}"), expected);
        };
        let object = "s3://apps/web.tgz";
        s3(object, "endpoint = 'http://minio:9000', access_key = 'AKIA', secret_key = 's3'", expect!["ok"]);
        s3(object, "", expect!["ok"]);
        s3(
            object,
            "access_key = 'AKIA', secret_key = 'other'",
            expect!["`service.web.artifact.main.s3` has the secret_key `other`, and `secrets` does not list it"],
        );
        s3(
            object,
            "access_key = 'AKIA'",
            expect!["`service.web.artifact.main.s3` has one of access_key and secret_key: give both or none"],
        );
        s3(
            object,
            "endpoint = 'minio:9000'",
            expect![[
                r#"`service.web.artifact.main.s3` has the endpoint "minio:9000"; write https://HOST[:PORT] or http://HOST[:PORT]"#
            ]],
        );
        s3(
            "s3://apps",
            "",
            expect![[r#"`service.web.artifact.main.source` is "s3://apps"; write s3://BUCKET/OBJECT"#]],
        );
        s3("/apps", "", expect!["`service.web.artifact.main.s3` is for a source s3://BUCKET/OBJECT: leave it out"]);
    }

    #[test]
    fn an_artifact_that_is_named_is_declared() {
        check("", expect!["`service.web.command` has `{artifact}`, and the service has no artifact"]);
        check(
            "artifact = [{ source = '/a', sha256 = 'HASH' }]\nenv = { A = '{artifact.tool}' }",
            expect!["`service.web.env.A` has `{artifact.tool}`, and `artifact` has none of this name"],
        );
    }

    #[test]
    fn k13_a_requirement_is_one_thing_that_can_be_checked() {
        let requires = |what: &str, expected: Expect| {
            check(&format!("artifact = [{{ source = '/a', sha256 = 'HASH' }}]\nrequires = [{what}]"), expected);
        };
        requires(
            "{ command = 'java' }, { file = '/opt/x' }, { mount = '/data' }, { reach = 'db:5432' }",
            expect!["ok"],
        );
        requires(
            "{ comand = 'java' }",
            expect![
                "unknown key `comand` in requires of [[service]] `web` (line 5, column 15); did you mean `command`?"
            ],
        );
        requires("{ reach = 'db' }", expect!["`service.web.requires` has `reach db`, which is not HOST:PORT"]);
        requires("{ file = 'x' }", expect!["`service.web.requires` has `file x`, which is no absolute path"]);
        let one = || {
            expect![
                "`requires` in [[service]] `web`: each part has exactly one of command, file, mount, reach, external (line 5, column 1)"
            ]
        };
        requires("{ command = 'java', file = '/x' }", one());
        requires("{}", one());
    }

    #[test]
    fn a_secret_that_is_named_is_listed_and_not_in_the_command() {
        let artifact = "artifact = [{ source = '/a', sha256 = 'HASH' }]\n";
        check(&format!("{artifact}secrets = ['pg']\nenv = {{ A = 'p={{secret.pg}}' }}"), expect!["ok"]);
        check(
            &format!("{artifact}env = {{ A = '{{secret.pg}}' }}"),
            expect!["`service.web.env.A` has `{secret.pg}`, and `secrets` does not list it"],
        );
        let text = "[[service]]\nname = 'web'\ncommand = ['x', '{secret.pg}']\nsecrets = ['pg']";
        let refusal = parse(text, Format::Toml).unwrap().validate().unwrap_err();
        expect!["`service.web.command` has a secret, and everybody on the server sees commands: put it into `env`"]
            .assert_eq(&refusal.to_string());
    }

    #[test]
    fn a_file_keeps_the_end_of_its_sources_name() {
        let named = |source: &str| {
            let sha256 = HASH.parse().unwrap();
            Artifact { name: main(), source: source.into(), sha256, unpack: false, s3: None }.file_name()
        };
        assert_eq!(named("https://a.test/x/web-1.jar?token=1"), "web-1.jar");
        assert_eq!(named("/opt/a b"), "a_b");
        assert_eq!(named("https://a.test/.."), "artifact");
    }
}
