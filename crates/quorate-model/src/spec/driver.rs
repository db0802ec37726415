//! What starts and stops a copy, and what each kind of it needs to know.
//!
//! A driver has a table of its own name in the service, which is there exactly if that driver is chosen:
//! whoever changes `driver` and forgets the rest is told, and no key is ever silently of no use.

use super::placeholder::{names_secret, tells_secrets};
use super::validate::{Problem, open_template, template, within};
use super::{Mode, ServiceSpec, StopSignal};
use crate::access::name::SecretName;
use crate::time::Span;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// What starts and stops a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// A program, run under a small supervisor of its own.
    #[default]
    Process,
    /// An OCF resource agent, as Pacemaker runs them.
    Ocf,
    /// A container of Podman or Docker.
    Container,
    /// A unit of systemd.
    Systemd,
    /// Nothing but the address of its key `vip`.
    Vip,
}

impl Driver {
    /// Its word in a spec.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Driver::Process => "process",
            Driver::Ocf => "ocf",
            Driver::Container => "container",
            Driver::Systemd => "systemd",
            Driver::Vip => "vip",
        }
    }

    /// Whether a copy is a program, with a command.
    #[must_use]
    pub fn is_process(self) -> bool {
        self == Driver::Process
    }

    /// Whether what it runs has a name on the node that two copies would share.
    #[must_use]
    pub fn is_alone_on_its_node(self) -> bool {
        match self {
            Driver::Process | Driver::Container => false,
            Driver::Ocf | Driver::Systemd | Driver::Vip => true,
        }
    }
}

/// A resource agent and how it is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ocf {
    /// `PROVIDER:TYPE`, like `heartbeat:IPaddr2`: the program `resource.d/PROVIDER/TYPE` below `/usr/lib/ocf`.
    pub agent: String,
    /// What the agent is told, as `OCF_RESKEY_NAME`. Its meta-data says which there are; a node that has the
    /// agent refuses others. Placeholders work as in `command`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub params: BTreeMap<String, String>,
    /// Pause between two monitors. 1s to 1h; default what the agent's meta-data advises, else 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Span>,
    #[serde(default, skip_serializing_if = "OcfTimeouts::is_default")]
    pub timeouts: OcfTimeouts,
    /// Monitors that fail in a row until the copy is stopped and started again. Until then it is unhealthy. One
    /// that says "not running" is enough. 1 to 100; default 3.
    #[serde(default = "fail_after")]
    pub fail_after: u32,
}

fn fail_after() -> u32 {
    3
}

impl Ocf {
    /// Provider and type. `None` for a name that [`SpecDocument::validate`](super::SpecDocument::validate) refuses.
    #[must_use]
    pub fn provider_and_type(&self) -> Option<(&str, &str)> {
        agent_name(&self.agent)
    }
}

/// How long operations of an agent may take; then they are killed. 1s to 1h; default what the agent's meta-data
/// advises, else 20s. A stop has `stop.grace`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OcfTimeouts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promote: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demote: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<Span>,
}

impl OcfTimeouts {
    fn is_default(&self) -> bool {
        *self == OcfTimeouts::default()
    }

    fn all(&self) -> [(&'static str, Option<Span>); 5] {
        [
            ("start", self.start),
            ("monitor", self.monitor),
            ("promote", self.promote),
            ("demote", self.demote),
            ("notify", self.notify),
        ]
    }
}

/// A container, on the network of its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// The image, as the engine names it. Exactly one of `image` and `rootfs` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// A directory of the node that is the container's file system; Podman alone can do that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<String>,
    #[serde(default)]
    pub engine: Engine,
    /// `SOURCE:TARGET[:OPTIONS]`, as for `--volume`. Placeholders work as in `command`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// Further options of the engine's `run`, each as one text: `\"--memory=1g\"`. Placeholders work as in
    /// `command`. What would take the container away from its supervisor is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
}

impl ServiceSpec {
    /// What a node must have to run it, any of these. Empty: every node can, or it cannot be said from elsewhere.
    #[must_use]
    pub fn driven_by(&self) -> &'static [&'static str] {
        match self.driver {
            Driver::Process => &[],
            // Its agents may be anywhere.
            Driver::Ocf if self.env.contains_key("OCF_ROOT") => &[],
            Driver::Ocf => &["ocf"],
            Driver::Container => match self.container.as_ref() {
                // A root file system is for Podman alone.
                Some(table) if table.rootfs.is_some() => &["podman"],
                Some(table) => match table.engine {
                    Engine::Auto => &["podman", "docker"],
                    Engine::Podman => &["podman"],
                    Engine::Docker => &["docker"],
                },
                None => &["podman", "docker"],
            },
            Driver::Systemd => &["systemd"],
            Driver::Vip => &["vip"],
        }
    }
}

