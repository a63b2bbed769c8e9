//! The arguments of `podsonde capture`: tcpdump's letters, except where kubectl uses the same
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
    after_help = "Captures the packets of pods inside their network namespace, without anything in the pod: on all interfaces or \
one, loopback among them. Prints them as tcpdump does, or writes pcapng with -w. FILTER is tcpdump's language, see \
pcap-filter(7); names of hosts are not looked up, and addresses are always printed as numbers. Ctrl-C ends it.

The flags are tcpdump's, except for those that kubectl has for something else: -n is the namespace, -c the container, -l the \
labels, -A all namespaces, -o the output. For tcpdump's -c, -A and -l see --count, --ascii, and note that lines are never held back.

The first word is the pod. More pods: write them as TYPE/NAME, or put -- before the filter. A deployment or its like \
stands for all its pods that run. Lines of several pods are ordered by time within 10 ms and begin with the pod's name; files \
have an interface NAMESPACE/POD/INTERFACE for each. A client or disk that is slow holds the agent back, never loses packets by \
itself: what then finds no room on the node is counted there.

Examples:
  # What web's HTTP clients ask
  podsonde capture web port 80

  # DNS of all pods with a label, as JSON, one packet a line
  podsonde capture -l app=web -o json udp port 53

  # A file for Wireshark, and Wireshark live
  podsonde capture web -i eth0 -w web.pcapng
  podsonde capture web -w - | wireshark -k -i -

  # The last gigabyte, in ten files; a file for each hour of a day
  podsonde capture web -w web.pcapng -C 100 -W 10
  podsonde capture web -w web-%d-%H%M.pcapng -G 1h -W 24

  # Two pods, a filter behind --, with link-level headers and hex
  podsonde capture web db -e -X -- tcp port 5432

  # Ten packets, or ten seconds, whichever is first
  podsonde capture deploy/web --count 10 --duration 10s

  # Read a file; what can be captured on; what a filter compiles to
  podsonde capture -r web.pcapng -v
  podsonde capture web -D
  podsonde capture web -d tcp port 80

Exit codes:
  0  ended as asked: by a limit, Ctrl-C, SIGTERM, or because nobody reads the output any more
  1  error; of several pods: some failed; a pod, container or interface went away
  2  usage"
)]
pub(in crate::cli) struct CaptureArgs {
    /// Pod (POD, pod/POD, deployment/NAME, …), then the filter; only the filter with -l or -A
    #[arg(value_name = "POD | FILTER")]
    pub(super) words: Vec<String>,
    /// The filter, where it has words that begin with - or several pods are named before it
    #[arg(last = true, value_name = "FILTER")]
    pub(super) filter: Vec<String>,
    /// Pods with these labels (app=web,tier!=cache, `env in (a,b)`)
    #[arg(short = 'l', long, value_name = "SELECTOR", help_heading = "Pods")]
    pub(super) selector: Option<String>,
    /// Pods of all namespaces
    #[arg(short = 'A', long, help_heading = "Pods")]
    pub(super) all_namespaces: bool,
    /// Container by whose process the network namespace is found [default: any that runs]
    #[arg(short, long, value_name = "NAME", value_parser = label, help_heading = "Pods")]
    pub(super) container: Option<String>,
    /// Refuse to capture more pods than this at once
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Pods")]
    pub(super) max_pods: u32,

    /// Interface to capture on, or any
    #[arg(short, long, value_name = "NAME", default_value = "any", help_heading = "Capture")]
    pub(super) interface: String,
    /// List the interfaces that packets can be captured on, and exit
    #[arg(short = 'D', long, conflicts_with_all = ["dump", "read", "write"], help_heading = "Capture")]
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
    /// Bytes of each packet to capture at most; 0: 262144, the maximum
    #[arg(
        short,
        long,
        value_name = "BYTES",
        default_value_t = 0,
        hide_default_value = true,
        help_heading = "Capture"
    )]
    pub(super) snapshot_length: u32,
    /// End after so many packets, of all pods together
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Capture")]
    pub(super) count: Option<u64>,
    /// End after this time [default: the agent's, 1h]
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "Capture")]
    pub(super) duration: Option<Duration>,
    /// End each pod's capture after so many bytes of pcapng (10M, 2GiB)
    #[arg(long, value_name = "BYTES", value_parser = bytes, help_heading = "Capture")]
    pub(super) max_bytes: Option<u64>,
    /// Size of the kernel's buffer in KiB [default: the agent's, 65536]
    #[arg(short = 'B', long, value_name = "KIB", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Capture")]
    pub(super) buffer_size: Option<u32>,

    /// Write packets to this file as pcapng instead of printing them; - for stdout
    #[arg(short, long, value_name = "FILE", help_heading = "Files")]
    pub(super) write: Option<PathBuf>,
    /// Begin another file after so many million bytes (or 500k, 2g, as tcpdump has them): FILE,
    /// FILE1, FILE2, …
    #[arg(short = 'C', long, value_name = "SIZE", value_parser = file_size, requires = "write", help_heading = "Files")]
    pub(super) file_size: Option<u64>,
    /// Begin another file this often (seconds, or 5m); strftime's codes in FILE give each a name
    /// (web-%H%M%S.pcapng)
    #[arg(short = 'G', long = "rotate", value_name = "DURATION", value_parser = duration, requires = "write", help_heading = "Files")]
    pub(super) rotate: Option<Duration>,
    /// With -C: so many files, of which the oldest is overwritten; with -G: end after so many
    #[arg(short = 'W', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), requires = "write", help_heading = "Files")]
    pub(super) file_count: Option<u32>,
    /// Print packets although they are written to a file
    #[arg(long, requires = "write", help_heading = "Files")]
    pub(super) print: bool,
    /// Print the packets of a pcapng or pcap file instead of capturing; - for stdin
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["write", "selector", "all_namespaces", "container",
        "buffer_size", "duration", "max_bytes"], help_heading = "Files")]
    pub(super) read: Option<PathBuf>,
    /// Accepted for tcpdump's sake: what has come is always written at once
    #[arg(short = 'U', long, help_heading = "Files")]
    pub(super) packet_buffered: bool,

    /// How packets are printed
    #[command(flatten)]
    pub(super) text: TextArgs,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text", help_heading = "Text")]
    pub(super) output: CaptureOutput,
    /// More of each packet: time to live, options, …; twice, three times: yet more
    // Has the name of the global one, and so takes its place: tcpdump's meaning is what people
    // expect here.
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
