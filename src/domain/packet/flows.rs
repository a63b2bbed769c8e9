//! The first sequence numbers of TCP connections, which later ones are printed relative to.

use std::collections::HashMap;

/// How many connections are kept at least; twice as many at most.
const KEPT: usize = 16_384;

/// A connection, whichever way a segment goes: the end with the lower port, then the lower address,
/// comes first.
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

/// Where counting begins, for the first and for the second end.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Base {
    pub(super) first: u32,
    pub(super) second: u32,
}

/// Connections that were seen. Those not seen for long are forgotten.
#[derive(Debug, Default)]
pub(super) struct Flows {
    recent: HashMap<Flow, Base>,
    older: HashMap<Flow, Base>,
}

impl Flows {
    /// Where counting begins in a connection, if it was seen.
    pub(super) fn get(&mut self, flow: &Flow) -> Option<Base> {
        if let Some(base) = self.recent.get(flow) {
            return Some(*base);
        }
        let base = self.older.remove(flow)?;
        self.insert(*flow, base);
        Some(base)
    }

    /// Begins counting.
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
