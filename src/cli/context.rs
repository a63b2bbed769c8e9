//! What every command starts from: the agents to ask, the namespace, and the terminal.

use std::{io, path::Path, process::ExitCode};

use k8s_openapi::ByteString;
use kube::{
    Client, Config,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use secrecy::ExposeSecret;

use super::{hint::hint, options::GlobalArgs, table::Tone, terminal::Terminal, values::Named};
use crate::{
    client::{
        self, ClientIdentity, ConnectOptions, Credentials, Endpoint, Error, Failure, Fleet, Reason,
        Trust, by_reason,
    },
    kube::workloads::{self, WorkloadKind},
};

/// Path of the projected token for agents, when podsonde runs in a pod.
const PROJECTED_TOKEN: &str = "/var/run/secrets/podsonde.dev/token";

/// How a command ended. The help documents the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    Ok,
    Error,
    Usage,
    Drift,
    Unknown,
    Interrupted,
    /// `diff` found differences.
    Differs,
    /// `ls` and `diff` met more than a minor problem.
    Trouble,
}

impl Exit {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Error | Self::Differs => 1,
            Self::Usage | Self::Trouble => 2,
            Self::Drift => 3,
            Self::Unknown => 4,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// The arguments are invalid or contradict each other.
    Usage(String),
    /// A request to an agent or to the API server failed.
    Asking(Box<Error>),
    /// The result could not be written.
    Output(io::Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Asking(Box::new(error))
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// The global options and the terminal, which every command needs.
pub(super) struct Context {
    pub(super) global: GlobalArgs,
    pub(super) terminal: Terminal,
    /// The name of the program in hints: `podsonde` or `kubectl podsonde`.
    pub(super) program: &'static str,
}

/// The agents to ask, and the namespace.
pub(super) struct Scope {
    pub(super) fleet: Fleet,
    /// The namespace of pods that are named without one.
    pub(super) namespace: String,
    /// The API server's client. `None` if an agent is asked directly.
    pub(super) kube: Option<Client>,
}

impl Context {
    /// Uses the agent that `--agent` names, or else those of the kubeconfig's cluster.
    pub(super) async fn scope(&self) -> Result<Scope, Error> {
        if let Some(endpoint) = &self.global.agent {
            let namespace = self.global.namespace.clone().unwrap_or_else(|| "default".to_owned());
            let options = ConnectOptions {
                credentials: self.credentials(None)?,
                ..self.options_for(endpoint).await?
            };
            let fleet = Fleet::direct(endpoint.clone(), options);
            return Ok(Scope { fleet, namespace, kube: None });
        }
        let config = config(&self.global).await?;
        let (credentials, identity) =
            (self.credentials(Some(&config))?, identity(&config.auth_info).await?);
        let options = ConnectOptions { credentials, identity, ..self.options() };
        let (client, default_namespace) = connect(config)?;
        let namespace = self.global.namespace.clone().unwrap_or(default_namespace);
        let fleet = Fleet::cluster(client.clone(), Some(&self.global.agent_namespace), options);
        Ok(Scope { fleet, namespace, kube: Some(client) })
    }

    /// The API server's client, and the default namespace of its configuration.
    pub(super) async fn kube(&self) -> Result<(Client, String), Error> {
        connect(config(&self.global).await?)
    }

    /// Chooses the token for agents: the one in `--token-file`, the projected one, or the
    /// kubeconfig's. The kubeconfig's token is also valid at the API server. It is therefore not
    /// sent to an endpoint that the user typed.
    fn credentials(&self, config: Option<&Config>) -> Result<Credentials, Error> {
        let projected = Path::new(PROJECTED_TOKEN);
        match (&self.global.token_file, config) {
            (Some(file), _) => Ok(Credentials::token_file(file)),
            (None, _) if projected.exists() => Ok(Credentials::token_file(projected)),
            (None, Some(config)) => Credentials::of(config),
            (None, None) => Ok(Credentials::default()),
        }
    }

    /// The name of the pod to use: for a workload, its first pod. Says which one, unless `quiet`.
    pub(super) async fn pod_of(
        &self,
        scope: &Scope,
        namespace: &str,
        object: &Named,
        quiet: bool,
    ) -> Result<String, Failed> {
        let (kind, name) = match object {
            Named::Pod(name) => return Ok(name.clone()),
            Named::Other { kind, name } => (kind, name),
        };
        let Some(workload) = WorkloadKind::named(kind) else {
            let hint = if matches!(kind.as_str(), "node" | "nodes" | "no") {
                "; nodes: kubectl debug node/NAME"
            } else {
                ""
            };
            return Err(Failed::Usage(format!("{kind} is not a type that owns pods{hint}")));
        };
        let client = self.api_client(scope).await?;
        let object = format!("{kind}/{name}");
        let pods =
            workloads::pods_of(&client, namespace, &workload, name).await.map_err(|error| {
                let error = Error::from_kube(&error, &format!("find the pods of {object}"));
                match error.reason {
                    Reason::ApiNotFound => Error::new(
                        Reason::WorkloadNotFound,
                        format!("there is no {object} in namespace {namespace}"),
                    ),
                    _ => error,
                }
            })?;
        let Some(pod) = pods.first() else {
            let message = format!("{object} in namespace {namespace} has no pods");
            return Err(Error::new(Reason::WorkloadNotFound, message).into());
        };
        if !quiet && pods.len() > 1 {
            self.terminal.note(&format!("{object} has {} pods, using pod/{pod}", pods.len()));
        }
        Ok(pod.clone())
    }

    /// The API server's client, even if an agent is asked directly.
    pub(super) async fn api_client(&self, scope: &Scope) -> Result<Client, Error> {
        match &scope.kube {
            Some(client) => Ok(client.clone()),
            None => Ok(self.kube().await?.0),
        }
    }

    /// Refuses a node name together with `--agent`: that agent knows no other node than its own.
    pub(super) fn refuse_nodes_with_agent(&self) -> Result<(), Failed> {
        if self.global.agent.is_none() {
            return Ok(());
        }
        Err(Failed::Usage(
            "a node cannot be chosen with --agent (or PODSONDE_AGENT): that agent knows its own only".into(),
        ))
    }

    fn options(&self) -> ConnectOptions {
        let timeout = self.global.request_timeout;
        ConnectOptions {
            request_timeout: (!timeout.is_zero()).then_some(timeout),
            direct: self.global.direct,
            insecure: self.global.insecure_agent,
            ..ConnectOptions::default()
        }
    }

    /// The options for the agent at `endpoint`, which need not belong to a cluster. If there is a
    /// kubeconfig, the client presents its certificate and looks for the agent's Lease.
    async fn options_for(&self, endpoint: &Endpoint) -> Result<ConnectOptions, Error> {
        let mut options = self.options();
        let Endpoint::Https(uri) = endpoint else { return Ok(options) };
        options.trust = match (&self.global.agent_ca, self.global.agent_fingerprint) {
            (Some(file), _) => Some(Trust::authorities(file)?),
            (None, Some(fingerprint)) => Some(Trust::Fingerprint(fingerprint)),
            (None, None) => None,
        };
        let Ok(config) = config(&self.global).await else { return Ok(options) };
        options.identity = identity(&config.auth_info).await?;
        if options.trust.is_none() {
            let address = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
            let (client, _) = connect(config)?;
            let found =
                client::published_trust(&client, &self.global.agent_namespace, address, &options);
            options.trust = found.await.unwrap_or_else(|error| {
                tracing::info!(%error, "the agent's Lease is not looked at");
                None
            });
        }
        Ok(options)
    }

    /// Prints why a command failed and what to do next.
    pub(super) fn report(&self, failed: &Failed) -> Exit {
        match failed {
            Failed::Usage(message) => {
                self.terminal.error(message);
                self.terminal.hint(&format!("see {} --help", self.program));
                Exit::Usage
            }
            Failed::Asking(error) => {
                self.explain(&error.message, error);
                Exit::Error
            }
            Failed::Output(error) => {
                self.terminal.error(&format!("cannot write the result: {error}"));
                Exit::Error
            }
        }
    }

    /// Prints the failures, one error for each reason.
    pub(super) fn report_failures(&self, failures: &[Failure]) {
        for (reason, group) in by_reason(failures) {
            let [first, rest @ ..] = group.as_slice() else { continue };
            if rest.is_empty() {
                self.explain(&first.error.message, &first.error);
                continue;
            }
            let named: Vec<&str> =
                group.iter().take(8).map(|failure| failure.subject.as_str()).collect();
            let more = match group.len() - named.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let message = format!(
                "{} times {reason} ({}{more}), first: {}",
                group.len(),
                named.join(", "),
                first.error.message
            );
            self.explain(&message, &first.error);
        }
    }

    pub(super) fn explain(&self, message: &str, error: &Error) {
        self.terminal.error(&message.replace('\n', " "));
        if let Some(entry) = error.fact("spec_entry") {
            let verb = if entry == "permanent" { "stays" } else { "may be, and then stays," };
            let container = error.fact("container").unwrap_or("the debug container");
            let stays = format!(
                "the entry of container {container} {verb} in the pod's spec; the next try needs another name"
            );
            self.terminal.labelled("note", Tone::Doubtful, &stays);
        }
        if let Some(hint) = hint(error, self.program) {
            self.terminal.hint(&hint);
        }
        tracing::debug!(reason = %error.reason, code = ?error.code, facts = ?error.metadata, "error");
    }
}

/// Makes the API server's client. Also returns the default namespace of the configuration.
fn connect(config: Config) -> Result<(Client, String), Error> {
    tracing::debug!(url = %config.cluster_url, "API server");
    let namespace = config.default_namespace.clone();
    let client = Client::try_from(config).map_err(|error| {
        Error::new(Reason::KubeconfigInvalid, format!("cannot use the kubeconfig: {error}"))
    })?;
    Ok((client, namespace))
}

/// The client certificate in a kubeconfig, if there is one.
async fn identity(auth: &AuthInfo) -> Result<Option<ClientIdentity>, Error> {
    let invalid = |what: &str, why: &dyn std::fmt::Display| {
        let message = format!("cannot use the kubeconfig's client {what}: {why}");
        Error::new(Reason::KubeconfigInvalid, message)
    };
    let read = async |what: &str, data: Option<&str>, file: Option<&String>| match (data, file) {
        // Kubernetes' type for bytes decodes itself from a JSON string of base64.
        (Some(data), _) => serde_json::from_value(data.into())
            .map(|ByteString(bytes)| Some(bytes))
            .map_err(|error| invalid(what, &error)),
        (None, Some(file)) => {
            tokio::fs::read(file).await.map(Some).map_err(|error| invalid(what, &error))
        }
        (None, None) => Ok(None),
    };
    let key_data = auth.client_key_data.as_ref().map(ExposeSecret::expose_secret);
    let certificate = auth.client_certificate_data.as_deref();
    let certificate = read("certificate", certificate, auth.client_certificate.as_ref()).await?;
    let key = read("key", key_data, auth.client_key.as_ref()).await?;
    match (certificate, key) {
        (Some(certificate), Some(key)) => ClientIdentity::from_pem(&certificate, &key).map(Some),
        _ => Ok(None),
    }
}

async fn config(global: &GlobalArgs) -> Result<Config, Error> {
    let options =
        KubeConfigOptions { context: global.context.clone(), ..KubeConfigOptions::default() };
    let loaded = match &global.kubeconfig {
        Some(path) => match Kubeconfig::read_from(path) {
            Ok(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &options).await,
            Err(error) => Err(error),
        },
        None => Config::from_kubeconfig(&options).await,
    };
    let missing = match loaded {
        Ok(config) => return Ok(config),
        Err(KubeconfigError::ReadConfig(error, path))
            if error.kind() == io::ErrorKind::NotFound =>
        {
            format!("there is no kubeconfig at {}", path.display())
        }
        Err(error @ KubeconfigError::FindPath) => error.to_string(),
        Err(error) => {
            let why = match &error {
                // kube's message does not say what is missing.
                KubeconfigError::CurrentContextNotSet => "it has no current context".to_owned(),
                other => other.to_string(),
            };
            return Err(Error::new(
                Reason::KubeconfigInvalid,
                format!("cannot use the kubeconfig: {why}"),
            ));
        }
    };
    // In a pod the service account replaces a missing kubeconfig, unless one was asked for.
    if global.kubeconfig.is_none()
        && global.context.is_none()
        && let Ok(config) = Config::incluster()
    {
        return Ok(config);
    }
    Err(Error::new(Reason::KubeconfigMissing, missing))
}
