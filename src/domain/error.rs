//! The one error of podsonde's logic. Its [`Reason`] is for programs, its message for people.

use std::fmt;

/// A result that fails with the domain's [`Error`] unless another is named.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The class of a failure. One exhaustive table in `agent::rpc::status` turns it into a gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is malformed, whatever the state of the cluster.
    InvalidArgument,
    /// The named object does not exist.
    NotFound,
    /// The object to create exists already.
    AlreadyExists,
    /// The caller showed no credentials, or bad ones.
    Unauthenticated,
    /// The caller, or the agent itself, lacks the permission.
    PermissionDenied,
    /// The state of the cluster or of the pod does not allow the operation.
    FailedPrecondition,
    /// An object was replaced during the request; a new request may succeed.
    Aborted,
    /// A limit was reached.
    ResourceExhausted,
    /// The kernel or runtime cannot do it.
    Unimplemented,
    /// A service that the agent needs cannot be reached at the moment.
    Unavailable,
    /// The request took longer than it may.
    DeadlineExceeded,
    /// A bug in podsonde.
    Internal,
}

/// Declares [`Reason`] from a table: one row for each reason, with its form on the wire and its
/// kind.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $wire:literal => $kind:ident,)+) => {
        /// Why something failed, for programs. Sent as `reason` of `google.rpc.ErrorInfo`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)+ }

        impl Reason {
            /// All reasons, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The reason that has this wire form.
            pub fn parse(wire: &str) -> Option<Self> {
                match wire {
                    $($wire => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// The form on the wire, in UPPER_SNAKE.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $wire,)+ }
            }

            /// The class of failure, which decides the gRPC code.
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
    /// There is no such pod.
    PodNotFound = "POD_NOT_FOUND" => NotFound,
    /// The pod has no such container.
    ContainerNotFound = "CONTAINER_NOT_FOUND" => NotFound,
    /// The pod has no such network interface.
    InterfaceNotFound = "INTERFACE_NOT_FOUND" => NotFound,
    /// The pod has no such session.
    SessionNotFound = "SESSION_NOT_FOUND" => NotFound,
    /// There is no file at that path.
    PathNotFound = "PATH_NOT_FOUND" => NotFound,
    /// The pod already has a container of that name.
    NameTaken = "NAME_TAKEN" => AlreadyExists,
    /// There is a file at that path already.
    FileExists = "FILE_EXISTS" => AlreadyExists,
    /// An admission policy or webhook refused the change.
    AdmissionDenied = "ADMISSION_DENIED" => PermissionDenied,
    /// The agent's own service account lacks a permission.
    AgentForbidden = "AGENT_FORBIDDEN" => PermissionDenied,
    /// The caller showed no credentials.
    NoCredentials = "NO_CREDENTIALS" => Unauthenticated,
    /// The API server does not accept the caller's token, or the credential is no token.
    BadToken = "BAD_TOKEN" => Unauthenticated,
    /// The caller's token was issued for another audience than the agent.
    WrongAudience = "WRONG_AUDIENCE" => Unauthenticated,
    /// The caller's token has expired.
    TokenExpired = "TOKEN_EXPIRED" => Unauthenticated,
    /// The caller's certificate names no user, or has expired.
    BadCertificate = "BAD_CERTIFICATE" => Unauthenticated,
    /// The API server's rules do not allow the caller the operation.
    Forbidden = "FORBIDDEN" => PermissionDenied,
    /// The agent does not serve the caller's kind of connection.
    PeerRefused = "PEER_REFUSED" => PermissionDenied,
    /// The path leads to files that are not the container's: procfs, sysfs or a similar file
    /// system, or through a magic link.
    PathRefused = "PATH_REFUSED" => PermissionDenied,
    /// The user that the files are accessed as lacks the permission.
    FilePermission = "FILE_PERMISSION" => PermissionDenied,
    /// The pod runs on another node.
    PodOnOtherNode = "POD_ON_OTHER_NODE" => FailedPrecondition,
    /// The pod has not been scheduled to a node yet.
    PodNotScheduled = "POD_NOT_SCHEDULED" => FailedPrecondition,
    /// Another pod has the name now.
    PodReplaced = "POD_REPLACED" => FailedPrecondition,
    /// The pod has run to its end.
    PodFinished = "POD_FINISHED" => FailedPrecondition,
    /// The pod is being deleted.
    PodTerminating = "POD_TERMINATING" => FailedPrecondition,
    /// The kubelet runs the pod from a file; the API cannot change it.
    StaticPod = "STATIC_POD" => FailedPrecondition,
    /// The container does not run, so it has no packets to capture and no files to read.
    ContainerNotRunning = "CONTAINER_NOT_RUNNING" => FailedPrecondition,
    /// The target container does not run.
    TargetNotRunning = "TARGET_NOT_RUNNING" => FailedPrecondition,
    /// The pod runs in a virtual machine or on a user-space kernel; the node does not see its
    /// processes.
    VmIsolated = "VM_ISOLATED" => FailedPrecondition,
    /// The image cannot be pulled.
    ImagePullFailed = "IMAGE_PULL_FAILED" => FailedPrecondition,
    /// The kubelet cannot parse the image's name.
    ImageNameInvalid = "IMAGE_NAME_INVALID" => FailedPrecondition,
    /// The kubelet refuses the container's configuration.
    ConfigRejected = "CONFIG_REJECTED" => FailedPrecondition,
    /// The runtime cannot create the container.
    CreateFailed = "CREATE_FAILED" => FailedPrecondition,
    /// The runtime cannot run the container's command.
    CommandFailed = "COMMAND_FAILED" => FailedPrecondition,
    /// The container has exited.
    ContainerExited = "CONTAINER_EXITED" => FailedPrecondition,
    /// The container's root is still the host's, because the runtime is setting it up.
    HostRoot = "HOST_ROOT" => FailedPrecondition,
    /// The path leads to something other than a regular file.
    NotAFile = "NOT_A_FILE" => FailedPrecondition,
    /// The path leads to something other than a directory.
    NotADirectory = "NOT_A_DIRECTORY" => FailedPrecondition,
    /// The path leads through more symbolic links than the kernel follows (40).
    TooManyLinks = "TOO_MANY_LINKS" => FailedPrecondition,
    /// The file system or its mount is read-only.
    ReadOnlyFileSystem = "READ_ONLY_FILE_SYSTEM" => FailedPrecondition,
    /// The file system or the owner's quota is full.
    FileSystemFull = "FILE_SYSTEM_FULL" => FailedPrecondition,
    /// The file system failed: an I/O error, or a network or FUSE file system that has gone away.
    FileSystemFailed = "FILE_SYSTEM_FAILED" => FailedPrecondition,
    /// The session's container has not started.
    SessionNotStarted = "SESSION_NOT_STARTED" => FailedPrecondition,
    /// No process was found that could be proven to be the container's.
    ProcessNotFound = "PROCESS_NOT_FOUND" => FailedPrecondition,
    /// The agent may not read a namespace of the process, or of the process it is compared with.
    Unreadable = "UNREADABLE" => FailedPrecondition,
    /// The pod was deleted during the request.
    PodDeleted = "POD_DELETED" => Aborted,
    /// The container was restarted during the request.
    ContainerRestarted = "CONTAINER_RESTARTED" => Aborted,
    /// The process ended during the request.
    ProcessGone = "PROCESS_GONE" => Aborted,
    /// The file, or a directory that leads to it, changed during the request.
    FileChanged = "FILE_CHANGED" => Aborted,
    /// The pod kept changing while the agent tried to patch it.
    Conflict = "CONFLICT" => Aborted,
    /// The node, or one namespace on it, has its full number of sessions.
    TooManySessions = "TOO_MANY_SESSIONS" => ResourceExhausted,
    /// The agent serves its full number of requests, or that of the caller.
    TooManyRequests = "TOO_MANY_REQUESTS" => ResourceExhausted,
    /// The agent runs its full number of captures, or that of the caller.
    TooManyCaptures = "TOO_MANY_CAPTURES" => ResourceExhausted,
    /// The rings of running captures take all the memory that captures may use.
    CaptureMemory = "CAPTURE_MEMORY" => ResourceExhausted,
    /// The agent cannot compile filters, because libpcap is missing.
    FilterUnsupported = "FILTER_UNSUPPORTED" => Unimplemented,
    /// All threads for file work are busy, or the share of them that the caller or the container
    /// may have.
    TooManyFileRequests = "TOO_MANY_FILE_REQUESTS" => ResourceExhausted,
    /// The kernel lacks a feature that the request needs.
    KernelUnsupported = "KERNEL_UNSUPPORTED" => Unimplemented,
    /// The agent was not started with `--allow-file-writes`.
    WritesDisabled = "WRITES_DISABLED" => Unimplemented,
    /// The API server cannot be reached, or is overloaded.
    ApiUnreachable = "API_UNREACHABLE" => Unavailable,
    /// The API server gave no answer about who the caller is or what the caller may do.
    ReviewFailed = "REVIEW_FAILED" => Unavailable,
    /// The request could not be written to the audit log.
    AuditFailed = "AUDIT_FAILED" => Unavailable,
    /// The agent has just started and has not read its node's pods yet.
    NotReady = "NOT_READY" => Unavailable,
    /// The process that enters namespaces for the agent has ended.
    BrokerLost = "BROKER_LOST" => Unavailable,
    /// The agent is shutting down.
    Draining = "DRAINING" => Unavailable,
    /// The request took longer than its deadline.
    Deadline = "DEADLINE" => DeadlineExceeded,
    /// The container did not start in time.
    StartDeadline = "START_DEADLINE" => DeadlineExceeded,
    /// The file system did not answer in time, as a dead network or FUSE file system does not.
    FileSystemStuck = "FILE_SYSTEM_STUCK" => DeadlineExceeded,
    /// The caller hung up, so nobody reads this error; it stands in logs.
    PeerGone = "PEER_GONE" => Aborted,
    /// A system call failed unexpectedly.
    SystemCall = "SYSTEM_CALL" => Internal,
    /// A bug in podsonde.
    Bug = "BUG" => Internal,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a failed request left a debug container in the pod's spec, where it stays for as long as
/// the pod lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SpecEntry {
    /// The spec has no such container.
    #[default]
    None,
    /// Unknown, because the API server's answer was lost.
    Possible,
    /// The spec has the container.
    Permanent,
}

/// The objects that an error is about. Empty fields are unknown or do not apply.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    /// Name of the node that the error comes from.
    pub node: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container in the pod.
    pub container: String,
    /// Field of the request as a path in the proto: `pod.name`, `custom_json.ports`.
    pub field: String,
    /// Resource that the caller lacks a permission on, as kubectl writes it:
    /// `captures.podsonde.dev`.
    pub resource: String,
    /// Whether the request left a container in the pod's spec.
    pub spec_entry: SpecEntry,
}

/// A failure: a reason for programs, a message for people, and the objects it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Why it failed, for programs.
    pub reason: Reason,
    /// Why it failed, for people: one sentence without a full stop.
    pub message: String,
    /// The objects it is about. Boxed to keep results small.
    pub context: Box<Context>,
}

impl Error {
    /// An error without context.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), context: Box::default() }
    }

    /// An error about the request's field at `path`, which is malformed.
    pub fn invalid(path: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::new(Reason::InvalidField, message);
        error.context.field = path.into();
        error
    }

    /// The class of failure, which decides the gRPC code.
    pub fn kind(&self) -> ErrorKind {
        self.reason.kind()
    }

    /// Names the pod that the error is about.
    #[must_use]
    pub fn pod(mut self, namespace: &str, pod: &str) -> Self {
        self.context.namespace = namespace.to_owned();
        self.context.pod = pod.to_owned();
        self
    }

    /// Names the container that the error is about.
    #[must_use]
    pub fn container(mut self, container: &str) -> Self {
        self.context.container = container.to_owned();
        self
    }

    /// Names the node that the error comes from.
    #[must_use]
    pub fn node(mut self, node: &str) -> Self {
        self.context.node = node.to_owned();
        self
    }

    /// Says whether the request left a container in the pod's spec.
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
