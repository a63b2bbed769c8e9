//! Capture filters: the classic BPF programs that libpcap compiles, as far as they are handled
//! outside the kernel.
//!
//! A program comes from a compiler that is not trusted, so it is checked like any other input, and
//! run here only where the kernel cannot: [`Program::run`] ends on every program and never reads
//! beyond the packet.
//!
//! <https://www.kernel.org/doc/html/latest/networking/filter.html>

/// Longest text of a filter, in bytes.
pub const MAX_TEXT: usize = 16 * 1024;
/// Most instructions that the kernel takes (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;
/// Longest packet that is captured (libpcap's `MAXIMUM_SNAPLEN`).
pub const MAX_SNAPLEN: u32 = 262_144;

/// Size of the header that stands for the link layer's in packets of link type `LINUX_SLL2`.
/// <https://www.tcpdump.org/linktypes/LINKTYPE_LINUX_SLL2.html>
pub const SLL2_HEADER: u32 = 20;

/// Offsets at which the kernel has what is not in the packet (`SKF_AD_OFF`).
const ANCILLARY: u32 = 0xffff_f000;
const PROTOCOL: u32 = ANCILLARY;
const PACKET_TYPE: u32 = ANCILLARY + 4;
const INTERFACE: u32 = ANCILLARY + 8;

/// `PACKET_OUTGOING`, a packet type.
const OUTGOING: u32 = 4;
/// Index of the loopback interface, in every network namespace.
const LOOPBACK: u32 = 1;

// Classes, modes and operations of instructions that are made or looked for here.
const LD: u16 = 0;
const LDX: u16 = 1;
const ABS: u16 = 0x20;
const IND: u16 = 0x40;
const MSH: u16 = 0xa0;
const LD_WORD_ABS: u16 = 0x20;
const LD_BYTE_ABS: u16 = 0x30;
const JEQ: u16 = 0x15;
const RET: u16 = 0x06;

/// One instruction, as the kernel has it (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// How many instructions a jump skips if its condition holds.
    pub jt: u8,
    /// How many if not.
    pub jf: u8,
    /// Its operand.
    pub k: u32,
}

impl Instruction {
    /// Its bytes, as a compiler's process sends them.
    pub fn to_bytes(self) -> [u8; 8] {
        let ([a, b], [c, d, e, f]) = (self.code.to_le_bytes(), self.k.to_le_bytes());
        [a, b, self.jt, self.jf, c, d, e, f]
    }

    /// From its bytes.
    pub fn from_bytes([a, b, jt, jf, c, d, e, f]: [u8; 8]) -> Self {
        Self { code: u16::from_le_bytes([a, b]), jt, jf, k: u32::from_le_bytes([c, d, e, f]) }
    }

    const fn new(code: u16, jt: u8, jf: u8, k: u32) -> Self {
        Self { code, jt, jf, k }
    }
}

/// Which packets a capture is to have, whatever the filter says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ways {
    /// Those of both directions.
    #[default]
    Both,
    /// What comes in.
    In,
    /// What goes out.
    Out,
}

/// A program: for each packet, how many bytes of it are wanted, 0 for none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(Vec<Instruction>);

/// What [`Program::run`] needs to know of a packet other than its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// Length on the wire.
    pub original_length: u32,
    /// Its packet type.
    pub packet_type: u8,
    /// Index of its interface.
    pub interface: u32,
}

impl Program {
    /// The program that accepts every packet and asks for this many bytes of it.
    pub fn everything(snaplen: u32) -> Self {
        Self(vec![Instruction::new(RET, 0, 0, snaplen)])
    }

    /// A compiled program. None if it is empty or too long.
    pub fn new(instructions: Vec<Instruction>) -> Option<Self> {
        (1..=MAX_INSTRUCTIONS).contains(&instructions.len()).then_some(Self(instructions))
    }

    /// Its instructions.
    pub fn instructions(&self) -> &[Instruction] {
        &self.0
    }

