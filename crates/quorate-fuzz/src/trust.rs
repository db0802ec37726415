//! What strangers send before they are members: join tokens that somebody pasted, and requests for
//! certificates.

use quorate_trust::key::CertificateRequest;
use quorate_trust::token::JoinToken;

/// The first byte chooses: `t` is a token, anything else a request in DER.
///
/// # Panics
/// When a token can be written in two ways, or an error repeats a secret's text.
pub fn trust(data: &[u8]) -> bool {
    let Some((first, rest)) = data.split_first() else { return false };
    if *first != b't' {
        return CertificateRequest::from_der(rest).is_ok_and(|request| {
            assert_eq!(request.as_der(), rest);
            !request.public().is_empty()
        });
    }
    let Ok(text) = std::str::from_utf8(rest) else { return false };
    match text.parse::<JoinToken>() {
        Ok(token) => {
            assert_eq!(token.to_text(), text, "a token that was read is written in another way");
            true
        }
        Err(error) => {
            let (address, rest) = text.split_once('/').unwrap_or((text, ""));
            // An address that is wrong is shown, and somebody may have pasted the secret there too.
            let secret = rest.split('/').next().filter(|secret| secret.len() > 20 && !address.contains(secret));
            let shown = error.to_string();
            assert!(!secret.is_some_and(|secret| shown.contains(secret)), "an error tells the secret: {shown}");
            false
        }
    }
}
