//! The agent's TLS: its key and certificate, and whose client certificates it believes.
//!
//! TLS 1.3 with ALPN `h2`, nothing else. Given no files the agent makes itself a key and a
//! certificate, which clients pin by the agent's Lease ([`super::announce`]). Given files it reads
//! them again when they change. A client certificate is never required, as users with a token have
//! none; one that is shown must be signed by an authority of the cluster's.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::sync::watch;

use crate::kube::leases;

/// How often files are looked at, at most. Only while connections come in.
const LOOK: Duration = Duration::from_secs(1);
/// The largest file that is read, in bytes.
const LARGEST: u64 = 1024 * 1024;
/// How clients and the agent name HTTP/2.
pub const ALPN: &[u8] = b"h2";

/// Where the agent's key and certificate come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Source {
    /// Made at start.
    #[default]
    SelfMade,
    /// Read from PEM files, again whenever they change.
    Files {
        /// The certificate, followed by those that lead to its authority.
        certificate: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
}

/// What connections are secured with. One for all listeners.
#[derive(Debug)]
pub struct Tls {
    provider: Arc<CryptoProvider>,
    source: Source,
    client_ca: Option<PathBuf>,
    state: Mutex<State>,
    certificate: watch::Sender<String>,
    /// Told whenever other authorities of client certificates are believed.
    believed: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    certified: Arc<CertifiedKey>,
    authorities: Option<Arc<RootCertStore>>,
    /// Made of the two.
    config: Arc<ServerConfig>,
    looked: Instant,
    /// What the files were when they were read, whatever came of it.
    identity_files: Vec<Stamp>,
    client_ca_file: Option<Stamp>,
}

/// What tells a file from a later one at the same path, also behind symbolic links that were
/// swapped.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

impl Tls {
    /// Makes or reads the certificate of the agent on `node`, which answers at `addresses`, and
    /// reads the authorities in `client_ca`, if that is given.
    ///
    /// # Errors
    /// If a file cannot be read or used, or no key can be made.
    pub fn new(
        node: &str,
        addresses: &[IpAddr],
        source: Source,
        client_ca: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let identity_files = source.stamps();
        let certified = match &source {
            Source::SelfMade => self_made(node, addresses, &provider)?,
            Source::Files { certificate, key } => from_files(certificate, key, &provider)?,
        };
        let client_ca_file = client_ca.as_deref().map(stamp);
        let authorities =
            client_ca.as_deref().map(|file| parse_authorities(&read(file)?)).transpose()?;
        let certified = Arc::new(certified);
        let config = server_config(&provider, &certified, authorities.as_ref())?;
        let certificate = watch::Sender::new(pem(&certified)?);
        let looked = Instant::now();
        let state =
            State { certified, authorities, config, looked, identity_files, client_ca_file };
        Ok(Self {
            provider,
            source,
            client_ca,
            state: Mutex::new(state),
            certificate,
            believed: watch::Sender::default(),
        })
    }

    /// The certificate that is served, PEM, and every later one.
    pub fn certificate(&self) -> watch::Receiver<String> {
        self.certificate.subscribe()
    }

    /// Changes whenever other authorities of client certificates are believed than those that open
    /// connections were asked about.
    pub fn believed(&self) -> watch::Receiver<()> {
        self.believed.subscribe()
    }

    /// Whether the authorities of client certificates were given as a file, not left to the
    /// cluster.
    pub fn has_client_ca_file(&self) -> bool {
        self.client_ca.is_some()
    }

