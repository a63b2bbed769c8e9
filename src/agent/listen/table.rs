//! How many connections and requests there are, in all and of each peer, and who gives way when
//! there are too many.
//!
//! A flood may come from an address that honest clients share, as all port-forwards do, or from
//! many. So a limit does not turn the next one away: a connection is closed on which no request of
//! an authorised caller is at work. It is taken from the peer that has most of what is short, and
//! there it is the one that has most of it or, where all have the same, has waited for longest. An
//! honest client has little and has it for a moment. Only where there is no such connection the
//! next one is refused.

use std::{
    cmp::Reverse,
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
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
            IpAddr::V6(v6) if !v6.is_loopback() => {
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64))
            }
            other => other,
        })
    }
}

/// There is no room for a connection, a request or its bytes, and nobody gives way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// Which connections may be closed to make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spare {
    /// Those on which no request of an authorised caller is at work.
    Idle,
    /// Any but this one, which asks for the room and is told no: what is short is what nobody has
    /// vouched for, so that whoever has much of it is no honest client's connection.
    Other(u64),
}

/// All connections, and what each of them has taken.
#[derive(Debug)]
pub(super) struct Table {
    limits: Arc<TransportLimits>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    connections: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    peer: Peer,
    in_handshake: bool,
    /// Since when it has had no request of an authorised caller.
    since: Instant,
    requests: usize,
    /// How many of these are authorised.
    vouched: usize,
    bytes: usize,
    evict: CancellationToken,
}

impl Table {
    pub(super) fn new(limits: Arc<TransportLimits>) -> Self {
        Self { limits, state: Mutex::default() }
    }

    /// A place for a connection, which is to be [established](ConnectionSlot::establish).
    /// Handshakes give way to handshakes alone, so that half-open ones, which cost nothing, push
    /// out none that is in use.
    pub(super) fn admit(self: &Arc<Self>, peer: Peer) -> ConnectionSlot {
        let mut state = self.state();
        // There is always one that gives way, as none is at work yet.
        state.make_room(self.limits.max_handshakes, |entry| entry.in_handshake, |_| 1, Spare::Idle);
        let id = state.next;
        state.next = state.next.wrapping_add(1);
        let evict = CancellationToken::new();
        let entry = Entry {
            peer,
            in_handshake: true,
            since: Instant::now(),
            requests: 0,
            vouched: 0,
            bytes: 0,
            evict: evict.clone(),
        };
        state.connections.insert(id, entry);
        drop(state);
        ConnectionSlot { table: Arc::clone(self), id, peer, evict }
    }

    /// How long the next handshake should wait, so that none has to give way before it had `least`
    /// time. `None`: not at all.
    pub(super) fn handshake_wait(&self, least: Duration) -> Option<Duration> {
        let state = self.state();
        let handshakes = || state.connections.values().filter(|entry| entry.in_handshake);
        if handshakes().count() < self.limits.max_handshakes {
            return None;
        }
        let oldest = handshakes().map(|entry| entry.since).min()?;
        least.checked_sub(oldest.elapsed()).filter(|wait| !wait.is_zero())
    }

    /// Closes a connection on which nothing is at work. Returns whether there was one.
    pub(super) fn make_room(&self) -> bool {
        self.state().make_room(0, |_| true, |_| 1, Spare::Idle)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Figures that a panic left behind are figures still.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Sees to it that `these` connections have less than `most` of what `amount` counts, by
    /// closing one if need be.
    fn make_room(
        &mut self,
        most: usize,
        these: impl Fn(&Entry) -> bool,
        amount: impl Fn(&Entry) -> usize,
        spare: Spare,
    ) -> bool {
        let (mut total, mut of_peers): (usize, HashMap<Peer, usize>) = Default::default();
        for entry in self.connections.values().filter(|entry| these(entry)) {
            total = total.saturating_add(amount(entry));
            let of_peer = of_peers.entry(entry.peer).or_default();
            *of_peer = of_peer.saturating_add(amount(entry));
        }
        if total < most {
            return true;
        }
        let may_go = |entry: &Entry| entry.vouched == 0 || spare != Spare::Idle;
        let candidates = self.connections.iter().filter(|(_, entry)| these(entry) && may_go(entry));
        let worst = candidates
            .filter(|(_, entry)| amount(entry) > 0)
            .map(|(id, entry)| {
                (of_peers.get(&entry.peer), amount(entry), Reverse(entry.since), *id)
            })
            .max();
        match worst {
            Some((.., id)) if spare != Spare::Other(id) => {
                self.remove(id);
                true
            }
            _ => false,
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(entry) = self.connections.remove(&id) {
            entry.evict.cancel();
        }
    }
}

/// A connection's place, given back when dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    table: Arc<Table>,
    id: u64,
    peer: Peer,
    evict: CancellationToken,
}

impl ConnectionSlot {
    /// Who is at the other end.
    pub(super) fn peer(&self) -> Peer {
        self.peer
    }

