//! The audit log: who did, or tried to do, what to which pod.
//!
//! A line is one JSON object. A request has two: `start` is written before anything is done, and
//! `end` after it. If `start` cannot be written, the request is refused. Requests without an
//! identity are written at a limited rate, and the line `omitted` counts the others (`unnamed`).
//!
//! No line holds a token or what a container holds, sends or prints.

mod unnamed;

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
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use serde::Serialize;
use tokio::{sync::oneshot, time::timeout};
use uuid::Uuid;

use self::unnamed::Unnamed;
use super::access::{Authorization, Caller, Object};
use crate::domain::{Error, Reason, Result, text};

/// Lines that wait to be written, at most.
const QUEUE: usize = 1024;
/// How long writing one line may take before requests are refused.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of one value that are written as they are.
const LONGEST: usize = 512;
/// Most groups, parameters or results of one line.
const MOST: usize = 32;
/// How often requests that were left out are told of, while there are any.
const TALLY: Duration = Duration::from_secs(30);

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
    lines: mpsc::SyncSender<PendingLine>,
    writer: Arc<Writer>,
}

/// A line that is to be written, and whom to tell how that went.
#[derive(Debug)]
struct PendingLine {
    text: String,
    written: oneshot::Sender<io::Result<()>>,
}

/// What the writing thread shares with those whose lines it writes.
#[derive(Debug)]
struct Writer {
    unnamed: Unnamed,
    epoch: Instant,
    /// Milliseconds since `epoch` when the line that is being written was begun; 0 while there is
    /// none.
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
        let (lines, queue) = mpsc::sync_channel(QUEUE);
        let writer = Arc::new(Writer {
            unnamed: Unnamed::new(),
            epoch: Instant::now(),
            busy_since: AtomicU64::new(0),
        });
        let (own, node) = (Arc::clone(&writer), node.to_owned());
        let its_node = node.clone();
        // A thread of its own, since a write to a pipe may take for ever.
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || own.run(file, &queue, &its_node))
            .context("cannot start the thread of the audit log")?;
        Ok(Self { node, lines, writer })
    }

    /// A record of a request for this operation, which has just come in.
    pub fn record(self: &Arc<Self>, operation: &'static str) -> Record {
        Record {
            audit: Arc::clone(self),
            began: Instant::now(),
            stage: Stage::Draft,
            notes: Notes::default(),
            written: None,
            entry: AuditLine {
                audit: "start",
                id: Uuid::new_v4().to_string(),
                time: String::new(),
                node: self.node.clone(),
                operation,
                decision: "none",
                ..AuditLine::default()
            },
        }
    }

    /// Gives a line to the writer.
    fn submit(&self, text: String) -> Result<oneshot::Receiver<io::Result<()>>, &'static str> {
        if self.writer.is_stuck() {
            return Err("it takes no more");
        }
        let (written, result) = oneshot::channel();
        self.lines.try_send(PendingLine { text, written }).map_err(|_| "too many lines wait")?;
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
    /// Writes lines until nobody can give it any more, and from time to time what was left out.
    fn run(&self, mut file: File, queue: &mpsc::Receiver<PendingLine>, node: &str) {
        let (mut torn, mut failing) = (false, false);
        let mut told = Instant::now();
        // The line about what was left out, if it could not be written yet.
        let mut tally = None;
        loop {
            let line = queue.recv_timeout(TALLY);
            let is_over = matches!(line, Err(RecvTimeoutError::Disconnected));
            if is_over || told.elapsed() >= TALLY {
                tally = tally.or_else(|| self.unnamed.take_omitted(node));
                let text = tally.as_ref().map(serde_json::to_string);
                if let Some(Ok(text)) = text
                    && append(&mut file, &text::escape_json(&text), &mut torn).is_ok()
                {
                    tally = None;
                }
                told = Instant::now();
            }
            if is_over {
                return;
            }
            let Ok(PendingLine { text, written }) = line else { continue };
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
struct AuditLine {
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
    /// Notes a result. A later one of the same name replaces it.
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
    /// Whether its lines are written, once that has been decided for a request of nobody.
    written: Option<bool>,
    entry: AuditLine,
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
        if !self.is_written() {
            return Ok(());
        }
        self.audit.write(self.line()).await
    }

    /// Writes the last line. `code` is gRPC's.
    pub async fn end(mut self, code: &'static str, reason: Option<Reason>) {
        self.stage = Stage::Ended;
        if !self.is_written() {
            return;
        }
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

    /// Whether its lines are written: always with an identity, and without one within a rate.
    /// Such a request is refused whatever else there is to say of it.
    fn is_written(&mut self) -> bool {
        if !self.entry.user.is_empty() {
            return true;
        }
        let (unnamed, peer) = (&self.audit.writer.unnamed, &self.entry.peer);
        *self.written.get_or_insert_with(|| unnamed.is_written(peer))
    }

    fn line(&self) -> String {
        let entry = AuditLine { time: Timestamp::now().to_string(), ..self.entry.clone() };
        // Maps with names as keys can always be written.
        text::escape_json(&serde_json::to_string(&entry).unwrap_or_default()).into_owned()
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.stage == Stage::Ended || !self.is_written() {
            return;
        }
        if self.stage == Stage::Draft {
            let _ = self.audit.submit(self.line());
        }
        self.finish("cancelled", "", "");
        let _ = self.audit.submit(self.line());
    }
}

/// A value that somebody else chose, in at most a little over [`LONGEST`] bytes: a longer one keeps
/// its head and its tail, where a path has the file's name, and between them its length and digest,
/// by which it can be told from others and recognised.
fn shorten(text: &str) -> String {
    if text.len() <= LONGEST {
        return text.to_owned();
    }
    let part = LONGEST / 2;
    let is_boundary = |at: &usize| text.is_char_boundary(*at);
    let head = (0..=part).rev().find(is_boundary).unwrap_or_default();
    let tail = (text.len().saturating_sub(part)..=text.len()).find(is_boundary);
    let tail = tail.unwrap_or(text.len());
    let sum: String = digest(&SHA256, text.as_bytes())
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let (head, tail) = (text.get(..head), text.get(tail..));
    format!(
        "{}…[{} bytes, sha256:{sum}]…{}",
        head.unwrap_or_default(),
        text.len(),
        tail.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn long_values_keep_head_tail_length_and_digest() {
        assert_eq!(shorten("short"), "short");
        let path = format!("/{}/file-name.txt", "ü".repeat(1000));
        // By `sha256sum` of coreutils.
        let sum = "20076597ab58f9a0589aa1bb84479d63fa3ea9c8ce2040667f9606a883c48795";
        let head = format!("/{}", "ü".repeat(127));
        let tail = format!("{}/file-name.txt", "ü".repeat(121));
        let expected = format!("{head}…[2015 bytes, sha256:{sum}]…{tail}");
        assert_eq!(shorten(&path), expected);
    }

    /// Takes this many bytes each time, then fails.
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

    #[tokio::test]
    async fn requests_of_nobody_are_written_in_part_and_counted_in_full() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.json");
        let audit = Arc::new(Audit::open(&Sink::File(path.clone()), "node-a").unwrap());
        let burst = u64::from(unnamed::RATE.burst);
        for number in 0..burst + 1000 {
            let mut record = audit.record("Node/Get");
            record.peer(format!("192.0.2.{}:{}", number % 20, 10_000 + number));
            record.start().await.unwrap();
            record.end("UNAUTHENTICATED", Some(Reason::NoCredentials)).await;
        }
        // Whoever has a name is not concerned.
        let mut record = audit.record("Node/Get");
        let user = crate::domain::access::User { name: "jane".into(), ..Default::default() };
        let by = super::super::access::Authentication::Token;
        record.caller(&Caller { user, by, expires_at: None });
        record.start().await.unwrap();
        record.end("OK", None).await;
        drop(audit);
        let lines = || -> Vec<serde_json::Value> {
            let text = std::fs::read_to_string(&path).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        // The thread writes its last line once nobody can give it another.
        let deadline = Instant::now() + Duration::from_secs(60);
        while lines().last().unwrap()["audit"] != "omitted" && Instant::now() < deadline {
            tokio::task::yield_now().await;
        }
        let lines = lines();
        let of = |user: &str| lines.iter().filter(|line| line["user"] == user).count() as u64;
        assert_eq!((of("jane"), lines.last().unwrap()["node"].as_str()), (2, Some("node-a")));
        let omitted: u64 = lines.iter().filter_map(|line| line["requests"].as_u64()).sum();
        // A few more are written if the loop took longer than the bucket's refill.
        assert!((2 * burst..2 * burst + 100).contains(&of("")), "{}", of(""));
        assert_eq!(of("") / 2 + omitted, burst + 1000);
        let peers = lines.last().unwrap()["peers"].as_object().unwrap();
        assert!(peers.len() == 16 && peers.keys().all(|peer| peer.starts_with("192.0.2.")));
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
