//! What a request shows of its caller, and who that turns out to be.

use std::fmt;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde_json::Value;
use tonic::{
    Request,
    transport::{
        CertificateDer,
        server::{TcpConnectInfo, TlsConnectInfo, UdsConnectInfo},
    },
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::{
    domain::{Error, Reason, Result, access::User},
    kube::auth::Token,
};

/// Longest token that is looked at, in bytes. Headers of a request may be 16 KiB altogether.
const MAX_TOKEN: usize = 12 * 1024;

/// Who is calling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The user.
    pub user: User,
    /// How that was found out.
    pub by: Authentication,
    /// When the credentials expire. None if they do not say.
    pub expires_at: Option<Timestamp>,
}

/// How a caller was found out to be who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authentication {
    /// By a bearer token that the API server knows.
    Token,
    /// By a client certificate of the cluster's authority.
    ClientCertificate,
    /// By the kernel, as a process on the node.
    Socket,
    /// Not at all: it reached a loopback address where that is let pass.
    Loopback,
}

impl Authentication {
    /// Its name in the audit log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::ClientCertificate => "client-certificate",
            Self::Socket => "socket",
            Self::Loopback => "loopback",
        }
    }

    /// Whether RBAC is not asked: who is root on the node is so without the agent.
    pub const fn is_local(self) -> bool {
        matches!(self, Self::Socket | Self::Loopback)
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.user.name)
    }
}

/// What a request shows of its caller.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// A bearer token.
    Token(Token),
    /// A certificate that the transport has verified.
    Certificate(CertificateDer<'static>),
    /// The user at the other end of a unix socket.
    Socket {
        /// Its uid.
        uid: u32,
    },
    /// Nothing, on a loopback address.
    Loopback,
}

impl Credentials {
    /// What `request` shows. A token that is shown is what counts, whatever else there is.
    ///
    /// # Errors
    /// BAD_TOKEN if the header `authorization` is not one bearer token; NO_CREDENTIALS.
    pub fn of<Q>(request: &Request<Q>) -> Result<Self> {
        let mut headers = request.metadata().get_all("authorization").iter();
        if let Some(header) = headers.next() {
            let header = header.to_str().ok().filter(|_| headers.next().is_none());
            return header.and_then(bearer).map(Self::Token).ok_or_else(|| {
                Error::new(Reason::BadToken, "the header authorization is not one bearer token")
            });
        }
        let extensions = request.extensions();
        if let Some(certificate) = request.peer_certs().and_then(|chain| chain.first().cloned()) {
            return Ok(Self::Certificate(certificate));
        }
        if let Some(peer) = extensions.get::<UdsConnectInfo>().and_then(|socket| socket.peer_cred) {
            return Ok(Self::Socket { uid: peer.uid() });
        }
        let tls = extensions.get::<TlsConnectInfo<TcpConnectInfo>>().is_some();
        let address = extensions.get::<TcpConnectInfo>().and_then(|info| info.remote_addr);
        match address {
            Some(address) if !tls && address.ip().is_loopback() => Ok(Self::Loopback),
            _ => Err(no_credentials()),
        }
    }
}

/// Where a request comes from, for the audit log: an address, which is the pod's own loopback for
/// whoever comes by port-forward, or the unix socket.
pub fn peer<Q>(request: &Request<Q>) -> String {
    let extensions = request.extensions();
    match extensions.get::<TcpConnectInfo>().and_then(|info| info.remote_addr) {
        Some(address) => address.to_string(),
        None if extensions.get::<UdsConnectInfo>().is_some() => "unix".to_owned(),
        None => String::new(),
    }
}

/// What to say to somebody who shows nothing.
pub fn no_credentials() -> Error {
    let message = "the request says nothing of who sends it: a bearer token or a client certificate is needed";
    Error::new(Reason::NoCredentials, message)
}

/// The token of `Bearer TOKEN`, in the characters that RFC 6750 allows.
fn bearer(header: &str) -> Option<Token> {
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
    let sound = !token.is_empty() && token.len() <= MAX_TOKEN && token.bytes().all(allowed);
    (sound && scheme.eq_ignore_ascii_case("bearer")).then(|| Token::new(token))
}

/// What a token says of itself. None of it is proven, so it is only used against the caller: to end
/// a proven token in time, and to refuse one without a review.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// `exp`.
    pub expires_at: Option<Timestamp>,
    /// `aud`. None if it does not say.
    pub audiences: Option<Vec<String>>,
    /// Whether it is a JSON Web Token whose `iss` names nobody.
    pub has_no_issuer: bool,
}

