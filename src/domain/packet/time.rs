//! Timestamps, in the formats of tcpdump's `-t`.

use jiff::Timestamp;

use super::{
    PrintOptions,
    text::{Digits, Show},
};

/// The packet that timestamps are relative to, and the last date and time, which most packets
/// share.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// The time of the first packet or of the previous one, in nanoseconds since 1970; 0 before
    /// the first packet.
    reference: u64,
    /// The second that `local` describes.
    second: Option<u64>,
    /// Date and time as `YYYY-MM-DD HH:MM:SS`.
    local: [u8; 19],
}

const SECOND: u64 = 1_000_000_000;

impl Clock {
    /// Prints the timestamp and a space, as the options say.
    pub(super) fn print(&mut self, options: &PrintOptions, timestamp: u64, out: &mut Vec<u8>) {
        // tcpdump subtracts after rounding down, so differences are of the printed times.
        let timestamp = if options.nanoseconds { timestamp } else { timestamp / 1000 * 1000 };
        match options.timestamps {
            0 | 4 => {
                let local = match self.local(options, timestamp / SECOND) {
                    Some(local) if options.timestamps == 0 => local.get(11..),
                    Some(local) => Some(local),
                    None => None,
                };
                stamp(options, local, timestamp, out);
            }
            2 => {
                let second = timestamp / SECOND;
                if is_32_bit(second) {
                    second.show(out);
                    fraction(options, timestamp, out);
                    out.push(b' ');
                } else {
                    stamp(options, None, timestamp, out);
                }
            }
            3 | 5 => {
                if self.reference == 0 {
                    self.reference = timestamp;
                }
                out.push(if timestamp < self.reference { b'-' } else { b' ' });
                let apart = timestamp.abs_diff(self.reference);
                let second = apart / SECOND;
                let mut time = Vec::new();
                time_of_day(second, &mut time);
                stamp(options, is_32_bit(second).then_some(time.as_slice()), apart, out);
                if options.timestamps == 3 {
                    self.reference = timestamp;
                }
            }
            _ => {}
        }
    }

    /// Date and time in the options' zone, if the second is one that tcpdump can print.
    fn local(&mut self, options: &PrintOptions, second: u64) -> Option<&[u8]> {
        if !is_32_bit(second) {
            return None;
        }
        if self.second != Some(second) {
            let timestamp = Timestamp::from_second(i64::try_from(second).ok()?).ok()?;
            let time = options.time_zone.to_datetime(timestamp);
            let number = |value: i8| u32::from(value.unsigned_abs());
            let mut text = Vec::with_capacity(self.local.len());
            let year = u32::from(time.year().unsigned_abs());
            (
                Digits::<4>(year),
                "-",
                Digits::<2>(number(time.month())),
                "-",
                Digits::<2>(number(time.day())),
                " ",
            )
                .show(&mut text);
            (Digits::<2>(number(time.hour())), ":", Digits::<2>(number(time.minute())), ":")
                .show(&mut text);
            Digits::<2>(number(time.second())).show(&mut text);
            self.local = text.try_into().ok()?;
            self.second = Some(second);
        }
        Some(&self.local)
    }
}

/// Whether a number of seconds fits into 31 bits, which is what tcpdump can print.
fn is_32_bit(second: u64) -> bool {
    second & 0x8000_0000 == 0
}

fn stamp(options: &PrintOptions, time: Option<&[u8]>, timestamp: u64, out: &mut Vec<u8>) {
    match time {
        Some(time) => {
            time.show(out);
            fraction(options, timestamp, out);
        }
        None => "[Error converting time]".show(out),
    }
    out.push(b' ');
}

fn fraction(options: &PrintOptions, timestamp: u64, out: &mut Vec<u8>) {
    let nanoseconds = u32::try_from(timestamp % SECOND).unwrap_or_default();
    if options.nanoseconds {
        (".", Digits::<9>(nanoseconds)).show(out);
    } else {
        (".", Digits::<6>(nanoseconds / 1000)).show(out);
    }
}

fn time_of_day(second: u64, out: &mut Vec<u8>) {
    let of_day = u32::try_from(second % 86_400).unwrap_or_default();
    (Digits::<2>(of_day / 3600), ":", Digits::<2>(of_day / 60 % 60), ":", Digits::<2>(of_day % 60))
        .show(out);
}
