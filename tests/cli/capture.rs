//! `podsonde capture` and `podsonde extcap` against the fake agent: what is printed, what is
//! written, how it ends. What files hold is asked of tcpdump and Wireshark's tools.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
};

use podsonde::{
    domain::pcapng::write,
    proto::v1::{CaptureDirection, CaptureStartRequest},
};
use serde_json::Value;

use crate::{
    Ended, Fixture,
    fake_agent::FakeAgent,
    fake_capture::{frames, packet, prelude, udp},
    podsonde, podsonde_ended,
};

/// Figures of a capture of a quiet pod.
const CLOSING: &str = "\
5 packets captured
5 packets received by filter
0 packets dropped by kernel
0 packets dropped on the way
";

impl Fixture {
    pub(crate) fn captures(&self) -> Vec<CaptureStartRequest> {
        self.runtime.block_on(async { std::mem::take(&mut *self.agent.captures.lock().await) })
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }
}

/// Whether a program of another project is there, which it must be in CI.
pub(crate) fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    assert!(found || std::env::var_os("CI").is_none(), "{program} is not installed");
    found
}

/// What another project's program prints.
fn told(program: &str, arguments: &[&str]) -> String {
    let ended: Ended =
        Command::new(program).args(arguments).env("TZ", "UTC").output().unwrap().into();
    ended.expect(0).stdout
}

fn interrupt(child: &Child) {
    signal(child, nix::sys::signal::Signal::SIGINT);
}

fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, signal).unwrap();
}

/// Starts a capture and waits for its first packet, which is a line of stdout.
fn until_the_first_packet(
    fixture: &Fixture,
    arguments: &[&str],
) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut command = fixture.command(arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    lines.read_line(&mut String::new()).unwrap();
    (child, lines)
}

fn ended(child: Child, mut stdout: impl Read) -> Ended {
    let mut text = String::new();
    stdout.read_to_string(&mut text).unwrap();
    let ended: Ended = child.wait_with_output().unwrap().into();
    Ended { stdout: text, ..ended }
}

#[test]
fn packets_are_printed_between_tcpdumps_words() {
    let fixture = Fixture::new();
    let ended = fixture.run(&["capture", "web", "--count", "5"]).expect(0);
    assert_eq!(ended.stdout.lines().count(), 5);
    assert_eq!(
        ended.stderr,
        format!(
            "podsonde: listening on any in pod default/web (container nginx, node n1), link-type EN10MB (Ethernet), \
             snapshot length 262144 bytes\n{CLOSING}"
        )
    );
    let one = fixture.run(&["capture", "host", "--count", "1"]).expect(0);
    assert_eq!(one.stdout.lines().count(), 1);
    one.says("note: the agent's own connection is left out; the filter is: \n")
        .says("\n1 packet captured\n");
}

#[test]
fn the_text_is_tcpdumps() {
    if !has("tcpdump") {
        return;
    }
    let fixture = Fixture::new();
    let file = fixture.path("web.pcapng");
    fixture.run(&["capture", "web", "--count", "5", "-w", &file]).expect(0);
    for flags in [
        "", "-e", "-v", "-vvv -e", "-q", "-S", "-x", "-XX", "-t", "-tt", "-ttt", "-tttt", "-ttttt",
        "-#",
    ] {
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let expected = told("tcpdump", &[&["-n", "-r", &file][..], &flags].concat());
        assert_eq!(expected.lines().filter(|line| line.contains("ARP")).count(), 1);
        let mut live = fixture.command(&[&["capture", "web", "--count", "5"][..], &flags].concat());
        assert_eq!(podsonde_ended(live.env("TZ", "UTC")).expect(0).stdout, expected, "{flags:?}");
        let mut read = podsonde(fixture.directory.path());
        read.args(["capture", "-r", &file]).args(&flags).env("TZ", "UTC");
        let read = podsonde_ended(&mut read).expect(0);
        assert_eq!(read.stdout, expected, "{flags:?}");
        read.says(&format!(
            "reading from file {file}, link-type EN10MB (Ethernet), snapshot length 262144 bytes\n"
        ));
    }
    let expected = told("tcpdump", &["-n", "-A", "-r", &file]);
    let ascii = fixture
        .command(&["capture", "web", "--count", "5", "--ascii"])
        .env("TZ", "UTC")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(ascii.stdout).unwrap(), expected);
    // Also pcap, and from a pipe.
    let pcap = fixture.path("web.pcap");
    let classic = told("tcpdump", &["-n", "-r", &file, "-w", &pcap]);
    assert_eq!(classic, "");
    let mut read = podsonde(fixture.directory.path());
    read.args(["capture", "-r", "-", "--count", "2"])
        .env("TZ", "UTC")
        .stdin(std::fs::File::open(&pcap).unwrap());
    let expected = told("tcpdump", &["-n", "-r", &pcap, "-c", "2"]);
    assert_eq!(podsonde_ended(&mut read).expect(0).stdout, expected);
}