impl Claims {
    /// Those of a JSON Web Token; none of any other.
    pub fn of(token: &Token) -> Self {
        let mut parts = token.expose().split('.');
        let payload = parts.nth(1).and_then(|payload| BASE64_URL_SAFE_NO_PAD.decode(payload).ok());
        let claims: Option<serde_json::Map<String, Value>> =
            payload.and_then(|p| serde_json::from_slice(&p).ok());
        let Some(claims) = claims else { return Self::default() };
        let expires_at = claims.get("exp").and_then(Value::as_f64);
        // Whole seconds are exact; a time too far away is none.
        #[allow(clippy::cast_possible_truncation)]
        let expires_at = expires_at.and_then(|exp| Timestamp::from_second(exp as i64).ok());
        let audiences = match claims.get("aud") {
            Some(Value::String(one)) => Some(vec![one.clone()]),
            Some(Value::Array(list)) => {
                Some(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
            }
            _ => None,
        };
        let has_no_issuer =
            claims.get("iss").and_then(Value::as_str).is_none_or(|issuer| issuer.is_empty());
        Self { expires_at, audiences, has_no_issuer }
    }

    /// Whether it says that it is meant for others than `audiences`.
    pub fn is_for_others(&self, audiences: &[String]) -> bool {
        self.audiences.as_ref().is_some_and(|its| !its.iter().any(|a| audiences.contains(a)))
    }
}

/// The user that a verified client certificate names, as the API server reads it: CN is the user, O
/// are the groups.
/// <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#x509-client-certificates>
///
/// # Errors
/// BAD_CERTIFICATE if it names no user or its time is over.
pub fn from_certificate(der: &CertificateDer<'_>) -> Result<Caller> {
    let bad =
        |why: &str| Error::new(Reason::BadCertificate, format!("the client certificate {why}"));
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| bad("cannot be read"))?;
    let subject = certificate.subject();
    let name =
        subject.iter_common_name().last().and_then(|cn| cn.as_str().ok()).unwrap_or_default();
    if name.is_empty() {
        return Err(bad("has no common name, so it names no user"));
    }
    let groups = subject.iter_organization().map(|o| o.as_str().map(str::to_owned));
    let mut groups: Vec<String> =
        groups.collect::<Result<_, _>>().map_err(|_| bad("has an organization that is no text"))?;
    groups.push("system:authenticated".to_owned());
    let not_after = Timestamp::from_second(certificate.validity().not_after.timestamp());
    let expires_at = not_after.map_err(|_| bad("has no sensible end of its time"))?;
    // The connection may be older than that.
    if expires_at <= Timestamp::now() {
        return Err(bad("has expired"));
    }
    let user = User { name: name.to_owned(), groups, ..User::default() };
    Ok(Caller { user, by: Authentication::ClientCertificate, expires_at: Some(expires_at) })
}

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataValue;

    use super::*;

    fn of(headers: &[&str]) -> Result<String> {
        let mut request = Request::new(());
        for header in headers {
            let value = MetadataValue::try_from(*header).unwrap();
            request.metadata_mut().append("authorization", value);
        }
        match Credentials::of(&request)? {
            Credentials::Token(token) => Ok(token.expose().to_owned()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_bearer_token_and_nothing_else() {
        assert_eq!(of(&["Bearer abc.d_e-f~+/="]).unwrap(), "abc.d_e-f~+/=");
        assert_eq!(of(&["bearer x"]).unwrap(), "x");
        let long = format!("Bearer {}", "a".repeat(MAX_TOKEN + 1));
        let bad =
            ["Bearer", "Bearer ", "Basic eDp5", "x", "Bearer a b", "Bearer a,b", "", long.as_str()];
        for header in bad {
            assert_eq!(of(&[header]).unwrap_err().reason, Reason::BadToken, "{header:.20}");
        }
        assert_eq!(of(&["Bearer a", "Bearer b"]).unwrap_err().reason, Reason::BadToken);
        assert_eq!(of(&[]).unwrap_err().reason, Reason::NoCredentials);
    }

    #[test]
    fn tokens_are_never_shown() {
        let credentials = Credentials::Token(Token::new("s3cret"));
        assert!(!format!("{credentials:?}").contains("s3cret"));
    }

    #[test]
    fn claims() {
        let token = |payload: &str| {
            let payload = BASE64_URL_SAFE_NO_PAD.encode(payload);
            Claims::of(&Token::new(&format!("e30.{payload}.c2ln")))
        };
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        let expected = Claims {
            expires_at: at(1_700_000_000),
            audiences: Some(vec!["a".into()]),
            has_no_issuer: false,
        };
        assert_eq!(token(r#"{"iss":"i","exp":1700000000,"aud":"a"}"#), expected);
        assert_eq!(token(r#"{"iss":"i","exp":1700000000.5,"aud":["a"]}"#), expected);
        for other in ["{}", r#"{"exp":"x","aud":7}"#, r#"{"exp":1e300}"#, r#"{"iss":""}"#] {
            let unnamed = Claims { has_no_issuer: true, ..Claims::default() };
            assert_eq!(token(other), unnamed, "{other}");
        }
        assert_eq!((token(""), token("[]")), Default::default());
        assert_eq!(Claims::of(&Token::new("opaque")), Claims::default());
    }

    #[cfg(feature = "embedded")]
    #[test]
    fn a_certificate_names_user_and_groups() {
        use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, date_time_ymd};
        let made = |names: &[(DnType, &str)], year| {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            for (kind, value) in names {
                params.distinguished_name.push(kind.clone(), *value);
            }
            params.not_after = date_time_ymd(year, 1, 1);
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            from_certificate(certificate.der())
        };
        let jane = [(DnType::OrganizationName, "debuggers"), (DnType::CommonName, "jane")];
        let caller = made(&jane, 4000).unwrap();
        assert_eq!(caller.user.name, "jane");
        assert_eq!(caller.user.groups, ["debuggers", "system:authenticated"]);
        assert_eq!(caller.expires_at.unwrap().to_string(), "4000-01-01T00:00:00Z");
        let nobody = [(DnType::OrganizationName, "debuggers")];
        for refused in
            [made(&jane, 2001), made(&nobody, 4000), from_certificate(&vec![0x30, 0x80].into())]
        {
            assert_eq!(refused.unwrap_err().reason, Reason::BadCertificate);
        }
    }
}
