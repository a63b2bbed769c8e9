//! Properties of a file, written as `ls` and `stat` write them.

use jiff::{Timestamp, Zoned, tz::TimeZone};
use prost_types::Timestamp as WireTime;

use crate::{
    cli::report::instant,
    proto::v1::{FileEntry, FileType},
};

/// Half of the mean Gregorian year in seconds. `ls` shows the year of older files, and the time of
/// day of newer ones.
const HALF_A_YEAR: i64 = 31_556_952 / 2;

/// Type and permissions: `drwxr-xr-x`.
pub(super) fn mode_string(entry: &FileEntry) -> String {
    let kind = match entry.r#type() {
        FileType::Regular => '-',
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Unspecified => '?',
    };
    if !is_known(entry) {
        return format!("{kind}?????????");
    }
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = entry.mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (entry.mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// Whether the agent could describe the entry, rather than only name it.
pub(super) fn is_known(entry: &FileEntry) -> bool {
    entry.reason.is_empty() || entry.links != 0
}

/// The type in the words of stat(1).
pub(super) fn type_words(entry: &FileEntry) -> &'static str {
    match entry.r#type() {
        FileType::Regular if entry.size == 0 => "regular empty file",
        FileType::Regular => "regular file",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character special file",
        FileType::BlockDevice => "block special file",
        FileType::Unspecified => "weird file",
    }
}

/// The entry's `st_mode`: type and permissions.
pub(super) fn raw_mode(entry: &FileEntry) -> u32 {
    let kind = match entry.r#type() {
        FileType::Unspecified => 0,
        FileType::Fifo => 0o1,
        FileType::CharacterDevice => 0o2,
        FileType::Directory => 0o4,
        FileType::BlockDevice => 0o6,
        FileType::Regular => 0o10,
        FileType::Symlink => 0o12,
        FileType::Socket => 0o14,
    };
    kind << 12 | entry.mode
}

pub(super) fn is_device(entry: &FileEntry) -> bool {
    matches!(entry.r#type(), FileType::CharacterDevice | FileType::BlockDevice)
}

/// Major and minor number of a Linux `dev_t`, as glibc's gnu_dev_major(3) splits it.
pub(super) fn major_minor(device: u64) -> (u64, u64) {
    let major = ((device >> 8) & 0xfff) | ((device >> 32) & 0xffff_f000);
    let minor = (device & 0xff) | ((device >> 12) & 0xffff_ff00);
    (major, minor)
}

/// A size with a unit, rounded up as `ls -h` does: `1.5K`, `234M`.
pub(super) fn human(size: u64) -> String {
    let mut unit = 0;
    // Integers only: a float could round the wrong way near a unit's limit.
    let mut divisor: u128 = 1;
    let size = u128::from(size);
    while size.div_ceil(divisor) >= 1024 && unit < 6 {
        divisor *= 1024;
        unit += 1;
    }
    let letter = ["", "K", "M", "G", "T", "P", "E"].get(unit).copied().unwrap_or_default();
    if unit == 0 {
        return size.to_string();
    }
    let tenths = (size * 10).div_ceil(divisor);
    match tenths {
        0..100 => format!("{}.{}{letter}", tenths / 10, tenths % 10),
        _ => format!("{}{letter}", size.div_ceil(divisor)),
    }
}

/// Formats times in one zone, relative to one moment.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    now: Timestamp,
    zone: TimeZone,
}

impl Clock {
    /// This machine's zone, and now.
    pub(super) fn system() -> Self {
        Self { now: Timestamp::now(), zone: TimeZone::system() }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.now
    }

    /// `Nov 25 21:29`, or `Jan  2  2021` for what is older than half a year or in the future.
    pub(super) fn short(&self, time: Option<WireTime>) -> String {
        let Some(at) = self.zoned(time) else { return "?".to_owned() };
        let age = self.now.as_second().saturating_sub(at.timestamp().as_second());
        let format = if (0..HALF_A_YEAR).contains(&age) { "%b %e %H:%M" } else { "%b %e  %Y" };
        at.strftime(format).to_string()
    }

    /// `2026-11-25 21:29:56.576624505 +0000`, or `-` for a time that is not known.
    pub(super) fn full(&self, time: Option<WireTime>) -> String {
        self.zoned(time).map_or_else(
            || "-".to_owned(),
            |at| at.strftime("%Y-%m-%d %H:%M:%S.%9f %z").to_string(),
        )
    }

    fn zoned(&self, time: Option<WireTime>) -> Option<Zoned> {
        time.and_then(instant).map(|at| at.to_zoned(self.zone.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_ls_s() {
        let shown = |kind: FileType, mode| {
            mode_string(&FileEntry { r#type: kind.into(), mode, ..FileEntry::default() })
        };
        assert_eq!(shown(FileType::Regular, 0o644), "-rw-r--r--");
        assert_eq!(shown(FileType::Directory, 0o1777), "drwxrwxrwt");
        assert_eq!(shown(FileType::Regular, 0o6755), "-rwsr-sr-x");
        assert_eq!(shown(FileType::Regular, 0o7644), "-rwSr-Sr-T");
        assert_eq!(shown(FileType::Symlink, 0o777), "lrwxrwxrwx");
    }

    #[test]
    fn sizes_are_ls_h_s() {
        for (size, shown) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.0K"),
            (1025, "1.1K"),
            (10 * 1024, "10K"),
            (10 * 1024 - 1, "10K"),
            (9 * 1024 + 922, "10K"),
            (1024 * 1024 - 1, "1.0M"),
            (1_500_000, "1.5M"),
            (u64::MAX, "16E"),
        ] {
            assert_eq!(human(size), shown, "{size}");
        }
    }

    #[test]
    fn times_are_ls_s() {
        let clock =
            Clock { now: Timestamp::from_second(1_700_000_000).unwrap(), zone: TimeZone::UTC };
        let at = |seconds| Some(WireTime { seconds, nanos: 5 });
        assert_eq!(clock.short(at(1_700_000_000 - 60)), "Nov 14 22:12");
        assert_eq!(clock.short(at(1_700_000_000 + 60)), "Nov 14  2023");
        assert_eq!(clock.short(at(1_600_000_000)), "Sep 13  2020");
        assert_eq!(clock.short(None), "?");
        assert_eq!(clock.full(at(1_700_000_000)), "2023-11-14 22:13:20.000000005 +0000");
    }

    #[test]
    fn devices_are_linux_s() {
        assert_eq!(major_minor(0xfe00), (254, 0));
        assert_eq!(major_minor(0x1_0000_0000_0000), (0x10000, 0));
        assert_eq!(major_minor(0x10_0803), (8, 0x103));
    }
}
