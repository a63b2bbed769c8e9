//! The table: what each method of the API asks of its caller. There is no other place that says so.

use crate::domain::{
    access::Attributes,
    pod::{ContainerKind, Pod},
};

/// The methods of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// `Debug/Create`
    DebugCreate,
    /// `Debug/Get`
    DebugGet,
    /// `Debug/List`
    DebugList,
    /// `Debug/End`
    DebugEnd,
    /// `Namespaces/Verify`
    NamespacesVerify,
    /// `Namespaces/VerifyNode`
    NamespacesVerifyNode,
    /// `Node/Get`
    NodeGet,
    /// `Capture/Start`
    CaptureStart,
    /// `Capture/Compile`
    CaptureCompile,
    /// `Capture/ListInterfaces`
    CaptureListInterfaces,
    /// `Files/Stat`
    FilesStat,
    /// `Files/List`
    FilesList,
    /// `Files/Read`
    FilesRead,
    /// `Files/Walk`
    FilesWalk,
    /// `Files/Checksum`
    FilesChecksum,
    /// `Files/Write`
    FilesWrite,
}

/// Something that RBAC must allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Right {
    /// `get pods` for one pod, `list pods` for those of a namespace or of all.
    SeePods,
    /// `patch pods/ephemeralcontainers`.
    DebugPod,
    /// `create captures` of the group `podsonde.dev`, for the pod's name: no built-in verb covers reading other people's packets.
    CapturePod,
    /// `create pods/exec`: what already reads the files of a container.
    ExecInPod,
    /// `update files` of the group `podsonde.dev`, for the pod's name.
    WriteFiles,
    /// `get nodes`: what a node's status shows.
    SeeNode,
    /// `create nodes/proxy`: what already is power over the node.
    RuleNode,
}

/// What a method asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permission {
    /// All of these, on what the request names.
    pub rights: &'static [Right],
    /// And these, if it is to be done as root.
    pub as_root: &'static [Right],
    /// And these, if the pod is as powerful as its node.
    pub on_powerful_pods: &'static [Right],
    /// And these, if the pod's network is its node's.
    pub on_host_network: &'static [Right],
    /// And these, if the pod has a directory of the node in it.
    pub on_host_paths: &'static [Right],
    /// Whether it changes something. If so, nothing that was answered before counts.
    pub mutates: bool,
}

impl Permission {
    /// Whether what it asks for depends on what the pod is.
    pub const fn depends_on_pod(&self) -> bool {
        !(self.on_powerful_pods.is_empty()
            && self.on_host_network.is_empty()
            && self.on_host_paths.is_empty())
    }
}

