//! The one error of podsonde's logic. Its [`Reason`] is for programs, its message for people.

use std::fmt;

/// Shorthand for results with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What class of failure it is. One exhaustive table in `agent::rpc::status` makes a gRPC code of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is malformed whatever the state of the cluster.
    InvalidArgument,
    /// What was named does not exist.
    NotFound,
    /// What should be made exists.
    AlreadyExists,
    /// No or bad credentials.
    Unauthenticated,
    /// The caller, or the agent, may not.
    PermissionDenied,
    /// The cluster or the pod is not in a state that allows it.
    FailedPrecondition,
    /// Something was replaced meanwhile; a new request may succeed.
    Aborted,
    /// A limit is reached.
    ResourceExhausted,
    /// The kernel or runtime cannot do it.
    Unimplemented,
    /// Something that is needed cannot be reached now.
    Unavailable,
    /// It took too long.
    DeadlineExceeded,
    /// A bug.
    Internal,
}

/// Declares [`Reason`], its kind and its wire form in one table.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $wire:literal => $kind:ident,)+) => {
        /// Why something failed, for programs. Sent as `reason` of `google.rpc.ErrorInfo`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)+ }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The form on the wire, UPPER_SNAKE.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $wire,)+ }
            }

            /// The class of failure.
            pub const fn kind(self) -> ErrorKind {
                match self { $(Self::$name => ErrorKind::$kind,)+ }
            }
        }
    };
}

