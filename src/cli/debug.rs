//! `podsonde debug`.

use std::{io, time::Duration};

use futures::{StreamExt, pin_mut};

use super::{
    args::{DebugArgs, DebugOutput, Profile, PullPolicy},
    context::{Context, Exit, Failed, Scope},
    progress::Progress,
    report::{DebugReport, instant},
    table::{Tone, age},
    values, verdict,
};
use crate::{
    client::{Error, reason},
    proto::v1::{
        self, DebugCreateRequest, DebugDone, EnvVar, ImagePullPolicy, PodRef, Session,
        SessionState, debug_create_response::Event,
    },
};

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
    let file = |path: &Option<std::path::PathBuf>| match path {
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
        Err(Error::new(reason::PROTOCOL, "the agent ended its answer without a result"))
    };
    let result = tokio::time::timeout(limit, events).await.unwrap_or_else(|_| {
        Err(Error::new(
            reason::REQUEST_TIMEOUT,
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
        DebugOutput::Json => terminal.json(&report)?,
        DebugOutput::Yaml => terminal.yaml(&report)?,
        DebugOutput::Text => {
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
