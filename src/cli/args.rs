//! The command line's arguments and their help, which stands in kubectl's order: what it does, examples, options.
//! The variants of enums have plain comments: with doc comments, clap would give every option several lines.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, builder::Styles};

use super::{
    capture::CaptureArgs,
    extcap::ExtcapArgs,
    files::args::FilesCommand,
    values::{duration, label, object_name},
};
use crate::client::{Endpoint, Fingerprint};

/// kubectl's order: description and examples before the options.
pub(super) const TEMPLATE: &str = "{about}{after-help}\n\n{usage-heading} {usage}\n\n{all-args}";

/// What the exit codes mean.
const EXIT_CODES: &str = "\
Exit codes:
  0    the verdict is OK (debug: and the container runs)
  1    error; for several pods: some could not be asked about; diff: they differ
  2    usage; ls, diff: trouble, as with the tools of that name
  3    DRIFT: a namespace is not what the pod's spec asks for
  4    UNKNOWN: it cannot be told
  130  interrupted
Of several that apply: 3 before 1 before 4.";

/// Looks into pods from their nodes: debug containers with proof of the namespaces they share, files, packets.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "podsonde",
    version,
    styles = Styles::plain(),
    max_term_width = 100,
    propagate_version = false,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = EXIT_CODES
)]
pub(super) struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub(super) global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub(super) command: Command,
}

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
    /// Connect to agents at the addresses that they publish, if these can be reached; else through the API server
    #[arg(long, global = true)]
    pub(super) direct: bool,
    /// Authorities, PEM, of which one has signed the certificate of an --agent with https [default: the system's, unless the
    /// agent's Lease is found by its address]
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

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub(super) enum Command {
    /// Start a debug container in a pod and verify its namespaces
    Debug(Box<DebugArgs>),
    /// Verify which namespaces the containers of pods share
    Verify(VerifyArgs),
    /// List debug sessions
    Sessions(SessionsArgs),
    /// End a debug session by ending the processes of its container
    End(EndArgs),
    /// Capture the packets of pods: print them, or write them to a file
    Capture(Box<CaptureArgs>),
    /// Show agents, their nodes, and what the nodes let them do
    Node(NodeArgs),
    // Those on files.
    #[command(flatten)]
    Files(FilesCommand),
    /// Show the versions of the client and of the agents
    Version(VersionArgs),
    /// Print a completion script for a shell
    Completion(CompletionArgs),
    /// Be a capture interface of Wireshark, which then lists pods
    Extcap(Box<ExtcapArgs>),
    /// Show what podsonde does, on this machine alone: no Kubernetes, no root
    #[cfg(all(feature = "embedded", target_os = "linux"))]
    Demo(DemoArgs),
}

/// `podsonde demo`.
#[cfg(all(feature = "embedded", target_os = "linux"))]
#[derive(Debug, Clone, Args)]
#[command(
    long_about = "Show what podsonde does, on this machine alone: pods made of Linux namespaces, an API server that is built in, \
agents, and the commands as you would type them. Takes a few seconds and leaves nothing behind.",
    after_help = "Examples:
  # Watch it
  podsonde demo

  # Leave the cluster up until Ctrl-C, to try things in another terminal
  podsonde demo --hold"
)]
pub(super) struct DemoArgs {
    /// Leave the cluster up until Ctrl-C, and print how to talk to it
    #[arg(long)]
    pub(super) hold: bool,
}

/// `podsonde debug`.
#[derive(Debug, Clone, Args)]
#[command(
    help_template = TEMPLATE,
    after_help = "Starts an ephemeral container in a running pod, waits until it runs, and verifies from the node's \
/proc which Linux namespaces it really shares with its target. The flags are those of `kubectl debug`. The \
container's entry stays in the pod's spec for as long as the pod lives: Kubernetes has no way to remove it.

Examples:
  # Debug pod web with busybox, in the process namespace of its container app
  podsonde debug web --image=busybox --target=app -it

  # A container of its own name that runs one command and lives ten minutes at most
  podsonde debug pod/web --image=busybox -c probe --ttl=10m -- wget -qO- localhost:80

  # A pod of a deployment, with the capabilities for network tools
  podsonde debug deploy/web --image=nicolaka/netshoot --profile=netadmin -it

  # A whole container from a file, the result as JSON
  podsonde debug web -f container.yaml -o json

