//! Overlay networks, which carry Ethernet in UDP.
//! <https://www.rfc-editor.org/rfc/rfc7348>, <https://www.rfc-editor.org/rfc/rfc8926>

use super::{
    Dissector, Result,
    names::ethertype,
    text::{Flags, Hex, Padded},
};

const HEADER: usize = 8;

impl Dissector<'_> {
    pub(super) fn vxlan(&mut self, at: usize, length: usize) -> Result {
        self.protocol = "vxlan";
        self.put("VXLAN");
        if length < HEADER {
            self.invalid();
            return Ok(());
        }
        let flags = self.u8(at)?;
        let name = if flags & 8 == 0 { "invalid" } else { "I" };
        self.put((", flags [", name, "] (0x", Padded::<2>(flags.into()), "), "));
        self.put(("vni ", self.u24(at + 4)?, "\n"));
        self.need(at + 7, 1)?;
        self.inner_ethernet(at + HEADER, length - HEADER)
    }

    /// Port 8472, which Linux and flannel use for VXLAN and tcpdump takes for OTV. The headers have
    /// the same form.
    pub(super) fn otv(&mut self, at: usize, length: usize) -> Result {
        self.protocol = "otv";
        self.put("OTV, ");
        if length < HEADER {
            self.put(("[length ", length, " < 8]"));
            self.invalid();
            return self.need(at, length);
        }
        let flags = self.u8(at)?;
        let name = if flags & 8 == 0 { "." } else { "I" };
        self.put(("flags [", name, "] (0x", Padded::<2>(flags.into()), "), "));
        self.put(("overlay ", self.u24(at + 1)?, ", "));
        self.put(("instance ", self.u24(at + 4)?, "\n"));
        self.need(at + 7, 1)?;
        self.inner_ethernet(at + HEADER, length - HEADER)
    }

    pub(super) fn geneve(&mut self, at: usize, length: usize) -> Result {
        self.protocol = "geneve";
        self.put("Geneve");
        if length < HEADER {
            self.put((" [length ", length, " < 8]"));
            self.invalid();
            return Ok(());
        }
        if !self.has(at, HEADER) {
            self.truncated();
            return Ok(());
        }
        let first = self.u8(at)?;
        if first >> 6 != 0 {
            self.put((" ERROR: unknown-version ", first >> 6));
            return Ok(());
        }
        let names = [
            (0x80, "O"),
            (0x40, "C"),
            (0x20, "R1"),
            (0x10, "R2"),
            (8, "R3"),
            (4, "R4"),
            (2, "R5"),
            (1, "R6"),
        ];
        let flags = Flags { value: self.u8(at + 1)?.into(), names: &names, between: "" };
        self.put((", Flags [", flags, "], vni 0x", Hex(self.u24(at + 4)?)));
        let reserved = self.u8(at + 7)?;
        if reserved != 0 {
            self.put((", rsvd 0x", Hex(reserved.into())));
        }
        let kind = self.u16(at + 2)?;
        if self.link_layer() {
            let name = ethertype(kind).unwrap_or("unknown");
            self.put((", proto ", name, " (0x", Padded::<4>(kind.into()), ")"));
        }
        let options = usize::from(first & 0x3f) * 4;
        let rest = length - HEADER;
        if rest < options {
            self.put((" truncated-geneve - ", options - rest, " bytes missing"));
            return Ok(());
        }
        if !self.has(at + HEADER, options) {
            self.truncated();
            return Ok(());
        }
        if options > 0 {
            self.put(", options [");
            if self.verbose() {
                self.geneve_options(at + HEADER, options)?;
            } else {
                self.put((options, " bytes"));
            }
            self.put("]");
        }
        self.put(if self.verbose() { "\n\t" } else { ": " });
        let (inner, length) = (at + HEADER + options, rest - options);
        if self.by_ethertype(kind, inner, length)? {
            return Ok(());
        }
        if kind == 0x6558 {
            return self.inner_ethernet(inner, length);
        }
        self.put(("geneve-proto-0x", Hex(kind.into())));
        Ok(())
    }

    fn geneve_options(&mut self, mut at: usize, mut left: usize) -> Result {
        let mut between = "";
        while left > 0 {
            self.put(between);
            between = ", ";
            let (class, kind) = (self.u16(at)?, self.u8(at + 2)?);
            let length = 4 + usize::from(self.u8(at + 3)? & 0x1f) * 4;
            let name = match class {
                0x0100 => "Linux",
                0x0101 => "Open vSwitch",
                0x0102 => "Open Virtual Networking (OVN)",
                0x0103 => "In-band Network Telemetry (INT)",
                0x0104 => "VMware",
                0..=0x00ff => "Standard",
                0xfff0.. => "Experimental",
                _ => "Unknown",
            };
            let critical = if kind & 0x80 == 0 { "" } else { "(C)" };
            self.put((
                "class ",
                name,
                " (0x",
                Hex(class.into()),
                ") type 0x",
                Hex(kind.into()),
                critical,
                " len ",
            ));
            self.put(length);
            if length > left {
                self.put(" [bad length]");
                return Ok(());
            }
            if self.options.verbose > 1 && length > 4 {
                self.put(" data");
                for offset in (4..length).step_by(4) {
                    self.put((" ", Padded::<8>(self.u32(at + offset)?)));
                }
            }
            at += length;
            left -= length;
        }
        Ok(())
    }

    /// Prints an Ethernet frame in a packet.
    pub(super) fn inner_ethernet(&mut self, at: usize, length: usize) -> Result {
        self.nested(|this| {
            this.protocol = "ether";
            this.ethernet(at, length).map(|_| ())
        })
    }
}
