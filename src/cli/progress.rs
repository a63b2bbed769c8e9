//! Shows on stderr what podsonde waits for. On a terminal it rewrites one line; elsewhere it prints
//! a line for each stage.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;
use unicode_width::UnicodeWidthChar;

use super::{table::escape, terminal::Terminal};

/// How often the elapsed time is rewritten.
const TICK: Duration = Duration::from_millis(250);

/// The current stage. Dropping this removes the line.
pub(super) struct Progress {
    state: Option<Arc<Mutex<State>>>,
    ticking: Option<JoinHandle<()>>,
    started: Instant,
    terminal: Terminal,
}

#[derive(Default)]
struct State {
    stage: String,
    drawn: bool,
}

impl Progress {
    /// Starts the display. With `quiet` it stays silent.
    pub(super) fn start(terminal: Terminal, quiet: bool) -> Self {
        let started = Instant::now();
        let state = (!quiet).then(Arc::<Mutex<State>>::default);
        let ticking = state.clone().filter(|_| terminal.live).map(|state| {
            tokio::spawn(async move {
                let mut tick = tokio::time::interval(TICK);
                loop {
                    tick.tick().await;
                    lock(&state).draw(started);
                }
            })
        });
        Self { state, ticking, started, terminal }
    }

    /// Shows a new stage.
    pub(super) fn stage(&self, stage: &str) {
        let Some(state) = &self.state else { return };
        let mut state = lock(state);
        if state.stage == stage {
            return;
        }
        stage.clone_into(&mut state.stage);
        if self.terminal.live {
            state.draw(self.started);
        } else {
            self.terminal.note(stage);
        }
    }

    /// Time since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(ticking) = &self.ticking {
            ticking.abort();
        }
        if let Some(state) = &self.state {
            let mut state = lock(state);
            // Clearing the stage keeps a pending tick from drawing the line again.
            state.stage.clear();
            if std::mem::take(&mut state.drawn) {
                let _ = io::stderr().write_all(b"\r\x1b[2K");
            }
        }
    }
}

impl State {
    fn draw(&mut self, started: Instant) {
        if self.stage.is_empty() {
            return;
        }
        self.drawn = true;
        let line = line(&self.stage, started.elapsed(), Terminal::width());
        let _ = io::stderr().write_all(format!("\r\x1b[2K{line}").as_bytes());
    }
}

/// The line, cut to the terminal's width: a wrapped line cannot be rewritten.
fn line(stage: &str, elapsed: Duration, width: usize) -> String {
    let elapsed = format!(" {}s", elapsed.as_secs());
    let room = width.saturating_sub(elapsed.len() + 1);
    let mut used = 0;
    let mut line = String::new();
    for c in escape(stage).chars() {
        used += c.width().unwrap_or(0);
        if used > room {
            break;
        }
        line.push(c);
    }
    line + &elapsed
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_never_wraps() {
        let seconds = Duration::from_secs(75);
        assert_eq!(line("waiting", seconds, 80), "waiting 75s");
        assert_eq!(line("waiting for 容器", seconds, 19), "waiting for 容 75s");
        assert_eq!(line("a\nb", seconds, 80), "a\\nb 75s");
        assert_eq!(line("waiting", seconds, 0), " 75s");
    }
}
