//! `podsonde verify`.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Args, ValueEnum};
use futures::{StreamExt, stream};

use super::{
    context::{Context, Exit, Failed, Scope},
    options::TEMPLATE,
    report::{PodReport, VerifyReport},
    table::Tone,
    values::{self, label, object_name},
    verdict,
};
use crate::{
    client::{AgentLocation, Failure},
    proto::v1::{Outcome, PodVerification},
};

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

/// How many pods that were named are looked up at the same time.
const LOOKUPS: usize = 16;

pub(super) async fn run(context: &Context, args: &VerifyArgs) -> Result<Exit, Failed> {
    let mut names = BTreeSet::new();
    for text in &args.pods {
        names.insert(values::pod(text).map_err(Failed::Usage)?);
    }
    if args.node.is_some() {
        context.refuse_nodes_with_agent()?;
    }
    let scope = context.scope().await?;
    let (pods, failures) = if names.is_empty() {
        several(context, &scope, args).await?
    } else {
        named(&scope, &names, args).await
    };

    let terminal = context.terminal;
    let report = VerifyReport::new(pods, &failures);
    let namespaces =
        args.all_namespaces || (args.node.is_some() && context.global.namespace.is_none());
    match args.output {
        VerifyOutput::Json => terminal.json(&report)?,
        VerifyOutput::Yaml => terminal.yaml(&report)?,
        VerifyOutput::Name => {
            let bad = report.pods.iter().filter(|pod| matches!(pod.verdict, "DRIFT" | "UNKNOWN"));
            terminal.print(&bad.map(|pod| format!("pod/{}\n", pod.name)).collect::<String>())?;
        }
        VerifyOutput::Table | VerifyOutput::Wide => {
            let wide = args.output == VerifyOutput::Wide;
            match report.pods.as_slice() {
                [] => {}
                [pod] if names.len() == 1 => {
                    terminal.print(&verdict::detail(pod, wide, terminal.colour))?;
                }
                pods => {
                    if pods.iter().any(|pod| !pod.containers.is_empty()) {
                        terminal.print(&verdict::list(pods, namespaces, wide, terminal.colour))?;
                    }
                    for (word, tone, complaint) in verdict::complaints(pods) {
                        terminal.labelled(word, tone, &complaint);
                    }
                }
            }
            if !report.pods.is_empty() || failures.is_empty() {
                terminal.note(&verdict::summary(report.summary));
            }
        }
    }
    let silent: Vec<&PodReport> =
        report.pods.iter().filter(|pod| pod.verdict == "NONE" && !names.is_empty()).collect();
    for pod in &silent {
        let line = format!("no container of pod {}/{} runs", pod.namespace, pod.name);
        terminal.labelled("UNKNOWN", Tone::Doubtful, &line);
    }
    context.report_failures(&failures);
    // A script that mistypes a label must not take silence for proof.
    let nothing =
        report.summary.containers == 0 && (args.selector.is_some() || args.container.is_some());
    if nothing && failures.is_empty() && silent.is_empty() {
        terminal.labelled(
            "UNKNOWN",
            Tone::Doubtful,
            "no running container matches, so nothing was verified",
        );
    }
    Ok(match report.summary {
        summary if summary.drift > 0 => Exit::Drift,
        summary if summary.errors > 0 => Exit::Error,
        summary if summary.unknown > 0 || nothing || !silent.is_empty() => Exit::Unknown,
        _ => Exit::Ok,
    })
}

/// The pods that were named, each asked of the agent of its node over one connection per node.
async fn named(
    scope: &Scope,
    names: &BTreeSet<String>,
    args: &VerifyArgs,
) -> (Vec<PodVerification>, Vec<Failure>) {
    let namespace = scope.namespace.as_str();
    let container = args.container.as_deref().unwrap_or_default();
    let subject = |pod: &str| format!("pod {namespace}/{pod}");
    let places = stream::iter(names)
        .map(|pod| async move { (pod, scope.fleet.place_of_pod(namespace, pod).await) });
    let places: Vec<_> = places.buffered(LOOKUPS).collect().await;

    let mut failures = Vec::new();
    let mut by_place: BTreeMap<String, (AgentLocation, Vec<&str>)> = BTreeMap::new();
    for (pod, place) in places {
        match place {
            Ok(place) => {
                by_place
                    .entry(place.name.clone())
                    .or_insert_with(|| (place, Vec::new()))
                    .1
                    .push(pod);
            }
            Err(error) => failures.push(Failure { subject: subject(pod), error }),
        }
    }
    let gathered =
        scope.fleet.gather(by_place.into_values().collect(), async |agent, pods: Vec<&str>| {
            let mut answers = Vec::new();
            for pod in pods {
                let answer = agent.verify(namespace, pod, container).await;
                answers.push(answer.map_err(|error| Failure {
                    subject: subject(pod),
                    error: error.about("namespace", namespace).about("pod", pod),
                }));
            }
            Ok(answers)
        });
    let gathered = gathered.await;
    failures.extend(gathered.failures);
    let mut pods = Vec::new();
    for answer in gathered.answers.into_iter().flatten() {
        match answer {
            Ok(pod) => pods.push(pod),
            Err(failure) => failures.push(failure),
        }
    }
    (pods, failures)
}

/// The pods of a node, with certain labels, or all.
async fn several(
    context: &Context,
    scope: &Scope,
    args: &VerifyArgs,
) -> Result<(Vec<PodVerification>, Vec<Failure>), Failed> {
    let everywhere =
        args.all_namespaces || (args.node.is_some() && context.global.namespace.is_none());
    let namespace = if everywhere { "" } else { scope.namespace.as_str() };
    let selector = args.selector.as_deref().unwrap_or_default();
    let places = match (&args.node, &args.selector) {
        (Some(node), _) => vec![scope.fleet.place_of_node(node).await?],
        (None, Some(selector)) => {
            scope.fleet.places_of((!everywhere).then_some(namespace), selector).await?
        }
        (None, None) => scope.fleet.places().await?,
    };
    let places = places.into_iter().map(|place| (place, ())).collect();
    let gathered = scope
        .fleet
        .gather(places, async |agent, ()| agent.verify_node(namespace, selector).await)
        .await;
    let mut pods: Vec<PodVerification> = gathered.answers.into_iter().flatten().collect();
    if let Some(name) = &args.container {
        pods.retain_mut(|pod| only(pod, name));
    }
    Ok((pods, gathered.failures))
}

/// Leaves this container alone in the pod's verification. False if it has none of that name.
fn only(pod: &mut PodVerification, name: &str) -> bool {
    pod.containers.retain(|container| {
        container.container.as_ref().is_some_and(|container| container.container == name)
    });
    let worst = [Outcome::Drift, Outcome::Unknown, Outcome::Ok]
        .into_iter()
        .find(|outcome| pod.containers.iter().any(|container| container.outcome() == *outcome));
    pod.set_outcome(worst.unwrap_or_default());
    !pod.containers.is_empty()
}