#[test]
fn interfaces_have_the_names_that_the_file_says() {
    let fixture = Fixture::new();
    let mut cooked = Vec::new();
    write::section_header(&mut cooked, &write::Section::default());
    let description = "container nginx on node n1; interfaces 1 lo, 4242 eth0";
    let any = write::Interface {
        linktype: 276,
        name: "default/web/any",
        description,
        ..Default::default()
    };
    write::interface(&mut cooked, &any);
    for index in [4242_u32, 1, 7] {
        // IPv4, Ethernet, to this host.
        let header =
            [&[8, 0, 0, 0][..], &index.to_be_bytes(), &[0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0]]
                .concat();
        cooked.extend(packet(1, &[&header, &udp(1, 9999, b"hello")[14..]].concat()));
    }
    let file = fixture.path("any.pcapng");
    std::fs::write(&file, cooked).unwrap();
    let read = |flags: &[&str]| {
        let arguments = [&["capture", "-t", "-r", &file], flags].concat();
        podsonde_ended(podsonde(fixture.directory.path()).args(arguments)).expect(0).stdout
    };
    let line =
        |name: &str| format!("{name:<5} In  IP 10.0.0.1.4000 > 10.0.0.9.9999: UDP, length 5\n");
    assert_eq!(read(&[]), [line("eth0"), line("lo"), line("?")].concat());
    let first: Value = serde_json::from_str(read(&["-o", "json"]).lines().next().unwrap()).unwrap();
    assert_eq!(first["interface"], "eth0");
}

#[test]
fn what_is_no_capture_file_is_refused() {
    let fixture = Fixture::new();
    let read = |file: &str| {
        podsonde_ended(podsonde(fixture.directory.path()).args(["capture", "-r", file]))
    };
    read("/nonexistent/file")
        .expect(1)
        .says("error: /nonexistent/file: cannot read the capture: No such file");
    read(&fixture.file("text", "This is text.\n")).expect(1).says("not a capture file");
    let mut cut = prelude("default", "web");
    cut.extend(packet(1, &frames()[0]));
    cut.extend(&packet(2, &frames()[1])[..20]);
    let file = fixture.path("cut.pcapng");
    std::fs::write(&file, cut).unwrap();
    let ended = read(&file).expect(1).says("truncated capture file");
    assert_eq!(ended.stdout.lines().count(), 1);
}

#[test]
fn a_file_is_what_the_agent_sent() {
    let fixture = Fixture::new();
    let file = fixture.path("web.pcapng");
    let ended = fixture.run(&["capture", "web", "--count", "5", "-w", &file]).expect(0);
    assert_eq!(ended.stdout, "");
    ended.says(CLOSING);
    let written = std::fs::read(&file).unwrap();
    assert!(written.starts_with(&prelude("default", "web")));
    let piped = fixture.command(&["capture", "web", "--count", "5", "-w", "-"]).output().unwrap();
    assert_eq!(piped.stdout, written);
    let printed =
        fixture.run(&["capture", "web", "--count", "5", "-w", &file, "--print"]).expect(0);
    assert_eq!(printed.stdout.lines().count(), 5);
    assert_eq!(std::fs::read(&file).unwrap(), written);
    if has("capinfos") {
        let infos = told("capinfos", &["-T", "-r", "-c", "-E", &file]);
        assert!(infos.contains("\tether\t5"), "{infos}");
    }
    // A pod that is not there costs no file.
    fixture
        .run(&["capture", "nope", "-w", &file])
        .expect(1)
        .says("error: there is no pod default/nope on node n1\nhint: ");
    assert_eq!(std::fs::read(&file).unwrap(), written);
}

