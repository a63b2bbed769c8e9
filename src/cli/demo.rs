//! `podsonde demo`: what podsonde does, on one Linux machine, without Kubernetes and without root.
//!
//! The demo starts an embedded cluster of two nodes and an agent for each of them, all in this
//! process. Every step then executes this same program with the demo's kubeconfig, as a user would
//! type it. A step that ends with another exit code than expected fails the demo.

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

use crate::{
    agent::{
        access,
        app::{Agent, AgentIdentity, Settings},
        audit::Sink,
        config::{Limits, Listen},
    },
    embedded::{
        Cluster,
        namespaces::{NamespaceOptions, NamespaceRuntime, enter_user_namespace},
    },
    sys::{broker::NamespaceEntry, capture::compiler::Compiler},
};

/// The arguments of `podsonde demo`.
#[derive(Debug, Clone, clap::Args)]
#[command(
    long_about = "Show what podsonde does, on this machine alone: pods made of Linux namespaces, \
an API server that is built in, agents, and the commands as you would type them. Takes a few \
seconds and leaves nothing behind.",
    after_help = "Examples:
  # Watch it
  podsonde demo

  # Leave the cluster up until Ctrl-C, to try things in another terminal
  podsonde demo --hold"
)]
pub(super) struct DemoArgs {
    /// Leave the cluster up until Ctrl-C, and print how to talk to it
    #[arg(long)]
    pub(super) hold: bool,
}

/// The node whose runtime honours `targetContainerName`.
const NODE: &str = "node-1";
/// The node whose runtime ignores `targetContainerName`, as some real ones do.
const OLD_NODE: &str = "node-2";

/// Moves an ordinary user's process into a user namespace, where it may make the demo's other
/// namespaces. Only a process with a single thread can do this.
///
/// # Errors
/// If the system forbids user namespaces to ordinary users; the error says how to allow them.
pub(super) fn prepare() -> anyhow::Result<()> {
    enter_user_namespace()?;
    Ok(())
}

