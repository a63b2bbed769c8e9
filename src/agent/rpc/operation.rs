//! What a request says about itself before it is let in: its method, what it is about, and what the
//! audit log shows of it.
//!
//! [`Gate`](super::gate::Gate) takes only requests that implement [`Operation`], which stands
//! beside the handler. Nothing here has a default: what is forgotten does not compile.

use super::convert;
use crate::{
    agent::access::{Method, Object},
    domain::{Error, Result, name},
    proto::v1,
};

/// A request of the API.
pub trait Operation {
    /// The method that the request calls.
    const METHOD: Method;

    /// What the request is about. The gate asks for the rights to it, and binds the request to the
    /// pod it found.
    fn subject(&mut self) -> Subject<'_>;

    /// The request's fields for the audit log, by their names in the proto files. Nothing that may
    /// hold a secret: no command, no environment, no container definition.
    fn parameters(&self) -> Vec<(&'static str, String)>;
}

/// What a request is about.
#[derive(Debug)]
pub enum Subject<'r> {
    /// One pod.
    Pod(&'r mut Option<v1::PodRef>),
    /// The files of one pod's container.
    Files(&'r mut Option<v1::FileTarget>),
    /// The pods of a namespace, or of all namespaces if it is empty; if `pod` is not empty, the one
    /// of that name. Only for methods whose rights do not depend on the pod, because such a request
    /// cannot be bound to one.
    Pods {
        /// Namespace, or nothing for all.
        namespace: &'r str,
        /// Name of a pod, or nothing for all.
        pod: &'r str,
    },
    /// The node.
    Node,
}

impl Subject<'_> {
    /// The object that rights are asked for.
    ///
    /// # Errors
    /// INVALID_FIELD.
    pub fn object(&self) -> Result<Object> {
        match self {
            Self::Pod(pod) => convert::pod_object(pod.as_ref()),
            Self::Files(Some(target)) => convert::pod_object(target.pod.as_ref()),
            Self::Files(None) => Err(Error::invalid("target", "is required")),
            Self::Pods { namespace, pod: "" } => convert::namespace_object(namespace),
            Self::Pods { namespace, pod } => {
                name::label("namespace", namespace)?;
                name::subdomain("pod", pod)?;
                let (namespace, name) = ((*namespace).to_owned(), (*pod).to_owned());
                Ok(Object::Pod { namespace, name, uid: String::new() })
            }
            Self::Node => Ok(Object::Node),
        }
    }

    /// Whether the request asks to work as root, which takes a right of its own.
    pub fn as_root(&self) -> bool {
        matches!(self, Self::Files(Some(target)) if target.as_root)
    }

    /// Binds the request to the pod with this UID: the one that the caller was found to have the
    /// rights for. If another pod takes the name before the handler runs, the handler refuses to
    /// act on it. Returns whether the request could be bound.
    #[must_use]
    pub fn bind(self, uid: &str) -> bool {
        let pod = match self {
            Self::Pod(pod) => pod.as_mut(),
            Self::Files(target) => target.as_mut().and_then(|target| target.pod.as_mut()),
            Self::Pods { .. } | Self::Node => None,
        };
        match pod {
            Some(pod) => {
                uid.clone_into(&mut pod.uid);
                true
            }
            None => false,
        }
    }
}

/// A duration for the audit log. Its own Display would panic on values that are out of range.
pub(super) fn duration_text(duration: Option<&prost_types::Duration>) -> String {
    duration.map(|d| format!("{}.{:09}s", d.seconds, d.nanos)).unwrap_or_default()
}

/// A value of an enum for the audit log: `PROFILE_SYSADMIN` as `sysadmin`. Nothing for the value 0,
/// which means unspecified.
pub(super) fn enum_text(value: i32, name: &str, prefix: &str) -> String {
    match value {
        0 => String::new(),
        _ => name.trim_start_matches(prefix).to_ascii_lowercase(),
    }
}

/// A number for the audit log. Nothing for 0, which means that the request leaves it to the agent.
pub(super) fn number_text(number: u64) -> String {
    if number == 0 { String::new() } else { number.to_string() }
}
