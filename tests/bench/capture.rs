//! What a capture over mutual TLS costs, and what it loses: figures, printed and never asserted,
//! except that every packet is accounted for. `cargo bench --bench capture`, or `-- cost` for a
//! part of it.
//!
//! - `cost`: CPU seconds per million packets of agent and client, beside `tcpdump -w FILE`,
//!   `tcpdump -w -` through a TLS pipe of socat, and dumpcap if it is installed, in turns, on the
//!   same interface of a pod;
//! - `rate`: the highest rate that loses nothing, beside `tcpdump -B 65536 -w FILE`;
//! - `latency`: from a packet's sending to its line, beside `tcpdump -l`.
//!
//! `PODSONDE_BENCH_PACKETS` are the packets of a run (1000000), `PODSONDE_BENCH_RATE` is how many
//! of them there are a second (150000), and `PODSONDE_BENCH_ROUNDS` says how often all of them take
//! their turn (3). `PODSONDE_BENCH_PROGRAMS` is a directory with the `podsonde` and
//! `podsonde-agent` to measure if that shall not be those built with it.
//!
//! Needs root, ip, tcpdump, socat, openssl and capinfos. Files are in memory, for it not to be a
//! disk that is measured.
#![cfg(all(target_os = "linux", feature = "embedded"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod agent;
#[allow(dead_code)]
mod figures;
#[allow(dead_code)]
#[path = "../agent/fixture.rs"]
mod fixture;
#[allow(dead_code)]
mod node;
#[path = "../support/mod.rs"]
mod support;

#[path = "capture/contender.rs"]
mod contender;
#[path = "capture/cpu.rs"]
mod cpu;
#[path = "capture/world.rs"]
mod world;

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
    time::{Duration, Instant},
};

use contender::{Contender, Run};
use figures::{Series, table};
use world::World;

/// Sizes of the frames, Ethernet's header included.
const SIZES: [usize; 3] = [100, 1000, 1500];
/// Rates that are tried, per second.
const RATES: [u64; 7] = [100_000, 150_000, 200_000, 300_000, 400_000, 600_000, 800_000];
/// How long each of them is kept up.
const AT_A_RATE: u64 = 2;
/// Packets whose way to the screen is timed.
const SINGLES: usize = 20;

#[tokio::main]
async fn main() {
    let parts: Vec<_> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| p == part);
    println!("{}, load {}", node::machine(), load());
    let mut world = World::start().await;
    // The agent talks to the API server of this process meanwhile, on the runtime's other threads.
    tokio::task::block_in_place(|| {
        if wanted("cost") {
            cost(&mut world);
        }
        if wanted("rate") {
            rate(&mut world);
        }
        if wanted("latency") {
            latency(&mut world);
        }
    });
    println!("\nload {}", load());
}

/// The load averages: whatever else runs here makes figures worse.
fn load() -> String {
    fs::read_to_string("/proc/loadavg")
        .unwrap()
        .split_whitespace()
        .take(3)
        .collect::<Vec<_>>()
        .join(" ")
}

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

fn cost(world: &mut World) {
    let packets = variable("PODSONDE_BENCH_PACKETS", 1_000_000);
    let rate = variable("PODSONDE_BENCH_RATE", 150_000);
    let rounds = variable("PODSONDE_BENCH_ROUNDS", 3);
    let contenders = Contender::installed();
    for size in SIZES {
        let mut runs: Vec<Vec<Run>> = contenders.iter().map(|_| Vec::new()).collect();
        for _ in 0..rounds {
            for (contender, runs) in contenders.iter().zip(&mut runs) {
                runs.push(contender.run(world, packets, size, rate));
            }
        }
        let million = 1e6 / packets as f64;
        let total = |runs: &[Run]| series(runs, |run| million * run.seconds.iter().sum::<f64>());
        let podsonde = &runs[0];
        let (agent, both) = (series(podsonde, |run| million * run.seconds[0]), total(podsonde));
        let mut rows = Vec::new();
        for (contender, runs) in contenders.iter().zip(&runs) {
            let mut row = |name: &str, cpu: &Series, runs: &[Run]| {
                let sum = |of: fn(&Run) -> u64| runs.iter().map(of).sum::<u64>().to_string();
                rows.push(vec![
                    name.to_owned(),
                    format!("{:.2}", cpu.median()),
                    format!("{:.2}", agent.ratio_to(cpu)),
                    format!("{:.2}", both.ratio_to(cpu)),
                    sum(|run| run.sent),
                    sum(|run| run.in_file),
                    sum(|run| run.dropped),
                ]);
            };
            if runs[0].seconds.len() == 2 {
                row("podsonde's agent", &agent, runs);
                row("podsonde's client", &series(runs, |run| million * run.seconds[1]), runs);
            }
            row(contender.name(), &total(runs), runs);
        }
        table(
            &format!(
                "{packets} frames of {size} bytes, {rate} a second; CPU seconds per million packets, medians of {rounds} rounds in turns"
            ),
            &[
                "",
                "CPU s",
                "agent / this",
                "agent + client / this",
                "sent",
                "in the file",
                "dropped",
            ],
            &rows,
        );
    }
}

fn series(runs: &[Run], of: impl Fn(&Run) -> f64) -> Series {
    let mut series = Series::default();
    runs.iter().for_each(|run| series.add(of(run)));
    series
}

fn rate(world: &mut World) {
    let contenders = [Contender::Podsonde, Contender::TcpdumpLarge];
    let mut rows = Vec::new();
    for size in SIZES {
        let mut row = vec![format!("{size} B")];
        for contender in contenders {
            let mut best = None;
            let mut why = "as fast as they can be sent";
            for rate in RATES {
                let run = contender.run(world, rate * AT_A_RATE, size, rate);
                if run.dropped > 0 {
                    why = "more loses some";
                    break;
                }
                best = Some(run.rate);
                if run.rate < 0.9 * rate as f64 {
                    break;
                }
            }
            row.push(
                best.map_or_else(|| "none".to_owned(), |rate| format!("{:.0}", rate / 1000.0)),
            );
            row.push(why.to_owned());
        }
        rows.push(row);
    }
    table(
        &format!(
            "The highest of the rates of {} to {} thousand a second that loses nothing in {AT_A_RATE} s",
            RATES[0] / 1000,
            RATES[RATES.len() - 1] / 1000
        ),
        &["frames", "podsonde, 1000/s", "", "`tcpdump -B 65536 -w FILE`, 1000/s", ""],
        &rows,
    );
}

fn latency(world: &mut World) {
    let mut rows = Vec::new();
    for (name, mut command) in [
        ("podsonde capture", world.client(&[])),
        ("tcpdump -n -l", world.in_pod(&["tcpdump", "-n", "-l", "-i", World::INTERFACE])),
    ] {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        contender::wait_for(&mut child, "listening on");
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let (mut series, mut line) = (Series::default(), String::new());
        for _ in 0..SINGLES {
            // Whatever waited for the packet before is asleep again.
            std::thread::sleep(Duration::from_millis(60));
            let began = Instant::now();
            world.send(1, 100, 0);
            line.clear();
            assert!(lines.read_line(&mut line).unwrap() > 0, "{name} has ended");
            series.add_time(began.elapsed());
        }
        cpu::interrupt(&child);
        child.wait().unwrap();
        rows.push(vec![
            name.to_owned(),
            format!("{:.1}", series.median()),
            format!("{:.1}", series.slowest()),
        ]);
    }
    table(
        &format!("From sending a packet to its line on a pipe, {SINGLES} of them one by one, ms"),
        &["", "median", "slowest"],
        &rows,
    );
}
