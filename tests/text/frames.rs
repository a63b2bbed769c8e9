//! Builds frames, apart from the product's code.

pub(crate) const V4_A: [u8; 4] = [10, 0, 0, 1];
pub(crate) const V4_B: [u8; 4] = [192, 168, 255, 254];
pub(crate) const V6_A: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
pub(crate) const V6_B: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0xff, 0xfe, 0, 0, 2];

/// The Internet checksum.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let bytes = parts.concat();
    let mut sum: u32 =
        bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

fn short(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap().to_be_bytes()
}

pub(crate) fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0xab, 0, 0, 0, 2][..], &kind.to_be_bytes(), payload].concat()
}

/// A VLAN tag and what follows it, for behind an EtherType.
pub(crate) fn vlan(tag: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&tag.to_be_bytes()[..], &kind.to_be_bytes(), payload].concat()
}

pub(crate) fn sll2(kind: u16, interface: u32, packet_type: u8, payload: &[u8]) -> Vec<u8> {
    let rest = [0, 1, packet_type, 6, 2, 0xab, 0, 0, 0, 2, 0, 0];
    [&kind.to_be_bytes()[..], &[0, 0], &interface.to_be_bytes(), &rest, payload].concat()
}

pub(crate) fn sll(kind: u16, packet_type: u8, payload: &[u8]) -> Vec<u8> {
    let begin = [0, packet_type, 0, 1, 0, 6, 2, 0xab, 0, 0, 0, 2, 0, 0];
    [&begin[..], &kind.to_be_bytes(), payload].concat()
}

/// An IPv4 header with usual values, to be changed by the caller.
#[derive(Clone)]
pub(crate) struct V4 {
    pub(crate) tos: u8,
    pub(crate) id: u16,
    pub(crate) fragment: u16,
    pub(crate) ttl: u8,
    pub(crate) options: Vec<u8>,
    pub(crate) length: Option<u16>,
}

impl Default for V4 {
    fn default() -> Self {
        Self { tos: 0, id: 4711, fragment: 0x4000, ttl: 64, options: Vec::new(), length: None }
    }
}

impl V4 {
    pub(crate) fn with(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let length = self.length.map_or(short(header + payload.len()), u16::to_be_bytes);
        let mut packet = vec![0x40 | u8::try_from(header / 4).unwrap(), self.tos];
        packet.extend(length);
        packet.extend(self.id.to_be_bytes());
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([self.ttl, protocol, 0, 0]);
        packet.extend(V4_A);
        packet.extend(V4_B);
        packet.extend(&self.options);
        let sum = checksum(&[&packet]);
        packet[10..12].copy_from_slice(&sum);
        packet.extend(payload);
        packet
    }
}

pub(crate) fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    V4::default().with(protocol, payload)
}

pub(crate) fn v6_from(first: u32, hops: u8, next: u8, payload: &[u8]) -> Vec<u8> {
    let first = (0x6000_0000 | first).to_be_bytes();
    [&first[..], &short(payload.len()), &[next, hops], &V6_A, &V6_B, payload].concat()
}

pub(crate) fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    v6_from(0, 64, next, payload)
}

/// Sets the checksum of a payload of IPv4 or IPv6.
fn summed(is_v6: bool, protocol: u8, at: usize, mut payload: Vec<u8>) -> Vec<u8> {
    let tail = [&[0, protocol][..], &short(payload.len())].concat();
    let ends = if is_v6 { [&V6_A[..], &V6_B].concat() } else { [&V4_A[..], &V4_B].concat() };
    let sum = checksum(&[&ends, &tail, &payload]);
    payload[at..at + 2].copy_from_slice(&sum);
    payload
}

/// A TCP segment with usual values, to be changed by the caller.
#[derive(Clone)]
pub(crate) struct Tcp {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    pub(crate) sequence: u32,
    pub(crate) acknowledged: u32,
    pub(crate) flags: u8,
    pub(crate) options: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

impl Default for Tcp {
    fn default() -> Self {
        Self {
            source: 40_000,
            destination: 9999,
            sequence: 1_000_000,
            acknowledged: 2_000_000,
            flags: 0x10,
            options: Vec::new(),
            data: Vec::new(),
        }
    }
}

impl Tcp {
    fn segment(&self, is_v6: bool) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let mut segment = [self.source.to_be_bytes(), self.destination.to_be_bytes()].concat();
        segment.extend(self.sequence.to_be_bytes());
        segment.extend(self.acknowledged.to_be_bytes());
        segment.extend([
            u8::try_from(5 + options.len() / 4).unwrap() << 4,
            self.flags,
            0x20,
            0,
            0,
            0,
            0,
            7,
        ]);
        segment.extend(options);
        segment.extend(&self.data);
        summed(is_v6, 6, 16, segment)
    }

    pub(crate) fn v4(&self) -> Vec<u8> {
        v4(6, &self.segment(false))
    }

    pub(crate) fn v6(&self) -> Vec<u8> {
        v6(6, &self.segment(true))
    }
}

pub(crate) fn udp(is_v6: bool, source: u16, destination: u16, data: &[u8]) -> Vec<u8> {
    let begin =
        [source.to_be_bytes(), destination.to_be_bytes(), short(8 + data.len()), [0, 0]].concat();
    summed(is_v6, 17, 6, [&begin, data].concat())
}

pub(crate) fn icmp(kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0][..], rest].concat();
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum);
    message
}

pub(crate) fn icmp6(kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    summed(true, 58, 2, [&[kind, code, 0, 0][..], rest].concat())
}

/// The checksum of IGMP, and of ICMP extensions.
pub(crate) fn with_checksum(at: usize, mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = checksum(&[&bytes]);
    bytes[at..at + 2].copy_from_slice(&sum);
    bytes
}

/// A DNS name without compression.
pub(crate) fn name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

pub(crate) fn question(text: &str, kind: u16, class: u16) -> Vec<u8> {
    [&name(text)[..], &kind.to_be_bytes(), &class.to_be_bytes()].concat()
}

/// A DNS record whose owner is given in bytes, so that it can be a pointer.
pub(crate) fn record(owner: &[u8], kind: u16, class: u16, ttl: u32, value: &[u8]) -> Vec<u8> {
    [
        owner,
        &kind.to_be_bytes(),
        &class.to_be_bytes(),
        &ttl.to_be_bytes(),
        &short(value.len()),
        value,
    ]
    .concat()
}

/// A DNS message whose header states these numbers of items in its sections.
pub(crate) fn dns(id: u16, flags: u16, counts: [u16; 4], parts: &[Vec<u8>]) -> Vec<u8> {
    let counts: Vec<u8> = counts.iter().flat_map(|count| count.to_be_bytes()).collect();
    [&id.to_be_bytes()[..], &flags.to_be_bytes(), &counts, &parts.concat()].concat()
}
