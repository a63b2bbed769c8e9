//! `podsonde stat`.

use std::fmt::Write as _;

use clap::Args;

use super::{
    accounts::Accounts,
    args::{ContainerArgs, Format, pod_path},
    entries::{Clock, is_device, major_minor, mode_string, raw_mode, type_words},
    location::PodPath,
    names,
    open::{self, Pod, Pods, Troubles},
    report::{EntryReport, FileReport, StatsReport, describe_root},
};
use crate::{
    cli::{
        context::{Context, Exit, Failed},
        options::TEMPLATE,
        terminal::Terminal,
    },
    domain::text::escape,
    proto::v1::{FileEntry, FileRoot, FileType},
};

/// `podsonde stat`.
#[derive(Debug, Clone, Args)]
#[command(
    help_template = TEMPLATE,
    after_help = "Directives of --format, as in stat(1):
  %n %N  name, quoted name with a link's target
  %s %b %B  size in bytes, blocks, bytes per block (512)
  %f %F  mode in hexadecimal, type in words
  %a %A  permissions in octal, as -rw-r--r--
  %u %U %g %G  user ID and name, group ID and name
  %h %i %d %t %T  links, inode, device, a device file's major and minor number in hexadecimal
  %w %x %y %z  birth, access, modification and change time; %W %X %Y %Z in seconds since 1970

Examples:
  podsonde stat web:/etc/passwd
  podsonde stat -L web:/etc/mtab
  podsonde stat --format='%a %U %s %n' web:/etc/passwd web:/etc/hosts

Exit codes:
  0  everything was described
  1  a file could not be described
  2  the usage was wrong"
)]
pub(in crate::cli) struct StatArgs {
    /// Files to describe: POD:PATH, NAMESPACE/POD:PATH or TYPE/NAME:PATH
    #[arg(value_name = "POD:PATH", required = true, value_parser = pod_path())]
    operands: Vec<PodPath>,
    #[command(flatten)]
    container: ContainerArgs,
    /// Describe what a symbolic link leads to
    #[arg(short = 'L', long)]
    dereference: bool,
    /// Print each file by these directives
    #[arg(long, value_name = "FORMAT", conflicts_with = "output")]
    format: Option<String>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

pub(super) async fn run(context: &Context, args: &StatArgs) -> Result<Exit, Failed> {
    let pods = Pods::new(context, &args.container, false).await?;
    let mut troubles = Troubles::new(context);
    let mut report = StatsReport::default();
    let clock = Clock::system();
    for operand in &args.operands {
        let (pod, root, entry) = match describe(&pods, operand, args).await {
            Ok(described) => described,
            Err(failed) => {
                troubles.note(&operand.shown(), failed, Exit::Error)?;
                continue;
            }
        };
        if args.output != Format::Text {
            let entry = EntryReport::new(&operand.path, &entry);
            report.files.push(FileReport {
                root: (&root).into(),
                entry,
                offset: None,
                content: None,
            });
            continue;
        }
        let subject = Subject {
            name: &operand.typed(),
            entry: &entry,
            accounts: pod.accounts().await,
            clock: &clock,
            terminal: context.terminal,
        };
        let text = match &args.format {
            Some(format) => subject.formatted(format),
            None => subject.text(&root),
        };
        context.terminal.print(&text)?;
    }
    if args.output != Format::Text {
        report.errors = std::mem::take(&mut troubles.errors);
        open::print(context, args.output, &report)?;
    }
    Ok(troubles.exit)
}

async fn describe(
    pods: &Pods<'_>,
    operand: &PodPath,
    args: &StatArgs,
) -> Result<(Pod, FileRoot, FileEntry), Failed> {
    let pod = pods.open(operand).await?;
    let (root, entry) =
        pod.files.stat(&operand.path, args.dereference).await.map_err(|error| pod.about(error))?;
    pod.log_root(&root);
    Ok((pod, root, entry))
}

/// A file that is described.
struct Subject<'a> {
    name: &'a [u8],
    entry: &'a FileEntry,
    accounts: &'a Accounts,
    clock: &'a Clock,
    terminal: Terminal,
}

