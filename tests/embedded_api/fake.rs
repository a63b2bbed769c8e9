//! A runtime that runs nothing: it records what it is asked for and does what a test tells it.

use std::{
    collections::{HashMap, VecDeque},
    future::pending,
    io,
    net::{IpAddr, Ipv4Addr},
    sync::Mutex,
};

use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use podsonde::embedded::runtime::{
    ContainerStart, Exit, Runtime, Sandbox, StartError, Started, Stream,
};
use tokio::{net::TcpStream, sync::oneshot};

/// What becomes of one start of a container.
pub(crate) enum Outcome {
    Fail(&'static str),
    Exit(i32),
    Hang,
}

#[derive(Default)]
pub(crate) struct Fake {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    next_id: u64,
    sandboxes: Vec<String>,
    starts: Vec<ContainerStart>,
    removed: Vec<String>,
    planned: HashMap<String, VecDeque<Outcome>>,
    running: HashMap<String, oneshot::Sender<i32>>,
}

impl Fake {
    /// What the next starts of a container come to. One without a plan runs until it is told to
    /// exit.
    pub(crate) fn plan(&self, container: &str, outcomes: impl IntoIterator<Item = Outcome>) {
        self.inner.lock().unwrap().planned.entry(container.into()).or_default().extend(outcomes);
    }

    /// Ends a container that runs.
    pub(crate) fn exit(&self, container: &str, code: i32) {
        let sender = self.inner.lock().unwrap().running.remove(container).expect("it does not run");
        sender.send(code).unwrap();
    }

    /// The starts of a container so far.
    pub(crate) fn starts(&self, container: &str) -> Vec<ContainerStart> {
        self.inner
            .lock()
            .unwrap()
            .starts
            .iter()
            .filter(|start| start.name == container)
            .cloned()
            .collect()
    }

    /// The order in which containers were started.
    pub(crate) fn order(&self) -> Vec<String> {
        self.inner.lock().unwrap().starts.iter().map(|start| start.name.clone()).collect()
    }

    /// UIDs of the pods that were removed.
    pub(crate) fn removed(&self) -> Vec<String> {
        self.inner.lock().unwrap().removed.clone()
    }

    fn id(&self) -> String {
        let mut inner = self.inner.lock().unwrap();
        inner.next_id += 1;
        format!("{:064x}", inner.next_id)
    }
}

impl Runtime for Fake {
    fn scheme(&self) -> &'static str {
        "fake"
    }

    fn run_sandbox<'a>(&'a self, pod: &'a Pod) -> BoxFuture<'a, Result<Sandbox, StartError>> {
        self.inner.lock().unwrap().sandboxes.push(pod.metadata.uid.clone().unwrap());
        let sandbox = Sandbox { id: self.id(), ip: Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7))) };
        async { Ok(sandbox) }.boxed()
    }

    fn start_container<'a>(
        &'a self,
        _pod: &'a Pod,
        _sandbox: &'a Sandbox,
        container: &'a ContainerStart,
    ) -> BoxFuture<'a, Result<Started, StartError>> {
        let id = self.id();
        let mut inner = self.inner.lock().unwrap();
        inner.starts.push(container.clone());
        let planned = inner.planned.get_mut(&container.name).and_then(VecDeque::pop_front);
        let exit = match planned {
            Some(Outcome::Fail(reason)) => {
                let message = format!("no {} today", container.name);
                return async move { Err(StartError { reason, message }) }.boxed();
            }
            Some(Outcome::Hang) => return pending().boxed(),
            Some(Outcome::Exit(code)) => async move { code }.boxed(),
            None => {
                let (sender, receiver) = oneshot::channel();
                inner.running.insert(container.name.clone(), sender);
                // Dropped when the pod is removed, which kills what runs.
                receiver.map(|code| code.unwrap_or(137)).boxed()
            }
        };
        let exit = exit.map(|code| Exit { code, finished_at: Timestamp::now() }).boxed();
        let image_id = format!("sha256:{}", container.image);
        async move { Ok(Started { id, image_id, exit }) }.boxed()
    }

    fn remove_pod<'a>(&'a self, pod_uid: &'a str) -> BoxFuture<'a, ()> {
        let mut inner = self.inner.lock().unwrap();
        inner.removed.push(pod_uid.into());
        let ended: Vec<String> = inner
            .starts
            .iter()
            .filter(|start| start.labels["io.kubernetes.pod.uid"] == pod_uid)
            .map(|start| start.name.clone())
            .collect();
        inner.running.retain(|name, _| !ended.contains(name));
        async {}.boxed()
    }

    fn connect<'a>(
        &'a self,
        _sandbox: &'a Sandbox,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        async move {
            Ok(Box::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?) as Box<dyn Stream>)
        }
        .boxed()
    }
}
