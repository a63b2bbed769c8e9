//! How fast files are read over the agent's TLS, and what it costs: figures, printed and never
//! asserted. `cargo bench --bench files`.
//!
//! - `read`: 1 GiB out of the page cache through the agent, beside `cat` and beside a plain TLS
//!   pipe of socat, in turns; and `kubectl exec cat` if `PODSONDE_BENCH_EXEC` has its arguments,
//!   such as `web -c app -- cat /data/large`;
//! - `memory`: the agent's peak with 16 reads at a time, and with a directory of a million entries,
//!   listed and walked.
//!
//! Needs root, socat and openssl. Everything goes over loopback.
#![cfg(all(target_os = "linux", feature = "embedded"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod agent;
#[allow(dead_code)]
mod figures;
#[allow(dead_code)]
#[path = "../agent/fixture.rs"]
mod fixture;
#[allow(dead_code)]
mod node;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use agent::AgentProcess;
use figures::{Series, table};
use fixture::{NODE, SLEEP};
use k8s_openapi::api::{authentication::v1::UserInfo, core::v1::Pod};
use podsonde::{
    client::{
        Agent, ConnectOptions, Credentials, Files, Fleet, Traffic,
        files::{ReadEvent, WalkEvent},
    },
    embedded::Cluster,
    proto::v1::{FileTarget, FilesReadRequest, PodRef},
};
use serde_json::json;

const GIB: u64 = 1 << 30;
const ROUNDS: usize = 5;

