//! Who makes a request: the tokens that the server knows, and whom they stand for.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use axum::http::{HeaderMap, header};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::{
    api::authentication::v1::{TokenReviewStatus, UserInfo},
    jiff::Timestamp,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::status::ApiStatus;

/// The API server's own audience.
pub(crate) const AUDIENCE: &str = "https://kubernetes.default.svc";
/// The group whose members may do everything.
pub(crate) const MASTERS: &str = "system:masters";
/// Seconds for which an expired token is kept, so that its error can say that it has expired.
const REMEMBERED: i64 = 3600;

/// The credentials that the server accepts.
#[derive(Debug, Default)]
pub(crate) struct Identities {
    /// The administrator's token. Without one, every request that shows no known token is the
    /// administrator's.
    admin_token: Option<String>,
    tokens: RwLock<HashMap<String, TokenIdentity>>,
    /// Whether pods get tokens: only a server with HTTPS is within their reach.
    pub(crate) for_pods: bool,
}

/// The user that a token stands for, and its limits.
#[derive(Debug, Clone)]
pub(crate) struct TokenIdentity {
    pub(crate) user: UserInfo,
    /// The token's audiences; empty for the API server's own.
    pub(crate) audiences: Vec<String>,
    pub(crate) expires_at: Option<Timestamp>,
    /// The pod with whose deletion the token ends; empty if it belongs to no pod.
    pub(crate) pod_uid: String,
}

impl Identities {
    pub(crate) fn new(admin_token: Option<String>, for_pods: bool) -> Self {
        Self { admin_token, tokens: RwLock::default(), for_pods }
    }

    /// Issues a token. It has the form of a JSON Web Token, but its signature is meaningless: the
    /// server accepts exactly the tokens that it remembers.
    pub(crate) fn issue(&self, mut identity: TokenIdentity) -> String {
        if identity.audiences.is_empty() {
            identity.audiences.push(AUDIENCE.to_owned());
        }
        let now = Timestamp::now();
        let mut claims = json!({
            "iss": AUDIENCE, "sub": identity.user.username, "aud": identity.audiences, "iat": now.as_second(),
            "jti": Uuid::new_v4().to_string(),
        });
        if let (Some(at), Some(claims)) = (identity.expires_at, claims.as_object_mut()) {
            claims.insert("exp".to_owned(), at.as_second().into());
        }
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signature = BASE64_URL_SAFE_NO_PAD.encode(Uuid::new_v4().as_bytes());
        let token = format!("{}.{}.{signature}", part(&json!({ "alg": "none" })), part(&claims));
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        let forgotten = |at: Timestamp| at.as_second().saturating_add(REMEMBERED) < now.as_second();
        tokens.retain(|_, known| !known.expires_at.is_some_and(forgotten));
        tokens.insert(token.clone(), identity);
        token
    }

    /// Revokes the tokens of a pod.
    pub(crate) fn revoke(&self, pod_uid: &str) {
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, identity| identity.pod_uid != pod_uid);
    }

    /// Revokes a token.
    pub(crate) fn revoke_token(&self, token: &str) {
        self.tokens.write().unwrap_or_else(PoisonError::into_inner).remove(token);
    }

    /// Authentication: the tokens that the server knows, and the user that each stands for.
    pub(crate) fn authenticate(&self, headers: &HeaderMap) -> Result<UserInfo, ApiStatus> {
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        match self.review(shown, &[]) {
            TokenReviewStatus { user: Some(user), .. } => Ok(user),
            _ if self.admin_token.is_none() => Ok(admin()),
            _ => Err(ApiStatus::new(401, "Unauthorized", "Unauthorized")),
        }
    }

    /// The result of a TokenReview. Without `audiences` the API server's own is meant.
    pub(crate) fn review(&self, token: &str, audiences: &[String]) -> TokenReviewStatus {
        let refused = |why: &str| TokenReviewStatus {
            error: Some(format!("[invalid bearer token, {why}]")),
            ..TokenReviewStatus::default()
        };
        let known = if self.admin_token.as_deref() == Some(token) {
            let audiences = vec![AUDIENCE.to_owned()];
            Some(TokenIdentity {
                user: admin(),
                audiences,
                expires_at: None,
                pod_uid: String::new(),
            })
        } else {
            self.tokens.read().unwrap_or_else(PoisonError::into_inner).get(token).cloned()
        };
        let Some(identity) = known else { return refused("unknown") };
        if identity.expires_at.is_some_and(|at| at <= Timestamp::now()) {
            return refused("service account token has expired");
        }
        let own = [AUDIENCE.to_owned()];
        let wanted = if audiences.is_empty() { &own[..] } else { audiences };
        let meant: Vec<String> =
            wanted.iter().filter(|a| identity.audiences.contains(a)).cloned().collect();
        if meant.is_empty() {
            let its = &identity.audiences;
            return refused(&format!(
                "token audiences {its:?} is invalid for the target audiences {wanted:?}"
            ));
        }
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(meant),
            user: Some(identity.user),
            error: None,
        }
    }
}

/// When a token with this lifetime expires; never if that is beyond what a timestamp can hold.
pub(crate) fn expiry(lifetime: Duration) -> Option<Timestamp> {
    Timestamp::now().checked_add(lifetime).ok()
}

fn admin() -> UserInfo {
    let groups = [MASTERS, "system:authenticated"].map(str::to_owned).to_vec();
    UserInfo {
        username: Some("system:admin".to_owned()),
        groups: Some(groups),
        ..UserInfo::default()
    }
}

/// A service account as a user.
pub(crate) fn service_account(namespace: &str, name: &str, uid: &str) -> UserInfo {
    let groups = [
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
        "system:authenticated".to_owned(),
    ];
    UserInfo {
        username: Some(format!("system:serviceaccount:{namespace}:{name}")),
        uid: (!uid.is_empty()).then(|| uid.to_owned()),
        groups: Some(groups.to_vec()),
        extra: None,
    }
}
