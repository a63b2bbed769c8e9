//! The messages between the agent and the broker. Little-endian, bounded, written and read by hand:
//! whatever comes in is either a message or refused.
//!
//! A request is 16 bytes and exactly one descriptor, a pidfd:
//!
//! | bytes | |
//! |---|---|
//! | 0 | [`VERSION`] |
//! | 1 | [`Purpose`]: 1 evidence, 2 a socket |
//! | 2 | of a socket: which, 1 packets with their link-layer header, 2 packets without, 3 routing messages; else 0 |
//! | 3–7 | 0: room for a purpose's arguments |
//! | 8–15 | id, repeated in the reply |
//!
//! A reply is 16 bytes and a payload, at most [`MAX_REPLY`] together:
//!
//! | bytes | |
//! |---|---|
//! | 0 | [`VERSION`] |
//! | 1 | kind: 0 [`Hello`], 1 evidence, 2 failure, 3 a socket: with exactly one descriptor, as no other kind has |
//! | 2 | of a failure: which operation, by its place in `OPERATIONS` |
//! | 3 | 0 |
//! | 4–7 | of a failure: the errno |
//! | 8–15 | id of the request; 0 in a hello, and where the request had none that could be read |

use rustix::io::Errno;

use crate::{
    domain::evidence::{Evidence, Interface, IpcEvidence, NetEvidence},
    sys::{SysError, socket::SocketKind},
};

/// Version of the messages. Both sides are one program, so a difference is a mistake.
pub const VERSION: u8 = 1;
/// Size of a request.
pub const REQUEST: usize = 16;
/// Size of a reply without its payload.
pub const HEADER: usize = 16;
/// Size of the largest reply. Evidence at its limits takes 50 KiB.
pub const MAX_REPLY: usize = 64 * 1024;

/// What may fail in the broker: [`SysError::op`] on both sides.
const OPERATIONS: [&str; 7] = ["request", "pidfd", "thread", "setns", "work", "confine", "socket"];

/// What a namespace is entered for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The evidence that verdicts carry, from the uts, net and ipc namespaces.
    Evidence,
    /// A socket that lives in the net namespace.
    Socket(SocketKind),
}

/// A request, without its pidfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Chosen by the agent, so that a late reply is not taken for another's.
    pub id: u64,
    /// What for.
    pub purpose: Purpose,
}

/// What the broker says of itself once, when it is ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hello {
    /// Its effective capabilities.
    pub capabilities: u64,
    /// Whether its bounding set has no other capabilities.
    pub bounded: bool,
    /// Whether its system calls are filtered.
    pub filtered: bool,
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It is ready.
    Hello(Hello),
    /// Answers [`Purpose::Evidence`].
    Evidence(Evidence),
    /// Answers [`Purpose::Socket`]. The socket comes along as a descriptor.
    Socket,
    /// It was refused or did not work.
    Failure(SysError),
}

impl Request {
    /// Writes it.
    pub fn encode(self) -> [u8; REQUEST] {
        let mut message = [0; REQUEST];
        let (head, id) = message.split_at_mut(8);
        let (purpose, argument) = match self.purpose {
            Purpose::Evidence => (1, 0),
            Purpose::Socket(SocketKind::Packets) => (2, 1),
            Purpose::Socket(SocketKind::CookedPackets) => (2, 2),
            Purpose::Socket(SocketKind::Routes) => (2, 3),
        };
        head.copy_from_slice(&[VERSION, purpose, argument, 0, 0, 0, 0, 0]);
        id.copy_from_slice(&self.id.to_le_bytes());
        message
    }

    /// Reads it.
    ///
    /// # Errors
    /// The id, 0 if there is none, with EMSGSIZE for a wrong size, EPROTO for another version,
    /// EOPNOTSUPP for an unknown purpose and EINVAL for an argument that the purpose does not have.
    pub fn decode(message: &[u8]) -> Result<Self, (u64, Errno)> {
        let message: &[u8; REQUEST] = message.try_into().map_err(|_| (0, Errno::MSGSIZE))?;
        let [version, purpose, argument, a, b, c, d, e, id @ ..] = *message;
        let id = u64::from_le_bytes(id);
        if version != VERSION {
            return Err((0, Errno::PROTO));
        }
        let purpose = match (purpose, argument) {
            (1, 0) => Purpose::Evidence,
            (2, 1) => Purpose::Socket(SocketKind::Packets),
            (2, 2) => Purpose::Socket(SocketKind::CookedPackets),
            (2, 3) => Purpose::Socket(SocketKind::Routes),
            (1 | 2, _) => return Err((id, Errno::INVAL)),
            _ => return Err((id, Errno::OPNOTSUPP)),
        };
        if [a, b, c, d, e] != [0; 5] {
            return Err((id, Errno::INVAL));
        }
        Ok(Self { id, purpose })
    }
}

