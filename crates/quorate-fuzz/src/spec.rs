//! Specs of services.

use quorate_model::access::name::ExternalName;
use quorate_model::external::{External, Injected};
use quorate_model::id::ReplicaId;
use quorate_model::spec::{self, Format, Placeholders, SpecDocument, expand};
use std::collections::BTreeMap;

/// The first byte chooses the format: `j` is JSON, anything else TOML.
///
/// # Panics
/// When a spec that is valid reads differently after it was written in either format, or has
/// a template that cannot be filled.
pub fn spec(data: &[u8]) -> bool {
    let Some((first, rest)) = data.split_first() else { return false };
    let format = if *first == b'j' { Format::Json } else { Format::Toml };
    let Ok(text) = std::str::from_utf8(rest) else { return false };
    let document = match spec::parse(text, format) {
        Ok(document) => document,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    for format in [Format::Toml, Format::Json] {
        let written = spec::render(&document, format);
        match spec::parse(&written, format) {
            Ok(again) => assert_eq!(again, document, "a spec changed when it was written as {format} and read"),
            Err(error) => panic!("a spec cannot be read that was written as {format}: {error}\n{written}"),
        }
    }
    let valid = document.validate().is_ok();
    fill(&document, valid);
    valid
}

fn external(name: &ExternalName) -> External {
    let external = serde_json::json!({ "name": name, "kind": "postgres", "hosts": ["h1"], "user": "joe" });
    serde_json::from_value(external).expect("a whole external")
}

/// What every launch does with the templates.
fn fill(document: &SpecDocument, valid: bool) {
    for service in &document.services {
        let ports: BTreeMap<String, u16> = service.ports.keys().map(|name| (name.clone(), 8080)).collect();
        let artifacts: Vec<(String, String)> =
            service.artifacts.iter().map(|artifact| (artifact.name.clone(), "/artifact".into())).collect();
        let secrets = service.secrets.iter().map(|name| (name.clone(), "{value}".into())).collect();
        let externals: Vec<External> = service.externals.iter().map(external).collect();
        let externals: Vec<Injected<'_>> =
            externals.iter().map(|external| Injected { external, password: Some("{pw}") }).collect();
        let values = Placeholders {
            ports: &ports,
            main_port: service.main_port(),
            replica: ReplicaId::from_u128(1),
            node: "n1",
            ordinal: 0,
            dir: "/work",
            artifacts: &artifacts,
            secrets: &secrets,
            externals: &externals,
        };
        for template in service.command.iter().chain(service.env.values()) {
            let filled = expand(template, &values);
            assert!(filled.is_ok() || !valid, "`{template}` was accepted and cannot be filled: {filled:?}");
        }
    }
}
