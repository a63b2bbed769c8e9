//! What every call goes through, whatever its service: authentication, authorisation, limits,
//! deadlines, the audit log and metrics. A handler sees only calls that were admitted.
//!
//! A call ends with the first of these: its handler, its deadline, the end of the caller's rights,
//! and, for a stream, the moment its receiver goes away. Its [slot](super::slots) is given back
//! once all of its work is done, on other threads too, and the client has taken the answer.

use std::{
    net::SocketAddr,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, Stream};
use tokio::{
    sync::mpsc,
    time::{error::Elapsed, timeout, timeout_at},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use super::{
    operation::Operation,
    slots::{RequestSlot, RequestSlots},
    status::status,
};
use crate::{
    agent::{
        access::{Access, Caller, Credentials, Grant, Method, Object, caller, method::Input},
        audit::{Audit, Notes, Record},
        config::Limits,
        listen::{
            Vouched, Voucher,
            budget::{Allowance, Budget},
        },
        metrics::Metrics,
        work,
    },
    domain::{Error, ErrorKind, Reason, Result, pod::Pod},
    kube::pods::Pods,
};

/// The messages of a streamed answer, and the status that ends it.
pub type Answers<A> = Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>;

/// How long admission may take. Only an API server that does not answer takes longer.
const MAX_ADMISSION: Duration = Duration::from_secs(600);

/// Admits calls to the handlers of all services.
#[derive(Debug)]
pub struct Gate {
    node: String,
    pods: Arc<Pods>,
    access: Access,
    audit: Arc<Audit>,
    metrics: Arc<Metrics>,
    slots: Arc<RequestSlots>,
    drain: CancellationToken,
}

/// A call that was admitted.
#[derive(Debug)]
pub struct Call<Q> {
    /// The authenticated caller.
    pub caller: Caller,
    /// The request, bound to the pod that the caller has the rights for.
    pub message: Q,
    /// When the handler is stopped.
    pub deadline: Instant,
    /// Results for the audit log.
    pub notes: Notes,
    /// The TCP connection of the request: the agent's address and the caller's. None on a unix
    /// socket.
    pub connection: Option<(SocketAddr, SocketAddr)>,
    /// The memory for large messages. A handler that makes some takes their bytes from it first.
    pub memory: Allowance,
}

/// What a call holds while it is worked on.
#[derive(Debug)]
struct Admission {
    slot: Arc<RequestSlot>,
    _vouched: Option<Vouched>,
    grant: Grant,
}

impl Gate {
    /// The gate of the agent on `node`, which lets nobody in once `drain` is cancelled.
    pub fn new(
        node: &str,
        pods: Arc<Pods>,
        access: Access,
        audit: Audit,
        metrics: Arc<Metrics>,
        limits: &Limits,
        drain: CancellationToken,
    ) -> Self {
        let slots = Arc::new(RequestSlots::new(limits.max_requests, limits.max_requests_per_user));
        Self { node: node.to_owned(), pods, access, audit: Arc::new(audit), metrics, slots, drain }
    }

    /// A call with one answer. If its client sends a stream, the caller's rights are reviewed
    /// meanwhile.
    ///
    /// # Errors
    /// The status of what went wrong.
    pub async fn unary<Q, A, F>(
        &self,
        request: Request<Q>,
        act: impl FnOnce(Call<Q>) -> F,
    ) -> Result<Response<A>, Status>
    where
        Q: Operation,
        F: Future<Output = Result<A>>,
    {
        let began = Instant::now();
        let mut record = self.audit.record(Q::METHOD.as_str());
        let result = async {
            let (call, admission) = self.enter(request, &mut record).await?;
            let deadline = call.deadline;
            let handler = work::in_slot(Arc::clone(&admission.slot), Box::pin(act(call)));
            match Q::METHOD.row().input {
                Input::Message => in_time(deadline, handler).await,
                Input::Stream { .. } => {
                    in_time(deadline, self.while_allowed(&admission.grant, handler)).await
                }
            }
        };
        let result = result.await;
        let status = self.finish(Q::METHOD, began, record, result.as_ref().err()).await;
        status.map_or_else(|| result.map(Response::new).map_err(|_| lost()), Err)
    }

    /// Like [`Gate::unary`], for work that must come to its end and be recorded also if the caller
    /// hangs up.
    ///
    /// # Errors
    /// As [`Gate::unary`].
    pub async fn unary_to_the_end<Q, A, F>(
        self: &Arc<Self>,
        request: Request<Q>,
        act: impl FnOnce(Call<Q>) -> F + Send + 'static,
    ) -> Result<Response<A>, Status>
    where
        Q: Operation + Send + Sync + 'static,
        A: Send + 'static,
        F: Future<Output = Result<A>> + Send + 'static,
    {
        let gate = Arc::clone(self);
        let work = tokio::spawn(async move { gate.unary(request, act).await });
        work.await.unwrap_or_else(|_| Err(lost()))
    }

    /// A call with a stream of answers, which `act` sends one by one. It ends when the caller loses
    /// the rights to it or hangs up; a handler that waits for something else need not watch for
    /// either.
    ///
    /// # Errors
    /// The status of what kept it from starting. What goes wrong later ends the stream.
    pub async fn stream<Q, A, F>(
        self: &Arc<Self>,
        request: Request<Q>,
        act: impl FnOnce(Call<Q>, mpsc::Sender<A>) -> F,
    ) -> Result<Response<Answers<A>>, Status>
    where
        Q: Operation + Send + 'static,
        A: Send + 'static,
        F: Future<Output = Result<()>> + Send + 'static,
    {
        self.start_stream(request, |call, answers| {
            let receiver = answers.clone();
            let work = Box::pin(act(call, answers));
            async move {
                tokio::select! {
                    biased;
                    result = work => result,
                    () = receiver.closed() => Err(hung_up()),
                }
            }
        })
        .await
    }

    /// Like [`Gate::stream`], for work that goes on when the caller hangs up. `act` watches for
    /// that itself.
    ///
    /// # Errors
    /// As [`Gate::stream`].
    pub async fn stream_to_the_end<Q, A, F>(
        self: &Arc<Self>,
        request: Request<Q>,
        act: impl FnOnce(Call<Q>, mpsc::Sender<A>) -> F,
    ) -> Result<Response<Answers<A>>, Status>
    where
        Q: Operation + Send + 'static,
        A: Send + 'static,
        F: Future<Output = Result<()>> + Send + 'static,
    {
        self.start_stream(request, act).await
    }

    async fn start_stream<Q, A, F>(
        self: &Arc<Self>,
        request: Request<Q>,
        act: impl FnOnce(Call<Q>, mpsc::Sender<A>) -> F,
    ) -> Result<Response<Answers<A>>, Status>
    where
        Q: Operation + Send + 'static,
        A: Send + 'static,
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let began = Instant::now();
        let mut record = self.audit.record(Q::METHOD.as_str());
        let (call, admission) = match self.enter(request, &mut record).await {
            Ok(entered) => entered,
            Err(error) => {
                let status = self.finish(Q::METHOD, began, record, Some(&error)).await;
                return Err(status.unwrap_or_else(lost));
            }
        };
        let (answers, queue) = mpsc::channel(Q::METHOD.row().queue);
        let (end, ended) = tokio::sync::oneshot::channel();
        let deadline = call.deadline;
        let handler = Box::pin(act(call, answers));
        let handler = work::in_slot(Arc::clone(&admission.slot), handler);
        let gate = Arc::clone(self);
        // Boxed above, because each wrapper would else hold another copy of a handler's state on
        // the stack.
        tokio::spawn(async move {
            let result = in_time(deadline, gate.while_allowed(&admission.grant, handler)).await;
            drop(admission);
            // Nobody listens once the caller has hung up.
            let _ = end.send(gate.finish(Q::METHOD, began, record, result.as_ref().err()).await);
        });
        let tail = futures::stream::once(ended).filter_map(|end| match end {
            Ok(None) => None,
            Ok(Some(status)) => Some(Err(status)),
            Err(_) => Some(Err(lost())),
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(queue).map(Ok).chain(tail))))
    }

    /// Runs `work` until the caller loses the rights to it.
    async fn while_allowed<T>(
        &self,
        grant: &Grant,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        tokio::select! {
            biased;
            result = work => result,
            lapsed = self.access.lapse(grant) => Err(lapsed),
        }
    }

    /// Admits a call or refuses it. Either way the audit log has its first line before anything
    /// else is done.
    async fn enter<Q: Operation>(
        &self,
        mut request: Request<Q>,
        record: &mut Record,
    ) -> Result<(Call<Q>, Admission)> {
        // Ends before the caller's own patience, so that the caller still hears why.
        let patience = timeout_of(&request).ok().flatten().unwrap_or(Duration::MAX);
        let patience = patience.min(Q::METHOD.row().max_time).min(MAX_ADMISSION);
        let object = request.get_mut().subject().object().ok();
        // Before anything is checked, so that the log also shows what callers were refused.
        if let Some(object) = &object {
            record.object(object);
        }
        record.peer(caller::peer(&request));
        let admission = Box::pin(self.admit(request, record));
        let admitted = caught(timeout(patience / 4 * 3, admission)).await;
        record.start().await?;
        admitted.map_err(|error| match &object {
            Some(Object::Pod { namespace, name, .. }) => error.pod(namespace, name),
            _ => error,
        })
    }

    async fn admit<Q: Operation>(
        &self,
        request: Request<Q>,
        record: &mut Record,
    ) -> Result<(Call<Q>, Admission)> {
        let permission = &Q::METHOD.row().permission;
        if self.drain.is_cancelled() {
            return Err(Error::new(Reason::Draining, "the agent is shutting down"));
        }
        let mut slot = self.slots.take()?;
        let credentials = Credentials::of(&request)?;
        let peer = request.remote_addr().map(|address| address.ip().to_canonical());
        let caller = self.access.authenticate(&credentials, peer, permission.mutates).await?;
        record.caller(&caller);
        slot.assign(&caller.user.name)?;
        let asked = timeout_of(&request)?;
        let deadline =
            Instant::now() + asked.unwrap_or(Duration::MAX).min(Q::METHOD.row().max_time);
        let connection = request.local_addr().zip(request.remote_addr());
        let voucher = request.extensions().get::<Voucher>().cloned();
        let mut message = request.into_inner();
        record.parameters(message.parameters());
        let subject = message.subject();
        let (object, as_root) = (subject.object()?, subject.as_root());

        // By the name alone first: a caller who may not see the pod must not learn whether it
        // exists.
        let mut rights = self.access.rights(Q::METHOD, as_root, &object);
        let verdict = self.access.authorize(&caller, &rights, permission.mutates).await;
        record.decision(&verdict);
        verdict.result?;
        if permission.depends_on_pod()
            && let Some(pod) = self.pod(&object).await?
        {
            record.pod_uid(&pod.uid);
            if !message.subject().bind(&pod.uid) {
                return Err(Error::new(Reason::Bug, "the request cannot be bound to its pod"));
            }
            let more = self.access.rights_on(Q::METHOD, &object, &pod);
            if !more.is_empty() {
                let verdict = self.access.authorize(&caller, &more, permission.mutates).await;
                record.decision(&verdict);
                verdict.result?;
                rights.extend(more);
            }
        }
        let slot = Arc::new(slot);
        let vouched = voucher.map(|voucher| voucher.vouch(&caller.user.name, Arc::clone(&slot)));
        let memory = vouched.as_ref().and_then(Vouched::memory).unwrap_or_else(unlimited);
        let grant = Grant::new(credentials, caller.clone(), rights);
        let call = Call { caller, message, deadline, notes: record.notes(), connection, memory };
        Ok((call, Admission { slot, _vouched: vouched, grant }))
    }

    /// The pod that a call is about, if it is about one.
    async fn pod(&self, object: &Object) -> Result<Option<Arc<Pod>>> {
        let Object::Pod { namespace, name, uid } = object else { return Ok(None) };
        let (pod, ()) = self.pods.find(namespace, name, |pod| pod.expect_uid(uid)).await?;
        Ok(Some(pod))
    }

    /// Counts the call, completes its record, logs what is a bug, and makes the status of an error.
    async fn finish(
        &self,
        method: Method,
        began: Instant,
        record: Record,
        error: Option<&Error>,
    ) -> Option<Status> {
        let status = error.map(|error| {
            if error.kind() == ErrorKind::Internal {
                tracing::error!(method = method.as_str(), reason = error.reason.as_str(), %error, "request failed");
            } else {
                tracing::debug!(method = method.as_str(), reason = error.reason.as_str(), %error, "request refused");
            }
            status(error, &self.node)
        });
        let code = status.as_ref().map_or(Code::Ok, Status::code);
        let reason = error.map(|e| e.reason);
        self.metrics.request(method, code, reason, began.elapsed());
        record.end(crate::codec::code_name(code), reason).await;
        status
    }
}

