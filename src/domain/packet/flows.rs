//! The first sequence numbers of TCP connections, which later ones are printed relative to.
//!
//! Each direction of a connection counts from a number of its own, so a [`Base`] holds two. They
//! are learned from the first segment that acknowledges something, a SYN-ACK or, if the capture
//! began later, any other: its sequence number is the base of its direction, and one less than what
//! it acknowledges the base of the other. A SYN-ACK replaces what was known, because ports are
//! reused.
//!
//! Memory is bounded by two generations. New connections enter the recent one; when that is full it
//! becomes the older one, and the older one is dropped. A connection that is seen moves back to the
//! recent generation, so only those that were silent for at least [`KEPT`] others are forgotten.
//! This takes two hash look-ups and no list of ages. The numbers of a forgotten connection start
//! again with its next segment.

use std::collections::HashMap;

/// How many connections a generation holds: at least this many are kept, and at most twice as many.
const KEPT: usize = 16_384;

/// A connection in either direction. The end with the lower port, or else the lower address, comes
/// first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    /// Addresses and ports of both ends. IPv4 addresses fill the first four bytes.
    ends: [([u8; 16], u16); 2],
    is_v6: bool,
}

impl Flow {
    /// The connection between two ends, and whether the segment goes from the second to the first.
    pub(super) fn between(
        source: ([u8; 16], u16),
        destination: ([u8; 16], u16),
        is_v6: bool,
    ) -> (Self, bool) {
        let reverse = (source.1, source.0) > (destination.1, destination.0);
        let ends = if reverse { [destination, source] } else { [source, destination] };
        (Self { ends, is_v6 }, reverse)
    }
}

/// The numbers from which the first and the second end count.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Base {
    pub(super) first: u32,
    pub(super) second: u32,
}

/// The connections that were seen, in two generations.
#[derive(Debug, Default)]
pub(super) struct Flows {
    recent: HashMap<Flow, Base>,
    older: HashMap<Flow, Base>,
}

impl Flows {
    /// The base of a connection, if that is known.
    pub(super) fn get(&mut self, flow: &Flow) -> Option<Base> {
        if let Some(base) = self.recent.get(flow) {
            return Some(*base);
        }
        let base = self.older.remove(flow)?;
        self.insert(*flow, base);
        Some(base)
    }

    /// Sets the base of a connection.
    pub(super) fn insert(&mut self, flow: Flow, base: Base) {
        if self.recent.len() >= KEPT && !self.recent.contains_key(&flow) {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.insert(flow, base);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_connections_are_forgotten() {
        let mut flows = Flows::default();
        let flow = |port| Flow::between(([1; 16], port), ([2; 16], 9), false).0;
        for port in 0..u16::MAX {
            flows.insert(flow(port), Base { first: port.into(), second: 0 });
            // One that is seen all the time.
            assert!(flows.get(&flow(0)).is_some());
            assert!(flows.recent.len() + flows.older.len() <= 2 * KEPT);
        }
        assert!(flows.get(&flow(1)).is_none());
        assert_eq!(
            flows.get(&flow(u16::MAX - 1)).map(|base| base.first),
            Some(u32::from(u16::MAX) - 1)
        );
    }
}
