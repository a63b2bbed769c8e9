//! Which of a container's processes is its first, and parsers for `/proc/<pid>/stat`, `status`,
//! `uid_map` and `gid_map`.

/// A process that is in a container's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The pid in the agent's pid namespace.
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
/// Every other process of the container descends from it or was added later (`kubectl exec`), so it
/// is the one that started first. The clock ticks only a hundred times a second. Among processes of
/// the same tick it is the init of a pid namespace, the outermost one, and then the one with the
/// lowest pid in its own namespace, since these count up.
pub fn first_of(candidates: &[Candidate]) -> Option<&Candidate> {
    candidates
        .iter()
        .min_by_key(|c| (c.start_ticks, c.own_pid() != 1, c.ns_pids.len(), c.own_pid()))
}

/// `starttime` of `/proc/<pid>/stat`, in clock ticks since boot.
///
/// The second field is the command in parentheses. It may hold spaces and parentheses itself, so
/// everything up to the last `)` is skipped.
pub fn start_ticks(stat: &str) -> Option<u64> {
    // Field 22; the fields after the command count from 3.
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

/// What a process may do, in the ids of the reader's user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User ids: real, effective, saved, for the file system.
    pub uids: [u32; 4],
    /// Group ids: real, effective, saved, for the file system.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// `CapPrm`, in its own user namespace.
    pub permitted: u64,
    /// `CapEff`, in its own user namespace.
    pub effective: u64,
}

impl Credentials {
    /// CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: either reads every file.
    const READ_ANY: u64 = 1 << 1 | 1 << 2;
    const SYS_PTRACE: u64 = 1 << 19;

    /// From `/proc/<pid>/status`. None if a part of it is missing.
    pub fn of_status(status: &str) -> Option<Self> {
        let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
        let ids = |key| {
            line(key)?
                .split_ascii_whitespace()
                .map(|id| id.parse().ok())
                .collect::<Option<Vec<u32>>>()
        };
        let capabilities = |key| u64::from_str_radix(line(key)?.trim(), 16).ok();
        Some(Self {
            uids: ids("Uid:")?.try_into().ok()?,
            gids: ids("Gid:")?.try_into().ok()?,
            groups: ids("Groups:")?,
            permitted: capabilities("CapPrm:")?,
            effective: capabilities("CapEff:")?,
        })
    }

    /// The user and group by which the kernel checks access to files.
    pub fn for_files(&self) -> (u32, u32) {
        (self.uids[3], self.gids[3])
    }

    /// Whether its capabilities let it read every file, whoever owns it.
    pub fn reads_any(&self) -> bool {
        self.effective & Self::READ_ANY != 0
    }

    /// Whether the kernel would let it inspect another process of its user namespace through
    /// `/proc`: PTRACE_MODE_READ_FSCREDS of ptrace(2). Whether the other process is undumpable
    /// cannot be seen from outside and is left out.
    pub fn may_look_into(&self, other: &Self) -> bool {
        let (uid, gid) = self.for_files();
        let same = other.uids[..3].iter().all(|id| *id == uid)
            && other.gids[..3].iter().all(|id| *id == gid);
        self.effective & Self::SYS_PTRACE != 0 || (same && other.permitted & !self.effective == 0)
    }
}

/// How a user namespace maps ids: `/proc/<pid>/uid_map` or `gid_map`, as the reader's user
/// namespace sees it. <https://man7.org/linux/man-pages/man7/user_namespaces.7.html>
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMap(Vec<(u32, u32, u32)>);

impl IdMap {
    /// The id that the kernel shows for one that is not mapped.
    pub const UNMAPPED: u32 = 65534;

    /// Parses the text of the file. Malformed lines are ignored, so their ids count as not mapped.
    pub fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let mut numbers = line.split_ascii_whitespace().map(|n| n.parse().ok());
            Some((numbers.next()??, numbers.next()??, numbers.next()??))
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// What `outside` is inside.
    pub fn inside(&self, outside: u32) -> u32 {
        let of = |&(inside, first, count): &(u32, u32, u32)| {
            let offset = outside.checked_sub(first).filter(|offset| *offset < count)?;
            inside.checked_add(offset)
        };
        self.0.iter().find_map(of).unwrap_or(Self::UNMAPPED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t10 11 \n\
        CapInh:\t0\nCapPrm:\t00000000a80425fb\nCapEff:\t0000000000000004\n";

    #[test]
    fn credentials_of_status() {
        let found = Credentials::of_status(STATUS).unwrap();
        assert_eq!((found.for_files(), found.groups.as_slice()), ((4, 8), [10, 11].as_slice()));
        assert_eq!((found.permitted, found.effective, found.reads_any()), (0xa804_25fb, 4, true));
        assert_eq!(Credentials::of_status(&STATUS.replace("Groups", "Other")), None);
        assert_eq!(Credentials::of_status(&STATUS.replace("\t7", "")), None);
    }

    #[test]
    fn who_may_look_into_whom() {
        let of = |id, permitted, effective| Credentials {
            uids: [id; 4],
            gids: [id; 4],
            groups: Vec::new(),
            permitted,
            effective,
        };
        assert!(of(7, 0, 0).may_look_into(&of(7, 0, 0)));
        assert!(!of(7, 0, 0).may_look_into(&of(8, 0, 0)));
        assert!(!of(0, 1, 1).may_look_into(&of(0, 3, 3)));
        assert!(of(0, 3, 3).may_look_into(&of(0, 1, 1)));
        assert!(of(7, 1 << 19, 1 << 19).may_look_into(&of(8, u64::MAX, 0)));
    }

    #[test]
    fn maps_of_ids() {
        let map = IdMap::parse("         0     100000      65536\n 70000 7 1\nx\n");
        let of = [99_999, 100_000, 165_535, 165_536, 7].map(|id| map.inside(id));
        assert_eq!(of, [65534, 0, 65535, 65534, 70000]);
        assert_eq!(IdMap::parse("0 0 4294967295").inside(4_294_967_294), 4_294_967_294);
        assert_eq!(IdMap::default().inside(0), 65534);
    }

    fn candidate(pid: u32, start_ticks: u64, ns_pids: &[u32]) -> Candidate {
        Candidate { pid, start_ticks, ns_pids: ns_pids.to_vec() }
    }

    #[test]
    fn the_first_process_is_the_earliest() {
        let workers = [
            candidate(200, 51, &[200, 7]),
            candidate(100, 50, &[100, 1]),
            candidate(300, 90, &[300, 40]),
        ];
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
        let all = [
            candidate(101, 50, &[101, 2]),
            candidate(102, 50, &[102, 3, 1]),
            candidate(100, 50, &[100, 1]),
        ];
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