/// Runs `work` until its deadline.
async fn in_time<T>(deadline: Instant, work: impl Future<Output = Result<T>>) -> Result<T> {
    caught(timeout_at(deadline.into(), work)).await
}

/// Makes errors of a panic and of a deadline that has passed.
async fn caught<T>(work: impl Future<Output = Result<Result<T>, Elapsed>>) -> Result<T> {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => {
            Err(Error::new(Reason::Deadline, "the request took longer than its deadline"))
        }
        Err(_) => Err(Error::new(Reason::Bug, "panic in a handler")),
    }
}

/// The error of a stream whose client has gone away. Only the audit log shows it.
pub(super) fn hung_up() -> Error {
    Error::new(Reason::PeerGone, "the caller has hung up")
}

/// For requests that come over no connection, in tests.
fn unlimited() -> Allowance {
    Budget::new(usize::MAX).of("")
}

fn lost() -> Status {
    Status::internal("internal error; the agent's log has the details")
}

/// The header `grpc-timeout`: at most eight digits and a unit.
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
fn timeout_of<Q>(request: &Request<Q>) -> Result<Option<Duration>> {
    let Some(value) = request.metadata().get("grpc-timeout") else { return Ok(None) };
    let parse = |text: &str| {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let amount: u64 =
            digits.parse().ok().filter(|_| digits.len() <= 8 && !digits.starts_with('+'))?;
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
    use tonic::transport::server::TcpConnectInfo;

    use super::*;
    use crate::agent::{access, audit::Sink, rpc::operation::Subject};

    /// What the handler below gets.
    #[derive(Debug)]
    struct Number(u32);

    impl Operation for Number {
        const METHOD: Method = Method::NodeGet;

        fn subject(&mut self) -> Subject<'_> {
            Subject::Node
        }

        fn parameters(&self) -> Vec<(&'static str, String)> {
            Vec::new()
        }
    }

    fn gate() -> Arc<Gate> {
        let client =
            kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap()))
                .unwrap();
        let access =
            access::AccessOptions { insecure_loopback: true, ..access::AccessOptions::default() };
        let limits = Limits { max_requests: 1, ..Limits::default() };
        Arc::new(Gate::new(
            "n",
            Arc::new(Pods::new(client.clone(), "n")),
            Access::new(client, "n", access),
            Audit::open(&Sink::File("/dev/null".into()), "n").unwrap(),
            Arc::new(Metrics::new("n")),
            &limits,
            CancellationToken::new(),
        ))
    }

    fn request(message: u32) -> Request<Number> {
        let mut request = Request::new(Number(message));
        let remote_addr = Some(([127, 0, 0, 1], 1).into());
        request.extensions_mut().insert(TcpConnectInfo { local_addr: None, remote_addr });
        request
    }

    /// A handler that panics over 13, given the only permit there is.
    async fn divide(message: u32) -> Result<u32> {
        tokio::task::yield_now().await;
        let divisor = message.wrapping_sub(13);
        assert_ne!(divisor, 0, "on purpose");
        Ok(26 / divisor)
    }

    #[tokio::test]
    async fn a_panic_fails_its_own_request_alone() {
        let gate = gate();
        let call = async |message: u32| {
            gate.unary(request(message), |call: Call<Number>| divide(call.message.0)).await
        };
        let status = call(13).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.message().contains("purpose"), "{}", status.message());
        assert_eq!(call(15).await.unwrap().into_inner(), 13);
    }

    #[tokio::test]
    async fn a_panic_ends_its_own_stream_alone() {
        let gate = gate();
        let call = async |message: u32| {
            let act = |call: Call<Number>, answers: mpsc::Sender<u32>| async move {
                let _ = answers.send(1).await;
                let _ = answers.send(divide(call.message.0).await?).await;
                Ok(())
            };
            let stream = gate.stream(request(message), act).await;
            stream.unwrap().into_inner().collect::<Vec<_>>().await
        };
        let answers = call(13).await;
        assert_eq!(answers.len(), 2);
        assert!(
            matches!(answers.as_slice(), [Ok(1), Err(status)] if status.code() == Code::Internal)
        );
        let answers = call(15).await;
        assert!(matches!(answers.as_slice(), [Ok(1), Ok(13)]));
    }

    #[tokio::test]
    async fn only_so_many_at_a_time_and_none_once_it_drains() {
        let gate = gate();
        let held = gate.slots.take().unwrap();
        let call = async || {
            let answer = gate.unary(request(15), |call: Call<Number>| divide(call.message.0)).await;
            answer.map_err(|status| status.code()).map(Response::into_inner)
        };
        assert_eq!(call().await, Err(Code::ResourceExhausted));
        drop(held);
        assert_eq!(call().await, Ok(13));
        gate.drain.cancel();
        assert_eq!(call().await, Err(Code::Unavailable));
    }

    #[test]
    fn timeouts() {
        let parse = |text: &'static str| {
            let mut request = Request::new(());
            request
                .metadata_mut()
                .insert("grpc-timeout", tonic::metadata::MetadataValue::from_static(text));
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