impl Subject<'_> {
    /// The description that stat(1) prints, and two lines that only podsonde knows: the file system
    /// (`On`) and whose root directory it is (`Of`).
    fn text(&self, root: &FileRoot) -> String {
        let entry = self.entry;
        let file = match entry.r#type() {
            FileType::Symlink => {
                format!("{} -> {}", escaped(self.name), escaped(&entry.link_target))
            }
            _ => escaped(self.name),
        };
        let (major, minor) = major_minor(entry.device);
        let device = if is_device(entry) {
            format!("     Device type: {},{}", entry.device_major, entry.device_minor)
        } else {
            String::new()
        };
        let file_system = escape(&entry.file_system);
        let mount = if entry.mount_point { ", mounted here" } else { "" };
        format!(
            "  File: {file}\n  Size: {:<10}\tBlocks: {:<10} {}\n\
             Device: {}\tInode: {:<10}  Links: {}{device}\n\
             Access: ({:04o}/{})  Uid: ({:5}/{:>8})   Gid: ({:5}/{:>8})\n\
             Access: {}\nModify: {}\nChange: {}\n Birth: {}\n\
             \x20   On: {}{mount}\n    Of: {}\n",
            entry.size,
            entry.blocks,
            type_words(entry),
            format_args!("{major},{minor}"),
            entry.inode,
            entry.links,
            entry.mode,
            mode_string(entry),
            entry.uid,
            self.accounts.user(entry.uid).unwrap_or("UNKNOWN"),
            entry.gid,
            self.accounts.group(entry.gid).unwrap_or("UNKNOWN"),
            self.clock.full(entry.accessed_at),
            self.clock.full(entry.modified_at),
            self.clock.full(entry.changed_at),
            self.clock.full(entry.created_at),
            if file_system.is_empty() { "?".into() } else { file_system },
            escape(&describe_root(root)),
        )
    }

    /// Replaces stat(1)'s directives in a format. An unknown one becomes `?`, as with stat(1).
    fn formatted(&self, format: &str) -> String {
        let mut text = String::new();
        let mut rest = format.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            match rest.next() {
                Some('%') => text.push('%'),
                Some(directive) => self.directive(directive, &mut text),
                None => text.push('%'),
            }
        }
        text + "\n"
    }

    /// A name without quotes, unless it would do something to a terminal.
    fn plain(&self, name: &[u8]) -> String {
        if self.terminal.interactive { lossy(&names::safe(name)) } else { lossy(name) }
    }

    fn directive(&self, directive: char, text: &mut String) {
        let entry = self.entry;
        let seconds = |time: Option<prost_types::Timestamp>| time.map_or(0, |time| time.seconds);
        let (user, group) = (self.accounts.user(entry.uid), self.accounts.group(entry.gid));
        // Writing to a string cannot fail.
        let _ = match directive {
            'n' => write!(text, "{}", self.plain(self.name)),
            'N' => match entry.r#type() {
                FileType::Symlink => {
                    write!(
                        text,
                        "{} -> {}",
                        always_quoted(self.name),
                        always_quoted(&entry.link_target)
                    )
                }
                _ => write!(text, "{}", always_quoted(self.name)),
            },
            's' => write!(text, "{}", entry.size),
            'b' => write!(text, "{}", entry.blocks),
            'B' => write!(text, "512"),
            'f' => write!(text, "{:x}", raw_mode(entry)),
            'F' => write!(text, "{}", type_words(entry)),
            'a' => write!(text, "{:o}", entry.mode),
            'A' => write!(text, "{}", mode_string(entry)),
            'u' => write!(text, "{}", entry.uid),
            'U' => write!(text, "{}", user.unwrap_or("UNKNOWN")),
            'g' => write!(text, "{}", entry.gid),
            'G' => write!(text, "{}", group.unwrap_or("UNKNOWN")),
            'h' => write!(text, "{}", entry.links),
            'i' => write!(text, "{}", entry.inode),
            'd' => write!(text, "{}", entry.device),
            't' => write!(text, "{:x}", entry.device_major),
            'T' => write!(text, "{:x}", entry.device_minor),
            'w' => write!(text, "{}", self.clock.full(entry.created_at)),
            'W' => write!(text, "{}", seconds(entry.created_at)),
            'x' => write!(text, "{}", self.clock.full(entry.accessed_at)),
            'X' => write!(text, "{}", seconds(entry.accessed_at)),
            'y' => write!(text, "{}", self.clock.full(entry.modified_at)),
            'Y' => write!(text, "{}", seconds(entry.modified_at)),
            'z' => write!(text, "{}", self.clock.full(entry.changed_at)),
            'Z' => write!(text, "{}", seconds(entry.changed_at)),
            _ => write!(text, "?"),
        };
    }
}

/// A name on a line of its own. Tabs stay, as in the lines around it.
fn escaped(name: &[u8]) -> String {
    let name = lossy(name);
    name.split('\t').map(escape).collect::<Vec<_>>().join("\t")
}

/// A name with replacement characters for what is not UTF-8.
fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// A name in quotes, even where a shell needs none.
fn always_quoted(name: &[u8]) -> String {
    let quoted = names::quote(name);
    if quoted.starts_with(['\'', '"']) { quoted } else { format!("'{quoted}'") }
}
