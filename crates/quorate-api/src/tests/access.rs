//! Who is let in, and for what.

use super::*;
use crate::access::{Peer, password};
use crate::view::Problem;
use quorate_model::access::AccessCommand;
use quorate_model::access::audit::verify;
use quorate_model::access::name::{ApiTokenId, Digest, UserName};
use quorate_model::access::policy::Permission;
use quorate_model::secret::Secret;
use std::fmt::Write as _;

const PASSWORD: &str = "correct horse battery";

/// One hash for all tests: they are slow on purpose.
fn phc() -> &'static str {
    static PHC: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| password::hash_password(&Secret::new(PASSWORD.to_owned())));
    &PHC
}

/// A cluster that wants to know who asks, with these users, one role each.
struct Guarded {
    fake: Fake,
    service: TowerToHyperService<Router>,
    from: Peer,
}

impl Guarded {
    fn new(users: &[(&str, &str)]) -> Guarded {
        Guarded::with(users, ApiOptions { node_name: "n1".into(), ..ApiOptions::default() })
    }

    fn with(users: &[(&str, &str)], options: ApiOptions) -> Guarded {
        let fake = Fake::new();
        let service = TowerToHyperService::new(router(fake.clone(), options));
        let guarded = Guarded { fake, service, from: Peer::tcp("192.0.2.1".parse().unwrap()) };
        for (name, role) in users {
            let (user, roles) = (UserName::new(name).unwrap(), [role.parse().unwrap()].into());
            guarded.decide(AccessCommand::CreateUser { user, password: phc().into(), roles });
        }
        guarded
    }

    fn decide(&self, command: AccessCommand) {
        let index = self.fake.set(|state| {
            state.committed += 1;
            LogIndex(state.committed)
        });
        self.fake.about_access(index, &Command::Access(command), None).unwrap();
    }

    /// A session without the slow way to it; the header that carries it.
    fn session(&self, user: &str) -> String {
        let text = format!("qs_{user}");
        self.decide(AccessCommand::OpenSession {
            session: Digest::of(text.as_bytes()),
            user: UserName::new(user).unwrap(),
            verified: Digest::of(phc().as_bytes()),
            source: "192.0.2.1".into(),
        });
        format!("Bearer {text}")
    }

    fn token(&self, id: &str, user: &str, dangerous: bool) -> String {
        self.decide(AccessCommand::CreateToken {
            token: ApiTokenId::new(id).unwrap(),
            hash: Digest::of(b"secret"),
            user: UserName::new(user).unwrap(),
            label: String::new(),
            scopes: Permission::ALL.iter().copied().collect(),
            dangerous,
            lasts_us: 60_000_000,
        });
        format!("Bearer qt_{id}_secret")
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &Json) -> Response<Body> {
        let mut request = Request::builder().method(method).uri(path).extension(self.from);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        self.service.call(request.body(body).unwrap()).await.unwrap()
    }

    /// Status and code, or the answer itself when it is a success.
    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Json) -> Result<Json, String> {
        let response = self.send(method, path, headers, &body).await;
        let status = response.status();
        let text = text(response).await;
        if status.is_success() {
            return Ok(serde_json::from_str(&text).unwrap_or(Json::Null));
        }
        let problem: Problem = serde_json::from_str(&text).unwrap();
        assert!(!problem.fix.is_empty(), "{text}");
        Err(format!("{} {}", status.as_u16(), problem.code))
    }

    async fn log_in(&self, user: &str, password: &str) -> Result<Json, String> {
        self.ask("POST", "/v1/login", &[], json!({ "user": user, "password": password, "token": true })).await
    }

    async fn confirm(&self, as_user: &str, operation: &str, target: &str) -> Result<String, String> {
        let body = json!({ "password": PASSWORD, "operation": operation, "target": target });
        let answer = self.ask("POST", "/v1/confirm", &[("authorization", as_user)], body).await?;
        Ok(answer["confirmation"].as_str().unwrap().to_owned())
    }
}

fn refused(code: &str) -> Result<Json, String> {
    Err(code.to_owned())
}