/// Runs the demo. With `hold` the cluster then stays up until Ctrl-C.
///
/// # Errors
/// If something cannot be started, or if a step ends with another exit code than expected.
pub(super) async fn run(hold: bool) -> anyhow::Result<()> {
    let stage = &Stage::new()?;
    let runtime = |ignore_target| {
        NamespaceRuntime::new(NamespaceOptions { ignore_target, ..NamespaceOptions::default() })
            .map(Arc::new)
    };
    // Anyone on this machine can reach a loopback port. The API server therefore wants a token, and
    // the agents listen on sockets in a directory that only this user can enter.
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
            // The demo's own namespaces play the node's.
            host_pid: std::process::id(),
            limits: Limits::default(),
            entry: Arc::new(NamespaceEntry::InProcess),
            // The command line sends the token of the demo's kubeconfig, which has no audience.
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
        let pod = json!({
            "metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"nodeName": node, "containers": [web]},
        });
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

/// Explains and executes the steps one after the other.
async fn show(stage: &Stage, cluster: &Cluster) -> anyhow::Result<()> {
    say("This machine plays a cluster of two nodes: its pods are real Linux namespaces,\n\
        its API server is built in. Pod web runs a web server from an image without a\n\
        shell. Which namespaces does it have?")?;
    stage.step(&["verify", "web"], 0).await?;
    say("A debug container beside it, in the process namespace of its container nginx:")?;
    stage.step(&["debug", "web", "--image=busybox", "--target=nginx", "-c", "probe"], 0).await?;
    say("The kernel says the same, without podsonde:")?;
    stage.links("web", &["nginx", "probe"]).await?;
    say("The files of nginx, whose image has neither a shell nor tar. What lies below /proc is\n\
        about the node's processes and no file of the container, so that it is refused:")?;
    stage.step(&["ls", "-l", "web:/etc"], 0).await?;
    stage.step(&["cat", "web:/etc/web.conf"], 0).await?;
    stage.step(&["cat", "web:/proc/1/environ"], 1).await?;
    say("The runtime of node-2 silently ignores the target, as some runtimes do:")?;
    stage.step(&["debug", "old", "--image=busybox", "--target=nginx", "-c", "probe"], 3).await?;
    say("The packets of a request to pod web, captured in its network namespace without a\n\
        program in the pod: printed as by tcpdump, and in a file for Wireshark. Ctrl-C ends it.")?;
    stage.packets(cluster, "web").await?;
    say("A session that cannot work is refused, with the reason:")?;
    stage.step(&["debug", "web", "--image=busybox", "--target=db"], 1).await?;
    stage.step(&["debug", "web", "--image=no.such.registry/tool:1", "--target=nginx"], 1).await?;
    say("All sessions, and the verdicts on an application's pods on every node:")?;
    stage.step(&["sessions", "--all"], 0).await?;
    stage.step(&["verify", "-l", "app=web"], 3).await?;
    say("A debug container can never be removed from a pod, but it can be ended:")?;
    stage.step(&["end", "web", "probe"], 0).await?;
    Ok(())
}

/// Requests the page of the web server in a pod, over the pod's loopback interface.
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

/// The directory of the demo's sockets and kubeconfig, which only the user can enter. It is removed
/// when this is dropped.
struct Stage(PathBuf);

impl Stage {
    fn new() -> anyhow::Result<Self> {
        let base =
            std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_dir());
        let name = format!("podsonde-demo-{}", std::process::id());
        let create = |base: &Path| -> std::io::Result<PathBuf> {
            let path = base.join(&name);
            // An existing directory is an error: another user could have made it.
            fs::create_dir(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
            Ok(path)
        };
        if let Some(Ok(path)) = base.as_deref().map(create) {
            return Ok(Self(path));
        }
        create(&std::env::temp_dir()).map(Self).context("cannot make a directory for the demo")
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
            // These agents have no certificates: their sockets are in the user's own directory.
            .env("PODSONDE_INSECURE_AGENT", "true")
            .env_remove("PODSONDE_AGENT")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Prints a command line, then executes it with its output on the demo's own.
    async fn step(&self, arguments: &[&str], expected: i32) -> anyhow::Result<()> {
        writeln!(std::io::stdout(), "$ podsonde {}", arguments.join(" "))?;
        // Both streams go to stdout, so that their order is right in a file, too.
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

    /// Captures the packets of a request to the web server in a pod. The request is made once the
    /// capture says that it listens, and Ctrl-C ends the capture.
    async fn packets(&self, cluster: &Cluster, pod: &str) -> anyhow::Result<()> {
        let arguments = ["capture", pod, "-w", "web.pcapng", "--print", "tcp", "port", "80"];
        writeln!(std::io::stdout(), "$ podsonde {}", arguments.join(" "))?;
        let mut command = self.podsonde(&arguments);
        let mut capture = command.current_dir(&self.0).stderr(Stdio::piped()).spawn()?;
        let stderr = capture.stderr.take().context("the capture has no stderr")?;
        let mut said = BufReader::new(stderr).lines();
        let mut listens = false;
        while let Some(line) = said.next_line().await? {
            writeln!(std::io::stdout(), "{line}")?;
            if !listens && line.contains("listening on") {
                listens = true;
                request(cluster.client()?, pod).await?;
                let pid =
                    capture.id().and_then(|id| i32::try_from(id).ok()).context("it has ended")?;
                kill(Pid::from_raw(pid), Signal::SIGINT)?;
            }
        }
        let status = capture.wait().await?;
        ensure!(listens && status.success(), "the capture ended with {status}");
        let shown = ["-c", "-I", "web.pcapng"];
        let checked = Command::new("capinfos").args(shown).current_dir(&self.0).output().await;
        let checked = match checked {
            // Wireshark is not installed: this part of the step is left out.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            checked => checked.context("cannot execute capinfos")?,
        };
        ensure!(checked.status.success(), "capinfos: {}", String::from_utf8_lossy(&checked.stderr));
        let text = String::from_utf8_lossy(&checked.stdout);
        writeln!(std::io::stdout(), "$ capinfos {}\n{}", shown.join(" "), text.trim_end())?;
        Ok(())
    }

    /// Prints the namespaces of containers' first processes, as `readlink` shows them.
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
                .find(|c| c.get("name").is_some_and(|found| found == name))
                .and_then(|c| c.get("hostPid")?.as_u64());
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
        // A failure leaves files of no use behind, and there is nobody to tell.
        let _ = fs::remove_dir_all(&self.0);
    }
}