reasons! {
    /// A field of the request is malformed.
    InvalidField = "INVALID_FIELD" => InvalidArgument,
    /// The API server refused the container as invalid.
    RejectedByApi = "REJECTED_BY_API" => InvalidArgument,
    /// No such pod.
    PodNotFound = "POD_NOT_FOUND" => NotFound,
    /// The pod has no such container.
    ContainerNotFound = "CONTAINER_NOT_FOUND" => NotFound,
    /// The pod has no such network interface.
    InterfaceNotFound = "INTERFACE_NOT_FOUND" => NotFound,
    /// The pod has no such session.
    SessionNotFound = "SESSION_NOT_FOUND" => NotFound,
    /// Nothing is at that path.
    PathNotFound = "PATH_NOT_FOUND" => NotFound,
    /// The pod already has a container of that name.
    NameTaken = "NAME_TAKEN" => AlreadyExists,
    /// Something is at that path already.
    FileExists = "FILE_EXISTS" => AlreadyExists,
    /// An admission policy or webhook refused it.
    AdmissionDenied = "ADMISSION_DENIED" => PermissionDenied,
    /// The agent's own service account may not do it.
    AgentForbidden = "AGENT_FORBIDDEN" => PermissionDenied,
    /// The caller showed nothing that says who it is.
    NoCredentials = "NO_CREDENTIALS" => Unauthenticated,
    /// The API server does not know the caller's token, or what was shown is no token.
    BadToken = "BAD_TOKEN" => Unauthenticated,
    /// The caller's token is for somebody else than the agent.
    WrongAudience = "WRONG_AUDIENCE" => Unauthenticated,
    /// The caller's token is not valid any more.
    TokenExpired = "TOKEN_EXPIRED" => Unauthenticated,
    /// The caller's certificate names nobody, or is not valid any more.
    BadCertificate = "BAD_CERTIFICATE" => Unauthenticated,
    /// The API server's rules do not let the caller do it.
    Forbidden = "FORBIDDEN" => PermissionDenied,
    /// The caller's transport is not one the agent serves.
    PeerRefused = "PEER_REFUSED" => PermissionDenied,
    /// The path leads to or through what is not the container's: procfs, sysfs and the like, or a magic link.
    PathRefused = "PATH_REFUSED" => PermissionDenied,
    /// The user that the files are read as may not.
    FilePermission = "FILE_PERMISSION" => PermissionDenied,
    /// The pod runs on another node.
    PodOnOtherNode = "POD_ON_OTHER_NODE" => FailedPrecondition,
    /// The pod is not scheduled to a node yet.
    PodNotScheduled = "POD_NOT_SCHEDULED" => FailedPrecondition,
    /// Another pod has the name now.
    PodReplaced = "POD_REPLACED" => FailedPrecondition,
    /// The pod has run to its end.
    PodFinished = "POD_FINISHED" => FailedPrecondition,
    /// The pod is being deleted.
    PodTerminating = "POD_TERMINATING" => FailedPrecondition,
    /// The kubelet runs the pod from a file; the API cannot change it.
    StaticPod = "STATIC_POD" => FailedPrecondition,
    /// The container does not run, so there is nothing to capture from or to read.
    ContainerNotRunning = "CONTAINER_NOT_RUNNING" => FailedPrecondition,
    /// The target container does not run.
    TargetNotRunning = "TARGET_NOT_RUNNING" => FailedPrecondition,
    /// The pod runs in a virtual machine or a user-space kernel; its processes are not the node's.
    VmIsolated = "VM_ISOLATED" => FailedPrecondition,
    /// The image cannot be pulled.
    ImagePullFailed = "IMAGE_PULL_FAILED" => FailedPrecondition,
    /// The image's name is not one.
    ImageNameInvalid = "IMAGE_NAME_INVALID" => FailedPrecondition,
    /// The kubelet refuses the container's configuration.
    ConfigRejected = "CONFIG_REJECTED" => FailedPrecondition,
    /// The runtime cannot create the container.
    CreateFailed = "CREATE_FAILED" => FailedPrecondition,
    /// The runtime cannot run the container's command.
    CommandFailed = "COMMAND_FAILED" => FailedPrecondition,
    /// The container has exited.
    ContainerExited = "CONTAINER_EXITED" => FailedPrecondition,
    /// The container's root is the host's: it is still being set up.
    HostRoot = "HOST_ROOT" => FailedPrecondition,
    /// Not a regular file.
    NotAFile = "NOT_A_FILE" => FailedPrecondition,
    /// Not a directory.
    NotADirectory = "NOT_A_DIRECTORY" => FailedPrecondition,
    /// The path leads through too many symbolic links.
    TooManyLinks = "TOO_MANY_LINKS" => FailedPrecondition,
    /// The file system, or its mount, is read-only.
    ReadOnlyFileSystem = "READ_ONLY_FILE_SYSTEM" => FailedPrecondition,
    /// The file system, or the owner's quota, is full.
    FileSystemFull = "FILE_SYSTEM_FULL" => FailedPrecondition,
    /// The file system failed: an I/O error, a network or FUSE file system that is gone.
    FileSystemFailed = "FILE_SYSTEM_FAILED" => FailedPrecondition,
    /// The session's container has not started.
    SessionNotStarted = "SESSION_NOT_STARTED" => FailedPrecondition,
    /// No process of the container was found, or it could not be proven to be the container's.
    ProcessNotFound = "PROCESS_NOT_FOUND" => FailedPrecondition,
    /// A namespace of a proven process, or of what it is compared with, may not be read.
    Unreadable = "UNREADABLE" => FailedPrecondition,
    /// The pod was deleted meanwhile.
    PodDeleted = "POD_DELETED" => Aborted,
    /// The container was restarted meanwhile.
    ContainerRestarted = "CONTAINER_RESTARTED" => Aborted,
    /// The process went away meanwhile.
    ProcessGone = "PROCESS_GONE" => Aborted,
    /// The file, or the directories that lead to it, changed meanwhile.
    FileChanged = "FILE_CHANGED" => Aborted,
    /// The pod changed while it was patched, several times over.
    Conflict = "CONFLICT" => Aborted,
    /// The node has as many sessions as it may have.
    TooManySessions = "TOO_MANY_SESSIONS" => ResourceExhausted,
    /// The agent is busy with as many requests as it may be.
    TooManyRequests = "TOO_MANY_REQUESTS" => ResourceExhausted,
    /// The agent has as many captures as it may have, or the caller has.
    TooManyCaptures = "TOO_MANY_CAPTURES" => ResourceExhausted,
    /// The rings of running captures take all the memory that captures may take.
    CaptureMemory = "CAPTURE_MEMORY" => ResourceExhausted,
    /// The agent has nothing to compile a filter with.
    FilterUnsupported = "FILTER_UNSUPPORTED" => Unimplemented,
    /// All threads for file work, or the share of them that the caller or the container may have, are taken.
    TooManyFileRequests = "TOO_MANY_FILE_REQUESTS" => ResourceExhausted,
    /// The kernel lacks something.
    KernelUnsupported = "KERNEL_UNSUPPORTED" => Unimplemented,
    /// The agent was not started with `--allow-file-writes`.
    WritesDisabled = "WRITES_DISABLED" => Unimplemented,
    /// The API server cannot be reached or is overloaded.
    ApiUnreachable = "API_UNREACHABLE" => Unavailable,
    /// The API server did not say who the caller is or what it may do.
    ReviewFailed = "REVIEW_FAILED" => Unavailable,
    /// The request could not be written to the audit log.
    AuditFailed = "AUDIT_FAILED" => Unavailable,
    /// The agent has not read its node's pods yet.
    NotReady = "NOT_READY" => Unavailable,
    /// The process that enters namespaces for the agent has ended.
    BrokerLost = "BROKER_LOST" => Unavailable,
    /// The agent is shutting down.
    Draining = "DRAINING" => Unavailable,
    /// The request took longer than its deadline.
    Deadline = "DEADLINE" => DeadlineExceeded,
    /// The container did not run in time.
    StartDeadline = "START_DEADLINE" => DeadlineExceeded,
    /// The file system did not answer in time: a dead network or FUSE file system.
    FileSystemStuck = "FILE_SYSTEM_STUCK" => DeadlineExceeded,
    /// The caller hung up; nobody reads this.
    PeerGone = "PEER_GONE" => Aborted,
    /// A system call failed that should not.
    SystemCall = "SYSTEM_CALL" => Internal,
    /// A bug.
    Bug = "BUG" => Internal,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether the debug container stands in the pod's spec after an error, where it stays for as long as the pod lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SpecEntry {
    /// No.
    #[default]
    None,
    /// It cannot be told: the API server's answer was lost.
    Possible,
    /// Yes.
    Permanent,
}

