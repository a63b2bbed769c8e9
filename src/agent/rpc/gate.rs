//! What every call goes through, whatever its service: who calls, whether they may, how many at a time, how long, and what the metrics
//! say of it afterwards. A handler sees only calls that passed.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, Stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Response, Status,
    transport::server::{TcpConnectInfo, UdsConnectInfo},
};

use super::status::status;
use crate::{
    agent::{
        access::{Access, Caller, Method, Object},
        listen::Voucher,
        metrics::Metrics,
    },
    domain::{Error, ErrorKind, Reason, Result},
};

/// A stream of answers.
pub type Answers<A> = Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>;

/// Messages of a stream that wait for a slow client, at most.
const QUEUE: usize = 16;

/// The way into every service.
#[derive(Debug)]
pub struct Gate {
    node: String,
    access: Access,
    metrics: Arc<Metrics>,
    permits: Arc<Semaphore>,
    drain: CancellationToken,
}

/// A call that passed.
#[derive(Debug)]
pub struct Call<Q> {
    /// Who calls.
    pub caller: Caller,
    /// What they ask.
    pub message: Q,
    /// When the answer has to be there.
    pub deadline: Instant,
}

impl Method {
    /// How long it may take at most, whatever deadline the caller sets.
    const fn max_time(self) -> Duration {
        Duration::from_secs(match self {
            // `start_timeout` and `grace_period` at their maximum, and some.
            Self::DebugCreate => 660,
            Self::DebugEnd => 330,
            Self::NamespacesVerifyNode => 120,
            Self::DebugGet | Self::DebugList | Self::NamespacesVerify | Self::NodeGet => 30,
        })
    }
}

impl Gate {
    /// The gate of the agent on `node`, which lets `max_requests` in at a time, and none once `drain` is cancelled.
    pub fn new(
        node: &str,
        access: Access,
        metrics: Arc<Metrics>,
        max_requests: usize,
        drain: CancellationToken,
    ) -> Self {
        Self {
            node: node.to_owned(),
            access,
            metrics,
            permits: Arc::new(Semaphore::new(max_requests)),
            drain,
        }
    }

    /// A call with one answer.
    ///
    /// # Errors
    /// The status of what went wrong.
    pub async fn unary<Q, A, F>(
        &self,
        method: Method,
        request: Request<Q>,
        object: impl FnOnce(&Q) -> Result<Object>,
        act: impl FnOnce(Call<Q>) -> F,
    ) -> Result<Response<A>, Status>
    where
        F: Future<Output = Result<A>>,
    {
        let began = Instant::now();
        let result = async {
            let (call, _permit) = self.admit(method, request, object).await?;
            let deadline = call.deadline.into();
            let acted = AssertUnwindSafe(tokio::time::timeout_at(deadline, act(call))).catch_unwind().await;
            acted.unwrap_or_else(|_| Ok(Err(panicked()))).unwrap_or_else(|_| Err(too_late()))
        };
        let result = result.await;
        self.finish(method, began, result.as_ref().err())
            .map_or_else(|| result.map(Response::new).map_err(|_| lost()), Err)
    }

