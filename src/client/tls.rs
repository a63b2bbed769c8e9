//! TLS to an agent: TLS 1.3 with ALPN `h2`. The agent's certificate must be pinned, or signed by a
//! given authority or by one that the system trusts.

use std::{
    fmt, io,
    path::Path,
    pin::Pin,
    str::FromStr,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use rustls::{
    AlertDescription, CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct,
    RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{error::Error, reason::Reason};

/// The SHA-256 of a certificate in DER.
///
/// Written as 64 hexadecimal digits, with or without colons between the bytes, as `openssl x509
/// -fingerprint -sha256` prints it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let suite = aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13()?;
        let hash = suite.common.hash_provider.hash(certificate);
        hash.as_ref().try_into().ok().map(Self)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
        let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
        let bytes =
            bytes.filter(|_| is_hex && digits.len() == 64).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| {
            let shown: String = text.chars().take(100).collect();
            let message =
                format!("{shown:?} is not a SHA-256 fingerprint: write 64 hexadecimal digits");
            Error::new(Reason::FingerprintInvalid, message)
        })
    }
}

/// Which certificate the client accepts from an agent.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Exactly this certificate.
    Pin(CertificateDer<'static>),
    /// Exactly the certificate with this fingerprint.
    Fingerprint(Fingerprint),
    /// A certificate that an authority in this store has signed for the name in the endpoint.
    Authorities(Arc<RootCertStore>),
}

impl Trust {
    /// Accepts only this certificate, which is PEM as in an agent's Lease.
    pub(super) fn pin(pem: &str) -> Result<Self, Error> {
        CertificateDer::from_pem_slice(pem.as_bytes()).map(Self::Pin).map_err(|error| {
            Error::new(
                Reason::Protocol,
                format!("the agent's Lease holds no certificate that can be read: {error}"),
            )
        })
    }

    /// Accepts certificates that the authorities in a PEM file have signed.
    ///
    /// # Errors
    /// `CERTIFICATE_FILE_INVALID`.
    pub fn authorities(file: &Path) -> Result<Self, Error> {
        let invalid = |why: &dyn fmt::Display| {
            let message = format!("cannot use the authorities in {}: {why}", file.display());
            Error::new(Reason::CertificateFileInvalid, message)
        };
        let mut store = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(file).map_err(|error| invalid(&error))? {
            let certificate = certificate.map_err(|error| invalid(&error))?;
            store.add(certificate).map_err(|error| invalid(&error))?;
        }
        if store.is_empty() {
            return Err(invalid(&"there is no certificate in it"));
        }
        Ok(Self::Authorities(Arc::new(store)))
    }

    /// Accepts certificates that the system's trusted authorities have signed.
    pub(super) fn system() -> Self {
        let mut store = RootCertStore::empty();
        // Skips authorities that rustls cannot parse. If none is left, the handshake fails.
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Self::Authorities(Arc::new(store))
    }
}

/// A client certificate and its key, with which agents authenticate the caller.
#[derive(Clone)]
pub struct ClientIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
}

impl ClientIdentity {
    /// Reads PEM: the certificate, followed by its chain, and the private key.
    ///
    /// # Errors
    /// `KUBECONFIG_INVALID`, because the kubeconfig holds the certificate.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, Error> {
        let invalid = |what: &str, why: &dyn fmt::Display| {
            Error::new(Reason::KubeconfigInvalid, format!("cannot use the client {what}: {why}"))
        };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<_, _>>()
            .map_err(|error| invalid("certificate", &error))?;
        if chain.is_empty() {
            return Err(invalid("certificate", &"it is empty"));
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| invalid("key", &error))?;
        Ok(Self { chain, key: Arc::new(key) })
    }
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity").finish_non_exhaustive()
    }
}

/// The TLS configuration for the connections to one agent.
#[derive(Clone)]
pub(super) struct Secured {
    connector: TlsConnector,
    name: ServerName<'static>,
    /// How messages name the agent.
    to: String,
}

