//! The arguments of the commands on files. Flags are those of the tool that a command is named after, but for `-n` (namespace) and `-c`
//! (container), which are kubectl's everywhere; [`super::dialect`] reads what clap cannot.

use std::{ffi::OsString, path::PathBuf};

use clap::{
    ArgAction, Args, Subcommand, ValueEnum,
    builder::{OsStringValueParser, TypedValueParser},
};

use super::location::{Location, PodPath};
use crate::cli::{options::TEMPLATE, values::label};

/// Heading of the options that say whose files.
const WHICH: &str = "Which files";

/// The commands on files.
#[derive(Debug, Clone, Subcommand)]
pub(in crate::cli) enum FilesCommand {
    /// List files of a container
    Ls(Box<LsArgs>),
    /// Print files of a container
    Cat(CatArgs),
    /// Print the end of files of a container, and follow it
    Tail(TailArgs),
    /// Copy files and trees from a container, or a file into it
    Cp(Box<CpArgs>),
    /// Describe files of a container
    Stat(StatArgs),
    /// Search a tree of a container
    Find(FindArgs),
    /// Compare files or trees of two pods, or of a pod and this machine
    Diff(Box<DiffArgs>),
}

/// Whose files, and as whom.
#[derive(Debug, Clone, Args)]
pub(in crate::cli) struct WhoseArgs {
    /// Container whose files are meant [default: the pod's default container, else its first]
    #[arg(short, long, value_name = "CONTAINER", value_parser = label, help_heading = WHICH)]
    pub(super) container: Option<String>,
    /// Whose root directory: container for the container's own; proc1 for what /proc/1/root is inside of it, which for a debug container
    /// is its target's
    #[arg(long, value_name = "VIEW", default_value = "container", hide_possible_values = true, help_heading = WHICH)]
    pub(super) view: View,
    /// Read with all rights of root instead of as the container's own user; needs a right of its own
    #[arg(long, help_heading = WHICH)]
    pub(super) as_root: bool,
}

/// Whose root directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum View {
    // The named container's own.
    Container,
    // What /proc/1/root is inside of it.
    #[value(alias = "/proc/1/root")]
    Proc1,
}

/// Output formats of the commands on files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    // As the tool that the command is named after
    Text,
    // One JSON object
    Json,
    // One YAML document
    Yaml,
}

fn pod_path() -> impl TypedValueParser<Value = PodPath> {
    OsStringValueParser::new().try_map(PodPath::parse)
}

fn location() -> impl TypedValueParser<Value = Location> {
    OsStringValueParser::new().try_map(Location::parse)
}

/// `podsonde ls`.
#[derive(Debug, Clone, Args)]
#[command(
    help_template = TEMPLATE,
    disable_help_flag = true,
    after_help = "The flags are those of ls(1), but for -n, which is the namespace, and -c, which is the container. Nothing is executed \
in the container, and nothing is needed in its image. Volumes are part of the tree.

Examples:
  podsonde ls web:/etc
  podsonde ls -la web:/var/log -c app
  podsonde ls -lhS deploy/web:/tmp                # largest first
  podsonde ls -R shop/web:/etc/nginx -o json

