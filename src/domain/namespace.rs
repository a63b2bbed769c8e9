//! Linux namespaces and their identities.

use std::fmt;

/// The kinds of namespaces, in the order in which they are reported.
/// <https://man7.org/linux/man-pages/man7/namespaces.7.html>
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NamespaceKind {
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Network stack.
    Net,
    /// Host name.
    Uts,
    /// Process ids.
    Pid,
    /// Mounts.
    Mnt,
    /// Cgroup root.
    Cgroup,
    /// User and group ids.
    User,
    /// Clocks.
    Time,
}

impl NamespaceKind {
    /// All kinds, in order.
    pub const ALL: [Self; 8] = [
        Self::Ipc,
        Self::Net,
        Self::Uts,
        Self::Pid,
        Self::Mnt,
        Self::Cgroup,
        Self::User,
        Self::Time,
    ];

    /// Name of the link below `/proc/<pid>/ns`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ipc => "ipc",
            Self::Net => "net",
            Self::Uts => "uts",
            Self::Pid => "pid",
            Self::Mnt => "mnt",
            Self::Cgroup => "cgroup",
            Self::User => "user",
            Self::Time => "time",
        }
    }
}

impl fmt::Display for NamespaceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Identity of a namespace: device and inode of `/proc/<pid>/ns/<kind>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NamespaceId {
    /// Device of the nsfs.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
}

/// The namespaces of one process. A kind is absent where the kernel has none or it could not be
/// read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct NamespaceSet([Option<NamespaceId>; 8]);

impl NamespaceSet {
    /// Reads every kind through `read`.
    pub fn from_fn(read: impl FnMut(NamespaceKind) -> Option<NamespaceId>) -> Self {
        Self(NamespaceKind::ALL.map(read))
    }

    /// The namespace of one kind.
    pub fn get(&self, kind: NamespaceKind) -> Option<NamespaceId> {
        NamespaceKind::ALL.iter().zip(self.0).find(|(k, _)| **k == kind).and_then(|(_, id)| id)
    }

    /// The kinds that are there, with their ids, in order.
    pub fn iter(&self) -> impl Iterator<Item = (NamespaceKind, NamespaceId)> + '_ {
        NamespaceKind::ALL.into_iter().zip(self.0).filter_map(|(kind, id)| Some((kind, id?)))
    }
}
