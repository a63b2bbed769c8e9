//! Who is calling, and whether the API server's own rules let them do what they ask.
//!
//! - [`method`]: the table: what each method asks of its caller;
//! - [`caller`]: what a request shows of its caller;
//! - `cache`: the API server's answers of the last seconds, for what only reads.
//!
//! Every request comes here by way of [`super::rpc::gate`], before anything else is done. Where the API server gives no answer there
//! is no access.

mod cache;
pub mod caller;
pub mod method;

use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use futures::future::join_all;
use jiff::Timestamp;
use kube::Client;

use self::cache::Cache;
pub use self::{
    caller::{Authentication, Caller, Credentials},
    method::{Method, Object, Permission, Right},
};
use crate::{
    domain::{
        Error, Reason, Result,
        access::{Attributes, User},
        pod::Pod,
    },
    kube::auth::{Decision, Reviewed, Reviews, Token},
};

/// For whom a caller's token must be meant unless flags say otherwise.
pub const AUDIENCE: &str = "podsonde";
/// No answer of the API server counts for longer.
pub const MAX_CACHE: Duration = Duration::from_secs(10);
/// Answers that are remembered, of each kind.
const CACHED: usize = 1024;

/// Whom the agent lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessOptions {
    /// For whom a caller's token must be meant; one of these is enough.
    pub audiences: Vec<String>,
    /// Whether tokens that are meant for the API server itself count, too.
    pub accept_api_server_audience: bool,
    /// Whether whoever reaches a loopback address may do everything without showing anything.
    pub insecure_loopback: bool,
    /// How long the API server's answers count for requests that only read; at most [`MAX_CACHE`].
    pub cache: Duration,
    /// How often it is asked again about requests that go on.
    pub reauthorize_interval: Duration,
}

impl Default for AccessOptions {
    fn default() -> Self {
        Self {
            audiences: vec![AUDIENCE.to_owned()],
            accept_api_server_audience: false,
            insecure_loopback: false,
            cache: MAX_CACHE,
            reauthorize_interval: Duration::from_secs(60),
        }
    }
}

/// Decides.
#[derive(Debug)]
pub struct Access {
    options: AccessOptions,
    node: String,
    reviews: Reviews,
    /// By the SHA-256 of the token, which itself is kept no longer than its request.
    callers: Cache<Fingerprint, Caller>,
    /// Tokens that are good for nothing, in a cache of their own: they are made up faster than good ones.
    refused: Cache<Fingerprint, Error>,
    decisions: Cache<(User, Attributes), Decision>,
    /// The user of the agent, who may use the unix socket besides root.
    uid: u32,
}

/// What a token is remembered by.
type Fingerprint = [u8; 32];

fn fingerprint(token: &Token) -> Fingerprint {
    let digest = digest(&SHA256, token.expose().as_bytes());
    let mut fingerprint = Fingerprint::default();
    fingerprint.copy_from_slice(digest.as_ref());
    fingerprint
}

/// What was found about a call.
#[derive(Debug)]
pub struct Authorization {
    /// FORBIDDEN, or what kept it from being found.
    pub result: Result<()>,
    /// Why, in the API server's words. For the audit log, not for the caller: it names roles and bindings.
    pub reason: String,
}

/// That a caller may do something, and all it takes to ask again whether it still may.
#[derive(Debug)]
pub struct Grant {
    credentials: Credentials,
    caller: Caller,
    rights: Vec<Attributes>,
}

impl Grant {
    /// That `caller`, who showed `credentials`, has `rights`.
    pub fn new(credentials: Credentials, caller: Caller, rights: Vec<Attributes>) -> Self {
        Self { credentials, caller, rights }
    }
}

