//! What the types of a spec alone do not say: ranges, names, references between tables.
//!
//! Pure and part of the state machine: a command that fails here is refused in the same way on
//! every node, so a rule may only ever be relaxed, never tightened, between two releases that run
//! in one cluster.

use super::{
    Mode, Order, Port, Promote, RouteSpec, ServiceSpec, SpecDocument, StopSignal, Update, WithoutQuorum, active,
    autoscale, driver, health, placeholder, schedule,
};
use crate::command::Refusal;
use crate::time::Span;
use crate::{lease, need, template as made_files};
use std::collections::{BTreeMap, BTreeSet};

/// Longest host name, as in DNS.
const HOST_BYTES_MAX: usize = 253;
/// Longest label of a host name and longest port name.
const LABEL_BYTES_MAX: usize = 63;
/// Longest path of a route or check. Longer ones are surely a mistake, and some proxies cut at 8 KiB.
const PATH_BYTES_MAX: usize = 1024;

pub(super) fn document(document: &SpecDocument) -> Result<(), Refusal> {
    if document.services.is_empty() {
        return Err(invalid("service", "is missing: a spec has at least one [[service]]"));
    }
    let mut names = BTreeSet::new();
    let mut vips = BTreeMap::new();
    for spec in &document.services {
        if !names.insert(&spec.name) {
            return Err(invalid(format!("service.{}", spec.name), "is there twice"));
        }
        service(spec)?;
        if let Some(vip) = &spec.vip
            && let Some(other) = vips.insert(vip.address.ip(), &spec.name)
        {
            let problem = format!("is {}, and so is that of `{other}`", vip.address.ip());
            return Err(invalid(format!("service.{}.vip", spec.name), problem));
        }
    }
    let mut seen = BTreeSet::new();
    for spec in &document.routes {
        route(spec)?;
        if !seen.insert((&spec.listen, &spec.host, &spec.path)) {
            let problem = format!("is there twice: {}{} on {}", spec.host, spec.path, spec.listen);
            return Err(invalid(format!("route.{}", spec.service), problem));
        }
    }
    Ok(())
}

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Refusal {
    Refusal::Invalid { field: field.into(), problem: problem.into() }
}

fn service(spec: &ServiceSpec) -> Result<(), Refusal> {
    let field = |rest: &str| format!("service.{}.{rest}", spec.name);
    if !(1..=ServiceSpec::MAX_REPLICAS).contains(&spec.replicas) {
        let problem = format!("is {}; it must be 1 to {}", spec.replicas, ServiceSpec::MAX_REPLICAS);
        return Err(invalid(field("replicas"), problem));
    }
    if spec.mode == Mode::EveryNode && spec.replicas != 1 {
        let problem = format!("is {}, and mode \"every-node\" runs one on each node: leave it out", spec.replicas);
        return Err(invalid(field("replicas"), problem));
    }
    spec.place.validate(spec).map_err(|(name, problem)| invalid(field(&format!("place{name}")), problem))?;
    once(spec).map_err(|(name, problem)| invalid(field(name), problem))?;
    vip(spec).map_err(|problem| invalid(field("vip"), problem))?;
    ports(spec).map_err(|(name, problem)| invalid(field(&format!("ports{name}")), problem))?;
    driver::validate(spec).map_err(|(name, problem)| invalid(field(&name), problem))?;
    need::validate(spec).map_err(|(name, problem)| invalid(field(&name), problem))?;
    made_files::validate(spec).map_err(|(name, problem)| invalid(field(&name), problem))?;
    for (to, from) in spec.templates.iter().filter_map(|it| Some((&it.to, it.from.as_ref()?))) {
        let at = field(&format!("template.{to}.from"));
        template(from, spec).map_err(|problem| invalid(&at, problem))?;
        if placeholder::tells_secrets(from) {
            return Err(invalid(at, "has a secret, and a path is shown"));
        }
    }
    crate::access::service::validate(spec).map_err(|problem| invalid(field("grants"), problem))?;
    uses(spec).map_err(|(name, problem)| invalid(field(name), problem))?;
    for word in &spec.command {
        open_template(word, spec).map_err(|problem| invalid(field("command"), problem))?;
    }
    for (name, value) in &spec.env {
        if !is_env_name(name) {
            let problem = format!("has the name {name:?}: use letters, digits and _, not beginning with a digit");
            return Err(invalid(field("env"), problem));
        }
        template(value, spec).map_err(|problem| invalid(field(&format!("env.{name}")), problem))?;
    }
    if let Some(check) = &spec.health {
        health::check(check, spec).map_err(|(name, problem)| invalid(field(&format!("health{name}")), problem))?;
    }
    active::validate(spec).map_err(|(name, problem)| invalid(field(&name), problem))?;
    for (name, hook) in spec.active.iter().flat_map(|it| [("promote", &it.promote), ("demote", &it.demote)]) {
        for word in hook {
            open_template(word, spec).map_err(|problem| invalid(field(&format!("active.{name}")), problem))?;
        }
    }
    autoscale::validate(spec).map_err(|(name, problem)| invalid(field(&name), problem))?;
    schedule::validate(spec).map_err(|problem| invalid(field("schedule"), problem))?;
    update(&spec.update, spec).map_err(|(name, problem)| invalid(field(&format!("update.{name}")), problem))?;
    within(spec.stop.grace, Span::default(), Span::from_secs(600))
        .map_err(|problem| invalid(field("stop.grace"), problem))
}

