//! A node's own key, made where it is used, and the request for a certificate for it.

use crate::pem;
use aws_lc_rs::error::Unspecified;
use rcgen::{CertificateParams, CertificateSigningRequestParams, DistinguishedName, KeyPair, PublicKeyData as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fmt;
use zeroize::Zeroizing;

/// A private key of ECDSA P-256. It never leaves the node that made it.
pub struct NodeKey(Zeroizing<KeyPair>);

/// No key could be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system gave no randomness.
    #[error("no key can be made")]
    Generate(#[source] rcgen::Error),
    #[error("it is not a private key in PEM")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// Another kind of key than ECDSA P-256, or damaged.
    #[error("it is not a key of ECDSA P-256")]
    Kind(#[source] rcgen::Error),
}

impl NodeKey {
    /// A new key from the system's randomness.
    ///
    /// # Errors
    /// [`KeyError::Generate`].
    pub fn generate() -> Result<NodeKey, KeyError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(KeyError::Generate)?;
        Ok(NodeKey(Zeroizing::new(key)))
    }

    /// Reads what [`to_pem`](Self::to_pem) wrote.
    ///
    /// # Errors
    /// [`KeyError::Pem`] or [`KeyError::Kind`].
    pub fn from_pem(text: &str) -> Result<NodeKey, KeyError> {
        let der = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(KeyError::Pem)?;
        let key = KeyPair::from_der_and_sign_algo(&der, &rcgen::PKCS_ECDSA_P256_SHA256).map_err(KeyError::Kind)?;
        Ok(NodeKey(Zeroizing::new(key)))
    }

    /// For a file that only the owner may read.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        pem::write("PRIVATE KEY", self.0.serialized_der())
    }

    /// The public half in DER (SubjectPublicKeyInfo).
    #[must_use]
    pub fn public(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// Asks for a certificate for this key. Its signature shows that the asker has the key.
    ///
    /// # Errors
    /// The crypto library could not sign.
    pub fn request(&self) -> Result<CertificateRequest, KeyError> {
        let mut params = CertificateParams::default();
        // Nothing else is asked for, because nothing else would be listened to.
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&*self.0).map_err(KeyError::Generate)?;
        Ok(CertificateRequest { der: request.der().to_vec(), public: self.public() })
    }

    pub(crate) fn pair(&self) -> &KeyPair {
        &self.0
    }

    pub(crate) fn der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(…)")
    }
}

/// A request for a certificate (PKCS #10) whose signature is good.
///
/// Of what it says only the public key counts: who it is for is decided by the cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct CertificateRequest {
    der: Vec<u8>,
    public: Vec<u8>,
}

/// The bytes are not a request that can be answered.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("it is not a signed request for a certificate")]
    Malformed(#[source] rcgen::Error),
    #[error("it is for another kind of key than ECDSA P-256")]
    Kind,
}

impl CertificateRequest {
    /// Reads a request and checks that it was signed with the key that it is for.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn from_der(der: &[u8]) -> Result<CertificateRequest, RequestError> {
        let request = CertificateSigningRequestDer::from(der);
        let parsed = CertificateSigningRequestParams::from_der(&request).map_err(RequestError::Malformed)?;
        if *parsed.public_key.algorithm() != rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(RequestError::Kind);
        }
        Ok(CertificateRequest { der: der.to_vec(), public: parsed.public_key.subject_public_key_info() })
    }

    #[must_use]
    pub fn as_der(&self) -> &[u8] {
        &self.der
    }

    /// The public key in DER (SubjectPublicKeyInfo).
    #[must_use]
    pub fn public(&self) -> &[u8] {
        &self.public
    }
}

impl fmt::Debug for CertificateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertificateRequest({} bytes)", self.der.len())
    }
}

/// Fills `bytes` from the system's randomness, by way of the crypto library's generator.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), Unspecified> {
    aws_lc_rs::rand::fill(bytes)
}
