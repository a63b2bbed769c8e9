//! The table: one row for each RPC, which says all that the agent has to know about it beforehand.
//!
//! Everything else that names the RPCs is derived from the rows: names in the audit log and in
//! metrics, the services that health reports on, the paths whose requests are streams, and the
//! longest message that is decoded. A unit test compares the rows with the compiled proto files.

use std::time::Duration;

use crate::{
    domain::{
        access::{Attributes, Requirement},
        pod::{Container, ContainerKind, Pod},
    },
    proto::v1,
};

/// Declares [`Method`] and its [`Row`]s.
macro_rules! methods {
    ($($name:ident $wire:literal, $max_time:expr, $queue:literal, $input:expr, $permission:expr;)+) => {
        /// The RPCs of the API.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Method {
            $(#[doc = concat!("`", $wire, "`")] $name,)+
        }

        impl Method {
            /// Every method, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The method's row.
            pub const fn row(self) -> &'static Row {
                match self {
                    $(Self::$name => const {
                        &Row {
                            name: $wire,
                            max_time: $max_time,
                            queue: $queue,
                            input: $input,
                            permission: $permission,
                        }
                    },)+
                }
            }
        }
    };
}

methods! {
    // A request may wait 600 s for a container to start, and 300 s for processes to end.
    DebugCreate           "Debug/Create",           seconds(660), 16, Input::Message, CREATE;
    DebugGet              "Debug/Get",              seconds(30),  16, Input::Message, SEE_PODS;
    DebugList             "Debug/List",             seconds(30),  16, Input::Message, SEE_PODS;
    DebugEnd              "Debug/End",              seconds(330), 16, Input::Message, END;
    NamespacesVerify      "Namespaces/Verify",      seconds(30),  16, Input::Message, SEE_PODS;
    NamespacesVerifyNode  "Namespaces/VerifyNode",  seconds(120), 16, Input::Message, SEE_PODS;
    NodeGet               "Node/Get",               seconds(30),  16, Input::Message, SEE_NODE;
    // A capture may last for 24 hours; the rest is for starting and ending it.
    CaptureStart          "Capture/Start",          hours(25),    16, Input::Message, CAPTURE;
    CaptureCompile        "Capture/Compile",        seconds(30),  16, Input::Message, CAPTURE;
    CaptureListInterfaces "Capture/ListInterfaces", seconds(30),  16, Input::Message, CAPTURE;
    FilesStat             "Files/Stat",             seconds(30),  1,  Input::Message, READ_FILES;
    FilesList             "Files/List",             seconds(30),  1,  Input::Message, READ_FILES;
    // As long as a slow client takes for a large file, or follows one.
    FilesRead             "Files/Read",             hours(24),    1,  Input::Message, READ_FILES;
    FilesWalk             "Files/Walk",             hours(24),    2,  Input::Message, READ_FILES;
    FilesChecksum         "Files/Checksum",         hours(24),    2,  Input::Message, READ_FILES;
    FilesWrite            "Files/Write",            hours(24),    1,  WRITE_PARTS,    WRITE_FILES;
}

/// What the agent knows about an RPC before a request arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Service and method without the package, as the audit log, metrics and logs show it:
    /// `Debug/Create`.
    pub name: &'static str,
    /// How long a request may take, whatever longer deadline the caller sets.
    pub max_time: Duration,
    /// Messages of a streamed answer that wait for a slow client. Few where messages are large.
    pub queue: usize,
    /// What the client sends.
    pub input: Input,
    /// What the API server must allow the caller.
    pub permission: Permission,
}

/// What the client of a method sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// One message of at most `--max-request-bytes`.
    Message,
    /// A stream of messages.
    Stream {
        /// Bytes that each message may have.
        max_message: usize,
    },
}

/// A part of a file has at most 1 MiB; the rest is for the message around it.
const WRITE_PARTS: Input = Input::Stream { max_message: (1 << 20) + 64 * 1024 };

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn hours(hours: u64) -> Duration {
    seconds(hours * 3600)
}

/// Something that RBAC must allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Right {
    /// `get pods` for one pod, `list pods` for those of a namespace or of all.
    SeePods,
    /// `patch pods/ephemeralcontainers`.
    DebugPod,
    /// `create captures` of the group `podsonde.dev`, for the pod's name. No built-in verb covers
    /// reading other people's packets.
    CapturePod,
    /// `create pods/exec`: what already reads the files of a container.
    ExecInPod,
    /// `update files` of the group `podsonde.dev`, for the pod's name.
    WriteFiles,
    /// `get nodes`: what a node's status shows.
    SeeNode,
    /// `create nodes/proxy`, which already is power over the node. Fine-grained kubelet
    /// authorization takes that right from people and agents, so `create nodes` of the group
    /// `podsonde.dev`, for the node's name, is as good.
    RuleNode,
}

