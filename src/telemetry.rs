//! Logging for the agent and the command line, set up once in each process. Logs go to stderr,
//! because stdout belongs to results. This module uses nothing else of the crate.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// One line of text for people.
    #[default]
    Text,
    /// One JSON object a line for log collectors.
    Json,
}

/// Sends the process's tracing events to stderr from now on.
///
/// `default_level` is a filter in tracing's syntax: `info`, `warn,podsonde=debug`. A valid filter
/// in the environment variable `RUST_LOG` takes its place. A second call in the same process
/// changes nothing.
pub fn init(format: LogFormat, default_level: &str) {
    let (filter, complaint) = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(text) if !text.is_empty() => match EnvFilter::try_new(&text) {
            Ok(filter) => (filter, None),
            Err(error) => (EnvFilter::new(default_level), Some(error)),
        },
        _ => (EnvFilter::new(default_level), None),
    };
    // Without this, a failed write would be reported by `eprintln!`, which panics if stderr failed.
    let layer = fmt::layer().with_writer(io::stderr).log_internal_errors(false);
    let registry = tracing_subscriber::registry().with(filter);
    let installed = match format {
        LogFormat::Text => {
            let colour = io::stderr().is_terminal() && !anstyle_query::no_color();
            registry.with(layer.with_ansi(colour)).try_init()
        }
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    if let (Ok(()), Some(error)) = (installed, complaint) {
        tracing::warn!(%error, default_level, "RUST_LOG is not a filter; the default is used");
    }
}
