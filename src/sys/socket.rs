//! Sockets in a foreign network namespace: the part of a capture that takes privileges.
//!
//! A socket stays in the namespace in which it was made, whoever holds it. So everything else is
//! done by a process without privileges: filtering, the ring and binding take no capability. A
//! packet socket opened for protocol 0 receives nothing until it is bound to a protocol, so it
//! holds no packet that arrived before its filter.
//!
//! <https://man7.org/linux/man-pages/man7/packet.7.html>

use std::os::fd::OwnedFd;

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    thread::ThreadNameSpaceType,
};

use super::{SysError, enter};

/// The kind of namespace that sockets are opened in.
pub(super) const KINDS: ThreadNameSpaceType = ThreadNameSpaceType::NETWORK;

/// A kind of socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketKind {
    /// `AF_PACKET` with whole frames. Needs CAP_NET_RAW.
    Packets,
    /// `AF_PACKET` with packets without their link-layer header. Needs CAP_NET_RAW.
    CookedPackets,
    /// `NETLINK_ROUTE`, which lists interfaces. Needs no capability.
    Routes,
}

/// Opens a socket inside the net namespace of the process that `pidfd` names.
///
/// # Errors
/// As [`enter::inside`]; `socket` EPERM without CAP_NET_RAW.
pub(super) fn open_inside(pidfd: OwnedFd, kind: SocketKind) -> Result<OwnedFd, SysError> {
    let (family, of) = match kind {
        SocketKind::Packets => (AddressFamily::PACKET, SocketType::RAW),
        SocketKind::CookedPackets => (AddressFamily::PACKET, SocketType::DGRAM),
        // Protocol 0 is NETLINK_ROUTE.
        SocketKind::Routes => (AddressFamily::NETLINK, SocketType::RAW),
    };
    let open = move || socket_with(family, of, SocketFlags::CLOEXEC, None);
    enter::inside(pidfd, KINDS, open)?.map_err(SysError::of("socket", format_args!("{kind:?}")))
}
