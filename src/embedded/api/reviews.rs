//! Requests that are answered and not stored: token reviews, access reviews, and new tokens.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::{
        authentication::v1::{
            SelfSubjectReview, SelfSubjectReviewStatus, TokenRequest, TokenRequestStatus,
            TokenReview, UserInfo,
        },
        authorization::v1::{
            ResourceAttributes, SelfSubjectAccessReview, SubjectAccessReview,
            SubjectAccessReviewStatus,
        },
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    Server,
    identity::{TokenIdentity, expiry, service_account},
    object, rbac,
    request::RequestTarget,
    resources::SERVICE_ACCOUNTS,
    status::ApiStatus,
};

/// The shortest and the default lifetime of a requested token, in seconds.
const LIFETIME: (i64, i64) = (600, 3600);

impl Server {
    /// Answers the review `given` for `user`. None if the target is a stored kind.
    pub(super) fn review(
        &self,
        target: &RequestTarget,
        user: &UserInfo,
        given: &Value,
    ) -> Option<Result<Arc<Value>, ApiStatus>> {
        let answer = match (target.resource.kind, target.subresource.as_str()) {
            ("TokenReview", _) => answer(given, |review: &mut TokenReview| {
                let audiences = review.spec.audiences.clone().unwrap_or_default();
                review.status = Some(self.identities.review(&review.spec.token, &audiences));
            }),
            ("SubjectAccessReview", _) => answer(given, |review: &mut SubjectAccessReview| {
                let spec = review.spec.clone();
                let subject = UserInfo {
                    username: spec.user,
                    uid: spec.uid,
                    groups: spec.groups,
                    extra: spec.extra,
                };
                review.status = Some(self.decide(&subject, spec.resource_attributes.as_ref()));
            }),
            ("SelfSubjectAccessReview", _) => {
                answer(given, |review: &mut SelfSubjectAccessReview| {
                    review.status =
                        Some(self.decide(user, review.spec.resource_attributes.as_ref()));
                })
            }
            ("SelfSubjectReview", _) => answer(given, |review: &mut SelfSubjectReview| {
                review.status = Some(SelfSubjectReviewStatus { user_info: Some(user.clone()) });
            }),
            ("ServiceAccount", "token") => self.token(target, given),
            _ => return None,
        };
        Some(answer.map(Arc::new))
    }

    fn decide(
        &self,
        user: &UserInfo,
        wanted: Option<&ResourceAttributes>,
    ) -> SubjectAccessReviewStatus {
        let found = wanted.and_then(|wanted| rbac::allows(&self.store, user, wanted));
        SubjectAccessReviewStatus {
            allowed: found.is_some(),
            reason: found.filter(|reason| !reason.is_empty()),
            ..SubjectAccessReviewStatus::default()
        }
    }

    fn token(&self, target: &RequestTarget, given: &Value) -> Result<Value, ApiStatus> {
        let account = self.store.get(&SERVICE_ACCOUNTS, &target.namespace, &target.name);
        let account =
            account.ok_or_else(|| ApiStatus::not_found(&SERVICE_ACCOUNTS, &target.name))?;
        answer(given, |request: &mut TokenRequest| {
            let spec = request.spec.clone().unwrap_or_default();
            let seconds = spec.expiration_seconds.unwrap_or(LIFETIME.1).max(LIFETIME.0);
            let expires_at = expiry(Duration::from_secs(seconds.unsigned_abs()));
            let uid = object::text(&account, "/metadata/uid");
            let token = self.identities.issue(TokenIdentity {
                user: service_account(&target.namespace, &target.name, uid),
                audiences: spec.audiences.unwrap_or_default(),
                expires_at,
                pod_uid: String::new(),
            });
            let expiration_timestamp = expires_at.map(Time);
            request.status = Some(TokenRequestStatus { expiration_timestamp, token: Some(token) });
        })
    }
}

fn answer<T: DeserializeOwned + Serialize>(
    given: &Value,
    complete: impl FnOnce(&mut T),
) -> Result<Value, ApiStatus> {
    let mut review: T = serde_json::from_value(given.clone()).map_err(|why| {
        ApiStatus::bad_request(format!("the object provided is unrecognized: {why}"))
    })?;
    complete(&mut review);
    serde_json::to_value(review).map_err(ApiStatus::internal)
}
