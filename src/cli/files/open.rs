//! From `POD:PATH` to the agent that has it, and what every command on files does alike.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tokio::sync::Mutex;

use super::{
    accounts::Accounts,
    args::{Format, View, WhoseArgs},
    location::PodPath,
    report::whose,
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

/// Most errors that a report has.
const MOST_ERRORS: usize = 1000;

/// The pods that operands name.
pub(super) struct Pods<'a> {
    pub(super) context: &'a Context,
    scope: Scope,
    whose: &'a WhoseArgs,
    bulk: bool,
    /// By namespace and pod.
    opened: Mutex<HashMap<(String, String), Pod>>,
    agents: Mutex<HashMap<String, Agent>>,
    names: Mutex<HashMap<(Option<String>, Named), String>>,
}

/// The files of a container, and what is known of it.
#[derive(Clone)]
pub(super) struct Pod {
    pub(super) files: Files,
    pub(super) namespace: String,
    pub(super) pod: String,
    as_root: bool,
    accounts: Arc<tokio::sync::OnceCell<Accounts>>,
    said: Arc<std::sync::OnceLock<()>>,
}

impl<'a> Pods<'a> {
    /// `bulk`: much is going to be read.
    pub(super) async fn new(
        context: &'a Context,
        whose: &'a WhoseArgs,
        bulk: bool,
    ) -> Result<Self, Failed> {
        let scope = context.scope().await?;
        Ok(Self {
            context,
            scope,
            whose,
            bulk,
            opened: Mutex::default(),
            agents: Mutex::default(),
            names: Mutex::default(),
        })
    }

    /// The pod of an operand, whose agent is connected once.
    pub(super) async fn open(&self, at: &PodPath) -> Result<Pod, Failed> {
        let namespace = at.namespace.clone().unwrap_or_else(|| self.scope.namespace.clone());
        // Of a workload's pods the same one for all operands.
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
            container: self.whose.container.clone().unwrap_or_default(),
            view: match self.whose.view {
                View::Container => RootView::Container,
                View::Proc1 => RootView::Proc1Root,
            }
            .into(),
            as_root: self.whose.as_root,
        };
        let opened = Pod {
            files: agent.files(target),
            namespace,
            pod,
            as_root: self.whose.as_root,
            accounts: Arc::default(),
            said: Arc::default(),
        };
        self.opened.lock().await.insert(key, opened.clone());
        Ok(opened)
    }
}

impl Pod {
    /// The names of its users and groups, read once.
    pub(super) async fn accounts(&self) -> &Accounts {
        self.accounts.get_or_init(|| Accounts::read(&self.files)).await
    }

    /// Says once, to who wants to know, whose root it is.
    pub(super) fn say_whose(&self, root: &FileRoot) {
        self.said.get_or_init(|| tracing::info!(root = %whose(root), "files"));
    }

    /// The error with what it is about.
    pub(super) fn about(&self, error: Error) -> Error {
        let error = error.about("namespace", &self.namespace).about("pod", &self.pod);
        if self.as_root { error.about("as_root", "true") } else { error }
    }
}

/// What went wrong so far with a command that goes on to the next operand.
pub(super) struct Troubles<'a> {
    context: &'a Context,
    /// The first of them.
    pub(super) errors: Vec<ErrorReport>,
    pub(super) exit: Exit,
    /// Reasons for which it was said what to do.
    hinted: HashSet<String>,
}

impl<'a> Troubles<'a> {
    pub(super) fn new(context: &'a Context) -> Self {
        Self { context, errors: Vec::new(), exit: Exit::Ok, hinted: HashSet::new() }
    }

    /// Says that something could not be done with `subject`. Errors of the arguments end the command.
    ///
    /// # Errors
    /// What is not about one operand.
    pub(super) fn note(&mut self, subject: &str, failed: Failed, exit: Exit) -> Result<(), Failed> {
        let Failed::Asking(error) = failed else { return Err(failed) };
        let error = Error {
            message: format!("{subject}: {}", without_path(subject, &error.message)),
            ..*error
        };
        self.keep(subject, &error.reason, &error.message);
        // What to do is said once.
        if self.hinted.insert(error.reason.to_string()) {
            self.context.report(&Failed::from(error));
        } else {
            self.context.terminal.error(&error.message);
        }
        self.worsen(exit);
        Ok(())
    }

    /// Says that something was amiss that no agent reported.
    pub(super) fn say(&mut self, subject: &str, reason: &str, message: &str, exit: Exit) {
        let message = format!("{subject}: {message}");
        self.context.terminal.error(&message);
        self.keep(subject, reason, &message);
        self.worsen(exit);
    }

    fn keep(&mut self, subject: &str, reason: &str, message: &str) {
        if self.errors.len() < MOST_ERRORS {
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

/// The agent's message without the pod and the path that it is about, which are said already.
fn without_path<'m>(subject: &str, message: &'m str) -> &'m str {
    let path = subject.split_once(':').map_or("", |(_, path)| path);
    let rest =
        message.strip_prefix("pod ").and_then(|rest| rest.split_once(&format!(": {path}: ")));
    rest.filter(|_| !path.is_empty()).map_or(message, |(_, rest)| rest)
}

/// Prints a report in the format that was asked for.
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

/// What the reason of an entry means, in the words of errno(3).
pub(super) fn reason_words(reason: &str) -> &str {
    match reason {
        "FILE_PERMISSION" => "Permission denied",
        "PATH_NOT_FOUND" => "No such file or directory",
        "TOO_MANY_LINKS" => "Too many levels of symbolic links",
        "PATH_REFUSED" => "a file system of the kernel's, which holds no files of the container's",
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