impl Reply {
    /// Writes it. What would be larger than [`MAX_REPLY`] becomes a failure, EMSGSIZE.
    pub fn encode(&self, id: u64) -> Vec<u8> {
        let (kind, op, errno) = match self {
            Self::Hello(_) => (0, 0, 0),
            Self::Evidence(_) => (1, 0, 0),
            Self::Socket => (3, 0, 0),
            Self::Failure(error) => {
                let op = OPERATIONS.iter().position(|op| *op == error.op);
                (
                    2,
                    op.and_then(|op| u8::try_from(op).ok()).unwrap_or(u8::MAX),
                    error.errno.raw_os_error(),
                )
            }
        };
        let mut out = vec![VERSION, kind, op, 0];
        out.extend(errno.to_le_bytes());
        out.extend(id.to_le_bytes());
        match self {
            Self::Hello(hello) => {
                out.extend(hello.capabilities.to_le_bytes());
                out.extend([u8::from(hello.bounded), u8::from(hello.filtered)]);
            }
            Self::Evidence(evidence) => put_evidence(&mut out, evidence),
            Self::Failure(_) | Self::Socket => {}
        }
        if out.len() > MAX_REPLY {
            return Self::Failure(SysError::new("work", "evidence", Errno::MSGSIZE)).encode(id);
        }
        out
    }

    /// Reads it, and the id of the request that it answers.
    ///
    /// # Errors
    /// EBADMSG if it is not one.
    pub fn decode(message: &[u8]) -> Result<(u64, Self), Errno> {
        let mut input = Reader(message);
        let [version, kind, op, _] = input.take()?;
        let errno = i32::from_le_bytes(input.take()?);
        let id = u64::from_le_bytes(input.take()?);
        let reply = match (version, kind) {
            (VERSION, 0) => {
                let capabilities = u64::from_le_bytes(input.take()?);
                let [bounded, filtered] = input.take()?;
                Self::Hello(Hello { capabilities, bounded: bounded != 0, filtered: filtered != 0 })
            }
            (VERSION, 1) => Self::Evidence(input.evidence()?),
            (VERSION, 3) => Self::Socket,
            // The range of errnos.
            (VERSION, 2) if (1..4096).contains(&errno) => {
                let op = OPERATIONS.get(usize::from(op)).copied().unwrap_or("broker");
                Self::Failure(SysError::new(op, "in the broker", Errno::from_raw_os_error(errno)))
            }
            _ => return Err(Errno::BADMSG),
        };
        if !input.0.is_empty() {
            return Err(Errno::BADMSG);
        }
        Ok((id, reply))
    }
}

const HOSTNAME: u8 = 1;
const NET: u8 = 2;
const IPC: u8 = 4;

