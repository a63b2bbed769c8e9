//! `podsonde cp`.

mod args;
mod bar;
mod directory;
mod download;
mod tree;
mod upload;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use aws_lc_rs::digest::{Context as Hash, SHA256};
use tokio_util::sync::CancellationToken;

pub(in crate::cli) use args::CpArgs;
use bar::{Bar, binary};
use directory::Directory;
use download::{DownloadOptions, Downloaded, Stopped, compare, download, pump};
use tree::{Skipped, TreeCopy, TreeEvent};

use super::{
    args::Format,
    local::local_name,
    location::{Location, PodPath},
    open::{self, Pod, Pods, Troubles},
    report::{CopyReport, PathReport, SkippedReport},
    sink,
};
use crate::{
    cli::context::{Context, Exit, Failed},
    client::Reason,
    proto::v1::{FileEntry, FileType, FilesReadRequest, ReadEnd},
};

/// How many skipped entries are named one by one.
const MAX_NAMED: usize = 20;
/// How many skipped entries a JSON or YAML report holds.
const MAX_REPORTED: usize = 1000;

pub(super) async fn run(context: &Context, args: &CpArgs) -> Result<Exit, Failed> {
    match (&args.source, &args.destination) {
        (Location::Pod(source), Location::Local(destination)) => {
            let pods = Pods::new(context, &args.container, true).await?;
            let pod = pods.open(source).await?;
            Copy::new(context, args, &pod, source).download(destination).await
        }
        (Location::Local(source), Location::Pod(destination)) => {
            let pods = Pods::new(context, &args.container, false).await?;
            let pod = pods.open(destination).await?;
            upload::run(context, args, &pod, source, destination).await
        }
        (Location::Pod(_), Location::Pod(_)) => Err(Failed::Usage(
            "cannot copy from pod to pod: copy to this machine first, then from here".to_owned(),
        )),
        (Location::Local(_), Location::Local(_)) => Err(Failed::Usage(
            "neither path is in a pod: write POD:PATH for one of them".to_owned(),
        )),
    }
}

/// A copy from a pod.
struct Copy<'a> {
    context: &'a Context,
    args: &'a CpArgs,
    pod: &'a Pod,
    source: &'a PodPath,
    report: CopyReport,
    troubles: Troubles<'a>,
    bar: Bar,
    options: DownloadOptions,
    /// Whether `--links` would have copied more.
    has_skipped_links: bool,
}

impl<'a> Copy<'a> {
    fn new(context: &'a Context, args: &'a CpArgs, pod: &'a Pod, source: &'a PodPath) -> Self {
        let bar = Bar::start(context.terminal, args.quiet || args.to_stdout());
        let options = DownloadOptions {
            preserve: args.preserve,
            verify: !args.no_verify,
            resume: !args.no_resume,
            interrupted: CancellationToken::new(),
            progress: Arc::clone(&bar.progress),
        };
        let report = CopyReport {
            source: source.shown(),
            verified: options.verify,
            ..CopyReport::default()
        };
        let troubles = Troubles::new(context);
        let has_skipped_links = false;
        Self { context, args, pod, source, report, troubles, bar, options, has_skipped_links }
    }

    async fn download(mut self, destination: &Path) -> Result<Exit, Failed> {
        let started = Instant::now();
        let listening = cancel_on_interrupt(self.options.interrupted.clone());
        let copied = self.copy(destination).await;
        listening.abort();
        self.bar.clear();
        let (mut exit, mut kept) = (None, false);
        match copied {
            Ok(()) => {}
            Err(Stopped::Interrupted) => (exit, kept) = (Some(Exit::Interrupted), true),
            Err(Stopped::Asking(error)) => {
                kept = error.reason != Reason::ChecksumMismatch;
                self.troubles.note(
                    &self.source.shown(),
                    self.pod.about(error).into(),
                    Exit::Error,
                )?;
            }
            Err(Stopped::Writing(error)) if self.args.to_stdout() => return Err(error.into()),
            Err(Stopped::Writing(error)) => {
                let subject = destination.display().to_string();
                self.troubles.say(
                    &subject,
                    Reason::LocalFile.as_str(),
                    &error.to_string(),
                    Exit::Error,
                );
            }
        }
        let here = self.options.progress.bytes.load(Relaxed);
        if kept && here > 0 && !self.args.to_stdout() {
            self.note(&format!("{} are kept; run the same command to continue", binary(here)));
        }
        if let Some(exit) = exit {
            return Ok(exit);
        }
        self.summarise(started)?;
        Ok(self.troubles.exit)
    }