/// What runs containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// Podman if the node has it, else Docker.
    #[default]
    Auto,
    Podman,
    Docker,
}

impl Engine {
    /// Its word in a spec, and the name of its program.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Engine::Auto => "auto",
            Engine::Podman => "podman",
            Engine::Docker => "docker",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A unit of systemd that the node has, and that systemd does not start by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Systemd {
    /// Its full name, like `nginx.service`.
    pub unit: String,
}

/// What is wrong with a name that [`is_unit`] does not take.
pub(super) const NO_UNIT: &str = "a unit is written with its kind, like nginx.service; only services are kept";

/// Whether a name is one of a service of systemd; see systemd.unit(5).
pub(super) fn is_unit(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    name.len() <= 255
        && name.strip_suffix(".service").is_some_and(|rest| {
            !rest.is_empty() && !rest.starts_with(['-', '.']) && !rest.ends_with('@') && rest.bytes().all(plain)
        })
}

/// Options of `run` that a container's supervisor sets, or that would take the container away from it.
const OPTIONS_REFUSED: [&str; 22] = [
    "--attach",
    "--cidfile",
    "--conmon-pidfile",
    "--detach",
    "--env-host",
    "--interactive",
    "--label-file",
    "--log-driver",
    "--name",
    "--net",
    "--network",
    "--pidfile",
    "--pod",
    "--publish",
    "--replace",
    "--restart",
    "--rm",
    "--rmi",
    "--rootfs",
    "--sdnotify",
    "--sig-proxy",
    "--tty",
];

/// What is wrong with a name that [`agent_name`] does not take.
pub(super) const NO_AGENT: &str = "an agent is written PROVIDER:TYPE, like heartbeat:IPaddr2";

/// Provider and type of an agent's name. Both become parts of a path.
pub(super) fn agent_name(name: &str) -> Option<(&str, &str)> {
    let (provider, kind) = name.strip_prefix("ocf:").unwrap_or(name).split_once(':')?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let sane = |part: &str| part.bytes().all(plain) && part.starts_with(|c: char| c.is_ascii_alphanumeric());
    (sane(provider) && sane(kind)).then_some((provider, kind))
}

/// Checks the driver's table, and what other keys mean with this driver.
pub(super) fn validate(spec: &ServiceSpec) -> Result<(), Problem> {
    table(spec, Driver::Ocf, spec.ocf.is_some(), "{ agent = \"heartbeat:IPaddr2\" }")?;
    table(spec, Driver::Container, spec.container.is_some(), "{ image = \"docker.io/library/nginx:1.22\" }")?;
    table(spec, Driver::Systemd, spec.systemd.is_some(), "{ unit = \"nginx.service\" }")?;
    match spec.driver {
        Driver::Process => {
            if spec.command.first().is_none_or(|program| program.trim().is_empty()) {
                let problem = "names no program: write [\"/path/to/program\", \"argument\", …]";
                return Err(("command".into(), problem.into()));
            }
            Ok(())
        }
        Driver::Vip => {
            without_command(spec)?;
            if spec.vip.is_none() {
                return Err(("vip".into(), "is missing: driver \"vip\" needs it, like vip = \"10.0.0.9/24\"".into()));
            }
            if !spec.ports.is_empty() {
                let problem = "has no meaning with driver \"vip\", where nothing listens: leave it out";
                return Err(("ports".into(), problem.into()));
            }
            without_secrets(spec)
        }
        Driver::Ocf => {
            without_command(spec)?;
            of_one_kind(spec)?;
            spec.ocf.as_ref().map_or(Ok(()), |table| ocf(table, spec))
        }
        Driver::Systemd => {
            without_command(spec)?;
            of_one_kind(spec)?;
            if spec.env.values().any(|value| tells_secrets(value)) {
                let problem =
                    "has a secret, and a unit of systemd has an environment of its own: use its LoadCredential=";
                return Err(("env".into(), problem.into()));
            }
            if !spec.env.is_empty() {
                return Err(("env".into(), "has no meaning with driver \"systemd\": the unit has its own".into()));
            }
            without_secrets(spec)?;
            spec.systemd
                .as_ref()
                .filter(|table| !is_unit(&table.unit))
                .map_or(Ok(()), |table| Err(("systemd.unit".into(), format!("is {:?}; {NO_UNIT}", table.unit))))
        }
        Driver::Container => spec.container.as_ref().map_or(Ok(()), |table| container(table, spec)),
    }
}

/// A driver's table is there exactly if that driver is chosen.
fn table(spec: &ServiceSpec, driver: Driver, is_there: bool, example: &str) -> Result<(), Problem> {
    let name = driver.name();
    match (spec.driver == driver, is_there) {
        (true, false) => Err((name.into(), format!("is missing: driver \"{name}\" needs it, like {name} = {example}"))),
        (false, true) => {
            Err((name.into(), format!("is for driver = \"{name}\", and the driver is \"{}\"", spec.driver.name())))
        }
        (true, true) | (false, false) => Ok(()),
    }
}

fn without_command(spec: &ServiceSpec) -> Result<(), Problem> {
    let name = spec.driver.name();
    if !spec.command.is_empty() {
        return Err(("command".into(), format!("has no meaning with driver \"{name}\": leave it out")));
    }
    if spec.stop.signal != StopSignal::default() {
        let problem = format!("has no meaning with driver \"{name}\", which knows how to stop: leave it out");
        return Err(("stop.signal".into(), problem));
    }
    Ok(())
}

/// Of what takes neither files nor an environment from here. Keys of artifacts and passwords of checks are for the node.
fn without_secrets(spec: &ServiceSpec) -> Result<(), Problem> {
    let name = spec.driver.name();
    if !spec.templates.is_empty() {
        let problem = format!("has no meaning with driver \"{name}\", which is given no files: leave it out");
        return Err(("template".into(), problem));
    }
    if let Some(external) = spec.externals.first() {
        let problem = format!(
            "lists `{external}`, and with driver \"{name}\" nothing is told of externals: leave it out; \
             requires = [{{ external = \"{external}\" }}] has the login checked alone"
        );
        return Err(("externals".into(), problem));
    }
    let is_key = |secret| spec.artifacts.iter().flat_map(|it| &it.s3).any(|s3| s3.secret_key.as_ref() == Some(secret));
    let check = spec.health.iter().flat_map(|check| &check.sql).find_map(|sql| sql.password.as_deref());
    let is_asked = |secret: &SecretName| check.is_some_and(|password| names_secret(password, secret));
    spec.secrets.iter().find(|secret| !is_key(*secret) && !is_asked(secret)).map_or(Ok(()), |secret| {
        let problem = format!("lists `{secret}`, and with driver \"{name}\" nothing is given secrets: leave it out");
        Err(("secrets".into(), problem))
    })
}

/// What has one name on a node cannot be there twice.
fn of_one_kind(spec: &ServiceSpec) -> Result<(), Problem> {
    match spec.mode {
        Mode::Singleton | Mode::EveryNode | Mode::ActivePassive => Ok(()),
        Mode::Replicated => {
            let problem = format!(
                "is \"replicated\", and with driver \"{}\" a node can only have one: write \"singleton\" or \"every-node\"",
                spec.driver.name()
            );
            Err(("mode".into(), problem))
        }
    }
}

fn ocf(table: &Ocf, spec: &ServiceSpec) -> Result<(), Problem> {
    let at = |name: &str, problem: String| (format!("ocf.{name}"), problem);
    if agent_name(&table.agent).is_none() {
        return Err(at("agent", format!("is {:?}; {NO_AGENT}", table.agent)));
    }
    for (name, value) in &table.params {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(at("params", format!("has the name {name:?}: use letters, digits and _")));
        }
        template(value, spec).map_err(|problem| at(&format!("params.{name}"), problem))?;
        if tells_secrets(value) {
            let problem = format!("has a secret, and parameters are written down: put OCF_RESKEY_{name} into `env`");
            return Err(at(&format!("params.{name}"), problem));
        }
    }
    let (least, most) = (Span::from_secs(1), Span::from_secs(3600));
    if let Some(every) = table.every {
        within(every, least, most).map_err(|problem| at("every", problem))?;
    }
    for (name, span) in table.timeouts.all() {
        if let Some(span) = span {
            within(span, least, most).map_err(|problem| at(&format!("timeouts.{name}"), problem))?;
        }
    }
    if !(1..=100).contains(&table.fail_after) {
        return Err(at("fail_after", format!("is {}; it must be 1 to 100", table.fail_after)));
    }
    Ok(())
}

