//! `podsonde cp`.

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

use bar::{Bar, binary};
use directory::Directory;
pub(super) use directory::local_name;
use download::{Copied, How, Stopped, compare, download, pump};
use tree::{Happened, LINK, Tree};

use super::{
    args::{CpArgs, Format},
    location::{Location, PodPath},
    open::{self, Pod, Pods, Troubles},
    report::{CopyReport, PathReport, SkippedReport},
    sink,
};
use crate::{
    cli::context::{Context, Exit, Failed},
    client::{Error, reason},
    proto::v1::{FileEntry, FileType, FilesReadRequest, ReadEnd},
};

/// Most skipped entries that are named one by one.
const MOST_NAMED: usize = 20;
/// Most that a report has.
const MOST_REPORTED: usize = 1000;

pub(super) async fn run(context: &Context, args: &CpArgs) -> Result<Exit, Failed> {
    match (&args.source, &args.destination) {
        (Location::Pod(source), Location::Local(destination)) => {
            let pods = Pods::new(context, &args.whose, true).await?;
            let pod = pods.open(source).await?;
            Copy::new(context, args, &pod, source).download(destination).await
        }
        (Location::Local(source), Location::Pod(destination)) => {
            let pods = Pods::new(context, &args.whose, false).await?;
            let pod = pods.open(destination).await?;
            upload::run(context, args, &pod, source, destination).await
        }
        (Location::Pod(_), Location::Pod(_)) => Err(Failed::Usage(
            "both are in pods: copy to this machine first, and then from it".to_owned(),
        )),
        (Location::Local(_), Location::Local(_)) => {
            Err(Failed::Usage("neither is in a pod: write POD:PATH for one of them".to_owned()))
        }
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
    how: How,
}

impl<'a> Copy<'a> {
    fn new(context: &'a Context, args: &'a CpArgs, pod: &'a Pod, source: &'a PodPath) -> Self {
        let bar = Bar::start(context.terminal, args.quiet || args.to_stdout());
        let how = How {
            preserve: args.preserve,
            verify: !args.no_verify,
            resume: !args.no_resume,
            interrupted: CancellationToken::new(),
            progress: Arc::clone(&bar.progress),
        };
        let report =
            CopyReport { source: source.shown(), verified: how.verify, ..CopyReport::default() };
        Self { context, args, pod, source, report, troubles: Troubles::new(context), bar, how }
    }

    async fn download(mut self, destination: &Path) -> Result<Exit, Failed> {
        let started = Instant::now();
        let listening = listen(self.how.interrupted.clone());
        let copied = self.copy(destination).await;
        listening.abort();
        self.bar.clear();
        let (mut exit, mut kept) = (None, false);
        match copied {
            Ok(()) => {}
            Err(Stopped::Interrupted) => (exit, kept) = (Some(Exit::Interrupted), true),
            Err(Stopped::Asking(error)) => {
                kept = error.reason != reason::CHECKSUM_MISMATCH;
                self.troubles.note(
                    &self.source.shown(),
                    self.pod.about(error).into(),
                    Exit::Error,
                )?;
            }
            Err(Stopped::Writing(error)) if self.args.to_stdout() => return Err(error.into()),
            Err(Stopped::Writing(error)) => {
                let subject = destination.display().to_string();
                self.troubles.say(&subject, reason::LOCAL_FILE, &error.to_string(), Exit::Error);
            }
        }
        let here = self.how.progress.bytes.load(Relaxed);
        if kept && here > 0 && !self.args.to_stdout() {
            self.note(&format!("{} are here; the same command goes on from there", binary(here)));
        }
        if let Some(exit) = exit {
            return Ok(exit);
        }
        self.summarise(started)?;
        Ok(self.troubles.exit)
    }

    async fn copy(&mut self, destination: &Path) -> Result<(), Stopped> {
        // What is named is what it leads to, as with cp.
        let (root, entry) = self.pod.files.stat(&self.source.path, true).await?;
        self.pod.say_whose(&root);
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
        self.how.progress.name(name.as_encoded_bytes());
        self.how.progress.total.store(entry.size, Relaxed);
        let directory = Directory::open(&directory)?;
        let copied =
            download(&self.pod.files, &self.source.path, entry, &directory, &name, &self.how)
                .await?;
        self.copied(&self.source.shown(), copied);
        Ok(())
    }

    async fn tree(&mut self, entry: &FileEntry, destination: &Path) -> Result<(), Stopped> {
        let is_there = destination.symlink_metadata().is_ok();
        // `DIR/.`, and the root, mean what is in them.
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
        let tree = Tree {
            files: &self.pod.files,
            path: &self.source.path,
            top: Arc::new(top),
            links: self.args.links,
            cross_mounts: !self.args.one_file_system,
            how: self.how.clone(),
        };
        let copied = tree.copy(&mut |happened| self.happened(happened)).await;
        if !self.args.links
            && self.report.skipped.iter().any(|skipped| skipped.why.starts_with(LINK))
        {
            self.note(
                "symbolic links are left out; --links makes those that stay inside of the tree",
            );
        }
        copied
    }

    fn source_name(&self) -> Result<OsString, Stopped> {
        let name = self
            .source
            .name()
            .ok_or_else(|| std::io::Error::other("the source has no name; name the destination"))?;
        local_name(name).map_err(|why| std::io::Error::other(why).into())
    }

    fn happened(&mut self, happened: Happened) {
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
        match happened {
            Happened::Copied(path, copied) => self.copied(&shown(&path), copied),
            Happened::Directory => self.report.directories += 1,
            Happened::Link => self.report.links += 1,
            Happened::Skipped(path, why) => {
                if self.report.skipped.len() < MOST_NAMED {
                    self.note(&format!("skipped {}: {why}", shown(&path)));
                }
                if self.report.skipped.len() < MOST_REPORTED {
                    self.report.skipped.push(SkippedReport { path: PathReport::new(&path), why });
                }
                self.report.skipped_count += 1;
            }
            Happened::Failed(path, stopped) => {
                let subject = shown(&path);
                self.bar.clear();
                match stopped {
                    // Said once for all.
                    Stopped::Interrupted => {}
                    Stopped::Asking(error) => {
                        // Of the kind that is never about all operands.
                        let _ =
                            self.troubles.note(&subject, self.pod.about(error).into(), Exit::Error);
                    }
                    Stopped::Writing(error) => {
                        self.troubles.say(
                            &subject,
                            reason::LOCAL_FILE,
                            &error.to_string(),
                            Exit::Error,
                        );
                    }
                }
            }
            Happened::Truncated => {
                let message = "not all of it was copied: it has more entries than the agent walks in one request";
                self.bar.clear();
                self.troubles.say(&self.source.shown(), "TRUNCATED", message, Exit::Error);
            }
        }
    }

    fn copied(&mut self, subject: &str, copied: Copied) {
        self.report.files += 1;
        self.report.bytes += copied.bytes;
        self.report.resumed_bytes += copied.resumed;
        if copied.anew {
            self.note(&format!(
                "{subject}: the file has changed since the last time, so it was copied anew"
            ));
        } else if copied.resumed > 0 {
            self.note(&format!("{subject}: {} were here already", binary(copied.resumed)));
        }
    }

    /// Says what is no error.
    fn note(&self, line: &str) {
        if !self.args.quiet {
            self.bar.clear();
            self.context.terminal.note(line);
        }
    }

    /// One file to stdout, verified when it is too late to take it back.
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
            let ended = pump(reading, &mut stdout, &self.how).await;
            // What has come is written, whatever ended it.
            let written = stdout.finish().await?;
            let end = ended?;
            hash = written.sha256.unwrap_or_else(|| Hash::new(&SHA256));
            have += written.bytes;
            if end != ReadEnd::Limit || written.bytes == 0 {
                break;
            }
            version = its_version;
        }
        if self.how.verify && have > 0 {
            let theirs = self.pod.files.checksum(&self.source.path, have).await?;
            compare(hash, have, theirs.bytes, &theirs.sha256)?;
        }
        self.copied(&self.source.shown(), Copied { bytes: have, ..Copied::default() });
        Ok(())
    }

    fn summarise(&mut self, started: Instant) -> std::io::Result<()> {
        let CopyReport { files, directories, links, bytes, skipped_count: skipped, .. } =
            &self.report;
        if self.args.output != Format::Text && !self.args.to_stdout() {
            self.report.errors = std::mem::take(&mut self.troubles.errors);
            return open::print(self.context, self.args.output, &self.report);
        }
        if !self.context.terminal.live || self.args.to_stdout() {
            // cp says nothing when all went well.
            if *skipped > MOST_NAMED as u64 {
                self.note(&format!("skipped {skipped} in all"));
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

/// Cancels when the person interrupts, and gives up when they do it again: a disk may hang.
fn listen(interrupted: CancellationToken) -> tokio::task::JoinHandle<()> {
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

/// The error with which a local path could not be used.
fn local(path: &Path, error: &std::io::Error) -> Failed {
    Failed::from(Error::new(reason::LOCAL_FILE, format!("{}: {error}", path.display())))
}
