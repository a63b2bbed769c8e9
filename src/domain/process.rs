//! Which of a container's processes is its first, and what `/proc/<pid>/stat` and `status` say of it.

/// A process that is in a container's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its pid as the agent sees it.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
    /// Its pids from the agent's pid namespace down to its own.
    pub ns_pids: Vec<u32>,
}

impl Candidate {
    /// Its pid in its own pid namespace.
    pub fn own_pid(&self) -> u32 {
        self.ns_pids.last().copied().unwrap_or(self.pid)
    }
}

/// The container's first process.
///
/// Every other process of the container descends from it or was brought in later (`kubectl exec`), so it is the one that started
/// first. The clock ticks only a hundred times a second, so among those of the same tick it is the init of a pid namespace, the
/// outermost one, and then the lowest pid of its own namespace, since these count up.
pub fn first_of(candidates: &[Candidate]) -> Option<&Candidate> {
    candidates.iter().min_by_key(|c| (c.start_ticks, c.own_pid() != 1, c.ns_pids.len(), c.own_pid()))
}

/// `starttime` of `/proc/<pid>/stat`, in clock ticks since boot.
///
/// The second field is the command in parentheses and may itself hold spaces and parentheses, so it is skipped to its last `)`.
pub fn start_ticks(stat: &str) -> Option<u64> {
    // Field 22 of all; after the command come the fields from 3 on.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// `NSpid` of `/proc/<pid>/status`.
pub fn ns_pids(status: &str) -> Vec<u32> {
    status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .map(|pids| pids.split_ascii_whitespace().filter_map(|p| p.parse().ok()).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(pid: u32, start_ticks: u64, ns_pids: &[u32]) -> Candidate {
        Candidate { pid, start_ticks, ns_pids: ns_pids.to_vec() }
    }

    #[test]
    fn the_first_process_is_the_earliest() {
        let workers =
            [candidate(200, 51, &[200, 7]), candidate(100, 50, &[100, 1]), candidate(300, 90, &[300, 40])];
        assert_eq!(first_of(&workers).map(|c| c.pid), Some(100));
        assert_eq!(first_of(&[]), None);
    }

    #[test]
    fn an_exec_into_a_recycled_lower_pid_is_not_the_first() {
        let all = [candidate(90, 700, &[90, 9]), candidate(4000, 50, &[4000, 1])];
        assert_eq!(first_of(&all).map(|c| c.pid), Some(4000));
    }

    #[test]
    fn within_one_tick_the_init_wins_and_the_outer_one() {
        let all =
            [candidate(101, 50, &[101, 2]), candidate(102, 50, &[102, 3, 1]), candidate(100, 50, &[100, 1])];
        assert_eq!(first_of(&all).map(|c| c.pid), Some(100));
        let shared = [candidate(31, 50, &[31, 12]), candidate(30, 50, &[30, 11])];
        assert_eq!(first_of(&shared).map(|c| c.pid), Some(30));
    }

    #[test]
    fn stat_with_a_hostile_command() {
        let tail = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 99";
        assert_eq!(start_ticks(&format!("7 (a) b (c)) {}", tail.trim())), Some(4242));
        assert_eq!(start_ticks("7 (a"), None);
        assert_eq!(start_ticks("7 (a) S 1"), None);
    }

    #[test]
    fn ns_pids_of_status() {
        assert_eq!(ns_pids("Name:\tx\nNSpid:\t812\t7\t1\nNSpgid:\t1\n"), [812, 7, 1]);
        assert_eq!(ns_pids("Name:\tx\n"), Vec::<u32>::new());
    }
}