/// What the API server must allow the caller of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permission {
    /// Always required, on the pod, namespace or node that the request names.
    pub rights: &'static [Right],
    /// Also required if files are to be read or written as root.
    pub as_root: &'static [Right],
    /// Also required if who controls the pod controls its node.
    pub on_powerful_pods: &'static [Right],
    /// Also required if the pod uses its node's network.
    pub on_host_network: &'static [Right],
    /// Also required if the pod mounts a directory of its node.
    pub on_host_paths: &'static [Right],
    /// Whether the method changes something. If so, cached answers of the API server do not count.
    pub mutates: bool,
}

/// What reading methods require on any pod; each permission adds its own to this.
const fn reading(rights: &'static [Right]) -> Permission {
    Permission {
        rights,
        as_root: &[],
        on_powerful_pods: &[],
        on_host_network: &[],
        on_host_paths: &[],
        mutates: false,
    }
}

const SEE_PODS: Permission = reading(&[Right::SeePods]);
const SEE_NODE: Permission = reading(&[Right::SeeNode]);

/// On a pod that controls its node, ending a container takes power over that node.
const END: Permission = Permission {
    on_powerful_pods: &[Right::RuleNode],
    mutates: true,
    ..reading(&[Right::SeePods, Right::DebugPod])
};

/// The agent's service account creates the debug container, so admission does not judge the caller
/// by their own rights. A debug container can mount the pod's host paths or find them below
/// `/proc/1/root`, writable, so it takes what reading files takes there.
const CREATE: Permission = Permission { on_host_paths: &[Right::RuleNode], ..END };

/// The node's own network carries everybody's packets. Compiling a filter and listing interfaces
/// are steps of a capture.
const CAPTURE: Permission = Permission {
    on_powerful_pods: &[Right::RuleNode],
    on_host_network: &[Right::RuleNode],
    ..reading(&[Right::SeePods, Right::CapturePod])
};

/// `kubectl exec` reads the same files if the image has the tools. As root, a debug container reads
/// them.
const READ_FILES: Permission = Permission {
    as_root: &[Right::DebugPod],
    on_powerful_pods: &[Right::RuleNode],
    on_host_paths: &[Right::RuleNode],
    ..reading(&[Right::SeePods, Right::ExecInPod])
};

/// Like reading, with a right of its own.
const WRITE_FILES: Permission = Permission {
    rights: &[Right::SeePods, Right::ExecInPod, Right::WriteFiles],
    mutates: true,
    ..READ_FILES
};

impl Permission {
    /// Whether what is required depends on the pod's spec.
    pub const fn depends_on_pod(&self) -> bool {
        !(self.on_powerful_pods.is_empty()
            && self.on_host_network.is_empty()
            && self.on_host_paths.is_empty())
    }
}

impl Method {
    /// The name in the audit log, in metrics and in logs: `Debug/Create`.
    pub const fn as_str(self) -> &'static str {
        self.row().name
    }

    /// The path of the method's HTTP requests: `/podsonde.v1.Debug/Create`.
    pub fn path(self) -> String {
        format!("/{}.{}", v1::PACKAGE, self.as_str())
    }

    /// The full names of all services, each once: `podsonde.v1.Debug`.
    pub fn services() -> Vec<String> {
        let name = |method: &Self| {
            let (service, _) = method.as_str().split_once('/').unwrap_or_default();
            format!("{}.{service}", v1::PACKAGE)
        };
        let mut services: Vec<_> = Self::ALL.iter().map(name).collect();
        services.sort_unstable();
        services.dedup();
        services
    }

    /// The methods whose clients send a stream: their path, and the bytes that each message may
    /// have.
    pub fn streams() -> impl Iterator<Item = (String, usize)> {
        Self::ALL.iter().filter_map(|method| match method.row().input {
            Input::Message => None,
            Input::Stream { max_message } => Some((method.path(), max_message)),
        })
    }
}

/// What a call is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// One pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its UID, if the caller said so.
        uid: String,
    },
    /// All pods of a namespace.
    Namespace(String),
    /// All pods.
    AllNamespaces,
    /// The node.
    Node,
}

impl Object {
    /// Namespace and name of the pod or pods; empty for all.
    pub fn names(&self) -> (&str, &str) {
        match self {
            Self::Pod { namespace, name, .. } => (namespace, name),
            Self::Namespace(namespace) => (namespace, ""),
            Self::AllNamespaces | Self::Node => ("", ""),
        }
    }
}

