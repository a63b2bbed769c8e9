//! What is seen from inside a namespace, by which a person recognises it. Evidence never decides a
//! verdict.

/// Seen from inside the namespaces of one process. Absent where it could not be taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// `uname -n` in the uts namespace.
    pub hostname: Option<Vec<u8>>,
    /// The network namespace.
    pub net: Option<NetEvidence>,
    /// The ipc namespace.
    pub ipc: Option<IpcEvidence>,
}

/// Seen in a network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetEvidence {
    /// `SO_NETNS_COOKIE`; 0 where the kernel has none.
    pub cookie: u64,
    /// At most [`NetEvidence::MAX_INTERFACES`].
    pub interfaces: Vec<Interface>,
    /// Number of interfaces, listed or not.
    pub interface_count: u32,
}

impl NetEvidence {
    /// How many interfaces are listed at most.
    pub const MAX_INTERFACES: usize = 64;
    /// How many addresses of one interface are listed at most.
    pub const MAX_ADDRESSES: usize = 16;
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: Vec<u8>,
    /// Addresses with prefix length: `10.244.0.7/24`.
    pub addresses: Vec<String>,
}

/// System V objects of an ipc namespace: the first ids of each sort.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IpcEvidence {
    /// Shared memory segments.
    pub shm: Vec<i32>,
    /// Semaphore sets.
    pub sem: Vec<i32>,
    /// Message queues.
    pub msg: Vec<i32>,
}

impl IpcEvidence {
    /// How many ids of one sort are listed at most.
    pub const MAX_IDS: usize = 16;

    /// Parses the ids out of a table of `/proc/sysvipc`: a header line, then rows whose second
    /// column is the id.
    pub fn parse_ids(table: &str) -> Vec<i32> {
        table
            .lines()
            .skip(1)
            .filter_map(|row| row.split_ascii_whitespace().nth(1)?.parse().ok())
            .take(Self::MAX_IDS)
            .collect()
    }
}

/// Which pid two processes have for each other; none where one does not see the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MutualPids {
    /// The reference's process, seen from the container.
    pub reference_from_container: Option<u32>,
    /// The container's process, seen from the reference.
    pub container_from_reference: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_sysvipc_table() {
        let shm = "       key      shmid perms                  size  cpid\n         0          3  1600               4096   812\n  \
                   1234         65    600      1  2\n";
        assert_eq!(IpcEvidence::parse_ids(shm), [3, 65]);
        assert_eq!(IpcEvidence::parse_ids(""), Vec::<i32>::new());
        assert_eq!(IpcEvidence::parse_ids("h\nx y\n\n"), Vec::<i32>::new());
    }
}
