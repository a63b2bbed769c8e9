//! Orders the blocks of several pods by time. Each block waits a moment for earlier ones of other
//! pods. The order of one pod's blocks never changes.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;

/// Bytes that may wait. When there are more, the earliest blocks leave at once.
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// A waiting block and the pod that it comes from.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Waiting {
    /// Nanoseconds since 1970, raised to the time of the same pod's previous block.
    time: u64,
    /// Counts all blocks, so that blocks with equal times leave in the order of arrival.
    number: u64,
    pub(super) source: usize,
    pub(super) block: Bytes,
}

/// The blocks that wait, ordered by time.
pub(super) struct Window {
    length: Duration,
    blocks: BinaryHeap<Reverse<Waiting>>,
    /// The arrival of each block, in order, with the block's time and number.
    arrivals: VecDeque<(Instant, (u64, u64))>,
    /// Time of each pod's last block.
    last: Vec<u64>,
    bytes: usize,
    number: u64,
}

impl Window {
    pub(super) fn new(sources: usize, length: Duration) -> Self {
        Self {
            length,
            blocks: BinaryHeap::new(),
            arrivals: VecDeque::new(),
            last: vec![0; sources],
            bytes: 0,
            number: 0,
        }
    }

    /// Adds a block. `time` is `None` for a block that is not a packet.
    pub(super) fn push(&mut self, now: Instant, source: usize, time: Option<u64>, block: Bytes) {
        let Some(last) = self.last.get_mut(source) else { return };
        let time = time.unwrap_or(0).max(*last);
        *last = time;
        self.bytes += block.len();
        self.number += 1;
        self.arrivals.push_back((now, (time, self.number)));
        self.blocks.push(Reverse(Waiting { time, number: self.number, source, block }));
    }

    /// The instant at which the next block has waited long enough.
    pub(super) fn due(&self) -> Option<Instant> {
        self.arrivals.front().map(|(came, _)| *came + self.length)
    }

    /// Removes the next block that has waited long enough, that must leave because of the size
    /// limit, or that is earlier than such a block. A `now` of `None` removes all blocks in turn.
    pub(super) fn pop(&mut self, now: Option<Instant>) -> Option<Waiting> {
        let Reverse(first) = self.blocks.peek()?;
        // Drops the arrivals of blocks that left together with a later one.
        let gone = |(_, key): &(Instant, (u64, u64))| *key < (first.time, first.number);
        while self.arrivals.front().is_some_and(gone) {
            self.arrivals.pop_front();
        }
        let is_due = match (now, self.due()) {
            (Some(now), Some(due)) => due <= now,
            _ => true,
        };
        if !is_due && self.bytes <= MOST_BYTES {
            return None;
        }
        let Reverse(first) = self.blocks.pop()?;
        self.bytes -= first.block.len();
        if self.blocks.is_empty() {
            self.arrivals.clear();
        }
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LENGTH: Duration = Duration::from_millis(10);

    fn all(window: &mut Window, now: Option<Instant>) -> Vec<(usize, u8)> {
        std::iter::from_fn(|| window.pop(now)).map(|first| (first.source, first.block[0])).collect()
    }

    #[test]
    fn blocks_wait_for_earlier_ones_of_other_pods() {
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut window = Window::new(2, LENGTH);
        let block = |number: u8| Bytes::from(vec![number]);
        window.push(after(0), 0, Some(100), block(1));
        window.push(after(1), 0, Some(300), block(2));
        window.push(after(2), 1, Some(200), block(3));
        assert_eq!(all(&mut window, Some(after(9))), []);
        assert_eq!(window.due(), Some(after(10)));
        assert_eq!(all(&mut window, Some(after(10))), [(0, 1)]);
        // The block that came last leaves with the one that waited for it.
        assert_eq!(all(&mut window, Some(after(11))), [(1, 3), (0, 2)]);
        assert_eq!(window.due(), None);
        // A block without a time stays behind the packet before it; a late packet leaves at once.
        window.push(after(20), 0, Some(500), block(4));
        window.push(after(20), 0, None, block(5));
        window.push(after(25), 1, Some(400), block(6));
        assert_eq!(all(&mut window, Some(after(30))), [(1, 6), (0, 4), (0, 5)]);
    }

    #[test]
    fn a_pod_whose_clock_is_behind_does_not_hold_up_the_others() {
        let start = Instant::now();
        let mut window = Window::new(2, LENGTH);
        window.push(start, 0, Some(1_000_000), Bytes::from_static(b"f"));
        for step in 1..100 {
            let now = start + Duration::from_millis(step);
            window.push(now, 1, Some(step), Bytes::from_static(b"s"));
            let went: Vec<_> = all(&mut window, Some(now));
            if step >= 10 {
                return assert!(went.contains(&(0, b'f')), "{went:?}");
            }
        }
    }

    #[test]
    fn what_waits_is_bounded() {
        let now = Instant::now();
        let mut window = Window::new(1, LENGTH);
        for time in 0..100 {
            window.push(now, 0, Some(time), Bytes::from(vec![0; MOST_BYTES / 10]));
            while window.pop(Some(now)).is_some() {}
            assert!(window.bytes <= MOST_BYTES);
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_the_order_of_a_pod_stays(
            blocks in prop::collection::vec(
                (0..3usize, prop::option::of(0..50u64), 0..8u64), 0..100
            )
        ) {
            let mut now = Instant::now();
            let mut window = Window::new(3, LENGTH);
            let mut went = Vec::new();
            for (number, (source, time, later)) in (0u8..).zip(&blocks) {
                now += Duration::from_millis(*later);
                window.push(now, *source, *time, Bytes::from(vec![number]));
                went.extend(all(&mut window, Some(now)));
            }
            went.extend(all(&mut window, None));
            prop_assert_eq!(went.len(), blocks.len());
            for source in 0..3 {
                let of_source: Vec<u8> =
                    went.iter().filter(|(s, _)| *s == source).map(|(_, n)| *n).collect();
                prop_assert!(of_source.is_sorted(), "{:?}", of_source);
            }
        }
    }
}
