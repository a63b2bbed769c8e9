//! Splits the words of the command line into pods and the filter, and finds the pods.

use super::args::CaptureArgs;
use crate::{
    cli::{
        context::{Context, Failed, Scope},
        values::{self, Named},
    },
    client::{Error, Reason},
    domain::Reason as AgentReason,
    kube::workloads::{self, WorkloadKind},
};

/// A pod to capture.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::cli) struct PodTarget {
    pub(in crate::cli) namespace: String,
    pub(in crate::cli) pod: String,
}

/// The words of the command line, split into pods and filter.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    pub(super) pods: Vec<Named>,
    pub(super) filter: String,
}

impl Words {
    /// The first word is a pod. The words after it are pods too if they have the form TYPE/NAME or
    /// if a `--` follows them. The rest is the filter. With `-l`, `-A` and `-r` all words are the
    /// filter.
    pub(super) fn of(args: &CaptureArgs) -> Result<Self, Failed> {
        let chosen = args.selector.is_some() || args.all_namespaces || args.read.is_some();
        let pods = match args.words.as_slice() {
            _ if chosen => 0,
            [] => {
                return Err(Failed::Usage(
                    "name a pod, or choose pods by their labels with -l".to_owned(),
                ));
            }
            words if !args.filter.is_empty() => words.len(),
            [_, rest @ ..] => 1 + rest.iter().take_while(|word| is_object(word)).count(),
        };
        let (pods, filter) = args.words.split_at(pods);
        let pods = pods.iter().map(|word| values::named(word)).collect::<Result<_, _>>();
        let filter: Vec<&str> = filter.iter().chain(&args.filter).map(String::as_str).collect();
        Ok(Self { pods: pods.map_err(Failed::Usage)?, filter: filter.join(" ") })
    }
}

/// Reports whether a word has the form `TYPE/NAME`. In a filter a slash stands only between a
/// network and its prefix length.
fn is_object(word: &str) -> bool {
    let kind = word.split_once('/').map(|(kind, _)| kind);
    kind.is_some_and(|kind| {
        kind.starts_with(|c: char| c.is_ascii_alphabetic()) && !kind.contains(':')
    })
}

/// How the user chose the pods.
pub(in crate::cli) struct Choice<'a> {
    pub(in crate::cli) pods: Vec<Named>,
    /// Adds the running pods that have these labels.
    pub(in crate::cli) labels: Option<&'a str>,
    pub(in crate::cli) all_namespaces: bool,
    /// The limit on the number of pods.
    pub(in crate::cli) most: usize,
}

/// Finds the pods to capture: at least one, and none twice.
pub(in crate::cli) async fn targets(
    context: &Context,
    scope: &Scope,
    choice: Choice<'_>,
) -> Result<Vec<PodTarget>, Failed> {
    let Choice { pods, labels, all_namespaces, most } = choice;
    let mut targets = Vec::new();
    if labels.is_some() || all_namespaces {
        let namespace = (!all_namespaces).then_some(scope.namespace.as_str());
        let labels = labels.unwrap_or_default();
        let client = context.api_client(scope).await?;
        let found = workloads::running(&client, namespace, labels).await;
        let found = found.map_err(|error| Error::from_kube(&error, "list pods"))?;
        targets.extend(found.into_iter().map(|(namespace, pod)| PodTarget { namespace, pod }));
        if targets.is_empty() {
            let labels =
                if labels.is_empty() { String::new() } else { format!(" with labels {labels}") };
            let place = namespace
                .map_or_else(String::new, |namespace| format!(" in namespace {namespace}"));
            return Err(Error::new(
                Reason::Agent(AgentReason::PodNotFound),
                format!("no pod{labels} runs{place}"),
            )
            .about("namespace", namespace.unwrap_or("NAMESPACE"))
            .into());
        }
    }
    for pod in pods {
        match pod {
            Named::Pod(pod) => targets.push(PodTarget { namespace: scope.namespace.clone(), pod }),
            Named::Other { kind, name } => {
                targets.extend(pods_of(context, scope, &kind, &name).await?);
            }
        }
    }
    let mut known = std::collections::BTreeSet::new();
    targets.retain(|target| known.insert(target.clone()));
    let found = targets.len();
    if found > most {
        return Err(Failed::Usage(format!(
            "that would be {found} captures at once; choose fewer pods, \
             or allow as many with --max-pods={found}"
        )));
    }
    Ok(targets)
}

async fn pods_of(
    context: &Context,
    scope: &Scope,
    kind: &str,
    name: &str,
) -> Result<Vec<PodTarget>, Failed> {
    let Some(workload) = WorkloadKind::named(kind) else {
        return Err(Failed::Usage(format!("{kind} is not a type that owns pods")));
    };
    let (namespace, object) = (&scope.namespace, format!("{kind}/{name}"));
    let client = context.api_client(scope).await?;
    let pods =
        workloads::running_of(&client, namespace, &workload, name).await.map_err(|error| {
            let error = Error::from_kube(&error, &format!("find the pods of {object}"));
            match error.reason {
                Reason::ApiNotFound => Error::new(
                    Reason::WorkloadNotFound,
                    format!("there is no {object} in namespace {namespace}"),
                ),
                _ => error,
            }
        })?;
    if pods.is_empty() {
        let message = format!("no pod of {object} in namespace {namespace} runs");
        return Err(Error::new(Reason::WorkloadNotFound, message).into());
    }
    Ok(pods.into_iter().map(|pod| PodTarget { namespace: namespace.clone(), pod }).collect())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: CaptureArgs,
    }

    fn words(line: &str) -> Result<Words, Failed> {
        let line = ["capture"].into_iter().chain(line.split_whitespace());
        Words::of(&Line::try_parse_from(line).unwrap().args)
    }

    #[test]
    fn pods_come_first_and_the_filter_after_them() {
        for (line, pods, filter) in [
            ("web", "web", ""),
            ("web port 80", "web", "port 80"),
            ("web -w f.pcapng tcp port 80 -e", "web", "tcp port 80"),
            ("pod/a deploy/b port 80", "a deploy/b", "port 80"),
            ("web net 10.0.0.0/8", "web", "net 10.0.0.0/8"),
            ("web 10.0.0.0/8", "web", "10.0.0.0/8"),
            ("web fd00::/64", "web", "fd00::/64"),
            ("a b c -- port 80", "a b c", "port 80"),
            ("a -- -port 80", "a", "-port 80"),
            ("-l app=web port 80", "", "port 80"),
            ("-A -- -x", "", "-x"),
        ] {
            let words = words(line).unwrap();
            let named: Vec<String> = words
                .pods
                .iter()
                .map(|pod| match pod {
                    Named::Pod(name) => name.clone(),
                    Named::Other { kind, name } => format!("{kind}/{name}"),
                })
                .collect();
            assert_eq!((named.join(" ").as_str(), words.filter.as_str()), (pods, filter), "{line}");
        }
        for line in ["", "-e", "Web", "a B -- x", "-- port 80"] {
            assert!(words(line).is_err(), "{line}");
        }
    }
}
