//! What each request asks for: its method, what it is about, and what the audit log says of it. A request without does not get past the
//! [gate](super::gate).

use super::convert;
use crate::{
    agent::access::{Method, Object},
    domain::{Error, Result, name},
    kube::container,
    proto::v1,
    sys::rooted,
};

/// A request of the API.
pub trait Operation {
    /// Its method.
    const METHOD: Method;
    /// Messages of its stream that wait for a slow client, at most.
    const QUEUE: usize = 16;

    /// What it is about.
    ///
    /// # Errors
    /// INVALID_FIELD.
    fn object(&self) -> Result<Object>;

    /// What else it asks for, as the audit log names it. Nothing that may hold a secret: no command, no environment, no definition.
    fn parameters(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Whether it is to be done as root, which takes a right of its own.
    fn as_root(&self) -> bool {
        false
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
        let unless_zero =
            |number: u64| if number == 0 { String::new() } else { number.to_string() };
        let direction = match self.direction {
            0 => String::new(),
            _ => self
                .direction()
                .as_str_name()
                .trim_start_matches("CAPTURE_DIRECTION_")
                .to_ascii_lowercase(),
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

/// What requests about files have in common. `$more`: what the audit log says of one besides.
macro_rules! files {
    ($request:ident, $method:ident, $queue:literal, |$q:ident| $more:expr) => {
        impl Operation for v1::$request {
            const METHOD: Method = Method::$method;
            const QUEUE: usize = $queue;

            fn object(&self) -> Result<Object> {
                let target =
                    self.target.as_ref().ok_or_else(|| Error::invalid("target", "is required"))?;
                convert::pod_object(target.pod.as_ref())
            }

            fn parameters(&self) -> Vec<(&'static str, String)> {
                let $q = self;
                let mut parameters = vec![("path", rooted::show(&self.path))];
                if let Some(target) = &self.target {
                    let view = target
                        .view()
                        .as_str_name()
                        .trim_start_matches("ROOT_VIEW_")
                        .to_ascii_lowercase();
                    parameters.push(("container", target.container.clone()));
                    parameters.push(("view", view));
                    parameters.push(("as_root", target.as_root.to_string()));
                }
                parameters.extend($more);
                parameters
            }

            fn as_root(&self) -> bool {
                self.target.as_ref().is_some_and(|target| target.as_root)
            }

            fn bind(&mut self, pod_uid: &str) {
                if let Some(target) = &mut self.target {
                    bind(&mut target.pod, pod_uid);
                }
            }
        }
    };
}

files!(FilesStatRequest, FilesStat, 1, |_q| Vec::new());
files!(FilesListRequest, FilesList, 1, |q| vec![("after", rooted::show(&q.after))]);
// Its messages are large.
files!(FilesReadRequest, FilesRead, 1, |q| {
    let lines = q.tail_lines.map(|lines| lines.to_string()).unwrap_or_default();
    vec![
        ("offset", q.offset.to_string()),
        ("length", q.length.to_string()),
        ("tail_lines", lines),
        ("follow", q.follow.to_string()),
    ]
});
files!(FilesWalkRequest, FilesWalk, 2, |q| {
    let depth = q.max_depth.map(|depth| depth.to_string()).unwrap_or_default();
    vec![("max_depth", depth), ("cross_mounts", q.cross_mounts.to_string())]
});
files!(FilesChecksumRequest, FilesChecksum, 2, |q| {
    vec![("offset", q.offset.to_string()), ("length", q.length.to_string())]
});
files!(FilesWriteStart, FilesWrite, 1, |q| {
    vec![("mode", format!("{:04o}", q.mode)), ("overwrite", q.overwrite.to_string())]
});