#[test]
fn files_take_turns() {
    let fixture = Fixture::new();
    let (file, size) = (fixture.path("web.pcapng"), 100 << 10);
    let capture = ["capture", "flood", "--count", "1005", "-C", "100k", "-w"];
    fixture.run(&[&capture[..], &[&file]].concat()).expect(0).says("1005 packets captured\n");
    let name = |number: usize| if number == 0 { file.clone() } else { format!("{file}{number}") };
    let files: Vec<_> =
        (0..).map(name).take_while(|name| std::path::Path::new(name).exists()).collect();
    assert!(files.len() > 2, "{files:?}");
    let longest = files.iter().map(|file| std::fs::metadata(file).unwrap().len()).max().unwrap();
    assert!((size..size + 20_000).contains(&longest), "{longest}");
    if has("tcpdump") {
        // As if it were one file.
        let lines = |file: &String| told("tcpdump", &["-n", "-t", "-r", file]).lines().count();
        assert_eq!(files.iter().map(lines).sum::<usize>(), 1005);
    }
    let ring = fixture.path("ring");
    fixture
        .run(&["capture", "flood", "--count", "1005", "-C", "100k", "-W", "2", "-w", &ring])
        .expect(0);
    assert!(["0", "1"].iter().all(|number| std::fs::metadata(format!("{ring}{number}")).is_ok()));
    assert!(std::fs::metadata(&ring).is_err() && std::fs::metadata(format!("{ring}2")).is_err());

    let timed = fixture.path("%s.pcapng");
    fixture.captures();
    fixture
        .run(&["capture", "web", "--count", "5", "-G", "1h", "-W", "24", "-w", &timed])
        .expect(0);
    assert_eq!(fixture.captures()[0].max_duration.unwrap().seconds, 24 * 3600);
    for (arguments, message) in [
        ("-C 1 -w -", "stdout is one"),
        ("-W 1 -w f", "-C or -G"),
        ("-C 1 -G 10 -W 1 -w f%s", "either -C or -G"),
        ("-G 0 -w f%s", "at least a second"),
        ("-G 10 -w f", "needs the time in it"),
        ("-G 10 -w f%!", "cannot name files by time"),
        ("-C 1", "--write"),
        ("-C 0 -w f", "is not a size"),
    ] {
        let arguments: Vec<&str> =
            ["capture", "web"].into_iter().chain(arguments.split(' ')).collect();
        let ended = fixture.run(&arguments).expect(2);
        assert!(ended.stderr.contains(message), "{arguments:?}: {}", ended.stderr);
    }
}

