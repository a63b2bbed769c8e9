//! Why something failed, for programs. Covers the reasons of the client and of agents, including
//! agents newer than this client.

use std::fmt;

use tonic::Code;

use crate::domain::Reason as AgentReason;

/// Declares [`Reason`] with the client's own reasons, their words and their gRPC codes.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $word:literal => $code:ident,)+) => {
        /// Why something failed. Compares equal to its word; `proto/podsonde/v1` documents the
        /// words of agents.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)+
            /// A reason that this version of the agent's API documents. The client uses some of
            /// them itself, when it sends the API server the request that an agent would send.
            Agent(AgentReason),
            /// A reason that only a newer agent knows. For an answer without a reason, the name of
            /// its gRPC code.
            Other(String),
        }

        impl Reason {
            /// The stable word for programs, in UPPER_SNAKE.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$name => $word,)+
                    Self::Agent(reason) => reason.as_str(),
                    Self::Other(word) => word,
                }
            }

            /// Finds the reason for a word; an unknown word becomes [`Self::Other`].
            #[must_use]
            pub fn parse(word: &str) -> Self {
                match word {
                    $($word => Self::$name,)+
                    _ => AgentReason::parse(word)
                        .map_or_else(|| Self::Other(word.to_owned()), Self::Agent),
                }
            }

            /// The gRPC code of an error that the client itself raises for this reason.
            pub(super) fn code(&self) -> Code {
                match self {
                    $(Self::$name => Code::$code,)+
                    Self::Agent(AgentReason::PodNotFound) => Code::NotFound,
                    Self::Agent(AgentReason::PodNotScheduled) => Code::FailedPrecondition,
                    Self::Agent(AgentReason::ApiUnreachable) => Code::Unavailable,
                    Self::Agent(_) | Self::Other(_) => Code::Unknown,
                }
            }

            #[cfg(test)]
            const OWN: &[Self] = &[$(Self::$name,)+];
        }
    };
}

reasons! {
    /// The endpoint of an agent is malformed.
    EndpointInvalid = "ENDPOINT_INVALID" => InvalidArgument,
    /// Nothing answers at the agent's endpoint.
    AgentUnreachable = "AGENT_UNREACHABLE" => Unavailable,
    /// The agent's certificate differs from the one in its Lease or in the options.
    CertificateMismatch = "CERTIFICATE_MISMATCH" => Unavailable,
    /// No trusted authority has signed the agent's certificate for its name.
    CertificateUntrusted = "CERTIFICATE_UNTRUSTED" => Unavailable,
    /// A file of certificates cannot be used.
    CertificateFileInvalid = "CERTIFICATE_FILE_INVALID" => InvalidArgument,
    /// The fingerprint of a certificate is malformed.
    FingerprintInvalid = "FINGERPRINT_INVALID" => InvalidArgument,
    /// The agent refuses the client's certificate.
    ClientCertificateRefused = "CLIENT_CERTIFICATE_REFUSED" => Unauthenticated,
    /// The agent has no Lease that names the certificate it serves.
    AgentNotPublished = "AGENT_NOT_PUBLISHED" => FailedPrecondition,
    /// The connection to the agent ended before its answer was complete.
    ConnectionLost = "CONNECTION_LOST" => Unavailable,
    /// The answer did not come within the request timeout.
    RequestTimeout = "REQUEST_TIMEOUT" => DeadlineExceeded,
    /// The agent's answer violates the protocol.
    Protocol = "PROTOCOL" => Internal,
    /// The content of a file differs from what the agent announced.
    ChecksumMismatch = "CHECKSUM_MISMATCH" => Aborted,
    /// A file of this machine cannot be used.
    LocalFile = "LOCAL_FILE" => FailedPrecondition,
    /// The node has no agent pod.
    AgentNotFound = "AGENT_NOT_FOUND" => NotFound,
    /// The node's agent pod is not Ready.
    AgentNotReady = "AGENT_NOT_READY" => Unavailable,
    /// The API server could not forward a port to the agent pod.
    PortForwardFailed = "PORT_FORWARD_FAILED" => Unavailable,
    /// The workload does not exist, or has no pods.
    WorkloadNotFound = "WORKLOAD_NOT_FOUND" => NotFound,
    /// The credentials for agents cannot be read.
    CredentialsUnusable = "CREDENTIALS_UNUSABLE" => Unauthenticated,
    /// There is neither a kubeconfig nor a service account.
    KubeconfigMissing = "KUBECONFIG_MISSING" => FailedPrecondition,
    /// The kubeconfig cannot be used.
    KubeconfigInvalid = "KUBECONFIG_INVALID" => InvalidArgument,
    /// The API server does not accept the credentials.
    ApiUnauthenticated = "API_UNAUTHENTICATED" => Unauthenticated,
    /// The API server denies the request to this user.
    ApiForbidden = "API_FORBIDDEN" => PermissionDenied,
    /// The API server has no such object.
    ApiNotFound = "API_NOT_FOUND" => NotFound,
    /// The API server refused for another reason.
    ApiError = "API_ERROR" => Internal,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq<&str> for Reason {
    fn eq(&self, word: &&str) -> bool {
        self.as_str() == *word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back_as_the_reasons_they_stand_for() {
        let agents = AgentReason::ALL.iter().copied().map(Reason::Agent);
        let other = Reason::Other("OF_A_LATER_VERSION".to_owned());
        for reason in Reason::OWN.iter().cloned().chain(agents).chain([other]) {
            assert_eq!(Reason::parse(reason.as_str()), reason);
        }
    }
}
