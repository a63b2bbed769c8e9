//! The client.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(all(feature = "embedded", target_os = "linux"))]
    if let Some(code) = podsonde::embedded::namespaces::dispatch() {
        return code;
    }
    ExitCode::SUCCESS
}