impl Access {
    /// Decides for the agent on `node`, with the API server's answers to `client`.
    pub fn new(client: Client, node: &str, options: AccessOptions) -> Self {
        let cache = options.cache.min(MAX_CACHE);
        Self {
            node: node.to_owned(),
            reviews: Reviews::new(client),
            callers: Cache::new(cache, CACHED),
            refused: Cache::new(cache, CACHED),
            decisions: Cache::new(cache, CACHED),
            uid: rustix::process::getuid().as_raw(),
            options,
        }
    }

    /// Who shows these credentials. `fresh`: whatever was answered before.
    ///
    /// # Errors
    /// NO_CREDENTIALS, BAD_TOKEN, WRONG_AUDIENCE, TOKEN_EXPIRED, BAD_CERTIFICATE, PEER_REFUSED; API_UNREACHABLE and REVIEW_FAILED if it
    /// cannot be told.
    pub async fn authenticate(&self, credentials: &Credentials, fresh: bool) -> Result<Caller> {
        let local = |name: String, by| {
            let user = User { name, ..User::default() };
            Ok(Caller { user, by, expires_at: None })
        };
        match credentials {
            Credentials::Token(token) => self.by_token(token, fresh).await,
            Credentials::Certificate(certificate) => caller::from_certificate(certificate),
            Credentials::Socket { uid } if *uid == 0 || *uid == self.uid => {
                local(format!("local:uid={uid}"), Authentication::Socket)
            }
            Credentials::Socket { uid } => {
                let message =
                    format!("user {uid} may not use this socket without a token; root may");
                Err(Error::new(Reason::PeerRefused, message))
            }
            Credentials::Loopback if self.options.insecure_loopback => {
                local("local:loopback".to_owned(), Authentication::Loopback)
            }
            Credentials::Loopback => Err(caller::no_credentials()),
        }
    }

    async fn by_token(&self, token: &Token, fresh: bool) -> Result<Caller> {
        let fingerprint = fingerprint(token);
        if !fresh && let Some(error) = self.refused.get(&fingerprint) {
            return Err(error);
        }
        let caller = match self.callers.get(&fingerprint).filter(|_| !fresh) {
            Some(known) => known,
            None => {
                let asked = Instant::now();
                let found = self.review(token).await;
                match &found {
                    Ok(caller) => self.callers.put(fingerprint, asked, caller.clone()),
                    // That the API server gave no answer is not remembered.
                    Err(error) if is_no_answer(error.reason) => {}
                    Err(error) => self.refused.put(fingerprint, asked, error.clone()),
                }
                found?
            }
        };
        match caller.expires_at {
            Some(at) if at <= Timestamp::now() => Err(expired()),
            _ => Ok(caller),
        }
    }

    async fn review(&self, token: &Token) -> Result<Caller> {
        let wanted = &self.options.audiences;
        let mut reviewed = self.reviews.token(token, wanted).await?;
        // An API server, or webhook, that knows nothing of audiences must not make a token of any other good for this agent.
        let mut meant = matches!(&reviewed, Reviewed::Authenticated(_, audiences) if audiences.iter().any(|a| wanted.contains(a)));
        if !meant && self.options.accept_api_server_audience {
            reviewed = self.reviews.token(token, &[]).await?;
            meant = matches!(&reviewed, Reviewed::Authenticated(..));
        }
        let claims = caller::Claims::of(token);
        match reviewed {
            Reviewed::Authenticated(user, _) if meant => {
                Ok(Caller { user, by: Authentication::Token, expires_at: claims.expires_at })
            }
            Reviewed::Authenticated(..) => Err(self.wrong_audience()),
            // What the token says of itself is not proven, but the caller only learns what it already knows.
            Reviewed::Refused(_) if claims.expires_at.is_some_and(|at| at <= Timestamp::now()) => {
                Err(expired())
            }
            Reviewed::Refused(_)
                if claims.audiences.is_some_and(|its| !its.iter().any(|a| wanted.contains(a))) =>
            {
                Err(self.wrong_audience())
            }
            Reviewed::Refused(_) => {
                Err(Error::new(Reason::BadToken, "the API server does not know this token"))
            }
        }
    }