impl Method {
    /// Every method there is.
    pub const ALL: &'static [Self] = &[
        Self::DebugCreate,
        Self::DebugGet,
        Self::DebugList,
        Self::DebugEnd,
        Self::NamespacesVerify,
        Self::NamespacesVerifyNode,
        Self::NodeGet,
        Self::CaptureStart,
        Self::CaptureCompile,
        Self::CaptureListInterfaces,
        Self::FilesStat,
        Self::FilesList,
        Self::FilesRead,
        Self::FilesWalk,
        Self::FilesChecksum,
        Self::FilesWrite,
    ];

    /// Its name in metrics, logs and the audit log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DebugCreate => "Debug/Create",
            Self::DebugGet => "Debug/Get",
            Self::DebugList => "Debug/List",
            Self::DebugEnd => "Debug/End",
            Self::NamespacesVerify => "Namespaces/Verify",
            Self::NamespacesVerifyNode => "Namespaces/VerifyNode",
            Self::NodeGet => "Node/Get",
            Self::CaptureStart => "Capture/Start",
            Self::CaptureCompile => "Capture/Compile",
            Self::CaptureListInterfaces => "Capture/ListInterfaces",
            Self::FilesStat => "Files/Stat",
            Self::FilesList => "Files/List",
            Self::FilesRead => "Files/Read",
            Self::FilesWalk => "Files/Walk",
            Self::FilesChecksum => "Files/Checksum",
            Self::FilesWrite => "Files/Write",
        }
    }

    /// What it asks of its caller. There is no default: a new method does not compile without.
    pub const fn permission(self) -> Permission {
        const fn read(rights: &'static [Right]) -> Permission {
            Permission {
                rights,
                as_root: &[],
                on_powerful_pods: &[],
                on_host_network: &[],
                on_host_paths: &[],
                mutates: false,
            }
        }
        match self {
            // The debug container is made by the agent's service account, so what the caller's own would have been refused by
            // admission may pass. On pods that are as good as root on the node that is too much.
            Self::DebugCreate | Self::DebugEnd => Permission {
                rights: &[Right::SeePods, Right::DebugPod],
                as_root: &[],
                on_powerful_pods: &[Right::RuleNode],
                on_host_network: &[],
                on_host_paths: &[],
                mutates: true,
            },
            Self::DebugGet
            | Self::DebugList
            | Self::NamespacesVerify
            | Self::NamespacesVerifyNode => read(&[Right::SeePods]),
            Self::NodeGet => read(&[Right::SeeNode]),
            // A capture on the node's own network holds everybody's packets. Compiling and listing are parts of one.
            Self::CaptureStart | Self::CaptureCompile | Self::CaptureListInterfaces => Permission {
                rights: &[Right::SeePods, Right::CapturePod],
                as_root: &[],
                on_powerful_pods: &[Right::RuleNode],
                on_host_network: &[Right::RuleNode],
                on_host_paths: &[],
                mutates: false,
            },
            // What `kubectl exec` reads with an image that has the tools. As root, what a debug container would.
            Self::FilesStat
            | Self::FilesList
            | Self::FilesRead
            | Self::FilesWalk
            | Self::FilesChecksum => Permission {
                rights: &[Right::SeePods, Right::ExecInPod],
                as_root: &[Right::DebugPod],
                on_powerful_pods: &[Right::RuleNode],
                on_host_network: &[],
                on_host_paths: &[Right::RuleNode],
                mutates: false,
            },
            Self::FilesWrite => Permission {
                rights: &[Right::SeePods, Right::ExecInPod, Right::WriteFiles],
                as_root: &[Right::DebugPod],
                on_powerful_pods: &[Right::RuleNode],
                on_host_network: &[],
                on_host_paths: &[Right::RuleNode],
                mutates: true,
            },
        }
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
    /// What is asked of the API server, for a call about `object` on `node`.
    pub fn attributes(self, object: &Object, node: &str) -> Attributes {
        let (namespace, name) = object.names();
        let pods = Attributes {
            resource: "pods",
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..Attributes::default()
        };
        let nodes =
            Attributes { resource: "nodes", name: node.to_owned(), ..Attributes::default() };
        match self {
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
            Self::RuleNode => Attributes { verb: "create", subresource: "proxy", ..nodes },
        }
    }
}

/// Whether who controls the pod's containers controls the node.
pub fn is_powerful(pod: &Pod) -> bool {
    // Ephemeral containers were added by somebody who has the very right that is asked for anyway.
    let privileged = |kind, privileged| privileged && kind != ContainerKind::Ephemeral;
    pod.host_pid || pod.host_ipc || pod.containers.iter().any(|c| privileged(c.kind, c.privileged))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(method: Method, object: &Object) -> Vec<String> {
        method
            .permission()
            .rights
            .iter()
            .map(|right| right.attributes(object, "n").to_string())
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
            assert_eq!(method.permission().on_host_network, [Right::RuleNode]);
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
            let permission = method.permission();
            assert_eq!(permission.as_root, [Right::DebugPod]);
            assert_eq!(
                (permission.on_powerful_pods, permission.on_host_paths),
                (&[Right::RuleNode][..], &[Right::RuleNode][..])
            );
        }
        assert_eq!(Right::RuleNode.attributes(&pod, "n").to_string(), "create nodes/proxy n");
    }
}
