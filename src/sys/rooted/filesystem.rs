//! Kinds of file systems, and which of them hold no files of a container.
//!
//! `statfs` gives a number for each kind. One of them, overlayfs, only shows what other file
//! systems hold: its lower layers may be sysfs, cgroup2 or mqueue, and its number says nothing of
//! them. What does is the file handle of a file, which an overlay makes from the handle of the file
//! in its layer: the type of that handle is the layer's own.
//!
//! - A handle of an overlay that names kernfs: cgroup files shown through an overlay.
//! - A handle that is not an overlay's at all: some layer has no handles. The kernel's own file
//!   systems have none, but neither have some that hold images (FUSE). So such an overlay is
//!   trusted only where the host has it mounted and the container's root is in that mount: then the
//!   container runtime made it, not the container.
//!
//! Before Linux 6.6 an overlay gives no handles, and nothing can be told of its layers.
//!
//! <https://man7.org/linux/man-pages/man2/statfs.2.html>
//! <https://man7.org/linux/man-pages/man2/name_to_handle_at.2.html>
//! <https://docs.kernel.org/filesystems/overlayfs.html>

use std::{
    io::{BufRead, BufReader, Read},
    os::fd::AsFd,
};

use rustix::{
    fs::{fstatfs, major, minor},
    io::Errno,
};

use super::super::ffi;

/// Number, name as in `/proc/mounts`, and whether everything in it is refused: there files are
/// doors to the kernel, to other processes or to the agent itself (`/proc/self` is whoever looks),
/// or opening one has effects.
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

const OVERLAY: i64 = 0x794C_7630;
/// The type of file handles that overlays make: `OVL_FILEID_V1` of `fs/overlayfs/overlayfs.h`.
const OVERLAY_HANDLE: i32 = 0xF8;
/// Where such a handle names the type of the layer's: behind three bytes of padding, version, magic
/// number, length and flags.
const LAYER_TYPE: usize = 7;
/// The type of file handles of kernfs, which sysfs and cgroup file systems are made of:
/// `FILEID_KERNFS` of `include/linux/exportfs.h`.
const KERNFS_HANDLE: u8 = 0xFE;

/// The mount whose overlay is trusted although nothing can be told of its layers, if there is one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct TrustedMount(pub(super) Option<u64>);

/// The kind of file system that a file is in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    number: i64,
    layers: Layers,
}

/// What an overlay shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layers {
    /// Files of a container; also for what is no overlay.
    Files,
    /// Files of the kernel.
    Kernel,
    /// Some layer has no file handles.
    Unknown,
}

/// The kind of file system that a descriptor's file is in.
pub(super) fn of(fd: impl AsFd) -> Result<Kind, Errno> {
    // The field is signed and as wide as a word; the numbers have 32 bits.
    let number = fstatfs(&fd)?.f_type & 0xFFFF_FFFF;
    let layers = if number == OVERLAY { layers(fd) } else { Layers::Files };
    Ok(Kind { number, layers })
}

fn layers(fd: impl AsFd) -> Layers {
    match ffi::file_handle(fd) {
        Ok((OVERLAY_HANDLE, handle)) if handle.get(LAYER_TYPE) == Some(&KERNFS_HANDLE) => {
            Layers::Kernel
        }
        // The second: before Linux 6.6, or a filter of system calls.
        Ok((OVERLAY_HANDLE, _)) | Err(_) => Layers::Files,
        Ok(_) => Layers::Unknown,
    }
}

impl Kind {
    /// Whether nothing of it is given out from this mount.
    pub(super) fn is_refused(self, mount: u64, trusted: TrustedMount) -> bool {
        match self.layers {
            Layers::Kernel => true,
            Layers::Unknown => trusted != TrustedMount(Some(mount)),
            Layers::Files => self.known().is_some_and(|(_, _, refused)| *refused),
        }
    }

    /// Whether it is an overlay of whose layers nothing can be told.
    pub(super) fn is_unknown(self) -> bool {
        self.layers == Layers::Unknown
    }

    /// Its name, in hexadecimal if it has none here.
    pub(super) fn name(self) -> String {
        self.known()
            .map_or_else(|| format!("{:#x}", self.number), |(_, name, _)| (*name).to_owned())
    }

    fn known(self) -> Option<&'static (i64, &'static str, bool)> {
        KNOWN.iter().find(|(number, ..)| *number == self.number)
    }
}

/// Whether a table of mounts, as `/proc/<pid>/mountinfo` prints it, has one of this device. The
/// third field of a line is the device.
pub(super) fn is_mounted(mountinfo: impl Read, device: u64) -> bool {
    let wanted = format!("{}:{}", major(device), minor(device));
    let lines = BufReader::new(mountinfo).split(b'\n').map_while(Result::ok);
    let mut devices = lines.filter_map(|line| {
        let field = line.split(|byte| *byte == b' ').nth(2)?;
        Some(field == wanted.as_bytes())
    });
    devices.any(|same| same)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_of(number: i64) -> Kind {
        Kind { number: number & 0xFFFF_FFFF, layers: Layers::Files }
    }

    #[test]
    fn a_table_of_mounts_is_searched_by_device() {
        // As Linux 6.18 prints it; the path holds what looks like a device.
        let table = "25 30 0:24 / /proc rw,relatime shared:13 - proc proc rw\n\
                     711 30 0:52 / /run/1:7/rootfs rw - overlay overlay rw,lowerdir=/a\n";
        let device = |major, minor| rustix::fs::makedev(major, minor);
        assert!(is_mounted(table.as_bytes(), device(0, 52)));
        for other in [device(0, 5), device(1, 7), device(0, 525)] {
            assert!(!is_mounted(table.as_bytes(), other));
        }
    }

    #[test]
    fn names_are_the_kernels() {
        // The names that /proc/mounts has for what is mounted here; ext2 to ext4 share a number.
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let mut seen = 0;
        for line in mounts.lines() {
            let mut fields = line.split(' ');
            let (Some(path), Some(kind)) = (fields.nth(1), fields.next()) else { continue };
            let Ok(stat) = rustix::fs::statfs(path) else { continue };
            let ours = kind_of(stat.f_type).name();
            let kind = kind.split('.').next().unwrap();
            // Another one may have been mounted over it.
            let same = ours == kind
                || ours.starts_with("0x")
                || (ours, kind) == ("ext4".to_owned(), "ext2")
                || kind == "devtmpfs";
            seen += usize::from(same);
        }
        assert!(seen > 3, "{mounts}");
        let refused = |number| kind_of(number).is_refused(1, TrustedMount(Some(1)));
        assert!(refused(0x9FA0) && !refused(OVERLAY) && !refused(0x1234));
        assert_eq!(kind_of(0x1234).name(), "0x1234");
        let mut numbers: Vec<_> = KNOWN.iter().map(|(number, ..)| number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), KNOWN.len());
    }
}
