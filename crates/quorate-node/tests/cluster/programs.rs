//! Versions of the program that understand each other: what another one puts into the same messages.

use bytes::BytesMut;
use quorate_model::observed::NodeReport;
use quorate_node::wire::{Body, Status};
use serde_json::Value;

/// As what a node speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    This,
    /// It adds a field to every frame and to its reports, and says so.
    Newer,
    /// It does not know what was added to the reports since there are any.
    Older,
}

/// A frame's field 31, empty: a tag that this version does not know.
const UNKNOWN: [u8; 3] = [0xfa, 0x01, 0];

impl Program {
    /// What arrives where this node says `body`, after it was bytes.
    pub(crate) fn says(self, body: Body) -> Body {
        if self == Program::This {
            return body;
        }
        let body = match body {
            Body::Status(status) => Body::Status(self.reports(status)),
            body => body,
        };
        let mut bytes = BytesMut::new();
        body.encode_into(&mut bytes);
        if self == Program::Newer {
            bytes.extend_from_slice(&UNKNOWN);
            let length = u32::try_from(bytes.len() - 4).unwrap();
            bytes[..4].copy_from_slice(&length.to_le_bytes());
        }
        Body::take(&mut bytes).unwrap().unwrap()
    }

    fn reports(self, status: Status) -> Status {
        let mut report: Value = serde_json::from_slice(&status.report).unwrap();
        let fields = report.as_object_mut().unwrap();
        if self == Program::Newer {
            fields.insert("version".into(), "99.0.0".into());
            fields.insert("of_tomorrow".into(), serde_json::json!({ "a": [1] }));
        } else {
            ["version", "trust", "gateways"].iter().for_each(|field| drop(fields.remove(*field)));
        }
        Status { report: serde_json::to_vec(&report).unwrap().into(), ..status }
    }

    /// The version that its reports name.
    pub(crate) fn is_seen_in(self, report: &NodeReport) -> bool {
        match self {
            Program::This => report.version == env!("CARGO_PKG_VERSION"),
            Program::Newer => report.version == "99.0.0",
            Program::Older => report.version.is_empty(),
        }
    }
}
