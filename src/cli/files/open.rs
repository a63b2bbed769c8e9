//! Finds the agents for `POD:PATH` operands, and holds what every command on files does alike:
//! collect errors, exit codes and reports.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tokio::sync::Mutex;

use super::{
    accounts::Accounts,
    args::{ContainerArgs, Format, View},
    location::PodPath,
    report::describe_root,
};
use crate::{
    cli::{
        context::{Context, Exit, Failed, Scope},
        report::ErrorReport,
        values::Named,
    },
    client::{Agent, Error, Files},
    proto::v1::{FileRoot, FileTarget, PodRef, RootView},
};

/// How many errors a JSON or YAML report holds at most.
const MAX_ERRORS: usize = 1000;

/// The pods that operands name, each resolved and connected to once.
pub(super) struct Pods<'a> {
    pub(super) context: &'a Context,
    scope: Scope,
    container: &'a ContainerArgs,
    bulk: bool,
    /// Keyed by namespace and pod.
    opened: Mutex<HashMap<(String, String), Pod>>,
    /// Keyed by the agent's name.
    agents: Mutex<HashMap<String, Agent>>,
    /// The pod that stands for an operand's object, so that every operand that names a workload
    /// means the same pod.
    names: Mutex<HashMap<(Option<String>, Named), String>>,
}

/// The files of one container. Cheap to clone.
#[derive(Clone)]
pub(super) struct Pod {
    pub(super) files: Files,
    pub(super) namespace: String,
    pub(super) pod: String,
    as_root: bool,
    accounts: Arc<tokio::sync::OnceCell<Accounts>>,
    /// Set when the root has been logged.
    logged: Arc<std::sync::OnceLock<()>>,
}

impl<'a> Pods<'a> {
    /// `bulk` asks for connections that are tuned for reading much.
    pub(super) async fn new(
        context: &'a Context,
        container: &'a ContainerArgs,
        bulk: bool,
    ) -> Result<Self, Failed> {
        let scope = context.scope().await?;
        Ok(Self {
            context,
            scope,
            container,
            bulk,
            opened: Mutex::default(),
            agents: Mutex::default(),
            names: Mutex::default(),
        })
    }

    /// Connects to the agent of an operand's pod, or returns the pod that is connected already.
    pub(super) async fn open(&self, at: &PodPath) -> Result<Pod, Failed> {
        let namespace = at.namespace.clone().unwrap_or_else(|| self.scope.namespace.clone());
        let key = (at.namespace.clone(), at.object.clone());
        let known = self.names.lock().await.get(&key).cloned();
        let pod = match known {
            Some(pod) => pod,
            None => self.context.pod_of(&self.scope, &namespace, &at.object, false).await?,
        };
        self.names.lock().await.insert(key, pod.clone());
        let key = (namespace.clone(), pod.clone());
        if let Some(opened) = self.opened.lock().await.get(&key) {
            return Ok(opened.clone());
        }
        let about = |error: Error| error.about("namespace", &namespace).about("pod", &pod);
        let place = self.scope.fleet.place_of_pod(&namespace, &pod).await.map_err(about)?;
        let mut agents = self.agents.lock().await;
        let agent = match agents.get(&place.name) {
            Some(agent) => agent.clone(),
            None if self.bulk => self.scope.fleet.connect_bulk(&place, 1).await.map_err(about)?,
            None => self.scope.fleet.connect(&place).await.map_err(about)?,
        };
        agents.insert(place.name.clone(), agent.clone());
        let target = FileTarget {
            pod: Some(PodRef {
                namespace: namespace.clone(),
                name: pod.clone(),
                uid: String::new(),
            }),
            container: self.container.container.clone().unwrap_or_default(),
            view: match self.container.view {
                View::Container => RootView::Container,
                View::Proc1 => RootView::Proc1Root,
            }
            .into(),
            as_root: self.container.as_root,
        };
        let opened = Pod {
            files: agent.files(target),
            namespace,
            pod,
            as_root: self.container.as_root,
            accounts: Arc::default(),
            logged: Arc::default(),
        };
        self.opened.lock().await.insert(key, opened.clone());
        Ok(opened)
    }
}

