//! The command line.

use std::process::ExitCode;

use podsonde::{
    cli,
    telemetry::{self, LogFormat},
};

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(invocation) => {
            telemetry::init(LogFormat::Text, invocation.log_filter());
            cli::run(invocation)
        }
        Err(code) => code,
    }
}
