//! An open root, and the one way to work below it.

use std::{sync::Arc, time::Instant};

use super::{
    Owner,
    threads::{Held, Lane},
};
use crate::{
    domain::{Error, Reason, Result, pod::Pod, process::IdMap},
    kube::pods::Pods,
    sys::{identity::FileIdentity, process::ContainerProcess, rooted::RootedDir},
};

/// The root of a container, and all that it takes to work below it.
#[derive(Debug)]
pub struct Root {
    /// The pod, as it was when the root was opened.
    pub pod: Arc<Pod>,
    /// Name of the container that the request named.
    pub container: String,
    /// The first process of that container.
    pub process: Arc<ContainerProcess>,
    /// Whose root it is: not always that container's.
    pub owner: Owner,
    /// The identity that files are read with.
    pub identity: FileIdentity,
    /// How the container maps users and groups.
    pub maps: (IdMap, IdMap),
    /// Closing the last descriptor of a root may unmount its file system, which may block.
    pub(super) dir: Held<Arc<RootedDir>>,
    pub(super) lane: Lane,
    pub(super) pods: Arc<Pods>,
}

impl Root {
    /// Runs `work` on a thread for file work, with the identity of this root. The result counts
    /// only if the container has not ended meanwhile.
    ///
    /// # Errors
    /// CONTAINER_RESTARTED, PROCESS_GONE, TOO_MANY_FILE_REQUESTS, FILE_SYSTEM_STUCK, and those of
    /// `work`.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<RootedDir>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let result = self.run_past_end(work).await;
        if self.is_alive() { result } else { Err(self.ended().await) }
    }

    /// When work that begins now has to stop by itself, so that its own error arrives and it does
    /// not count as stuck: after nine tenths of the time that it is waited for.
    pub(super) fn deadline(&self) -> impl FnOnce() -> Instant + Send + use<> {
        let time = self.lane.timeout() / 10 * 9;
        move || Instant::now() + time
    }

    /// As [`Root::run`], for work that may go on after the container has ended: open files stay
    /// readable.
    pub(super) async fn run_past_end<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<RootedDir>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let dir = Arc::clone(self.dir.get()?);
        let result = self.lane.run(move || work(&dir)).await;
        result.map_err(|error| self.about(error))
    }

    /// As [`Root::run`], for something that stays open between steps of work.
    pub(super) async fn open<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<RootedDir>) -> Result<T> + Send + 'static,
    ) -> Result<Held<T>> {
        let lane = self.lane.clone();
        self.run(move |root| work(root).map(|opened| lane.hold(opened))).await
    }

    pub(super) fn is_alive(&self) -> bool {
        let owner = match &self.owner {
            Owner::Container(_, of) | Owner::Sandbox(of) => of.is_alive(),
            Owner::Host => true,
        };
        owner && self.process.is_alive()
    }

    /// The error that says why the root serves nothing more.
    async fn ended(&self) -> Error {
        // The watch may not have seen it yet.
        let now = match self.pods.current(&self.pod).await {
            Ok(Some(pod)) => pod,
            Ok(None) => {
                let message = "the pod was deleted meanwhile";
                return self.about(Error::new(Reason::PodDeleted, message));
            }
            Err(_) => Arc::clone(&self.pod),
        };
        let id = now.container(&self.container).and_then(|c| c.id.as_ref());
        self.about(match id.filter(|id| id.id != self.process.container_id) {
            Some(id) => Error::new(
                Reason::ContainerRestarted,
                format!("was restarted meanwhile; it is {id} now"),
            ),
            None => Error::new(Reason::ProcessGone, "has ended meanwhile"),
        })
    }

    /// Says which pod and container an error is about.
    fn about(&self, error: Error) -> Error {
        error.pod(&self.pod.namespace, &self.pod.name).container(&self.container)
    }
}
