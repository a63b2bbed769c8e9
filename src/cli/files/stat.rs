//! `podsonde stat`.

use std::fmt::Write as _;

use super::{
    accounts::Accounts,
    args::{Format, StatArgs},
    entries::{Clock, is_device, major_minor, mode_string, raw_mode, type_words},
    location::PodPath,
    names,
    open::{self, Pod, Pods, Troubles},
    report::{EntryReport, FileReport, StatsReport, whose},
};
use crate::{
    cli::{
        context::{Context, Exit, Failed},
        table::escape,
    },
    proto::v1::{FileEntry, FileRoot, FileType},
};

pub(super) async fn run(context: &Context, args: &StatArgs) -> Result<Exit, Failed> {
    let pods = Pods::new(context, &args.whose, false).await?;
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
    pod.say_whose(&root);
    Ok((pod, root, entry))
}

struct Subject<'a> {
    name: &'a [u8],
    entry: &'a FileEntry,
    accounts: &'a Accounts,
    clock: &'a Clock,
}

impl Subject<'_> {
    /// As stat(1) prints it, and below it what it does not know.
    fn text(&self, root: &FileRoot) -> String {
        let entry = self.entry;
        let file = match entry.r#type() {
            FileType::Symlink => format!("{} -> {}", lossy(self.name), lossy(&entry.link_target)),
            _ => lossy(self.name),
        };
        let (major, minor) = major_minor(entry.device);
        let device = match is_device(entry) {
            true => format!("     Device type: {},{}", entry.device_major, entry.device_minor),
            false => String::new(),
        };
        let mount = if entry.mount_point { ", mounted here" } else { "" };
        format!(
            "  File: {file}\n  Size: {:<10}\tBlocks: {:<10} {}\nDevice: {}\tInode: {:<10}  Links: {}{device}\n\
             Access: ({:04o}/{})  Uid: ({:5}/{:>8})   Gid: ({:5}/{:>8})\nAccess: {}\nModify: {}\nChange: {}\n Birth: {}\n\
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
            if entry.file_system.is_empty() { "?" } else { &entry.file_system },
            whose(root),
        )
        .split_inclusive('\n')
        .map(|line| escape(line.trim_end_matches('\n')).replace("\\t", "\t") + "\n")
        .collect()
    }

    /// By stat(1)'s directives.
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

    fn directive(&self, directive: char, text: &mut String) {
        let entry = self.entry;
        let seconds = |time: Option<prost_types::Timestamp>| time.map_or(0, |time| time.seconds);
        let (user, group) = (self.accounts.user(entry.uid), self.accounts.group(entry.gid));
        // Writing to a string does not fail.
        let _ = match directive {
            'n' => write!(text, "{}", lossy(self.name)),
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

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

fn always_quoted(name: &[u8]) -> String {
    let quoted = names::quote(name);
    if quoted.starts_with(['\'', '"']) { quoted } else { format!("'{quoted}'") }
}
