//! Runs one pod: starts its containers in order, restarts them by the restart policy, and ends
//! them.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    HOST_IP, Kubelet,
    record::{ContainerRecord, Ended, Role, Stage},
    spec::{Context, container_start},
    status, volumes,
};
use crate::embedded::{
    api::{Forward, TokenIdentity, object, resources::CONFIG_MAPS, service_account},
    runtime::{ContainerStart, Exit, Runtime, Sandbox, StartError, Started},
};

/// How long the worker waits for exit codes after it ended a pod's containers.
const LAST_EXITS: Duration = Duration::from_secs(2);

/// The end of an operation of a worker. Containers are given by their index.
enum Done {
    Sandbox(Result<(BTreeMap<String, PathBuf>, Sandbox), StartError>),
    Started(usize, Result<Started, StartError>),
    /// The back-off of a container is over.
    Due(usize),
    SandboxDue,
}

type Exits = FuturesUnordered<BoxFuture<'static, (usize, Exit)>>;

/// The worker of one pod.
pub(super) struct Worker {
    kubelet: Arc<Kubelet>,
    runtime: Arc<dyn Runtime>,
    pub(super) pod: Pod,
    pub(super) sandbox: Option<Sandbox>,
    sandbox_failures: u32,
    volumes: BTreeMap<String, PathBuf>,
    pub(super) records: Vec<ContainerRecord>,
    pub(super) since: Timestamp,
    operations: FuturesUnordered<BoxFuture<'static, Done>>,
    exits: Exits,
}

impl Worker {
    /// Runs the pod until it is deleted, or until `pods` is closed, which means the same.
    pub(super) async fn run(
        kubelet: Arc<Kubelet>,
        runtime: Arc<dyn Runtime>,
        mut pods: watch::Receiver<Pod>,
    ) {
        let pod = pods.borrow_and_update().clone();
        let mut worker = Self {
            kubelet,
            runtime,
            pod,
            sandbox: None,
            sandbox_failures: 0,
            volumes: BTreeMap::new(),
            records: Vec::new(),
            since: Timestamp::now(),
            operations: FuturesUnordered::new(),
            exits: FuturesUnordered::new(),
        };
        let mut finished = ["Succeeded", "Failed"].contains(&worker.phase());
        if !finished && !worker.deleted() {
            worker.add_records();
            worker.make_sandbox();
            worker.publish(None);
            finished = worker.live(&mut pods).await;
        }
        if finished {
            // A finished pod stays in the store until a request deletes it.
            while !worker.deleted() && pods.changed().await.is_ok() {
                worker.pod = pods.borrow_and_update().clone();
            }
        } else {
            if worker.deleted() {
                worker.stop().await;
            }
            worker.take_down().await;
        }
        if worker.deleted() {
            if !finished {
                worker.publish(Some(worker.final_phase().unwrap_or("Failed")));
            }
            let pod = worker.object();
            worker.kubelet.delete(&pod);
        }
    }

    /// Runs the containers. Returns true once the pod has finished and was taken down, and false
    /// once it is being deleted.
    async fn live(&mut self, pods: &mut watch::Receiver<Pod>) -> bool {
        loop {
            tokio::select! {
                changed = pods.changed() => {
                    if changed.is_err() {
                        return false;
                    }
                    self.pod = pods.borrow_and_update().clone();
                    if self.deleted() {
                        return false;
                    }
                    self.add_records();
                }
                Some(done) = self.operations.next() => self.done(done),
                Some((index, exit)) = self.exits.next() => self.ended(index, exit),
            }
            self.start_what_is_due();
            if let Some(phase) = self.final_phase() {
                self.take_down().await;
                self.publish(Some(phase));
                return true;
            }
            self.publish(None);
        }
    }

    fn phase(&self) -> &str {
        self.pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
    }

    fn deleted(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    fn object(&self) -> Value {
        serde_json::to_value(&self.pod).unwrap_or_default()
    }

    fn restart_policy(&self) -> &str {
        let policy = self.pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
        policy.unwrap_or("Always")
    }

    /// The pod's address; none before the sandbox runs.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        let host = self.pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
        self.sandbox.as_ref().and_then(|sandbox| if host { Some(HOST_IP) } else { sandbox.ip })
    }