    /// The same program, compiled for packets with an SLL2 header, for the kernel, where they do
    /// not have it yet: offsets begin at the network layer's header, and what is in the SLL2 header
    /// is beside the packet. None if it reads a field that the kernel does not have there, or part
    /// of one.
    #[must_use]
    pub fn without_sll2_header(&self) -> Option<Self> {
        let fix = |instruction: &Instruction| {
            let mode = instruction.code & 0xe7;
            let reads_packet = [LD | ABS, LD | IND, LDX | MSH].contains(&mode);
            if !reads_packet || instruction.k >= ANCILLARY {
                return Some(*instruction);
            }
            let k = match instruction.k {
                k if k >= SLL2_HEADER => k - SLL2_HEADER,
                0 => PROTOCOL,
                4 => INTERFACE,
                10 => PACKET_TYPE,
                _ => return None,
            };
            Some(Instruction { k, ..*instruction })
        };
        self.0.iter().map(fix).collect::<Option<Vec<_>>>().map(Self)
    }

    /// The same program, but for packets of other directions, and for those that leave by the
    /// loopback interface: they come back in by it, and would be seen twice. The kernel runs it.
    #[must_use]
    pub fn of(&self, ways: Ways) -> Self {
        let packet_type = Instruction::new(LD_BYTE_ABS, 0, 0, PACKET_TYPE);
        let nothing = Instruction::new(RET, 0, 0, 0);
        let prologue: &[Instruction] = match ways {
            Ways::Both => &[
                Instruction::new(LD_WORD_ABS, 0, 0, INTERFACE),
                Instruction::new(JEQ, 0, 3, LOOPBACK),
                packet_type,
                Instruction::new(JEQ, 0, 1, OUTGOING),
                nothing,
            ],
            Ways::In => &[packet_type, Instruction::new(JEQ, 0, 1, OUTGOING), nothing],
            Ways::Out => &[packet_type, Instruction::new(JEQ, 1, 0, OUTGOING), nothing],
        };
        Self([prologue, &self.0].concat())
    }

    /// Runs it. A program that is none wants nothing.
    pub fn run(&self, packet: &[u8], context: &Context) -> u32 {
        self.execute(packet, context).unwrap_or_default()
    }

    fn execute(&self, packet: &[u8], context: &Context) -> Option<u32> {
        let mut memory = [0_u32; 16];
        let (mut a, mut x, mut pc) = (0_u32, 0_u32, 0_usize);
        // Every jump goes forward, so this ends.
        loop {
            let Instruction { code, jt, jf, k } = *self.0.get(pc)?;
            pc = pc.checked_add(1)?;
            let operand = if code & 8 == 0 { k } else { x };
            match code & 7 {
                // LD, LDX
                class @ (0 | 1) => {
                    let value = match (code & 0xe0, class) {
                        (0x00, _) => k,
                        (0x20, 0) if k >= ANCILLARY => match k {
                            PACKET_TYPE => u32::from(context.packet_type),
                            INTERFACE => context.interface,
                            _ => return None,
                        },
                        (0x20, 0) => load(packet, k, code)?,
                        (0x40, 0) => load(packet, x.checked_add(k)?, code)?,
                        (0x60, _) => *memory.get(usize::try_from(k).ok()?)?,
                        (0x80, _) => context.original_length,
                        (0xa0, 1) => load(packet, k, 0x10)?.wrapping_mul(4) & 0x3c,
                        _ => return None,
                    };
                    *(if class == 0 { &mut a } else { &mut x }) = value;
                }
                // ST, STX
                2 => *memory.get_mut(usize::try_from(k).ok()?)? = a,
                3 => *memory.get_mut(usize::try_from(k).ok()?)? = x,
                // ALU
                4 => {
                    a = match code & 0xf0 {
                        0x00 => a.wrapping_add(operand),
                        0x10 => a.wrapping_sub(operand),
                        0x20 => a.wrapping_mul(operand),
                        0x30 => a.checked_div(operand)?,
                        0x40 => a | operand,
                        0x50 => a & operand,
                        0x60 => a.checked_shl(operand).unwrap_or_default(),
                        0x70 => a.checked_shr(operand).unwrap_or_default(),
                        0x80 => a.wrapping_neg(),
                        0x90 => a.checked_rem(operand)?,
                        0xa0 => a ^ operand,
                        _ => return None,
                    };
                }
                // JMP
                5 => {
                    let holds = match code & 0xf0 {
                        0x00 => {
                            pc = pc.checked_add(usize::try_from(k).ok()?)?;
                            continue;
                        }
                        0x10 => a == operand,
                        0x20 => a > operand,
                        0x30 => a >= operand,
                        0x40 => a & operand != 0,
                        _ => return None,
                    };
                    pc = pc.checked_add(usize::from(if holds { jt } else { jf }))?;
                }
                // RET
                6 => return Some(if code & 0x18 == 0x10 { a } else { k }),
                // MISC
                _ if code & 0x80 == 0 => x = a,
                _ => a = x,
            }
        }
    }
}