    /// Cancelled when the place has gone to another.
    pub(super) fn evicted(&self) -> CancellationToken {
        self.evict.clone()
    }

    /// Its handshake is over, or there is none. Errors: there are enough connections, and none of
    /// them gives way.
    pub(super) fn establish(&self) -> Result<(), Full> {
        let limits = &self.table.limits;
        let mut state = self.table.state();
        let peer = state.connections.get(&self.id).ok_or(Full)?.peer;
        let of_peer = |entry: &Entry| !entry.in_handshake && entry.peer == peer;
        if !state.make_room(limits.max_connections_per_peer, of_peer, |_| 1, Spare::Idle)
            || !state.make_room(
                limits.max_connections,
                |entry| !entry.in_handshake,
                |_| 1,
                Spare::Idle,
            )
        {
            return Err(Full);
        }
        let entry = state.connections.get_mut(&self.id).ok_or(Full)?;
        entry.in_handshake = false;
        entry.since = Instant::now();
        Ok(())
    }

    /// Room for one more request of this peer.
    pub(super) fn request(&self) -> Result<Share, Full> {
        let limits = &self.table.limits;
        // Those of authorised callers are counted where they are let in.
        let requests = |entry: &Entry| entry.requests.saturating_sub(entry.vouched);
        let mut state = self.table.state();
        let peer = state.connections.get(&self.id).ok_or(Full)?.peer;
        let asking = Spare::Other(self.id);
        if !state.make_room(
            limits.max_requests_per_peer,
            |entry| entry.peer == peer,
            requests,
            asking,
        ) || !state.make_room(limits.max_open_requests, |_| true, requests, asking)
        {
            return Err(Full);
        }
        state.connections.get_mut(&self.id).ok_or(Full)?.requests += 1;
        drop(state);
        Ok(Share { table: Arc::clone(&self.table), id: self.id, bytes: 0, vouched: false })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.table.state().remove(self.id);
    }
}

/// The room that one request takes, given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    table: Arc<Table>,
    id: u64,
    bytes: usize,
    vouched: bool,
}

impl Share {
    /// Makes room for `more` bytes of the request.
    pub(super) fn grow(&mut self, more: usize) -> Result<(), Full> {
        if self.vouched {
            return Ok(());
        }
        let most = self.table.limits.max_buffered_bytes;
        let bytes = |entry: &Entry| entry.bytes;
        let mut state = self.table.state();
        let peer = state.connections.get(&self.id).ok_or(Full)?.peer;
        let asking = Spare::Other(self.id);
        // There is room for `more` below the limit if what is there is less than the limit without
        // it.
        let below = |most: usize| most.saturating_sub(more).saturating_add(1);
        if more > most / 4
            || !state.make_room(below(most / 4), |entry| entry.peer == peer, bytes, asking)
            || !state.make_room(below(most), |_| true, bytes, asking)
        {
            return Err(Full);
        }
        state.connections.get_mut(&self.id).ok_or(Full)?.bytes += more;
        self.bytes += more;
        Ok(())
    }

    /// Gives the request's bytes back.
    fn shrink(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if let Some(entry) = self.table.state().connections.get_mut(&self.id) {
            entry.bytes = entry.bytes.saturating_sub(bytes);
        }
    }

    /// The request is that of a caller who may make it: its connection does not give way to other
    /// connections until that is [over](Self::unvouch), and what it takes is counted elsewhere.
    pub(super) fn vouch(&mut self) {
        self.shrink();
        if let Some(entry) = self.table.state().connections.get_mut(&self.id)
            && !std::mem::replace(&mut self.vouched, true)
        {
            entry.vouched += 1;
        }
    }
}