Exit codes:
  0 all listed   1 something below could not be   2 an operand could not be, or usage"
)]
pub(in crate::cli) struct LsArgs {
    /// What to list: POD:PATH, NAMESPACE/POD:PATH, TYPE/NAME:PATH
    #[arg(value_name = "POD:PATH", required = true, value_parser = pod_path())]
    pub(super) operands: Vec<PodPath>,
    #[command(flatten)]
    pub(super) whose: WhoseArgs,
    /// Long format: mode, links, owner, group, size, time
    #[arg(short)]
    pub(super) long: bool,
    /// Also what begins with a dot, and . and ..
    #[arg(short, long, overrides_with = "almost_all")]
    pub(super) all: bool,
    /// Also what begins with a dot, without . and ..
    #[arg(short = 'A', long, overrides_with = "all")]
    pub(super) almost_all: bool,
    /// Sizes as 1K, 234M, 2G
    #[arg(short = 'h', long)]
    pub(super) human_readable: bool,
    /// Also what is in the directories below
    #[arg(short = 'R', long)]
    pub(super) recursive: bool,
    /// Directories themselves, not what is in them
    #[arg(short, long)]
    pub(super) directory: bool,
    /// One name a line
    #[arg(short = '1')]
    pub(super) one_per_line: bool,
    /// Columns also where the output is not a terminal
    #[arg(short = 'C', overrides_with = "one_per_line")]
    pub(super) columns: bool,
    /// Newest first
    #[arg(short = 't', overrides_with = "by_size")]
    pub(super) by_time: bool,
    /// Largest first
    #[arg(short = 'S', overrides_with = "by_time")]
    pub(super) by_size: bool,
    /// The other way round
    #[arg(short, long)]
    pub(super) reverse: bool,
    /// Inode numbers
    #[arg(short, long)]
    pub(super) inode: bool,
    /// A mark behind the name: / directory, * executable, @ link, | fifo, = socket
    #[arg(short = 'F', long)]
    pub(super) classify: bool,
    /// Long format with the owner's and group's numbers
    #[arg(long)]
    pub(super) numeric_uid_gid: bool,
    /// Long format with times to the nanosecond
    #[arg(long)]
    pub(super) full_time: bool,
    /// Names as they are, also on a terminal
    #[arg(short = 'N', long)]
    pub(super) literal: bool,
    /// Columns of the terminal; 0: no limit
    #[arg(short, long, value_name = "COLUMNS")]
    pub(super) width: Option<usize>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(super) output: Format,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// `podsonde cat`.
#[derive(Debug, Clone, Args)]
#[command(
    help_template = TEMPLATE,
    after_help = "Examples:
  podsonde cat web:/etc/nginx/nginx.conf
  podsonde cat web:/var/log/app.log.gz | zcat | less
  podsonde cat deploy/web:/etc/shadow --as-root

Exit codes:
  0 all read   1 something could not be   2 usage"
)]
pub(in crate::cli) struct CatArgs {
    /// What to read: POD:PATH, NAMESPACE/POD:PATH, TYPE/NAME:PATH
    #[arg(value_name = "POD:PATH", required = true, value_parser = pod_path())]
    pub(super) operands: Vec<PodPath>,
    #[command(flatten)]
    pub(super) whose: WhoseArgs,
    /// Output format; json and yaml for files of at most 16 MiB, content that is not UTF-8 in base64
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(super) output: Format,
}

/// `podsonde tail`.
#[derive(Debug, Clone, Args)]
#[command(
    help_template = TEMPLATE,
    after_help = "A number behind -n or -c is tail(1)'s count of lines or bytes; a name is kubectl's namespace or container. \
-f follows through truncation and rotation, as tail -F does, until the container ends.

Examples:
  podsonde tail web:/var/log/app.log
  podsonde tail -n 100 -f web:/var/log/app.log -n shop -c app
  podsonde tail -c 1K web:/var/log/app.log
  podsonde tail -n +1 -F web:/var/log/app.log       # from the first line on

Exit codes:
  0 all read   1 something could not be   2 usage"
)]
pub(in crate::cli) struct TailArgs {
    /// What to read: POD:PATH, NAMESPACE/POD:PATH, TYPE/NAME:PATH
    #[arg(value_name = "POD:PATH", required = true, value_parser = pod_path())]
    pub(super) operands: Vec<PodPath>,
    #[command(flatten)]
    pub(super) whose: WhoseArgs,
    /// Go on with what is added
    #[arg(short, long, short_alias = 'F')]
    pub(super) follow: bool,
    /// The last N lines; +N: from line N on; also -n N [default: 10]
    #[arg(long, value_name = "N", value_parser = super::dialect::count, allow_hyphen_values = true)]
    pub(super) lines: Option<super::dialect::Count>,
    /// The last N bytes; +N: from byte N on; also -c N; suffixes K, M, G
    #[arg(long, value_name = "N", value_parser = super::dialect::count, allow_hyphen_values = true, conflicts_with = "lines")]
    pub(super) bytes: Option<super::dialect::Count>,
    /// Never a header with the name
    #[arg(short, long, visible_alias = "silent", overrides_with = "headers")]
    pub(super) quiet: bool,
    /// Always a header with the name; also -v
    #[arg(long, overrides_with = "quiet")]
    pub(super) headers: bool,
    /// Output format; with -f one JSON object a line
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(super) output: Format,
}