/// A big-endian number of the size that `code` says. None beyond the packet's end.
fn load(packet: &[u8], at: u32, code: u16) -> Option<u32> {
    let rest = packet.get(usize::try_from(at).ok()?..)?;
    match code & 0x18 {
        0x00 => rest.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)),
        0x08 => rest.first_chunk().map(|bytes| u16::from_be_bytes(*bytes).into()),
        0x10 => rest.first().map(|byte| (*byte).into()),
        _ => None,
    }
}

/// Whether a filter asks for VLAN tags. The kernel has taken them out of the packets that its own
/// filter sees, so such a filter is run on what goes into the file, where they are back.
pub fn wants_vlan_tags(text: &str) -> bool {
    words(text).any(|(_, word)| word == "vlan")
}

/// The filter with the name that libpcap did not know written as a number, if its message is about
/// a port or protocol of a well-known name. The compiler has no files, so that it cannot look names
/// of hosts up; `port http` means the same on every node nevertheless.
pub fn with_number(text: &str, message: &str) -> Option<String> {
    let message = message.strip_prefix("unknown ")?;
    let (what, rest) = message.split_once('\'')?;
    let (name, _) = rest.split_once('\'')?;
    let table = if what.contains("port") {
        PORTS
    } else if what.contains("proto") {
        PROTOCOLS
    } else {
        return None;
    };
    let number = table.iter().find(|(known, _)| *known == name)?.1.to_string();
    let mut out = String::with_capacity(text.len());
    let mut copied = 0;
    for (at, word) in words(text) {
        if word == name {
            out.push_str(text.get(copied..at)?.trim_end_matches('\\'));
            out.push_str(&number);
            copied = at.checked_add(word.len())?;
        }
    }
    out.push_str(text.get(copied..)?);
    (copied > 0).then_some(out)
}

/// What to add to libpcap's message, where it is about a name.
pub fn advice(message: &str) -> &'static str {
    let is = |what| message.starts_with(what);
    if is("unknown host") || is("unknown ether host") {
        ": names of hosts are not looked up; write the address"
    } else if is("unknown network") {
        ": names of networks are not looked up; write the address"
    } else if is("unknown port") {
        ": only well-known names of ports are known; write the number"
    } else {
        ""
    }
}

/// The words of a filter, with where they begin.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let starts = text.char_indices().scan(false, move |inside, (at, c)| {
        let begins = is_word(c) && !*inside;
        *inside = is_word(c);
        Some(begins.then_some(at))
    });
    starts.flatten().filter_map(move |at| {
        let rest = text.get(at..)?;
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        Some((at, rest.get(..end)?))
    })
}

/// Ports that people call by name. <https://www.iana.org/assignments/service-names-port-numbers>
const PORTS: &[(&str, u16)] = &[
    ("ftp-data", 20),
    ("ftp", 21),
    ("ssh", 22),
    ("telnet", 23),
    ("smtp", 25),
    ("domain", 53),
    ("bootps", 67),
    ("bootpc", 68),
    ("tftp", 69),
    ("http", 80),
    ("kerberos", 88),
    ("pop3", 110),
    ("sunrpc", 111),
    ("ntp", 123),
    ("imap2", 143),
    ("imap", 143),
    ("snmp", 161),
    ("snmp-trap", 162),
    ("bgp", 179),
    ("ldap", 389),
    ("https", 443),
    ("microsoft-ds", 445),
    ("isakmp", 500),
    ("syslog", 514),
    ("submission", 587),
    ("ldaps", 636),
    ("domain-s", 853),
    ("imaps", 993),
    ("pop3s", 995),
    ("nfs", 2049),
    ("mysql", 3306),
    ("postgresql", 5432),
    ("mdns", 5353),
    ("amqp", 5672),
    ("redis", 6379),
    ("http-alt", 8080),
];

