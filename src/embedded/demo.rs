//! `podsonde demo`: the main job for real on a bare Linux machine, in a few seconds, without Kubernetes and without root.
//!
//! Two nodes of this machine's own namespaces, an API server in front of them, an agent on each, and the command line as a user types
//! it: every step is this same program, executed with the demo's kubeconfig. A step that does not end as it should fails the demo.

use std::{
    fs,
    io::Write as _,
    os::{fd::AsFd as _, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use anyhow::{Context as _, anyhow, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
    signal::ctrl_c,
};
use uuid::Uuid;

use super::{
    Cluster,
    namespaces::{NamespaceRuntime, Options, enter_user_namespace},
};
use crate::{
    agent::{
        access,
        app::{Agent, AgentIdentity, Settings},
        audit::Sink,
        config::{Limits, Listen},
    },
    sys::{broker::NamespaceEntry, capture::compiler::Compiler},
};

/// The node whose runtime does what it is told.
const NODE: &str = "node-1";
/// The node whose runtime ignores `targetContainerName`, as some do.
const OLD_NODE: &str = "node-2";

/// Gives an ordinary user the namespaces that the demo needs. Call it before any thread is started.
///
/// # Errors
/// If the system does not let ordinary users have user namespaces; the error says what to do.
pub fn prepare() -> anyhow::Result<()> {
    enter_user_namespace()?;
    Ok(())
}

/// Shows the demo, and with `hold` leaves the cluster up until Ctrl-C.
///
/// # Errors
/// If something cannot be started, or a step does not end as it should.
pub async fn run(hold: bool) -> anyhow::Result<()> {
    let stage = &Stage::new()?;
    let runtime = |ignore_target| {
        NamespaceRuntime::new(Options { ignore_target, ..Options::default() }).map(Arc::new)
    };
    // Anyone on this machine can reach a loopback port, so the API server wants a token, and the agents have only sockets.
    let cluster = Cluster::builder()
        .node(NODE, runtime(false)?)
        .node(OLD_NODE, runtime(true)?)
        .token(&Uuid::new_v4().to_string())
        // kubectl sends no token without TLS.
        .https(([127, 0, 0, 1], 0).into())
        .start()
        .await?;
    fs::write(stage.kubeconfig(), cluster.kubeconfig())
        .context("cannot write the demo's kubeconfig")?;
    let mut agents = Vec::new();
    for node in [NODE, OLD_NODE] {
        let socket = stage.socket(node);
        let settings = Settings {
            compiler: Compiler::default(),
            node: node.to_owned(),
            listen: vec![Listen::Unix(socket.clone())],
            metrics_listen: None,
            // What the pods are compared with is where the demo itself runs.
            host_pid: std::process::id(),
            limits: Limits::default(),
            entry: Arc::new(NamespaceEntry::InProcess),
            // The command line shows the token of the demo's kubeconfig, as it would anywhere.
            access: access::AccessOptions {
                accept_api_server_audience: true,
                ..access::AccessOptions::default()
            },
            audit: Sink::File(stage.audit_log(node)),
            identity: AgentIdentity::default(),
        };
        agents.push(Agent::start(cluster.client()?, settings).await?);
        cluster.register_agent(node, socket).await?;
    }
    for (name, node) in [("web", NODE), ("old", OLD_NODE)] {
        let web = json!({"name": "nginx", "image": "podsonde.dev/demo/web:1"});
        let pod = json!({"metadata": {"name": name, "labels": {"app": "web"}}, "spec": {"nodeName": node, "containers": [web]}});
        cluster.create_pod(pod).await?;
        let is_running = |pod: &k8s_openapi::api::core::v1::Pod| {
            pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
        };
        cluster.wait_pod("default", name, is_running).await?;
    }
    let shown = tokio::select! {
        shown = show(stage, &cluster) => shown,
        _ = ctrl_c() => Err(anyhow!("interrupted")),
    };
    if hold && shown.is_ok() {
        say(&stage.how_to_talk())?;
        let _ = ctrl_c().await;
    }
    for agent in agents {
        agent.stop().await;
    }
    cluster.shutdown().await;
    shown
}

/// The steps.
async fn show(stage: &Stage, cluster: &Cluster) -> anyhow::Result<()> {
    say("This machine plays a cluster of two nodes: its pods are real Linux namespaces,\n\
        its API server is built in. Pod web runs a web server from an image without a\n\
        shell. Which namespaces does it have?")?;
    stage.step(&["verify", "web"], 0).await?;
    say("A debug container beside it, in the process namespace of its container nginx:")?;
    stage.step(&["debug", "web", "--image=busybox", "--target=nginx", "-c", "probe"], 0).await?;
    say("The same, asked of the kernel without podsonde:")?;
    stage.links("web", &["nginx", "probe"]).await?;
    say("The files of nginx, whose image has neither a shell nor tar. What procfs shows is\n\
        the node's processes, not files of the container: no way leads out through it.")?;
    stage.step(&["ls", "-l", "web:/etc"], 0).await?;
    stage.step(&["cat", "web:/etc/web.conf"], 0).await?;
    stage.step(&["cat", "web:/proc/1/environ"], 1).await?;
    say("The runtime of node-2 ignores targets and says nothing, as some do:")?;
    stage.step(&["debug", "old", "--image=busybox", "--target=nginx", "-c", "probe"], 3).await?;
    say("The packets of a request to pod web, captured inside of it, with nothing in the\n\
        pod: as tcpdump prints them, and in a file for Wireshark. Ctrl-C ends it.")?;
    stage.packets(cluster, "web").await?;
    say("What cannot work is refused, and says why:")?;
    stage.step(&["debug", "web", "--image=busybox", "--target=db"], 1).await?;
    stage.step(&["debug", "web", "--image=no.such.registry/tool:1", "--target=nginx"], 1).await?;
    say("All sessions; and the verdicts on an application's pods, whatever their nodes:")?;
    stage.step(&["sessions", "--all"], 0).await?;
    stage.step(&["verify", "-l", "app=web"], 3).await?;
    say("A debug container can never be removed from a pod, but it can be ended:")?;
    stage.step(&["end", "web", "probe"], 0).await?;
    Ok(())
}

/// Asks the web server in a pod for its page, over the pod's loopback interface.
async fn request(client: kube::Client, pod: &str) -> anyhow::Result<()> {
    let pods: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::default_namespaced(client);
    let mut forwarder = pods.portforward(pod, &[80]).await?;
    let mut stream = forwarder.take_stream(80).context("no stream to the pod")?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    ensure!(page.starts_with("HTTP/1.1 200 OK"), "the web server answered: {page}");
    Ok(())
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "\n# {}", text.replace('\n', "\n# "))?;
    Ok(())
}

/// The directory of the demo's sockets and kubeconfig, the user's alone. Removed when dropped.
struct Stage(PathBuf);

impl Stage {
    fn new() -> anyhow::Result<Self> {
        let base =
            std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_dir());
        let name = format!("podsonde-demo-{}", std::process::id());
        let create = |base: &Path| -> std::io::Result<PathBuf> {
            let path = base.join(&name);
            // Must not be there: another user could have made it.
            fs::create_dir(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
            Ok(path)
        };
        let made = base
            .and_then(|base| create(&base).ok())
            .map_or_else(|| create(&std::env::temp_dir()), Ok);
        made.map(Self).context("cannot make a directory for the demo")
    }

    fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig")
    }

    fn socket(&self, node: &str) -> PathBuf {
        self.0.join(format!("{node}.sock"))
    }

    fn audit_log(&self, node: &str) -> PathBuf {
        self.0.join(format!("{node}.audit.json"))
    }

    fn podsonde(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig())
            // These agents have only sockets, which they share with nobody.
            .env("PODSONDE_INSECURE_AGENT", "true")
            .env_remove("PODSONDE_AGENT")
            .stdin(Stdio::null());
        command.kill_on_drop(true);
        command
    }

    /// Shows a command and what it prints, as one sees it who types it.
    async fn step(&self, arguments: &[&str], expected: i32) -> anyhow::Result<()> {
        writeln!(std::io::stdout(), "$ podsonde {}", arguments.join(" "))?;
        // Interleaved also where stdout is a file.
        let stderr = std::io::stdout().as_fd().try_clone_to_owned()?;
        let status = self
            .podsonde(arguments)
            .stderr(stderr)
            .status()
            .await
            .context("cannot execute podsonde")?;
        ensure!(
            status.code() == Some(expected),
            "the step ended with {status}, expected exit code {expected}"
        );
        Ok(())
    }

    /// Shows the packets of a request to the web server in a pod.
    async fn packets(&self, cluster: &Cluster, pod: &str) -> anyhow::Result<()> {
        let arguments = ["capture", pod, "-w", "web.pcapng", "--print", "tcp", "port", "80"];
        writeln!(std::io::stdout(), "$ podsonde {}", arguments.join(" "))?;
        let mut command = self.podsonde(&arguments);
        let mut capture = command.current_dir(&self.0).stderr(Stdio::piped()).spawn()?;
        let said = BufReader::new(capture.stderr.take().context("it has no stderr")?);
        let mut said = said.lines();
        let mut begins = false;
        while let Some(line) = said.next_line().await? {
            writeln!(std::io::stdout(), "{line}")?;
            if !begins && line.contains("listening on") {
                begins = true;
                request(cluster.client()?, pod).await?;
                let pid =
                    capture.id().and_then(|id| i32::try_from(id).ok()).context("it has ended")?;
                kill(Pid::from_raw(pid), Signal::SIGINT)?;
            }
        }
        let status = capture.wait().await?;
        ensure!(begins && status.success(), "the capture ended with {status}");
        let shown = ["-c", "-I", "web.pcapng"];
        let checked = Command::new("capinfos").args(shown).current_dir(&self.0).output().await;
        match checked {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            checked => {
                let checked = checked.context("cannot execute capinfos")?;
                ensure!(
                    checked.status.success(),
                    "capinfos: {}",
                    String::from_utf8_lossy(&checked.stderr)
                );
                let text = String::from_utf8_lossy(&checked.stdout);
                writeln!(std::io::stdout(), "$ capinfos {}\n{}", shown.join(" "), text.trim_end())?;
            }
        }
        Ok(())
    }

    /// Shows the namespaces of two containers' first processes, by `readlink`.
    async fn links(&self, pod: &str, containers: &[&str]) -> anyhow::Result<()> {
        let output = self.podsonde(&["verify", pod, "-o", "json"]).output().await?;
        let found: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("podsonde verify -o json")?;
        for name in containers {
            let pid = found
                .pointer("/pods/0/containers")
                .and_then(|c| c.as_array())
                .into_iter()
                .flatten()
                .find_map(|c| {
                    (c.get("name")?.as_str()? == *name)
                        .then(|| c.get("hostPid")?.as_u64())
                        .flatten()
                });
            let pid = pid.with_context(|| format!("podsonde verify names no process of {name}"))?;
            let paths = ["net", "ipc", "pid", "mnt"].map(|kind| format!("/proc/{pid}/ns/{kind}"));
            let output = Command::new("readlink")
                .args(paths)
                .output()
                .await
                .context("cannot execute readlink")?;
            ensure!(
                output.status.success(),
                "readlink: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            let links = String::from_utf8_lossy(&output.stdout).replace('\n', " ");
            writeln!(
                std::io::stdout(),
                "$ readlink /proc/{pid}/ns/{{net,ipc,pid,mnt}}   # {name}\n{links}"
            )?;
        }
        Ok(())
    }

    fn how_to_talk(&self) -> String {
        let (kubeconfig, socket) = (self.kubeconfig(), self.socket(NODE));
        let (kubeconfig, socket) = (kubeconfig.display(), socket.display());
        format!(
            "The cluster stays up until Ctrl-C. In another terminal:\n  \
             export KUBECONFIG={kubeconfig} PODSONDE_INSECURE_AGENT=true\n  \
             podsonde debug web --image=busybox --target=nginx\n  \
             podsonde ls -l web:/\n  \
             podsonde capture web -v\n  \
             kubectl get pods -A\n  \
             podsonde --agent unix://{socket} node\n  \
             grpcurl -plaintext -unix {socket} podsonde.v1.Node/Get"
        )
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // At worst an empty directory stays behind.
        let _ = fs::remove_dir_all(&self.0);
    }
}
