//! Evidence: what is seen from inside a container's namespaces.

use std::{fs, os::fd::AsFd};

use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, socket},
};
use rustix::thread::ThreadNameSpaceType;

use super::ffi;
use crate::domain::evidence::{Evidence, Interface, IpcEvidence, NetEvidence};

/// The namespaces that evidence is taken in.
pub(super) const KINDS: ThreadNameSpaceType = ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
    .union(ThreadNameSpaceType::NETWORK)
    .union(ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION);

/// Looks around in the calling thread's namespaces.
pub(super) fn look() -> Evidence {
    Evidence {
        hostname: Some(rustix::system::uname().nodename().to_bytes().to_vec()),
        net: net(),
        ipc: ipc(),
    }
}

fn net() -> Option<NetEvidence> {
    let probe =
        socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).ok()?;
    let mut net = NetEvidence {
        cookie: ffi::netns_cookie(probe.as_fd()).unwrap_or_default(),
        ..NetEvidence::default()
    };
    for entry in getifaddrs().ok()? {
        let name = entry.interface_name.as_bytes();
        let known = net.interfaces.iter().position(|i| i.name == name);
        // Each interface has one entry for its link-layer address, before those of its other
        // addresses. That address may have length 0.
        if entry.address.as_ref().is_some_and(|a| a.as_link_addr().is_some()) {
            net.interface_count = net.interface_count.saturating_add(1);
        }
        if known.is_none() && net.interfaces.len() < NetEvidence::MAX_INTERFACES {
            net.interfaces.push(Interface { name: name.to_vec(), addresses: Vec::new() });
        }
        let interface = net.interfaces.iter_mut().find(|i| i.name == name);
        if let (Some(interface), Some(address)) = (interface, address(&entry))
            && interface.addresses.len() < NetEvidence::MAX_ADDRESSES
        {
            interface.addresses.push(address);
        }
    }
    Some(net)
}

/// `address/prefix` of an IPv4 or IPv6 entry; None for others.
fn address(entry: &InterfaceAddress) -> Option<String> {
    let ones = |octets: &[u8]| octets.iter().map(|o| o.count_ones()).sum::<u32>();
    let (address, mask): (&SockaddrStorage, _) = (entry.address.as_ref()?, entry.netmask.as_ref());
    if let Some(v4) = address.as_sockaddr_in() {
        let prefix = mask.and_then(|m| m.as_sockaddr_in()).map_or(32, |m| ones(&m.ip().octets()));
        return Some(format!("{}/{prefix}", v4.ip()));
    }
    let v6 = address.as_sockaddr_in6()?;
    let prefix = mask.and_then(|m| m.as_sockaddr_in6()).map_or(128, |m| ones(&m.ip().octets()));
    Some(format!("{}/{prefix}", v6.ip()))
}

/// The objects in the ipc namespace. The tables of `/proc/sysvipc` are those of the thread that
/// opens them, whichever `/proc` is mounted.
fn ipc() -> Option<IpcEvidence> {
    let ids = |table: &str| {
        fs::read_to_string(format!("/proc/sysvipc/{table}"))
            .map(|t| IpcEvidence::parse_ids(&t))
            .ok()
    };
    Some(IpcEvidence { shm: ids("shm")?, sem: ids("sem")?, msg: ids("msg")? })
}
