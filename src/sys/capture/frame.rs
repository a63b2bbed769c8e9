//! A packet as the kernel has it, to the packet of a capture file: the tag that was taken out put
//! back, and a header where the link has none.

use super::ring::{LinkAddress, Packet};
use crate::domain::{
    filter::{Context, Program},
    pcapng::{
        Direction,
        write::{self, enhanced_packet},
    },
};

const PACKET_OUTGOING: u8 = 4;
/// Two addresses, which a VLAN tag follows.
const ETHERNET_ADDRESSES: usize = 12;

/// What packets of a source begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    /// Ethernet's header.
    Ethernet,
    /// The header of IPv4 or IPv6.
    Ip,
    /// A header that says what is known of the link layer's.
    Sll2,
}

/// Appends the packet, at most `snaplen` bytes of it, if the filter wants it. Returns whether it
/// did.
#[inline]
pub(super) fn put(
    out: &mut Vec<u8>,
    packet: &Packet<'_>,
    layer: Layer,
    snaplen: u32,
    filter: Option<&Program>,
) -> bool {
    let address = &packet.address;
    let (tag, protocol) = match (layer, packet.vlan) {
        (Layer::Ethernet, Some((protocol, control))) => (Some(pair(protocol, control)), protocol),
        // The tag's protocol comes first, and what it had been before stands in the tag.
        (Layer::Sll2, Some((protocol, control))) => {
            (Some(pair(control, address.protocol)), protocol)
        }
        // Raw IP has no place for one.
        _ => (None, address.protocol),
    };
    let tag = tag.as_ref().map_or(&[][..], |tag| &tag[..]);
    let sll2;
    let (head, rest) = match layer {
        Layer::Ethernet if !tag.is_empty() => {
            packet.data.split_at_checked(ETHERNET_ADDRESSES).unwrap_or((packet.data, &[]))
        }
        Layer::Ethernet | Layer::Ip => (packet.data, &[][..]),
        Layer::Sll2 => {
            sll2 = sll2_header(address, protocol);
            (&sll2[..], packet.data)
        }
    };
    let added = tag.len() + if layer == Layer::Sll2 { head.len() } else { 0 };
    let original_length =
        packet.original_length.saturating_add(u32::try_from(added).unwrap_or(u32::MAX));
    if let Some(filter) = filter {
        let context = Context {
            original_length,
            packet_type: packet.address.packet_type,
            interface: packet.address.interface,
        };
        if filter.run(&[head, tag, rest].concat(), &context) == 0 {
            return false;
        }
    }
    let mut left = usize::try_from(snaplen).unwrap_or(usize::MAX);
    let mut cut = |part: &'_ [u8]| {
        let length = part.len().min(left);
        left -= length;
        length
    };
    let (h, t, r) = (cut(head), cut(tag), cut(rest));
    let parts = [
        head.get(..h).unwrap_or_default(),
        tag.get(..t).unwrap_or_default(),
        rest.get(..r).unwrap_or_default(),
    ];
    let direction = match packet.address.packet_type {
        PACKET_OUTGOING => Direction::Out,
        _ => Direction::In,
    };
    let about =
        write::Packet { interface: 0, timestamp: packet.timestamp, original_length, direction };
    enhanced_packet(out, &about, parts);
    true
}

/// <https://www.tcpdump.org/linktypes/LINKTYPE_LINUX_SLL2.html>
fn sll2_header(address: &LinkAddress, protocol: u16) -> [u8; 20] {
    let [p0, p1] = protocol.to_be_bytes();
    let [i0, i1, i2, i3] = address.interface.to_be_bytes();
    let [h0, h1] = address.hardware.to_be_bytes();
    let [a0, a1, a2, a3, a4, a5, a6, a7] = address.address;
    let (kind, length) = (address.packet_type, address.length);
    [p0, p1, 0, 0, i0, i1, i2, i3, h0, h1, kind, length, a0, a1, a2, a3, a4, a5, a6, a7]
}

fn pair(first: u16, second: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (first.to_be_bytes(), second.to_be_bytes());
    [a, b, c, d]
}
