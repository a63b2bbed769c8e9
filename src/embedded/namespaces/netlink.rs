//! The routing messages (`NETLINK_ROUTE`) that set up a pod's network interfaces.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::Ipv4Addr,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

// The values are those of linux/netlink.h, rtnetlink.h, if_link.h, if_addr.h and veth.h.
const NLM_F_REQUEST_ACK: u16 = 0x1 | 0x4;
const NLM_F_CREATE_EXCL: u16 = 0x400 | 0x200;
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_PID: u16 = 19;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_GATEWAY: u16 = 5;
const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;

/// A socket in the network namespace of the thread that opened it.
pub(super) struct Netlink(File);

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Self(File::from(socket)))
    }

    /// Brings an interface up.
    pub(super) fn up(&mut self, interface: &str) -> io::Result<()> {
        let mut body = link_header(IFF_UP);
        attribute(&mut body, IFLA_IFNAME, &name(interface));
        self.request(RTM_NEWLINK, 0, &body)
    }

    /// Makes a veth pair: one end here, the other in the network namespace of a process.
    pub(super) fn veth(&mut self, here: &str, there: &str, pid: u32) -> io::Result<()> {
        let mut peer = link_header(0);
        attribute(&mut peer, IFLA_IFNAME, &name(there));
        attribute(&mut peer, IFLA_NET_NS_PID, &pid.to_ne_bytes());
        let mut data = Vec::new();
        attribute(&mut data, VETH_INFO_PEER, &peer);
        let mut link = Vec::new();
        attribute(&mut link, IFLA_INFO_KIND, b"veth");
        attribute(&mut link, IFLA_INFO_DATA, &data);
        let mut body = link_header(0);
        attribute(&mut body, IFLA_IFNAME, &name(here));
        attribute(&mut body, IFLA_LINKINFO, &link);
        self.request(RTM_NEWLINK, NLM_F_CREATE_EXCL, &body)
    }

    /// Adds an address to an interface.
    pub(super) fn address(
        &mut self,
        interface: &str,
        address: Ipv4Addr,
        prefix: u8,
    ) -> io::Result<()> {
        let index = nix::net::if_::if_nametoindex(interface)?;
        // struct ifaddrmsg
        let mut body = vec![AF_INET, prefix, 0, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        attribute(&mut body, IFA_LOCAL, &address.octets());
        attribute(&mut body, IFA_ADDRESS, &address.octets());
        self.request(RTM_NEWADDR, NLM_F_CREATE_EXCL, &body)
    }

    /// Makes `gateway` the default route.
    pub(super) fn default_route(&mut self, gateway: Ipv4Addr) -> io::Result<()> {
        // struct rtmsg
        let mut body =
            vec![AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST, 0, 0, 0, 0];
        attribute(&mut body, RTA_GATEWAY, &gateway.octets());
        self.request(RTM_NEWROUTE, NLM_F_CREATE_EXCL, &body)
    }

    /// Sends one message and waits for the kernel's acknowledgement.
    fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(16 + body.len()).map_err(io::Error::other)?;
        // struct nlmsghdr
        let mut message = length.to_ne_bytes().to_vec();
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(NLM_F_REQUEST_ACK | flags).to_ne_bytes());
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(body);
        self.0.write_all(&message)?;

        let mut answer = [0; 4096];
        let read = self.0.read(&mut answer)?;
        let answer = answer.get(..read).unwrap_or_default();
        match (answer.get(4..6), answer.get(16..20)) {
            (Some(kind), Some(&[a, b, c, d])) if kind == NLMSG_ERROR.to_ne_bytes() => {
                match i32::from_ne_bytes([a, b, c, d]) {
                    0 => Ok(()),
                    errno => Err(io::Error::from_raw_os_error(-errno)),
                }
            }
            _ => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "unexpected answer from the kernel"))
            }
        }
    }
}

/// `struct ifinfomsg` for an interface that an attribute names.
fn link_header(up: u32) -> Vec<u8> {
    let mut header = vec![0; 8];
    header.extend_from_slice(&up.to_ne_bytes());
    header.extend_from_slice(&up.to_ne_bytes());
    header
}

fn name(interface: &str) -> Vec<u8> {
    let mut name = interface.as_bytes().to_vec();
    name.push(0);
    name
}

/// Appends a `struct rtattr` with its value and padding. All values here are far below the limit of
/// 64 KiB.
fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    to.extend_from_slice(&length.to_ne_bytes());
    to.extend_from_slice(&kind.to_ne_bytes());
    to.extend_from_slice(value);
    to.resize(to.len().next_multiple_of(4), 0);
}
