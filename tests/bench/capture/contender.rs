//! The programs that capture.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{cpu, world::World};

/// A file of podsonde's that has not grown for so long has everything. Less than the 250 ms after
/// which it gets its next statistics.
const STILL: Duration = Duration::from_millis(160);
/// The same of a program that uses libpcap: tcpdump lets packets wait for a second.
const STILL_OF_LIBPCAP: Duration = Duration::from_millis(1500);

/// Who captures.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    Podsonde,
    Tcpdump,
    TcpdumpLarge,
    TlsPipe,
    Dumpcap,
}

/// What a run cost and what came of it.
pub(crate) struct Run {
    /// CPU seconds of each part: of podsonde the agent, then the client.
    pub(crate) seconds: Vec<f64>,
    pub(crate) sent: u64,
    /// Packets in the file, by capinfos.
    pub(crate) in_file: u64,
    /// Packets that the program counts as dropped.
    pub(crate) dropped: u64,
    /// Packets that were sent a second.
    pub(crate) rate: f64,
}

impl Contender {
    pub(crate) fn installed() -> Vec<Self> {
        let mut all = vec![Self::Podsonde, Self::Tcpdump, Self::TlsPipe];
        if Command::new("dumpcap").arg("--version").stdout(Stdio::null()).status().is_ok() {
            all.push(Self::Dumpcap);
        }
        all
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Podsonde => "podsonde, agent + client",
            Self::Tcpdump => "`tcpdump -w FILE`",
            Self::TcpdumpLarge => "`tcpdump -B 65536 -w FILE`",
            Self::TlsPipe => "`tcpdump -B 65536 -w -`, socat, TLS, socat",
            Self::Dumpcap => "`dumpcap -w FILE`",
        }
    }

    /// Captures so many packets.
    ///
    /// # Panics
    /// If not every packet that podsonde was to capture is in the file or counted as dropped.
    pub(crate) fn run(self, world: &mut World, packets: u64, size: usize, rate: u64) -> Run {
        let path = world.file("capture");
        let file = path.to_str().unwrap();
        let interface = World::INTERFACE;
        let agent = cpu::of_tree(world.agent());
        let mut pipe = None;
        let mut command = match self {
            Self::Podsonde => world.client(&["-w", file]),
            Self::Tcpdump => world.in_pod(&["tcpdump", "-i", interface, "-w", file]),
            Self::TcpdumpLarge => {
                world.in_pod(&["tcpdump", "-B", "65536", "-i", interface, "-w", file])
            }
            Self::TlsPipe => {
                let mut command =
                    world.in_pod(&["tcpdump", "-B", "65536", "-i", interface, "-w", "-"]);
                pipe = Some(Pipe::start(&world.file("pipe.pem"), &path));
                command.stdout(pipe.as_mut().unwrap().server.stdin.take().unwrap());
                command
            }
            Self::Dumpcap => world.in_pod(&["dumpcap", "-i", interface, "-w", file]),
        };
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        // It has the pipe's end, and no one else, for it to end with it.
        drop(command);
        let listens = if self == Self::Dumpcap { "File:" } else { "listening on" };
        let mut log = wait_for(&mut child, listens);
        let began = Instant::now();
        world.send(packets, size, rate);
        let rate = packets as f64 / began.elapsed().as_secs_f64();
        until_still(&path, if self == Self::Podsonde { STILL } else { STILL_OF_LIBPCAP });
        cpu::interrupt(&child);
        let mut last = String::new();
        log.read_to_string(&mut last).unwrap();
        let mut seconds = vec![cpu::reap(child)];
        if self == Self::Podsonde {
            seconds.insert(0, cpu::of_tree(world.agent()) - agent);
        }
        if let Some(Pipe { server, client }) = pipe {
            seconds[0] += cpu::reap(server) + cpu::reap(client);
        }
        let (in_file, dropped) = (packets_of(&path), dropped(&last));
        fs::remove_file(&path).unwrap();
        if self == Self::Podsonde {
            assert_eq!(in_file + dropped, packets, "it does not add up: {last}");
        }
        Run { seconds, sent: packets, in_file, dropped, rate }
    }
}

/// What goes in comes out through TLS.
struct Pipe {
    server: Child,
    client: Child,
}

impl Pipe {
    fn start(certificate: &Path, file: &Path) -> Self {
        if !certificate.exists() {
            make_certificate(certificate);
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let listen =
            format!("OPENSSL-LISTEN:{port},bind=127.0.0.1,cert={},verify=0", certificate.display());
        let mut server = Command::new("socat")
            .args(["-d", "-d", "-u", "-b", "262144", "STDIN", &listen])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = wait_for(&mut server, "listening");
        drain(log);
        let mut client = Command::new("socat")
            .args([
                "-d",
                "-d",
                "-d",
                "-u",
                "-b",
                "262144",
                &format!("OPENSSL:127.0.0.1:{port},verify=0"),
            ])
            .arg(format!("CREATE:{}", file.display()))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drain(wait_for(&mut client, "starting data transfer loop"));
        Self { server, client }
    }
}

/// What else it says is for nobody, but must not block it.
fn drain(mut log: impl Read + Send + 'static) {
    thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
}

fn make_certificate(path: &Path) {
    let directory = path.parent().unwrap();
    let (key, certificate) = (directory.join("key.pem"), directory.join("certificate.pem"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ])
        .args(["-days", "1", "-subj", "/CN=localhost", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .stderr(Stdio::null())
        .status();
    assert!(made.unwrap().success());
    fs::write(path, [fs::read(key).unwrap(), fs::read(certificate).unwrap()].concat()).unwrap();
}

/// Waits until the program writes this to stderr. Returns the rest.
pub(crate) fn wait_for(child: &mut Child, what: &str) -> impl BufRead + Send + use<> {
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let (mut line, mut all) = (String::new(), String::new());
    while !line.contains(what) {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "no {what:?}, but: {all}");
        all.push_str(&line);
    }
    log
}

/// Waits until the file does not grow any more.
fn until_still(file: &Path, still: Duration) {
    let length =
        || File::open(file).and_then(|file| file.metadata()).map_or(0, |metadata| metadata.len());
    let (mut before, mut since) = (length(), Instant::now());
    while since.elapsed() < still {
        thread::sleep(Duration::from_millis(20));
        let now = length();
        if now != before {
            (before, since) = (now, Instant::now());
        }
    }
}

fn packets_of(file: &Path) -> u64 {
    let output =
        Command::new("capinfos").args(["-M", "-T", "-r", "-c"]).arg(file).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    table.split_whitespace().last().unwrap().parse().unwrap()
}

/// What the closing lines say was dropped, by whomever.
fn dropped(closing: &str) -> u64 {
    let count = |line: &str| -> Option<u64> {
        if let Some((_, counts)) = line.split_once("received/dropped on interface") {
            // dumpcap: 'gen0': 10/0 (pcap:0/dumpcap:0/…
            let (_, dropped) = counts.split_once(": ")?.1.split_once('/')?;
            return dropped.split(' ').next()?.parse().ok();
        }
        let (count, _) =
            line.split_once(" packets dropped ").or_else(|| line.split_once(" packet dropped "))?;
        // tcpdump says it apart where it is the interface that drops, which is none of the
        // capture's business.
        (!line.contains("by interface")).then(|| count.trim().parse().ok())?
    };
    closing.lines().filter_map(count).sum()
}
