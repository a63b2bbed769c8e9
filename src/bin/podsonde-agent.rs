//! The agent: parse, telemetry, run, exit code.

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    use clap::Parser;
    use podsonde::{
        agent,
        sys::{broker, capture::compiler, enter},
        telemetry,
    };

    match std::env::args_os().nth(1) {
        Some(first) if first == broker::ARGUMENT => return broker::serve(),
        Some(first) if first == compiler::ARGUMENT => return compiler::serve(),
        _ => {}
    }
    let config = agent::config::Config::parse();
    telemetry::init(config.log_format, &config.log_level);
    if let Err(error) = enter::see_cgroups_of(config.host_pid) {
        tracing::info!(%error, "cgroups are seen from the agent's own cgroup namespace, if it has one");
    }
    // Before there is a thread that would keep what is given up.
    let result = agent::privileges::separate().and_then(|entry| {
        // One worker: what takes long has threads of its own, and a second one would be woken, time
        // after time, to look for work that the first has in hand. It cost a capture a third more
        // CPU.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let result = runtime.block_on(agent::app::run(config, entry));
        // Dropping it would wait for blocking work, however long that takes.
        runtime.shutdown_timeout(std::time::Duration::from_secs(1));
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    // The agent is a Linux program; the package builds elsewhere for the client's sake.
    ExitCode::FAILURE
}