/// What a request must carry for its route to get as far as asking for a confirmation.
fn body_of(method: &str, path: &str) -> Json {
    match (method, path) {
        ("POST", "/v1/raft/transfer") => json!({ "node": "n2" }),
        ("POST", "/v1/managers/stop" | "/v1/managers/start") => json!({ "nodes": ["n2"] }),
        ("POST", "/v1/managers/restart") => json!({ "node": "n2" }),
        ("PUT", "/v1/managers/rule") => json!({ "requires": null }),
        ("POST", "/v1/settings") => json!({ "set": { "failover": "31s" } }),
        ("PUT", "/v1/ha") => json!({ "enabled": true }),
        ("PUT", "/v1/nodes/{node}/roles") => json!({ "roles": ["worker"] }),
        ("PUT", "/v1/nodes/{node}/vote") => json!({ "vote": "never" }),
        ("POST", "/v1/drills") => json!({ "node": "n2" }),
        ("POST", "/v1/users") => json!({ "name": "new" }),
        ("POST", "/v1/first-admin") => json!({ "name": "new" }),
        ("PUT", "/v1/users/{name}/password") => json!({}),
        ("POST", "/v1/roles") => json!({ "name": "new", "from": "viewer" }),
        ("POST", "/v1/me/tokens" | "/v1/users/{name}/tokens") => json!({ "scopes": [] }),
        _ => Json::Null,
    }
}

/// The matrix is part of the documentation: whoever changes what a role may do changes that file.
#[tokio::test]
async fn every_role_may_do_what_the_matrix_says_and_nothing_else() {
    let roles = ["viewer", "operator", "deployer", "integration", "maintainer", "auditor", "admin"];
    let guarded = Guarded::new(&roles.map(|role| (role, role)));
    let mut columns: Vec<(String, Option<String>)> = vec![("nobody".into(), None)];
    columns.extend(roles.iter().map(|role| ((*role).to_owned(), Some(guarded.session(role)))));
    columns.push(("token".into(), Some(guarded.token("tame", "admin", false))));
    columns.push(("dangerous".into(), Some(guarded.token("wild", "admin", true))));
    let document: Json = serde_json::from_str(crate::openapi_document()).unwrap();
    let routes = native::<Fake>();
    let mut table = format!("{:<52} {:<18}", "route", "operation");
    columns.iter().for_each(|(name, _)| write!(table, " {name:<11}").unwrap());
    table = format!("{}\n", table.trim_end());
    for (path, methods) in document["paths"].as_object().unwrap() {
        let route = routes.iter().find(|route| route.path == path).unwrap_or_else(|| panic!("{path} is not served"));
        for (method, _) in methods.as_object().unwrap() {
            let method = method.to_uppercase();
            let declared = route.methods.iter().find(|(known, ..)| known.as_str() == method);
            let (_, operation, _) = declared.unwrap_or_else(|| panic!("{method} {path} declares no operation"));
            let mut line = format!("{:<52} {:<18}", format!("{method:<6} {path}"), operation.word());
            for (name, credential) in &columns {
                // Whatever this does must not change what comes after: names that nobody has, unless nothing
                // can happen for want of a confirmation.
                let asks = operation.is_dangerous() && name != "dangerous";
                let node = if asks { "n2" } else { "node" };
                let uri = path.replace("{permission}", "log-read").replace("{node}", node).replace(['{', '}'], "");
                let headers: Vec<(&str, &str)> =
                    credential.iter().map(|credential| ("authorization", credential.as_str())).collect();
                let response = guarded.send(&method, &uri, &headers, &body_of(&method, path)).await;
                let status = response.status().as_u16();
                let code = match status {
                    401 | 403 => {
                        let problem: Problem = serde_json::from_str(&text(response).await).unwrap();
                        problem.code
                    }
                    _ => String::new(),
                };
                let word = match code.as_str() {
                    "login-needed" => "log in",
                    "not-allowed" => "-",
                    "confirmation-needed" => "confirm",
                    _ => "yes",
                };
                write!(line, " {word:<11}").unwrap();
                if operation.word() == "log-out" {
                    // The session is over; the next line needs it.
                    if let Some(role) = roles.iter().find(|role| *credential == Some(format!("Bearer qs_{role}"))) {
                        guarded.session(role);
                    }
                }
            }
            writeln!(table, "{}", line.trim_end()).unwrap();
        }
    }
    expect_file!["../../../../docs/reference/access-matrix.txt"].assert_eq(&table);
}

