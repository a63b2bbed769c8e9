//! `podsonde sessions` and `podsonde end`.

use std::time::Duration;

use super::{
    args::{EndArgs, ListOutput, SessionsArgs},
    context::{Context, Exit, Failed},
    report::{SessionReport, SessionsReport, errors, instant},
    table::{Cell, Table, age},
    values,
};
use crate::{
    client::Failure,
    proto::v1::{DebugEndResponse, EndOutcome, Session, SessionState},
};

pub(super) async fn list(context: &Context, args: &SessionsArgs) -> Result<Exit, Failed> {
    let scope = context.scope().await?;
    let namespace = if args.all_namespaces { "" } else { scope.namespace.as_str() };
    let places = scope.fleet.places().await?.into_iter().map(|place| (place, ())).collect();
    let gathered = scope
        .fleet
        .gather(places, async |agent, ()| agent.sessions(namespace, args.all).await)
        .await;
    let mut sessions: Vec<Session> = gathered.answers.into_iter().flatten().collect();
    sessions.sort_by_key(|session| {
        let created = session.created_at.map(|at| (at.seconds, at.nanos));
        std::cmp::Reverse(created)
    });
    let terminal = context.terminal;
    let report = |sessions: Vec<Session>| SessionsReport {
        sessions: sessions.into_iter().map(SessionReport::from).collect(),
        errors: errors(&gathered.failures),
    };
    match args.output {
        ListOutput::Json => terminal.json(&report(sessions))?,
        ListOutput::Yaml => terminal.yaml(&report(sessions))?,
        ListOutput::Table | ListOutput::Wide if sessions.is_empty() => {
            // Of nodes that could not be asked it is not known.
            if gathered.failures.is_empty() {
                terminal.note(&match args.all_namespaces {
                    true => "No sessions found".to_owned(),
                    false => format!("No sessions found in {namespace} namespace."),
                });
            }
        }
        ListOutput::Table | ListOutput::Wide => {
            let wide = args.output == ListOutput::Wide;
            terminal.print(
                &table(&sessions, args.all_namespaces, wide, jiff::Timestamp::now())
                    .render(terminal.colour),
            )?;
        }
    }
    context.report_failures(&gathered.failures);
    Ok(if gathered.failures.is_empty() { Exit::Ok } else { Exit::Error })
}

fn table(sessions: &[Session], namespaces: bool, wide: bool, now: jiff::Timestamp) -> Table {
    let mut header = if namespaces { vec!["NAMESPACE"] } else { Vec::new() };
    header.extend(["POD", "CONTAINER", "TARGET", "STATUS", "AGE", "EXPIRES"]);
    if wide {
        header.extend(["SESSION", "NODE", "IMAGE", "REQUESTED-BY"]);
    }
    let mut table = Table::new(&header);
    for session in sessions {
        let mut row: Vec<Cell> =
            if namespaces { vec![(&session.namespace).into()] } else { Vec::new() };
        let since = |at: Option<jiff::Timestamp>| {
            at.and_then(|at| Duration::try_from(now.duration_since(at)).ok())
        };
        let until = |at: Option<jiff::Timestamp>| {
            at.and_then(|at| Duration::try_from(at.duration_since(now)).ok())
        };
        let expires = match session.state() {
            SessionState::Terminated => "-".to_owned(),
            _ => until(session.expires_at.and_then(instant)).map_or_else(|| "due".to_owned(), age),
        };
        row.extend([
            Cell::from(&session.pod),
            Cell::from(&session.container),
            Cell::from(&session.target_container),
        ]);
        row.push(status(session).into());
        row.push(
            since(session.created_at.and_then(instant))
                .map_or_else(|| "<unknown>".to_owned(), age)
                .into(),
        );
        row.push(expires.into());
        if wide {
            row.extend(
                [&session.id, &session.node, &session.image, &session.requested_by].map(Cell::from),
            );
        }
        table.row(row);
    }
    table
}

/// One word as in kubectl's STATUS column.
fn status(session: &Session) -> String {
    match (session.state(), session.reason.as_str(), session.exit_code) {
        (SessionState::Running, ..) => "Running".to_owned(),
        (SessionState::Terminated, "" | "Error", Some(code)) => format!("ExitCode:{code}"),
        (SessionState::Terminated, "", None) => "Terminated".to_owned(),
        (SessionState::Waiting | SessionState::Unspecified, "", _) => "Waiting".to_owned(),
        (_, reason, _) => reason.to_owned(),
    }
}

pub(super) async fn end(context: &Context, args: &EndArgs) -> Result<Exit, Failed> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_statuses_and_ages_as_kubectl_has_them() {
        let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let session = |container: &str, state: SessionState, reason: &str, exit_code| Session {
            namespace: "default".into(),
            pod: "web".into(),
            container: container.into(),
            created_at: time(1_000_000),
            expires_at: time(1_003_600),
            state: state.into(),
            reason: reason.into(),
            exit_code,
            ..Session::default()
        };
        let sessions = [
            Session {
                target_container: "app".into(),
                ..session("a", SessionState::Running, "", None)
            },
            session("b", SessionState::Waiting, "ErrImagePull", None),
            session("c", SessionState::Waiting, "", None),
            session("d", SessionState::Terminated, "Completed", Some(0)),
            session("e", SessionState::Terminated, "Error", Some(137)),
            Session {
                expires_at: time(1_000_100),
                ..session("f", SessionState::Running, "", None)
            },
        ];
        let now = jiff::Timestamp::from_second(1_000_312).unwrap();
        assert_eq!(
            table(&sessions, true, false, now).render(false),
            "\
NAMESPACE   POD   CONTAINER   TARGET   STATUS         AGE     EXPIRES
default     web   a           app      Running        5m12s   54m
default     web   b           <none>   ErrImagePull   5m12s   54m
default     web   c           <none>   Waiting        5m12s   54m
default     web   d           <none>   Completed      5m12s   -
default     web   e           <none>   ExitCode:137   5m12s   -
default     web   f           <none>   Running        5m12s   due
"
        );
    }
}
