//! Prints packets as lines: tcpdump's text, or JSON. With several pods, each line names its pod.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    sync::{Arc, OnceLock},
};

use serde::Serialize;

use super::{
    args::{CaptureArgs, CaptureOutput, TextArgs},
    error::PutError,
    targets::PodTarget,
};
use crate::domain::{
    packet::{self, PrintOptions, Printer},
    pcapng::{self, Decoder, Direction, Interface, linktype, names},
    text::{escape_json, escape_lines},
};

/// Bytes of lines to buffer before a write while more packets are ready.
const BATCH: usize = 64 * 1024;
/// The colours that pods get in turn.
const COLOURS: [&str; 6] = ["36", "32", "33", "35", "34", "31"];

/// Prints packets to stdout.
pub(in crate::cli) struct Lines {
    sources: Vec<Source>,
    json: bool,
    /// How many more packets may be printed.
    left: u64,
    out: Vec<u8>,
}

/// One stream of packets.
pub(super) struct Source {
    target: Option<PodTarget>,
    decoder: Decoder,
    printer: Printer,
    /// Names of the pod's interfaces by index, once the agent has sent them.
    names: Names,
    /// The number of interface descriptions that were read.
    described: usize,
    /// Names of the interfaces by index, from those descriptions.
    of_file: BTreeMap<u32, String>,
    /// The prefix of each line.
    prefix: String,
}

/// Names of a pod's interfaces by index. Packets captured on `any` carry only the index.
pub(super) type Names = Arc<OnceLock<BTreeMap<u32, String>>>;

impl Source {
    fn new(options: &PrintOptions, target: Option<PodTarget>, prefix: String) -> Self {
        let printer = Printer::new(options.clone());
        Self {
            target,
            decoder: Decoder::new(),
            printer,
            names: Names::default(),
            described: 0,
            of_file: BTreeMap::new(),
            prefix,
        }
    }
}

impl Lines {
    /// `targets` has one pod for each stream; it is empty for a stream of no pod. `colour` allows
    /// the pods' names to be coloured.
    pub(super) fn new(args: &CaptureArgs, targets: &[PodTarget], colour: bool) -> Self {
        let options = options(args);
        let mut sources: Vec<Source> = prefixes(targets, colour)
            .into_iter()
            .zip(targets)
            .map(|(prefix, target)| Source::new(&options, Some(target.clone()), prefix))
            .collect();
        if sources.is_empty() {
            sources.push(Source::new(&options, None, String::new()));
        }
        let left = args.count.unwrap_or(u64::MAX);
        Self { sources, json: args.output == CaptureOutput::Json, left, out: Vec::new() }
    }

    /// Prints the packets that these bytes of a stream complete.
    pub(super) fn put(&mut self, source: usize, blocks: &[u8]) -> Result<(), PutError> {
        let Some(source) = self.sources.get_mut(source) else { return Ok(()) };
        let Source { target, decoder, printer, names, described, of_file, prefix } = source;
        decoder.push(blocks);
        while let Some(packet) = decoder.next()?.filter(|_| self.left > 0) {
            self.left -= 1;
            let first;
            let packet = if packet.interface < *described {
                packet
            } else {
                // The packet is of a new interface: read the descriptions that came before it.
                first = packet.data.to_vec();
                let packet = pcapng::Packet { data: &[], ..packet };
                let new = decoder.interfaces().iter().skip(*described);
                let listed = new.flat_map(|interface| names::parse(&interface.description));
                of_file.extend(listed.map(|(index, name)| (index, name.to_owned())));
                *described = decoder.interfaces().len();
                pcapng::Packet { data: &first, ..packet }
            };
            let names = names.get().unwrap_or(of_file);
            let printed = packet::Packet {
                linktype: packet.linktype,
                timestamp: packet.timestamp,
                original_length: packet.original_length,
                data: packet.data,
                interfaces: names,
            };
            if self.json {
                let line = JsonLine::new(target.as_ref(), packet.direction, &printed, printer);
                let (interface, index) = (packet.interface, index(packet.linktype, packet.data));
                let of_file =
                    decoder.interfaces().get(interface).map_or("", |interface| &interface.name);
                line.write(
                    index.and_then(|index| names.get(&index)).map_or(of_file, |name| name),
                    &mut self.out,
                );
            } else {
                let text = printed_text(printer, &printed);
                for line in text.split_inclusive('\n') {
                    self.out.extend_from_slice(prefix.as_bytes());
                    self.out.extend_from_slice(line.as_bytes());
                }
            }
            if self.out.len() >= BATCH {
                write(&mut self.out)?;
            }
        }
        Ok(())
    }

    /// Where to store the names of a pod's interfaces.
    pub(super) fn names(&self, source: usize) -> Option<Names> {
        self.sources.get(source).map(|source| source.names.clone())
    }

    /// Reports whether the wanted number of packets is printed.
    pub(super) fn is_full(&self) -> bool {
        self.left == 0
    }

