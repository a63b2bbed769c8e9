//! `podsonde completion`.

use clap::Args;

use super::{
    context::{Context, Exit, Failed},
    options::TEMPLATE,
};

/// The arguments of `podsonde completion`.
#[derive(Debug, Clone, Args)]
#[command(help_template = TEMPLATE, after_help = "Examples:
  source <(podsonde completion bash)
  podsonde completion fish > ~/.config/fish/completions/podsonde.fish")]
pub(super) struct CompletionArgs {
    /// Shell to complete for
    #[arg(value_name = "SHELL")]
    pub(super) shell: clap_complete::Shell,
}

/// Prints the script that completes `command` when it is called `name`.
pub(super) fn run(
    context: &Context,
    args: &CompletionArgs,
    mut command: clap::Command,
    name: &str,
) -> Result<Exit, Failed> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    context.terminal.print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}
