//! The options that every command on files has. Each command's own arguments stand in its file.
//!
//! Flags are those of the tool that a command is named after, except `-n` (namespace) and `-c`
//! (container), which mean what they mean to kubectl; [`super::dialect`] rewrites what clap cannot
//! read.

use clap::{
    Args, ValueEnum,
    builder::{OsStringValueParser, TypedValueParser},
};

use super::location::{Location, PodPath};
use crate::cli::values::label;

/// Heading of the options that select a container's root directory.
const SELECTION: &str = "Container and permissions";

/// Which container's files are used, and with whose permissions.
#[derive(Debug, Clone, Args)]
pub(in crate::cli) struct ContainerArgs {
    /// Container whose files to use [default: the pod's default container, else its first]
    #[arg(short, long, value_name = "CONTAINER", value_parser = label, help_heading = SELECTION)]
    pub(super) container: Option<String>,
    /// Root directory to use: `container`, the container's own, or `proc1`, what /proc/1/root is
    /// inside it, which in a debug container is its target's root
    #[arg(
        long,
        value_name = "VIEW",
        default_value = "container",
        hide_possible_values = true,
        help_heading = SELECTION
    )]
    pub(super) view: View,
    /// Use root's permissions instead of those of the container's user; this also takes the right
    /// to patch pods/ephemeralcontainers
    #[arg(long, help_heading = SELECTION)]
    pub(super) as_root: bool,
}

/// Which root directory is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum View {
    // That of the container itself.
    Container,
    // What /proc/1/root is inside the container.
    #[value(alias = "/proc/1/root")]
    Proc1,
}

/// Output formats of the commands on files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    // As the tool that the command is named after.
    Text,
    // One JSON object.
    Json,
    // One YAML document.
    Yaml,
}

/// Parses an argument that has to be in a pod.
pub(super) fn pod_path() -> impl TypedValueParser<Value = PodPath> {
    OsStringValueParser::new().try_map(PodPath::parse)
}

/// Parses an argument that may be in a pod or on this machine.
pub(super) fn location() -> impl TypedValueParser<Value = Location> {
    OsStringValueParser::new().try_map(Location::parse)
}
