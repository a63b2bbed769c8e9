//! The arguments of `podsonde ls`.

use clap::{ArgAction, Args};

use crate::cli::{
    files::{
        args::{ContainerArgs, Format, pod_path},
        location::PodPath,
    },
    options::TEMPLATE,
};

/// `podsonde ls`. Its `-h` is ls(1)'s, so only `--help` prints the help.
#[derive(Debug, Clone, Args)]
#[command(
    help_template = TEMPLATE,
    disable_help_flag = true,
    after_help = "The flags are those of ls(1), except -n, which is the namespace, and -c, which is the \
container. Nothing runs in the container, so its image needs no shell and no ls. Mounted volumes \
are listed like any other directory.

Examples:
  podsonde ls web:/etc
  podsonde ls -la web:/var/log -c app
  podsonde ls -lhS deploy/web:/tmp                # largest first
  podsonde ls -R shop/web:/etc/nginx -o json

Exit codes:
  0  everything was listed
  1  something below an operand could not be listed
  2  an operand could not be listed, or the usage was wrong"
)]
pub(in crate::cli) struct LsArgs {
    /// Files and directories to list: POD:PATH, NAMESPACE/POD:PATH or TYPE/NAME:PATH
    #[arg(value_name = "POD:PATH", required = true, value_parser = pod_path())]
    pub(super) operands: Vec<PodPath>,
    #[command(flatten)]
    pub(super) container: ContainerArgs,
    /// Show mode, links, owner, group, size and time (long format)
    #[arg(short)]
    pub(super) long: bool,
    /// Include names that begin with a dot, . and .. too
    #[arg(short, long, overrides_with = "almost_all")]
    pub(super) all: bool,
    /// Include names that begin with a dot, except . and ..
    #[arg(short = 'A', long, overrides_with = "all")]
    pub(super) almost_all: bool,
    /// Print sizes as 1K, 234M, 2G
    #[arg(short = 'h', long)]
    pub(super) human_readable: bool,
    /// List subdirectories too
    #[arg(short = 'R', long)]
    pub(super) recursive: bool,
    /// List directories themselves, not their contents
    #[arg(short, long)]
    pub(super) directory: bool,
    /// Print one name per line
    #[arg(short = '1')]
    pub(super) one_per_line: bool,
    /// Print columns even if the output is not a terminal
    #[arg(short = 'C', overrides_with = "one_per_line")]
    pub(super) columns: bool,
    /// Sort by modification time, newest first
    #[arg(short = 't', overrides_with = "by_size")]
    pub(super) by_time: bool,
    /// Sort by size, largest first
    #[arg(short = 'S', overrides_with = "by_time")]
    pub(super) by_size: bool,
    /// Reverse the order
    #[arg(short, long)]
    pub(super) reverse: bool,
    /// Print inode numbers
    #[arg(short, long)]
    pub(super) inode: bool,
    /// Mark names by type: / directory, * executable, @ symbolic link, | FIFO, = socket
    #[arg(short = 'F', long)]
    pub(super) classify: bool,
    /// Use the long format with numeric user and group IDs
    #[arg(long)]
    pub(super) numeric_uid_gid: bool,
    /// Use the long format with times to the nanosecond
    #[arg(long)]
    pub(super) full_time: bool,
    /// Print names without quotes; a terminal still gets ? for control characters
    #[arg(short = 'N', long)]
    pub(super) literal: bool,
    /// Fill this many columns, 0 for no limit [default: the terminal's width]
    #[arg(short, long, value_name = "COLUMNS")]
    pub(super) width: Option<usize>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(super) output: Format,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

impl LsArgs {
    pub(super) fn is_long(&self) -> bool {
        self.long || self.numeric_uid_gid || self.full_time
    }

    /// Whether a name is left out because it begins with a dot.
    pub(super) fn hides(&self, name: &[u8]) -> bool {
        name.starts_with(b".") && !self.all && !self.almost_all
    }
}
