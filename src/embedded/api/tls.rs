//! The server's certificate authority, which is new at every start.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tokio_rustls::TlsAcceptor;

/// A certificate authority, and the server's key with a certificate by that authority.
pub(crate) struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    acceptor: TlsAcceptor,
}

impl Authority {
    /// Makes an authority, and a certificate for a server at this address.
    pub(crate) fn new(address: SocketAddr) -> anyhow::Result<Self> {
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, "podsonde embedded cluster");
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
        let names = [address.ip().to_string(), "localhost".into(), "kubernetes.default.svc".into()];
        let key = KeyPair::generate()?;
        let mut server = CertificateParams::new(names)?;
        server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        let certificate = server.signed_by(&key, &ca)?;
        let private = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], private)
                .context("the certificate just made does not fit its key")?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            pem: ca.pem(),
            der: ca.der().clone(),
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }

    /// The authority's certificate as PEM, as kubeconfigs hold it.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// The authority's certificate as DER, as TLS libraries take it.
    pub(crate) fn der(&self) -> &[u8] {
        &self.der
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }
}
