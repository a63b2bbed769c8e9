//! `podsonde sessions`.

use std::time::Duration;

use clap::Args;

use super::{
    context::{Context, Exit, Failed},
    options::{ListOutput, TEMPLATE},
    report::{SessionReport, SessionsReport, errors, instant},
    table::{Cell, Table, age},
};
use crate::proto::v1::{Session, SessionState};

/// The arguments of `podsonde sessions`.
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

pub(super) async fn run(context: &Context, args: &SessionsArgs) -> Result<Exit, Failed> {
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
            // If a node could not be asked, it may still have sessions.
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
            row.extend([&session.id, &session.node, &session.image].map(Cell::from));
            row.push(requester(session).into());
        }
        table.row(row);
    }
    table
}

/// The user who asked for the session, marked if only the pod's spec claims it.
fn requester(session: &Session) -> String {
    match (session.requested_by.as_str(), session.requester_verified) {
        ("", _) => String::new(),
        (by, true) => by.to_owned(),
        (by, false) => format!("{by} (unverified)"),
    }
}

/// The state in one word, as in kubectl's STATUS column.
fn status(session: &Session) -> String {
    match (session.state(), session.reason.as_str(), session.exit_code) {
        (SessionState::Running, ..) => "Running".to_owned(),
        (SessionState::Terminated, "" | "Error", Some(code)) => format!("ExitCode:{code}"),
        (SessionState::Terminated, "", None) => "Terminated".to_owned(),
        (SessionState::Waiting | SessionState::Unspecified, "", _) => "Waiting".to_owned(),
        (_, reason, _) => reason.to_owned(),
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