#[test]
fn the_flags_are_in_the_request() {
    let fixture = Fixture::new();
    fixture.run(&["capture", "web", "--count", "1"]).expect(0);
    let plain = fixture.captures().remove(0);
    let pod = plain.pod.clone().unwrap();
    assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("default", "web"));
    assert_eq!((plain.interface.as_str(), plain.filter.as_str(), plain.snaplen), ("any", "", 0));
    assert_eq!(plain.direction(), CaptureDirection::Unspecified);
    // A person does not wait.
    assert_eq!(plain.max_delay.unwrap().nanos, 4_000_000);

    let file = fixture.path("f");
    let arguments = "capture -n shop pod/web -c app -i eth0 -s 96 -Q in --count 3 --duration 1m --max-bytes 2MiB -B 1024 \
         udp and not port 53 -w";
    let arguments: Vec<&str> = arguments.split_whitespace().chain([file.as_str()]).collect();
    fixture.run(&arguments).expect(0);
    let request = fixture.captures().remove(0);
    let pod = request.pod.clone().unwrap();
    assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("shop", "web"));
    assert_eq!((request.container.as_str(), request.interface.as_str()), ("app", "eth0"));
    assert_eq!((request.snaplen, request.max_packets), (96, 3));
    assert_eq!((request.max_bytes, request.ring_bytes), (2 << 20, 1 << 20));
    assert_eq!(request.filter, "udp and not port 53");
    assert_eq!(request.max_duration.unwrap().seconds, 60);
    assert_eq!(request.direction(), CaptureDirection::In);
    assert_eq!(request.max_delay.unwrap().nanos, 100_000_000);
    // Packets of several pods wait for each other.
    fixture.run(&["capture", "pod/a", "pod/b", "--count", "10", "-w", &file]).expect(0);
    assert!(
        fixture.captures().iter().all(|request| request.max_delay.unwrap().nanos == 20_000_000)
    );
}

#[test]
fn several_pods_are_one_file_and_prefixed_lines() {
    let fixture = Fixture::new();
    let file = fixture.path("both.pcapng");
    let ended = fixture
        .run(&["capture", "a", "b", "-w", &file, "--print", "--count", "10", "--", "not", "arp"])
        .expect(0);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines.len(), 10, "{}", ended.stdout);
    for prefix in ["[a] ", "[b] "] {
        let own: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix(prefix)).collect();
        assert!(own.len() == 5 && own.is_sorted(), "{}", ended.stdout);
    }
    let ended = ended
        .says("podsonde: listening on any in pod default/a ")
        .says("podsonde: listening on any in pod default/b ")
        .says("default/a: 5 packets captured, 5 packets received by filter, 0 packets dropped by kernel, 0 packets dropped on the way\n");
    assert!(ended.stderr.ends_with(
        "10 packets captured\n10 packets received by filter\n0 packets dropped by kernel\n0 packets dropped on the way\n"
    ));
    assert!(fixture.captures().iter().all(|request| request.filter == "not arp"));
    if has("tshark") && has("capinfos") && has("editcap") {
        let fields = told(
            "tshark",
            &["-r", &file, "-T", "fields", "-e", "frame.interface_name", "-e", "frame.time_epoch"],
        );
        for name in ["default/a/eth0", "default/b/eth0"] {
            let times: Vec<&str> =
                fields.lines().filter_map(|line| line.strip_prefix(name)).collect();
            assert!(times.len() == 5 && times.is_sorted(), "{fields}");
        }
        let infos = told("capinfos", &["-c", "-I", &file]);
        assert!(infos.contains("Number of interfaces in file: 2"), "{infos}");
        told("editcap", &[&file, &fixture.path("copy.pcapng")]);
    }
}

#[test]
fn one_pod_that_fails_does_not_end_the_others() {
    let fixture = Fixture::new();
    let ended =
        fixture.run(&["capture", "pod/web", "pod/nope", "pod/cut", "--count", "10"]).expect(1);
    assert_eq!(ended.stdout.lines().filter(|line| line.starts_with("[web] ")).count(), 5);
    assert_eq!(ended.stdout.lines().filter(|line| line.starts_with("[cut] ")).count(), 5);
    ended
        .says("error: pod default/nope: there is no pod default/nope on node n1\n")
        .says("error: pod default/cut: ")
        .says("default/nope: 0 packets captured")
        .says("default/cut: 5 packets captured, at least 5 packets received by filter")
        .says("10 packets captured\nat least 10 packets received by filter\n");
    fixture.run(&["capture", "pod/nope", "pod/denied"]).expect(1).says("may not create captures");
}

#[test]
fn the_count_is_that_of_all_pods() {
    let fixture = Fixture::new();
    let ended = fixture.run(&["capture", "a", "pod/b", "--count", "3"]).expect(0);
    assert_eq!(ended.stdout.lines().count(), 3);
    ended.says("\n3 packets captured\n").says("packets received by filter\n");
}