fn container(table: &Container, spec: &ServiceSpec) -> Result<(), Problem> {
    let at = |name: &str, problem: String| Err((format!("container{name}"), problem));
    match (&table.image, &table.rootfs) {
        (Some(image), None) => {
            if image.is_empty() || image.starts_with('-') || !image.bytes().all(|b| b.is_ascii_graphic()) {
                return at(".image", format!("is {image:?}; write it like docker.io/library/nginx:1.22"));
            }
        }
        (None, Some(rootfs)) => {
            if !rootfs.starts_with('/') || rootfs.contains('\0') {
                return at(".rootfs", format!("is {rootfs:?}; it must begin with /"));
            }
            if table.engine == Engine::Docker {
                return at(".rootfs", "is for Podman alone: leave `engine` out, or name an image".into());
            }
        }
        (Some(_), Some(_)) => return at("", "has both `image` and `rootfs`: keep one".into()),
        (None, None) => return at("", "has neither `image` nor `rootfs`: write image = \"NAME:TAG\"".into()),
    }
    for volume in &table.volumes {
        if volume.starts_with('-') || !volume.contains(':') {
            return at(".volumes", format!("has {volume:?}; write SOURCE:TARGET, like /srv/data:/data"));
        }
        open_template(volume, spec).map_err(|problem| ("container.volumes".to_owned(), problem))?;
    }
    for arg in &table.args {
        let name = arg.split('=').next().unwrap_or_default();
        if !arg.starts_with("--") || name.len() < 3 {
            return at(".args", format!("has {arg:?}; write each option as one text, like \"--memory=1g\""));
        }
        if OPTIONS_REFUSED.contains(&name) {
            return at(".args", format!("has {name}, which is for the supervisor alone: leave it out"));
        }
        open_template(arg, spec).map_err(|problem| ("container.args".to_owned(), problem))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::spec::{Format, parse};
    use expect_test::{Expect, expect};

    /// Reads and validates one singleton with these lines.
    fn check(lines: &str, expected: Expect) {
        let text = format!("[[service]]\nname = 'web'\nmode = 'singleton'\n{lines}");
        let verdict = match parse(&text, Format::Toml) {
            Ok(document) => document.validate().map_or_else(|problem| problem.to_string(), |()| "ok".into()),
            Err(problem) => problem.to_string(),
        };
        expected.assert_eq(&verdict);
    }

    #[test]
    fn a_service_that_is_nothing_but_an_address_has_one_and_nothing_else() {
        check("driver = 'vip'\nvip = '10.0.0.9/24'", expect!["ok"]);
        check("driver = 'vip'", expect!["missing key `vip` in [[service]] `web` (line 1, column 1)"]);
        check(
            "driver = 'vip'\nvip = '10.0.0.9/24'\nports = { http = 80 }",
            expect![[r#"`service.web.ports` has no meaning with driver "vip", where nothing listens: leave it out"#]],
        );
        check(
            "driver = 'vip'\nvip = '10.0.0.9/24'\ncommand = ['x']",
            expect![[r#"`service.web.command` has no meaning with driver "vip": leave it out"#]],
        );
    }

    #[test]
    fn a_drivers_table_is_there_exactly_if_the_driver_is_chosen() {
        check("driver = 'ocf'", expect!["missing key `ocf` in [[service]] `web` (line 1, column 1)"]);
        check(
            "command = ['x']\nocf = { agent = 'heartbeat:Dummy' }",
            expect![[r#"`service.web.ocf` is for driver = "ocf", and the driver is "process""#]],
        );
        check(
            "driver = 'ocf'\ncommand = ['x']\nocf = { agent = 'heartbeat:Dummy' }",
            expect![[r#"`service.web.command` has no meaning with driver "ocf": leave it out"#]],
        );
        check("driver = 'ocf'\nocf = { agent = 'heartbeat:Dummy' }", expect!["ok"]);
        check("driver = 'ocf'\nocf = { agent = 'ocf:heartbeat:Dummy', every = '5s' }", expect!["ok"]);
    }

    #[test]
    fn a_table_that_no_text_was_read_for_is_missed_as_well() {
        let text = "[[service]]\nname = 'web'\nmode = 'singleton'\ndriver = 'ocf'\nocf = { agent = 'heartbeat:Dummy' }";
        let mut document = parse(text, Format::Toml).unwrap();
        document.services[0].ocf = None;
        expect![[r#"`service.web.ocf` is missing: driver "ocf" needs it, like ocf = { agent = "heartbeat:IPaddr2" }"#]]
            .assert_eq(&document.validate().unwrap_err().to_string());
    }

    #[test]
    fn a_misspelt_driver_or_key_is_shown_with_its_line_and_a_suggestion() {
        check(
            "driver = 'ofc'",
            expect![[
                r#"`driver` in [[service]] `web` is "ofc" (line 4, column 1); did you mean "ocf"? allowed: "process", "ocf", "container", "systemd", "vip""#
            ]],
        );
        check(
            "driver = 'ocf'\n[service.ocf]\nagnet = 'heartbeat:Dummy'",
            expect!["unknown key `agnet` in ocf of [[service]] `web` (line 6, column 1); did you mean `agent`?"],
        );
        check(
            "driver = 'ocf'\nocf = { params = {} }",
            expect!["missing key `agent` in ocf of [[service]] `web` (line 5, column 7)"],
        );
    }

    #[test]
    fn an_agent_is_named_by_provider_and_type_and_no_path_gets_in() {
        for bad in ["Dummy", "heartbeat:../../bin/sh", "heartbeat:", ":Dummy", "heartbeat:.x", "a:b:c"] {
            check(
                &format!("driver = 'ocf'\nocf = {{ agent = '{bad}' }}"),
                expect![
                    "`agent` in ocf of [[service]] `web`: an agent is written PROVIDER:TYPE, like heartbeat:IPaddr2 (line 5, column 9)"
                ],
            );
        }
    }

    #[test]
    fn what_has_one_name_on_a_node_is_not_replicated() {
        let text = "[[service]]\nname = 'ip'\ndriver = 'ocf'\nocf = { agent = 'heartbeat:Dummy' }";
        let problem = parse(text, Format::Toml).unwrap().validate().unwrap_err();
        expect![[r#"`service.ip.mode` is "replicated", and with driver "ocf" a node can only have one: write "singleton" or "every-node""#]]
            .assert_eq(&problem.to_string());
    }

    #[test]
    fn what_an_agent_is_told_has_ranges_and_sane_names() {
        let with =
            |more: &str, expected| check(&format!("driver = 'ocf'\nocf = {{ agent = 'a:b', {more} }}"), expected);
        with("every = '999ms'", expect!["`service.web.ocf.every` is 999ms; it must be 1s to 1h"]);
        with("timeouts = { start = '2h' }", expect!["`service.web.ocf.timeouts.start` is 2h; it must be 1s to 1h"]);
        with("fail_after = 0", expect!["`service.web.ocf.fail_after` is 0; it must be 1 to 100"]);
        with(
            "params = { 'a=b' = 'x' }",
            expect![[r#"`service.web.ocf.params` has the name "a=b": use letters, digits and _"#]],
        );
        with(
            "params = { port = '{port}' }",
            expect!["`service.web.ocf.params.port` has `{port}`, and the service declares no port"],
        );
        with("params = { where = '{node}', id = '{replica}' }", expect!["ok"]);
    }

    #[test]
    fn a_container_has_one_source_and_options_that_leave_it_to_its_supervisor() {
        let with = |table: &str, expected| check(&format!("driver = 'container'\ncontainer = {{ {table} }}"), expected);
        with("image = 'nginx:1.22', volumes = ['/srv/{node}:/data:ro'], args = ['--memory=1g']", expect!["ok"]);
        with("rootfs = '/srv/nginx'", expect!["ok"]);
        with("", expect![[r#"`service.web.container` has neither `image` nor `rootfs`: write image = "NAME:TAG""#]]);
        with("image = 'a', rootfs = '/b'", expect!["`service.web.container` has both `image` and `rootfs`: keep one"]);
        with(
            "image = '--privileged'",
            expect![[r#"`service.web.container.image` is "--privileged"; write it like docker.io/library/nginx:1.22"#]],
        );
        with("rootfs = 'b'", expect![[r#"`service.web.container.rootfs` is "b"; it must begin with /"#]]);
        with(
            "rootfs = '/b', engine = 'docker'",
            expect!["`service.web.container.rootfs` is for Podman alone: leave `engine` out, or name an image"],
        );
        with(
            "image = 'a', engine = 'dokcer'",
            expect![[
                r#"`engine` in container of [[service]] `web` is "dokcer" (line 5, column 28); did you mean "docker"? allowed: "auto", "podman", "docker""#
            ]],
        );
        with(
            "image = 'a', args = ['--restart=always']",
            expect!["`service.web.container.args` has --restart, which is for the supervisor alone: leave it out"],
        );
        for bad in ["-d", "--", "sh"] {
            let text = format!(
                "[[service]]\nname = 'web'\ndriver = 'container'\ncontainer = {{ image = 'a', args = ['{bad}'] }}"
            );
            let problem = parse(&text, Format::Toml).unwrap().validate().unwrap_err().to_string();
            assert!(problem.contains("write each option as one text"), "{problem}");
        }
        with(
            "image = 'a', volumes = ['data']",
            expect![[r#"`service.web.container.volumes` has "data"; write SOURCE:TARGET, like /srv/data:/data"#]],
        );
    }

    #[test]
    fn a_secret_is_for_the_environment_and_for_drivers_that_have_one() {
        let with = |more: &str, expected| check(&format!("secrets = ['pg']\n{more}"), expected);
        let ocf = |params: &str, env: &str| {
            format!("driver = 'ocf'\nocf = {{ agent = 'a:b', params = {{ {params} }} }}\nenv = {{ {env} }}")
        };
        with(&ocf("", "OCF_RESKEY_password = '{secret.pg}'"), expect!["ok"]);
        with(
            &ocf("password = '{secret.pg}'", ""),
            expect![
                "`service.web.ocf.params.password` has a secret, and parameters are written down: put OCF_RESKEY_password into `env`"
            ],
        );
        let container = |table: &str| format!("driver = 'container'\ncontainer = {{ image = 'a', {table} }}");
        with(&format!("{}\nenv = {{ A = '{{secret.pg}}' }}", container("args = ['--memory=1g']")), expect!["ok"]);
        with(
            &container("args = ['--env=A={secret.pg}']"),
            expect![
                "`service.web.container.args` has a secret, and everybody on the server sees commands: put it into `env`"
            ],
        );
        with(
            &container("volumes = ['/{secret.pg}:/a']"),
            expect![
                "`service.web.container.volumes` has a secret, and everybody on the server sees commands: put it into `env`"
            ],
        );
        with(&container("volumes = ['{dir}/conf:/etc/app']"), expect!["ok"]);
        let unit = "driver = 'systemd'\nsystemd = { unit = 'a.service' }";
        with(
            &format!("{unit}\nenv = {{ A = '{{secret.pg}}' }}"),
            expect![
                "`service.web.env` has a secret, and a unit of systemd has an environment of its own: use its LoadCredential="
            ],
        );
        with(
            unit,
            expect![[
                r#"`service.web.secrets` lists `pg`, and with driver "systemd" nothing is given secrets: leave it out"#
            ]],
        );
        let sum = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        let s3 = "s3 = { access_key = 'A', secret_key = 'pg' }";
        with(
            &format!("{unit}\nartifact = [{{ name = 'a', source = 's3://bucket/a', sha256 = '{sum}', {s3} }}]"),
            expect!["ok"],
        );
        check(
            &format!("{unit}\ntemplate = [{{ text = 'a', to = 'b' }}]"),
            expect![[
                r#"`service.web.template` has no meaning with driver "systemd", which is given no files: leave it out"#
            ]],
        );
        with(
            "driver = 'vip'\nvip = '10.0.0.9/24'",
            expect![[
                r#"`service.web.secrets` lists `pg`, and with driver "vip" nothing is given secrets: leave it out"#
            ]],
        );
    }

    #[test]
    fn a_unit_is_a_service_by_its_full_name_and_has_its_own_command_and_environment() {
        let with = |more: &str, expected| check(&format!("driver = 'systemd'\n{more}"), expected);
        with("systemd = { unit = 'nginx.service' }", expect!["ok"]);
        with("systemd = { unit = 'getty@tty1.service' }", expect!["ok"]);
        for bad in ["nginx", "nginx.socket", ".service", "a@.service", "--help.service", "a b.service", "../x.service"]
        {
            with(
                &format!("systemd = {{ unit = '{bad}' }}"),
                expect![
                    "`unit` in systemd of [[service]] `web`: a unit is written with its kind, like nginx.service; only services are kept (line 5, column 13)"
                ],
            );
        }
        with("", expect!["missing key `systemd` in [[service]] `web` (line 1, column 1)"]);
        with(
            "systemd = { unit = 'a.service' }\nenv = { A = 'b' }",
            expect![[r#"`service.web.env` has no meaning with driver "systemd": the unit has its own"#]],
        );
        with(
            "systemd = { unit = 'a.service' }\nstop = { signal = 'INT' }",
            expect![[
                r#"`service.web.stop.signal` has no meaning with driver "systemd", which knows how to stop: leave it out"#
            ]],
        );
    }
}
