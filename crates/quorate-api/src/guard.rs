//! Keeps web pages of other origins out of an API that listens on plain HTTP.
//!
//! A browser will send requests to 127.0.0.1 for any page that asks it to. Two things stop that:
//! a `Host` that is not ours is refused (DNS rebinding: a foreign name that suddenly resolves to
//! this machine), and a mutation that comes from a browser must come from our own console, which
//! has the token. Programs send neither `Origin` nor `Sec-Fetch-Site` and are not asked.

use crate::access::{AuthMode, Peer, is_ours as is_credential};
use crate::backend::Backend;
use crate::problem::Failure;
use crate::request::{REQUEST_ID, request_id};
use crate::server::{ApiOptions, Shared};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use std::net::IpAddr;

/// The cookie that carries the console's token.
pub(crate) const COOKIE: &str = "quorate_console";

/// Where a browser that has nothing yet gets a session.
const LOGIN: &str = "/v1/login";

/// Runs before every handler: refuses what must not pass, and gives each mutation its id.
pub(crate) async fn guard<B: Backend>(State(app): State<Shared<B>>, mut request: Request, next: Next) -> Response {
    if let Err(failure) = check(&app.options, &request) {
        return failure.into_response();
    }
    if let Some(failure) = away(&app.backend, &request) {
        return failure.into_response();
    }
    if is_safe(request.method()) {
        return next.run(request).await;
    }
    let id = match request_id(request.headers()) {
        Ok(id) => id,
        Err(failure) => return failure.into_response(),
    };
    request.extensions_mut().insert(id);
    let mut response = next.run(request).await;
    let mut buffer = [0; uuid::fmt::Hyphenated::LENGTH];
    if let Ok(value) = HeaderValue::from_str(id.0.hyphenated().encode_lower(&mut buffer)) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// A node that a drill has taken away answers nobody but its own machine's socket: a lost server would answer
/// nobody at all, and this way people know why.
fn away<B: Backend>(backend: &B, request: &Request) -> Option<Failure> {
    let left = backend.away()?;
    if matches!(request.extensions().get::<Peer>(), Some(Peer::Root)) {
        return None;
    }
    let message = format!("this node is away for a drill, for another {} s", left.as_secs() + 1);
    Some(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "away-for-drill", message, "ask another node of the cluster"))
}

pub(crate) fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

fn check<T>(options: &ApiOptions, request: &http::Request<T>) -> Result<(), Failure> {
    let headers = request.headers();
    let host = request.uri().authority().cloned().or_else(|| authority(headers));
    if headers.contains_key(header::HOST) && !host.as_ref().is_some_and(|host| is_ours(options, host)) {
        return Err(Failure::new(
            StatusCode::FORBIDDEN,
            "foreign-host",
            "the Host header names neither this machine's loopback nor an address of this node",
            "use the node's own address, or add the name to the hosts that it is configured for",
        ));
    }
    let bearer = bearer(headers);
    // Sessions and API tokens are looked up behind the guard, where it is known what they are for.
    if bearer.is_some_and(|token| !is_credential(token) && !is_token(options, token)) {
        return Err(Failure::new(
            StatusCode::UNAUTHORIZED,
            "wrong-token",
            "the bearer token is not the one of this cluster's console",
            "take the token from the console URL that `quorate dev` printed",
        ));
    }
    let fetch_site = headers.get("sec-fetch-site");
    if is_safe(request.method()) || (fetch_site.is_none() && !headers.contains_key(header::ORIGIN)) {
        return Ok(());
    }
    let same_site = fetch_site.is_none_or(|site| site == "same-origin");
    if !same_site || !host.is_some_and(|host| is_origin(headers, &host)) {
        return Err(Failure::new(
            StatusCode::FORBIDDEN,
            "foreign-origin",
            "a web page of another origin must not change this cluster",
            "use the console of this node, or a program instead of a web page",
        ));
    }
    // Where a login is asked for, the gate behind the guard asks for it.
    if bearer.is_some() || options.auth == AuthMode::Required || request.uri().path() == LOGIN {
        return Ok(());
    }
    let session = cookie(headers, options.session_cookie()).is_some();
    if session || cookie(headers, COOKIE).is_some_and(|token| is_token(options, token)) {
        return Ok(());
    }
    Err(Failure::new(
        StatusCode::FORBIDDEN,
        "console-token-needed",
        "a browser must carry the console token to change something",
        "open the console with the URL that `quorate dev` printed; it ends in ?t=TOKEN",
    ))
}

fn authority(headers: &HeaderMap) -> Option<Authority> {
    headers.get(header::HOST)?.to_str().ok()?.parse().ok()
}

fn is_ours(options: &ApiOptions, authority: &Authority) -> bool {
    let host = authority.host();
    if host.eq_ignore_ascii_case("localhost") || options.hosts.iter().any(|ours| host.eq_ignore_ascii_case(ours)) {
        return true;
    }
    let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() else { return false };
    // A literal address cannot be rebound; one that reached a wildcard listener is ours.
    address.is_loopback() || options.listen.is_some_and(|listen| listen.ip() == address || listen.ip().is_unspecified())
}

fn is_origin(headers: &HeaderMap, host: &Authority) -> bool {
    let Some(origin) = headers.get(header::ORIGIN).and_then(|value| value.to_str().ok()) else { return false };
    let (default_port, rest) = match origin.split_once("://") {
        Some(("http", rest)) => (80, rest),
        Some(("https", rest)) => (443, rest),
        _ => return false,
    };
    let Ok(origin) = rest.parse::<Authority>() else { return false };
    let port = |authority: &Authority| authority.port_u16().unwrap_or(default_port);
    origin.host().eq_ignore_ascii_case(host.host()) && port(&origin) == port(host)
}