#[tokio::test]
async fn without_a_login_there_is_health_and_the_login_page() {
    let guarded = Guarded::new(&[("admin", "admin")]);
    for path in ["/v1/health", "/v1/active", "/ui/", "/openapi.json"] {
        assert_eq!(guarded.send("GET", path, &[], &Json::Null).await.status(), 200, "{path}");
    }
    assert_eq!(guarded.ask("GET", "/v1/status", &[], Json::Null).await, refused("401 login-needed"));
    assert_eq!(guarded.ask("POST", "/v1/db/exec", &[], json!({"sql": "SELECT 1"})).await, refused("401 login-needed"));
    assert_eq!(guarded.ask("POST", "/db/execute", &[], json!(["SELECT 1"])).await, refused("401 login-needed"));
    for wrong in ["Bearer qs_nonsense", "Bearer qt_nonsense", "Bearer qt_a_b", "Bearer nonsense"] {
        let answer = guarded.ask("GET", "/v1/status", &[("authorization", wrong)], Json::Null).await;
        assert!(
            matches!(answer.as_ref().map_err(String::as_str), Err("401 wrong-token" | "401 session-over")),
            "{answer:?}"
        );
    }
    let stale = [("cookie", "quorate_session=qs_old")];
    assert_eq!(guarded.ask("GET", "/v1/status", &stale, Json::Null).await, refused("401 session-over"));
    // And it does not keep anybody from logging in again.
    let login = json!({ "user": "admin", "password": PASSWORD });
    assert!(guarded.ask("POST", "/v1/login", &stale, login).await.is_ok());
}

#[tokio::test]
async fn a_login_gives_a_cookie_that_a_browser_of_our_origin_can_use() {
    for (tls, name, end) in
        [(false, "quorate_session", "SameSite=Strict"), (true, "__Host-quorate", "SameSite=Strict; Secure")]
    {
        let guarded = Guarded::with(&[("admin", "admin")], ApiOptions { tls, ..ApiOptions::default() });
        let origin = if tls { "https://localhost" } else { "http://localhost" };
        let ours = [("host", "localhost"), ("origin", origin), ("sec-fetch-site", "same-origin")];
        let login = json!({ "user": "Admin", "password": PASSWORD });
        let response = guarded.send("POST", "/v1/login", &ours, &login).await;
        assert_eq!(response.status(), 200);
        let cookie = response.headers()["set-cookie"].to_str().unwrap().to_owned();
        assert!(
            cookie.starts_with(&format!("{name}=qs_")) && cookie.ends_with(&format!("; Path=/; HttpOnly; {end}")),
            "{cookie}"
        );
        let answer: Json = serde_json::from_str(&text(response).await).unwrap();
        assert!(answer.get("token").is_none() && answer["user"] == "admin", "{answer}");

        let cookie = cookie.split(';').next().unwrap().to_owned();
        let mine = [ours[0], ours[1], ours[2], ("cookie", cookie.as_str())];
        let me = guarded.ask("GET", "/v1/me", &mine, Json::Null).await.unwrap();
        assert_eq!((&me["who"], &me["session"]), (&json!("admin"), &answer["session"]));
        let scale = ("POST", "/v1/services/web/scale");
        assert!(guarded.ask(scale.0, scale.1, &mine, json!({"replicas": 3})).await.is_ok());
        let foreign = [ours[0], ("origin", "https://evil.example"), ("sec-fetch-site", "cross-site"), mine[3]];
        assert_eq!(
            guarded.ask(scale.0, scale.1, &foreign, json!({"replicas": 1})).await,
            refused("403 foreign-origin")
        );
        assert!(guarded.ask("POST", "/v1/logout", &mine, Json::Null).await.is_ok());
        assert_eq!(guarded.ask("GET", "/v1/me", &mine, Json::Null).await, refused("401 session-over"));
    }
}

#[tokio::test]
async fn unknown_users_and_wrong_passwords_get_one_answer_and_soon_have_to_wait() {
    let guarded = Guarded::new(&[("admin", "admin")]);
    for user in ["admin", "nobody", "not a name", "admin", "root"] {
        assert_eq!(guarded.log_in(user, "wrong").await, refused("401 wrong-credentials"), "{user}");
    }
    for user in ["admin", "nobody"] {
        assert_eq!(guarded.log_in(user, PASSWORD).await, refused("429 too-many-tries"), "{user}");
    }
    // From elsewhere the right password still works: this account was not tried five times.
    let elsewhere = Guarded { from: Peer::tcp("192.0.2.2".parse().unwrap()), ..guarded };
    assert!(elsewhere.log_in("admin", PASSWORD).await.is_ok());
}

