//! The web console, compiled into the binary.

use crate::access::{AuthMode, wall_now};
use crate::backend::{Backend, Pages};
use crate::guard::{COOKIE, cookie, is_token};
use crate::problem::Failure;
use crate::request::Named;
use crate::server::Shared;
use axum::extract::State;
use axum::response::{IntoResponse as _, Redirect, Response};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use quorate_model::access::name::Digest;
use serde::Deserialize;
use std::sync::LazyLock;

/// Nothing but our own files, and never inside a frame. The page may look for another node when its
/// own is gone: on this machine, where the API may be plain HTTP, and at the addresses of the nodes.
/// Those are told only to who is let in: see [`is_known`].
fn policy<B: Backend>(app: &Shared<B>, headers: &HeaderMap) -> HeaderValue {
    let mut policy = "default-src 'self'; connect-src 'self' http://127.0.0.1:* http://localhost:*".to_owned();
    let overview = app.backend.overview().borrow().clone();
    let nodes = overview.nodes.iter().filter(|_| is_known(app, headers));
    for origin in nodes.filter_map(|node| secure_origin(&node.api)) {
        policy.push_str(" https://");
        policy.push_str(origin.as_str());
    }
    policy.push_str("; base-uri 'none'; form-action 'self'; frame-ancestors 'none'");
    HeaderValue::try_from(policy).expect("the authority of a URL is visible ASCII")
}

/// HOST:PORT of a URL over TLS. What could end the policy's list and begin another is no authority.
fn secure_origin(url: &str) -> Option<Authority> {
    url.strip_prefix("https://")?
        .trim_end_matches('/')
        .parse()
        .ok()
        .filter(|host: &Authority| !host.as_str().contains([';', ',', '\'', '*', '@']))
}

/// Whether the browser that asks for a page is logged in, or need not be.
fn is_known<B: Backend>(app: &Shared<B>, headers: &HeaderMap) -> bool {
    app.options.auth == AuthMode::Open
        || cookie(headers, app.options.session_cookie())
            .is_some_and(|session| app.access().session(Digest::of(session), wall_now()).is_some())
}

const FORBIDDEN: &str = "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Quorate: wrong token</title>\n\
    <h1>This token does not open the console</h1>\n\
    <p>The cluster has another token, or none. <code>quorate dev</code> prints the right address when it starts.</p>\n\
    <p><a href=\"/ui/\">Open the console without a token</a>: it shows everything and changes nothing.</p>\n</html>\n";

struct Asset {
    name: &'static str,
    content_type: &'static str,
    data: &'static [u8],
    etag: HeaderValue,
}

static ASSETS: LazyLock<[Asset; 4]> = LazyLock::new(|| {
    let asset = |name, content_type, data: &'static [u8]| {
        let etag = format!("\"{:032x}\"", xxhash_rust::xxh3::xxh3_128(data));
        Asset { name, content_type, data, etag: etag.try_into().expect("hexadecimal digits are visible ASCII") }
    };
    [
        asset("index.html", "text/html; charset=utf-8", include_bytes!("../console/index.html")),
        asset("app.js", "text/javascript; charset=utf-8", include_bytes!("../console/app.js")),
        asset("app.css", "text/css; charset=utf-8", include_bytes!("../console/app.css")),
        asset("favicon.svg", "image/svg+xml", include_bytes!("../console/favicon.svg")),
    ]
});

pub(crate) async fn root() -> Redirect {
    Redirect::temporary("/ui/")
}

#[derive(Debug, Deserialize)]
struct Token {
    t: Option<String>,
}

/// Where a page request goes instead, if this node is a passive one and the operator wants that.
/// While there is no Active node every page is shown here: it says so.
fn elsewhere<B: Backend>(app: &Shared<B>, uri: &Uri) -> Option<Response> {
    let overview = app.backend.overview().borrow().clone();
    let leader = overview.cluster.leader.as_deref().filter(|leader| *leader != overview.answered_by)?;
    let host = match app.backend.policy().pages {
        Pages::Own => return None,
        Pages::Active => overview.nodes.iter().find(|node| node.name == leader)?.api.clone(),
        Pages::Balancer(url) => url,
    };
    let page = uri.path_and_query().map_or("/ui/", |page| page.as_str());
    Some(Redirect::temporary(&format!("{}{page}", host.trim_end_matches('/'))).into_response())
}

/// The page itself; with `?t=TOKEN` the browser may change things from now on.
pub(crate) async fn index<B: Backend>(State(app): State<Shared<B>>, uri: Uri, headers: HeaderMap) -> Response {
    if let Some(elsewhere) = elsewhere(&app, &uri) {
        return elsewhere;
    }
    let token = axum::extract::Query::<Token>::try_from_uri(&uri).ok().and_then(|query| query.0.t);
    let Some(token) = token else { return send(&app, &ASSETS[0], &headers) };
    let given = HeaderValue::try_from(format!("{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict"));
    match given {
        Ok(given) if is_token(&app.options, token.as_bytes()) => {
            ([(header::SET_COOKIE, given)], Redirect::to("/ui/")).into_response()
        }
        _ => {
            let html = HeaderValue::from_static("text/html; charset=utf-8");
            let headers = [(header::CONTENT_TYPE, html), (header::CONTENT_SECURITY_POLICY, policy(&app, &headers))];
            (StatusCode::FORBIDDEN, headers, FORBIDDEN).into_response()
        }
    }
}

/// A file of the console. A path without a dot is a page of the console, which finds its way itself.
pub(crate) async fn asset<B: Backend>(
    State(app): State<Shared<B>>,
    Named(path): Named,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    match ASSETS.iter().find(|asset| asset.name == path) {
        Some(asset) => send(&app, asset, &headers),
        None if !path.contains('.') => elsewhere(&app, &uri).unwrap_or_else(|| send(&app, &ASSETS[0], &headers)),
        None => {
            let message = format!("the console has no file {path}");
            Failure::new(StatusCode::NOT_FOUND, "unknown-path", message, "the console begins at /ui/").into_response()
        }
    }
}

fn send<B: Backend>(app: &Shared<B>, asset: &'static Asset, headers: &HeaderMap) -> Response {
    let mut response = if has(headers, &asset.etag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, asset.content_type)], asset.data).into_response()
    };
    let out = response.headers_mut();
    out.insert(header::ETAG, asset.etag.clone());
    out.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    out.insert(header::CONTENT_SECURITY_POLICY, policy(app, headers));
    out.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    out.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// Whether the browser has this version already.
fn has(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(|tag| tag.trim().trim_start_matches("W/"))
        .any(|tag| tag == "*" || tag.as_bytes() == etag.as_bytes())
}
