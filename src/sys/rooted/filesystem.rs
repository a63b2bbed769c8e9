//! Kinds of file systems, by the number that `statfs` gives them: their names, and which hold no files of a container's.
//! <https://man7.org/linux/man-pages/man2/statfs.2.html>

/// Names as in `/proc/mounts`, and whether what is in it is refused: there files are doors to the kernel, to other processes or to
/// the agent itself (`/proc/self` is whoever looks), or opening one does something.
const KNOWN: &[(i64, &str, bool)] = &[
    (0xEF53, "ext4", false),
    (0x5846_5342, "xfs", false),
    (0x9123_683E, "btrfs", false),
    (0x2FC1_2FC1, "zfs", false),
    (0x794C_7630, "overlay", false),
    (0x0102_1994, "tmpfs", false),
    (0x8584_58F6, "ramfs", false),
    (0x6969, "nfs", false),
    (0xFF53_4D42, "cifs", false),
    (0xFE53_4D42, "smb2", false),
    (0x0102_1997, "9p", false),
    (0x6573_5546, "fuse", false),
    (0x00C3_6400, "ceph", false),
    (0x4D44, "vfat", false),
    (0x2011_BAB0, "exfat", false),
    (0x9660, "iso9660", false),
    (0x7371_7368, "squashfs", false),
    (0xE0F5_E1E2, "erofs", false),
    (0xF2F5_2010, "f2fs", false),
    (0x5346_544E, "ntfs", false),
    (0xF15F, "ecryptfs", false),
    (0x187, "autofs", true),
    (0x9FA0, "proc", true),
    (0x9FA1, "openpromfs", true),
    (0x9FA2, "usbdevfs", true),
    (0x6265_6572, "sysfs", true),
    (0x27_E0EB, "cgroup", true),
    (0x6367_7270, "cgroup2", true),
    (0x6462_6720, "debugfs", true),
    (0x7472_6163, "tracefs", true),
    (0x6E73_6673, "nsfs", true),
    (0xCAFE_4A11, "bpf", true),
    (0x7363_6673, "securityfs", true),
    (0x1CD1, "devpts", true),
    (0x1980_0202, "mqueue", true),
    (0x6265_6570, "configfs", true),
    (0xDE5E_81E4, "efivarfs", true),
    (0xF97C_FF8C, "selinuxfs", true),
    (0x4341_5D53, "smackfs", true),
    (0x5A3C_69F0, "apparmorfs", true),
    (0x6573_5543, "fusectl", true),
    (0x4249_4E4D, "binfmt_misc", true),
    (0x6165_676C, "pstore", true),
    (0x9584_58F6, "hugetlbfs", true),
    (0x6759_6969, "rpc_pipefs", true),
    (0x6E66_7364, "nfsd", true),
    (0x0765_5821, "resctrl", true),
    (0x6C6F_6F70, "binder", true),
    (0x5049_4446, "pidfs", true),
    (0x534F_434B, "sockfs", true),
    (0x5049_5045, "pipefs", true),
    (0x0904_1934, "anon_inodefs", true),
    (0x444D_4142, "dmabuf", true),
    (0x454D_444D, "devmem", true),
    (0x5345_434D, "secretmem", true),
    (0xABBA_1974, "xenfs", true),
    (0xA64_7361, "functionfs", true),
    (0xAEE7_1EE7, "gadgetfs", true),
    (0x6264_6576, "bdev", true),
];

fn known(kind: i64) -> Option<&'static (i64, &'static str, bool)> {
    // The field is signed and as wide as a word; the numbers have 32 bits.
    KNOWN.iter().find(|(number, ..)| *number == kind & 0xFFFF_FFFF)
}

/// Whether nothing in it is given out.
pub(super) fn is_refused(kind: i64) -> bool {
    known(kind).is_some_and(|(_, _, refused)| *refused)
}

/// Its name, in hexadecimal if it has none here.
pub(super) fn name(kind: i64) -> String {
    known(kind)
        .map_or_else(|| format!("{:#x}", kind & 0xFFFF_FFFF), |(_, name, _)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_kernels() {
        // Of every file system that is mounted here, the name that /proc/mounts has for it; ext2 to ext4 share a number.
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let mut seen = 0;
        for line in mounts.lines() {
            let mut fields = line.split(' ');
            let (Some(path), Some(kind)) = (fields.nth(1), fields.next()) else { continue };
            let Ok(stat) = rustix::fs::statfs(path) else { continue };
            let ours = name(stat.f_type);
            let kind = kind.split('.').next().unwrap();
            // Another one may be mounted over it since.
            let same = ours == kind
                || ours.starts_with("0x")
                || (ours, kind) == ("ext4".to_owned(), "ext2")
                || kind == "devtmpfs";
            seen += usize::from(same);
        }
        assert!(seen > 3, "{mounts}");
        assert!(is_refused(0x9FA0) && !is_refused(0x794C_7630) && !is_refused(0x1234));
        assert_eq!(name(0x1234), "0x1234");
        let mut numbers: Vec<_> = KNOWN.iter().map(|(number, ..)| number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), KNOWN.len());
    }
}