#[test]
fn an_interruption_waits_for_the_figures() {
    let fixture = Fixture::new();
    for (pod, closing) in [
        ("web", CLOSING),
        (
            "lossy",
            "5 packets captured\n20 packets received by filter\n10 packets dropped by kernel\n3 packets dropped on the way\n\
             2 packets still under way at the end\n",
        ),
    ] {
        for how in [nix::sys::signal::Signal::SIGINT, nix::sys::signal::Signal::SIGTERM] {
            let (child, lines) = until_the_first_packet(&fixture, &["capture", pod]);
            signal(&child, how);
            let ended = ended(child, lines).expect(0);
            assert_eq!(ended.stdout.lines().count(), 4);
            assert!(ended.stderr.ends_with(&format!(" bytes\n{closing}")), "{}", ended.stderr);
        }
    }
    // An agent that says nothing any more is not waited for, and no figures are made up.
    let (child, lines) = until_the_first_packet(&fixture, &["capture", "mute"]);
    interrupt(&child);
    let ended = ended(child, lines).expect(0);
    ended.says(
        "5 packets captured\nat least 5 packets received by filter\nat least 0 packets dropped by kernel\n",
    );
}

#[test]
fn an_interruption_before_anything_came_ends_it_too() {
    let fixture = Fixture::new();
    let mut command = fixture.command(&["capture", "stall"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while fixture.captures().is_empty() {
        std::thread::yield_now();
    }
    interrupt(&child);
    let ended: Ended = child.wait_with_output().unwrap().into();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
}

#[test]
fn an_end_that_nobody_asked_for_is_an_error() {
    let fixture = Fixture::new();
    let gone = fixture.run(&["capture", "gone"]).expect(1);
    assert_eq!(gone.stdout.lines().count(), 5);
    gone.says("note: the capture of pod default/gone has ended: the container nginx has ended\n")
        .says(CLOSING);
    let cut = fixture.run(&["capture", "cut"]).expect(1);
    assert_eq!(cut.stdout.lines().count(), 5);
    cut.says("error: ").says("5 packets captured\nat least 5 packets received by filter\n");
    fixture.run(&["capture", "garbage"]).expect(1).says("the agent sent malformed pcapng");
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let fixture = Fixture::new();
    for arguments in [
        &["capture", "flood"][..],
        &["capture", "flood", "-o", "json"],
        &["capture", "flood", "-w", "-"],
        &["capture", "flood", "pod/web"],
    ] {
        let mut child = fixture
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut some = [0; 1000];
        child.stdout.take().unwrap().read_exact(&mut some).unwrap();
        let ended: Ended = child.wait_with_output().unwrap().into();
        let ended = ended.expect(0);
        let said: Vec<&str> = ended
            .stderr
            .lines()
            .filter(|line| !line.starts_with("podsonde: listening on "))
            .collect();
        assert_eq!(said, [""; 0], "{arguments:?}");
    }
}

#[test]
fn an_output_that_nobody_reads_holds_the_agent_back() {
    let fixture = Fixture::new();
    let mut child = fixture
        .command(&["capture", "flood", "-w", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Until nothing moves any more: what the process holds does not grow.
    let resident = |child: &Child| -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let mut before = 0;
    loop {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let now = resident(&child);
        // The queue is full, and so is the window of the connection.
        if now == before && now > 40_000 {
            break;
        }
        before = now;
    }
    assert!(before < 150_000, "{before} KiB");
    // The first interruption waits for the output, the second does not.
    interrupt(&child);
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.any(|line| line.ends_with("Ctrl-C again leaves it")));
    assert!(child.try_wait().unwrap().is_none());
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn json_has_an_object_for_each_packet_and_the_totals() {
    let fixture = Fixture::new();
    let ended = fixture.run(&["capture", "web", "--count", "5", "-o", "json"]).expect(0);
    let lines: Vec<Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 6);
    assert_eq!(lines[0]["time"], "2023-11-14T22:13:20.123456000Z");
    assert_eq!(
        (&lines[0]["namespace"], &lines[0]["pod"], &lines[0]["interface"], &lines[0]["direction"]),
        (&"default".into(), &"web".into(), &"eth0".into(), &"out".into())
    );
    assert_eq!((&lines[0]["length"], &lines[0]["captured"]), (&60.into(), &60.into()));
    assert!(lines[0]["text"].is_string());
    assert_eq!(
        lines[5]["totals"],
        serde_json::json!({"captured": 5, "receivedByFilter": 5, "droppedByKernel": 0, "droppedOnTheWay": 0, "underWay": 0,
            "beyondCount": 0, "exact": true})
    );
    assert_eq!(lines[5]["pods"][0]["end"], "PACKETS");
    // With a file there are the totals only.
    let file = fixture.path("f");
    let ended =
        fixture.run(&["capture", "web", "--count", "5", "-o", "json", "-w", &file]).expect(0);
    assert_eq!(ended.json()["totals"]["captured"], 5);
}

#[test]
fn interfaces_and_programs_are_shown() {
    let fixture = Fixture::new();
    assert_eq!(
        fixture.run(&["capture", "web", "-D"]).expect(0).stdout,
        "\
INTERFACE   STATE         LINK-TYPE    MTU     ADDRESSES
any         up            LINUX_SLL2   -       -
lo          up,loopback   EN10MB       65536   127.0.0.1/8,::1/128
eth0        down          EN10MB       1500    10.244.0.7/24
"
    );
    let json = fixture.run(&["capture", "web", "-D", "-o", "json"]).expect(0).json();
    assert_eq!(json["interfaces"][1]["name"], "lo");
    assert_eq!(
        fixture.run(&["capture", "web", "-d", "-i", "eth0", "tcp", "port", "80"]).expect(0).stdout,
        "(000) ret      #262144 ; tcp port 80 on eth0\n"
    );
    assert_eq!(fixture.captures(), []);
}

#[test]
fn errors_say_what_to_do() {
    let fixture = Fixture::new();
    fixture
        .run(&["capture", "denied"])
        .expect(1)
        .says("may not create captures.podsonde.dev denied in namespace default\nhint: ")
        .says("podsonde-capturer");
    fixture
        .run(&["capture", "web", "nonsense"])
        .expect(1)
        .says("error: filter: can't parse filter expression")
        .says("hint: ");
    let file = fixture.path("f");
    let full = fixture.run(&["capture", "flood", "-w", "/dev/full"]).expect(1);
    full.says("error: cannot write the result: No space left on device");
    fixture.run(&["capture", "web", "-w", &format!("{file}/f")]).expect(1);
}

#[test]
fn an_agent_of_before_is_named_as_such() {
    let fixture = Fixture::with(FakeAgent { is_old: true, ..FakeAgent::default() });
    for flags in [&[][..], &["-D"], &["-d"]] {
        fixture
            .run(&[&["capture", "web"], flags].concat())
            .expect(1)
            .says(&format!(
                "error: the agent at {} does not know captures yet\nhint: ",
                fixture.endpoint
            ))
            .says("podsonde version");
    }
}

#[test]
fn tcpdumps_letters_that_mean_something_else_are_noted() {
    let fixture = Fixture::new();
    fixture
        .run(&["capture", "web", "-nn", "-c", "10", "--count", "1"])
        .expect(0)
        .says("note: -n is the namespace, here n; addresses are always printed as numbers\n")
        .says(
            "note: -c is the container, here 10; to end after so many packets write --count 10\n",
        );
}

#[test]
fn usage_errors_ask_nobody() {
    let fixture = Fixture::new();
    for arguments in [
        "capture",
        "capture -e",
        "capture Web",
        "capture web Db -- port 80",
        "capture node/n1",
        "capture web --print",
        "capture web -w - -o json",
        "capture web -w - --print",
        "capture web -r f -w g",
        "capture -r f port 80",
        "capture web --count 0",
        "capture web --max-bytes many",
        "capture web -Q sideways",
        "capture web -i",
        "capture a pod/b --max-pods 1",
        "capture web -D -w f",
        "extcap",
        "extcap --extcap-config",
        "extcap --capture --extcap-interface podsonde:default/web",
        "extcap --extcap-dlts --extcap-interface eth0",
        "extcap --extcap-dlts --extcap-interface podsonde:default/../web",
    ] {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        let ended = fixture.run(&words);
        assert_eq!(ended.code, Some(2), "{arguments}: {}", ended.stderr);
    }
    assert_eq!(fixture.captures(), []);
}

#[test]
fn wireshark_is_answered_by_its_protocol() {
    let fixture = Fixture::new();
    let program = fixture.directory.path().join("podsonde-extcap");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_podsonde"), &program).unwrap();
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command
            .args(arguments)
            .env("PODSONDE_AGENT", &fixture.endpoint)
            .env("KUBECONFIG", "/nonexistent");
        podsonde_ended(&mut command)
    };
    // Without a cluster there is still the interface that asks for one.
    let interfaces = ask(&["--extcap-interfaces", "--extcap-version=4.2"]).expect(0);
    assert_eq!(
        interfaces.stdout,
        format!(
            "extcap {{version={}}}{{help=https://github.com/podsonde/podsonde}}{{display=podsonde}}\n\
             interface {{value=podsonde}}{{display=Kubernetes: pods by name or label}}\n",
            env!("CARGO_PKG_VERSION")
        )
    );
    let interface = ["--extcap-interface", "podsonde:default/web"];
    let config = ask(&[&interface[..], &["--extcap-config"]].concat()).expect(0).stdout;
    assert!(
        config.contains(
            "{call=--interface}{display=Interface of the pod}{type=selector}{reload=true}"
        ),
        "{config}"
    );
    assert!(!config.contains("--pods"));
    assert_eq!(
        ask(&[&interface[..], &["--extcap-config", "--extcap-reload-option", "interface"]].concat())
            .expect(0)
            .stdout,
        "value {arg=1}{value=any}{display=any}{default=true}\n\
         value {arg=1}{value=lo}{display=lo}{default=false}\n\
         value {arg=1}{value=eth0}{display=eth0}{default=false}\n"
    );

    let fifo = fixture.path("fifo");
    nix::unistd::mkfifo(fifo.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let start = |interface: &str, arguments: &[&str]| {
        let mut command = Command::new(&program);
        command
            .args(["--capture", "--extcap-interface", interface, "--fifo", &fifo])
            .args(arguments);
        command
            .env("PODSONDE_AGENT", &fixture.endpoint)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let mut pipe = BufReader::new(std::fs::File::open(&fifo).unwrap());
        let mut begin = vec![0; prelude("default", "web").len()];
        pipe.read_exact(&mut begin).unwrap();
        (child, pipe, begin)
    };
    let flags = [
        "--extcap-capture-filter",
        "tcp",
        "--filter",
        "port 80 or 81",
        "--snapshot-length",
        "99",
        "--context",
        "",
        "--container",
        "",
    ];
    let (child, pipe, begin) = start("podsonde:default/web", &flags);
    assert_eq!(begin, prelude("default", "web"));
    // Wireshark's Stop button.
    signal(&child, nix::sys::signal::Signal::SIGTERM);
    let mut rest = Vec::new();
    { pipe }.read_to_end(&mut rest).unwrap();
    let ended: Ended = child.wait_with_output().unwrap().into();
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), "", ""));
    let request = fixture.captures().remove(0);
    assert_eq!((request.filter.as_str(), request.snaplen), ("(port 80 or 81) and (tcp)", 99));

    // A Wireshark that is gone is no error, either.
    let (child, pipe, _) = start("podsonde", &["--pods", "flood pod/web"]);
    drop(pipe);
    let ended: Ended = child.wait_with_output().unwrap().into();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    let failed =
        ask(&["--capture", "--extcap-interface", "podsonde:default/nope", "--fifo", &fifo])
            .expect(1);
    failed.says("error: there is no pod default/nope");
}
