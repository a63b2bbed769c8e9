//! Packets of pods that run on a real containerd, captured by the shipped container and written by
//! `podsonde capture`, beside what a `tcpdump` in the pod's network namespace sees at the same
//! time.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Instant,
};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams};
use serde_json::{Value, json};

use crate::{
    fixture::{Fixture, http, nginx, pod_ip, running, sleeping, until, with},
    support::{
        netns::inside,
        node,
        pcap::{self, Packet},
    },
};

/// What is captured: the requests, and what [`Web::mark`] sends when they are over.
const FILTER: &str = "tcp port 80 or udp dst port 9";

/// A process that captures into a file. What it says is read from the beginning.
struct Capturing {
    child: Child,
    said: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    file: PathBuf,
}

impl Capturing {
    /// Once it captures.
    async fn started(mut child: Child, file: PathBuf) -> Self {
        let stderr = child.stderr.take().expect("stderr");
        let said = Arc::<Mutex<String>>::default();
        let reader = Some(std::thread::spawn({
            let said = Arc::clone(&said);
            move || gather(stderr, &said)
        }));
        let capturing = Self { child, said, reader, file };
        until("it captures", async || {
            let said = capturing.said();
            assert!(!said.contains("error"), "{said}");
            said.contains("listening on ")
        })
        .await;
        capturing
    }

    /// `podsonde capture web -w FILE` with these arguments.
    async fn podsonde(fixture: &Fixture, args: &[&str]) -> Self {
        let file = fixture.node.dir.join(format!("{}.pcapng", uuid::Uuid::new_v4()));
        let args = [&["capture", "web", "-w", text(&file)], args].concat();
        Self::started(fixture.spawn(&args).child, file).await
    }

    /// `tcpdump` in the network namespace of a process, on this interface.
    async fn tcpdump(fixture: &Fixture, pid: u32, interface: &str) -> Self {
        let file = fixture.node.dir.join(format!("{}.pcap", uuid::Uuid::new_v4()));
        let mut command =
            inside(pid, &["tcpdump", "--nano", "-n", "-U", "-i", interface, "-w", "-", FILTER]);
        command
            .stdin(Stdio::null())
            .stdout(File::create(&file).expect("a file"))
            .stderr(Stdio::piped());
        Self::started(command.spawn().expect("tcpdump"), file).await
    }

    fn said(&self) -> String {
        self.said.lock().expect("nobody panics with it").clone()
    }

    /// The packets in its file so far; the last one may not be there yet as a whole.
    fn packets(&self) -> Vec<Packet> {
        let file = fs::read(&self.file).expect("the file");
        if file.is_empty() { Vec::new() } else { pcap::read(&file).1 }
    }

    /// Sends it a signal.
    fn signal(&self, signal: &str) {
        node::output("kill", &[signal, &self.child.id().to_string()]);
    }

    /// How it ended, and all that it said.
    async fn ended(&mut self) -> (ExitStatus, String) {
        let child = Mutex::new(&mut self.child);
        let waited = || child.lock().expect("one at a time").try_wait().expect("waits");
        until("it ends", async || waited().is_some()).await;
        let status = waited().expect("an end");
        self.reader.take().expect("once").join().expect("its words");
        (status, self.said())
    }

    /// What it wrote to stdout. To be asked once it has ended.
    fn printed(&mut self) -> String {
        let mut printed = String::new();
        self.child.stdout.take().expect("stdout").read_to_string(&mut printed).expect("UTF-8");
        printed
    }

    /// Ends it by Ctrl-C.
    async fn interrupted(&mut self) -> String {
        self.signal("-INT");
        let (status, said) = self.ended().await;
        assert!(status.success(), "{status}: {said}");
        said
    }
}

impl Drop for Capturing {
    /// A failing test leaves no process behind.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn gather(stderr: ChildStderr, said: &Mutex<String>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        *said.lock().expect("nobody panics with it") += &(line + "\n");
    }
}

/// The pod `web`, with nginx.
struct Web {
    container: String,
    pid: u32,
    ip: IpAddr,
}

impl Web {
    async fn start(fixture: &Fixture) -> Self {
        let pod = fixture.pod("web", nginx()).await;
        let container = running(&pod, "nginx").expect("runs");
        let pid = node::pid(&container).expect("runs");
        let ip = pod_ip(&pod).expect("an address");
        until("nginx answers", async || matches!(http(ip, 80, "/").await, Ok((200, _)))).await;
        Self { container, pid, ip }
    }

