//! Captures: what [`Agent`] asks of the service of that name, and the stream of one capture.

use std::future::Future;

use bytes::Bytes;
use tonic::{Code, Streaming};

use super::{agent::Agent, error::Error, reason::Reason};
use crate::proto::v1::{
    CaptureCompileRequest, CaptureCompileResponse, CaptureEnded, CaptureListInterfacesRequest,
    CaptureListInterfacesResponse, CaptureStartRequest, CaptureStartResponse, CaptureStarted,
    CaptureStatistics, capture_client::CaptureClient, capture_start_response::Event,
};

/// Largest message that is accepted of an agent, in bytes. Payloads are about 256 KiB, but never smaller than a packet.
const LARGEST_MESSAGE: usize = 8 * 1024 * 1024;

/// A capture that has begun.
#[derive(Debug)]
pub struct Capture {
    started: CaptureStarted,
    events: Streaming<CaptureStartResponse>,
    agent: Agent,
}

/// What comes of a capture that has begun.
#[derive(Debug, Clone, PartialEq)]
pub enum CaptureEvent {
    /// Whole pcapng blocks. All of them, one after the other, are a pcapng file.
    Packets(Bytes),
    /// The agent's figures, of which the packets are those that came before this.
    Statistics(CaptureStatistics),
    /// The end; nothing follows.
    Ended(CaptureEnded),
}

impl Agent {
    /// Starts a capture. It lasts until a limit of the request or of the agent is reached, the interface or the container goes, or the
    /// [`Capture`] is dropped. Only the start is subject to the request timeout. [`Fleet::connect_bulk`](super::Fleet::connect_bulk)
    /// gives the connection that is made for it.
    ///
    /// # Errors
    /// As documented in `capture.proto`.
    pub async fn capture(&self, request: CaptureStartRequest) -> Result<Capture, Error> {
        let mut client =
            CaptureClient::new(self.channel()).max_decoding_message_size(LARGEST_MESSAGE);
        let (started, events) = self
            .knowing(async move {
                let mut events = client.start(request).await?.into_inner();
                match events.message().await?.and_then(|first| first.event) {
                    Some(Event::Started(started)) => Ok((started, events)),
                    _ => Err(Error::new(
                        Reason::Protocol,
                        "the agent did not say that the capture started",
                    )),
                }
            })
            .await?;
        Ok(Capture { started, events, agent: self.clone() })
    }

    /// What a filter compiles to.
    ///
    /// # Errors
    /// As documented in `capture.proto`.
    pub async fn compile_filter(
        &self,
        request: CaptureCompileRequest,
    ) -> Result<CaptureCompileResponse, Error> {
        let mut client = CaptureClient::new(self.channel());
        self.knowing(async move { Ok(client.compile(request).await?.into_inner()) }).await
    }

    /// The interfaces of a pod that packets can be captured on. `container`: as in `capture.proto`.
    ///
    /// # Errors
    /// As documented in `capture.proto`.
    pub async fn interfaces(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<CaptureListInterfacesResponse, Error> {
        let mut client = CaptureClient::new(self.channel());
        let request = CaptureListInterfacesRequest {
            pod: Some(super::agent::pod_ref(namespace, pod)),
            container: container.to_owned(),
        };
        self.knowing(async move { Ok(client.list_interfaces(request).await?.into_inner()) }).await
    }

    /// The answer to a call that agents of before do not know.
    async fn knowing<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.answered(call).await.map_err(|error| match error.code {
            Code::Unimplemented => Error {
                message: format!("the agent at {} does not know captures yet", self.name()),
                ..error
            },
            _ => error,
        })
    }
}

impl Capture {
    /// How it began: what is captured, and the limits in force.
    #[must_use]
    pub fn started(&self) -> &CaptureStarted {
        &self.started
    }

    /// What comes next. Nothing is lost if the future is dropped before it is ready.
    ///
    /// # Errors
    /// `CONNECTION_LOST`, `PROTOCOL`, and what the agent ended the capture with.
    pub async fn next(&mut self) -> Result<CaptureEvent, Error> {
        let protocol = |what: &str| Error::new(Reason::Protocol, what);
        match self.events.message().await {
            Ok(Some(CaptureStartResponse { event: Some(event) })) => match event {
                Event::Pcapng(blocks) => Ok(CaptureEvent::Packets(blocks)),
                Event::Statistics(statistics) => Ok(CaptureEvent::Statistics(statistics)),
                Event::Ended(ended) => Ok(CaptureEvent::Ended(ended)),
                Event::Started(_) => Err(protocol("the agent started the capture twice")),
            },
            Ok(Some(_)) => Err(protocol("the agent sent an event without a kind")),
            Ok(None) => Err(protocol("the agent ended the capture without totals")),
            Err(status) => Err(self.agent.explain(status.into())),
        }
    }
}
