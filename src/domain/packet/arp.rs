//! The Address Resolution Protocol. <https://www.rfc-editor.org/rfc/rfc826>

use super::{
    Dissector, Result,
    names::{arp_hardware, ethertype},
    text::{Link, Padded, named},
};

const HEADER: usize = 8;

impl Dissector<'_> {
    pub(super) fn arp(&mut self, at: usize, length: usize) -> Result {
        self.protocol = "arp";
        self.need(at, HEADER)?;
        let (hardware, protocol) = (self.u16(at)?, self.u16(at + 2)?);
        let (hardware_length, protocol_length) =
            (usize::from(self.u8(at + 4)?), usize::from(self.u8(at + 5)?));
        let operation = self.u16(at + 6)?;
        let sender_hardware = at + HEADER;
        let sender = sender_hardware + hardware_length;
        let target_hardware = sender + protocol_length;
        let target = target_hardware + hardware_length;
        self.need(target, protocol_length)?;
        if !self.link_layer() {
            self.put("ARP, ");
        }
        let is_ip = matches!(protocol, 0x0800 | 0x1000);
        if !is_ip || protocol_length != 4 || hardware_length == 0 || self.verbose() {
            self.put((
                named(arp_hardware(hardware), ("Unknown Hardware (", hardware, ")")),
                " (len ",
                hardware_length,
            ));
            let unknown = ("Unknown Protocol (0x", Padded::<4>(protocol.into()), ")");
            self.put(("), ", named(ethertype(protocol), unknown), " (len ", protocol_length, ")"));
            if !self.verbose() {
                self.put((", length ", length));
                return Ok(());
            }
            self.put(", ");
        }
        let name = match operation {
            1 => Some("Request"),
            2 => Some("Reply"),
            3 => Some("Reverse Request"),
            4 => Some("Reverse Reply"),
            8 => Some("Inverse Request"),
            9 => Some("Inverse Reply"),
            10 => Some("NACK Reply"),
            _ => None,
        };
        self.put((named(name, ("Unknown (", operation, ")")), " "));
        let address = |this: &mut Self, at: usize| {
            if !is_ip {
                this.put("<wrong proto type>");
            } else if protocol_length != 4 {
                this.put("<wrong len>");
            } else {
                this.put(this.v4(at)?);
            }
            Ok(())
        };
        let link = |this: &mut Self, at: usize| {
            if hardware_length == 0 {
                this.put("<empty>");
            } else {
                this.put(Link(this.bytes(at, hardware_length)?));
            }
            Ok(())
        };
        match operation {
            1 => {
                self.put("who-has ");
                address(self, target)?;
                if self.bytes(target_hardware, hardware_length)?.iter().any(|byte| *byte != 0) {
                    self.put(" (");
                    link(self, target_hardware)?;
                    self.put(")");
                }
                self.put(" tell ");
                address(self, sender)?;
            }
            2 => {
                address(self, sender)?;
                self.put(" is-at ");
                link(self, sender_hardware)?;
            }
            3 | 8 => {
                self.put("who-is ");
                link(self, target_hardware)?;
                self.put(" tell ");
                link(self, sender_hardware)?;
            }
            4 => {
                link(self, target_hardware)?;
                self.put(" at ");
                address(self, target)?;
            }
            9 => {
                link(self, sender_hardware)?;
                self.put(" at ");
                address(self, sender)?;
            }
            _ => return self.dump(at, self.available(at)),
        }
        self.put((", length ", length));
        Ok(())
    }
}