    fn wrong_audience(&self) -> Error {
        let audiences = self.options.audiences.join(" or ");
        let message =
            format!("the token is not meant for this agent: its audience must be {audiences}");
        Error::new(Reason::WrongAudience, message)
    }

    /// What the API server is asked about a call of `method` on what its request names; `as_root`: if it is to be done as root.
    pub fn rights(&self, method: Method, as_root: bool, object: &Object) -> Vec<Attributes> {
        let permission = method.row().permission;
        let more = permission.as_root.iter().filter(|_| as_root);
        permission
            .rights
            .iter()
            .chain(more)
            .map(|right| right.attributes(object, &self.node))
            .collect()
    }

    /// What it is asked besides, now that the pod is known.
    pub fn rights_on(&self, method: Method, object: &Object, pod: &Pod) -> Vec<Attributes> {
        let permission = method.row().permission;
        let mut rights: Vec<Right> = Vec::new();
        for (applies, more) in [
            (method::is_powerful(pod), permission.on_powerful_pods),
            (pod.host_network, permission.on_host_network),
            (pod.host_path, permission.on_host_paths),
        ] {
            rights.extend(more.iter().filter(|_| applies));
        }
        rights.dedup();
        rights.into_iter().map(|right| right.attributes(object, &self.node)).collect()
    }

    /// Whether `caller` has all these rights. `fresh`: whatever was answered before.
    pub async fn authorize(
        &self,
        caller: &Caller,
        rights: &[Attributes],
        fresh: bool,
    ) -> Authorization {
        if caller.by.is_local() {
            return Authorization { result: Ok(()), reason: "the caller is local".to_owned() };
        }
        let mut reason = String::new();
        let decisions =
            join_all(rights.iter().map(|right| self.decide(&caller.user, right, fresh))).await;
        for (right, decision) in rights.iter().zip(decisions) {
            match decision {
                Ok(decision) => {
                    if !decision.reason.is_empty() && !reason.contains(&decision.reason) {
                        let separator = if reason.is_empty() { "" } else { "; " };
                        reason = format!("{reason}{separator}{}", decision.reason);
                    }
                    if !decision.allowed {
                        let message = format!("user {:?} may not {right}", caller.user.name);
                        return Authorization {
                            result: Err(Error::new(Reason::Forbidden, message)),
                            reason,
                        };
                    }
                }
                Err(error) => return Authorization { result: Err(error), reason },
            }
        }
        Authorization { result: Ok(()), reason }
    }

    async fn decide(&self, user: &User, right: &Attributes, fresh: bool) -> Result<Decision> {
        let key = (user.clone(), right.clone());
        if !fresh && let Some(known) = self.decisions.get(&key) {
            return Ok(known);
        }
        let asked = Instant::now();
        let decision = self.reviews.access(user, right).await?;
        self.decisions.put(key, asked, decision.clone());
        Ok(decision)
    }

    /// Resolves when the grant holds no more: its credentials are over, or the API server, asked again and again, does not say that it
    /// holds. With the reason.
    pub async fn lapse(&self, grant: &Grant) -> Error {
        if grant.caller.by.is_local() {
            return std::future::pending().await;
        }
        loop {
            let mut wait = self.options.reauthorize_interval;
            if let Some(at) = grant.caller.expires_at {
                // The clock may be set meanwhile, but then the wait is over after the interval.
                wait = wait.min(
                    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default(),
                );
            }
            tokio::time::sleep(wait).await;
            if let Err(error) = self.renew(grant).await {
                return error;
            }
        }
    }

    async fn renew(&self, grant: &Grant) -> Result<()> {
        if grant.caller.expires_at.is_some_and(|at| at <= Timestamp::now()) {
            return Err(expired());
        }
        let caller = self.authenticate(&grant.credentials, true).await?;
        if caller.user.name != grant.caller.user.name {
            return Err(Error::new(Reason::BadToken, "the token is somebody else's now"));
        }
        self.authorize(&caller, &grant.rights, true).await.result
    }
}

