//! The credentials of every request to an agent. No other module makes them.
//!
//! A bearer token goes to agents only over connections that nobody else can read: TLS, a unix
//! socket, loopback, or a port-forward through the API server. There is no other kind of
//! [`Endpoint`](super::Endpoint).

use std::{
    collections::HashMap,
    fmt,
    future::ready,
    path::{Path, PathBuf},
    sync::Arc,
    task::{Context, Poll},
};

use futures::{FutureExt, TryFutureExt, future::BoxFuture};
use http::{HeaderValue, Request, Response, header::AUTHORIZATION};
use kube::{Config, client::ConfigExt, client::middleware::AuthLayer};
use tonic::{Code, Status, body::Body, transport::Channel};
use tonic_types::{ErrorDetails, StatusExt};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};

use super::{
    error::{DOMAIN, Error},
    reason::Reason,
};

/// Longest token that is read from a file, in bytes.
const MAX_TOKEN: u64 = 64 * 1024;

/// The credentials of a caller. Default: none, which suffices for root over an agent's unix socket.
#[derive(Clone, Default)]
pub struct Credentials(Source);

#[derive(Clone, Default)]
enum Source {
    #[default]
    Nothing,
    File(PathBuf),
    Kubeconfig(Arc<AuthLayer>),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Nothing => f.write_str("Nothing"),
            Source::File(path) => write!(f, "File({})", path.display()),
            Source::Kubeconfig(_) => f.write_str("Kubeconfig"),
        }
    }
}

impl Credentials {
    /// Uses the bearer token in a file. Reads the file for each request, because the kubelet
    /// replaces projected tokens before they expire.
    #[must_use]
    pub fn token_file(path: &Path) -> Self {
        Self(Source::File(path.to_owned()))
    }

    /// Uses the bearer token with which this configuration talks to the API server: a fixed one,
    /// one in a file, or an exec plugin's. Without a token, as with client certificates, there are
    /// no credentials.
    ///
    /// # Errors
    /// `KUBECONFIG_INVALID`.
    pub fn of(config: &Config) -> Result<Self, Error> {
        let layer = config.auth_layer().map_err(|error| {
            let message = format!("cannot use the kubeconfig's credentials: {error}");
            Error::new(Reason::KubeconfigInvalid, message)
        })?;
        Ok(Self(layer.map_or(Source::Nothing, |layer| Source::Kubeconfig(Arc::new(layer)))))
    }

    /// The value of the `authorization` header, or `None` without credentials.
    async fn header(&self) -> Result<Option<HeaderValue>, Error> {
        let unusable = |why: String| Error::new(Reason::CredentialsUnusable, why);
        match &self.0 {
            Source::Nothing => Ok(None),
            Source::File(path) => {
                let failed = |why: &dyn fmt::Display| {
                    unusable(format!("cannot use the token in {}: {why}", path.display()))
                };
                let token = read(path).await.map_err(|error| failed(&error))?;
                let token = token.trim();
                if token.is_empty() {
                    return Err(failed(&"the file is empty"));
                }
                let header = HeaderValue::try_from(format!("Bearer {token}"));
                let mut header = header.map_err(|_| failed(&"it is no token"))?;
                header.set_sensitive(true);
                Ok(Some(header))
            }
            Source::Kubeconfig(layer) => {
                let header = log_in(layer)
                    .await
                    .map_err(|error| unusable(format!("cannot log in: {error}")))?;
                // A password is for the API server only, so it is not sent to an agent.
                let is_bearer = |h: &HeaderValue| h.as_bytes().starts_with(b"Bearer ");
                Ok(header.filter(is_bearer))
            }
        }
    }
}

/// Returns the header that the layer adds to a request. The request made here is not sent.
fn log_in(layer: &AuthLayer) -> BoxFuture<'static, Result<Option<HeaderValue>, BoxError>> {
    let taker = service_fn(|request: Request<Body>| {
        let header = request.headers().get(AUTHORIZATION).cloned();
        ready(Ok::<_, BoxError>(Response::new(header)))
    });
    layer.layer(taker).oneshot(Request::new(Body::empty())).map_ok(Response::into_body).boxed()
}