fn update(update: &Update, spec: &ServiceSpec) -> Result<(), (&'static str, String)> {
    if update.order == Some(Order::StartFirst)
        && let Some(why) = spec.stops_first()
    {
        return Err(("order", format!("is \"start-first\", and the service {why}: leave it out")));
    }
    if update.canary > 0 && spec.mode == Mode::Singleton {
        return Err(("canary", "is for several copies, and a singleton has one: leave it out".into()));
    }
    if update.canary > ServiceSpec::MAX_REPLICAS {
        return Err(("canary", format!("is {}; at most {} may run", update.canary, ServiceSpec::MAX_REPLICAS)));
    }
    if update.promote == Promote::Manual && update.canary == 0 {
        return Err(("promote", "is \"manual\", and there are no canaries: write canary = 1".into()));
    }
    let (none, second, hour) = (Span::default(), Span::from_secs(1), Span::from_secs(3600));
    within(update.healthy_for, none, Span::from_secs(600)).map_err(|p| ("healthy_for", p))?;
    within(update.healthy_within, second, hour).map_err(|p| ("healthy_within", p))?;
    within(update.progress_within, second, Span::from_secs(7200)).map_err(|p| ("progress_within", p))?;
    within(update.verify_for, none, hour).map_err(|p| ("verify_for", p))
}

/// What has to do with other services' whereabouts.
fn uses(spec: &ServiceSpec) -> Result<(), (&'static str, String)> {
    const USES_MAX: usize = 16;
    if spec.uses.len() > USES_MAX {
        return Err(("uses", format!("has {} entries; at most {USES_MAX} are allowed", spec.uses.len())));
    }
    let Some(signal) = spec.reload else { return Ok(()) };
    if !matches!(signal, StopSignal::Hup | StopSignal::Usr1 | StopSignal::Usr2) {
        return Err(("reload", format!("is \"{}\", which ends programs: write HUP, USR1 or USR2", signal.name())));
    }
    if spec.uses.is_empty() || spec.templates.is_empty() {
        return Err(("reload", "is for files that change: it needs `uses` and a template".into()));
    }
    if !spec.driver.is_process() {
        return Err(("reload", "is for programs that the agent starts itself: leave it out with this driver".into()));
    }
    Ok(())
}

/// What belongs to services that run once.
fn once(spec: &ServiceSpec) -> Result<(), (&'static str, String)> {
    if !spec.mode.has_lease() {
        let problem = || "is for services that run once: write mode = \"singleton\", or leave it out".to_owned();
        return match (spec.failover, spec.unsafe_fast, spec.without_quorum) {
            (Some(_), _, _) => Err(("failover", problem())),
            (None, true, _) => Err(("unsafe_fast", problem())),
            (None, false, WithoutQuorum::Keep | WithoutQuorum::Demote) => Err(("without_quorum", problem())),
            (None, false, WithoutQuorum::Stop) => Ok(()),
        };
    }
    match (spec.mode, spec.without_quorum) {
        (Mode::ActivePassive, WithoutQuorum::Keep) => {
            let problem = "is \"keep\", and that is for one copy: write mode = \"singleton\", or leave it out";
            return Err(("without_quorum", problem.to_owned()));
        }
        (Mode::Singleton, WithoutQuorum::Demote) => {
            let problem = "is \"demote\", and that is for mode = \"active-passive\": leave it out";
            return Err(("without_quorum", problem.to_owned()));
        }
        _ => {}
    }
    if spec.mode == Mode::Singleton && spec.replicas != 1 {
        let problem = format!("is {}; a singleton has one: leave it out", spec.replicas);
        return Err(("replicas", problem));
    }
    if spec.without_quorum == WithoutQuorum::Keep && !spec.driver.is_process() {
        let problem = "is \"keep\", and that is for programs: write driver = \"process\", or leave it out";
        return Err(("without_quorum", problem.to_owned()));
    }
    if spec.without_quorum == WithoutQuorum::Keep && (spec.failover.is_some() || spec.unsafe_fast) {
        let field = if spec.failover.is_some() { "failover" } else { "unsafe_fast" };
        let problem = "promises a time, and with without_quorum = \"keep\" nobody takes over before somebody says \
                       that the server is dead: leave it out";
        return Err((field, problem.to_owned()));
    }
    let least = if spec.unsafe_fast { lease::FAILOVER_MIN_UNSAFE } else { lease::FAILOVER_MIN };
    within(spec.failover.unwrap_or(lease::FAILOVER_DEFAULT), least, lease::FAILOVER_MAX).map_err(|p| ("failover", p))
}

