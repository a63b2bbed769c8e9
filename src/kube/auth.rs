//! Asking the API server who somebody is and what they may do: delegated authentication and
//! authorisation, as kubelets do it.
//! <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#webhook-token-authentication>
//!
//! Nothing is remembered here.

use std::{fmt, time::Duration};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{
    Client, Resource,
    api::{ObjectMeta, PostParams},
    core::Request,
};
use serde::{Serialize, de::DeserializeOwned};

use super::error::from_kube;
use crate::domain::{
    Error, Reason, Result,
    access::{Attributes, User},
};

/// How long the API server has for one review.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A bearer token. Never shown: its `Debug` form is a placeholder.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Token(String);

impl Token {
    /// A token as it stands after `Bearer `.
    pub fn new(token: &str) -> Self {
        Self(token.to_owned())
    }

    /// The token itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What the API server says of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reviewed {
    /// It is this user's, and meant for these of the audiences asked about; for none if the API
    /// server knows no audiences.
    Authenticated(User, Vec<String>),
    /// It is nobody's, or not for these audiences. The API server's words.
    Refused(String),
}

/// What the API server says of an access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Why, in the authoriser's words; may be empty. Names roles and bindings: not for the caller.
    pub reason: String,
}

/// The API server's reviews.
#[derive(Clone)]
pub struct Reviews {
    client: Client,
}

impl fmt::Debug for Reviews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reviews")
    }
}

impl Reviews {
    /// Reviews made with the rights of `client`: `create tokenreviews` and `create
    /// subjectaccessreviews`.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Asks the API server who the token belongs to. The token must be issued for one of
    /// `audiences`; if there are none, for the API server itself.
    ///
    /// # Errors
    /// API_UNREACHABLE; REVIEW_FAILED if the API server refuses to say.
    pub async fn token(&self, token: &Token, audiences: &[String]) -> Result<Reviewed> {
        let spec = TokenReviewSpec {
            token: token.0.clone(),
            audiences: (!audiences.is_empty()).then(|| audiences.to_vec()),
        };
        let review = TokenReview { metadata: ObjectMeta::default(), spec, status: None };
        let review = self.create(&review, "find out who is calling").await?;
        let TokenReviewStatus { authenticated, audiences, error, user } =
            review.status.unwrap_or_default();
        let user = user.unwrap_or_default();
        let user = User {
            name: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        };
        if authenticated == Some(true) && !user.name.is_empty() {
            return Ok(Reviewed::Authenticated(user, audiences.unwrap_or_default()));
        }
        Ok(Reviewed::Refused(error.unwrap_or_default()))
    }

    /// Whether `user` may do it.
    ///
    /// # Errors
    /// API_UNREACHABLE; REVIEW_FAILED if the API server refuses to say.
    pub async fn access(&self, user: &User, attributes: &Attributes) -> Result<Decision> {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let resource = ResourceAttributes {
            verb: some(attributes.verb),
            group: Some(attributes.group.to_owned()),
            version: Some("v1".to_owned()),
            resource: some(attributes.resource),
            subresource: some(attributes.subresource),
            namespace: some(&attributes.namespace),
            name: some(&attributes.name),
            ..ResourceAttributes::default()
        };
        let spec = SubjectAccessReviewSpec {
            user: some(&user.name),
            uid: some(&user.uid),
            groups: Some(user.groups.clone()),
            extra: Some(user.extra.clone()),
            resource_attributes: Some(resource),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { metadata: ObjectMeta::default(), spec, status: None };
        let review = self.create(&review, "find out what the caller may do").await?;
        let status = review.status.unwrap_or_default();
        let mut reason = status.reason.unwrap_or_default();
        if let Some(error) = status.evaluation_error.filter(|error| !error.is_empty()) {
            if !reason.is_empty() {
                reason.push_str("; ");
            }
            reason.push_str(&error);
        }
        // Both may be set only by a broken authoriser.
        let allowed = status.allowed && status.denied != Some(true);
        Ok(Decision { allowed, reason })
    }

    async fn create<K>(&self, review: &K, doing: &str) -> Result<K>
    where
        K: Resource<DynamicType = ()> + Serialize + DeserializeOwned,
    {
        let bug = |what: String| Error::new(Reason::Bug, what);
        let body = serde_json::to_vec(review).map_err(|error| bug(error.to_string()))?;
        let request = Request::new(K::url_path(&(), None)).create(&PostParams::default(), body);
        let request = request.map_err(|error| bug(error.to_string()))?;
        // As text: where an answer cannot be read, `Client::request` logs it, and a token stands in
        // it.
        match tokio::time::timeout(TIMEOUT, self.client.request_text(request)).await {
            Ok(Ok(text)) => serde_json::from_str(&text).map_err(|error| {
                let message =
                    format!("cannot {doing}: the API server's answer makes no sense: {error}");
                Error::new(Reason::ReviewFailed, message)
            }),
            Ok(Err(error)) => {
                let error = from_kube(doing, &error);
                // Whatever keeps the API server from answering, it says nothing about the caller.
                let reason = match error.reason {
                    Reason::ApiUnreachable => Reason::ApiUnreachable,
                    _ => Reason::ReviewFailed,
                };
                Err(Error::new(reason, error.message))
            }
            Err(_) => {
                let seconds = TIMEOUT.as_secs();
                let message =
                    format!("cannot {doing}: the API server did not answer within {seconds} s");
                Err(Error::new(Reason::ApiUnreachable, message))
            }
        }
    }
}
