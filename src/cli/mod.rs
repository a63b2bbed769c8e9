//! The command line, `podsonde` and `kubectl podsonde`: arguments, one file per command, output, exit codes. Made of
//! [`crate::client`]; knows nothing of Linux.

mod args;
mod capture;
mod context;
mod debug;
mod extcap;
mod files;
mod hint;
mod node;
mod progress;
mod report;
mod sessions;
mod table;
mod terminal;
mod values;
mod verdict;
mod verify;

use std::{ffi::OsString, path::Path, process::ExitCode};

use clap::{CommandFactory, FromArgMatches};

use args::{Cli, Command};
use context::{Context, Exit, Failed};
use terminal::Terminal;

/// What kubectl calls the binary of its plugin `podsonde`.
const PLUGIN: &str = "kubectl-podsonde";

/// What Wireshark calls the binary, or a link to it.
const EXTCAP: &str = "podsonde-extcap";

/// A command line that was understood.
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
            // Where packets are printed it says how much of them.
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
        // Fields of a dialog that were left empty.
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
            // Where it cannot be printed there is nobody to tell.
            let _ = error.print();
            Err(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage.code())))
        }
    }
}

fn command(plugin: bool) -> clap::Command {
    Cli::command().bin_name(if plugin { "kubectl podsonde" } else { "podsonde" })
}

/// Does what the command line says, and returns the exit code that the help documents.
#[must_use]
pub fn run(invocation: Invocation) -> ExitCode {
    let Invocation { cli, plugin } = invocation;
    let program = if plugin { "kubectl podsonde" } else { "podsonde" };
    let terminal = Terminal::new(cli.global.color);
    let context = Context { global: cli.global, terminal, program };
    #[cfg(all(feature = "embedded", target_os = "linux"))]
    if let Command::Demo(_) = &cli.command
        // Before the runtime's threads, as namespaces are a thread's.
        && let Err(error) = crate::embedded::demo::prepare()
    {
        terminal.error(&format!("{error:#}"));
        return Exit::Error.into();
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if matches!(&cli.command, Command::Capture(args) if capture::is_of_one_pod(args)) {
        // One stream is one connection's work. More threads would only take it from each other.
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
    // What still runs now is a look-up or a closing connection that nobody waits for.
    runtime.shutdown_background();
    done.unwrap_or_else(|failed| context.report(&failed)).into()
}

async fn perform(context: &Context, command: &Command, plugin: bool) -> Result<Exit, Failed> {
    match command {
        Command::Debug(args) => debug::run(context, args).await,
        Command::Verify(args) => verify::run(context, args).await,
        Command::Sessions(args) => sessions::list(context, args).await,
        Command::End(args) => sessions::end(context, args).await,
        Command::Capture(args) => capture::run(context, args).await,
        Command::Extcap(args) => extcap::run(context, args).await,
        Command::Node(args) => node::run(context, args).await,
        Command::Files(command) => files::run(context, command).await,
        Command::Version(args) => node::version(context, args).await,
        Command::Completion(args) => {
            let mut script = Vec::new();
            let name = if plugin { PLUGIN } else { "podsonde" };
            clap_complete::generate(args.shell, &mut self::command(plugin), name, &mut script);
            context.terminal.print(&String::from_utf8_lossy(&script))?;
            Ok(Exit::Ok)
        }
        #[cfg(all(feature = "embedded", target_os = "linux"))]
        Command::Demo(args) => match crate::embedded::demo::run(args.hold).await {
            Ok(()) => Ok(Exit::Ok),
            Err(error) => {
                context.terminal.error(&format!("{error:#}"));
                Ok(Exit::Error)
            }
        },
    }
}