fn put_evidence(out: &mut Vec<u8>, Evidence { hostname, net, ipc }: &Evidence) {
    let present = |is: bool, flag: u8| if is { flag } else { 0 };
    out.push(
        present(hostname.is_some(), HOSTNAME)
            | present(net.is_some(), NET)
            | present(ipc.is_some(), IPC),
    );
    if let Some(hostname) = hostname {
        put_bytes(out, hostname);
    }
    if let Some(net) = net {
        out.extend(net.cookie.to_le_bytes());
        out.extend(net.interface_count.to_le_bytes());
        put_length(out, net.interfaces.len());
        for interface in &net.interfaces {
            put_bytes(out, &interface.name);
            put_length(out, interface.addresses.len());
            for address in &interface.addresses {
                put_bytes(out, address.as_bytes());
            }
        }
    }
    if let Some(IpcEvidence { shm, sem, msg }) = ipc {
        for ids in [shm, sem, msg] {
            put_length(out, ids.len());
            out.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        }
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend(bytes);
}

/// What does not fit makes a message that is too long, which [`Reply::encode`] sees.
fn put_length(out: &mut Vec<u8>, length: usize) {
    out.extend(u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes());
}

/// What is left to be read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Errno::BADMSG)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn bytes(&mut self) -> Result<&'a [u8], Errno> {
        let length = usize::from(u16::from_le_bytes(self.take()?));
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Errno::BADMSG)?;
        self.0 = rest;
        Ok(taken)
    }

    fn list<T>(
        &mut self,
        max: usize,
        item: impl Fn(&mut Self) -> Result<T, Errno>,
    ) -> Result<Vec<T>, Errno> {
        let length = usize::from(u16::from_le_bytes(self.take()?));
        if length > max {
            return Err(Errno::BADMSG);
        }
        (0..length).map(|_| item(self)).collect()
    }

    fn evidence(&mut self) -> Result<Evidence, Errno> {
        let [present] = self.take()?;
        let mut evidence = Evidence::default();
        if present & HOSTNAME != 0 {
            evidence.hostname = Some(self.bytes()?.to_vec());
        }
        if present & NET != 0 {
            evidence.net = Some(NetEvidence {
                cookie: u64::from_le_bytes(self.take()?),
                interface_count: u32::from_le_bytes(self.take()?),
                interfaces: self.list(NetEvidence::MAX_INTERFACES, Self::interface)?,
            });
        }
        if present & IPC != 0 {
            let mut ids = || self.list(IpcEvidence::MAX_IDS, |r| r.take().map(i32::from_le_bytes));
            evidence.ipc = Some(IpcEvidence { shm: ids()?, sem: ids()?, msg: ids()? });
        }
        Ok(evidence)
    }

    fn interface(&mut self) -> Result<Interface, Errno> {
        let name = self.bytes()?.to_vec();
        let address =
            |r: &mut Self| String::from_utf8(r.bytes()?.to_vec()).map_err(|_| Errno::BADMSG);
        Ok(Interface { name, addresses: self.list(NetEvidence::MAX_ADDRESSES, address)? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    prop_compose! {
        fn evidence()(
            hostname in option::of(vec(any::<u8>(), 0..64)),
            net in option::of((any::<u64>(), any::<u32>(), vec((vec(any::<u8>(), 0..16), vec(".{0,43}", 0..16)), 0..8))),
            ipc in option::of((vec(any::<i32>(), 0..16), vec(any::<i32>(), 0..16), vec(any::<i32>(), 0..16))),
        ) -> Evidence {
            let interfaces = |list: Vec<(Vec<u8>, Vec<String>)>| {
                list.into_iter().map(|(name, addresses)| Interface { name, addresses }).collect()
            };
            Evidence {
                hostname,
                net: net.map(|(cookie, interface_count, list)| NetEvidence { cookie, interface_count, interfaces: interfaces(list) }),
                ipc: ipc.map(|(shm, sem, msg)| IpcEvidence { shm, sem, msg }),
            }
        }
    }

    proptest! {
        #[test]
        fn evidence_comes_back_as_it_was(evidence in evidence(), id: u64) {
            let message = Reply::Evidence(evidence.clone()).encode(id);
            prop_assert!(message.len() <= MAX_REPLY);
            prop_assert_eq!(Reply::decode(&message), Ok((id, Reply::Evidence(evidence))));
            // And cut anywhere it is refused.
            for end in 0..message.len() {
                prop_assert_eq!(Reply::decode(&message[..end]), Err(Errno::BADMSG));
            }
        }

        #[test]
        fn anything_is_read_or_refused(mut message in vec(any::<u8>(), 0..200)) {
            let _ = Reply::decode(&message);
            let _ = Request::decode(&message);
            if let [version, ..] = message.as_mut_slice() {
                *version = VERSION;
            }
            let _ = Reply::decode(&message);
        }
    }

    #[test]
    fn the_largest_evidence_fits() {
        let address = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128".to_owned();
        let interface = Interface {
            name: vec![b'x'; 15],
            addresses: vec![address; NetEvidence::MAX_ADDRESSES],
        };
        let ids = vec![i32::MAX; IpcEvidence::MAX_IDS];
        let evidence = Evidence {
            hostname: Some(vec![b'h'; 64]),
            net: Some(NetEvidence {
                cookie: 1,
                interfaces: vec![interface; NetEvidence::MAX_INTERFACES],
                interface_count: 9,
            }),
            ipc: Some(IpcEvidence { shm: ids.clone(), sem: ids.clone(), msg: ids }),
        };
        let message = Reply::Evidence(evidence.clone()).encode(7);
        assert_eq!(Reply::decode(&message), Ok((7, Reply::Evidence(evidence))));
    }

    #[test]
    fn what_is_too_large_becomes_a_failure() {
        let evidence = Evidence { hostname: Some(vec![0; MAX_REPLY]), ..Evidence::default() };
        let (id, reply) = Reply::decode(&Reply::Evidence(evidence).encode(3)).unwrap();
        let Reply::Failure(error) = reply else { panic!("{reply:?}") };
        assert_eq!((id, error.op, error.errno), (3, "work", Errno::MSGSIZE));
    }
}