impl Share {
    /// The request has been worked on. Its answer may still be on the way, for as long as the
    /// client likes.
    pub(super) fn unvouch(&mut self) {
        if std::mem::take(&mut self.vouched)
            && let Some(entry) = self.table.state().connections.get_mut(&self.id)
        {
            entry.vouched = entry.vouched.saturating_sub(1);
            entry.since = Instant::now();
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink();
        self.unvouch();
        if let Some(entry) = self.table.state().connections.get_mut(&self.id) {
            entry.requests = entry.requests.saturating_sub(1);
        }
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

    fn established(table: &Arc<Table>, last: u8) -> ConnectionSlot {
        let place = table.admit(peer(last));
        place.establish().unwrap();
        place
    }

    fn vouched(place: &ConnectionSlot) -> Share {
        let mut share = place.request().unwrap();
        share.vouch();
        share
    }

    fn gone(place: &ConnectionSlot) -> bool {
        place.evicted().is_cancelled()
    }

    #[test]
    fn the_greediest_peer_s_longest_waiting_connection_gives_way() {
        let table = table(|limits| limits.max_connections = 4);
        let alone = established(&table, 1);
        let [first, second, third] = [(); 3].map(|()| established(&table, 2));
        let _at_work = vouched(&first);
        let next = established(&table, 3);
        assert!(gone(&second), "the first is at work for somebody");
        assert!([&alone, &first, &third, &next].into_iter().all(|place| !gone(place)));
        let work = [&alone, &third, &next].map(vouched);
        assert_eq!(table.admit(peer(4)).establish(), Err(Full), "all are at work");
        assert!(!table.make_room());
        drop(work);
        assert!(
            table.make_room() && gone(&third),
            "one that is not at work, of the peer that has two"
        );
        assert!(
            table.make_room() && gone(&alone),
            "of peers that have one each, the one that waits for longest"
        );
    }

    #[test]
    fn requests_that_nobody_vouches_for_do_not_hold_a_place() {
        let table = table(|limits| limits.max_connections = 2);
        let [first, second] = [(); 2].map(|()| established(&table, 1));
        let (_unknown, _at_work) = (first.request().unwrap(), vouched(&second));
        let _next = established(&table, 2);
        assert!(gone(&first) && !gone(&second));
        assert_eq!(first.request().unwrap_err(), Full, "its place is another's");
    }

    #[test]
    fn a_peer_takes_from_itself_alone() {
        let table = table(|limits| limits.max_connections_per_peer = 2);
        let other = established(&table, 1);
        let [first, second, third] = [(); 3].map(|()| established(&table, 2));
        assert!(gone(&first) && !gone(&other));
        let _work = [&second, &third].map(vouched);
        assert_eq!(table.admit(peer(2)).establish(), Err(Full));
        drop(second);
        assert_eq!(table.admit(peer(2)).establish(), Ok(()));
    }

    #[test]
    fn handshakes_give_way_to_handshakes_alone() {
        let table = table(|limits| (limits.max_handshakes, limits.max_connections) = (2, 1));
        let in_use = established(&table, 1);
        let [first, second, third] = [(); 3].map(|()| table.admit(peer(1)));
        assert!(gone(&first) && !gone(&second) && !gone(&in_use));
        third.establish().unwrap();
        assert!(gone(&in_use));
        let _fourth = table.admit(peer(1));
        assert!(!gone(&second), "one handshake was over");
        // The pool is full again: the next is to wait for the second's sake.
        assert!(table.handshake_wait(Duration::from_secs(3600)).is_some());
        assert_eq!(table.handshake_wait(Duration::ZERO), None);
        drop(second);
        assert_eq!(table.handshake_wait(Duration::from_secs(3600)), None);
    }

    #[test]
    fn the_connection_with_most_requests_gives_way_but_not_to_itself() {
        let table =
            table(|limits| (limits.max_open_requests, limits.max_requests_per_peer) = (4, 3));
        let [greedy, honest, neighbour] = [1, 2, 1].map(|last| established(&table, last));
        let _many = [(); 3].map(|()| greedy.request().unwrap());
        assert_eq!(greedy.request().unwrap_err(), Full);
        assert!(!gone(&greedy));
        let _one = honest.request().unwrap();
        let _next = neighbour.request().unwrap();
        assert!(gone(&greedy) && !gone(&honest));
    }

    #[test]
    fn bytes_are_counted_by_peer_and_in_all_and_given_back() {
        let table = table(|limits| limits.max_buffered_bytes = 400);
        let [one, two, other] = [1, 1, 2].map(|last| established(&table, last));
        let mut requests = [&one, &two, &other].map(|place| place.request().unwrap());
        requests[0].grow(40).unwrap();
        requests[1].grow(60).unwrap();
        assert_eq!(requests[1].grow(1), Err(Full), "a quarter of 400");
        requests[2].grow(100).unwrap();
        requests[0].vouch();
        requests[1].grow(40).unwrap();
        requests[0].grow(500).unwrap();
        drop((requests, one, two, other));
        assert!(table.state().connections.is_empty());
    }

    #[test]
    fn what_is_authorised_does_not_protect_what_is_not() {
        let table = table(|limits| limits.max_requests_per_peer = 4);
        let [greedy, honest] = [1, 1].map(|last| established(&table, last));
        let _work = vouched(&greedy);
        let _more = [(); 3].map(|()| greedy.request().unwrap());
        let mut share = vouched(&honest);
        let _next = honest.request().unwrap();
        assert!(!gone(&greedy) && !gone(&honest), "authorised ones do not count");
        let _last = honest.request().unwrap();
        assert!(gone(&greedy) && !gone(&honest));
        // Once it has been worked on, the answer alone holds no place.
        share.unvouch();
        assert!(table.make_room() && gone(&honest));
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
