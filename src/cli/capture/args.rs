//! The arguments of `podsonde capture`. The letters are tcpdump's, unless kubectl uses the same
//! letter for something else.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args, ValueEnum};

use crate::cli::{
    options::TEMPLATE,
    values::{bytes, duration, file_size, label},
};

/// `podsonde capture`.
#[derive(Debug, Clone, Args)]
#[command(
    help_template = TEMPLATE,
    after_help = "Captures the packets of pods inside their network namespace, on all interfaces or \
on one, including loopback. Nothing runs in the pod. Prints packets as tcpdump does, or writes \
pcapng with -w. FILTER is in tcpdump's language, see pcap-filter(7). Host names are not looked up, \
and addresses are always printed as numbers. Ctrl-C ends the capture.

The flags are tcpdump's, unless kubectl uses the same letter: -n is the namespace, -c the \
container, -l the labels, -A all namespaces, -o the output format. Instead of tcpdump's -c use \
--count, and instead of its -A use --ascii. Its -l is not needed, because lines are never held back.

The first word is the pod. Write further pods as TYPE/NAME, or put -- before the filter. A \
workload, such as a deployment, stands for all its running pods. Lines of several pods are ordered \
by time within 10 ms and begin with the pod's name. A file has an interface \
NAMESPACE/POD/INTERFACE for each. A slow client or disk holds the agent back and loses no packets \
itself. Packets that then find no room on the node are counted there.

Examples:
  # Print the HTTP requests to web
  podsonde capture web port 80

  # Print the DNS packets of all pods with a label as JSON, one packet a line
  podsonde capture -l app=web -o json udp port 53

  # Write a file for Wireshark, or watch live in Wireshark
  podsonde capture web -i eth0 -w web.pcapng
  podsonde capture web -w - | wireshark -k -i -

  # Keep the last gigabyte in ten files, or write a file for each hour of a day
  podsonde capture web -w web.pcapng -C 100 -W 10
  podsonde capture web -w web-%d-%H%M.pcapng -G 1h -W 24

  # Capture two pods with a filter behind --, and print link-level headers and hex
  podsonde capture web db -e -X -- tcp port 5432

  # Stop after ten packets or ten seconds, whichever comes first
  podsonde capture deploy/web --count 10 --duration 10s

  # Read a file, list the interfaces, or print the program of a filter
  podsonde capture -r web.pcapng -v
  podsonde capture web -D
  podsonde capture web -d tcp port 80

Exit codes:
  0  ended as asked: by a limit, Ctrl-C, SIGTERM, or a reader that closed the output
  1  error; of several pods: some failed; a pod, container or interface went away
  2  usage"
)]
pub(in crate::cli) struct CaptureArgs {
    /// Pod (POD, pod/POD, deployment/NAME, …), then the filter; only the filter with -l or -A
    #[arg(value_name = "POD | FILTER")]
    pub(super) words: Vec<String>,
    /// Filter, if one of its words begins with - or if several pods stand before it
    #[arg(last = true, value_name = "FILTER")]
    pub(super) filter: Vec<String>,
    /// Pods with these labels (app=web,tier!=cache, `env in (a,b)`)
    #[arg(short = 'l', long, value_name = "SELECTOR", help_heading = "Pods")]
    pub(super) selector: Option<String>,
    /// Pods of all namespaces
    #[arg(short = 'A', long, help_heading = "Pods")]
    pub(super) all_namespaces: bool,
    /// Container whose process gives the network namespace [default: any that runs]
    #[arg(short, long, value_name = "NAME", value_parser = label, help_heading = "Pods")]
    pub(super) container: Option<String>,
    /// Refuse to capture more pods than this at once
    #[arg(long, value_name = "N", default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(1..), help_heading = "Pods")]
    pub(super) max_pods: u32,