#[tokio::test]
async fn a_disabled_user_gets_the_answer_of_an_unknown_one() {
    let guarded = Guarded::new(&[("admin", "admin"), ("bob", "viewer")]);
    let session = guarded.session("bob");
    guarded.decide(AccessCommand::DisableUser { user: UserName::new("bob").unwrap() });
    assert_eq!(guarded.log_in("bob", PASSWORD).await, refused("401 wrong-credentials"));
    let answer = guarded.ask("GET", "/v1/me", &[("authorization", &session)], Json::Null).await;
    assert_eq!(answer, refused("401 session-over"));
}

#[tokio::test]
async fn a_dangerous_act_takes_the_password_once_for_itself() {
    let guarded = Guarded::new(&[("admin", "admin"), ("bob", "viewer"), ("eve", "viewer")]);
    let admin = guarded.session("admin");
    let act = async |confirmation: &str, name: &str| {
        let headers = [("authorization", admin.as_str()), ("quorate-confirmation", confirmation)];
        guarded.ask("POST", &format!("/v1/users/{name}/disable"), &headers, Json::Null).await
    };
    let without = guarded.send("POST", "/v1/users/bob/disable", &[("authorization", &admin)], &Json::Null).await;
    let problem: Problem = serde_json::from_str(&text(without).await).unwrap();
    assert_eq!(problem.details, json!({ "operation": "user-disable", "target": "bob" }));
    assert_eq!(act("nonsense", "bob").await, refused("403 not-confirmed"));
    let confirmation = guarded.confirm(&admin, "user-disable", "bob").await.unwrap();
    assert_eq!(act(&confirmation, "eve").await, refused("403 not-confirmed"));
    assert_eq!(act(&confirmation, "bob").await.unwrap()["disabled"], true);
    assert_eq!(act(&confirmation, "bob").await, refused("403 not-confirmed"));

    // An act that is no command uses its confirmation up as well.
    let transfer = async |confirmation: &str| {
        let headers = [("authorization", admin.as_str()), ("quorate-confirmation", confirmation)];
        guarded.ask("POST", "/v1/raft/transfer", &headers, json!({ "node": "n2" })).await
    };
    let confirmation = guarded.confirm(&admin, "leader-transfer", "n2").await.unwrap();
    assert!(transfer(&confirmation).await.is_ok());
    assert_eq!(transfer(&confirmation).await, refused("403 not-confirmed"));
    // The password is tried there like at a login.
    let wrong = json!({ "password": "wrong", "operation": "user-remove", "target": "bob" });
    for _ in 0..5 {
        let answer = guarded.ask("POST", "/v1/confirm", &[("authorization", &admin)], wrong.clone()).await;
        assert_eq!(answer, refused("401 wrong-credentials"));
    }
    assert_eq!(guarded.confirm(&admin, "user-remove", "bob").await, Err("429 too-many-tries".into()));
}