/// An address that is where the service runs.
fn vip(spec: &ServiceSpec) -> Result<(), String> {
    if spec.vip.is_none() {
        return Ok(());
    }
    if spec.mode != Mode::Singleton {
        return Err("is for services that run once: write mode = \"singleton\", or leave it out".into());
    }
    // The kernel counts an address's life in whole seconds, and is late by more than one.
    if spec.failover.is_some_and(|failover| failover < lease::FAILOVER_MIN) {
        return Err(format!("needs a failover time of {} at the least", lease::FAILOVER_MIN));
    }
    if spec.without_quorum == WithoutQuorum::Keep {
        return Err(
            "ends with the copy's lease, and without_quorum = \"keep\" goes on without one: leave out either".into()
        );
    }
    Ok(())
}

/// Where below the field, and what.
pub(super) type Problem = (String, String);

fn ports(spec: &ServiceSpec) -> Result<(), Problem> {
    let mut fixed = BTreeMap::new();
    for (name, port) in &spec.ports {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !(1..=LABEL_BYTES_MAX).contains(&name.len()) || !name.bytes().all(plain) {
            return Err((String::new(), format!("has the name {name:?}: use 1 to 63 of a-z, 0-9 and -")));
        }
        if let Port::Fixed(number) = port
            && let Some(other) = fixed.insert(number, name)
        {
            return Err((format!(".{name}"), format!("is {number}, and so is `{other}`")));
        }
    }
    Ok(())
}

fn route(spec: &RouteSpec) -> Result<(), Refusal> {
    let field = |rest: &str| format!("route.{}.{rest}", spec.service);
    // One spelling per port, or two equal routes would look different.
    let is_port = |text: &str| text.parse::<u16>().is_ok_and(|port| port > 0 && port.to_string() == text);
    if spec.listen != "default" && !spec.listen.strip_prefix(':').is_some_and(is_port) {
        let problem = format!("is {:?}; write \"default\" or \":PORT\", like \":8080\"", spec.listen);
        return Err(invalid(field("listen"), problem));
    }
    if spec.host != "*" && !is_host(&spec.host) {
        let problem = format!("is {:?}; write a host name in lower case without a port, or \"*\"", spec.host);
        return Err(invalid(field("host"), problem));
    }
    sane_path(&spec.path).map_err(|problem| invalid(field("path"), problem))?;
    if spec.path.contains('?') {
        return Err(invalid(field("path"), format!("is {:?}; a route's path has no query", spec.path)));
    }
    if spec.path.len() > 1 && spec.path.ends_with('/') {
        let problem = format!("is {:?}; leave out the / at its end, prefixes match whole segments", spec.path);
        return Err(invalid(field("path"), problem));
    }
    Ok(())
}

fn is_host(host: &str) -> bool {
    // `_` is no host name by the RFCs, and container networks are full of it.
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    let label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label.bytes().all(plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.len() <= HOST_BYTES_MAX && host.split('.').all(label)
}

pub(super) fn sane_path(path: &str) -> Result<(), String> {
    if !path.starts_with('/') {
        return Err(format!("is {path:?}; it must begin with /"));
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(format!("has {} bytes; at most {PATH_BYTES_MAX} are allowed", path.len()));
    }
    if !path.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err(format!("is {path:?}; write spaces, # and letters beyond ASCII as %XX"));
    }
    let segments = path.split('?').next().unwrap_or_default();
    if segments.contains("//") || segments.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(format!("is {path:?}; it must not have empty, . or .. segments"));
    }
    Ok(())
}