    /// Interface to capture on, or any
    #[arg(short, long, value_name = "NAME", default_value = "any", help_heading = "Capture")]
    pub(super) interface: String,
    /// List the interfaces that packets can be captured on, and exit
    #[arg(
        short = 'D',
        long,
        conflicts_with_all = ["dump", "read", "write"],
        help_heading = "Capture"
    )]
    pub(super) list_interfaces: bool,
    /// Print the program that the filter compiles to, and exit
    #[arg(short = 'd', conflicts_with_all = ["read", "write"], help_heading = "Capture")]
    pub(super) dump: bool,
    /// Only packets of this direction, as seen from the pod
    #[arg(
        short = 'Q',
        long,
        value_name = "WAY",
        default_value = "inout",
        hide_default_value = true,
        help_heading = "Capture"
    )]
    pub(super) direction: Direction,
    /// Most bytes to capture of each packet; 0 means 262144, the maximum
    #[arg(
        short,
        long,
        value_name = "BYTES",
        default_value_t = 0,
        hide_default_value = true,
        help_heading = "Capture"
    )]
    pub(super) snapshot_length: u32,
    /// End after this many packets, over all pods
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..),
        help_heading = "Capture")]
    pub(super) count: Option<u64>,
    /// End after this time [default: the agent's, 1h]
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "Capture")]
    pub(super) duration: Option<Duration>,
    /// End each pod's capture after this many bytes of pcapng (10M, 2GiB)
    #[arg(long, value_name = "BYTES", value_parser = bytes, help_heading = "Capture")]
    pub(super) max_bytes: Option<u64>,
    /// Size of the kernel's buffer in KiB [default: the agent's, 65536]
    #[arg(short = 'B', long, value_name = "KIB",
        value_parser = clap::value_parser!(u32).range(1..), help_heading = "Capture")]
    pub(super) buffer_size: Option<u32>,

    /// Write packets to this file as pcapng instead of printing them; - for stdout
    #[arg(short, long, value_name = "FILE", help_heading = "Files")]
    pub(super) write: Option<PathBuf>,
    /// Begin another file after this many million bytes, or 500k, 2g as in tcpdump: FILE, FILE1,
    /// FILE2, …
    #[arg(short = 'C', long, value_name = "SIZE", value_parser = file_size, requires = "write",
        help_heading = "Files")]
    pub(super) file_size: Option<u64>,
    /// Begin another file this often (seconds, or 5m); strftime's codes in FILE give each a name
    /// (web-%H%M%S.pcapng)
    #[arg(short = 'G', long = "rotate", value_name = "DURATION", value_parser = duration,
        requires = "write", help_heading = "Files")]
    pub(super) rotate: Option<Duration>,
    /// With -C, keep this many files and overwrite the oldest; with -G, end after this many
    #[arg(short = 'W', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..),
        requires = "write", help_heading = "Files")]
    pub(super) file_count: Option<u32>,
    /// Print packets even if they are written to a file
    #[arg(long, requires = "write", help_heading = "Files")]
    pub(super) print: bool,
    /// Print the packets of a pcapng or pcap file instead of capturing; - for stdin
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["write", "selector",
        "all_namespaces", "container", "buffer_size", "duration", "max_bytes"],
        help_heading = "Files")]
    pub(super) read: Option<PathBuf>,
    /// Accepted for compatibility with tcpdump: packets are always written at once
    #[arg(short = 'U', long, help_heading = "Files")]
    pub(super) packet_buffered: bool,

    /// How packets are printed
    #[command(flatten)]
    pub(super) text: TextArgs,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text", help_heading = "Text")]
    pub(super) output: CaptureOutput,
    /// Print more of each packet, such as time to live and options; -vv and -vvv print yet more
    // This replaces the global option of the same name, because users expect tcpdump's meaning
    // here.
    #[arg(short, long, action = ArgAction::Count, help_heading = "Text")]
    pub(super) verbose: u8,
}

/// How packets are printed: tcpdump's flags.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Text")]
pub(super) struct TextArgs {
    /// The link-level header of each packet
    #[arg(short = 'e')]
    pub(super) link_level: bool,
    /// Less of each packet
    #[arg(short, long)]
    pub(super) quick: bool,
    /// TCP's sequence numbers as they are, not relative to the first
    #[arg(short = 'S', long)]
    pub(super) absolute_tcp_sequence_numbers: bool,
    /// The bytes of each packet in hex; twice: the link-level header too
    #[arg(short = 'x', action = ArgAction::Count)]
    pub(super) hex: u8,
    /// The bytes in hex and ASCII; twice: the link-level header too
    #[arg(short = 'X', action = ArgAction::Count)]
    pub(super) hex_ascii: u8,
    /// The bytes in ASCII: tcpdump's -A
    #[arg(long)]
    pub(super) ascii: bool,
    /// -t: no time; -tt: seconds since 1970; -ttt: since the packet before; -tttt: with the date;
    /// -ttttt: since the first
    #[arg(short = 't', action = ArgAction::Count)]
    pub(super) time: u8,
    /// Times with nanoseconds
    #[arg(long)]
    pub(super) nano: bool,
    /// A number before each packet
    #[arg(short = '#', long)]
    pub(super) number: bool,
}

/// Which way packets go, as tcpdump names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Direction {
    // What the pod receives
    In,
    // What the pod sends
    Out,
    // Both
    Inout,
}

/// Output formats of `podsonde capture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum CaptureOutput {
    // Lines as tcpdump prints them
    Text,
    // One JSON object a line for each packet, and one with the totals at the end
    Json,
}
