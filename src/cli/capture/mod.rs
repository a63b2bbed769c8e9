//! `podsonde capture`: prints the packets of pods, or writes them to a file.
//!
//! One task for each pod reads its agent's stream ([`stream`]). One thread writes all packets
//! ([`output`]), and orders those of several pods by time ([`window`]). The queue between them is
//! bounded, so a slow output holds the agents back.

mod args;
mod error;
mod output;
mod query;
mod read;
mod report;
mod savefile;
mod stream;
mod targets;
mod text;
mod window;

use std::{
    io::{self, IsTerminal},
    path::Path,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

pub(super) use args::CaptureArgs;
use args::{CaptureOutput, Direction};
use output::{Output, Progress as Figures, Written};
use report::Totals;
pub(super) use report::link;
pub(super) use savefile::Savefiles;
use stream::{Beginning, End, Outcome, Queue, Stop, Stream};
use targets::Words;
pub(super) use targets::{Choice, PodTarget, targets};
use text::Lines;

use super::{
    context::{Context, Exit, Failed, Scope},
    progress::Progress,
    table::Tone,
    values::Named,
};
use crate::{
    client::{Error, Reason},
    proto::v1::{CaptureDirection, CaptureStartRequest, CaptureStarted},
};

/// The name that stands for all interfaces of a pod.
const ANY: &str = "any";
/// How long agents may hold back packets that a person watches.
const DELAY_OF_LINES: Duration = Duration::from_millis(4);
/// How long agents may hold back packets for a file or a program.
const DELAY_OF_FILES: Duration = Duration::from_millis(100);
/// How long agents may hold back packets for a file of several pods. Packets of one pod wait for
/// those of others for `output`'s `FILE_WAITS`, so this must be shorter.
const DELAY_OF_SEVERAL: Duration = Duration::from_millis(20);
/// How long the output may take after an interruption before a note says so.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often the progress line is rewritten.
const TICK: Duration = Duration::from_millis(500);

/// What to capture, and where the packets go.
pub(super) struct Job {
    pub(super) targets: Vec<PodTarget>,
    pub(super) request: CaptureStartRequest,
    /// Ends after this many packets, of all pods together.
    pub(super) count: Option<u64>,
    /// The files for the packets. `None` writes no file.
    pub(super) file: Option<Savefiles>,
    /// The printer of the packets. `None` prints nothing.
    pub(super) lines: Option<Lines>,
    /// Whether to print the totals as JSON.
    pub(super) json: bool,
    /// Whether to print errors only.
    pub(super) quiet: bool,
}

/// Reports whether the user named exactly one pod.
pub(super) fn is_of_one_pod(args: &CaptureArgs) -> bool {
    Words::of(args).is_ok_and(|words| matches!(words.pods.as_slice(), [Named::Pod(_)]))
}

pub(super) async fn run(context: &Context, args: &CaptureArgs) -> Result<Exit, Failed> {
    let Words { pods, filter } = Words::of(args)?;
    if let Some(path) = &args.read {
        return read::run(context, args, path, &filter);
    }
    check_output(args)?;
    note_letters(context, args);
    let mut request = request(args, filter)?;
    let mut file = None;
    if let Some((files, lasts)) = Savefiles::of(args)? {
        file = Some(files);
        if let Some(shorter) =
            lasts.filter(|lasts| args.duration.is_none_or(|duration| *lasts < duration))
        {
            request.max_duration = Some(wire(shorter)?);
        }
    }
    let scope = context.scope().await?;
    let choice = Choice {
        pods,
        labels: args.selector.as_deref(),
        all_namespaces: args.all_namespaces,
        most: args.max_pods as usize,
    };
    let targets = targets(context, &scope, choice).await?;
    if args.list_interfaces {
        return query::interfaces(context, &scope, args, &targets).await;
    }
    if args.dump {
        return query::program(context, &scope, &targets, request).await;
    }
    let printed = args.write.is_none() || args.print;
    let lines = printed.then(|| Lines::new(args, &targets, context.terminal.colour));
    let job = Job {
        targets,
        request,
        count: args.count,
        file,
        lines,
        json: args.output == CaptureOutput::Json,
        quiet: false,
    };
    capture(context, &scope, job).await
}

/// Notes that `-n` and `-c` differ from tcpdump's, if the user seems to have meant tcpdump's.
fn note_letters(context: &Context, args: &CaptureArgs) {
    let note = |text: &str| context.terminal.labelled("note", Tone::Plain, text);
    if context.global.namespace.as_deref() == Some("n") {
        note("-n is the namespace, here n; addresses are always printed as numbers");
    }
    if let Some(number) =
        args.container.as_deref().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    {
        note(&format!(
            "-c is the container, here {number}; to end after so many packets \
             write --count {number}"
        ));
    }
}

/// Refuses to write packets to a terminal, or both packets and text to stdout.
fn check_output(args: &CaptureArgs) -> Result<(), Failed> {
    if args.write.as_deref() != Some(Path::new("-")) {
        return Ok(());
    }
    if args.print || args.output == CaptureOutput::Json {
        return Err(Failed::Usage(
            "packets and text cannot both go to stdout; write to a file with -w FILE".to_owned(),
        ));
    }
    if io::stdout().is_terminal() {
        return Err(Failed::Usage(
            "packets would go to a terminal; name a file with -w FILE, or pipe them: \
             -w - | wireshark -k -i -"
                .to_owned(),
        ));
    }
    Ok(())
}

fn request(args: &CaptureArgs, filter: String) -> Result<CaptureStartRequest, Failed> {
    let printed = args.write.is_none() || args.print;
    Ok(CaptureStartRequest {
        container: args.container.clone().unwrap_or_default(),
        interface: args.interface.clone(),
        filter,
        snaplen: args.snapshot_length,
        max_packets: args.count.unwrap_or_default(),
        max_bytes: args.max_bytes.unwrap_or_default(),
        max_duration: args.duration.map(wire).transpose()?,
        ring_bytes: u64::from(args.buffer_size.unwrap_or_default()) * 1024,
        direction: match args.direction {
            Direction::In => CaptureDirection::In,
            Direction::Out => CaptureDirection::Out,
            Direction::Inout => CaptureDirection::Unspecified,
        }
        .into(),
        max_delay: Some(wire(if printed { DELAY_OF_LINES } else { DELAY_OF_FILES })?),
        ..request_for_files()?
    })
}

/// A request for all packets, with the delays that suit a file.
pub(super) fn request_for_files() -> Result<CaptureStartRequest, Failed> {
    Ok(CaptureStartRequest {
        max_delay: Some(wire(DELAY_OF_FILES)?),
        statistics_interval: Some(wire(stream::STATISTICS_INTERVAL)?),
        ..CaptureStartRequest::default()
    })
}

fn wire(time: Duration) -> Result<prost_types::Duration, Failed> {
    prost_types::Duration::try_from(time)
        .map_err(|_| Failed::Usage(format!("{time:?} is too long")))
}

/// Captures until all captures have ended, then prints the totals.
pub(super) async fn capture(context: &Context, scope: &Scope, job: Job) -> Result<Exit, Failed> {
    let Job { targets, mut request, count, file, lines, json, quiet } = job;
    if targets.len() > 1 && lines.is_none() {
        request.max_delay = Some(wire(DELAY_OF_SEVERAL)?);
    }
    let shows_progress = context.terminal.live && lines.is_none() && !quiet;
    let (stop, stopping) = watch::channel(Stop::No);
    let (queue, items) = Queue::new();
    let (beginnings, mut begun) = mpsc::unbounded_channel();
    let lost: Arc<Vec<AtomicU64>> = Arc::new(targets.iter().map(|_| AtomicU64::new(0)).collect());
    let figures = Arc::new(Figures::default());
    let mut streams: FuturesUnordered<_> = (0..)
        .zip(&targets)
        .map(|(source, target)| {
            let stream = Stream {
                source,
                fleet: scope.fleet.clone(),
                target: target.clone(),
                request: request.clone(),
                streams: targets.len(),
                stop: stopping.clone(),
                beginnings: beginnings.clone(),
                queue: queue.clone(),
                names: lines
                    .as_ref()
                    .filter(|_| request.interface == ANY)
                    .and_then(|lines| lines.names(source)),
                lost: lost.clone(),
            };
            stream.follow()
        })
        .collect();
    drop((beginnings, queue));

    let (sources, progress) = (targets.len(), figures.clone());
    let mut output =
        Some((Output { lines, file, sources, count, stop: stop.clone(), progress }, items));
    let mut writing = None;
    let mut outcomes = Vec::new();
    let mut progress = None;
    let mut tick = tokio::time::interval(TICK);
    let mut interruptions = Interruptions::new()?;
    let (mut interrupted, mut patience) = (false, pin!(tokio::time::sleep(PATIENCE)));
    while !streams.is_empty() {
        tokio::select! {
            biased;
            () = interruptions.next() => {
                let again = *stop.borrow() >= Stop::Soon;
                stop.send_replace(if again { Stop::Now } else { Stop::Soon });
                patience.as_mut().reset(Instant::now() + PATIENCE);
                interrupted = true;
                if again {
                    // The output's reader may hang, so do not wait for it.
                    return Ok(Exit::Interrupted);
                }
            }
            () = &mut patience, if interrupted => {
                interrupted = false;
                progress = None;
                context.terminal.note(
                    "what was captured waits for the output to take it; Ctrl-C again leaves it",
                );
            }
            Some(Beginning { source, started, go }) = begun.recv() => {
                progress = None;
                // Create the file only now, so that a mistyped pod does not overwrite an old file.
                if let Some((output, items)) = output.take() {
                    writing = Some(output.start(items)?);
                }
                if let Some(target) = targets.get(source).filter(|_| !quiet) {
                    announce(context, target, &started);
                }
                // The stream notices by itself that the output has already ended.
                let _ = go.send(());
            }
            Some(outcome) = streams.next() => {
                progress = None;
                tell(context, &targets, &outcome, quiet, request.max_duration.is_some());
                outcomes.push(outcome);
            }
            _ = tick.tick(), if shows_progress && writing.is_some() => {
                let progress =
                    progress.get_or_insert_with(|| Progress::start(context.terminal, false));
                progress.stage(&so_far(&figures, &lost));
            }
        }
    }
    drop((progress, output));
    let written = match writing {
        None => None,
        Some(writing) => tokio::select! {
            written = writing => written.ok(),
            () = interruptions.next() => return Ok(Exit::Interrupted),
        },
    };
    outcomes.sort_by_key(|outcome| outcome.source);
    finish(context, &targets, &outcomes, written, json, quiet)
}

/// Announces that the capture of a pod has begun.
fn announce(context: &Context, target: &PodTarget, started: &CaptureStarted) {
    context.terminal.note(&report::header(target, started));
    if !started.filter_note.is_empty() {
        let note = format!("{}; the filter is: {}", started.filter_note, started.filter);
        context.terminal.labelled("note", Tone::Plain, &note);
    }
}

/// The progress line.
fn so_far(figures: &Figures, lost: &[AtomicU64]) -> String {
    let packets = figures.packets.load(Ordering::Relaxed);
    let megabytes = figures.bytes.load(Ordering::Relaxed) / 100_000;
    let lost: u64 = lost.iter().map(|lost| lost.load(Ordering::Relaxed)).sum();
    format!("{packets} packets, {}.{} MB, {lost} dropped,", megabytes / 10, megabytes % 10)
}

/// Prints at once why a capture ended, unless the end was asked for. `timed` says whether a time
/// limit was asked for.
fn tell(context: &Context, targets: &[PodTarget], outcome: &Outcome, quiet: bool, timed: bool) {
    let Some(PodTarget { namespace, pod }) = targets.get(outcome.source) else { return };
    match &outcome.end {
        End::Failed(error) if targets.len() > 1 => {
            context.explain(&format!("pod {namespace}/{pod}: {}", error.message), error);
        }
        End::Failed(error) => context.explain(&error.message, error),
        End::Agent(ended) if quiet || report::was_asked_for(ended.reason(), timed) => {}
        End::Agent(ended) => {
            let said = format!("the capture of pod {namespace}/{pod} has ended: {}", ended.message);
            context.terminal.labelled("note", Tone::Plain, &said);
        }
        End::Stopped => {}
    }
}

/// Prints the totals and returns the exit code. `written` is `None` if no capture began.
fn finish(
    context: &Context,
    targets: &[PodTarget],
    outcomes: &[Outcome],
    written: Option<Written>,
    json: bool,
    quiet: bool,
) -> Result<Exit, Failed> {
    if let Some(written) = written {
        if written.closed {
            return Ok(Exit::Ok);
        }
        let pods: Vec<Totals> = outcomes
            .iter()
            .zip(targets)
            .map(|(outcome, target)| Totals::of(target, outcome, &written))
            .collect();
        let total = Totals::sum(&pods);
        let each = pods.iter().filter(|_| pods.len() > 1).map(Totals::line);
        for line in each.chain(total.sentences()).filter(|_| !quiet) {
            context.terminal.note(&line);
        }
        if json && written.failed.is_none() {
            let line = serde_json::json!({"totals": total, "pods": pods});
            context.terminal.json_line(&line)?;
        }
        if let Some(error) = written.failed {
            return Err(error.into());
        }
        if let Some(error) = written.malformed {
            let message = format!("an agent sent what cannot be read: {error}");
            return Err(Error::new(Reason::Protocol, message).into());
        }
    }
    let went_wrong = |outcome: &Outcome| match &outcome.end {
        End::Failed(_) => true,
        End::Agent(ended) => !report::was_asked_for(ended.reason(), true),
        End::Stopped => false,
    };
    Ok(if outcomes.iter().any(went_wrong) { Exit::Error } else { Exit::Ok })
}

/// SIGINT and SIGTERM, or Ctrl-C on systems without signals.
struct Interruptions {
    #[cfg(unix)]
    signals: [tokio::signal::unix::Signal; 2],
}

impl Interruptions {
    fn new() -> io::Result<Self> {
        Ok(Self {
            #[cfg(unix)]
            signals: {
                use tokio::signal::unix::{SignalKind, signal};
                [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?]
            },
        })
    }

    /// Resolves at each signal.
    #[cfg(unix)]
    async fn next(&mut self) {
        let [interrupt, terminate] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }

    /// Resolves at each Ctrl-C.
    #[cfg(not(unix))]
    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