async fn read(path: &Path) -> std::io::Result<String> {
    use tokio::io::AsyncReadExt;
    let mut token = String::new();
    tokio::fs::File::open(path).await?.take(MAX_TOKEN).read_to_string(&mut token).await?;
    Ok(token)
}

/// A channel that adds the credentials to every request.
#[derive(Debug, Clone)]
pub(super) struct Authenticated {
    channel: Channel,
    credentials: Credentials,
}

impl Authenticated {
    pub(super) fn new(channel: Channel, credentials: Credentials) -> Self {
        Self { channel, credentials }
    }
}

impl Service<Request<Body>> for Authenticated {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // Calls the channel that `poll_ready` has prepared; a clone would not be ready.
        let clone = self.channel.clone();
        let mut channel = std::mem::replace(&mut self.channel, clone);
        let credentials = self.credentials.clone();
        Box::pin(async move {
            if let Some(header) =
                credentials.header().await.map_err(|error| Box::new(status(&error)))?
            {
                request.headers_mut().insert(AUTHORIZATION, header);
            }
            Ok(channel.call(request).await?)
        })
    }
}

/// Wraps the error in a status, the only form that generated clients pass on unchanged.
fn status(error: &Error) -> Status {
    let details = ErrorDetails::with_error_info(error.reason.as_str(), DOMAIN, HashMap::new());
    Status::with_error_details(Code::Unauthenticated, error.message.clone(), details)
}

#[cfg(test)]
mod tests {
    use kube::config::AuthInfo;

    use super::*;

    fn kubeconfig(auth_info: AuthInfo) -> Credentials {
        let mut config = Config::new("http://127.0.0.1:1".parse().unwrap());
        config.auth_info = auth_info;
        Credentials::of(&config).unwrap()
    }

    async fn shown(credentials: &Credentials) -> Option<String> {
        let header = credentials.header().await.unwrap()?;
        assert!(header.is_sensitive());
        Some(header.to_str().unwrap().to_owned())
    }

    #[tokio::test]
    async fn tokens_of_every_origin() {
        assert_eq!(shown(&Credentials::default()).await, None);
        let token = AuthInfo { token: Some("abc".to_owned().into()), ..AuthInfo::default() };
        assert_eq!(shown(&kubeconfig(token)).await.as_deref(), Some("Bearer abc"));
        // A plugin prints this; see "client-go credential plugins" in Kubernetes' page on
        // authentication.
        let printed = r#"{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":{"token":"from-plugin"}}"#;
        let exec = serde_json::json!({"exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "echo",
            "args": [printed],
            "interactiveMode": "Never",
        }});
        let plugin = kubeconfig(serde_json::from_value(exec).unwrap());
        assert_eq!(shown(&plugin).await.as_deref(), Some("Bearer from-plugin"));
        // A password is not sent to an agent.
        let basic = serde_json::json!({"username": "jane", "password": "hunter2"});
        assert_eq!(shown(&kubeconfig(serde_json::from_value(basic).unwrap())).await, None);
    }

    #[tokio::test]
    async fn a_token_file_is_read_anew() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let credentials = Credentials::token_file(file.path());
        for bad in ["", "\n", "a\nb"] {
            std::fs::write(file.path(), bad).unwrap();
            assert_eq!(credentials.header().await.unwrap_err().reason, Reason::CredentialsUnusable);
        }
        for token in ["first", "second"] {
            std::fs::write(file.path(), format!("{token}\n")).unwrap();
            assert_eq!(shown(&credentials).await, Some(format!("Bearer {token}")));
        }
        std::fs::remove_file(file.path()).unwrap();
        assert!(credentials.header().await.unwrap_err().message.contains("No such file"));
    }
}