/// IP protocols that are no words of the language themselves.
/// <https://www.iana.org/assignments/protocol-numbers>
const PROTOCOLS: &[(&str, u16)] = &[
    ("icmp", 1),
    ("igmp", 2),
    ("ipip", 4),
    ("tcp", 6),
    ("egp", 8),
    ("udp", 17),
    ("dccp", 33),
    ("ipv6", 41),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("ipv6-icmp", 58),
    ("icmp6", 58),
    ("ospf", 89),
    ("pim", 103),
    ("vrrp", 112),
    ("sctp", 132),
    ("udplite", 136),
];

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const CONTEXT: Context = Context { original_length: 60, packet_type: 0, interface: 7 };

    fn ins(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
        Instruction::new(code, jt, jf, k)
    }

    /// `tcpdump -y EN10MB -d 'ip and tcp port 80'`
    fn http() -> Program {
        Program(vec![
            ins(0x28, 0, 0, 12),
            ins(0x15, 0, 10, 0x800),
            ins(0x30, 0, 0, 23),
            ins(0x15, 0, 8, 6),
            ins(0x28, 0, 0, 20),
            ins(0x45, 6, 0, 0x1fff),
            ins(0xb1, 0, 0, 14),
            ins(0x48, 0, 0, 14),
            ins(0x15, 2, 0, 80),
            ins(0x48, 0, 0, 16),
            ins(0x15, 0, 1, 80),
            ins(0x6, 0, 0, 262_144),
            ins(0x6, 0, 0, 0),
        ])
    }

    fn frame(port: u16) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([
            8, 0, 0x46, 0, 0, 48, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 1, 1, 0,
        ]);
        frame.extend([0x30, 0x39]);
        frame.extend(port.to_be_bytes());
        frame
    }

    #[test]
    fn a_program_runs_as_the_kernel_runs_it() {
        assert_eq!(http().run(&frame(80), &CONTEXT), 262_144);
        assert_eq!(http().run(&frame(81), &CONTEXT), 0);
        assert_eq!(http().run(&frame(80)[..30], &CONTEXT), 0);
        assert_eq!(http().run(&[], &CONTEXT), 0);
    }

    #[test]
    fn for_the_kernel_offsets_begin_behind_the_header() {
        let program = Program(vec![
            ins(0x28, 0, 0, 0),
            ins(0x20, 0, 0, 4),
            ins(0x30, 0, 0, 10),
            ins(0x30, 0, 0, 29),
            ins(0xb1, 0, 0, 20),
            ins(0x48, 0, 0, 22),
            ins(0x15, 0, 1, 4),
            ins(0x6, 0, 0, 10),
        ]);
        let fixed = program.without_sll2_header().unwrap();
        let k: Vec<_> = fixed.0.iter().map(|i| i.k).collect();
        assert_eq!(k, [PROTOCOL, INTERFACE, PACKET_TYPE, 9, 0, 2, 4, 10]);
        // An address of the link layer.
        assert_eq!(Program(vec![ins(0x20, 0, 0, 12)]).without_sll2_header(), None);
    }

    #[test]
    fn names_of_ports_and_protocols_become_numbers() {
        let number = |text, message| with_number(text, message);
        assert_eq!(
            number("tcp port http or http", "unknown port 'http'").unwrap(),
            "tcp port 80 or 80"
        );
        assert_eq!(number("ip proto \\ospf", "unknown ip proto 'ospf'").unwrap(), "ip proto 89");
        assert_eq!(
            number("port (http or https)", "unknown port 'https'").unwrap(),
            "port (http or 443)"
        );
        for (text, message) in [
            ("host http", "unknown host 'http'"),
            ("port foo", "unknown port 'foo'"),
            ("port x", "syntax error"),
            ("", "unknown port 'http'"),
        ] {
            assert_eq!(number(text, message), None, "{text}");
        }
    }

    #[test]
    fn vlan_is_a_word() {
        for (text, is) in [
            ("vlan", true),
            ("not (vlan 7) and ip", true),
            ("host vlan.example", false),
            ("ip", false),
        ] {
            assert_eq!(wants_vlan_tags(text), is, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_program_ends(program in vec((any::<u16>(), any::<u8>(), any::<u8>(), 0..70_u32), 1..40), packet in vec(any::<u8>(), 0..64)) {
            let program = program.into_iter().map(|(code, jt, jf, k)| ins(code & 0xff, jt % 8, jf % 8, k)).collect();
            let program = Program::new(program).unwrap();
            let _ = program.run(&packet, &CONTEXT);
            let _ = program.without_sll2_header();
        }

        #[test]
        fn any_text_is_taken(text: String, message: String) {
            let _ = (wants_vlan_tags(&text), with_number(&text, &message), advice(&message));
            let _ = with_number(&text, "unknown port 'http'");
        }
    }
}
