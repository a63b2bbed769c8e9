//! The command line: parse, telemetry, run, exit code.

use std::process::ExitCode;

use podsonde::{
    cli,
    telemetry::{self, LogFormat},
};

fn main() -> ExitCode {
    // A container of the embedded cluster is this binary, executed anew.
    #[cfg(all(feature = "embedded", target_os = "linux"))]
    if let Some(code) = podsonde::embedded::namespaces::dispatch() {
        return code;
    }
    // So is what compiles filters for the agent that runs inside of it.
    #[cfg(all(feature = "embedded", target_os = "linux"))]
    if std::env::args_os()
        .nth(1)
        .is_some_and(|first| first == podsonde::sys::capture::compiler::ARGUMENT)
    {
        return podsonde::sys::capture::compiler::serve();
    }
    match cli::parse(std::env::args_os()) {
        Ok(invocation) => {
            telemetry::init(LogFormat::Text, invocation.log_filter());
            cli::run(invocation)
        }
        Err(code) => code,
    }
}
