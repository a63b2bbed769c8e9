//! The audit log: who did, or tried to do, what to which pod. One JSON object per line, two lines per request: `start` is written before
//! anything is done, `end` after. If `start` cannot be written, the request is refused.
//!
//! Never a token, and never what a container holds, is given, or says.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use uuid::Uuid;

use super::access::{Authorization, Caller, Object};
use crate::domain::{Error, Reason, Result};

/// Lines that wait to be written, at most.
const QUEUE: usize = 1024;
/// How long writing one line may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest text of one field, in bytes.
const LONGEST: usize = 512;
/// Most groups, and most parameters, of one line.
const MOST: usize = 32;

/// Where the audit log goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Sink {
    /// To standard output.
    #[default]
    Stdout,
    /// To the end of this file.
    File(PathBuf),
}

impl FromStr for Sink {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("write the path of a file, or - for standard output".to_owned()),
            "-" => Ok(Self::Stdout),
            path => Ok(Self::File(path.into())),
        }
    }
}

/// The audit log.
#[derive(Debug)]
pub struct Audit {
    node: String,
    lines: mpsc::Sender<Line>,
    writer: Arc<Writer>,
}

#[derive(Debug)]
struct Line {
    text: String,
    written: oneshot::Sender<io::Result<()>>,
}

/// What the writing thread is doing.
#[derive(Debug)]
struct Writer {
    epoch: Instant,
    /// Milliseconds since `epoch` when the line that is being written was begun; 0 while there is none.
    busy_since: AtomicU64,
}

impl Audit {
    /// The audit log of the agent on `node`.
    ///
    /// # Errors
    /// If the sink cannot be opened.
    pub fn open(sink: &Sink, node: &str) -> anyhow::Result<Self> {
        let file = match sink {
            // Not `io::stdout()`, which takes a closed one for a success.
            Sink::Stdout => {
                let own = io::stdout().as_fd().try_clone_to_owned();
                File::from(own.context("cannot write the audit log to standard output")?)
            }
            Sink::File(path) => {
                let mut options = OpenOptions::new();
                options.append(true).create(true).mode(0o600);
                options
                    .open(path)
                    .with_context(|| format!("cannot write the audit log to {}", path.display()))?
            }
        };
        let (lines, queue) = mpsc::channel(QUEUE);
        let writer = Arc::new(Writer { epoch: Instant::now(), busy_since: AtomicU64::new(0) });
        let own = Arc::clone(&writer);
        // A thread of its own, since a write to a pipe may take for ever.
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || own.run(file, queue))
            .context("cannot start the thread of the audit log")?;
        Ok(Self { node: node.to_owned(), lines, writer })
    }

    /// A record of a request for this operation, which has just come in.
    pub fn record(self: &Arc<Self>, operation: &'static str) -> Record {
        Record {
            audit: Arc::clone(self),
            began: Instant::now(),
            stage: Stage::Draft,
            notes: Notes::default(),
            entry: Entry {
                audit: "start",
                id: Uuid::new_v4().to_string(),
                time: String::new(),
                node: self.node.clone(),
                operation,
                decision: "none",
                ..Entry::default()
            },
        }
    }

    /// Gives a line to the writer.
    fn submit(&self, text: String) -> Result<oneshot::Receiver<io::Result<()>>, &'static str> {
        if self.writer.is_stuck() {
            return Err("it takes no more");
        }
        let (written, result) = oneshot::channel();
        self.lines.try_send(Line { text, written }).map_err(|_| "too many lines wait")?;
        Ok(result)
    }

    async fn write(&self, text: String) -> Result<()> {
        let failed = |why: String| {
            Error::new(
                Reason::AuditFailed,
                format!("the request cannot be written to the audit log: {why}"),
            )
        };
        let result = self.submit(text).map_err(|why| failed(why.to_owned()))?;
        match timeout(PATIENCE, result).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => Err(failed(error.to_string())),
            Ok(Err(_)) => Err(failed("its writer has ended".to_owned())),
            Err(_) => Err(failed(format!("it took longer than {} s", PATIENCE.as_secs()))),
        }
    }
}

