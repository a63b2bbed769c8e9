//! IEEE 802.2 and the Subnetwork Access Protocol, in frames with a length instead of a type.

use super::{
    Dissector, Result,
    names::{ethertype, llc_command, llc_sap, organisation, snap_kind},
    text::{Link, Padded, named},
};

impl Dissector<'_> {
    /// Prints an IEEE 802.2 header. Returns its length, and whether its payload was printed.
    pub(super) fn llc(
        &mut self,
        at: usize,
        length: usize,
        ethernet: Option<usize>,
    ) -> Result<(usize, bool)> {
        self.protocol = "llc";
        let available = self.available(at);
        let control =
            if available < 3 || length < 3 { None } else { self.u8(at + 2).ok().map(u16::from) };
        let unnumbered = control.is_some_and(|control| control & 3 == 3);
        let control = if unnumbered {
            control
        } else if available < 4 || length < 4 {
            None
        } else {
            self.u16(at + 2).ok().map(u16::swap_bytes)
        };
        let Some(control) = control else {
            self.truncated();
            self.dump(at, available)?;
            return Ok((available.min(length), true));
        };
        let header = if unnumbered { 3 } else { 4 };
        let (dsap_field, ssap_field) = (self.u8(at)?, self.u8(at + 1)?);
        let (dsap, ssap) = (dsap_field & !1, ssap_field & !1);
        let flags = |bits: u16| match bits {
            0 => "Command",
            1 => "Response",
            0x10 | 0x100 => "Poll",
            0x11 | 0x101 => "Final",
            _ => "?",
        };
        if self.link_layer() {
            let group = if dsap_field & 1 == 0 { "Individual" } else { "Group" };
            let (number, source) = (Padded::<2>(dsap.into()), flags((ssap_field & 1).into()));
            self.put((
                "LLC, dsap ",
                llc_sap(dsap).unwrap_or("Unknown"),
                " (0x",
                number,
                ") ",
                group,
                ", ssap ",
            ));
            self.put((
                llc_sap(ssap).unwrap_or("Unknown"),
                " (0x",
                Padded::<2>(ssap.into()),
                ") ",
                source,
            ));
            if unnumbered {
                self.put((", ctrl 0x", Padded::<2>(control.into()), ": "));
            } else {
                self.put((", ctrl 0x", Padded::<4>(control.into()), ": "));
            }
        }
        let (payload, rest) = (at + header, length - header);
        match (dsap, ssap, control) {
            (0xaa, 0xaa, 3) => return Ok((header + 5, self.snap(payload, rest, ethernet)?)),
            (6, 6, 3) => {
                self.ip(payload, rest)?;
                return Ok((header, true));
            }
            _ => {}
        }
        if !self.link_layer() {
            if let Some(frame) = ethernet {
                let (source, destination) = (self.bytes(frame + 6, 6)?, self.bytes(frame, 6)?);
                self.put(Link(source));
                if ssap != dsap {
                    self.put((
                        " ",
                        named(llc_sap(ssap), ("Unknown SSAP 0x", Padded::<2>(ssap.into()))),
                    ));
                }
                self.put((" > ", Link(destination), " "));
            } else if ssap != dsap {
                self.put((
                    named(llc_sap(ssap), ("Unknown SSAP 0x", Padded::<2>(ssap.into()))),
                    " > ",
                ));
            }
            self.put((named(llc_sap(dsap), ("Unknown DSAP 0x", Padded::<2>(dsap.into()))), " "));
        }
        let response = u16::from(ssap_field & 1);
        if unnumbered {
            let command = u8::try_from(control & 0xef).unwrap_or_default();
            self.put((
                "Unnumbered, ",
                named(llc_command(command), Padded::<2>(command.into())),
                ", Flags [",
            ));
            self.put((flags(response | control & 0x10), "], length ", length));
            // XID, the exchange of identification.
            if control & 0xef == 0xaf {
                if rest == 0 {
                    return Ok((header, true));
                }
                if self.available(payload) < 1 {
                    self.truncated();
                    return Ok((header, true));
                }
                if self.u8(payload)? == 0x81 {
                    if self.available(payload) < 3 || rest < 3 {
                        self.truncated();
                        self.dump(payload, self.available(payload))?;
                    } else {
                        let (a, b) = (self.u8(payload + 1)?.into(), self.u8(payload + 2)?.into());
                        self.put((": ", Padded::<2>(a), " ", Padded::<2>(b)));
                    }
                    return Ok((header, true));
                }
            }
        } else if control & 3 == 1 {
            let command = match control >> 2 & 3 {
                0 => "Receiver Ready",
                1 => "Receiver not Ready",
                2 => "Reject",
                _ => "?",
            };
            self.put(("Supervisory, ", command, ", rcv seq ", control >> 9 & 0x7f, ", Flags ["));
            self.put((flags(response | control & 0x100), "], length ", length));
            return Ok((header, true));
        } else {
            self.put((
                "Information, send seq ",
                control >> 1 & 0x7f,
                ", rcv seq ",
                control >> 9 & 0x7f,
            ));
            self.put((", Flags [", flags(response | control & 0x100), "], length ", length));
        }
        Ok((header, false))
    }

    /// Prints a Subnetwork Access Protocol header. Returns whether its payload was printed.
    fn snap(&mut self, at: usize, length: usize, ethernet: Option<usize>) -> Result<bool> {
        self.protocol = "snap";
        if self.available(at) < 5 || length < 5 {
            self.truncated();
            return Ok(true);
        }
        let code = self.u24(at)?;
        let (kind, length) = (self.u16(at + 3)?, length - 5);
        if self.link_layer() {
            self.snap_header(code, kind);
            self.put((", length ", length, ": "));
        }
        if matches!(code, 0 | 0xf8) && self.by_ethertype(kind, at + 5, length)? {
            return Ok(true);
        }
        if !self.link_layer() {
            if let Some(frame) = ethernet {
                let (source, destination) = (self.bytes(frame + 6, 6)?, self.bytes(frame, 6)?);
                self.put((Link(source), " > ", Link(destination), " "));
            }
            self.put("SNAP, ");
            if code == 0 {
                self.put((
                    "ethertype ",
                    ethertype(kind).unwrap_or("Unknown"),
                    " (0x",
                    Padded::<4>(kind.into()),
                    ")",
                ));
            } else {
                self.snap_header(code, kind);
            }
            self.put((", length ", length, ": "));
        }
        Ok(false)
    }

    fn snap_header(&mut self, code: u32, kind: u16) {
        let what = if code == 0 { "ethertype" } else { "pid" };
        self.put(("oui ", organisation(code), " (0x", Padded::<6>(code), "), ", what, " "));
        self.put((
            snap_kind(code, kind).unwrap_or("Unknown"),
            " (0x",
            Padded::<4>(kind.into()),
            ")",
        ));
    }
}