pub(super) fn template(text: &str, spec: &ServiceSpec) -> Result<(), String> {
    if text.contains('\0') {
        return Err("has a NUL byte, which no program can be given".into());
    }
    placeholder::check(text, spec).map_err(|problem| problem.to_string())
}

/// As [`template`], of what ends on a command line.
pub(super) fn open_template(text: &str, spec: &ServiceSpec) -> Result<(), String> {
    template(text, spec)?;
    if let Some((written, variable)) = placeholder::secret_variable(text) {
        return Err(format!(
            "has `{written}`, and everybody on the server sees commands: the program finds it in its environment as {variable}"
        ));
    }
    if placeholder::tells_secrets(text) {
        return Err("has a secret, and everybody on the server sees commands: put it into `env`".into());
    }
    Ok(())
}

fn is_env_name(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && name.starts_with(|c: char| !c.is_ascii_digit())
}

/// Neither empty nor too long.
pub(super) fn within_text(text: &str, most: usize) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    if text.len() > most { Err(format!("has {} bytes; at most {most} are allowed", text.len())) } else { Ok(()) }
}

pub(super) fn within(span: Span, least: Span, most: Span) -> Result<(), String> {
    if (least..=most).contains(&span) { Ok(()) } else { Err(format!("is {span}; it must be {least} to {most}")) }
}

#[cfg(test)]
mod tests {
    use crate::spec::{Format, parse};
    use expect_test::{Expect, expect};

    /// Validates one service with these lines beside `name`, and whatever follows them.
    fn check(lines: &str, expected: Expect) {
        let command = if lines.contains("command =") { "" } else { "command = ['/bin/web']\n" };
        let text = format!("[[service]]\nname = 'web'\n{command}{lines}");
        let document = parse(&text, Format::Toml).unwrap_or_else(|problem| panic!("{problem}\n{text}"));
        expected.assert_eq(&document.validate().map_or_else(|problem| problem.to_string(), |()| "ok".into()));
    }

    #[test]
    fn a_full_service_is_accepted() {
        check(
            "command = ['web', '{port}', '{port.admin}', '{node}']\nreplicas = 1000\n\
             ports = { http = 'auto', admin = 9000 }\nenv = { A_1 = '{replica}-{ordinal}' }\n\
             health = { http = '/ok?full=1', port = 'admin' }\n\
             [[route]]\nlisten = ':80'\nhost = 'a.example.org'\npath = '/api'\nservice = 'web'\n\
             [[route]]\nservice = 'web'",
            expect!["ok"],
        );
    }

    #[test]
    fn replicas_have_a_range() {
        check("replicas = 0", expect!["`service.web.replicas` is 0; it must be 1 to 1000"]);
        check("replicas = 1001", expect!["`service.web.replicas` is 1001; it must be 1 to 1000"]);
    }

    #[test]
    fn a_command_names_a_program() {
        let expected =
            || expect!["`service.web.command` names no program: write [\"/path/to/program\", \"argument\", …]"];
        check("command = []", expected());
        check("command = ['']", expected());
    }

    #[test]
    fn a_placeholder_is_known_and_its_port_declared() {
        check(
            "command = ['web', '{prot}']",
            expect![
                "`service.web.command` has the unknown placeholder `{prot}`; known are {port}, {port.NAME}, {replica}, {node}, {ordinal}, {artifact}, {artifact.NAME}, {dir}, {secret.NAME}, {external.NAME.FIELD}; a literal brace is written {{ or }}"
            ],
        );
        check(
            "command = ['web', '{port}']",
            expect!["`service.web.command` has `{port}`, and the service declares no port"],
        );
        check(
            "ports = { http = 'auto' }\nenv = { A = '{port.admin}' }",
            expect!["`service.web.env.A` has `{port.admin}`, and `ports` declares no `admin`"],
        );
    }

