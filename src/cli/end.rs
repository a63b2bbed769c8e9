//! `podsonde end`.

use std::time::Duration;

use clap::Args;

use super::{
    context::{Context, Exit, Failed},
    options::TEMPLATE,
    values::{self, duration},
};
use crate::{
    client::Failure,
    proto::v1::{DebugEndResponse, EndOutcome},
};

/// The arguments of `podsonde end`.
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
    /// Time between SIGTERM and SIGKILL; 0 sends SIGKILL at once
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub(super) grace_period: Duration,
}

pub(super) async fn run(context: &Context, args: &EndArgs) -> Result<Exit, Failed> {
    match (&args.pod, &args.session) {
        (Some(pod), Some(session)) => end_one(context, args, pod, session).await,
        _ => end_all(context, args).await,
    }
}

async fn end_one(
    context: &Context,
    args: &EndArgs,
    pod: &str,
    session: &str,
) -> Result<Exit, Failed> {
    let pod = values::pod(pod).map_err(Failed::Usage)?;
    let scope = context.scope().await?;
    let namespace = &scope.namespace;
    let place = scope.fleet.place_of_pod(namespace, &pod).await?;
    let agent = scope.fleet.connect(&place).await?;
    let ended = agent.end(namespace, &pod, session, args.grace_period).await;
    let ended = ended.map_err(|error| error.about("namespace", namespace).about("pod", &pod))?;
    context.terminal.print(&format!("{}\n", sentence(namespace, &pod, session, &ended)))?;
    Ok(exit(&ended))
}

async fn end_all(context: &Context, args: &EndArgs) -> Result<Exit, Failed> {
    let scope = context.scope().await?;
    let namespace = scope.namespace.as_str();
    let places = scope.fleet.places().await?.into_iter().map(|place| (place, ())).collect();
    let gathered = scope.fleet.gather(places, async |agent, ()| {
        let mut ended = Vec::new();
        for session in agent.sessions(namespace, false).await? {
            let answer =
                agent.end(&session.namespace, &session.pod, &session.id, args.grace_period).await;
            ended.push((session, answer));
        }
        Ok(ended)
    });
    let gathered = gathered.await;
    let mut failures = gathered.failures;
    let mut worst = Exit::Ok;
    let mut lines = String::new();
    for (session, answer) in gathered.answers.into_iter().flatten() {
        match answer {
            Ok(ended) => {
                lines.push_str(&sentence(
                    &session.namespace,
                    &session.pod,
                    &session.container,
                    &ended,
                ));
                lines.push('\n');
                if exit(&ended) != Exit::Ok {
                    worst = exit(&ended);
                }
            }
            Err(error) => {
                failures.push(Failure {
                    subject: format!("pod {}/{}", session.namespace, session.pod),
                    error,
                });
            }
        }
    }
    if lines.is_empty() && failures.is_empty() {
        context.terminal.note(&format!("No sessions found in {namespace} namespace."));
    }
    context.terminal.print(&lines)?;
    context.report_failures(&failures);
    Ok(if failures.is_empty() { worst } else { Exit::Error })
}

fn sentence(namespace: &str, pod: &str, session: &str, ended: &DebugEndResponse) -> String {
    let processes = |count: u32| format!("{count} process{}", if count == 1 { "" } else { "es" });
    let killed = if ended.killed > 0 {
        format!(", {} of them needed SIGKILL", ended.killed)
    } else {
        String::new()
    };
    let signalled = format!("{}{killed}", processes(ended.signalled));
    let how = match ended.outcome() {
        EndOutcome::Ended => format!("ended: {signalled}"),
        EndOutcome::AlreadyEnded => "had already ended".to_owned(),
        EndOutcome::Partial => {
            format!("ended in part: {signalled}; {} could not be ended", processes(ended.survivors))
        }
        EndOutcome::Unspecified => format!("may have ended: {signalled}"),
    };
    format!("session {session} in pod {namespace}/{pod} {how}")
}

fn exit(ended: &DebugEndResponse) -> Exit {
    match ended.outcome() {
        EndOutcome::Ended | EndOutcome::AlreadyEnded => Exit::Ok,
        EndOutcome::Partial | EndOutcome::Unspecified => Exit::Error,
    }
}
