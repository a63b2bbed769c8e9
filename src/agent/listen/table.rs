//! How many connections and requests there are, in all and of each peer, and who gives way when there are too many.
//!
//! A flood may come from an address that honest clients share, as all port-forwards do. So a limit does not turn the next
//! one away: the connection gives way that has been without a request for longest, in a handshake or idle, and it is taken from
//! the peer that has most. An honest client is done with both in a moment. Only where every connection has a request at work is
//! the next one refused.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio_util::sync::CancellationToken;

use crate::agent::config::TransportLimits;

/// Who is at the other end, as far as limits go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Peer {
    /// An IPv4 address, or the first address of an IPv6 /64, as a host has all of that.
    Address(IpAddr),
    /// A user of this machine.
    User(u32),
}

impl Peer {
    /// The peer at this address.
    pub(super) fn at(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(v6) if !v6.is_loopback() => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
            other => other,
        })
    }
}

/// Why there is no room for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// All connections.
#[derive(Debug)]
pub(super) struct Table {
    limits: Arc<TransportLimits>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    connections: HashMap<u64, Entry>,
    peers: HashMap<Peer, Load>,
    requests: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    peer: Peer,
    phase: Phase,
    evict: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Handshake(Instant),
    Idle(Instant),
    Busy,
}

#[derive(Debug, Default)]
struct Load {
    connections: usize,
    requests: usize,
    bytes: usize,
}

impl Table {
    pub(super) fn new(limits: Arc<TransportLimits>) -> Self {
        Self { limits, state: Mutex::default() }
    }

    /// A place for a connection. `None`: there is none, and every connection has a request at work.
    pub(super) fn admit(self: &Arc<Self>, peer: Peer, handshake: bool) -> Option<Place> {
        let mut state = self.state();
        let load = state.peers.get(&peer).map_or(0, |load| load.connections);
        if load >= self.limits.max_connections_per_peer
            && !state.evict(|entry| entry.peer == peer && entry.phase != Phase::Busy)
        {
            return None;
        }
        if state.connections.len() >= self.limits.max_connections
            && !state.evict(|entry| entry.phase != Phase::Busy)
        {
            return None;
        }
        let shaking = |entry: &Entry| matches!(entry.phase, Phase::Handshake(_));
        if handshake
            && state.connections.values().filter(|entry| shaking(entry)).count() >= self.limits.max_handshakes
        {
            state.evict(shaking);
        }
        let id = state.next;
        state.next = state.next.wrapping_add(1);
        let now = Instant::now();
        let phase = if handshake { Phase::Handshake(now) } else { Phase::Idle(now) };
        let evict = CancellationToken::new();
        state.connections.insert(id, Entry { peer, phase, evict: evict.clone() });
        state.peers.entry(peer).or_default().connections += 1;
        drop(state);
        Some(Place { table: Arc::clone(self), id, peer, evict })
    }

    /// Closes a connection that does nothing. Whether there was one.
    pub(super) fn make_room(&self) -> bool {
        self.state().evict(|entry| entry.phase != Phase::Busy)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Figures that a panic left behind are figures still.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes the place of one of these connections, and closes it: of the peer that has most of them the one that waits
    /// for longest.
    fn evict(&mut self, candidate: impl Fn(&Entry) -> bool) -> bool {
        let mut counts: HashMap<Peer, usize> = HashMap::new();
        for entry in self.connections.values().filter(|entry| candidate(entry)) {
            *counts.entry(entry.peer).or_default() += 1;
        }
        let since = |entry: &Entry| match entry.phase {
            Phase::Handshake(since) | Phase::Idle(since) => Some(since),
            Phase::Busy => None,
        };
        let candidates = self.connections.iter().filter(|(_, entry)| candidate(entry));
        let worst = candidates
            .filter_map(|(id, entry)| Some((*id, counts.get(&entry.peer).copied()?, since(entry)?)))
            .max_by(|a, b| a.1.cmp(&b.1).then(b.2.cmp(&a.2)));
        let Some((id, ..)) = worst else { return false };
        self.remove(id);
        true
    }

    fn remove(&mut self, id: u64) {
        let Some(entry) = self.connections.remove(&id) else { return };
        entry.evict.cancel();
        self.unload(entry.peer, |load| load.connections = load.connections.saturating_sub(1));
    }

    fn unload(&mut self, peer: Peer, change: impl FnOnce(&mut Load)) {
        let Some(load) = self.peers.get_mut(&peer) else { return };
        change(load);
        if load.connections == 0 && load.requests == 0 {
            self.peers.remove(&peer);
        }
    }

    fn set_phase(&mut self, id: u64, phase: Phase) {
        if let Some(entry) = self.connections.get_mut(&id) {
            entry.phase = phase;
        }
    }
}

/// A connection's place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    table: Arc<Table>,
    id: u64,
    peer: Peer,
    evict: CancellationToken,
}

impl Place {
    /// Cancelled when the place has gone to another.
    pub(super) fn evicted(&self) -> CancellationToken {
        self.evict.clone()
    }

    /// It has no request at work from now on.
    pub(super) fn idle(&self) {
        self.table.state().set_phase(self.id, Phase::Idle(Instant::now()));
    }