    #[test]
    fn e6_a_command_has_no_secret_field_of_an_external() {
        let text = |more: &str| format!("externals = ['orders-db']\n{more}");
        check(
            &text("command = ['web', '--db={external.orders-db.url}']"),
            expect![
                "`service.web.command` has `{external.orders-db.url}`, and everybody on the server sees commands: the program finds it in its environment as ORDERS_DB_URL"
            ],
        );
        check(
            &text("command = ['web', '--db={external.orders_db.host}']\nenv = { DB = '{external.orders-db.url}' }"),
            expect!["ok"],
        );
        check(
            &text("env = { DB = '{external.orders.url}' }"),
            expect!["`service.web.env.DB` has `{external.orders.…}`, and `externals` does not list `orders`"],
        );
        check(
            &text("env = { DB = '{external.orders-db.hots}' }"),
            expect![
                "`service.web.env.DB` has `{external.orders-db.hots}`, and externals have no `hots`; they have url, host, port, hosts, user, password, database, tls, ca, application_name, connect_timeout, target_session_attrs, cluster, heartbeat, region"
            ],
        );
    }

    #[test]
    fn no_nul_byte_reaches_a_program() {
        check(
            r#"env = { A = "a\u0000b" }"#,
            expect!["`service.web.env.A` has a NUL byte, which no program can be given"],
        );
    }

    #[test]
    fn what_is_granted_and_used_makes_sense() {
        check("grants = [{ database = 'main', right = 'write' }, { database = 'system' }]", expect!["ok"]);
        check(
            "grants = [{ database = 'system', right = 'write' }]",
            expect![
                "`service.web.grants` has the right `write` for `system`, which only the cluster writes: grant `read`"
            ],
        );
        check(
            "grants = [{ database = 'main' }, { database = 'main', right = 'write' }]",
            expect!["`service.web.grants` has two entries for one database: `write` is `read` too"],
        );
        let file = "template = [{ text = 'a', to = 'b' }]";
        check(&format!("uses = ['db']\nreload = 'HUP'\n{file}"), expect!["ok"]);
        check(
            &format!("reload = 'HUP'\n{file}"),
            expect!["`service.web.reload` is for files that change: it needs `uses` and a template"],
        );
        let text = format!("[[service]]\nname = 'web'\ncommand = ['x']\nuses = ['db']\nreload = 'HUP'\n{file}");
        let mut document = parse(&text, Format::Toml).unwrap();
        document.services[0].reload = Some(crate::spec::StopSignal::Term);
        let problem = document.validate().unwrap_err().to_string();
        assert!(problem.ends_with("is \"TERM\", which ends programs: write HUP, USR1 or USR2"), "{problem}");
    }

