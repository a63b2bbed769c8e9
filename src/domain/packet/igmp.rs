//! IGMP. <https://www.rfc-editor.org/rfc/rfc3376>

use super::{
    Dissector, Result,
    checksum::Sum,
    names::group_record,
    text::{Hex, Show, Span, V4, named},
};

impl Dissector<'_> {
    pub(super) fn igmp(&mut self, at: usize, length: usize) -> Result {
        self.protocol = "igmp";
        if self.quiet() {
            self.put("igmp");
            return Ok(());
        }
        let kind = self.u8(at)?;
        match kind {
            0x11 => {
                self.put("igmp query");
                self.igmp_query(at, length)?;
            }
            0x12 => {
                self.put(("igmp v1 report ", self.v4(at + 4)?));
                if length != 8 {
                    self.put((" [len ", length, "]"));
                }
            }
            0x16 => self.put(("igmp v2 report ", self.v4(at + 4)?)),
            0x17 => self.put(("igmp leave ", self.v4(at + 4)?)),
            0x22 => {
                self.put("igmp v3 report");
                self.igmp_report(at, length)?;
            }
            0x13 => self.put("igmp dvmrp"),
            0x14 => self.put("igmp pimv1"),
            0x1e => self.multicast_trace("mresp", at, length)?,
            0x1f => self.multicast_trace("mtrace", at, length)?,
            other => self.put(("igmp-", other)),
        }
        if self.verbose()
            && length >= 4
            && let Ok(bytes) = self.bytes(at, length)
        {
            let found = self.u16(at + 2)?;
            if Sum::default().add(bytes).should_be(found).is_some() {
                self.put((" bad igmp cksum ", Hex(found.into()), "!"));
            }
        }
        Ok(())
    }

    fn multicast_trace(&mut self, name: &str, at: usize, length: usize) -> Result {
        if length < 24 {
            self.put((" [invalid len ", length, "]"));
            return Ok(());
        }
        let (source, destination, reply) = (self.v4(at + 8)?, self.v4(at + 12)?, self.v4(at + 16)?);
        let id = self.u24(at + 21)?;
        self.put((name, " ", id, ": ", source, " to ", destination, " reply-to ", reply));
        // Group addresses are multicast addresses.
        if reply.0.first().is_some_and(|byte| byte >> 4 == 0xe) {
            self.put((" with-ttl ", self.u8(at + 20)?));
        }
        Ok(())
    }

    fn igmp_query(&mut self, at: usize, length: usize) -> Result {
        if length >= 12 {
            self.put(" v3");
        }
        if length >= 12 && length & 3 != 0 {
            self.put((" [invalid len ", length, "]"));
            return Ok(());
        }
        let code = self.u8(at + 1)?;
        if length < 12 {
            self.put(if code == 0 { " v1" } else { " v2" });
            if code != 0 && code != 100 {
                self.put((" [max resp time ", code, "]"));
            }
            if self.u32(at + 4)? != 0 {
                self.put((" [gaddr ", self.v4(at + 4)?, "]"));
            }
            if length != 8 {
                self.put((" [len ", length, "]"));
            }
            return Ok(());
        }
        if code != 100 {
            let code = u32::from(code);
            let tenths =
                if code < 128 { code } else { (code & 0xf | 0x10) << ((code >> 4 & 7) + 3) };
            self.put(" [max resp time ");
            if tenths < 600 {
                self.put((tenths / 10, ".", tenths % 10, "s"));
            } else {
                self.put(Span(tenths / 10));
            }
            self.put("]");
        }
        if self.u32(at + 4)? == 0 {
            return Ok(());
        }
        self.put((" [gaddr ", self.v4(at + 4)?));
        let sources = usize::from(self.u16(at + 10)?);
        if sources > 0 {
            if length < 12 + sources * 4 {
                self.put(" [invalid number of sources]");
            } else if self.options.verbose > 1 {
                self.group_sources(at + 12, sources, V4)?;
            } else {
                self.put((", ", sources, " source(s)"));
            }
        }
        self.put("]");
        Ok(())
    }

    fn igmp_report(&mut self, at: usize, length: usize) -> Result {
        if length < 16 || length & 3 != 0 {
            self.put((" [invalid len ", length, "]"));
            return Ok(());
        }
        self.group_records(at, length, V4, 3)
    }

    /// Prints the records of an IGMPv3 report, or of an MLDv2 report, whose addresses are longer.
    pub(super) fn group_records<const N: usize, A: Show>(
        &mut self,
        at: usize,
        length: usize,
        address: fn([u8; N]) -> A,
        version: u8,
    ) -> Result {
        let groups = self.u16(at + 6)?;
        self.put((", ", groups, " group record(s)"));
        if !self.verbose() {
            return Ok(());
        }
        let header = 4 + N;
        let mut offset = 8;
        for _ in 0..groups {
            if length < offset + header {
                self.put(" [invalid number of groups]");
                return Ok(());
            }
            let group = at + offset;
            self.put((" [gaddr ", self.array(group + 4).map(address)?));
            let kind = self.u8(group)?;
            self.put((" ", named(group_record(kind), (" [v", version, "-report-#", kind, "]"))));
            let sources = usize::from(self.u16(group + 2)?);
            if length < offset + header + sources * N {
                self.put((" [invalid number of sources ", sources, "]"));
                return Ok(());
            }
            if self.options.verbose == 1 {
                self.put((", ", sources, " source(s)"));
            } else {
                self.group_sources(group + header, sources, address)?;
            }
            offset += header + sources * N;
            self.put("]");
        }
        Ok(())
    }

    pub(super) fn group_sources<const N: usize, A: Show>(
        &mut self,
        at: usize,
        sources: usize,
        address: fn([u8; N]) -> A,
    ) -> Result {
        self.put(" {");
        for number in 0..sources {
            self.put((" ", self.array(at + N * number).map(address)?));
        }
        self.put(" }");
        Ok(())
    }
}
