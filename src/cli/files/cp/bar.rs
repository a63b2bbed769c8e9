//! The progress of a copy on a terminal: one line on stderr that is rewritten in place.

use std::{
    io::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;
use unicode_width::UnicodeWidthChar;

use crate::cli::{table::escape, terminal::Terminal};

/// How often the line is rewritten: smooth to watch, and cheap over a slow connection.
const TICK: Duration = Duration::from_millis(200);
/// How many columns the line takes at most.
const MAX_WIDTH: usize = 100;

/// Figures that a copy keeps up to date, whether or not a terminal shows them.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Bytes that are on this machine, including those of earlier downloads.
    pub(super) bytes: AtomicU64,
    /// Bytes that there will be in the end; 0 if that is not known.
    pub(super) total: AtomicU64,
    /// Files that are complete.
    pub(super) files: AtomicU64,
    /// The file whose copy began last.
    current: Mutex<String>,
    /// Bytes of earlier downloads, which do not count for the rate.
    pub(super) resumed: AtomicU64,
    /// Whether the line is on the terminal now.
    drawn: AtomicBool,
}

/// Shows the progress while it exists, and removes the line when it is dropped.
pub(super) struct Bar {
    pub(super) progress: Arc<Progress>,
    ticking: Option<JoinHandle<()>>,
}

impl Progress {
    pub(super) fn name(&self, name: &[u8]) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) =
            String::from_utf8_lossy(name).into_owned();
    }

    fn line(&self, elapsed: Duration, width: usize) -> String {
        let bytes = self.bytes.load(Relaxed);
        let total = self.total.load(Relaxed);
        let fresh = bytes.saturating_sub(self.resumed.load(Relaxed));
        #[allow(clippy::cast_precision_loss, reason = "for show")]
        let rate = fresh as f64 / elapsed.as_secs_f64().max(0.001);
        let speed = format!("{:.0} MB/s", rate / 1e6);
        let figures = if total > 0 {
            let done = bytes.min(total);
            let percent = u128::from(done) * 100 / u128::from(total);
            #[allow(clippy::cast_precision_loss, reason = "for show")]
            let left = if rate > 0.0 { (total - done) as f64 / rate } else { 0.0 };
            let left = Duration::try_from_secs_f64(left).map_or(0, |left| left.as_secs());
            format!(
                "{percent:3}% {} of {}  {speed}  {}:{:02} left",
                binary(done),
                binary(total),
                left / 60,
                left % 60
            )
        } else {
            format!("{} files  {}  {speed}", self.files.load(Relaxed), binary(bytes))
        };
        let width = width.min(MAX_WIDTH);
        let current = escape(&self.current.lock().unwrap_or_else(PoisonError::into_inner));
        let room = width.saturating_sub(figures.len() + 4);
        let mut used = 0;
        // The end of a path says more than its beginning, so characters are taken from there.
        let shown: Vec<char> = current
            .chars()
            .rev()
            .take_while(|c| {
                used += c.width().unwrap_or(0);
                used <= room
            })
            .collect();
        let shown: String = shown.into_iter().rev().collect();
        format!("{shown}  {figures}").chars().take(width.saturating_sub(1)).collect()
    }
}

impl Bar {
    /// Starts showing, unless `quiet` is set or stderr is not a terminal.
    pub(super) fn start(terminal: Terminal, quiet: bool) -> Self {
        let progress = Arc::<Progress>::default();
        let ticking = (terminal.live && !quiet).then(|| {
            let progress = Arc::clone(&progress);
            let started = Instant::now();
            tokio::spawn(async move {
                let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + TICK, TICK);
                loop {
                    tick.tick().await;
                    progress.drawn.store(true, Relaxed);
                    let line = progress.line(started.elapsed(), Terminal::width());
                    let _ = std::io::stderr().write_all(format!("\r\x1b[2K{line}").as_bytes());
                }
            })
        });
        Self { progress, ticking }
    }

    /// Removes the line, so that another one can be written.
    pub(super) fn clear(&self) {
        if self.progress.drawn.swap(false, Relaxed) {
            let _ = std::io::stderr().write_all(b"\r\x1b[2K");
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(ticking) = &self.ticking {
            ticking.abort();
        }
        self.clear();
    }
}

/// A size with a binary unit, rounded down: `1.5 GiB`.
pub(super) fn binary(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut units = UNITS.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    while tenths >= 10_240 {
        tenths /= 1024;
        unit = units.next().copied().unwrap_or(unit);
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_it_is_and_never_wraps() {
        let progress = Progress::default();
        progress.name("logs/容器.log".as_bytes());
        progress.bytes.store(300_000_000, Relaxed);
        progress.total.store(1 << 30, Relaxed);
        let second = Duration::from_secs(1);
        assert_eq!(
            progress.line(second, 80),
            "logs/容器.log   27% 286.1 MiB of 1.0 GiB  300 MB/s  0:02 left"
        );
        for width in 0..90 {
            assert!(
                unicode_width::UnicodeWidthStr::width(progress.line(second, width).as_str())
                    <= width
            );
        }
        progress.total.store(0, Relaxed);
        progress.files.store(12, Relaxed);
        assert_eq!(progress.line(second, 80), "logs/容器.log  12 files  286.1 MiB  300 MB/s");
        assert_eq!(
            (binary(1023).as_str(), binary(1536).as_str(), binary(u64::MAX).as_str()),
            ("1023 B", "1.5 KiB", "15.9 EiB")
        );
    }
}
