//! Any bytes as what the broker and the kernel tell of a namespace: the broker's messages, routing
//! messages about interfaces, and tables of `/proc/sysvipc`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podsonde::{
    domain::evidence::{IpcEvidence, NetEvidence},
    sys::{
        broker::wire::{MAX_REPLY, Reply, Request},
        capture::links,
    },
};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

const NLMSG_DONE: u16 = 3;
const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;

/// The message that ends the answer to a request of this kind.
fn done(kind: u16) -> Vec<u8> {
    let mut message = 16_u32.to_ne_bytes().to_vec();
    message.extend(NLMSG_DONE.to_ne_bytes());
    message.extend([0; 2]);
    message.extend(u32::from(kind).to_ne_bytes());
    message.extend([0; 4]);
    message
}

fn broker(data: &[u8]) {
    if let Ok(request) = Request::decode(data) {
        assert_eq!(request.encode(), data);
    }
    if let Ok((id, reply)) = Reply::decode(data) {
        let Reply::Evidence(evidence) = &reply else { return };
        if let Some(net) = &evidence.net {
            assert!(net.interfaces.len() <= NetEvidence::MAX_INTERFACES);
        }
        let encoded = reply.encode(id);
        assert!(encoded.len() <= MAX_REPLY);
        assert_eq!(Reply::decode(&encoded), Ok((id, reply)));
    }
}

fn kernel(links_data: &[u8], addresses: &[u8]) {
    // A pair of sockets stands for the kernel's, so that the parser reads as it always does.
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (ours, kernels) = pair.expect("a pair of sockets");
    for message in [links_data, &done(RTM_GETLINK), addresses, &done(RTM_GETADDR)] {
        if !message.is_empty() {
            send(&kernels, message, SendFlags::DONTWAIT).expect("room for a message");
        }
    }
    if let Ok(links) = links::list(&ours) {
        assert!(links.len() * 16 <= links_data.len());
    }
}

fuzz_target!(|input: (&[u8], &[u8])| {
    let (one, other) = input;
    broker(one);
    kernel(one, other);
    if let Ok(table) = std::str::from_utf8(one) {
        assert!(IpcEvidence::parse_ids(table).len() <= IpcEvidence::MAX_IDS);
    }
});
