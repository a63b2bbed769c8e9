//! A process with a runtime of its own, to be looked at and to be killed: this test binary,
//! executed again.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use podsonde::embedded::{
    namespaces::NamespaceRuntime,
    runtime::{PidMode, Runtime as _, Sandbox},
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    shapes::{Wanted, shapes},
    support::*,
};

/// What a program is executed with to be root of a user namespace, and nobody outside of it.
pub(crate) const ROOTLESS: [&str; 7] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    PODSONDE,
    "embedded-container",
    "rootless",
];

/// Names the cgroup directory that the host uses instead of the hierarchy's root.
const HIERARCHY: &str = "PODSONDE_TEST_HIERARCHY";

/// What `host` says about one pod.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) shape: String,
    pub(crate) uid: String,
    pub(crate) sandbox: String,
    pub(crate) a: String,
    pub(crate) b: String,
}

/// Not a test: a process with a runtime and a pod of every shape. Says what runs, a line each, then
/// `ready`. When its stdin ends it removes the pods and says `removed`.
#[test]
#[ignore = "executed by the other tests"]
fn host() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut pods = Vec::new();
        for shape in shapes() {
            let mut options = options();
            options.cgroup_hierarchy = std::env::var_os(HIERARCHY).map(PathBuf::from);
            (shape.options)(&mut options);
            let runtime = NamespaceRuntime::new(options).unwrap();
            let mut pod = pod(shape.name);
            (shape.spec)(pod.spec.as_mut().unwrap());
            let began = Instant::now();
            let sandbox = runtime.run_sandbox(&pod).await.unwrap();
            let mut a = container("a", SLEEP);
            a.pid = match shape.pid {
                Wanted::Container | Wanted::Target => PidMode::Container,
                Wanted::Pod => PidMode::Pod,
                Wanted::Node => PidMode::Node,
            };
            let mut b = container("b", SLEEP);
            b.pid = a.pid.clone();
            let a = runtime.start_container(&pod, &sandbox, &a).await.unwrap();
            let took = began.elapsed();
            if shape.pid == Wanted::Target {
                b.pid = PidMode::Target(a.id.clone());
            }
            let b = runtime.start_container(&pod, &sandbox, &b).await.unwrap();
            if shape.name == "host-pid" {
                // Ends at once and leaves a process behind that nothing but its parentage ties to
                // it.
                let mut forking =
                    shell(&format!("setsid sh -c 'sleep 600; :' {} & exit 0", uid(&pod)));
                forking.pid = PidMode::Node;
                let forking = runtime.start_container(&pod, &sandbox, &forking).await.unwrap();
                assert_eq!(forking.exit.await.code, 0);
            }
            if shape.name == "plain" {
                let web = container("web", "podsonde.dev/demo/web:1");
                runtime.start_container(&pod, &sandbox, &web).await.unwrap();
                println!("{}", get(&runtime, &sandbox).await);
            }
            println!("\n{}: sandbox and container started in {took:?}", shape.name);
            let running = Running {
                shape: shape.name.to_owned(),
                uid: uid(&pod).to_owned(),
                sandbox: sandbox.id,
                a: a.id,
                b: b.id,
            };
            println!("{}", serde_json::to_string(&running).unwrap());
            pods.push((runtime, pod));
        }
        println!("ready");
        tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()))
            .await
            .unwrap()
            .unwrap();
        for (runtime, pod) in &pods {
            runtime.remove_pod(uid(pod)).await;
        }
        println!("removed");
    });
}

/// What the pod's web server answers.
async fn get(runtime: &NamespaceRuntime, sandbox: &Sandbox) -> String {
    let mut stream = loop {
        match runtime.connect(sandbox, 80).await {
            Ok(stream) => break stream,
            // It is still starting.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused),
        }
        tokio::task::yield_now().await;
    };
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// A process that runs `host`.
pub(crate) struct Host {
    pub(crate) process: Child,
    pub(crate) pods: Vec<Running>,
    /// All else that it said.
    pub(crate) said: String,
    output: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Host {
    /// Started and all its pods run. `prefix` is what it is executed with.
    pub(crate) fn start(prefix: &[&str]) -> Self {
        let mut host = Self::execute(prefix, None);
        while host.next_pod() {}
        host
    }

    /// Executed, with nothing known to run yet.
    pub(crate) fn execute(prefix: &[&str], hierarchy: Option<&Path>) -> Self {
        let test = std::env::current_exe().unwrap();
        let words = [
            prefix,
            &[test.to_str().unwrap(), "host::host", "--exact", "--ignored", "--nocapture"],
        ]
        .concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(hierarchy) = hierarchy {
            command.env(HIERARCHY, hierarchy);
        }
        let mut process = command.spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, pods: Vec::new(), said: String::new(), output }
    }

    /// Waits for the next pod to run. False if there are no more.
    pub(crate) fn next_pod(&mut self) -> bool {
        loop {
            let line = self.output.next().expect("the host ended").unwrap();
            match line.as_str() {
                "ready" => return false,
                json if json.starts_with('{') => {
                    self.pods.push(serde_json::from_str(json).unwrap());
                    return true;
                }
                other => {
                    println!("{other}");
                    self.said += other;
                }
            }
        }
    }

    /// Lets it remove its pods and end.
    pub(crate) fn end(&mut self) {
        drop(self.process.stdin.take());
        assert!(self.output.any(|line| line.unwrap() == "removed"));
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
