//! What each request asks for: its method, what it is about, and what the audit log says of it. A request without does not get past the
//! [gate](super::gate).

use super::convert;
use crate::{
    agent::access::{Method, Object},
    domain::{Result, name},
    kube::container,
    proto::v1,
};

/// A request of the API.
pub trait Operation {
    /// Its method.
    const METHOD: Method;

    /// What it is about.
    ///
    /// # Errors
    /// INVALID_FIELD.
    fn object(&self) -> Result<Object>;

    /// What else it asks for, as the audit log names it. Nothing that may hold a secret: no command, no environment, no definition.
    fn parameters(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Makes the request one about the pod of this UID alone: the one that the caller was found to have the rights for.
    fn bind(&mut self, _pod_uid: &str) {}
}

fn bind(pod: &mut Option<v1::PodRef>, uid: &str) {
    if let Some(pod) = pod {
        uid.clone_into(&mut pod.uid);
    }
}

fn text(duration: Option<&prost_types::Duration>) -> String {
    // Not by its own Display, which panics on what is out of range.
    duration.map(|d| format!("{}.{:09}s", d.seconds, d.nanos)).unwrap_or_default()
}

impl Operation for v1::DebugCreateRequest {
    const METHOD: Method = Method::DebugCreate;

    fn object(&self) -> Result<Object> {
        convert::pod_object(self.pod.as_ref())
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let image = match self.image.is_empty() {
            true => container::image_of(&self.container_json).unwrap_or_default(),
            false => self.image.clone(),
        };
        let profile = match self.profile {
            0 => String::new(),
            _ => self.profile().as_str_name().trim_start_matches("PROFILE_").to_ascii_lowercase(),
        };
        vec![
            ("container", self.name.clone()),
            ("image", image),
            ("target", self.target_container.clone()),
            ("profile", profile),
            ("ttl", text(self.ttl.as_ref())),
        ]
    }

    fn bind(&mut self, pod_uid: &str) {
        bind(&mut self.pod, pod_uid);
    }
}

impl Operation for v1::DebugGetRequest {
    const METHOD: Method = Method::DebugGet;

    fn object(&self) -> Result<Object> {
        convert::pod_object(self.pod.as_ref())
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        vec![("session", self.session.clone())]
    }
}

impl Operation for v1::DebugListRequest {
    const METHOD: Method = Method::DebugList;

    fn object(&self) -> Result<Object> {
        if self.pod.is_empty() {
            return convert::namespace_object(&self.namespace);
        }
        name::label("namespace", &self.namespace)?;
        name::subdomain("pod", &self.pod)?;
        let (namespace, name) = (self.namespace.clone(), self.pod.clone());
        Ok(Object::Pod { namespace, name, uid: String::new() })
    }
}

impl Operation for v1::DebugEndRequest {
    const METHOD: Method = Method::DebugEnd;

    fn object(&self) -> Result<Object> {
        convert::pod_object(self.pod.as_ref())
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let grace = text(self.grace_period.as_ref());
        vec![("session", self.session.clone()), ("gracePeriod", grace)]
    }

    fn bind(&mut self, pod_uid: &str) {
        bind(&mut self.pod, pod_uid);
    }
}

impl Operation for v1::NamespacesVerifyRequest {
    const METHOD: Method = Method::NamespacesVerify;

    fn object(&self) -> Result<Object> {
        convert::pod_object(self.pod.as_ref())
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        vec![("container", self.container.clone())]
    }
}

impl Operation for v1::NamespacesVerifyNodeRequest {
    const METHOD: Method = Method::NamespacesVerifyNode;

    fn object(&self) -> Result<Object> {
        convert::namespace_object(&self.namespace)
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        vec![("selector", self.label_selector.clone())]
    }
}

impl Operation for v1::CaptureStartRequest {
    const METHOD: Method = Method::CaptureStart;

    fn object(&self) -> Result<Object> {
        convert::pod_object(self.pod.as_ref())
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let unless_zero = |number: u64| if number == 0 { String::new() } else { number.to_string() };
        let direction = match self.direction {
            0 => String::new(),
            _ => self.direction().as_str_name().trim_start_matches("CAPTURE_DIRECTION_").to_ascii_lowercase(),
        };
        vec![
            ("container", self.container.clone()),
            ("interface", self.interface.clone()),
            ("filter", self.filter.clone()),
            ("snaplen", unless_zero(self.snaplen.into())),
            ("maxPackets", unless_zero(self.max_packets)),
            ("maxBytes", unless_zero(self.max_bytes)),
            ("maxDuration", text(self.max_duration.as_ref())),
            ("ringBytes", unless_zero(self.ring_bytes)),
            ("direction", direction),
        ]
    }

    fn bind(&mut self, pod_uid: &str) {
        bind(&mut self.pod, pod_uid);
    }
}

impl Operation for v1::CaptureCompileRequest {
    const METHOD: Method = Method::CaptureCompile;

    fn object(&self) -> Result<Object> {
        convert::pod_object(self.pod.as_ref())
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        vec![("interface", self.interface.clone()), ("filter", self.filter.clone())]
    }

    fn bind(&mut self, pod_uid: &str) {
        bind(&mut self.pod, pod_uid);
    }
}

impl Operation for v1::CaptureListInterfacesRequest {
    const METHOD: Method = Method::CaptureListInterfaces;

    fn object(&self) -> Result<Object> {
        convert::pod_object(self.pod.as_ref())
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        vec![("container", self.container.clone())]
    }

    fn bind(&mut self, pod_uid: &str) {
        bind(&mut self.pod, pod_uid);
    }
}

impl Operation for v1::NodeGetRequest {
    const METHOD: Method = Method::NodeGet;

    fn object(&self) -> Result<Object> {
        Ok(Object::Node)
    }
}