Exit codes:
  0 the container runs and the verdict is OK   1 error      2 usage
  3 DRIFT: a namespace is not as expected      4 UNKNOWN    130 interrupted"
)]
pub(super) struct DebugArgs {
    /// Pod to debug: POD, pod/POD, or an object that owns pods (deployment/NAME, svc/NAME, …)
    #[arg(value_name = "POD | TYPE/NAME")]
    pub(super) target_object: String,
    /// Container image to use for the debug container
    #[arg(long, value_name = "IMAGE", required_unless_present = "filename")]
    pub(super) image: Option<String>,
    /// Target processes in this container: share its process namespace
    #[arg(long, value_name = "CONTAINER", value_parser = label)]
    pub(super) target: Option<String>,
    /// Name of the debug container [default: podsonde- and five random characters]
    #[arg(short, long, value_name = "NAME", value_parser = label)]
    pub(super) container: Option<String>,
    /// Security profile: general adds SYS_PTRACE, baseline nothing, netadmin NET_ADMIN and NET_RAW; restricted is
    /// unprivileged, sysadmin privileged
    #[arg(long, value_name = "PROFILE", default_value = "general", ignore_case = true)]
    pub(super) profile: Profile,
    /// JSON or YAML file with a partial container spec that customises the profile; - for stdin
    #[arg(long, value_name = "FILE")]
    pub(super) custom: Option<PathBuf>,
    /// Environment variables to set in the container, as kubectl reads them: K=V, or K=V,K2=V2
    #[arg(long, value_name = "K=V")]
    pub(super) env: Vec<String>,
    /// When to pull the image [default: Kubernetes' own]
    #[arg(long, value_name = "POLICY", ignore_case = true)]
    pub(super) image_pull_policy: Option<PullPolicy>,
    /// Keep stdin open on the container, even if nothing is attached
    #[arg(short = 'i', long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", hide_default_value = true, hide_possible_values = true, action = ArgAction::Set)]
    pub(super) stdin: bool,
    /// Allocate a terminal for the container; needs -i
    #[arg(short = 't', long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", hide_default_value = true, hide_possible_values = true, action = ArgAction::Set)]
    pub(super) tty: bool,
    /// Attach to the container (not there yet: prints the `kubectl attach` command that does it)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        hide_possible_values = true, action = ArgAction::Set)]
    pub(super) attach: Option<bool>,
    /// Pass what follows -- to the container as arguments instead of as its command
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", hide_default_value = true, hide_possible_values = true, action = ArgAction::Set)]
    pub(super) arguments_only: bool,
    /// Suppress informational messages: only the result and errors are printed
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", hide_default_value = true, hide_possible_values = true, action = ArgAction::Set)]
    pub(super) quiet: bool,
    /// End the container's processes after this time [default: the agent's, 1h]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) ttl: Option<Duration>,
    /// How long to wait for the container to run
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub(super) start_timeout: Duration,
    /// Keep waiting when the image cannot be pulled, as the kubelet keeps trying
    #[arg(long)]
    pub(super) wait_for_image: bool,
    /// JSON or YAML file with the whole container (or a list of exactly one), instead of --image and its like; - for stdin
    #[arg(short, long, value_name = "FILE",
        conflicts_with_all = ["image", "custom", "env", "profile", "arguments_only", "command", "image_pull_policy", "target", "container"])]
    pub(super) filename: Option<PathBuf>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(super) output: DebugOutput,
    /// Command to run in the container instead of the image's
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<String>,
}

/// kubectl's profiles for ephemeral containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Profile {
    // Adds the capability SYS_PTRACE
    General,
    // Sets nothing
    // What kubectl's `legacy` does to an ephemeral container.
    #[value(alias = "legacy")]
    Baseline,
    // Not root, no capabilities, no privilege escalation, seccomp RuntimeDefault
    Restricted,
    // Adds the capabilities NET_ADMIN and NET_RAW
    Netadmin,
    // Privileged
    Sysadmin,
}

/// Kubernetes' image pull policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PullPolicy {
    // Before every start.
    #[value(name = "Always")]
    Always,
    // If the node does not have it.
    #[value(name = "IfNotPresent")]
    IfNotPresent,
    // Never.
    #[value(name = "Never")]
    Never,
}

/// Output formats of `podsonde debug`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum DebugOutput {
    // A table for people
    Text,
    // One JSON object
    Json,
    // One YAML document
    Yaml,
}

/// `podsonde verify`.
#[derive(Debug, Clone, Args)]
#[command(
    help_template = TEMPLATE,
    after_help = "Reads the ids of the running containers' namespaces from the node's /proc and compares them with \
what the pods' specs ask for. The columns say whose a namespace is: shared with the container's target or the \
pod's sandbox, private, or the host's. What is not as expected is marked with `!`, what cannot be told with `?`.

