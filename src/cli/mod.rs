//! The command lines `podsonde` and `kubectl podsonde`: arguments, commands, output and exit codes.
//! It uses [`crate::client`] and depends on nothing of Linux.

mod capture;
mod completion;
mod context;
mod debug;
#[cfg(all(feature = "embedded", target_os = "linux"))]
mod demo;
mod end;
mod extcap;
mod files;
mod hint;
mod node;
mod options;
mod progress;
mod report;
mod sessions;
mod table;
mod terminal;
mod values;
mod verdict;
mod verify;
mod version;

use std::{ffi::OsString, path::Path, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, builder::Styles};

use context::{Context, Exit, Failed};
use options::GlobalArgs;
use terminal::Terminal;

/// The name under which kubectl finds its plugin `podsonde`.
const PLUGIN: &str = "kubectl-podsonde";

/// The name of the binary, or of a link to it, in Wireshark's extcap directory.
const EXTCAP: &str = "podsonde-extcap";

/// The section of the help that explains the exit codes.
const EXIT_CODES: &str = "\
Exit codes:
  0    the verdict is OK (debug: and the container runs)
  1    error; for several pods: some could not be asked about; diff: they differ
  2    usage; ls, diff: trouble, as with the tools of that name
  3    DRIFT: a namespace is not what the pod's spec asks for
  4    UNKNOWN: it cannot be told
  130  interrupted
Of several that apply: 3 before 1 before 4.";

/// Looks into pods from their nodes: debug containers with proof of the namespaces they share,
/// files, packets.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "podsonde",
    version,
    styles = Styles::plain(),
    max_term_width = 100,
    propagate_version = false,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = EXIT_CODES
)]
struct Cli {
    /// The options of every command.
    #[command(flatten)]
    global: GlobalArgs,
    /// The command to run.
    #[command(subcommand)]
    command: Command,
}

/// The commands, in the order of the help.
#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Start a debug container in a pod and verify its namespaces
    Debug(Box<debug::DebugArgs>),
    /// Verify which namespaces the containers of pods share
    Verify(verify::VerifyArgs),
    /// List debug sessions
    Sessions(sessions::SessionsArgs),
    /// End a debug session by ending the processes of its container
    End(end::EndArgs),
    /// Capture the packets of pods: print them, or write them to a file
    Capture(Box<capture::CaptureArgs>),
    /// Show agents, their nodes, and what the nodes let them do
    Node(node::NodeArgs),
    // The commands on files, such as `cp` and `ls`.
    #[command(flatten)]
    Files(files::FilesCommand),
    /// Show the versions of the client and of the agents
    Version(version::VersionArgs),
    /// Print a completion script for a shell
    Completion(completion::CompletionArgs),
    /// Run as a Wireshark extcap, so that Wireshark lists pods as interfaces
    Extcap(Box<extcap::ExtcapArgs>),
    /// Show what podsonde does, on this machine alone: no Kubernetes, no root
    #[cfg(all(feature = "embedded", target_os = "linux"))]
    Demo(demo::DemoArgs),
}

/// A valid command line, ready to run.
#[derive(Debug)]
pub struct Invocation {
    cli: Cli,
    plugin: bool,
}

impl Invocation {
    /// The filter for the logs that `-v` asks for, in tracing's syntax.
    #[must_use]
    pub fn log_filter(&self) -> &'static str {
        match self.cli.global.verbose {
            // For captures -v controls how much of each packet is printed.
            _ if matches!(self.cli.command, Command::Capture(_)) => "error,podsonde=warn",
            0 => "error,podsonde=warn",
            1 => "warn,podsonde=debug",
            _ => "debug",
        }
    }
}

/// Reads the command line, whose first element is the program's own name.
///
/// # Errors
/// The process's exit code, after usage, help or version was printed.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, ExitCode> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let stem = arguments.first().and_then(|program| Path::new(program).file_stem());
    let plugin = stem.is_some_and(|stem| stem == PLUGIN);
    if stem.is_some_and(|stem| stem == EXTCAP) {
        arguments.insert(1, "extcap".into());
        // Drops options whose dialog field was left empty.
        while let Some(empty) =
            arguments.iter().position(|argument| argument.is_empty()).filter(|at| *at > 2)
        {
            arguments.drain(empty - 1..=empty);
        }
    }
    let arguments = files::dialect::rewrite(&Cli::command(), arguments);
    let parsed = command(plugin).try_get_matches_from(arguments);
    match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => Ok(Invocation { cli, plugin }),
        Err(error) => {
            // If stderr is gone, there is nowhere to report it.
            let _ = error.print();
            Err(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage.code())))
        }
    }
}

fn command(plugin: bool) -> clap::Command {
    Cli::command().bin_name(if plugin { "kubectl podsonde" } else { "podsonde" })
}

/// Runs the command and returns its exit code, which the help documents.
#[must_use]
pub fn run(invocation: Invocation) -> ExitCode {
    let Invocation { cli, plugin } = invocation;
    let program = if plugin { "kubectl podsonde" } else { "podsonde" };
    let terminal = Terminal::new(cli.global.color);
    let context = Context { global: cli.global, terminal, program };
    #[cfg(all(feature = "embedded", target_os = "linux"))]
    if let Command::Demo(_) = &cli.command
        // This must precede the runtime's threads, because a namespace belongs to a thread.
        && let Err(error) = demo::prepare()
    {
        terminal.error(&format!("{error:#}"));
        return Exit::Error.into();
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if matches!(&cli.command, Command::Capture(args) if capture::is_of_one_pod(args)) {
        // One stream is the work of one connection, so more threads would only compete for it.
        runtime.worker_threads(1);
    }
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            terminal.error(&format!("cannot start: {error}"));
            return Exit::Error.into();
        }
    };
    let done = runtime.block_on(perform(&context, &cli.command, plugin));
    // Only a look-up or a closing connection can still run, and nobody waits for it.
    runtime.shutdown_background();
    done.unwrap_or_else(|failed| context.report(&failed)).into()
}

async fn perform(context: &Context, command: &Command, plugin: bool) -> Result<Exit, Failed> {
    match command {
        Command::Debug(args) => debug::run(context, args).await,
        Command::Verify(args) => verify::run(context, args).await,
        Command::Sessions(args) => sessions::run(context, args).await,
        Command::End(args) => end::run(context, args).await,
        Command::Capture(args) => capture::run(context, args).await,
        Command::Extcap(args) => extcap::run(context, args).await,
        Command::Node(args) => node::run(context, args).await,
        Command::Files(command) => files::run(context, command).await,
        Command::Version(args) => version::run(context, args).await,
        Command::Completion(args) => {
            let name = if plugin { PLUGIN } else { "podsonde" };
            completion::run(context, args, self::command(plugin), name)
        }
        #[cfg(all(feature = "embedded", target_os = "linux"))]
        Command::Demo(args) => match demo::run(args.hold).await {
            Ok(()) => Ok(Exit::Ok),
            Err(error) => {
                context.terminal.error(&format!("{error:#}"));
                Ok(Exit::Error)
            }
        },
    }
}
