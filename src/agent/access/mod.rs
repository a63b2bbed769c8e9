//! Who is calling, and whether the API server's own rules let them do what they ask.
//!
//! - [`method`]: the table of RPCs, with the rights that each requires;
//! - [`caller`]: the credentials that a request carries;
//! - `cache`: the API server's answers of the last seconds, for requests that only read.
//!
//! [`super::rpc::gate`] brings every request here before anything else is done. Without an answer
//! of the API server there is no access.

mod cache;
pub mod caller;
pub mod method;

use std::{
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use aws_lc_rs::digest::{SHA256, digest};
use futures::future::join_all;
use jiff::Timestamp;
use kube::Client;

use self::cache::Cache;
pub use self::{
    caller::{Authentication, Caller, Claims, Credentials},
    method::{Method, Object, Permission, Right},
};
use crate::{
    domain::{
        Error, Reason, Result,
        access::{Attributes, Requirement, User},
        bucket::{Buckets, Rate},
        pod::Pod,
    },
    kube::auth::{Decision, Reviewed, Reviews, Token},
};

/// The audience that a caller's token must have unless flags say otherwise.
pub const AUDIENCE: &str = "podsonde";
/// The longest that an answer of the API server is cached.
pub const MAX_CACHE: Duration = Duration::from_secs(10);
/// Answers of each kind that are cached.
const CACHED: usize = 1024;
/// How often the API server is asked about tokens from one address that turn out to be nobody's.
const GUESSES: Rate = Rate { burst: 100, refill: Duration::from_millis(500) };

/// How callers are authenticated and authorised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessOptions {
    /// Audiences of which a caller's token must have one.
    pub audiences: Vec<String>,
    /// Whether tokens for the API server's own audiences are accepted too.
    pub accept_api_server_audience: bool,
    /// Whether callers on a loopback address may do everything without credentials.
    pub insecure_loopback: bool,
    /// How long the API server's answers are cached for requests that only read; at most
    /// [`MAX_CACHE`].
    pub cache: Duration,
    /// How often the API server is asked again about a long request. 60 s by default.
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

/// Authenticates and authorises callers.
#[derive(Debug)]
pub struct Access {
    options: AccessOptions,
    node: String,
    reviews: Reviews,
    /// By the SHA-256 of the token. The token itself is kept no longer than its request.
    callers: Cache<Fingerprint, Caller>,
    /// Refused tokens. They have a cache of their own, as they are made up faster than good ones.
    refused: Cache<Fingerprint, Error>,
    decisions: Cache<(User, Attributes), Decision>,
    /// Reviews of tokens by the address that they came from; those of good tokens are given back.
    guesses: Mutex<Buckets<IpAddr>>,
    /// The uid of the agent, which may use the unix socket as root may.
    uid: u32,
}

/// The SHA-256 of a token.
type Fingerprint = [u8; 32];

fn fingerprint(token: &Token) -> Fingerprint {
    let digest = digest(&SHA256, token.expose().as_bytes());
    let mut fingerprint = Fingerprint::default();
    fingerprint.copy_from_slice(digest.as_ref());
    fingerprint
}

/// The decision on a call.
#[derive(Debug)]
pub struct Authorization {
    /// FORBIDDEN, or the error that prevented a decision.
    pub result: Result<()>,
    /// The API server's reason. It is for the audit log, not for the caller, as it names roles and
    /// bindings.
    pub reason: String,
}

/// What a caller was allowed, with all that it takes to ask again.
#[derive(Debug)]
pub struct Grant {
    credentials: Credentials,
    caller: Caller,
    rights: Vec<Requirement>,
}

impl Grant {
    /// Records that `caller`, who showed `credentials`, has `rights`.
    pub fn new(credentials: Credentials, caller: Caller, rights: Vec<Requirement>) -> Self {
        Self { credentials, caller, rights }
    }
}

impl Access {
    /// Creates the checks for the agent on `node`, which asks the API server through `client`.
    pub fn new(client: Client, node: &str, options: AccessOptions) -> Self {
        let cache = options.cache.min(MAX_CACHE);
        Self {
            node: node.to_owned(),
            reviews: Reviews::new(client),
            callers: Cache::new(cache, CACHED),
            refused: Cache::new(cache, CACHED),
            decisions: Cache::new(cache, CACHED),
            guesses: Mutex::new(Buckets::new(GUESSES, CACHED)),
            uid: rustix::process::getuid().as_raw(),
            options,
        }
    }

    /// Who shows these credentials. `peer`: the address of a request, by which wrong tokens are
    /// counted; none for a request that was let in before. `fresh`: whatever was answered before.
    ///
    /// # Errors
    /// NO_CREDENTIALS, BAD_TOKEN, WRONG_AUDIENCE, TOKEN_EXPIRED, BAD_CERTIFICATE, PEER_REFUSED;
    /// TOO_MANY_REQUESTS after too many wrong tokens from this address; API_UNREACHABLE and
    /// REVIEW_FAILED if it cannot be told.
    pub async fn authenticate(
        &self,
        credentials: &Credentials,
        peer: Option<IpAddr>,
        fresh: bool,
    ) -> Result<Caller> {
        let local = |name: String, by| {
            let user = User { name, ..User::default() };
            Ok(Caller { user, by, expires_at: None })
        };
        match credentials {
            Credentials::Token(token) => self.by_token(token, peer, fresh).await,
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

    async fn by_token(&self, token: &Token, peer: Option<IpAddr>, fresh: bool) -> Result<Caller> {
        let fingerprint = fingerprint(token);
        if !fresh && let Some(error) = self.refused.get(&fingerprint) {
            return Err(error);
        }
        let caller = match self.callers.get(&fingerprint).filter(|_| !fresh) {
            Some(known) => known,
            None => {
                let asked = Instant::now();
                let found = self.review(token, peer).await;
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

    async fn review(&self, token: &Token, peer: Option<IpAddr>) -> Result<Caller> {
        let claims = Claims::of(token);
        self.refuse_early(&claims)?;
        if let Some(peer) = peer
            && !self.guesses().take(peer, Instant::now())
        {
            let message = "too many tokens from this address were nobody's; try again in a second";
            return Err(Error::new(Reason::TooManyRequests, message));
        }
        let wanted = &self.options.audiences;
        let mut reviewed = self.reviews.token(token, wanted).await?;
        // An API server, or webhook, that knows nothing of audiences must not make a token for
        // anybody else good for this agent.
        let mut meant = match &reviewed {
            Reviewed::Authenticated(_, audiences) => audiences.iter().any(|a| wanted.contains(a)),
            Reviewed::Refused(_) => false,
        };
        if !meant && self.options.accept_api_server_audience {
            reviewed = self.reviews.token(token, &[]).await?;
            meant = matches!(&reviewed, Reviewed::Authenticated(..));
        }
        match reviewed {
            Reviewed::Authenticated(user, _) if meant => {
                if let Some(peer) = peer {
                    self.guesses().give_back(&peer);
                }
                Ok(Caller { user, by: Authentication::Token, expires_at: claims.expires_at })
            }
            Reviewed::Authenticated(..) => Err(self.wrong_audience()),
            // With the API server's own audiences accepted, this was not said before.
            Reviewed::Refused(_) if claims.is_for_others(wanted) => Err(self.wrong_audience()),
            Reviewed::Refused(_) => {
                Err(Error::new(Reason::BadToken, "the API server does not know this token"))
            }
        }
    }

    fn guesses(&self) -> std::sync::MutexGuard<'_, Buckets<IpAddr>> {
        self.guesses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a JSON Web Token that says itself that it is worth nothing here, so that the API
    /// server need not be asked. Such a token is never believed, only disbelieved; the caller
    /// learns no more than it showed. Other tokens say nothing of themselves.
    fn refuse_early(&self, claims: &Claims) -> Result<()> {
        if claims.expires_at.is_some_and(|at| at <= Timestamp::now()) {
            return Err(expired());
        }
        if !self.options.accept_api_server_audience && claims.is_for_others(&self.options.audiences)
        {
            return Err(self.wrong_audience());
        }
        if claims.has_no_issuer {
            let message = "the token is a JSON Web Token without an issuer, which no cluster makes";
            return Err(Error::new(Reason::BadToken, message));
        }
        Ok(())
    }

    fn wrong_audience(&self) -> Error {
        let audiences = self.options.audiences.join(" or ");
        let message =
            format!("the token is not meant for this agent: its audience must be {audiences}");
        Error::new(Reason::WrongAudience, message)
    }

    /// The rights that `method` requires on what its request names. `as_root` says whether it is to
    /// be done as root.
    pub fn rights(&self, method: Method, as_root: bool, object: &Object) -> Vec<Requirement> {
        let permission = method.row().permission;
        let more = permission.as_root.iter().filter(|_| as_root);
        permission
            .rights
            .iter()
            .chain(more)
            .map(|right| right.requirement(object, &self.node))
            .collect()
    }

    /// The rights that are also required once the pod is known.
    pub fn rights_on(&self, method: Method, object: &Object, pod: &Pod) -> Vec<Requirement> {
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
        rights.into_iter().map(|right| right.requirement(object, &self.node)).collect()
    }

    /// Asks whether `caller` has all these rights. `fresh` ignores cached answers.
    pub async fn authorize(
        &self,
        caller: &Caller,
        rights: &[Requirement],
        fresh: bool,
    ) -> Authorization {
        if caller.by.is_local() {
            return Authorization { result: Ok(()), reason: "the caller is local".to_owned() };
        }
        let mut reason = String::new();
        let decisions =
            join_all(rights.iter().map(|right| self.decide_either(&caller.user, right, fresh)))
                .await;
        for (right, decision) in rights.iter().zip(decisions) {
            match decision {
                Ok(decision) => {
                    if !decision.reason.is_empty() && !reason.contains(&decision.reason) {
                        let separator = if reason.is_empty() { "" } else { "; " };
                        reason = format!("{reason}{separator}{}", decision.reason);
                    }
                    if !decision.allowed {
                        let message = format!("user {:?} may not {right}", caller.user.name);
                        let mut error = Error::new(Reason::Forbidden, message);
                        error.context.resource = right.right.full_resource();
                        return Authorization { result: Err(error), reason };
                    }
                }
                Err(error) => return Authorization { result: Err(error), reason },
            }
        }
        Authorization { result: Ok(()), reason }
    }

    /// Asks whether the user has the right or, if not, its alternative.
    async fn decide_either(
        &self,
        user: &User,
        required: &Requirement,
        fresh: bool,
    ) -> Result<Decision> {
        let decision = self.decide(user, &required.right, fresh).await?;
        match &required.alternative {
            Some(alternative) if !decision.allowed => self.decide(user, alternative, fresh).await,
            _ => Ok(decision),
        }
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

    /// Resolves when the grant ends, with the reason: its credentials have expired, or the API
    /// server, asked at each interval, did not confirm it.
    pub async fn lapse(&self, grant: &Grant) -> Error {
        if grant.caller.by.is_local() {
            return std::future::pending().await;
        }
        loop {
            let mut wait = self.options.reauthorize_interval;
            if let Some(at) = grant.caller.expires_at {
                // If the clock is set meanwhile, the wait still ends after the interval.
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
        let caller = self.authenticate(&grant.credentials, None, true).await?;
        if caller.user.name != grant.caller.user.name {
            return Err(Error::new(Reason::BadToken, "the token is somebody else's now"));
        }
        self.authorize(&caller, &grant.rights, true).await.result
    }
}

fn expired() -> Error {
    Error::new(Reason::TokenExpired, "the credentials are not valid any more")
}

/// Whether the error says that the API server gave no answer about the caller.
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
        // As an authenticator answers that knows nothing of audiences, and one that says another
        // than it was asked for.
        for audiences in [json!(null), json!([]), json!(["vault"])] {
            let status = json!({"authenticated": true, "user": {"username": "jane"}, "audiences": audiences});
            let (access, asked) = answering(status);
            let refused = access.authenticate(&token, None, true).await.unwrap_err();
            assert_eq!(refused.reason, Reason::WrongAudience, "{audiences}");
            assert_eq!(
                asked.lock().unwrap()[0],
                json!({"token": "opaque", "audiences": ["podsonde"]})
            );
        }
        // Nobody is not somebody.
        let status =
            json!({"authenticated": true, "user": {"username": ""}, "audiences": ["podsonde"]});
        let refused = answering(status).0.authenticate(&token, None, true).await.unwrap_err();
        assert_eq!(refused.reason, Reason::BadToken);
    }

    #[tokio::test]
    async fn a_token_that_is_worth_nothing_by_its_own_words_is_not_reviewed() {
        use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
        let (access, asked) = answering(json!({"authenticated": false}));
        let now = Timestamp::now().as_second();
        for (claims, reason) in [
            (json!({"iss": "i", "aud": ["podsonde"], "exp": now - 1}), Reason::TokenExpired),
            (json!({"iss": "i", "aud": ["vault"], "exp": now + 60}), Reason::WrongAudience),
            (json!({"iss": "i", "aud": [], "exp": now + 60}), Reason::WrongAudience),
            (json!({"aud": ["podsonde"], "exp": now + 60}), Reason::BadToken),
            (json!({"iss": 7, "aud": ["podsonde"]}), Reason::BadToken),
        ] {
            let payload = BASE64_URL_SAFE_NO_PAD.encode(claims.to_string());
            let token = Credentials::Token(Token::new(&format!("e30.{payload}.c2ln")));
            let refused = access.authenticate(&token, None, true).await.unwrap_err();
            assert_eq!((refused.reason, asked.lock().unwrap().len()), (reason, 0), "{claims}");
        }
        // What says nothing against itself is reviewed, and so is what says nothing at all.
        let claims = json!({"iss": "i", "aud": "podsonde", "exp": now + 60}).to_string();
        let sound = format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims));
        for (number, token) in [sound.as_str(), "opaque", "a.b.c"].into_iter().enumerate() {
            let token = Credentials::Token(Token::new(token));
            let refused = access.authenticate(&token, None, true).await.unwrap_err();
            assert_eq!(
                (refused.reason, asked.lock().unwrap().len()),
                (Reason::BadToken, number + 1)
            );
        }
    }

    #[tokio::test]
    async fn wrong_tokens_from_one_address_do_not_reach_the_api_server_for_long() {
        let (access, asked) = answering(json!({"authenticated": false}));
        let (attacker, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let guess = async |number: u32, peer| {
            let token = Credentials::Token(Token::new(&format!("guess-{number}")));
            access.authenticate(&token, Some(peer), false).await.unwrap_err().reason
        };
        let mut limited = 0;
        for number in 0..1000 {
            limited += usize::from(guess(number, attacker).await == Reason::TooManyRequests);
        }
        assert_eq!(asked.lock().unwrap().len() + limited, 1000);
        assert!(limited >= 800, "{limited}");
        assert_eq!(guess(1000, other).await, Reason::BadToken, "others are not concerned");
    }

    #[tokio::test]
    async fn good_tokens_are_not_limited() {
        let status = json!({
            "authenticated": true, "user": {"username": "jane"}, "audiences": ["podsonde"],
        });
        let (access, asked) = answering(status);
        let peer = Some("192.0.2.1".parse().unwrap());
        for _ in 0..300 {
            let token = Credentials::Token(Token::new("good"));
            assert!(access.authenticate(&token, peer, true).await.is_ok());
        }
        assert_eq!(asked.lock().unwrap().len(), 300);
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