Examples:
  # One pod, namespace by namespace
  podsonde verify web

  # All pods with a label, with ids and evidence
  podsonde verify -l app=web -o wide

  # All pods of a node; of the cluster
  podsonde verify --node node-1
  podsonde verify -A

  # The names of those that are not OK, for a script
  podsonde verify -A -o name

Exit codes:
  0 all OK   1 error: some could not be asked about   2 usage   3 DRIFT   4 UNKNOWN
  Of several that apply: 3 before 1 before 4."
)]
#[command(group = clap::ArgGroup::new("which").args(["pods", "selector", "node", "all_namespaces"]).required(true).multiple(true))]
pub(super) struct VerifyArgs {
    /// Pods to verify: POD or pod/POD
    #[arg(value_name = "POD", conflicts_with_all = ["selector", "node", "all_namespaces"])]
    pub(super) pods: Vec<String>,
    /// Pods with these labels (app=web,tier!=cache, `env in (a,b)`)
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub(super) selector: Option<String>,
    /// Pods of this node, of all namespaces unless -n is given
    #[arg(long, value_name = "NODE", value_parser = object_name)]
    pub(super) node: Option<String>,
    /// Pods of all namespaces
    #[arg(short = 'A', long)]
    pub(super) all_namespaces: bool,
    /// Only this container of each pod
    #[arg(short, long, value_name = "NAME", value_parser = label)]
    pub(super) container: Option<String>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub(super) output: VerifyOutput,
}

/// Output formats of `podsonde verify`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum VerifyOutput {
    // A table for people: of one pod by namespace, of several by container
    Table,
    // The table with ids, nodes and evidence
    Wide,
    // One JSON object
    Json,
    // One YAML document
    Yaml,
    // pod/NAME of those that are not OK, one a line
    Name,
}

/// Output formats of lists.
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

/// `podsonde sessions`.
#[derive(Debug, Clone, Args)]
#[command(help_template = TEMPLATE, after_help = "Examples:
  # Sessions that run or are about to, in the current namespace
  podsonde sessions

  # Of all namespaces, those that have ended too
  podsonde sessions -A --all -o wide")]
pub(super) struct SessionsArgs {
    /// Sessions of all namespaces
    #[arg(short = 'A', long)]
    pub(super) all_namespaces: bool,
    /// Also sessions that have ended
    #[arg(long)]
    pub(super) all: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub(super) output: ListOutput,
}

/// `podsonde end`.
#[derive(Debug, Clone, Args)]
#[command(
    help_template = TEMPLATE,
    after_help = "The container's processes get SIGTERM, and SIGKILL after the grace period. The container's entry \
stays in the pod's spec: Kubernetes has no way to remove it.

Examples:
  # By the name of its container, or by its id
  podsonde end web podsonde-x7k2p

  # All that run in a namespace
  podsonde end --all -n shop"
)]
pub(super) struct EndArgs {
    /// Pod of the session: POD or pod/POD
    #[arg(value_name = "POD", required_unless_present = "all", requires = "session")]
    pub(super) pod: Option<String>,
    /// Id of the session or name of its container
    #[arg(value_name = "SESSION", required_unless_present = "all")]
    pub(super) session: Option<String>,
    /// All sessions of the namespace
    #[arg(long, conflicts_with_all = ["pod", "session"])]
    pub(super) all: bool,
    /// Time between SIGTERM and SIGKILL; 0: SIGKILL at once
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub(super) grace_period: Duration,
}

/// `podsonde node`.
#[derive(Debug, Clone, Args)]
#[command(help_template = TEMPLATE, after_help = "Examples:
  # All agents of the cluster
  podsonde node

  # One of them, with what its node lets it do
  podsonde node node-1")]
pub(super) struct NodeArgs {
    /// Nodes [default: all that have an agent, or the one of --agent]
    #[arg(value_name = "NODE", value_parser = object_name)]
    pub(super) nodes: Vec<String>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub(super) output: ListOutput,
}

/// `podsonde version`.
#[derive(Debug, Clone, Args)]
#[command(help_template = TEMPLATE, after_help = "Examples:
  podsonde version
  podsonde version --client -o json")]
pub(super) struct VersionArgs {
    /// Only the client's
    #[arg(long)]
    pub(super) client: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(super) output: DebugOutput,
}

/// `podsonde completion`.
#[derive(Debug, Clone, Args)]
#[command(help_template = TEMPLATE, after_help = "Examples:
  source <(podsonde completion bash)
  podsonde completion fish > ~/.config/fish/completions/podsonde.fish")]
pub(super) struct CompletionArgs {
    /// Shell
    #[arg(value_name = "SHELL")]
    pub(super) shell: clap_complete::Shell,
}
