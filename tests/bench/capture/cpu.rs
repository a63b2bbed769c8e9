//! What processes cost.

use std::{fs, process::Child, time::Duration};

use nix::{
    sys::{
        resource::{UsageWho, getrusage},
        signal::{Signal, kill},
        time::{TimeVal, TimeValLike},
    },
    time::clock_getcpuclockid,
    unistd::{Pid, SysconfVar, sysconf},
};

/// CPU seconds of a process that runs and of its children, also those that have ended.
pub(crate) fn of_tree(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Behind the name, which may have anything in it: the state is the third field.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // Of children that have ended. What else is there comes by the nanosecond, not by the tick.
    let ticks: u64 = fields[13..15].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap();
    let clock = clock_getcpuclockid(Pid::from_raw(pid.try_into().unwrap())).unwrap();
    let own = Duration::from(clock.now().unwrap()).as_secs_f64();
    own + ticks as f64 / per_second as f64 + children(pid).into_iter().map(of_tree).sum::<f64>()
}

fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let lists =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()
        })
        .collect()
}

/// Waits for the process to end. Returns the CPU seconds it took; nothing else may be waited for
/// meanwhile.
pub(crate) fn reap(mut child: Child) -> f64 {
    let before = ended();
    child.wait().unwrap();
    ended() - before
}

fn ended() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let seconds = |time: TimeVal| time.num_microseconds() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// As Ctrl-C does.
pub(crate) fn interrupt(child: &Child) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
}