/// The token of an `Authorization: Bearer` header. Other schemes belong to other facades.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

pub(crate) fn cookie<'a>(headers: &'a HeaderMap, wanted: &str) -> Option<&'a [u8]> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == wanted).then_some(value.as_bytes()))
}

/// Compares in a time that does not depend on where the two differ.
pub(crate) fn is_token(options: &ApiOptions, given: &[u8]) -> bool {
    let Some(ours) = options.console_token.as_deref().filter(|token| !token.is_empty()) else { return false };
    let ours = ours.as_bytes();
    ours.len() == given.len() && ours.iter().zip(given).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use std::fmt::Write as _;

    /// What `check` says to a request line with these headers, as a code.
    fn verdict(method: &str, headers: &[(&str, &str)]) -> String {
        let options = ApiOptions {
            console_token: Some("secret".into()),
            listen: Some("192.0.2.7:7000".parse().unwrap()),
            hosts: vec!["node-1.example".into()],
            auth: AuthMode::Open,
            ..ApiOptions::default()
        };
        let mut request = http::Request::builder().method(method).uri("/v1/specs");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match check(&options, &request.body(()).unwrap()) {
            Ok(()) => "pass".into(),
            Err(failure) => format!("{} {}", failure.status().as_u16(), failure.problem().code),
        }
    }

    #[test]
    fn only_our_own_names_reach_us() {
        for ours in ["localhost:7000", "127.0.0.1:7000", "127.8.0.1", "[::1]:7000", "192.0.2.7:7000", "Node-1.example"]
        {
            assert_eq!(verdict("GET", &[("host", ours)]), "pass", "{ours}");
        }
        for foreign in ["evil.example", "192.0.2.8:7000", "localhost.evil.example", "127.0.0.1.evil.example", "", "a b"]
        {
            assert_eq!(verdict("GET", &[("host", foreign)]), "403 foreign-host", "{foreign}");
        }
    }

    #[test]
    fn a_browser_changes_things_only_from_our_console_with_the_token() {
        let host = ("host", "127.0.0.1:7000");
        let ours = ("origin", "http://127.0.0.1:7000");
        let foreign = ("origin", "http://evil.example");
        let other_port = ("origin", "http://127.0.0.1:9999");
        let null = ("origin", "null");
        let same = ("sec-fetch-site", "same-origin");
        let cross = ("sec-fetch-site", "cross-site");
        let cookie = ("cookie", "a=b; quorate_console=secret");
        let wrong_cookie = ("cookie", "quorate_console=secreT");
        let bearer = ("authorization", "Bearer secret");
        let wrong_bearer = ("authorization", "bearer nothing");
        let basic = ("authorization", "Basic eDp5");
        let cases: &[(&str, &[(&str, &str)])] = &[
            ("program", &[]),
            ("program, token", &[bearer]),
            ("program, wrong token", &[wrong_bearer]),
            ("program, basic", &[basic]),
            ("ours, cookie", &[ours, same, cookie]),
            ("ours, cookie, old browser", &[ours, cookie]),
            ("ours, token", &[ours, same, bearer]),
            ("ours, nothing", &[ours, same]),
            ("ours, wrong cookie", &[ours, same, wrong_cookie]),
            ("ours, cookie, wrong token", &[ours, same, cookie, wrong_bearer]),
            ("no origin, cookie", &[same, cookie]),
            ("foreign, cookie", &[foreign, cross, cookie]),
            ("foreign, token", &[foreign, bearer]),
            ("other port, cookie", &[other_port, ("sec-fetch-site", "same-site"), cookie]),
            ("sandboxed, cookie", &[null, cross, cookie]),
            ("cross-site, our origin, cookie", &[ours, cross, cookie]),
        ];
        let mut table = String::new();
        for (name, headers) in cases {
            let headers: Vec<_> = headers.iter().copied().chain([host]).collect();
            writeln!(table, "{name}: post {}, get {}", verdict("POST", &headers), verdict("GET", &headers)).unwrap();
        }
        expect![[r#"
            program: post pass, get pass
            program, token: post pass, get pass
            program, wrong token: post 401 wrong-token, get 401 wrong-token
            program, basic: post pass, get pass
            ours, cookie: post pass, get pass
            ours, cookie, old browser: post pass, get pass
            ours, token: post pass, get pass
            ours, nothing: post 403 console-token-needed, get pass
            ours, wrong cookie: post 403 console-token-needed, get pass
            ours, cookie, wrong token: post 401 wrong-token, get 401 wrong-token
            no origin, cookie: post 403 foreign-origin, get pass
            foreign, cookie: post 403 foreign-origin, get pass
            foreign, token: post 403 foreign-origin, get pass
            other port, cookie: post 403 foreign-origin, get pass
            sandboxed, cookie: post 403 foreign-origin, get pass
            cross-site, our origin, cookie: post 403 foreign-origin, get pass
        "#]]
        .assert_eq(&table);
    }

    #[test]
    fn without_a_token_no_browser_changes_anything() {
        let request = http::Request::post("/v1/specs")
            .header("host", "localhost")
            .header("origin", "http://localhost")
            .header("cookie", "quorate_console=")
            .body(())
            .unwrap();
        let options = ApiOptions { auth: AuthMode::Open, ..ApiOptions::default() };
        let failure = check(&options, &request).unwrap_err();
        assert_eq!(failure.problem().code, "console-token-needed");
    }
}
