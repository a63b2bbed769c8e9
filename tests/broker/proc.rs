//! What `/proc` says of a process.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

/// Longer than anything here takes; what hangs fails the test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const CAP_DAC_READ_SEARCH: u64 = 1 << 2;
pub(crate) const CAP_KILL: u64 = 1 << 5;
pub(crate) const CAP_SETGID: u64 = 1 << 6;
pub(crate) const CAP_SETUID: u64 = 1 << 7;
pub(crate) const CAP_NET_RAW: u64 = 1 << 13;
pub(crate) const CAP_SYS_PTRACE: u64 = 1 << 19;
pub(crate) const CAP_SYS_ADMIN: u64 = 1 << 21;

/// The fields of a `status` file.
pub(crate) fn status(path: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path).unwrap();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

/// A set of capabilities of a `status` file.
pub(crate) fn capabilities(status: &BTreeMap<String, String>, set: &str) -> u64 {
    u64::from_str_radix(&status[set], 16).unwrap()
}

/// `status` of every thread.
pub(crate) fn threads(pid: u32) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.map(|task| status(task.unwrap().path().join("status").to_str().unwrap())).collect()
}

/// An open descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) number: u32,
    pub(crate) link: String,
    /// Whether a child would get it.
    pub(crate) inherited: bool,
}

pub(crate) fn descriptors(pid: u32) -> Vec<Descriptor> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let number: u32 = entry.unwrap().file_name().to_str().unwrap().parse().unwrap();
        // What was closed meanwhile is not open.
        let Ok(link) = fs::read_link(format!("/proc/{pid}/fd/{number}")) else { continue };
        let Ok(info) = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")) else { continue };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        // O_CLOEXEC
        let inherited = u32::from_str_radix(flags, 8).unwrap() & 0o2_000_000 == 0;
        found.push(Descriptor { number, link: link.to_str().unwrap().to_owned(), inherited });
    }
    found.sort_by_key(|d| d.number);
    found
}

/// The only child of a process whose command line has this word.
pub(crate) fn child_with(parent: u32, word: &str) -> Option<u32> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).ok()?;
    let children =
        tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    let children: Vec<u32> =
        children.collect::<String>().split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    children.into_iter().find(|pid| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split('\0').any(|argument| argument == word)
    })
}

/// Waits until something is so that tells nobody of it.
pub(crate) fn until(what: &str, is: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether there is such a process that has not ended.
pub(crate) fn runs(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with(['Z', 'X']))
}
