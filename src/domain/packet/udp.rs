//! UDP. <https://www.rfc-editor.org/rfc/rfc768>

use super::{
    Dissector, Result,
    ip::{Carrier, UDP},
    text::Padded,
};

const HEADER: usize = 8;

impl Dissector<'_> {
    pub(super) fn udp(&mut self, at: usize, mut length: usize, carrier: Carrier) -> Result {
        self.protocol = "udp";
        if !self.has(at + 2, 2) {
            // An extension header has printed the addresses.
            let ip = carrier.at;
            if self.u8(ip + if carrier.is_v6 { 6 } else { 9 })? == UDP {
                self.ends(carrier, UDP, None)?;
                self.put(" ");
            }
            self.truncated();
            return Ok(());
        }
        let ports = (self.u16(at)?, self.u16(at + 2)?);
        self.ends(carrier, UDP, Some(ports))?;
        if length < HEADER {
            self.put(("truncated-udp ", length));
            return Ok(());
        }
        if !self.has(at + 4, 2) {
            self.truncated();
            return Ok(());
        }
        let mut stated = usize::from(self.u16(at + 4)?);
        if stated == 0 && length > 65535 {
            stated = length;
        }
        if stated < HEADER {
            self.put(("truncated-udplength ", stated));
            return Ok(());
        }
        stated -= HEADER;
        length = stated.min(length - HEADER);
        let payload = at + HEADER;
        if payload > self.data.len() {
            self.truncated();
            return Ok(());
        }
        if self.verbose() && !carrier.fragmented && (carrier.is_v6 || self.options.verbose > 1) {
            let found = self.u16(at + 6)?;
            if !carrier.is_v6 && found == 0 {
                self.put("[no cksum] ");
            } else if let Ok(datagram) = self.bytes(at, length + HEADER) {
                let sum = self.pseudo_header(carrier, UDP, length + HEADER)?;
                match sum.add(datagram).should_be(found) {
                    Some(right) => {
                        let (found, right) = (Padded::<4>(found.into()), Padded::<4>(right.into()));
                        self.put(("[bad udp cksum 0x", found, " -> 0x", right, "!] "));
                    }
                    None => self.put("[udp sum ok] "),
                }
            }
        }
        let is = |port| ports.0 == port || ports.1 == port;
        if !self.quiet() {
            if is(53) {
                return self.dns(payload, length, false);
            }
            if is(5353) {
                return self.dns(payload, length, true);
            }
            if is(8472) {
                return self.otv(payload, length);
            }
            if is(4789) {
                return self.vxlan(payload, length);
            }
            if is(6081) {
                return self.geneve(payload, length);
            }
            if let Some(protocol) = super::lines::of_udp(is) {
                return self.text_protocol(payload, length, protocol);
            }
        }
        if stated > length && !carrier.fragmented {
            self.put(("UDP, bad length ", stated, " > ", length));
        } else {
            self.put(("UDP, length ", stated));
        }
        Ok(())
    }
}