/// What an error is about. Empty fields are unknown or do not apply.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    /// Node.
    pub node: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Container.
    pub container: String,
    /// Field of the request, as a proto path: `pod.name`, `custom_json.ports`.
    pub field: String,
    /// Whether a spec entry remains.
    pub spec_entry: SpecEntry,
}

/// A failure, with what it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Why.
    pub reason: Reason,
    /// One sentence for a person, without a full stop.
    pub message: String,
    /// What it is about. Boxed to keep results small.
    pub context: Box<Context>,
}

impl Error {
    /// An error without context.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), context: Box::default() }
    }

    /// The request's field at `path` is malformed.
    pub fn invalid(path: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::new(Reason::InvalidField, message);
        error.context.field = path.into();
        error
    }

    /// The class of failure.
    pub fn kind(&self) -> ErrorKind {
        self.reason.kind()
    }

    /// Says which pod it is about.
    #[must_use]
    pub fn pod(mut self, namespace: &str, pod: &str) -> Self {
        self.context.namespace = namespace.to_owned();
        self.context.pod = pod.to_owned();
        self
    }

    /// Says which container it is about.
    #[must_use]
    pub fn container(mut self, container: &str) -> Self {
        self.context.container = container.to_owned();
        self
    }

    /// Says on which node it happened.
    #[must_use]
    pub fn node(mut self, node: &str) -> Self {
        self.context.node = node.to_owned();
        self
    }

    /// Says whether a spec entry remains.
    #[must_use]
    pub fn spec_entry(mut self, entry: SpecEntry) -> Self {
        self.context.spec_entry = entry;
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Context { namespace, pod, container, field, .. } = &*self.context;
        if !field.is_empty() {
            write!(f, "{field}: ")?;
        }
        if !pod.is_empty() {
            write!(f, "pod {namespace}/{pod}")?;
            if !container.is_empty() {
                write!(f, ", container {container}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn reasons_are_distinct_and_upper_snake() {
        let names: HashSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        assert!(names.iter().all(|n| n.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')));
    }

    #[test]
    fn display_names_field_then_pod() {
        let e = Error::invalid("pod.name", "is empty");
        assert_eq!(e.to_string(), "pod.name: is empty");
        let e = Error::new(Reason::NameTaken, "has a container of that name")
            .pod("default", "web")
            .container("d");
        assert_eq!(e.to_string(), "pod default/web, container d: has a container of that name");
    }
}