impl Writer {
    fn run(&self, mut file: File, mut queue: mpsc::Receiver<Line>) {
        let (mut torn, mut failing) = (false, false);
        while let Some(Line { text, written }) = queue.blocking_recv() {
            self.busy_since.store(self.now(), Ordering::Relaxed);
            let result = append(&mut file, &text, &mut torn);
            self.busy_since.store(0, Ordering::Relaxed);
            match &result {
                Err(error) if !failing => {
                    tracing::error!(%error, "the audit log cannot be written, so requests are refused");
                }
                Ok(()) if failing => tracing::info!("the audit log can be written again"),
                _ => {}
            }
            failing = result.is_err();
            // Nobody waits for the last line of a request whose caller has hung up.
            let _ = written.send(result);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// Whether one line has been being written for too long.
    fn is_stuck(&self) -> bool {
        let since = self.busy_since.load(Ordering::Relaxed);
        since != 0 && u128::from(self.now().saturating_sub(since)) > PATIENCE.as_millis()
    }
}

/// Appends a line. `torn`: whether the line before was written only in part, and does not end.
fn append(file: &mut impl Write, text: &str, torn: &mut bool) -> io::Result<()> {
    let line = format!("{}{text}\n", if *torn { "\n" } else { "" });
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                rest = rest.get(n..).unwrap_or_default();
                *torn = !rest.is_empty();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One line. Fields that are empty are left out.
#[derive(Debug, Clone, Default, Serialize)]
struct Entry {
    audit: &'static str,
    id: String,
    time: String,
    node: String,
    operation: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    peer: String,
    user: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    authentication: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pod: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pod_uid: String,
    decision: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    decision_reason: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    parameters: BTreeMap<&'static str, String>,
    #[serde(flatten)]
    end: Option<End>,
}

#[derive(Debug, Clone, Serialize)]
struct End {
    outcome: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    code: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'static str,
    duration_ms: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    results: BTreeMap<&'static str, String>,
}

/// How far a record has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Draft,
    Started,
    Ended,
}

/// What is learned while a request is worked on, for its last line: `container`, `signalled`.
#[derive(Debug, Clone, Default)]
pub struct Notes(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Notes {
    /// Notes a result. Of one name, the last one counts.
    pub fn add(&self, name: &'static str, value: impl ToString) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() < MOST {
            notes.insert(name, shorten(&value.to_string()));
        }
    }

    fn all(&self) -> BTreeMap<&'static str, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The record of one request. If it is dropped, the caller has hung up, and its last line says so.
#[derive(Debug)]
pub struct Record {
    audit: Arc<Audit>,
    began: Instant,
    stage: Stage,
    notes: Notes,
    entry: Entry,
}

impl Record {
    /// Who calls.
    pub fn caller(&mut self, caller: &Caller) {
        self.entry.user = shorten(&caller.user.name);
        self.entry.groups =
            caller.user.groups.iter().take(MOST).map(|group| shorten(group)).collect();
        self.entry.authentication = caller.by.as_str();
    }

    /// Where the call comes from.
    pub fn peer(&mut self, peer: String) {
        self.entry.peer = peer;
    }

    /// What the call is about.
    pub fn object(&mut self, object: &Object) {
        let (namespace, pod) = object.names();
        (self.entry.namespace, self.entry.pod) = (shorten(namespace), shorten(pod));
    }

    /// Which pod that turns out to be.
    pub fn pod_uid(&mut self, uid: &str) {
        self.entry.pod_uid = shorten(uid);
    }

    /// What the request asks for. Empty ones are left out.
    pub fn parameters(&mut self, parameters: Vec<(&'static str, String)>) {
        let set = parameters.into_iter().filter(|(_, value)| !value.is_empty()).take(MOST);
        self.entry.parameters = set.map(|(name, value)| (name, shorten(&value))).collect();
    }

    /// Whether the caller may.
    pub fn decision(&mut self, verdict: &Authorization) {
        self.entry.decision = match &verdict.result {
            Ok(()) => "allow",
            Err(error) if error.reason == Reason::Forbidden => "deny",
            Err(_) => "none",
        };
        self.entry.decision_reason = shorten(&verdict.reason);
    }

    /// Where the request's results are noted.
    pub fn notes(&self) -> Notes {
        self.notes.clone()
    }

    /// Writes the first line.
    ///
    /// # Errors
    /// AUDIT_FAILED. Then nothing may be done.
    pub async fn start(&mut self) -> Result<()> {
        self.stage = Stage::Started;
        self.audit.write(self.line()).await
    }

    /// Writes the last line. `code` is gRPC's.
    pub async fn end(mut self, code: &'static str, reason: Option<Reason>) {
        self.stage = Stage::Ended;
        let outcome = if reason.is_none() { "ok" } else { "failed" };
        self.finish(outcome, code, reason.map(Reason::as_str).unwrap_or_default());
        // The writer has complained, and the next request is refused.
        let _ = self.audit.write(self.line()).await;
    }

    fn finish(&mut self, outcome: &'static str, code: &'static str, reason: &'static str) {
        let duration_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.entry.audit = "end";
        self.entry.end =
            Some(End { outcome, code, reason, duration_ms, results: self.notes.all() });
    }

    fn line(&self) -> String {
        let entry = Entry { time: Timestamp::now().to_string(), ..self.entry.clone() };
        // Maps with names as keys can always be written.
        escape(&serde_json::to_string(&entry).unwrap_or_default())
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.stage == Stage::Ended {
            return;
        }
        if self.stage == Stage::Draft {
            let _ = self.audit.submit(self.line());
        }
        self.finish("cancelled", "", "");
        let _ = self.audit.submit(self.line());
    }
}

/// At most so much of a text that other people chose.
fn shorten(text: &str) -> String {
    if text.len() <= LONGEST {
        return text.to_owned();
    }
    let end = (0..=LONGEST).rev().find(|&i| text.is_char_boundary(i)).unwrap_or_default();
    format!("{}…", text.get(..end).unwrap_or_default())
}

/// Escapes what JSON allows in strings and terminals and log viewers make something of: the other control characters, line separators,
/// and what changes the direction of writing. Outside of strings there is none of it.
fn escape(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            c if c.is_control() => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
            '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
            | '\u{feff}' => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn nothing_in_a_line_controls_a_terminal() {
        let text = "a\u{1b}[2J\n\u{7f}\u{9b}\u{202e}\u{2028}ü\"";
        let line = escape(&serde_json::to_string(text).unwrap());
        assert_eq!(line, r#""a\u001b[2J\n\u007f\u009b\u202e\u2028ü\"""#);
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let cut = shorten(&"ü".repeat(1000));
        assert_eq!(cut, format!("{}…", "ü".repeat(LONGEST / 2)));
        assert_eq!(shorten("short"), "short");
    }

    /// Takes so many bytes each time, then fails.
    struct Disk(VecDeque<usize>, Vec<u8>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = self.0.pop_front().unwrap_or_default().min(bytes.len());
            if room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.1.extend(&bytes[..room]);
            Ok(room)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_after_a_torn_one_stands_alone() {
        let mut disk = Disk([9, 2, 0, 1, 0, 99].into(), Vec::new());
        let mut torn = false;
        let lines = ["first", "second", "third", "fourth"];
        let results = lines.map(|line| append(&mut disk, line, &mut torn).is_ok());
        assert_eq!(results, [true, false, false, true]);
        assert_eq!(String::from_utf8(disk.1).unwrap(), "first\nse\n\nfourth\n");
    }
}
