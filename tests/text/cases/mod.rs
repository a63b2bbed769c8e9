//! Packets of every protocol that is printed, and of some that are not, right and wrong.

mod application;
mod link;
mod v4;
mod v6;

use crate::frames::ethernet;

pub(crate) use link::{arp_packets, ethernet_frames};
pub(crate) use v4::v4_packets;
pub(crate) use v6::v6_packets;

/// The EtherType of IPv4.
pub(crate) const IP: u16 = 0x0800;
/// The EtherType of IPv6.
pub(crate) const IP6: u16 = 0x86dd;

/// All packets, as Ethernet frames.
pub(crate) fn all_frames() -> Vec<Vec<u8>> {
    let mut all: Vec<_> = v4_packets().iter().map(|packet| ethernet(IP, packet)).collect();
    all.extend(v6_packets().iter().map(|packet| ethernet(IP6, packet)));
    all.extend(arp_packets().iter().map(|packet| ethernet(0x0806, packet)));
    all.extend(ethernet_frames());
    all
}