#[tokio::test]
async fn users_are_made_changed_and_removed_and_the_audit_tells_all_of_it() {
    let guarded = Guarded { from: Peer::Root, ..Guarded::new(&[]) };
    let first = guarded.ask("POST", "/v1/first-admin", &[], json!({ "name": "admin" })).await.unwrap();
    let chosen = first[0]["password"].as_str().unwrap().to_owned();
    let again = guarded.ask("POST", "/v1/first-admin", &[], json!({ "name": "eve" })).await.unwrap();
    assert_eq!((again.as_array().unwrap().len(), again[0].get("password")), (1, None));
    let new = json!({ "name": "bob", "password": "a long enough one", "roles": ["viewer"] });
    guarded.ask("POST", "/v1/users", &[], new.clone()).await.unwrap();
    assert_eq!(guarded.ask("POST", "/v1/users", &[], new).await, refused("409 user-exists"));
    let weak = json!({ "name": "carl", "password": "carl" });
    assert_eq!(guarded.ask("POST", "/v1/users", &[], weak).await, refused("422 weak-password"));
    guarded.ask("PUT", "/v1/users/bob/roles/operator", &[], Json::Null).await.unwrap();
    assert_eq!(guarded.ask("PUT", "/v1/users/bob/roles/none", &[], Json::Null).await, refused("404 unknown-role"));
    assert_eq!(guarded.ask("DELETE", "/v1/users/admin", &[], Json::Null).await, refused("409 last-admin"));
    guarded.ask("POST", "/v1/roles", &[], json!({ "name": "inspector", "from": "auditor" })).await.unwrap();
    guarded.ask("PUT", "/v1/roles/inspector/permissions/log-read", &[], Json::Null).await.unwrap();
    let wrong = guarded.ask("PUT", "/v1/roles/inspector/permissions/nonsense", &[], Json::Null).await;
    assert_eq!(wrong, refused("422 invalid"));
    let set = guarded.ask("PUT", "/v1/users/bob/password", &[], json!({})).await.unwrap();
    assert!(set["password"].is_string());
    assert_eq!(guarded.ask("DELETE", "/v1/users/bob", &[], Json::Null).await.unwrap()["name"], "bob");

    let outside = Guarded { from: Peer::tcp("192.0.2.7".parse().unwrap()), ..guarded };
    let bearer = format!("Bearer {}", outside.log_in("admin", &chosen).await.unwrap()["token"].as_str().unwrap());
    let mine = [("authorization", bearer.as_str())];
    let made = {
        let body = json!({ "password": chosen, "operation": "own-token-create", "target": "admin" });
        let confirmed = outside.ask("POST", "/v1/confirm", &mine, body).await.unwrap();
        let headers = [mine[0], ("quorate-confirmation", confirmed["confirmation"].as_str().unwrap())];
        let body = json!({ "scopes": ["audit-read"], "label": "siem", "lasts": "1d" });
        outside.ask("POST", "/v1/me/tokens", &headers, body).await.unwrap()
    };
    let token = format!("Bearer {}", made["token"].as_str().unwrap());
    let program = [("authorization", token.as_str())];
    assert_eq!(outside.ask("GET", "/v1/users", &program, Json::Null).await, refused("403 not-allowed"));
    // Nobody waits for the trace of a refusal.
    let traced = async {
        while outside.fake.set(|state| state.audit.len()) < 15 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, traced).await.unwrap();
    let links: Vec<AuditLink> =
        serde_json::from_value(outside.ask("GET", "/v1/audit", &program, Json::Null).await.unwrap()).unwrap();
    let id = made["id"].as_str().unwrap();
    let told: String = links
        .iter()
        .map(|link| {
            let entry = &link.entry;
            format!("{} {} {} {}: {}\n", entry.who, entry.from, entry.what, entry.target, entry.outcome)
                .replace(id, "ID")
        })
        .collect();
    expect![[r#"
        root local user-create admin: done
        root local user-create eve: done
        root local user-create bob: done
        root local user-create bob: refused: there is a user `bob` already
        root local role-grant operator bob: done
        root local role-grant none bob: refused: there is no role `none`
        root local user-remove admin: refused: `admin` is the last admin that can log in
        root local role-clone inspector: done
        root local role-change add log-read inspector: done
        root local user-password bob: done
        root local user-remove bob: done
        admin 192.0.2.7 log-in : done
        admin 192.0.2.7 confirm own-token-create admin: done
        admin 192.0.2.7 own-token-create admin: done
        admin (token ID) 192.0.2.7 user-read : denied: this needs the permission user-read (not-allowed)
    "#]]
    .assert_eq(&told);
    let verdict = outside.ask("GET", "/v1/audit/verify", &program, Json::Null).await.unwrap();
    assert_eq!((&verdict["entries"], verdict.get("broken")), (&json!(15), None));
    let export = text(outside.send("GET", "/v1/audit/export", &program, &Json::Null).await).await;
    let exported: Vec<AuditLink> = export.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(verify(&exported, exported.last().unwrap().head()), Ok(()));
    // Nothing that opens anything is told again, or kept.
    let state: &AccessState = &outside.fake.set(|state| state.cluster.access.clone());
    let kept = format!("{state:?}");
    let everything = format!("{export}{kept}");
    for secret in [chosen.as_str(), &token[7..], token.rsplit('_').next().unwrap(), &bearer[7..], "a long enough one"] {
        assert!(!everything.contains(secret), "{secret}");
    }
    outside.ask("DELETE", &format!("/v1/me/tokens/{id}"), &mine, Json::Null).await.unwrap();
    assert_eq!(outside.ask("GET", "/v1/audit", &program, Json::Null).await, refused("401 wrong-token"));
}

#[tokio::test]
async fn ones_own_password_changes_with_the_old_one_and_ends_the_other_sessions() {
    let guarded = Guarded::new(&[("admin", "admin")]);
    let bearer = async |password: &str| {
        let answer = guarded.log_in("admin", password).await.unwrap();
        format!("Bearer {}", answer["token"].as_str().unwrap())
    };
    let (here, there) = (bearer(PASSWORD).await, bearer(PASSWORD).await);
    let change = async |old: &str, new: &str| {
        let body = json!({ "old": old, "new": new });
        guarded.ask("POST", "/v1/me/password", &[("authorization", &here)], body).await
    };
    assert_eq!(change("wrong", "another long one").await, refused("401 wrong-credentials"));
    assert_eq!(change(PASSWORD, "short").await, refused("422 weak-password"));
    change(PASSWORD, "another long one").await.unwrap();
    assert!(guarded.ask("GET", "/v1/me", &[("authorization", &here)], Json::Null).await.is_ok());
    let other = guarded.ask("GET", "/v1/me", &[("authorization", &there)], Json::Null).await;
    assert_eq!(other, refused("401 session-over"));
    assert_eq!(guarded.log_in("admin", PASSWORD).await, refused("401 wrong-credentials"));
    bearer("another long one").await;
}

#[tokio::test]
async fn a_user_sees_and_ends_the_own_sessions_and_nobody_elses() {
    let guarded = Guarded::new(&[("admin", "admin"), ("vera", "viewer")]);
    let [admin, vera] = ["admin", "vera"].map(|user| guarded.session(user));
    let (admin, vera) = ([("authorization", admin.as_str())], [("authorization", vera.as_str())]);
    let there = guarded.log_in("vera", PASSWORD).await.unwrap();
    let there = format!("Bearer {}", there["token"].as_str().unwrap());
    let there = [("authorization", there.as_str())];
    let all = guarded.ask("GET", "/v1/sessions", &admin, Json::Null).await.unwrap();
    let of = |user: &str| -> Vec<String> {
        let mine = all.as_array().unwrap().iter().filter(|one| one["user"] == user);
        mine.map(|one| one["id"].as_str().unwrap().to_owned()).collect()
    };
    let mine = guarded.ask("GET", "/v1/me/sessions", &vera, Json::Null).await.unwrap();
    let ids: Vec<&str> = mine.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!((ids, mine[0]["user"].as_str()), (of("vera").iter().map(String::as_str).collect(), Some("vera")));

    let foreign = format!("/v1/me/sessions/{}", of("admin")[0]);
    assert_eq!(guarded.ask("DELETE", &foreign, &vera, Json::Null).await, refused("404 unknown-session"));
    assert!(guarded.ask("GET", "/v1/me", &admin, Json::Null).await.is_ok());
    let other = guarded.ask("GET", "/v1/me", &there, Json::Null).await.unwrap();
    let other = format!("/v1/me/sessions/{}", other["session"].as_str().unwrap());
    assert!(guarded.ask("DELETE", &other, &vera, Json::Null).await.is_ok());
    assert_eq!(guarded.ask("GET", "/v1/me", &there, Json::Null).await, refused("401 session-over"));
    assert!(guarded.ask("GET", "/v1/me", &vera, Json::Null).await.is_ok());
}

#[tokio::test]
async fn the_addresses_of_the_nodes_are_told_to_a_page_of_somebody_who_is_logged_in() {
    let options = ApiOptions { tls: true, ..ApiOptions::default() };
    let guarded = Guarded::with(&[("admin", "admin")], options);
    guarded.fake.change(|overview| {
        overview.nodes[0].api = "https://192.0.2.1:7000".into();
        overview.nodes[1].api = "https://192.0.2.2:7000; script-src *".into();
    });
    let policy = async |headers: &[(&str, &str)]| {
        let page = guarded.send("GET", "/ui/nodes", headers, &Json::Null).await;
        assert_eq!(page.status(), 200);
        page.headers()["content-security-policy"].to_str().unwrap().to_owned()
    };
    guarded.session("admin");
    let known = policy(&[("cookie", "__Host-quorate=qs_admin")]).await;
    assert!(known.contains(" https://192.0.2.1:7000; base-uri") && !known.contains("script-src"), "{known}");
    for stranger in [&[][..], &[("cookie", "__Host-quorate=qs_other")]] {
        let policy = policy(stranger).await;
        assert!(!policy.contains("https:"), "{policy}");
    }
}

#[tokio::test]
async fn where_nobody_is_asked_a_session_still_is_what_it_is() {
    let options = ApiOptions { auth: AuthMode::Open, console_token: Some("secret".into()), ..ApiOptions::default() };
    let guarded = Guarded::with(&[("admin", "admin"), ("vera", "viewer")], options);
    assert!(guarded.ask("GET", "/v1/users", &[], Json::Null).await.is_ok());
    let vera = guarded.session("vera");
    let vera = [("authorization", vera.as_str())];
    assert_eq!(guarded.ask("GET", "/v1/users", &vera, Json::Null).await, refused("403 not-allowed"));
    let stale = [("cookie", "quorate_session=qs_old")];
    assert!(guarded.ask("GET", "/v1/users", &stale, Json::Null).await.is_ok());
    let scale = guarded.ask("POST", "/v1/services/web/scale", &stale, json!({"replicas": 1})).await;
    assert_eq!(scale, refused("401 session-over"));
}

#[tokio::test]
async fn a_secret_is_set_named_and_removed_and_its_value_is_told_to_nobody() {
    const VALUE: &str = "canary-5f1c07";
    let guarded = Guarded::new(&[("dan", "deployer"), ("vera", "viewer"), ("otto", "auditor")]);
    let [dan, vera, otto] = ["dan", "vera", "otto"].map(|user| guarded.session(user));
    let (dan, vera, otto) =
        ([("authorization", dan.as_str())], [("authorization", vera.as_str())], [("authorization", otto.as_str())]);
    let value = || Json::String(VALUE.into());
    let set = guarded.ask("PUT", "/v1/secrets/PG", &dan, value()).await.unwrap();
    assert_eq!((&set["name"], &set["version"], &set["key"]), (&json!("pg"), &json!(1), &json!(1)));
    let again = guarded.ask("PUT", "/v1/secrets/pg", &dan, value()).await.unwrap();
    assert_eq!(again["version"], 2);
    let listed = guarded.ask("GET", "/v1/secrets", &otto, Json::Null).await.unwrap();
    let shown = guarded.ask("GET", "/v1/secrets/pg", &dan, Json::Null).await.unwrap();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]), (1, &shown));

    assert_eq!(guarded.ask("GET", "/v1/secrets", &vera, Json::Null).await, refused("403 not-allowed"));
    assert_eq!(guarded.ask("PUT", "/v1/secrets/pg", &otto, value()).await, refused("403 not-allowed"));
    assert_eq!(guarded.ask("PUT", "/v1/secrets/a%20b", &dan, value()).await, refused("422 bad-secret-name"));
    assert_eq!(guarded.ask("PUT", "/v1/secrets/pg", &dan, Json::Null).await, refused("422 empty-secret"));
    let large = Json::String("x".repeat(64 << 10));
    assert_eq!(guarded.ask("PUT", "/v1/secrets/pg", &dan, large).await, refused("413 secret-too-large"));
    assert_eq!(guarded.ask("GET", "/v1/secrets/other", &dan, Json::Null).await, refused("404 unknown-secret"));
    // To remove one cannot be undone, so the password is asked for.
    assert_eq!(guarded.ask("DELETE", "/v1/secrets/pg", &dan, Json::Null).await, refused("403 confirmation-needed"));
    let confirmation = guarded.confirm(dan[0].1, "secret-remove", "pg").await.unwrap();
    let confirmed = [dan[0], ("quorate-confirmation", confirmation.as_str())];
    guarded.ask("DELETE", "/v1/secrets/pg", &confirmed, Json::Null).await.unwrap();
    assert_eq!(guarded.ask("GET", "/v1/secrets", &dan, Json::Null).await, Ok(json!([])));

    let (audit, everything) = guarded.fake.set(|state| {
        let lines: Vec<String> =
            state.audit.iter().map(|link| format!("{} {}", link.entry.what, link.entry.target)).collect();
        (lines, format!("{:?} {:?} {:?}", state.audit, state.cluster, state.proposals))
    });
    for line in ["secret-set pg", "secret-remove pg"] {
        assert!(audit.iter().any(|found| found == line), "{audit:?}");
    }
    let bytes: Vec<String> = VALUE.bytes().map(|byte| byte.to_string()).collect();
    assert!(!everything.contains(VALUE) && !everything.contains(&bytes.join(", ")));
}
