//! `podsonde node`.

use std::time::Duration;

use clap::Args;
use futures::{StreamExt, stream};

use super::{
    context::{Context, Exit, Failed},
    options::{ListOutput, TEMPLATE},
    report::{NodesReport, instant},
    table::{Cell, Table, Tone, age},
    values::object_name,
};
use crate::{
    client::{Failure, Gathered},
    proto::v1::NodeGetResponse,
};

/// How many of the named nodes are looked up at the same time.
const LOOKUPS: usize = 16;

/// The arguments of `podsonde node`.
#[derive(Debug, Clone, Args)]
#[command(help_template = TEMPLATE, after_help = "Examples:
  # All agents of the cluster
  podsonde node

  # One of them, with what its node lets it do
  podsonde node node-1")]
pub(super) struct NodeArgs {
    /// Nodes to show [default: all that have an agent, or the node of --agent]
    #[arg(value_name = "NODE", value_parser = object_name)]
    pub(super) nodes: Vec<String>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub(super) output: ListOutput,
}

pub(super) async fn run(context: &Context, args: &NodeArgs) -> Result<Exit, Failed> {
    let gathered = ask(context, &args.nodes).await?;
    let terminal = context.terminal;
    match args.output {
        ListOutput::Json => terminal.json(&NodesReport::from(&gathered))?,
        ListOutput::Yaml => terminal.yaml(&NodesReport::from(&gathered))?,
        ListOutput::Table | ListOutput::Wide if gathered.answers.is_empty() => {
            if gathered.failures.is_empty() {
                terminal.note("No nodes found");
            }
        }
        ListOutput::Table | ListOutput::Wide => {
            let wide = args.output == ListOutput::Wide;
            let mut text =
                table(&gathered.answers, wide, jiff::Timestamp::now()).render(terminal.colour);
            if let [node] = gathered.answers.as_slice() {
                text.push('\n');
                text.push_str(&features(node).render(terminal.colour));
            }
            terminal.print(&text)?;
        }
    }
    context.report_failures(&gathered.failures);
    Ok(if gathered.failures.is_empty() { Exit::Ok } else { Exit::Error })
}

/// Asks the agents of these nodes, or of all nodes if none is named.
pub(super) async fn ask(
    context: &Context,
    nodes: &[String],
) -> Result<Gathered<NodeGetResponse>, Failed> {
    if !nodes.is_empty() {
        context.refuse_nodes_with_agent()?;
    }
    let scope = context.scope().await?;
    let mut failures = Vec::new();
    let mut places = Vec::new();
    if nodes.is_empty() {
        places = scope.fleet.places().await?;
    }
    let fleet = &scope.fleet;
    let named =
        stream::iter(nodes).map(|node| async move { (node, fleet.place_of_node(node).await) });
    for (node, place) in named.buffered(LOOKUPS).collect::<Vec<_>>().await {
        match place {
            Ok(place) => places.push(place),
            Err(error) => failures.push(Failure { subject: format!("node {node}"), error }),
        }
    }
    let places = places.into_iter().map(|place| (place, ())).collect();
    let mut gathered = scope.fleet.gather(places, async |agent, ()| agent.node().await).await;
    failures.append(&mut gathered.failures);
    gathered.failures = failures;
    Ok(gathered)
}

fn table(nodes: &[NodeGetResponse], wide: bool, now: jiff::Timestamp) -> Table {
    let mut header = vec!["NODE", "AGENT", "PODS", "AGE", "MISSING"];
    if wide {
        header.extend(["KERNEL", "ARCH", "RUNTIMES", "FEATURES"]);
    }
    let mut table = Table::new(&header);
    for node in nodes {
        let names = |available: bool| -> Vec<&str> {
            let of_kind = node.features.iter().filter(|feature| feature.available == available);
            of_kind.map(|feature| feature.name.as_str()).collect()
        };
        let started = node.started_at.and_then(instant);
        let up = started.and_then(|at| Duration::try_from(now.duration_since(at)).ok());
        let missing = names(false);
        let tone = if missing.is_empty() { Tone::Plain } else { Tone::Bad };
        let mut row = vec![
            Cell::from(&node.node),
            Cell::from(&node.version),
            Cell::from(node.pods.to_string()),
            Cell::from(up.map_or_else(|| "<unknown>".to_owned(), age)),
            Cell::toned(&missing.join(","), tone),
        ];
        if wide {
            row.extend([Cell::from(&node.kernel), Cell::from(&node.architecture)]);
            row.extend([Cell::from(node.runtimes.join(",")), Cell::from(names(true).join(","))]);
        }
        table.row(row);
    }
    table
}

fn features(node: &NodeGetResponse) -> Table {
    let mut table = Table::new(&["FEATURE", "AVAILABLE", "MESSAGE"]);
    for feature in &node.features {
        let available = if feature.available { "yes".into() } else { Cell::toned("no", Tone::Bad) };
        table.row(vec![Cell::from(&feature.name), available, Cell::from(&feature.message)]);
    }
    table
}