/// `podsonde stat`.
#[derive(Debug, Clone, Args)]
#[command(
    help_template = TEMPLATE,
    after_help = "Examples:
  podsonde stat web:/etc/passwd
  podsonde stat -L web:/etc/mtab
  podsonde stat --format='%a %U %s %n' web:/etc/passwd web:/etc/hosts

Exit codes:
  0 all described   1 something could not be   2 usage"
)]
pub(in crate::cli) struct StatArgs {
    /// What to describe: POD:PATH, NAMESPACE/POD:PATH, TYPE/NAME:PATH
    #[arg(value_name = "POD:PATH", required = true, value_parser = pod_path())]
    pub(super) operands: Vec<PodPath>,
    #[command(flatten)]
    pub(super) whose: WhoseArgs,
    /// What a symbolic link leads to
    #[arg(short = 'L', long)]
    pub(super) dereference: bool,
    /// stat(1)'s format: %n %N %s %b %B %f %F %a %A %u %U %g %G %h %i %d %t %T %w %W %x %X %y %Y %z %Z
    #[arg(long, value_name = "FORMAT", conflicts_with = "output")]
    pub(super) format: Option<String>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(super) output: Format,
}

/// `podsonde find`.
#[derive(Debug, Clone, Args)]
#[command(
    help_template = TEMPLATE,
    after_help = "Tests (with one dash or two; a number N is exact, +N more, -N less):
  -name PATTERN  -iname PATTERN     the name, with *, ? and [..]
  -path PATTERN  -ipath PATTERN     the path in the pod, or as it is printed
  -type f|d|l|p|s|c|b               several with commas
  -size N[ckMG]  -empty             blocks of 512 bytes without a unit
  -mtime N  -mmin N                 days, minutes since it was changed; also -atime, -amin, -ctime, -cmin
  -newer PATH                       changed later than that file, of the same pod or POD:PATH
  -perm MODE  -user U  -group G  -links N  -inum N
Operators: ( EXPR )   ! EXPR   EXPR -a EXPR   EXPR -o EXPR
Depth: -maxdepth N  -mindepth N  -xdev (stays out of volumes and other mounts)
Actions: -print  -print0  -ls  -prune
-o json and -o yaml choose the output; before anything else -o is the operator.

Examples:
  podsonde find web:/etc -name '*.conf'
  podsonde find web:/ -xdev -type f -size +10M -ls
  podsonde find web:/var/log -mtime -1 -print0 | xargs -0 podsonde tail
  podsonde find web:/ -name node_modules -prune -o -name '*.js' -print

Exit codes:
  0 all searched   1 something could not be   2 usage"
)]
pub(in crate::cli) struct FindArgs {
    /// Where to begin: POD:PATH, NAMESPACE/POD:PATH, TYPE/NAME:PATH
    #[arg(value_name = "POD:PATH", required = true, value_parser = pod_path())]
    pub(super) operands: Vec<PodPath>,
    #[command(flatten)]
    pub(super) whose: WhoseArgs,
    /// The expression; [`super::dialect`] collects it.
    #[arg(long = super::dialect::EXPRESSION, hide = true, allow_hyphen_values = true, action = ArgAction::Append)]
    pub(super) expression: Vec<OsString>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(super) output: Format,
}