    #[test]
    fn an_environment_variable_has_a_sane_name() {
        check(
            "env = { '1A' = 'x' }",
            expect![[r#"`service.web.env` has the name "1A": use letters, digits and _, not beginning with a digit"#]],
        );
        check(
            "env = { 'A=B' = 'x' }",
            expect![[r#"`service.web.env` has the name "A=B": use letters, digits and _, not beginning with a digit"#]],
        );
        check(
            "env = { '' = 'x' }",
            expect![[r#"`service.web.env` has the name "": use letters, digits and _, not beginning with a digit"#]],
        );
    }

    #[test]
    fn a_port_name_is_a_plain_word_and_a_number_belongs_to_one_port() {
        check(
            "ports = { HTTP = 'auto' }",
            expect![[r#"`service.web.ports` has the name "HTTP": use 1 to 63 of a-z, 0-9 and -"#]],
        );
        check("ports = { a = 80, b = 80 }", expect!["`service.web.ports.b` is 80, and so is `a`"]);
    }

    #[test]
    fn an_update_says_nothing_that_it_could_not_do() {
        check("update = { batch = '25%', canary = 1, promote = 'manual', rollback = false }", expect!["ok"]);
        check(
            "mode = 'singleton'\nupdate = { order = 'start-first' }",
            expect![[r#"`service.web.update.order` is "start-first", and the service runs once: leave it out"#]],
        );
        check(
            "ports = { http = 80 }\nupdate = { order = 'start-first' }",
            expect![[r#"`service.web.update.order` is "start-first", and the service has a fixed port: leave it out"#]],
        );
        check(
            "update = { promote = 'manual' }",
            expect![[r#"`service.web.update.promote` is "manual", and there are no canaries: write canary = 1"#]],
        );
        check(
            "update = { healthy_within = '500ms' }",
            expect!["`service.web.update.healthy_within` is 500ms; it must be 1s to 1h"],
        );
    }

    #[test]
    fn the_grace_of_a_stop_is_bounded() {
        check("stop = { grace = '0s' }", expect!["ok"]);
        check("stop = { grace = '601s' }", expect!["`service.web.stop.grace` is 10m1s; it must be 0s to 10m"]);
    }

    #[test]
    fn what_goes_on_without_a_quorum_is_a_program_that_promises_no_time() {
        let keep = "mode = 'singleton'\nwithout_quorum = 'keep'";
        check(
            &format!("{keep}\ndriver = 'ocf'\nocf = {{ agent = 'heartbeat:Dummy' }}"),
            expect![[
                r#"`service.web.without_quorum` is "keep", and that is for programs: write driver = "process", or leave it out"#
            ]],
        );
        check(
            &format!("{keep}\ncommand = ['web']\nfailover = '20s'"),
            expect![[
                r#"`service.web.failover` promises a time, and with without_quorum = "keep" nobody takes over before somebody says that the server is dead: leave it out"#
            ]],
        );
    }

    #[test]
    fn a_vip_is_for_what_runs_once_and_belongs_to_one_service() {
        let once = |lines: &str, expected: Expect| check(&format!("mode = 'singleton'\n{lines}"), expected);
        once("vip = '10.0.0.9/24'", expect!["ok"]);
        once("vip = '2001:db8::9/64 on eth1'\nfailover = '10s'", expect!["ok"]);
        check(
            "vip = '10.0.0.9/24'",
            expect![[r#"`service.web.vip` is for services that run once: write mode = "singleton", or leave it out"#]],
        );
        once(
            "vip = '10.0.0.9/24'\nunsafe_fast = true\nfailover = '9s'",
            expect!["`service.web.vip` needs a failover time of 10s at the least"],
        );
        check(
            "command = ['web']\nmode = 'singleton'\nwithout_quorum = 'keep'\nvip = '10.0.0.9/24'",
            expect![[
                r#"`service.web.vip` ends with the copy's lease, and without_quorum = "keep" goes on without one: leave out either"#
            ]],
        );
        once(
            "command = ['x']\nvip = '10.0.0.9/24'\n[[service]]\nname = 'api'\ncommand = ['x']\nmode = 'singleton'\nvip = '10.0.0.9/16'",
            expect!["`service.api.vip` is 10.0.0.9, and so is that of `web`"],
        );
    }

    #[test]
    fn a_name_is_used_once() {
        check("command = ['x']\n[[service]]\nname = 'web'\ncommand = ['x']", expect!["`service.web` is there twice"]);
    }

    #[test]
    fn a_document_has_a_service() {
        for text in ["", "[[route]]\nservice = 'web'"] {
            let refusal = parse(text, Format::Toml).unwrap().validate().unwrap_err();
            assert_eq!(refusal.to_string(), "`service` is missing: a spec has at least one [[service]]");
        }
    }

    #[test]
    fn a_route_has_one_sane_spelling() {
        let route = |line: &str, expected: Expect| check(&format!("[[route]]\nservice = 'web'\n{line}"), expected);
        route(
            "listen = ':080'",
            expect![[r#"`route.web.listen` is ":080"; write "default" or ":PORT", like ":8080""#]],
        );
        route("listen = ':0'", expect![[r#"`route.web.listen` is ":0"; write "default" or ":PORT", like ":8080""#]]);
        route(
            "listen = '8080'",
            expect![[r#"`route.web.listen` is "8080"; write "default" or ":PORT", like ":8080""#]],
        );
        route(
            "host = 'Example.org'",
            expect![[r#"`route.web.host` is "Example.org"; write a host name in lower case without a port, or "*""#]],
        );
        route(
            "host = 'example.org:80'",
            expect![[
                r#"`route.web.host` is "example.org:80"; write a host name in lower case without a port, or "*""#
            ]],
        );
        route(
            "host = ''",
            expect![[r#"`route.web.host` is ""; write a host name in lower case without a port, or "*""#]],
        );
        route("path = 'api'", expect![[r#"`route.web.path` is "api"; it must begin with /"#]]);
        route(
            "path = '/api/'",
            expect![[r#"`route.web.path` is "/api/"; leave out the / at its end, prefixes match whole segments"#]],
        );
        route(
            "path = '/a/../b'",
            expect![[r#"`route.web.path` is "/a/../b"; it must not have empty, . or .. segments"#]],
        );
        route(
            "path = '/a b'",
            expect![[r#"`route.web.path` is "/a b"; write spaces, # and letters beyond ASCII as %XX"#]],
        );
        route("path = '/a?b'", expect![[r#"`route.web.path` is "/a?b"; a route's path has no query"#]]);
    }

    #[test]
    fn two_equal_routes_are_refused() {
        check(
            "[[route]]\nservice = 'web'\n[[route]]\nservice = 'web'\npath = '/'",
            expect!["`route.web` is there twice: */ on default"],
        );
    }
}
