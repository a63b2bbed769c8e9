//! The sockets that are opened in a foreign network namespace: the part of a capture that takes privileges.
//!
//! A socket stays in the namespace that it was made in, whoever holds it, so everything else is for a process without any: filtering,
//! the ring and binding a packet socket take no capability. Opened for protocol 0, a packet socket gets nothing until it is bound to
//! one, so there is no packet in it that came before its filter.
//!
//! <https://man7.org/linux/man-pages/man7/packet.7.html>

use std::os::fd::OwnedFd;

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    thread::ThreadNameSpaceType,
};

use super::{SysError, enter};

/// The namespace that sockets are opened in.
pub(super) const KINDS: ThreadNameSpaceType = ThreadNameSpaceType::NETWORK;

/// What is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketKind {
    /// `AF_PACKET`: whole frames. Takes CAP_NET_RAW.
    Packets,
    /// `AF_PACKET`: packets without their link-layer header. Takes CAP_NET_RAW.
    CookedPackets,
    /// `NETLINK_ROUTE`: what interfaces there are.
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
