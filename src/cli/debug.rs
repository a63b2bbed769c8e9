//! `podsonde debug`.

use std::{io, path::PathBuf, time::Duration};

use clap::{ArgAction, Args, ValueEnum};
use futures::{StreamExt, pin_mut};

use super::{
    context::{Context, Exit, Failed, Scope},
    options::{ObjectOutput, TEMPLATE},
    progress::Progress,
    report::{DebugReport, instant},
    table::{Tone, age},
    values::{self, duration, label},
    verdict,
};
use crate::{
    client::{Error, Reason},
    proto::v1::{
        self, DebugCreateRequest, DebugDone, EnvVar, ImagePullPolicy, PodRef, Session,
        SessionState, debug_create_response::Event,
    },
};

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
    pub(super) output: ObjectOutput,
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

/// What the agent may take beyond the start timeout before it is given up, for its own checks and the verification.
const SLACK: Duration = Duration::from_secs(30);

pub(super) async fn run(context: &Context, args: &DebugArgs) -> Result<Exit, Failed> {
    let request = request(args)?;
    let scope = context.scope().await?;
    let progress = Progress::start(context.terminal, args.quiet);
    let object = values::named(&args.target_object).map_err(Failed::Usage)?;
    let pod = context.pod_of(&scope, &scope.namespace, &object, args.quiet).await?;
    let request = DebugCreateRequest {
        pod: Some(PodRef {
            namespace: scope.namespace.clone(),
            name: pod.clone(),
            uid: String::new(),
        }),
        ..request
    };

    let mut accepted = None;
    let created = tokio::select! {
        // The signal's handler is there before anything is created: from then on an interruption says what it leaves behind.
        biased;
        () = interruption() => None,
        created = create(&scope, &pod, request, args, &progress, &mut accepted) => Some(created),
    };
    let elapsed = progress.elapsed();
    drop(progress);
    match created {
        Some(created) => {
            let done = created
                .map_err(|error| error.about("namespace", &scope.namespace).about("pod", &pod))?;
            Ok(show(context, args, done, elapsed)?)
        }
        None => {
            interrupted(context, &scope, &pod, accepted.as_ref());
            Ok(Exit::Interrupted)
        }
    }
}

/// Resolves when the person interrupts. Never, where that cannot be told.
async fn interruption() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn request(args: &DebugArgs) -> Result<DebugCreateRequest, Failed> {
    let file = |path: &Option<PathBuf>| match path {
        Some(path) => values::json_file(path).map_err(Failed::Usage),
        None => Ok(String::new()),
    };
    if args.tty && !args.stdin && args.filename.is_none() {
        return Err(Failed::Usage("-t/--tty needs -i/--stdin".to_owned()));
    }
    let mut env = Vec::new();
    for text in &args.env {
        let pairs = values::env(text).map_err(Failed::Usage)?;
        env.extend(pairs.into_iter().map(|(name, value)| EnvVar { name, value }));
    }
    let (command, arguments) = match args.arguments_only {
        true => (Vec::new(), args.command.clone()),
        false => (args.command.clone(), Vec::new()),
    };
    let wire = |time: Duration| {
        prost_types::Duration::try_from(time)
            .map_err(|_| Failed::Usage(format!("{time:?} is too long")))
    };
    let container_json = file(&args.filename)?;
    let profile = match args.profile {
        _ if !container_json.is_empty() => v1::Profile::Unspecified,
        Profile::General => v1::Profile::General,
        Profile::Baseline => v1::Profile::Baseline,
        Profile::Restricted => v1::Profile::Restricted,
        Profile::Netadmin => v1::Profile::Netadmin,
        Profile::Sysadmin => v1::Profile::Sysadmin,
    };
    let policy = match args.image_pull_policy {
        None => ImagePullPolicy::Unspecified,
        Some(PullPolicy::Always) => ImagePullPolicy::Always,
        Some(PullPolicy::IfNotPresent) => ImagePullPolicy::IfNotPresent,
        Some(PullPolicy::Never) => ImagePullPolicy::Never,
    };
    Ok(DebugCreateRequest {
        pod: None,
        target_container: args.target.clone().unwrap_or_default(),
        name: args.container.clone().unwrap_or_default(),
        image: args.image.clone().unwrap_or_default(),
        image_pull_policy: policy.into(),
        command,
        args: arguments,
        env,
        profile: profile.into(),
        custom_json: file(&args.custom)?,
        container_json,
        stdin: args.stdin,
        tty: args.tty,
        ttl: args.ttl.map(wire).transpose()?,
        start_timeout: Some(wire(args.start_timeout)?),
        wait_for_image: args.wait_for_image,
    })
}