fn expired() -> Error {
    Error::new(Reason::TokenExpired, "the credentials are not valid any more")
}

/// Whether the API server did not say anything about the caller.
const fn is_no_answer(reason: Reason) -> bool {
    matches!(reason, Reason::ApiUnreachable | Reason::ReviewFailed | Reason::Bug)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// An API server that answers everything with this status, and what it was asked.
    fn answering(status: Value) -> (Access, Arc<Mutex<Vec<Value>>>) {
        let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
        let seen = Arc::clone(&asked);
        let service = tower::service_fn(move |request: Request<Body>| {
            let (status, seen) = (status.clone(), Arc::clone(&seen));
            async move {
                let body = request.into_body().collect_bytes().await?;
                let mut review: Value = serde_json::from_slice(&body)?;
                seen.lock().unwrap().push(review["spec"].clone());
                review["status"] = status;
                Ok::<_, tower::BoxError>(Response::new(Body::from(review.to_string().into_bytes())))
            }
        });
        let options =
            AccessOptions { accept_api_server_audience: false, ..AccessOptions::default() };
        (Access::new(Client::new(service, "default"), "node-a", options), asked)
    }

    #[tokio::test]
    async fn a_token_for_whomever_is_not_for_the_agent() {
        let token = Credentials::Token(Token::new("opaque"));
        // As an authenticator answers that knows nothing of audiences, and one that says another than it was asked for.
        for audiences in [json!(null), json!([]), json!(["vault"])] {
            let status = json!({"authenticated": true, "user": {"username": "jane"}, "audiences": audiences});
            let (access, asked) = answering(status);
            let refused = access.authenticate(&token, true).await.unwrap_err();
            assert_eq!(refused.reason, Reason::WrongAudience, "{audiences}");
            assert_eq!(
                asked.lock().unwrap()[0],
                json!({"token": "opaque", "audiences": ["podsonde"]})
            );
        }
        // Nobody is not somebody.
        let status =
            json!({"authenticated": true, "user": {"username": ""}, "audiences": ["podsonde"]});
        let refused = answering(status).0.authenticate(&token, true).await.unwrap_err();
        assert_eq!(refused.reason, Reason::BadToken);
    }

    #[tokio::test]
    async fn all_that_is_known_of_the_user_is_sent() {
        let (access, asked) = answering(json!({"allowed": true, "denied": true, "reason": "both"}));
        let user = User {
            name: "jane".into(),
            uid: "u-1".into(),
            groups: vec!["debuggers".into()],
            extra: [("scopes".to_owned(), vec!["a".to_owned()])].into(),
        };
        let caller = Caller { user, by: Authentication::Token, expires_at: None };
        let object =
            Object::Pod { namespace: "default".into(), name: "web".into(), uid: String::new() };
        let rights = access.rights(Method::DebugCreate, false, &object);
        let verdict = access.authorize(&caller, &rights, true).await;
        // Denied counts for more than allowed.
        assert_eq!(
            (verdict.result.unwrap_err().reason, verdict.reason.as_str()),
            (Reason::Forbidden, "both")
        );
        let asked = asked.lock().unwrap();
        let expected = |verb: &str, more: Value| {
            let mut attributes = json!({
                "verb": verb, "group": "", "version": "v1", "resource": "pods", "namespace": "default", "name": "web",
            });
            attributes.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({
                "user": "jane", "uid": "u-1", "groups": ["debuggers"], "extra": {"scopes": ["a"]},
                "resourceAttributes": attributes,
            })
        };
        assert_eq!(asked.len(), 2);
        assert!(asked.contains(&expected("get", json!({}))), "{asked:?}");
        assert!(
            asked.contains(&expected("patch", json!({"subresource": "ephemeralcontainers"}))),
            "{asked:?}"
        );
    }
}
