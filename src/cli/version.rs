//! `podsonde version`.

use std::collections::BTreeMap;

use clap::Args;

use super::{
    context::{Context, Exit, Failed},
    node,
    options::{ObjectOutput, TEMPLATE},
    report::{AgentVersion, VersionReport, errors},
};
use crate::domain::text::escape;

/// The version of this client.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The arguments of `podsonde version`.
#[derive(Debug, Clone, Args)]
#[command(help_template = TEMPLATE, after_help = "Examples:
  podsonde version
  podsonde version --client -o json")]
pub(super) struct VersionArgs {
    /// Show only the client's version
    #[arg(long)]
    pub(super) client: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(super) output: ObjectOutput,
}

pub(super) async fn run(context: &Context, args: &VersionArgs) -> Result<Exit, Failed> {
    // Print the client's version even if no agent answers.
    let (gathered, failed) = match args.client {
        true => (None, None),
        false => match node::ask(context, &[]).await {
            Ok(gathered) => (Some(gathered), None),
            Err(failed) => (None, Some(failed)),
        },
    };
    let (answers, failures) =
        gathered.map(|gathered| (gathered.answers, gathered.failures)).unwrap_or_default();
    let terminal = context.terminal;
    let report = VersionReport {
        client: VERSION,
        agents: answers
            .into_iter()
            .map(|node| AgentVersion { node: node.node, version: node.version })
            .collect(),
        errors: errors(&failures),
    };
    match args.output {
        ObjectOutput::Json => terminal.json(&report)?,
        ObjectOutput::Yaml => terminal.yaml(&report)?,
        ObjectOutput::Text => {
            let mut versions: BTreeMap<&str, usize> = BTreeMap::new();
            for agent in &report.agents {
                *versions.entry(&agent.version).or_default() += 1;
            }
            let mut text = format!("Client: {VERSION}\n");
            for (version, nodes) in versions {
                let version = escape(version);
                text.push_str(&format!(
                    "Agent:  {version} ({nodes} node{})\n",
                    if nodes == 1 { "" } else { "s" }
                ));
            }
            terminal.print(&text)?;
        }
    }
    context.report_failures(&failures);
    match failed {
        Some(failed) => Err(failed),
        None => Ok(if failures.is_empty() { Exit::Ok } else { Exit::Error }),
    }
}
