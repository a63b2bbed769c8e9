//! Options that several commands have. The variants of enums have plain comments: with doc comments
//! clap would give every option several lines.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args, ValueEnum};

use super::values::{duration, label};
use crate::client::{Endpoint, Fingerprint};

/// The order of a command's help, which is kubectl's: description and examples before the options.
pub(super) const TEMPLATE: &str = "{about}{after-help}\n\n{usage-heading} {usage}\n\n{all-args}";

/// What holds for every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct GlobalArgs {
    /// Namespace of the pods [default: the kubeconfig context's; `default` with --agent]
    #[arg(short, long, global = true, value_name = "NAMESPACE", value_parser = label)]
    pub(super) namespace: Option<String>,
    /// Context of the kubeconfig to use
    #[arg(long, global = true, value_name = "NAME")]
    pub(super) context: Option<String>,
    /// Path to the kubeconfig [default: $KUBECONFIG, ~/.kube/config, the pod's service account]
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// How long to wait for one answer (1s, 2m, 3h); 0: for ever
    #[arg(long, global = true, value_name = "DURATION", default_value = "1m", value_parser = duration)]
    pub(super) request_timeout: Duration,
    /// Ask this agent directly: https://HOST:PORT, http://127.0.0.1:PORT or unix:///PATH
    #[arg(
        long,
        global = true,
        value_name = "ENDPOINT",
        env = "PODSONDE_AGENT",
        hide_env_values = true
    )]
    pub(super) agent: Option<Endpoint>,
    /// Namespace that the agents run in
    #[arg(long, global = true, value_name = "NAMESPACE", default_value = "podsonde", value_parser = label)]
    pub(super) agent_namespace: String,
    /// File with a bearer token to show to agents [default: the kubeconfig's, unless with --agent]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "PODSONDE_TOKEN_FILE",
        hide_env_values = true
    )]
    pub(super) token_file: Option<PathBuf>,
    /// Connect to agents at the addresses that they publish, if these can be reached; else through
    /// the API server
    #[arg(long, global = true)]
    pub(super) direct: bool,
    /// Authorities, PEM, of which one has signed the certificate of an --agent with https [default:
    /// the system's, unless the agent's Lease is found by its address]
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "agent_fingerprint")]
    pub(super) agent_ca: Option<PathBuf>,
    /// SHA-256 of the certificate of an --agent with https
    #[arg(long, global = true, value_name = "SHA256")]
    pub(super) agent_fingerprint: Option<Fingerprint>,
    /// Talk also to agents that publish no certificate, without TLS, through the API server
    #[arg(long, global = true, env = "PODSONDE_INSECURE_AGENT", hide_env_values = true)]
    pub(super) insecure_agent: bool,
    /// Log what is done to stderr; twice for what the libraries do too
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(super) verbose: u8,
    /// When to colour; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(super) color: Colour,
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Colour {
    // On a terminal.
    Auto,
    // Always.
    Always,
    // Never.
    Never,
}

/// How one object is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ObjectOutput {
    // A table for people
    Text,
    // One JSON object
    Json,
    // One YAML document
    Yaml,
}

/// How a list is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ListOutput {
    // A table for people
    Table,
    // The table with more columns
    Wide,
    // One JSON object
    Json,
    // One YAML document
    Yaml,
}
