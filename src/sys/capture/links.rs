//! The interfaces of a network namespace, by a routing socket that was opened in it.
//!
//! Two dumps: links, then addresses. Whatever the kernel says is read by offsets that are checked.
//! <https://man7.org/linux/man-pages/man7/rtnetlink.7.html>

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send, sockopt},
};

use crate::sys::SysError;

/// Most interfaces that are listed.
pub const MAX_LINKS: usize = 1024;
/// Most addresses of one interface that are listed.
pub const MAX_ADDRESSES: usize = 16;

// From linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h.
const NLM_F_REQUEST_DUMP: u16 = 0x1 | 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFF_UP: u32 = 0x1;
const IFF_LOOPBACK: u32 = 0x8;

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: Vec<u8>,
    /// Its index.
    pub index: u32,
    /// `ARPHRD_…`: what kind of link it is.
    pub hardware: u16,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is the loopback interface.
    pub loopback: bool,
    /// Largest packet in bytes, without the link's header.
    pub mtu: u32,
    /// Its addresses with their prefix lengths, [`MAX_ADDRESSES`] at most.
    pub addresses: Vec<(std::net::IpAddr, u8)>,
}

/// Lists the interfaces of the namespace that `socket` lives in, in the kernel's order,
/// [`MAX_LINKS`] at most.
///
/// # Errors
/// What the kernel says.
pub fn list(socket: &OwnedFd) -> Result<Vec<Link>, SysError> {
    let mut links: Vec<Link> = Vec::new();
    // `struct ifinfomsg`
    dump(socket, RTM_GETLINK, &[0; 16], |kind, body| {
        if kind == RTM_NEWLINK && links.len() < MAX_LINKS {
            links.extend(link(body));
        }
    })?;
    // `struct ifaddrmsg`
    dump(socket, RTM_GETADDR, &[0; 8], |kind, body| {
        let Some((index, address)) = address(body).filter(|_| kind == RTM_NEWADDR) else { return };
        if let Some(link) = links.iter_mut().find(|link| link.index == index)
            && link.addresses.len() < MAX_ADDRESSES
        {
            link.addresses.push(address);
        }
    })?;
    Ok(links)
}

fn dump(
    socket: &OwnedFd,
    kind: u16,
    body: &[u8],
    mut take: impl FnMut(u16, &[u8]),
) -> Result<(), SysError> {
    let failed = |op| move |errno| SysError::new(op, format!("routing message {kind}"), errno);
    sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, Some(Duration::from_secs(2)))
        .map_err(failed("setsockopt"))?;
    let length = u32::try_from(16 + body.len()).unwrap_or_default();
    let mut request = length.to_ne_bytes().to_vec();
    request.extend(kind.to_ne_bytes());
    request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    // Sequence number: the kind itself, so that no dump is taken for another. Port: the kernel's
    // choice.
    request.extend(u32::from(kind).to_ne_bytes());
    request.extend([0; 4]);
    request.extend(body);
    send(socket, &request, SendFlags::empty()).map_err(failed("send"))?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let (length, _) =
            recv(socket, buffer.as_mut_slice(), RecvFlags::empty()).map_err(failed("recv"))?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some((message, after)) =
            split(rest, |header: &[u8; 4]| u32::from_ne_bytes(*header))
        {
            rest = after;
            let Some((header, body)) = message.split_first_chunk::<16>() else { break };
            let [_, _, _, _, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
            if u32::from_ne_bytes([s0, s1, s2, s3]) != u32::from(kind) {
                continue;
            }
            match u16::from_ne_bytes([k0, k1]) {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let errno = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                    return Err(failed("rtnetlink")(Errno::from_raw_os_error(
                        errno.saturating_neg().max(1),
                    )));
                }
                kind => take(kind, body),
            }
        }
    }
}

/// The first of some things that begin with their own length, header included, and are padded to 4
/// bytes; and what follows it.
fn split<const N: usize>(bytes: &[u8], length: impl Fn(&[u8; N]) -> u32) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(length(bytes.first_chunk()?)).ok()?;
    if length < N {
        return None;
    }
    let one = bytes.get(..length)?;
    Some((one, bytes.get(length.checked_next_multiple_of(4)?..).unwrap_or_default()))
}

/// The attributes of a message.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (one, rest) = split(bytes, |header: &[u8; 4]| {
            let [l0, l1, _, _] = *header;
            u16::from_ne_bytes([l0, l1]).into()
        })?;
        bytes = rest;
        let (header, value) = one.split_first_chunk::<4>()?;
        let [_, _, k0, k1] = *header;
        Some((u16::from_ne_bytes([k0, k1]), value))
    })
}

fn link(body: &[u8]) -> Option<Link> {
    let (header, rest) = body.split_first_chunk::<16>()?;
    let [_, _, h0, h1, i0, i1, i2, i3, f0, f1, f2, f3, ..] = *header;
    let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
    let mut link = Link {
        index: u32::from_ne_bytes([i0, i1, i2, i3]),
        hardware: u16::from_ne_bytes([h0, h1]),
        up: flags & IFF_UP != 0,
        loopback: flags & IFF_LOOPBACK != 0,
        ..Link::default()
    };
    for (kind, value) in attributes(rest) {
        match kind {
            IFLA_IFNAME => {
                link.name = value.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
            }
            IFLA_MTU => {
                link.mtu = value.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn address(body: &[u8]) -> Option<(u32, (std::net::IpAddr, u8))> {
    let (header, rest) = body.split_first_chunk::<8>()?;
    let [_, prefix, _, _, i0, i1, i2, i3] = *header;
    let mut found = None;
    for (kind, value) in attributes(rest) {
        // On a point-to-point interface, IFA_ADDRESS is the other end's address and IFA_LOCAL its
        // own; elsewhere there may be only the first.
        if kind == IFA_LOCAL || (kind == IFA_ADDRESS && found.is_none()) {
            found = match *value {
                [a, b, c, d] => Some(Ipv4Addr::new(a, b, c, d).into()),
                _ => <[u8; 16]>::try_from(value).ok().map(|octets| Ipv6Addr::from(octets).into()),
            };
        }
    }
    Some((u32::from_ne_bytes([i0, i1, i2, i3]), (found?, prefix)))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

    use super::*;

    #[test]
    fn the_loopback_interface_is_listed() {
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
                .unwrap();
        let links = list(&socket).unwrap();
        let lo = links.iter().find(|link| link.name == b"lo").unwrap();
        assert_eq!((lo.index, lo.hardware, lo.loopback), (1, 772, true));
        assert!(!lo.up || lo.addresses.contains(&(Ipv4Addr::LOCALHOST.into(), 8)), "{lo:?}");
    }

    proptest! {
        #[test]
        fn any_message_is_read(body in vec(any::<u8>(), 0..200)) {
            let _ = (link(&body), address(&body), attributes(&body).count());
        }
    }
}