    /// Adds records for new containers of the spec: all at first, ephemeral ones later.
    fn add_records(&mut self) {
        let Some(spec) = &self.pod.spec else { return };
        let new: Vec<ContainerRecord> = ContainerRecord::all(spec)
            .filter(|new| {
                self.records.iter().all(|record| record.container.name != new.container.name)
            })
            .collect();
        self.records.extend(new);
    }

    fn make_sandbox(&mut self) {
        let (kubelet, runtime) = (Arc::clone(&self.kubelet), Arc::clone(&self.runtime));
        let pod = self.pod.clone();
        self.operations.push(
            async move {
                let sources = PodSources { kubelet: &kubelet, pod: &pod };
                let made = volumes::make(&kubelet.volumes, &pod, &sources).await;
                let result = match made {
                    Ok(volumes) => {
                        runtime.run_sandbox(&pod).await.map(|sandbox| (volumes, sandbox))
                    }
                    Err(message) => Err(StartError { reason: "FailedMount", message }),
                };
                Done::Sandbox(result)
            }
            .boxed(),
        );
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Sandbox(Ok((volumes, sandbox))) => {
                let forward = Forward::Sandbox(Arc::clone(&self.runtime), sandbox.clone());
                self.kubelet.server.set_forward(self.uid(), forward);
                self.volumes = volumes;
                self.sandbox = Some(sandbox);
            }
            Done::Sandbox(Err(error)) => {
                tracing::warn!(error.reason, error.message, uid = self.uid(), "sandbox");
                let pause = self.pause(self.sandbox_failures);
                self.sandbox_failures += 1;
                self.operations.push(sleep(pause).map(|()| Done::SandboxDue).boxed());
            }
            Done::SandboxDue => self.make_sandbox(),
            Done::Started(index, Ok(started)) => self.started(index, started),
            Done::Started(index, Err(error)) => self.not_started(index, error),
            Done::Due(index) => self.due(index),
        }
    }

    fn started(&mut self, index: usize, started: Started) {
        let Some(record) = self.records.get_mut(index) else { return };
        record.attempts += 1;
        record.started = true;
        record.state =
            Stage::Running { id: started.id, image_id: started.image_id, since: Timestamp::now() };
        self.exits.push(started.exit.map(move |exit| (index, exit)).boxed());
    }

    fn not_started(&mut self, index: usize, error: StartError) {
        let policy = self.restart_policy().to_owned();
        let Some(record) = self.records.get_mut(index) else { return };
        let StartError { reason, message } = error;
        let mut retry = true;
        record.state = Stage::Waiting { reason, message: message.clone() };
        if reason == "RunContainerError" {
            // The container exists, but its program did not start.
            record.attempts += 1;
            let ended = Ended {
                id: String::new(),
                image_id: String::new(),
                code: 128,
                reason: "StartError",
                message: message.clone(),
                since: None,
                until: Timestamp::now(),
            };
            retry = record.role != Role::Ephemeral
                && (policy != "Never" || record.role == Role::Sidecar);
            if policy == "Never" && record.role != Role::Sidecar {
                record.state = Stage::Ended(ended, false);
            } else {
                record.last = Some(ended);
                record.state = Stage::Waiting { reason, message };
            }
        }
        if retry {
            self.retry_later(index);
        }
    }

    /// The pause before a retry. `failures` counts the failures before the last.
    fn pause(&self, failures: u32) -> Duration {
        let factor = 1_u32.checked_shl(failures).unwrap_or(u32::MAX);
        self.kubelet.back_off.saturating_mul(factor).min(self.kubelet.max_back_off)
    }

    fn retry_later(&mut self, index: usize) {
        let Some(failures) = self.records.get(index).map(|record| record.failures) else { return };
        let pause = self.pause(failures);
        if let Some(record) = self.records.get_mut(index) {
            record.failures += 1;
        }
        self.operations.push(sleep(pause).map(move |()| Done::Due(index)).boxed());
    }

    /// Handles the end of a back-off. Normally the container starts; after a failed pull, like with
    /// a kubelet, its state first becomes a back-off of its own.
    fn due(&mut self, index: usize) {
        let Some(record) = self.records.get_mut(index) else { return };
        if let Stage::Waiting { reason: "ErrImagePull", message, .. } = &record.state {
            let image = record.container.image.as_deref().unwrap_or_default();
            let message = format!("Back-off pulling image {image:?}: ErrImagePull: {message}");
            record.state = Stage::Waiting { reason: "ImagePullBackOff", message };
            return self.retry_later(index);
        }
        self.start(index);
    }

    fn ended(&mut self, index: usize, exit: Exit) {
        let policy = self.restart_policy().to_owned();
        let pod = format!("{}({})", self.full_name(), self.uid());
        let Some(record) = self.records.get(index) else { return };
        let restart = match record.role {
            Role::Sidecar => true,
            Role::Ephemeral => false,
            Role::Init => exit.code != 0 && policy != "Never",
            Role::Regular => policy == "Always" || policy == "OnFailure" && exit.code != 0,
        };
        let pause = self.pause(record.failures.saturating_sub(1));
        let Some(record) = self.records.get_mut(index) else { return };
        record.end(exit, restart);
        if !restart {
            return;
        }
        record.failures += 1;
        // The first restart happens without a pause.
        if record.failures == 1 {
            return self.operations.push(async move { Done::Due(index) }.boxed());
        }
        if let Stage::Ended(ended, _) = &record.state {
            record.last = Some(ended.clone());
        }
        let message = format!(
            "back-off {} restarting failed container={} pod={pod}",
            humane(pause),
            record.container.name
        );
        record.state = Stage::Waiting { reason: "CrashLoopBackOff", message };
        self.operations.push(sleep(pause).map(move |()| Done::Due(index)).boxed());
    }

    fn full_name(&self) -> String {
        let metadata = &self.pod.metadata;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        format!("{}_{}", text(&metadata.name), text(&metadata.namespace))
    }

    /// Starts the containers whose predecessors are ready.
    fn start_what_is_due(&mut self) {
        if self.sandbox.is_none() {
            return;
        }
        let pending = |record: &ContainerRecord| record.state == Stage::Pending;
        let mut due: Vec<usize> = Vec::new();
        let mut initialized = true;
        for (index, record) in self.records.iter().enumerate() {
            match record.role {
                Role::Ephemeral if pending(record) => due.push(index),
                Role::Init | Role::Sidecar if initialized => {
                    if pending(record) {
                        due.push(index);
                    }
                    initialized = record.initialized();
                }
                Role::Regular if initialized && pending(record) => due.push(index),
                _ => {}
            }
        }
        for index in due {
            self.start(index);
        }
    }

    fn start(&mut self, index: usize) {
        let start = match self.container_start(index) {
            Ok(start) => start,
            Err(error) => return self.not_started(index, error),
        };
        let (Some(record), Some(sandbox)) = (self.records.get_mut(index), self.sandbox.clone())
        else {
            return;
        };
        if let Stage::Ended(ended, _) = &record.state {
            record.last = Some(ended.clone());
        }
        // A kubelet shows the last failure until the retry has succeeded.
        if !matches!(record.state, Stage::Waiting { .. }) {
            record.state = Stage::Starting;
        }
        let (runtime, pod) = (Arc::clone(&self.runtime), self.pod.clone());
        self.operations.push(
            async move { Done::Started(index, runtime.start_container(&pod, &sandbox, &start).await) }
                .boxed(),
        );
    }

    fn container_start(&self, index: usize) -> Result<ContainerStart, StartError> {
        let broken = |message: String| StartError { reason: "CreateContainerConfigError", message };
        let record =
            self.records.get(index).ok_or_else(|| broken("no such container".to_owned()))?;
        let target = record
            .target
            .as_ref()
            .map(|name| {
                let found = self.records.iter().find(|record| record.container.name == *name);
                let id = found.and_then(ContainerRecord::id);
                id.ok_or_else(|| broken(format!("unable to find target container {name}")))
            })
            .transpose()?;
        let sources = PodSources { kubelet: &self.kubelet, pod: &self.pod };
        let context = Context {
            pod: &self.pod,
            pod_ip: self.ip(),
            api_server: self.kubelet.api_server,
            volumes: &self.volumes,
            config_map: &|name| volumes::VolumeSources::config_map(&sources, name),
        };
        container_start(&context, &record.container, record.attempts, target)
    }

    /// The pod's final phase; none while a container runs or will run.
    fn final_phase(&self) -> Option<&'static str> {
        let final_code = |record: &ContainerRecord| match &record.state {
            Stage::Ended(ended, false) => Some(ended.code),
            _ => None,
        };
        let of = |role: Role| {
            self.records.iter().filter(move |record| record.role == role).map(final_code)
        };
        if of(Role::Init).any(|code| code.is_some_and(|code| code != 0)) {
            return Some("Failed");
        }
        let codes: Vec<i32> = of(Role::Regular).collect::<Option<_>>()?;
        Some(if codes.iter().all(|code| *code == 0) { "Succeeded" } else { "Failed" })
    }

    /// Asks the containers to end, with the grace period of the pod's deletion.
    async fn stop(&mut self) {
        self.operations.clear();
        let seconds = self.pod.metadata.deletion_grace_period_seconds.unwrap_or_default();
        let grace = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        let running = self.records.iter().filter_map(|record| match &record.state {
            Stage::Running { id, .. } => Some(self.runtime.stop_container(id, grace)),
            _ => None,
        });
        let stopped = futures::future::join_all(running).await;
        if stopped.contains(&true) {
            // The runtime forgets their exit codes with the containers.
            self.last_exits().await;
        }
    }

    /// Removes the pod from the runtime and records the containers' ends.
    async fn take_down(&mut self) {
        // The runtime also removes what it was about to start.
        self.operations.clear();
        let (uid, runtime) = (self.uid().to_owned(), Arc::clone(&self.runtime));
        self.kubelet.remove(&uid, runtime.as_ref()).await;
        self.last_exits().await;
        for record in &mut self.records {
            match &record.state {
                Stage::Running { .. } => {
                    record.end(Exit { code: 137, finished_at: Timestamp::now() }, false);
                }
                Stage::Ended(ended, true) => record.state = Stage::Ended(ended.clone(), false),
                _ => {}
            }
        }
    }

    /// Records the exit codes that arrive now.
    async fn last_exits(&mut self) {
        let last = async {
            while let Some((index, exit)) = self.exits.next().await {
                if let Some(record) = self.records.get_mut(index) {
                    record.end(exit, false);
                }
            }
        };
        let _ = timeout(LAST_EXITS, last).await;
    }

    /// Writes the pod's status to the store.
    fn publish(&self, phase: Option<&'static str>) {
        let object = self.object();
        self.kubelet.update(&object, |pod| {
            let status = status::of(self, pod, phase);
            object::set(pod, &["status"], status);
        });
    }

    pub(super) fn scheme(&self) -> &'static str {
        self.runtime.scheme()
    }
}