    /// Three requests: from the node, which comes in on eth0, and by the pod itself to its address
    /// and its loopback.
    async fn request(&self) {
        let (status, body) = http(self.ip, 80, "/").await.expect("an answer");
        assert!(status == 200 && body.contains("Welcome to nginx!"), "{status} {body}");
        for host in [self.ip.to_string(), "127.0.0.1".to_owned()] {
            let page = node::exec(&self.container, &["wget", "-qO-", &format!("http://{host}:80")]);
            assert!(page.contains("Welcome to nginx!"), "{page}");
        }
    }

    /// Sends the packet after which nothing more comes, on loopback and to the node.
    fn mark(&self, fixture: &Fixture) {
        for address in ["127.0.0.1", &fixture.node.address.to_string()] {
            let script = format!("echo -n mark > /dev/udp/{address}/9");
            let sent = inside(self.pid, &["bash", "-c", &script]).status().expect("bash");
            assert!(sent.success());
        }
    }

    /// How many packet sockets there are in the pod's network namespace, by the kernel.
    fn sockets(&self) -> usize {
        let table =
            fs::read_to_string(format!("/proc/{}/net/packet", self.pid)).expect("the table");
        table.lines().count() - 1
    }

    /// Waits until there are none, and returns how long that took, to some 20 ms, in words.
    async fn without_sockets(&self) -> String {
        let began = Instant::now();
        until("the capture's socket is gone", async || self.sockets() == 0).await;
        format!("its socket was gone after {:?}", began.elapsed())
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// What does not depend on who captured them, nor on which processor was first.
fn contents(packets: Vec<Packet>) -> Vec<(u32, Vec<u8>)> {
    let mut contents: Vec<_> = packets.into_iter().map(|p| (p.original_length, p.data)).collect();
    contents.sort();
    contents
}

/// The number before these words in tcpdump's closing lines.
fn figure(said: &str, words: &str) -> usize {
    let line = said
        .lines()
        .find(|line| line.ends_with(words))
        .unwrap_or_else(|| panic!("no {words}: {said}"));
    let line = line.trim_start_matches("podsonde: ").trim_start_matches("at least ");
    line.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{line}"))
}

/// Asserts that the closing lines add up, and that the file has so many packets.
#[track_caller]
fn add_up(said: &str, packets: usize) {
    assert_eq!(figure(said, " captured"), packets, "{said}");
    let under_way = if said.contains("still under way") {
        figure(said, " still under way at the end")
    } else {
        0
    };
    let lost = figure(said, " dropped by kernel") + figure(said, " dropped on the way");
    assert_eq!(figure(said, " received by filter"), packets + lost + under_way, "{said}");
}

/// The names of the interfaces of a file's packets, by tshark.
fn interfaces(file: &Path) -> Vec<String> {
    let listed =
        node::output("tshark", &["-r", text(file), "-T", "fields", "-e", "frame.interface_name"]);
    let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
    names.dedup();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_to_a_pod_are_captured_as_tcpdump_inside_captures_them() {
    let Some(fixture) = Fixture::start().await else { return };
    let web = Web::start(&fixture).await;
    for (interface, marks) in [("any", 2), ("eth0", 1), ("lo", 1)] {
        let mut theirs = Capturing::tcpdump(&fixture, web.pid, interface).await;
        let mut ours = Capturing::podsonde(&fixture, &["-i", interface, FILTER]).await;
        web.request().await;
        web.mark(&fixture);
        let done = |capturing: &Capturing| {
            let marked = |packet: &&Packet| packet.data.ends_with(b"mark");
            capturing.packets().iter().filter(marked).count() >= marks
        };
        until("the last packets are written", async || done(&ours) && done(&theirs)).await;
        let said = ours.interrupted().await;
        theirs.interrupted().await;
        println!("{said}");

        let packets = contents(ours.packets());
        assert!(packets.len() >= marks + 9, "{packets:?}");
        assert_eq!(packets, contents(theirs.packets()), "{interface}");
        let link = |file: &Path| pcap::read(&fs::read(file).expect("the file")).0;
        assert_eq!(link(&ours.file), link(&theirs.file));
        assert_eq!(pcap::accepted(&fs::read(&ours.file).unwrap()), packets.len() as u64);
        assert_eq!(interfaces(&ours.file), [format!("default/web/{interface}")]);
        add_up(&said, packets.len());
        assert_eq!(figure(&said, " dropped by kernel") + figure(&said, " dropped on the way"), 0);

        for flags in [&[][..], &["-e"], &["-v"], &["-e", "-vv"], &["-X"], &["-tttt", "-q"]] {
            let ours_printed =
                fixture.spawn(&[&["capture", "-r", text(&ours.file)], flags].concat());
            let ours_printed = ours_printed.ended().await.expect(0).stdout;
            // tcpdump asks the kernel for the names of interfaces, so it asks in the pod.
            let read = [&["tcpdump", "-n", "-r", text(&ours.file)], flags].concat();
            let theirs_printed = inside(web.pid, &read).output().expect("tcpdump").stdout;
            assert_eq!(
                ours_printed,
                String::from_utf8(theirs_printed).unwrap(),
                "{interface} {flags:?}"
            );
        }
        web.without_sockets().await;
        println!("{interface}: {} packets as tcpdump has them", packets.len());
    }
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_compile_and_interfaces_are_listed_in_the_shipped_container() {
    let Some(fixture) = Fixture::start().await else { return };
    let web = Web::start(&fixture).await;
    for filter in [
        "tcp port 80",
        "host 10.88.0.1 and not (udp port 53 or icmp)",
        "tcp[tcpflags] & tcp-syn != 0",
    ] {
        let ours = fixture.podsonde(&["capture", "web", "-d", filter]).await.expect(0).stdout;
        assert_eq!(ours, node::output("tcpdump", &["-y", "LINUX_SLL2", "-d", filter]), "{filter}");
    }
    for (filter, says) in [("tcp prot 80", "syntax error"), ("host example.com", "example.com")] {
        let refused = fixture.podsonde(&["capture", "web", "--count", "1", filter]).await.expect(1);
        println!("{}", refused.stderr);
        assert!(
            refused.stderr.contains("error: ") && refused.stderr.contains(says),
            "{}",
            refused.stderr
        );
    }
    let listed = fixture.podsonde(&["capture", "web", "-D", "-o", "json"]).await.expect(0).stdout;
    let links: Value =
        serde_json::from_slice(&inside(web.pid, &["ip", "-j", "link"]).output().unwrap().stdout)
            .expect("JSON");
    for link in links.as_array().expect("a list") {
        assert!(listed.contains(&format!("\"{}\"", link["ifname"].as_str().unwrap())), "{listed}");
    }
    let unknown = fixture.podsonde(&["capture", "web", "-i", "eth7"]).await.expect(1);
    assert!(
        unknown.stderr.contains("eth0") && unknown.stderr.contains("eth7"),
        "{}",
        unknown.stderr
    );

    // Limits end a capture by themselves.
    let mut counted = Capturing::podsonde(&fixture, &["--count", "5", "tcp", "port", "80"]).await;
    web.request().await;
    let (status, said) = counted.ended().await;
    assert!(status.success(), "{said}");
    assert_eq!((counted.packets().len(), figure(&said, " captured")), (5, 5), "{said}");
    let mut timed = Capturing::podsonde(&fixture, &["--duration", "1s", FILTER]).await;
    web.request().await;
    let (status, said) = timed.ended().await;
    assert!(status.success(), "{said}");
    add_up(&said, timed.packets().len());
    web.without_sockets().await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_client_leaves_a_file_and_no_socket() {
    let Some(fixture) = Fixture::start().await else { return };
    let web = Web::start(&fixture).await;
    assert_eq!(web.sockets(), 0);
    let mut ours = Capturing::podsonde(&fixture, &[]).await;
    assert_eq!(web.sockets(), 1);
    until("packets are written", async || {
        web.request().await;
        ours.packets().len() > 100
    })
    .await;
    ours.signal("-KILL");
    println!("{}", web.without_sockets().await);
    ours.ended().await;
    cut_off(&ours);
    fixture.end().await;
}

/// Asserts that programs read whole packets from a file whose writer was killed.
fn cut_off(ours: &Capturing) {
    let packets = ours.packets();
    assert!(packets.len() > 100);
    let args = ["-r", text(&ours.file), "-T", "fields", "-e", "frame.cap_len"];
    let read = Command::new("tshark").args(args).output().expect("tshark");
    let complaint = String::from_utf8_lossy(&read.stderr);
    assert!(read.status.success() || complaint.contains("cut short"), "{complaint}");
    let lengths: Vec<usize> = String::from_utf8_lossy(&read.stdout)
        .lines()
        .map(|line| line.parse().expect("a length"))
        .collect();
    assert_eq!(lengths, packets.iter().map(|packet| packet.data.len()).collect::<Vec<_>>());
    // Its exit status says whether the file was cut short; its figures are of what is there.
    let table = Command::new("capinfos")
        .args(["-M", "-T", "-r", "-c", text(&ours.file)])
        .output()
        .expect("capinfos");
    let table = String::from_utf8_lossy(&table.stdout);
    let count = table.split_whitespace().last().and_then(|word| word.parse().ok());
    assert_eq!(count, Some(packets.len()), "{table}");
    println!(
        "{} packets; {}",
        packets.len(),
        complaint.lines().find(|l| l.contains("cut short")).unwrap_or("whole")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_leaves_a_file_and_no_socket() {
    let Some(fixture) = Fixture::start().await else { return };
    let web = Web::start(&fixture).await;
    let mut ours = Capturing::podsonde(&fixture, &[]).await;
    until("packets are written", async || {
        web.request().await;
        ours.packets().len() > 100
    })
    .await;
    let agent = fixture.agent().await;
    let name = agent.metadata.name.clone().expect("a name");
    let first = running(&agent, "agent").expect("runs");
    node::output("kill", &["-KILL", &node::pid(&first).expect("runs").to_string()]);
    let gone = web.without_sockets().await;
    let (status, said) = ours.ended().await;
    println!("{said}{gone}");
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        said.contains("error: the connection to the agent was lost: ") && !said.contains("docs.rs"),
        "{said}"
    );
    cut_off(&ours);
    add_up(&said, ours.packets().len());
    // The client had the time to write what had come.
    assert_eq!(pcap::accepted(&fs::read(&ours.file).unwrap()), ours.packets().len() as u64);

    // The next agent captures again.
    let again = |pod: &Pod| running(pod, "agent").is_some_and(|id| id != first);
    fixture.wait_in("podsonde", &name, again).await;
    fixture.agent_ready(&name).await;
    let mut ours = Capturing::podsonde(&fixture, &["--count", "5"]).await;
    web.request().await;
    let (status, said) = ours.ended().await;
    assert!(status.success(), "{said}");
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_ends_its_capture_with_totals() {
    let Some(fixture) = Fixture::start().await else { return };
    let web = Web::start(&fixture).await;
    let mut ours = Capturing::podsonde(&fixture, &[FILTER]).await;
    let mut second = Capturing::podsonde(&fixture, &["-i", "eth0", FILTER]).await;
    web.request().await;
    web.mark(&fixture);
    let pods: Api<Pod> = Api::namespaced(fixture.cluster.client().expect("client"), "default");
    pods.delete("web", &DeleteParams::default()).await.expect("delete");
    for capturing in [&mut ours, &mut second] {
        let (status, said) = capturing.ended().await;
        println!("{said}");
        assert_eq!(status.code(), Some(1), "nobody asked it to end: {said}");
        assert!(said.contains("the capture of pod default/web has ended: the "), "{said}");
        let packets = capturing.packets();
        assert!(
            packets.iter().any(|packet| packet.data.ends_with(b"mark")),
            "what came before is there"
        );
        assert_eq!(pcap::accepted(&fs::read(&capturing.file).unwrap()), packets.len() as u64);
        assert!(!said.contains("at least"), "the figures are the agent's last: {said}");
        add_up(&said, packets.len());
    }
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_without_rights_and_on_the_host_are_captured_and_printed() {
    let Some(fixture) = Fixture::start().await else { return };
    // Nothing in it but a server: no shell, no capability, another user, a root that is read only.
    let context = json!({
        "runAsNonRoot": true, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    });
    let spec = json!({"containers": [
        {"name": "app", "image": "registry.test/distroless:1", "securityContext": context},
    ]});
    let pod = fixture.pod("web", spec).await;
    let ip = pod_ip(&pod).expect("an address");
    let pid = node::pid(&running(&pod, "app").expect("runs")).expect("runs");
    until("it answers", async || matches!(http(ip, 8080, "/").await, Ok((200, _)))).await;
    let mut ours =
        Capturing::podsonde(&fixture, &["--print", "-e", "-v", "--count", "8", "tcp port 8080"])
            .await;
    assert_eq!(http(ip, 8080, "/").await.expect("an answer"), (200, "distroless\n".to_owned()));
    let (status, said) = ours.ended().await;
    assert!(status.success(), "{said}");
    add_up(&said, 8);
    // Printed while it was captured, as tcpdump prints the file.
    let printed = ours.printed();
    let theirs = inside(pid, &["tcpdump", "-n", "-e", "-v", "-r", text(&ours.file)])
        .output()
        .expect("tcpdump");
    assert_eq!(printed, String::from_utf8(theirs.stdout).expect("UTF-8"));
    println!("{printed}");
    let pods: Api<Pod> = Api::namespaced(fixture.cluster.client().expect("client"), "default");
    pods.delete("web", &DeleteParams::default()).await.expect("delete");
    fixture.cluster.wait_deleted("default", "web").await;

    // The node's own network, with a right that the administrator has.
    let host = with(sleeping(), json!({"hostNetwork": true}));
    fixture.pod("web", host).await;
    let mut ours =
        Capturing::podsonde(&fixture, &["-i", "lo", "--count", "1", "udp dst port 9"]).await;
    node::output("bash", &["-c", "echo -n mark > /dev/udp/127.0.0.1/9"]);
    let (status, said) = ours.ended().await;
    assert!(status.success(), "{said}");
    assert!(ours.packets()[0].data.ends_with(b"mark"));
    assert_eq!(interfaces(&ours.file), ["default/web/lo"]);
    fixture.end().await;
}