    /// The interfaces of a stream that are known so far.
    pub(super) fn interfaces(&self, source: usize) -> &[Interface] {
        self.sources.get(source).map(|source| source.decoder.interfaces()).unwrap_or_default()
    }

    /// Ends a stream. A partial block at its end is an error.
    pub(super) fn finish(&self, source: usize) -> Result<(), PutError> {
        self.sources.get(source).map_or(Ok(()), |source| Ok(source.decoder.finish()?))
    }

    /// Writes the buffered lines.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        write(&mut self.out)?;
        io::stdout().flush()
    }
}

fn write(out: &mut Vec<u8>) -> io::Result<()> {
    io::stdout().write_all(out)?;
    out.clear();
    Ok(())
}

/// Translates the flags for the printer. JSON has a field for the time, so lines omit it.
fn options(args: &CaptureArgs) -> PrintOptions {
    let TextArgs {
        link_level,
        quick,
        absolute_tcp_sequence_numbers,
        hex,
        hex_ascii,
        ascii,
        time,
        nano,
        number,
    } = args.text;
    let is_json = args.output == CaptureOutput::Json;
    PrintOptions {
        number: number && !is_json,
        timestamps: if is_json { 1 } else { time },
        nanoseconds: nano,
        time_zone: jiff::tz::TimeZone::system(),
        link_layer: link_level,
        verbose: args.verbose,
        quiet: quick.into(),
        absolute_sequence: absolute_tcp_sequence_numbers,
        hex,
        hex_ascii,
        ascii: ascii.into(),
    }
}

/// The prefix of each pod's lines. It is empty if there is only one pod.
fn prefixes(targets: &[PodTarget], colour: bool) -> Vec<String> {
    if targets.len() < 2 {
        return vec![String::new(); targets.len()];
    }
    let namespaces: BTreeSet<&str> =
        targets.iter().map(|target| target.namespace.as_str()).collect();
    let names = targets.iter().map(|PodTarget { namespace, pod }| match namespaces.len() {
        1 => pod.clone(),
        _ => format!("{namespace}/{pod}"),
    });
    let paint = |(name, code): (String, &&str)| match colour {
        true => format!("\x1b[{code}m[{name}]\x1b[0m "),
        false => format!("[{name}] "),
    };
    names.zip(COLOURS.iter().cycle()).map(paint).collect()
}

/// The index of the interface, if the packet's link-level header holds it.
fn index(linktype: u16, data: &[u8]) -> Option<u32> {
    let index = data.get(4..)?.first_chunk().filter(|_| linktype == linktype::LINUX_SLL2);
    index.map(|index| u32::from_be_bytes(*index))
}

/// The lines of a packet. The printer escapes the packet's content; this escapes whatever it may
/// have missed.
fn printed_text(printer: &mut Printer, packet: &packet::Packet<'_>) -> String {
    let mut text = Vec::new();
    printer.print(packet, &mut text);
    let text = String::from_utf8(text)
        .unwrap_or_else(|invalid| String::from_utf8_lossy(invalid.as_bytes()).into_owned());
    match escape_lines(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(safe) => safe,
    }
}

/// A packet as a JSON object.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonLine {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    interface: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    direction: Option<&'static str>,
    /// The length on the wire, in bytes.
    length: u32,
    /// The bytes of it that were captured.
    captured: usize,
    text: String,
}

impl JsonLine {
    fn new(
        target: Option<&PodTarget>,
        direction: Direction,
        packet: &packet::Packet<'_>,
        printer: &mut Printer,
    ) -> Self {
        Self {
            time: rfc3339(packet.timestamp),
            namespace: target.map(|target| target.namespace.clone()),
            pod: target.map(|target| target.pod.clone()),
            interface: String::new(),
            direction: match direction {
                Direction::Unknown => None,
                Direction::In => Some("in"),
                Direction::Out => Some("out"),
            },
            length: packet.original_length,
            captured: packet.data.len(),
            text: printed_text(printer, packet).trim_end().to_owned(),
        }
    }

    /// `interface` is the name in the file; an agent writes `NAMESPACE/POD/INTERFACE`.
    fn write(mut self, interface: &str, out: &mut Vec<u8>) {
        let prefix =
            self.namespace.as_ref().zip(self.pod.as_ref()).map(|(n, p)| format!("{n}/{p}/"));
        let own = prefix.and_then(|prefix| interface.strip_prefix(&prefix));
        own.unwrap_or(interface).clone_into(&mut self.interface);
        // Strings and numbers always serialise.
        let line = serde_json::to_string(&self).unwrap_or_default();
        out.extend_from_slice(escape_json(&line).as_bytes());
        out.push(b'\n');
    }
}

/// Nanoseconds since 1970 as a time in UTC. It has all nine digits, so that times sort as text.
fn rfc3339(nanoseconds: u64) -> String {
    let time = jiff::Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or_default();
    format!("{time:.9}")
}