    /// It has a request at work from now on.
    pub(super) fn busy(&self) {
        self.table.state().set_phase(self.id, Phase::Busy);
    }

    /// Room for one more request of this peer.
    pub(super) fn request(&self) -> Result<Share, Full> {
        let limits = &self.table.limits;
        let mut state = self.table.state();
        let of_peer = state.peers.get(&self.peer).map_or(0, |load| load.requests);
        if state.requests >= limits.max_open_requests || of_peer >= limits.max_requests_per_peer {
            return Err(Full);
        }
        state.requests += 1;
        state.peers.entry(self.peer).or_default().requests += 1;
        drop(state);
        Ok(Share { table: Arc::clone(&self.table), peer: self.peer, bytes: 0 })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.table.state().remove(self.id);
    }
}

/// The room that one request takes, given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    table: Arc<Table>,
    peer: Peer,
    bytes: usize,
}

impl Share {
    /// Room for so many more bytes of the request.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Full> {
        let most = self.table.limits.max_buffered_bytes;
        let mut state = self.table.state();
        let of_peer = state.peers.get(&self.peer).map_or(0, |load| load.bytes);
        if state.bytes.saturating_add(bytes) > most || of_peer.saturating_add(bytes) > most / 4 {
            return Err(Full);
        }
        state.bytes += bytes;
        state.peers.entry(self.peer).or_default().bytes += bytes;
        self.bytes += bytes;
        Ok(())
    }

    /// The request's bytes are not needed any more.
    pub(super) fn shrink(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut state = self.table.state();
        state.bytes = state.bytes.saturating_sub(bytes);
        state.unload(self.peer, |load| load.bytes = load.bytes.saturating_sub(bytes));
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink();
        let mut state = self.table.state();
        state.requests = state.requests.saturating_sub(1);
        state.unload(self.peer, |load| load.requests = load.requests.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(change: impl FnOnce(&mut TransportLimits)) -> Arc<Table> {
        let mut limits = TransportLimits::default();
        change(&mut limits);
        Arc::new(Table::new(Arc::new(limits)))
    }

    fn peer(last: u8) -> Peer {
        Peer::at(IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn the_greediest_peer_s_longest_waiting_connection_gives_way() {
        let table = table(|limits| limits.max_connections = 4);
        let alone = table.admit(peer(1), true).unwrap();
        let [first, second, third] = [(); 3].map(|()| table.admit(peer(2), true).unwrap());
        first.busy();
        let next = table.admit(peer(3), true).unwrap();
        assert!(second.evicted().is_cancelled());
        for kept in [&alone, &first, &third, &next] {
            assert!(!kept.evicted().is_cancelled());
        }
        for place in [&alone, &first, &third, &next] {
            place.busy();
        }
        assert!(table.admit(peer(4), true).is_none(), "all are at work");
        assert!(!table.make_room());
        alone.idle();
        assert!(table.make_room() && alone.evicted().is_cancelled());
    }

    #[test]
    fn a_peer_takes_from_itself_alone() {
        let table = table(|limits| limits.max_connections_per_peer = 2);
        let other = table.admit(peer(1), false).unwrap();
        let [first, second, third] = [(); 3].map(|()| table.admit(peer(2), false).unwrap());
        assert!(first.evicted().is_cancelled() && !other.evicted().is_cancelled());
        for place in [&second, &third] {
            place.busy();
        }
        assert!(table.admit(peer(2), false).is_none());
        drop(second);
        assert!(table.admit(peer(2), false).is_some());
    }

    #[test]
    fn handshakes_give_way_to_handshakes() {
        let table = table(|limits| limits.max_handshakes = 2);
        let [first, second, third] = [(); 3].map(|()| table.admit(peer(1), true).unwrap());
        assert!(first.evicted().is_cancelled() && !second.evicted().is_cancelled());
        third.idle();
        let _fourth = table.admit(peer(1), true).unwrap();
        assert!(!second.evicted().is_cancelled(), "one handshake was over");
    }

    #[test]
    fn requests_and_their_bytes_are_counted_by_peer_and_in_all() {
        let table = table(|limits| {
            (limits.max_open_requests, limits.max_requests_per_peer) = (3, 2);
            limits.max_buffered_bytes = 400;
        });
        let [one, two] = [1, 2].map(|last| table.admit(peer(last), false).unwrap());
        let mut requests = [one.request().unwrap(), one.request().unwrap()];
        assert_eq!(one.request().unwrap_err(), Full);
        let other = two.request().unwrap();
        assert_eq!(two.request().unwrap_err(), Full, "three in all");
        requests[0].grow(60).unwrap();
        requests[1].grow(40).unwrap();
        assert_eq!(requests[1].grow(1), Err(Full), "a quarter of 400");
        requests[0].shrink();
        requests[1].grow(60).unwrap();
        drop((requests, other, one, two));
        let state = table.state();
        assert!(state.connections.is_empty() && state.peers.is_empty());
        assert_eq!((state.requests, state.bytes), (0, 0));
    }

    #[test]
    fn a_host_is_one_peer() {
        let at = |text: &str| Peer::at(text.parse().unwrap());
        assert_eq!(at("::ffff:192.0.2.1"), at("192.0.2.1"));
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:2"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_ne!(at("::1"), at("::2"));
    }
}