/// An agent process in front of a cluster, and a pod with a volume on disk.
struct World {
    // Ends before the cluster.
    agent: AgentProcess,
    _cluster: Cluster,
    client: Agent,
    /// The pod's volume, as the host sees it.
    volume: PathBuf,
    _directory: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let cluster =
            Cluster::builder().node(NODE, fixture::runtime(|_| {})).start().await.unwrap();
        let container = json!({
            "name": "app", "image": SLEEP, "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        });
        let spec = json!({"nodeName": NODE, "containers": [container], "volumes": [{"name": "data", "emptyDir": {}}]});
        cluster.create_pod(json!({"metadata": {"name": "files"}, "spec": spec})).await.unwrap();
        let runs =
            |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
        cluster.wait_pod("default", "files", runs).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let kubeconfig = directory.path().join("kubeconfig");
        fs::write(&kubeconfig, cluster.kubeconfig()).unwrap();
        let token = directory.path().join("token");
        let user = UserInfo {
            username: Some("admin".into()),
            groups: Some(vec!["system:masters".into()]),
            ..UserInfo::default()
        };
        fs::write(&token, cluster.issue_token(user, &["podsonde"], Duration::from_secs(3600)))
            .unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_podsonde-agent"));
        let agent = AgentProcess::start(program, &cluster, &kubeconfig).await;
        let client = cluster.client().unwrap();
        let options = ConnectOptions {
            traffic: Traffic::Bulk(1),
            credentials: Credentials::token_file(&token),
            ..ConnectOptions::default()
        };
        let trust =
            podsonde::client::published_trust(&client, "podsonde", &agent.address, &options)
                .await
                .unwrap();
        let options = ConnectOptions { trust, ..options };
        let fleet = Fleet::direct(format!("https://{}", agent.address).parse().unwrap(), options);
        let place = fleet.place_of_pod("default", "files").await.unwrap();
        let client = fleet.connect(&place).await.unwrap();
        let mut this = Self {
            _cluster: cluster,
            agent,
            client,
            volume: PathBuf::new(),
            _directory: directory,
        };
        this.volume = loop {
            // Until it has read its node's pods.
            let Ok((root, _)) = this.files().stat(b"/data", true).await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            break format!("/proc/{}/root/data", root.container.unwrap().host_pid).into();
        };
        this
    }

    fn files(&self) -> Files {
        let pod = PodRef { namespace: "default".into(), name: "files".into(), uid: String::new() };
        self.client.files(FileTarget { pod: Some(pod), ..FileTarget::default() })
    }

    /// Reads a file and throws it away. Returns how much it was.
    async fn read(&self, path: &str) -> u64 {
        let request = FilesReadRequest { path: path.into(), ..Default::default() };
        let mut reading = self.files().read(request).await.unwrap();
        let mut bytes = 0;
        loop {
            match reading.next().await.unwrap() {
                ReadEvent::Data(data) => bytes += data.len() as u64,
                ReadEvent::Change(_) => {}
                ReadEvent::End(_) => return bytes,
            }
        }
    }

    fn status(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.agent.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Forgets the peak so far. Returns what there is now, in KiB.
    fn reset_peak(&self) -> u64 {
        fs::write(format!("/proc/{}/clear_refs", self.agent.pid()), "5").unwrap();
        self.status("VmRSS:")
    }
}

#[tokio::main]
async fn main() {
    let parts: Vec<_> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| p == part);
    println!("{}", node::machine());
    let world = World::start().await;
    let large = world.volume.join("large");
    let mut file = File::create(&large).unwrap();
    let block: Vec<u8> =
        (0..1_u32 << 18).flat_map(|i| (i.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
    for _ in 0..GIB / block.len() as u64 {
        file.write_all(&block).unwrap();
    }
    drop(file);
    if wanted("read") {
        read(&world, &large).await;
    }
    if wanted("memory") {
        memory(&world).await;
    }
}

/// Bytes per second, in MB.
fn speed(bytes: u64, began: Instant) -> f64 {
    bytes as f64 / 1e6 / began.elapsed().as_secs_f64()
}

async fn read(world: &World, large: &Path) {
    let certificate = certificate(world._directory.path());
    let [mut agent, mut cat, mut socat] = [(); 3].map(|()| Series::default());
    let mut exec = Series::default();
    world.read("/data/large").await;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        assert!(Command::new("cat").arg(large).stdout(Stdio::null()).status().unwrap().success());
        cat.add(speed(GIB, began));

        let (server, port) = socat_server(large, &certificate);
        let began = Instant::now();
        let from = format!("OPENSSL:127.0.0.1:{port},verify=0");
        let client =
            Command::new("socat").args(["-u", "-b", "262144", &from, "CREATE:/dev/null"]).status();
        socat.add(speed(GIB, began));
        assert!(client.unwrap().success());
        end(server);

        let began = Instant::now();
        assert_eq!(world.read("/data/large").await, GIB);
        agent.add(speed(GIB, began));

        if let Ok(arguments) = std::env::var("PODSONDE_BENCH_EXEC") {
            let began = Instant::now();
            let mut child = Command::new("kubectl")
                .arg("exec")
                .args(arguments.split(' '))
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let bytes =
                std::io::copy(&mut child.stdout.take().unwrap(), &mut std::io::sink()).unwrap();
            child.wait().unwrap();
            exec.add(speed(bytes, began));
        }
    }
    let mut rows = Vec::new();
    for (name, series) in [
        ("podsonde, over TLS", &agent),
        ("`cat FILE >/dev/null`", &cat),
        ("socat, over TLS", &socat),
        ("kubectl exec cat", &exec),
    ] {
        rows.push(match name {
            "kubectl exec cat" if std::env::var_os("PODSONDE_BENCH_EXEC").is_none() => {
                vec![name.to_owned(), "not measured: no cluster".to_owned(), String::new()]
            }
            _ => vec![
                name.to_owned(),
                format!("{:.0}", series.median()),
                format!("{:.2}", agent.ratio_to(series)),
            ],
        });
    }
    table(
        &format!("1 GiB from the page cache, medians of {ROUNDS} rounds in turns"),
        &["", "MB/s", "podsonde is so many times as fast"],
        &rows,
    );
}

async fn memory(world: &World) {
    let mut rows = Vec::new();
    let before = world.reset_peak();
    let began = Instant::now();
    let reads = (0..16).map(|_| world.read("/data/large"));
    let bytes: u64 = futures::future::join_all(reads).await.into_iter().sum();
    rows.push(vec![
        format!("16 reads of 1 GiB at a time, {:.0} MB/s in all", speed(bytes, began)),
        format!("{:.1}", before as f64 / 1024.0),
        format!("{:.1}", world.status("VmHWM:") as f64 / 1024.0),
    ]);

    let many = world.volume.join("many");
    fs::create_dir(&many).unwrap();
    for i in 0..1_000_000_u32 {
        // Names in no order.
        File::create(many.join(format!("{:08x}", i.wrapping_mul(2_654_435_761)))).unwrap();
    }
    let before = world.reset_peak();
    let began = Instant::now();
    let (_, page, _) = world.files().list(b"/data/many", Vec::new()).await.unwrap();
    rows.push(vec![
        format!("first page ({}) of 1,000,000 entries, in {:.2?}", page.len(), began.elapsed()),
        format!("{:.1}", before as f64 / 1024.0),
        format!("{:.1}", world.status("VmHWM:") as f64 / 1024.0),
    ]);
    let before = world.reset_peak();
    let began = Instant::now();
    let mut walking = world.files().walk(b"/data/many", None, false).await.unwrap();
    let mut entries = 0;
    while let WalkEvent::Entries(more) = walking.next().await.unwrap() {
        entries += more.len();
    }
    rows.push(vec![
        format!("walk of {entries} entries, in {:.2?}", began.elapsed()),
        format!("{:.1}", before as f64 / 1024.0),
        format!("{:.1}", world.status("VmHWM:") as f64 / 1024.0),
    ]);
    table("Memory of the agent, MiB", &["", "before", "peak"], &rows);
    fs::remove_dir_all(&many).unwrap();
}

/// A certificate and key in one file, for TLS pipes.
fn certificate(directory: &Path) -> PathBuf {
    let path = directory.join("pipe.pem");
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
            "-days",
            "1",
        ])
        .args(["-subj", "/CN=localhost", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .stderr(Stdio::null())
        .status();
    assert!(made.unwrap().success());
    fs::write(&path, [fs::read(key).unwrap(), fs::read(certificate).unwrap()].concat()).unwrap();
    path
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn socat_server(file: &Path, certificate: &Path) -> (Child, u16) {
    let port = free_port();
    let listen =
        format!("OPENSSL-LISTEN:{port},bind=127.0.0.1,cert={},verify=0", certificate.display());
    let mut server = Command::new("socat")
        .args([
            "-d",
            "-d",
            "-u",
            "-b",
            "262144",
            &format!("OPEN:{},rdonly", file.display()),
            &listen,
        ])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(server.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("listening") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "socat does not listen");
    }
    // What else it says is for nobody.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    (server, port)
}

fn end(mut server: Child) {
    let _ = server.kill();
    server.wait().unwrap();
}
