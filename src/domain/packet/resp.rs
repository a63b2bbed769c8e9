//! RESP, the protocol of Redis. <https://redis.io/docs/latest/develop/reference/protocol-spec/>

use super::{Dissector, Result, text::Escaped};

/// How many bytes an item took, or `None` if it is incomplete or what follows it cannot be found.
type Taken = Result<Option<usize>>;

/// The length of a string or an array, or what stands in its place.
enum Length {
    Known(usize),
    /// Prints that the string or array is null, or why its length is not valid.
    Said(&'static str),
    NotWhole,
}

impl Dissector<'_> {
    pub(super) fn resp(&mut self, mut at: usize, length: usize) -> Result {
        self.protocol = "resp";
        self.put(": RESP");
        let end = at + length;
        while at < end {
            match self.resp_item(at, end)? {
                Some(taken) => at += taken,
                None => {
                    self.truncated();
                    break;
                }
            }
        }
        Ok(())
    }

    fn resp_item(&mut self, at: usize, end: usize) -> Taken {
        if at >= end {
            return Ok(None);
        }
        match self.u8(at)? {
            b'+' | b'-' | b':' => {
                let Some(line_end) = self.find_line_end(at + 1, end) else { return Ok(None) };
                self.resp_text(at + 1, line_end);
                Ok(Some(line_end + 2 - at))
            }
            b'$' => self.resp_string(at, end),
            b'*' => {
                let mut taken = None;
                self.nested(|this| {
                    taken = this.resp_array(at, end)?;
                    Ok(())
                })?;
                Ok(taken)
            }
            _ => self.resp_inline(at, end),
        }
    }

    fn resp_text(&mut self, at: usize, end: usize) {
        self.put((" \"", Escaped(self.up_to(at, end - at)), "\""));
    }

    fn resp_string(&mut self, at: usize, end: usize) -> Taken {
        let (length, mut here) = self.resp_length(at + 1, end)?;
        match length {
            Length::Known(0) => self.put(" empty"),
            Length::Known(length) => {
                if end.saturating_sub(here) < length || !self.has(here, length) {
                    return Ok(None);
                }
                self.resp_text(here, here + length);
                here += length;
            }
            Length::Said(what) => {
                self.put(what);
                return Ok(Some(here - at));
            }
            Length::NotWhole => return Ok(None),
        }
        Ok(self.find_line_end(here, end).map(|line_end| line_end + 2 - at))
    }

    fn resp_array(&mut self, at: usize, end: usize) -> Taken {
        let (length, mut here) = self.resp_length(at + 1, end)?;
        match length {
            Length::Known(0) => self.put(" empty"),
            Length::Known(items) => {
                for _ in 0..items {
                    let Some(taken) = self.resp_item(here, end)? else { return Ok(None) };
                    here += taken;
                }
            }
            Length::Said(what) => self.put(what),
            Length::NotWhole => return Ok(None),
        }
        Ok(Some(here - at))
    }

    /// Prints an inline command: a line, as a person types it.
    fn resp_inline(&mut self, at: usize, end: usize) -> Taken {
        let is_end = |byte| matches!(byte, Ok(b'\r' | b'\n'));
        let mut here = at;
        while here < end && is_end(self.u8(here)) {
            here += 1;
        }
        if here == at && !self.has(here, 1) {
            return Ok(None);
        }
        let begin = here;
        loop {
            if here >= end {
                return Ok(None);
            }
            if matches!(self.u8(here)?, b'\r' | b'\n') {
                break;
            }
            here += 1;
        }
        self.resp_text(begin, here);
        while here < end && is_end(self.u8(here)) {
            here += 1;
        }
        Ok(Some(here - at))
    }

    /// The position of the end of the line.
    fn find_line_end(&self, at: usize, end: usize) -> Option<usize> {
        let text = self.up_to(at, end.saturating_sub(at));
        text.windows(2).position(|pair| pair == b"\r\n").map(|offset| at + offset)
    }

    /// Reads a length and the end of its line. Returns also the position behind it.
    fn resp_length(&mut self, at: usize, end: usize) -> Result<(Length, usize)> {
        let mut here = at;
        if here >= end {
            return Ok((Length::NotWhole, here));
        }
        let negative = self.u8(here)? == b'-';
        here += usize::from(negative);
        let digits = here;
        // tcpdump computes with signed 32 bits.
        let mut value = Some(0_i32);
        loop {
            if here >= end {
                return Ok((Length::NotWhole, here));
            }
            let byte = self.u8(here)?;
            if !byte.is_ascii_digit() {
                break;
            }
            let digit = i32::from(byte - b'0');
            value = value.and_then(|value| value.checked_mul(10)?.checked_add(digit));
            here += 1;
        }
        const INVALID: &str = " invalid";
        if here == digits || self.u8(here)? != b'\r' {
            return Ok((Length::Said(INVALID), here + 1));
        }
        here += 1;
        if here >= end {
            return Ok((Length::NotWhole, here));
        }
        if self.u8(here)? != b'\n' {
            return Ok((Length::Said(INVALID), here + 1));
        }
        here += 1;
        let length = match value {
            Some(1) if negative => Length::Said(" null"),
            _ if negative => Length::Said(" length negative and not -1"),
            Some(value) => Length::Known(usize::try_from(value).unwrap_or_default()),
            None => Length::Said(" length too large"),
        };
        Ok((length, here))
    }
}