/// `podsonde diff`.
#[derive(Debug, Clone, Args)]
#[command(
    help_template = TEMPLATE,
    after_help = "Compares files, or whole trees, of two pods, or of a pod and this machine. Agents compute the checksums: content that is \
the same is not transferred. Symbolic links are compared by what they hold.

Examples:
  podsonde diff web-0:/etc/nginx web-1:/etc/nginx
  podsonde diff web-0:/etc/resolv.conf ./resolv.conf
  podsonde diff -q shop/web-0:/app staging/web-0:/app

Exit codes:
  0 the same   1 they differ   2 something could not be compared, or usage"
)]
pub(in crate::cli) struct DiffArgs {
    /// POD:PATH, NAMESPACE/POD:PATH, TYPE/NAME:PATH, or a local PATH
    #[arg(value_name = "FROM", value_parser = location())]
    pub(super) from: Location,
    /// The same; one of the two is a pod's
    #[arg(value_name = "TO", value_parser = location())]
    pub(super) to: Location,
    #[command(flatten)]
    pub(super) whose: WhoseArgs,
    /// Only whether files differ
    #[arg(short = 'q', long)]
    pub(super) brief: bool,
    /// Also say which files are the same
    #[arg(short = 's', long)]
    pub(super) report_identical_files: bool,
    /// Lines of context
    #[arg(short = 'U', long, value_name = "LINES", default_value = "3")]
    pub(super) unified: usize,
    /// Into directories: always; for the habit
    #[arg(short = 'r', long, hide = true)]
    recursive: bool,
    /// Unified: always; for the habit
    #[arg(short = 'u', hide = true)]
    unified_habit: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(super) output: Format,
}

/// `podsonde cp`.
#[derive(Debug, Clone, Args)]
#[command(
    help_template = TEMPLATE,
    after_help = "Copies files and trees out of a pod, or one file into it where the agent allows that. An existing directory as DESTINATION \
gets the source in it, as with cp. What arrives is compared with the agent's SHA-256 before it gets its name. A download that broke \
off leaves .NAME.podsonde-part and goes on from there next time.

Symbolic links in a tree are left out and said, for they may lead anywhere; --links makes those that stay inside of the tree. FIFOs, \
sockets and devices are left out. Set-user-id, set-group-id and sticky bits are never set.

Examples:
  podsonde cp web:/etc/nginx/nginx.conf .
  podsonde cp -p shop/web:/var/log ./web-logs
  podsonde cp web:/core.1234 - | zstd > core.zst
  podsonde cp ./fixed.conf web:/etc/app/app.conf

Exit codes:
  0 all copied   1 something could not be, or was left out on an error   2 usage   130 interrupted"
)]
pub(in crate::cli) struct CpArgs {
    /// POD:PATH, NAMESPACE/POD:PATH, TYPE/NAME:PATH, or a local PATH to upload
    #[arg(value_name = "SOURCE", value_parser = location())]
    pub(super) source: Location,
    /// A local PATH, - for stdout, or POD:PATH to upload
    #[arg(value_name = "DESTINATION", value_parser = location())]
    pub(super) destination: Location,
    #[command(flatten)]
    pub(super) whose: WhoseArgs,
    /// Permission bits and modification times as in the pod
    #[arg(short, long)]
    pub(super) preserve: bool,
    /// Make symbolic links that stay inside of the tree
    #[arg(long)]
    pub(super) links: bool,
    /// Do not ask for the agent's checksum of what was copied
    #[arg(long)]
    pub(super) no_verify: bool,
    /// Begin anew, whatever an earlier download left
    #[arg(long)]
    pub(super) no_resume: bool,
    /// Not into volumes and other mounts of the tree
    #[arg(short = 'x', long)]
    pub(super) one_file_system: bool,
    /// Upload: replace a file that is there
    #[arg(short, long)]
    pub(super) force: bool,
    /// Neither progress nor notes
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Into directories: always; for the habit
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