    /// A call with a stream of answers, which `act` sends one by one.
    ///
    /// # Errors
    /// The status of what kept it from starting. What goes wrong later ends the stream.
    pub async fn stream<Q, A, F>(
        self: &Arc<Self>,
        method: Method,
        request: Request<Q>,
        object: impl FnOnce(&Q) -> Result<Object>,
        act: impl FnOnce(Call<Q>, mpsc::Sender<A>) -> F,
    ) -> Result<Response<Answers<A>>, Status>
    where
        Q: Send + 'static,
        A: Send + 'static,
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let began = Instant::now();
        let (call, permit) = match self.admit(method, request, object).await {
            Ok(admitted) => admitted,
            Err(error) => return Err(self.finish(method, began, Some(&error)).unwrap_or_else(lost)),
        };
        let (answers, queue) = mpsc::channel(QUEUE);
        let (end, ended) = tokio::sync::oneshot::channel();
        let deadline = call.deadline.into();
        let work = act(call, answers);
        let gate = Arc::clone(self);
        tokio::spawn(async move {
            let acted = AssertUnwindSafe(tokio::time::timeout_at(deadline, work)).catch_unwind().await;
            let result = acted.unwrap_or_else(|_| Ok(Err(panicked()))).unwrap_or_else(|_| Err(too_late()));
            drop(permit);
            // Nobody listens once the caller has hung up.
            let _ = end.send(gate.finish(method, began, result.as_ref().err()));
        });
        let tail = futures::stream::once(ended).filter_map(|end| match end {
            Ok(None) => None,
            Ok(Some(status)) => Some(Err(status)),
            Err(_) => Some(Err(lost())),
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(queue).map(Ok).chain(tail))))
    }

    async fn admit<Q>(
        &self,
        method: Method,
        request: Request<Q>,
        object: impl FnOnce(&Q) -> Result<Object>,
    ) -> Result<(Call<Q>, OwnedSemaphorePermit)> {
        let caller = caller(&request)?;
        let asked = timeout_of(&request)?;
        let deadline = Instant::now() + asked.unwrap_or(Duration::MAX).min(method.max_time());
        if self.drain.is_cancelled() {
            return Err(Error::new(Reason::Draining, "the agent is shutting down"));
        }
        let busy =
            |_| Error::new(Reason::TooManyRequests, "the agent is working on as many requests as it may");
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(busy)?;
        let voucher = request.extensions().get::<Voucher>().cloned();
        let message = request.into_inner();
        let object = object(&message)?;
        self.access.authorize(&caller, method, &object).await?;
        voucher.iter().for_each(Voucher::vouch);
        Ok((Call { caller, message, deadline }, permit))
    }

    /// Counts the call, logs what is a bug, and makes the status of an error.
    fn finish(&self, method: Method, began: Instant, error: Option<&Error>) -> Option<Status> {
        let status = error.map(|error| {
            if error.kind() == ErrorKind::Internal {
                tracing::error!(method = method.as_str(), reason = error.reason.as_str(), %error, "request failed");
            } else {
                tracing::debug!(method = method.as_str(), reason = error.reason.as_str(), %error, "request refused");
            }
            status(error, &self.node)
        });
        let code = status.as_ref().map_or(Code::Ok, Status::code);
        self.metrics.request(method, code, error.map(|e| e.reason), began.elapsed());
        status
    }
}

fn panicked() -> Error {
    Error::new(Reason::Bug, "panic in a handler")
}

fn too_late() -> Error {
    Error::new(Reason::Deadline, "the request took longer than its deadline")
}

fn lost() -> Status {
    Status::internal("internal error; the agent's log has the details")
}

/// Who is at the other end of the connection.
fn caller<Q>(request: &Request<Q>) -> Result<Caller> {
    let extensions = request.extensions();
    if let Some(credentials) = extensions.get::<UdsConnectInfo>().and_then(|info| info.peer_cred) {
        return Ok(Caller::Local { uid: credentials.uid() });
    }
    match extensions.get::<TcpConnectInfo>().and_then(|info| info.remote_addr) {
        Some(address) => Ok(Caller::Loopback(address)),
        None => Err(Error::new(Reason::PeerRefused, "it cannot be told who is calling")),
    }
}

/// The header `grpc-timeout`: at most eight digits and a unit.
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
fn timeout_of<Q>(request: &Request<Q>) -> Result<Option<Duration>> {
    let Some(value) = request.metadata().get("grpc-timeout") else { return Ok(None) };
    let parse = |text: &str| {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let amount: u64 = digits.parse().ok().filter(|_| digits.len() <= 8 && !digits.starts_with('+'))?;
        match unit {
            "H" => Some(Duration::from_secs(amount.saturating_mul(3600))),
            "M" => Some(Duration::from_secs(amount.saturating_mul(60))),
            "S" => Some(Duration::from_secs(amount)),
            "m" => Some(Duration::from_millis(amount)),
            "u" => Some(Duration::from_micros(amount)),
            "n" => Some(Duration::from_nanos(amount)),
            _ => None,
        }
    };
    match value.to_str().ok().and_then(parse) {
        Some(timeout) => Ok(Some(timeout)),
        None => Err(Error::invalid("grpc-timeout", "is not a gRPC timeout")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        let parse = |text: &'static str| {
            let mut request = Request::new(());
            request.metadata_mut().insert("grpc-timeout", tonic::metadata::MetadataValue::from_static(text));
            timeout_of(&request).ok().flatten()
        };
        assert_eq!(parse("10S"), Some(Duration::from_secs(10)));
        assert_eq!(parse("99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!(parse("1H"), Some(Duration::from_secs(3600)));
        for bad in ["", "S", "1", "+1S", "123456789S", "-1S", "1s"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
