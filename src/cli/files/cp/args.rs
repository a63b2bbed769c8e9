//! The arguments of `podsonde cp`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::{
    files::{
        args::{ContainerArgs, Format, location},
        location::Location,
    },
    options::TEMPLATE,
};

/// `podsonde cp`.
#[derive(Debug, Clone, Args)]
#[command(
    help_template = TEMPLATE,
    after_help = "Copies files and directories out of a pod, or one file into it if the agent allows writing. If \
DESTINATION is an existing directory, the source is copied into it, as with cp(1). Each file is \
compared with the agent's SHA-256 before it gets its name. An interrupted download leaves \
.NAME.podsonde-part, from which the same command continues.

Symbolic links in a directory are skipped, because they may lead anywhere; --links creates those \
that stay inside the copied directory. FIFOs, sockets and devices are skipped. Set-user-ID, \
set-group-ID and sticky bits are never set.

Examples:
  podsonde cp web:/etc/nginx/nginx.conf .
  podsonde cp -p shop/web:/var/log ./web-logs
  podsonde cp web:/core.1234 - | zstd > core.zst
  podsonde cp ./fixed.conf web:/etc/app/app.conf

Exit codes:
  0    everything was copied
  1    something could not be copied
  2    the usage was wrong
  130  interrupted"
)]
pub(in crate::cli) struct CpArgs {
    /// What to copy: POD:PATH, NAMESPACE/POD:PATH, TYPE/NAME:PATH, or a local PATH to upload
    #[arg(value_name = "SOURCE", value_parser = location())]
    pub(super) source: Location,
    /// Where to copy it: a local PATH, - for stdout, or POD:PATH to upload
    #[arg(value_name = "DESTINATION", value_parser = location())]
    pub(super) destination: Location,
    #[command(flatten)]
    pub(super) container: ContainerArgs,
    /// Keep permission bits and modification times
    #[arg(short, long)]
    pub(super) preserve: bool,
    /// Create symbolic links that stay inside the copied directory
    #[arg(long)]
    pub(super) links: bool,
    /// Do not compare checksums with the agent
    #[arg(long)]
    pub(super) no_verify: bool,
    /// Start again instead of continuing an interrupted download
    #[arg(long)]
    pub(super) no_resume: bool,
    /// Do not copy from volumes and other mounts below the source
    #[arg(short = 'x', long)]
    pub(super) one_file_system: bool,
    /// Replace an existing file when uploading
    #[arg(short, long)]
    pub(super) force: bool,
    /// Print neither progress nor notes
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Accepted out of habit: directories are always copied whole
    #[arg(short = 'r', long, short_aliases = ['R', 'a'], hide = true)]
    recursive: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(super) output: Format,
}

impl CpArgs {
    /// Whether the destination is stdout.
    pub(super) fn to_stdout(&self) -> bool {
        matches!(&self.destination, Location::Local(path) if path == &PathBuf::from("-"))
    }
}