async fn create(
    scope: &Scope,
    pod: &str,
    request: DebugCreateRequest,
    args: &DebugArgs,
    progress: &Progress,
    accepted: &mut Option<Session>,
) -> Result<DebugDone, Error> {
    let namespace = &scope.namespace;
    progress.stage(&format!("looking for the agent of pod {namespace}/{pod}"));
    let place = scope.fleet.place_of_pod(namespace, pod).await?;
    progress.stage(&format!("connecting to the agent at {}", place.name));
    let agent = scope.fleet.connect(&place).await?;
    let limit = args.start_timeout.saturating_add(SLACK);
    let events = async {
        progress.stage(&format!("asking for a debug container in pod {namespace}/{pod}"));
        let events = agent.create(request).await?;
        pin_mut!(events);
        while let Some(event) = events.next().await {
            match event? {
                Event::Accepted(event) => {
                    let session = accepted.insert(event.session.unwrap_or_default());
                    progress.stage(&format!("waiting for container {} to run", session.container));
                }
                Event::Progress(event) => {
                    let container =
                        accepted.as_ref().map_or("", |session| session.container.as_str());
                    let said = if event.message.is_empty() {
                        String::new()
                    } else {
                        format!(": {}", event.message)
                    };
                    progress.stage(&format!(
                        "waiting for container {container} to run: {}{said}",
                        event.reason
                    ));
                }
                Event::Done(done) => return Ok(done),
            }
        }
        Err(Error::new(Reason::Protocol, "the agent ended its answer without a result"))
    };
    let result = tokio::time::timeout(limit, events).await.unwrap_or_else(|_| {
        Err(Error::new(
            Reason::RequestTimeout,
            format!("the agent of pod {namespace}/{pod} gave no result within {limit:?}"),
        ))
    });
    result.map_err(|error| {
        match accepted.as_ref().filter(|session| !session.container.is_empty()) {
            Some(session) => {
                error.about("spec_entry", "permanent").about("container", &session.container)
            }
            None => error,
        }
    })
}

fn interrupted(context: &Context, scope: &Scope, pod: &str, accepted: Option<&Session>) {
    let (namespace, program) = (&scope.namespace, context.program);
    let (said, hint) = match accepted {
        Some(session) => (
            format!(
                "container {} stays in the spec of pod {namespace}/{pod}, and runs or still will",
                session.container
            ),
            format!("end it with: {program} end {pod} {} -n {namespace}", session.container),
        ),
        None => (
            "the agent has not said that it created a container".to_owned(),
            format!("see whether it did: {program} sessions -n {namespace}"),
        ),
    };
    context.terminal.labelled("interrupted", Tone::Doubtful, &said);
    context.terminal.hint(&hint);
}

fn show(
    context: &Context,
    args: &DebugArgs,
    done: DebugDone,
    elapsed: Duration,
) -> io::Result<Exit> {
    let expires = done.session.as_ref().and_then(|session| session.expires_at).and_then(instant);
    let runs =
        done.session.as_ref().is_some_and(|session| session.state() == SessionState::Running);
    let report = DebugReport::from(done);
    let terminal = context.terminal;
    match args.output {
        ObjectOutput::Json => terminal.json(&report)?,
        ObjectOutput::Yaml => terminal.yaml(&report)?,
        ObjectOutput::Text => {
            if let Some(container) = &report.verification {
                terminal.print(&verdict::container_detail(container, false, terminal.colour))?;
            }
        }
    }
    let session = &report.session;
    let word = report.verification.as_ref().map_or("UNKNOWN", |container| container.verdict);
    if !args.quiet {
        let (pod, name, namespace) = (&session.pod, &session.container, &session.namespace);
        let own =
            report.agent_milliseconds.map(|own| format!(", {own:.1} ms of it the agent's own"));
        let state = match (runs, session.exit_code) {
            (true, _) => "runs".to_owned(),
            (false, Some(code)) => format!("has already exited with code {code}"),
            (false, None) => "has already exited".to_owned(),
        };
        terminal.note(&format!(
            "container {name} in pod {namespace}/{pod} on node {} {state}, verdict {word} ({:.1} s{})",
            session.node,
            elapsed.as_secs_f64(),
            own.unwrap_or_default()
        ));
        if runs {
            if args.attach == Some(true) || (args.stdin && args.attach.is_none()) {
                let flags = if args.tty { "-it" } else { "-i" };
                terminal.note("podsonde cannot attach to it yet; kubectl can:");
                terminal.note(&format!("  kubectl attach {flags} {pod} -c {name} -n {namespace}"));
            }
            let left = expires
                .and_then(|at| Duration::try_from(at.duration_since(jiff::Timestamp::now())).ok());
            // Rounded up: what was asked for as 1h does not show as 59m.
            let left = left.map(|left| age(left + Duration::from_secs(1)));
            let expiry = left
                .map(|left| format!("it ends by itself in {left}, or with: "))
                .unwrap_or_default();
            terminal.note(&format!("{expiry}{} end {pod} {name} -n {namespace}", context.program));
        }
    }
    Ok(match word {
        "OK" if runs => Exit::Ok,
        "DRIFT" => Exit::Drift,
        _ => Exit::Unknown,
    })
}