impl Pod {
    /// The names of the container's users and groups, which are read once.
    pub(super) async fn accounts(&self) -> &Accounts {
        self.accounts.get_or_init(|| Accounts::read(&self.files)).await
    }

    /// Logs once which root directory is used.
    pub(super) fn log_root(&self, root: &FileRoot) {
        self.logged.get_or_init(|| tracing::info!(root = %describe_root(root), "files"));
    }

    /// Adds to an error which pod it is about, for hints.
    pub(super) fn about(&self, error: Error) -> Error {
        let error = error.about("namespace", &self.namespace).about("pod", &self.pod);
        if self.as_root { error.about("as_root", "true") } else { error }
    }
}

/// The failures of a command that continues with its next operand after each.
pub(super) struct Troubles<'a> {
    context: &'a Context,
    /// The first [`MAX_ERRORS`] of them.
    pub(super) errors: Vec<ErrorReport>,
    pub(super) exit: Exit,
    /// Reasons whose hint was printed. A hint is printed once.
    hinted: HashSet<String>,
}

impl<'a> Troubles<'a> {
    pub(super) fn new(context: &'a Context) -> Self {
        Self { context, errors: Vec::new(), exit: Exit::Ok, hinted: HashSet::new() }
    }

    /// Prints and records that a request about `subject` failed.
    ///
    /// # Errors
    /// Returns a failure that concerns the whole command: wrong usage, or an output that is gone.
    pub(super) fn note(&mut self, subject: &str, failed: Failed, exit: Exit) -> Result<(), Failed> {
        let Failed::Asking(error) = failed else { return Err(failed) };
        let error = Error {
            message: format!("{subject}: {}", without_path(subject, &error.message)),
            ..*error
        };
        self.keep(subject, error.reason.as_str(), &error.message);
        if self.hinted.insert(error.reason.to_string()) {
            self.context.report(&Failed::from(error));
        } else {
            self.context.terminal.error(&error.message);
        }
        self.worsen(exit);
        Ok(())
    }

    /// Prints and records a failure that no agent reported.
    pub(super) fn say(&mut self, subject: &str, reason: &str, message: &str, exit: Exit) {
        let message = format!("{subject}: {message}");
        self.context.terminal.error(&message);
        self.keep(subject, reason, &message);
        self.worsen(exit);
    }

    fn keep(&mut self, subject: &str, reason: &str, message: &str) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(ErrorReport {
                subject: subject.to_owned(),
                reason: reason.to_owned(),
                message: message.to_owned(),
            });
        }
    }

    fn worsen(&mut self, exit: Exit) {
        if exit.code() > self.exit.code() {
            self.exit = exit;
        }
    }
}

/// The agent's message without the pod and the path in front of it, which `subject` names already.
fn without_path<'m>(subject: &str, message: &'m str) -> &'m str {
    let path = subject.split_once(':').map_or("", |(_, path)| path);
    if path.is_empty() || !message.starts_with("pod ") {
        return message;
    }
    message.split_once(&format!(": {path}: ")).map_or(message, |(_, rest)| rest)
}

/// Prints a report as JSON, or as YAML if that was asked for.
pub(super) fn print(
    context: &Context,
    format: Format,
    report: &impl serde::Serialize,
) -> std::io::Result<()> {
    match format {
        Format::Yaml => context.terminal.yaml(report),
        Format::Json | Format::Text => context.terminal.json(report),
    }
}

/// The reason why an entry could not be described or entered, in the words of errno(3).
pub(super) fn reason_words(reason: &str) -> &str {
    match reason {
        "FILE_PERMISSION" => "Permission denied",
        "PATH_NOT_FOUND" => "No such file or directory",
        "TOO_MANY_LINKS" => "Too many levels of symbolic links",
        "PATH_REFUSED" => {
            "on a file system of the kernel, which holds none of the container's files"
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_said_once() {
        let shortened = |message| without_path("web:/a: b", message);
        assert_eq!(
            shortened("pod default/web, container app: /a: b: no such file"),
            "no such file"
        );
        assert_eq!(shortened("pod default/web: /other: no"), "pod default/web: /other: no");
        assert_eq!(without_path("./local", "pod x/y: : z"), "pod x/y: : z");
    }
}