    async fn copy(&mut self, destination: &Path) -> Result<(), Stopped> {
        // A link that is named as the source means what it leads to, as with cp(1).
        let (root, entry) = self.pod.files.stat(&self.source.path, true).await?;
        self.pod.log_root(&root);
        if self.args.to_stdout() {
            return self.print().await;
        }
        match entry.r#type() {
            FileType::Regular => self.file(&entry, destination).await,
            FileType::Directory => self.tree(&entry, destination).await,
            _ => Err(std::io::Error::other("the source is neither a file nor a directory").into()),
        }
    }

    async fn file(&mut self, entry: &FileEntry, destination: &Path) -> Result<(), Stopped> {
        let wants_directory = destination.is_dir() || ends_in_slash(destination);
        let (directory, name) = match (wants_directory, destination.file_name()) {
            (false, Some(name)) => (parent(destination), name.to_owned()),
            _ => (destination.to_owned(), self.source_name()?),
        };
        self.report.destination = directory.join(&name).display().to_string();
        self.options.progress.name(name.as_encoded_bytes());
        self.options.progress.total.store(entry.size, Relaxed);
        let directory = Directory::open(&directory)?;
        let downloaded =
            download(&self.pod.files, &self.source.path, entry, &directory, &name, &self.options)
                .await?;
        self.downloaded(&self.source.shown(), downloaded);
        Ok(())
    }

    async fn tree(&mut self, entry: &FileEntry, destination: &Path) -> Result<(), Stopped> {
        let is_there = destination.symlink_metadata().is_ok();
        // `DIR/.` and the root directory mean their contents.
        let contents_only = self.source.path.ends_with(b"/.")
            || self.source.path == b"."
            || self.source.name().is_none();
        let (above, name) = match (is_there, destination.file_name()) {
            (true, _) if contents_only => (destination.to_owned(), None),
            (true, _) => (destination.to_owned(), Some(self.source_name()?)),
            (false, Some(name)) => (parent(destination), Some(name.to_owned())),
            (false, None) => (destination.to_owned(), None),
        };
        self.report.destination =
            name.as_ref().map_or(above.clone(), |name| above.join(name)).display().to_string();
        let above = Directory::open(&above)?;
        let top = match &name {
            Some(name) => {
                above.make(name, entry.mode & 0o777)?;
                above.enter(name)?
            }
            None => above,
        };
        let tree = TreeCopy {
            files: &self.pod.files,
            path: &self.source.path,
            top: Arc::new(top),
            keeps_top: contents_only && is_there,
            links: self.args.links,
            cross_mounts: !self.args.one_file_system,
            options: self.options.clone(),
        };
        let copied = tree.copy(&mut |event| self.handle(event)).await;
        if self.has_skipped_links {
            self.note("symbolic links were skipped; --links copies those that stay inside");
        }
        copied
    }

    fn source_name(&self) -> Result<OsString, Stopped> {
        let name = self.source.name().ok_or_else(|| {
            std::io::Error::other(
                "the source has no name to copy it under; name the destination file",
            )
        })?;
        local_name(name).map_err(|why| std::io::Error::other(why).into())
    }

    /// Reports what happened to one entry of a tree.
    fn handle(&mut self, event: TreeEvent) {
        let shown = |path: &[u8]| match path {
            b"" => self.source.shown(),
            path => {
                format!(
                    "{}/{}",
                    self.source.shown().trim_end_matches('/'),
                    String::from_utf8_lossy(path)
                )
            }
        };
        match event {
            TreeEvent::Downloaded(path, downloaded) => self.downloaded(&shown(&path), downloaded),
            TreeEvent::Directory => self.report.directories += 1,
            TreeEvent::Link => self.report.links += 1,
            TreeEvent::Skipped(path, why) => {
                self.has_skipped_links |= matches!(why, Skipped::Link { .. });
                if self.report.skipped.len() < MAX_NAMED {
                    self.note(&format!("skipped {}: {why}", shown(&path)));
                }
                if self.report.skipped.len() < MAX_REPORTED {
                    let why = why.to_string();
                    self.report.skipped.push(SkippedReport { path: PathReport::new(&path), why });
                }
                self.report.skipped_count += 1;
            }
            TreeEvent::Failed(path, stopped) => {
                let subject = shown(&path);
                self.bar.clear();
                match stopped {
                    // The whole copy says so once.
                    Stopped::Interrupted => {}
                    Stopped::Asking(error) => {
                        // An error of the agent never ends the whole command.
                        let _ =
                            self.troubles.note(&subject, self.pod.about(error).into(), Exit::Error);
                    }
                    Stopped::Writing(error) => {
                        self.troubles.say(
                            &subject,
                            Reason::LocalFile.as_str(),
                            &error.to_string(),
                            Exit::Error,
                        );
                    }
                }
            }
            TreeEvent::Truncated => {
                let message = "not everything was copied: there are more entries than the agent \
                               lists in one request";
                self.bar.clear();
                self.troubles.say(&self.source.shown(), "TRUNCATED", message, Exit::Error);
            }
        }
    }

    fn downloaded(&mut self, subject: &str, downloaded: Downloaded) {
        self.report.files += 1;
        self.report.bytes += downloaded.bytes;
        self.report.resumed_bytes += downloaded.resumed;
        if downloaded.restarted {
            self.note(&format!(
                "{subject}: the file has changed since the last time, so it was copied again"
            ));
        } else if downloaded.resumed > 0 {
            self.note(&format!("{subject}: {} were kept from before", binary(downloaded.resumed)));
        }
    }

    /// Prints a line that is neither a result nor an error.
    fn note(&self, line: &str) {
        if !self.args.quiet {
            self.bar.clear();
            self.context.terminal.note(line);
        }
    }

    /// Writes one file to stdout. Its checksum is compared at the end, when the bytes are out: a
    /// mismatch can only be reported.
    async fn print(&mut self) -> Result<(), Stopped> {
        let mut hash = Hash::new(&SHA256);
        let (mut have, mut version) = (0_u64, Vec::new());
        loop {
            let request = FilesReadRequest {
                path: self.source.path.clone(),
                offset: i64::try_from(have).unwrap_or(i64::MAX),
                if_version: version,
                ..FilesReadRequest::default()
            };
            let mut reading = self.pod.files.read(request).await?;
            let mut stdout = sink::stdout(Some(hash));
            let its_version = std::mem::take(&mut reading.start.version);
            let announced = reading.start.entry.as_ref().map_or(0, |entry| entry.size);
            let left = announced.saturating_sub(have);
            let ended = pump(reading, &mut stdout, &self.options, left).await;
            // What arrived is written even if the connection broke.
            let written = stdout.finish().await?;
            let end = ended?;
            hash = written.sha256.unwrap_or_else(|| Hash::new(&SHA256));
            have += written.bytes;
            if end != ReadEnd::Limit || written.bytes == 0 {
                break;
            }
            version = its_version;
        }
        if self.options.verify && have > 0 {
            let theirs = self.pod.files.checksum(&self.source.path, have).await?;
            compare(hash, have, theirs.bytes, &theirs.sha256)?;
        }
        let downloaded = Downloaded { bytes: have, ..Downloaded::default() };
        self.downloaded(&self.source.shown(), downloaded);
        Ok(())
    }

    /// Prints the report, or a summary for people.
    fn summarise(&mut self, started: Instant) -> std::io::Result<()> {
        let CopyReport { files, directories, links, bytes, skipped_count: skipped, .. } =
            &self.report;
        if self.args.output != Format::Text && !self.args.to_stdout() {
            self.report.errors = std::mem::take(&mut self.troubles.errors);
            return open::print(self.context, self.args.output, &self.report);
        }
        if !self.context.terminal.live || self.args.to_stdout() {
            // Like cp(1), print nothing if all went well.
            if *skipped > MAX_NAMED as u64 {
                self.note(&format!("skipped {skipped} in total"));
            }
            return Ok(());
        }
        let seconds = started.elapsed().as_secs_f64();
        let plural = |count: &u64, one: &str, many: &str| {
            format!("{count} {}", if *count == 1 { one } else { many })
        };
        let mut parts = vec![plural(files, "file", "files")];
        if *directories > 0 {
            parts.push(plural(directories, "directory", "directories"));
        }
        if *links > 0 {
            parts.push(plural(links, "link", "links"));
        }
        let verified = if self.report.verified { ", verified" } else { "" };
        let skipped = if *skipped == 0 { String::new() } else { format!(", {skipped} skipped") };
        self.note(&format!(
            "{}, {} in {seconds:.1} s{verified}{skipped}",
            parts.join(", "),
            binary(*bytes)
        ));
        Ok(())
    }
}

/// Cancels the copy on the first Ctrl-C, and exits on the second: a local disk may hang.
fn cancel_on_interrupt(interrupted: CancellationToken) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while tokio::signal::ctrl_c().await.is_ok() {
            if interrupted.is_cancelled() {
                std::process::exit(Exit::Interrupted.code().into());
            }
            interrupted.cancel();
        }
    })
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn ends_in_slash(path: &Path) -> bool {
    path.as_os_str()
        .as_encoded_bytes()
        .last()
        .is_some_and(|byte| std::path::is_separator(char::from(*byte)))
}