impl Right {
    /// What the API server is asked about a call about `object` on `node`.
    pub fn requirement(self, object: &Object, node: &str) -> Requirement {
        let (namespace, name) = object.names();
        let pods = Attributes {
            resource: "pods",
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..Attributes::default()
        };
        let nodes =
            Attributes { resource: "nodes", name: node.to_owned(), ..Attributes::default() };
        let right = match self {
            Self::SeePods => {
                Attributes { verb: if name.is_empty() { "list" } else { "get" }, ..pods }
            }
            Self::DebugPod => {
                Attributes { verb: "patch", subresource: "ephemeralcontainers", ..pods }
            }
            Self::CapturePod => {
                Attributes { verb: "create", group: "podsonde.dev", resource: "captures", ..pods }
            }
            Self::ExecInPod => Attributes { verb: "create", subresource: "exec", ..pods },
            Self::WriteFiles => {
                Attributes { verb: "update", group: "podsonde.dev", resource: "files", ..pods }
            }
            Self::SeeNode => Attributes { verb: "get", ..nodes },
            Self::RuleNode => {
                let own = Attributes { verb: "create", group: "podsonde.dev", ..nodes.clone() };
                return Requirement {
                    right: Attributes { verb: "create", subresource: "proxy", ..nodes },
                    alternative: Some(own),
                };
            }
        };
        right.into()
    }
}

/// Whether who controls the pod's containers controls the node.
///
/// This relies only on what a pod's author cannot change later: the API server refuses changes of
/// these fields of the spec, and any addition, change or removal of the annotation of mirror pods.
/// That annotation says which static pod's processes are meant, and any pod's author can set it
/// when they create the pod. A static pod itself, etcd say, often is the cluster.
pub fn is_powerful(pod: &Pod) -> bool {
    // Ephemeral containers were added by somebody who has the very right that is asked for anyway.
    let privileged = |c: &Container| c.privileged && c.kind != ContainerKind::Ephemeral;
    pod.mirror || pod.host_pid || pod.host_ipc || pod.containers.iter().any(privileged)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost::Message;

    use super::*;

    fn asks(method: Method, object: &Object) -> Vec<String> {
        method
            .row()
            .permission
            .rights
            .iter()
            .map(|right| right.requirement(object, "n").to_string())
            .collect()
    }

    #[test]
    fn the_table() {
        let pod = Object::Pod { namespace: "a".into(), name: "web".into(), uid: String::new() };
        let (some, all) = (Object::Namespace("a".into()), Object::AllNamespaces);
        let get = "get pods web in namespace a";
        let patch = "patch pods/ephemeralcontainers web in namespace a";
        assert_eq!(asks(Method::DebugCreate, &pod), [get, patch]);
        assert_eq!(asks(Method::DebugEnd, &pod), [get, patch]);
        for method in [Method::DebugGet, Method::NamespacesVerify, Method::DebugList] {
            assert_eq!(asks(method, &pod), [get]);
        }
        for method in [Method::DebugList, Method::NamespacesVerifyNode] {
            assert_eq!(asks(method, &some), ["list pods in namespace a"]);
            assert_eq!(asks(method, &all), ["list pods in all namespaces"]);
        }
        assert_eq!(asks(Method::NodeGet, &Object::Node), ["get nodes n"]);
        let capture = "create captures.podsonde.dev web in namespace a";
        for method in [Method::CaptureStart, Method::CaptureCompile, Method::CaptureListInterfaces]
        {
            assert_eq!(asks(method, &pod), [get, capture]);
            assert_eq!(method.row().permission.on_host_network, [Right::RuleNode]);
        }
        let exec = "create pods/exec web in namespace a";
        let files = [
            Method::FilesStat,
            Method::FilesList,
            Method::FilesRead,
            Method::FilesWalk,
            Method::FilesChecksum,
        ];
        for method in files {
            assert_eq!(asks(method, &pod), [get, exec]);
        }
        assert_eq!(
            asks(Method::FilesWrite, &pod),
            [get, exec, "update files.podsonde.dev web in namespace a"]
        );
        for method in Method::ALL.iter().filter(|method| method.as_str().starts_with("Files/")) {
            let permission = method.row().permission;
            assert_eq!(permission.as_root, [Right::DebugPod]);
            assert_eq!(
                (permission.on_powerful_pods, permission.on_host_paths),
                (&[Right::RuleNode][..], &[Right::RuleNode][..])
            );
        }
        assert_eq!(
            Right::RuleNode.requirement(&pod, "n").to_string(),
            "create nodes/proxy n or create nodes.podsonde.dev n"
        );
        assert_eq!(Method::DebugCreate.row().permission.on_host_paths, [Right::RuleNode]);
    }

    /// The rows and the compiled proto files name the same methods, and agree on which clients
    /// stream.
    #[test]
    fn the_table_agrees_with_the_proto_files() {
        let set = prost_types::FileDescriptorSet::decode(v1::DESCRIPTORS).unwrap();
        let mut declared = BTreeMap::new();
        for service in set.file.iter().flat_map(|file| &file.service) {
            for method in &service.method {
                let name = format!("{}/{}", service.name(), method.name());
                declared.insert(name, method.client_streaming());
            }
        }
        let streams = |method: &Method| matches!(method.row().input, Input::Stream { .. });
        let rows: BTreeMap<_, _> = Method::ALL
            .iter()
            .map(|method| (method.as_str().to_owned(), streams(method)))
            .collect();
        assert_eq!(rows, declared);
        assert_eq!(rows.len(), Method::ALL.len(), "two rows of one name");
    }
}