/// Formats a pause as Go does, to the millisecond.
fn humane(pause: Duration) -> String {
    let seconds = pause.as_secs();
    match (seconds / 60, seconds % 60, pause.subsec_millis()) {
        (0, 0, millis) => format!("{millis}ms"),
        (0, seconds, 0) => format!("{seconds}s"),
        (0, seconds, millis) => format!("{seconds}.{millis:03}s"),
        (minutes, seconds, _) => format!("{minutes}m{seconds}s"),
    }
}

/// The objects in the store that a pod's volumes and variables refer to.
struct PodSources<'a> {
    kubelet: &'a Kubelet,
    pod: &'a Pod,
}

impl volumes::VolumeSources for PodSources<'_> {
    fn config_map(&self, name: &str) -> Option<BTreeMap<String, String>> {
        let namespace = self.pod.metadata.namespace.as_deref().unwrap_or_default();
        let map = self.kubelet.server.store.get(&CONFIG_MAPS, namespace, name)?;
        Some(
            serde_json::from_value(map.get("data").cloned().unwrap_or_default())
                .unwrap_or_default(),
        )
    }

    fn token(&self) -> String {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let account = self.pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        let account = account.as_deref().unwrap_or("default");
        let user = service_account(&text(&self.pod.metadata.namespace), account, "");
        let pod_uid = text(&self.pod.metadata.uid);
        self.kubelet.server.identities.issue(TokenIdentity {
            user,
            audiences: Vec::new(),
            expires_at: None,
            pod_uid,
        })
    }
}