    /// What the next connection is to be secured with.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.refresh();
        Arc::clone(&self.state().config)
    }

    /// Takes up files that have changed. Those that are broken are logged, and what was read before
    /// stays in use.
    pub fn refresh(&self) {
        let mut state = self.state();
        if state.looked.elapsed() < LOOK {
            return;
        }
        state.looked = Instant::now();
        if let Source::Files { certificate, key } = &self.source {
            let stamps = self.source.stamps();
            if stamps != state.identity_files {
                state.identity_files = stamps;
                match from_files(certificate, key, &self.provider)
                    .and_then(|certified| self.serve(&mut state, Arc::new(certified)))
                {
                    Ok(()) => {
                        tracing::info!(file = %certificate.display(), "serving a new TLS certificate");
                    }
                    Err(error) => {
                        tracing::error!(%error, "the new TLS certificate cannot be used, the old one stays");
                    }
                }
            }
        }
        if let Some(file) = &self.client_ca
            && state.client_ca_file != Some(stamp(file))
        {
            state.client_ca_file = Some(stamp(file));
            match read(file)
                .and_then(|text| parse_authorities(&text))
                .and_then(|authorities| self.believe(&mut state, Some(authorities)))
            {
                Ok(()) => {
                    tracing::info!(file = %file.display(), "new authorities of client certificates");
                }
                Err(error) => {
                    tracing::error!(%error, "the new authorities of client certificates cannot be used, the old ones stay");
                }
            }
        }
    }

    /// Believes client certificates that these authorities (PEM) have signed from now on. `None`:
    /// asks for none.
    ///
    /// # Errors
    /// If there is no usable certificate among them; the old ones stay.
    pub fn set_client_authorities(&self, authorities: Option<&str>) -> anyhow::Result<()> {
        let authorities = authorities.map(|text| parse_authorities(text.as_bytes())).transpose()?;
        let mut state = self.state();
        let subjects =
            |store: &Option<Arc<RootCertStore>>| store.as_ref().map(|store| store.roots.clone());
        if subjects(&state.authorities) == subjects(&authorities) {
            return Ok(());
        }
        self.believe(&mut state, authorities)
    }

    fn serve(&self, state: &mut State, certified: Arc<CertifiedKey>) -> anyhow::Result<()> {
        let text = pem(&certified)?;
        state.config = server_config(&self.provider, &certified, state.authorities.as_ref())?;
        state.certified = certified;
        self.certificate.send_replace(text);
        Ok(())
    }

    fn believe(
        &self,
        state: &mut State,
        authorities: Option<Arc<RootCertStore>>,
    ) -> anyhow::Result<()> {
        state.config = server_config(&self.provider, &state.certified, authorities.as_ref())?;
        state.authorities = authorities;
        self.believed.send_replace(());
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every step leaves it usable, so that a panic in between does no harm.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source {
    fn stamps(&self) -> Vec<Stamp> {
        match self {
            Self::SelfMade => Vec::new(),
            Self::Files { certificate, key } => vec![stamp(certificate), stamp(key)],
        }
    }
}

fn stamp(file: &Path) -> Stamp {
    let found = fs::metadata(file).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let size = fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?.len();
    if size > LARGEST {
        bail!("{} is larger than 1 MiB", file.display());
    }
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

fn self_made(
    node: &str,
    addresses: &[IpAddr],
    provider: &CryptoProvider,
) -> anyhow::Result<CertifiedKey> {
    let key = KeyPair::generate().context("cannot make a key")?;
    let mut names = vec![leases::server_name(node)];
    names.extend(addresses.iter().map(IpAddr::to_string));
    let mut certificate = CertificateParams::new(names).context("cannot make a certificate")?;
    certificate.distinguished_name.push(DnType::CommonName, "podsonde-agent");
    certificate.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = certificate.self_signed(&key).context("cannot make a certificate")?;
    let private = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    Ok(CertifiedKey::from_der(vec![certificate.der().clone()], private, provider)?)
}

fn from_files(
    certificate: &Path,
    key: &Path,
    provider: &CryptoProvider,
) -> anyhow::Result<CertifiedKey> {
    let chain = CertificateDer::pem_slice_iter(&read(certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("{} is not PEM", certificate.display()))?;
    if chain.is_empty() {
        bail!("{} holds no certificate", certificate.display());
    }
    let private = PrivateKeyDer::from_pem_slice(&read(key)?)
        .with_context(|| format!("{} holds no private key", key.display()))?;
    CertifiedKey::from_der(chain, private, provider).with_context(|| {
        format!(
            "the certificate in {} and the key in {} do not work",
            certificate.display(),
            key.display()
        )
    })
}

fn parse_authorities(text: &[u8]) -> anyhow::Result<Arc<RootCertStore>> {
    let mut authorities = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(text) {
        let certificate =
            certificate.context("the authorities of client certificates are not PEM")?;
        authorities
            .add(certificate)
            .context("an authority of client certificates cannot be used")?;
    }
    if authorities.is_empty() {
        bail!("there is no certificate among the authorities of client certificates");
    }
    Ok(Arc::new(authorities))
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    certified: &Arc<CertifiedKey>,
    authorities: Option<&Arc<RootCertStore>>,
) -> anyhow::Result<Arc<ServerConfig>> {
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = match authorities {
        Some(authorities) => {
            let roots = Arc::clone(authorities);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
            builder.with_client_cert_verifier(verifier.allow_unauthenticated().build()?)
        }
        None => builder.with_no_client_auth(),
    };
    let resolver = SingleCertAndKey::from(Arc::clone(certified));
    let mut config = builder.with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would carry a client's certificate over from when it was verified.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// The certificate itself, without those that lead to its authority: what clients pin.
fn pem(certified: &CertifiedKey) -> anyhow::Result<String> {
    let leaf = certified.cert.first().context("there is no certificate")?;
    let base64 = serde_json::to_value(k8s_openapi::ByteString(leaf.to_vec()))?;
    let base64 = base64.as_str().unwrap_or_default();
    let lines =
        base64.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned() + "\n");
    Ok(format!(
        "-----BEGIN CERTIFICATE-----\n{}-----END CERTIFICATE-----\n",
        lines.collect::<String>()
    ))
}