impl Secured {
    /// `name` is the name, or the IP address, that the agent's certificate must hold.
    pub(super) fn new(
        trust: &Trust,
        identity: Option<&ClientIdentity>,
        name: &str,
        to: &str,
    ) -> Result<Self, Error> {
        let unusable = |error: rustls::Error| {
            Error::new(Reason::KubeconfigInvalid, format!("cannot set up TLS: {error}"))
        };
        let mut provider = aws_lc_rs::default_provider();
        // AES-128 goes first because it is faster than AES-256, which is rustls's first choice. The
        // agent follows the client's order.
        provider
            .cipher_suites
            .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
        let provider = Arc::new(provider);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?;
        let exact = |expected| Arc::new(Exact { expected, provider: Arc::clone(&provider) });
        let verifier: Arc<dyn ServerCertVerifier> = match trust {
            Trust::Pin(certificate) => exact(Expected::Certificate(certificate.clone())),
            Trust::Fingerprint(fingerprint) => exact(Expected::Fingerprint(*fingerprint)),
            Trust::Authorities(store) => {
                let verifier = WebPkiServerVerifier::builder_with_provider(
                    Arc::clone(store),
                    Arc::clone(&provider),
                );
                verifier.build().map_err(|_| {
                    Error::new(
                        Reason::CertificateUntrusted,
                        format!(
                            "cannot verify the agent at {to}: this system trusts no authority \
                             at all"
                        ),
                    )
                })?
            }
        };
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let mut config = match identity {
            Some(ClientIdentity { chain, key }) => {
                builder.with_client_auth_cert(chain.clone(), key.clone_key()).map_err(unusable)?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        // A pinned certificate does not depend on the name, so an invalid name can be replaced.
        let name =
            ServerName::try_from(name.trim_start_matches('[').trim_end_matches(']').to_owned())
                .or_else(|_| ServerName::try_from("agent.podsonde.dev"))
                .map_err(|error| Error::new(Reason::EndpointInvalid, error.to_string()))?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name, to: to.to_owned() })
    }

    /// Performs the handshake. If the agent later refuses the client's certificate, the stream
    /// stores the error in `refusal`.
    pub(super) async fn handshake<S>(
        &self,
        stream: S,
        refusal: Arc<OnceLock<Error>>,
    ) -> Result<TlsIo<S>, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match self.connector.connect(self.name.clone(), stream).await {
            Ok(stream) => Ok(TlsIo { stream, to: self.to.clone(), refusal }),
            Err(error) => Err(explain(&error, &self.to)),
        }
    }
}

/// Explains a failure below HTTP/2 to a person.
fn explain(error: &io::Error, to: &str) -> Error {
    use rustls::Error as Tls;
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>());
    let (reason, why) = match tls {
        Some(Tls::InvalidCertificate(CertificateError::ApplicationVerificationFailure)) => (
            Reason::CertificateMismatch,
            "it shows another certificate than the one it is known by".to_owned(),
        ),
        Some(Tls::InvalidCertificate(why)) => {
            (Reason::CertificateUntrusted, format!("its certificate is not trusted: {why}"))
        }
        Some(Tls::AlertReceived(alert)) if is_about_certificate(*alert) => (
            Reason::ClientCertificateRefused,
            format!("it refuses the client certificate: {alert:?}"),
        ),
        Some(Tls::InvalidMessage(_)) => {
            (Reason::AgentUnreachable, "it does not speak TLS".to_owned())
        }
        Some(other) => (Reason::AgentUnreachable, format!("TLS fails: {other}")),
        None => (Reason::AgentUnreachable, format!("TLS fails: {error}")),
    };
    Error::new(reason, format!("cannot connect to the agent at {to}: {why}"))
}

fn is_about_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::DecryptError
    )
}

#[derive(Debug)]
enum Expected {
    Certificate(CertificateDer<'static>),
    Fingerprint(Fingerprint),
}

/// Accepts one certificate, whatever its name, dates and issuer, if the peer has its key.
#[derive(Debug)]
struct Exact {
    expected: Expected,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Exact {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let matches = match &self.expected {
            Expected::Certificate(expected) => shown == expected,
            Expected::Fingerprint(expected) => Fingerprint::of(shown).as_ref() == Some(expected),
        };
        match matches {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A TLS stream. In TLS 1.3 a client learns only after its handshake that its certificate was
/// refused. The layers above do not pass this alert on, so the stream stores it.
pub(super) struct TlsIo<S> {
    stream: TlsStream<S>,
    to: String,
    refusal: Arc<OnceLock<Error>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Poll::Ready(Err(error)) = &read {
            let error = explain(error, &self.to);
            if error.reason == Reason::ClientCertificateRefused {
                self.refusal.get_or_init(|| error);
            }
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_as_openssl_writes_them() {
        let plain = "0f".repeat(32);
        let colons = vec!["0F"; 32].join(":");
        let read: Fingerprint = plain.parse().unwrap();
        assert_eq!(colons.parse::<Fingerprint>().unwrap(), read);
        assert_eq!(read.to_string(), plain);
        for bad in ["", "0f", &"0g".repeat(32), &"0f".repeat(33), &"+f".repeat(32), &"é".repeat(32)]
        {
            assert_eq!(
                bad.parse::<Fingerprint>().unwrap_err().reason,
                Reason::FingerprintInvalid,
                "{bad}"
            );
        }
    }
}
