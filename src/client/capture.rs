//! Captures: the calls of [`Agent`] to the Capture service, and the stream of one capture.

use std::future::Future;

use bytes::Bytes;
use tonic::{Code, Streaming};

use super::{agent::Agent, error::Error, reason::Reason};
use crate::proto::v1::{
    CaptureCompileRequest, CaptureCompileResponse, CaptureEnded, CaptureListInterfacesRequest,
    CaptureListInterfacesResponse, CaptureStartRequest, CaptureStartResponse, CaptureStarted,
    CaptureStatistics, capture_client::CaptureClient, capture_start_response::Event,
};

/// Largest message accepted from an agent, in bytes. A payload is about 256 KiB, or one packet if
/// that is larger.
const LARGEST_MESSAGE: usize = 8 * 1024 * 1024;

/// A running capture. Dropping it ends the capture.
#[derive(Debug)]
pub struct Capture {
    started: CaptureStarted,
    events: Streaming<CaptureStartResponse>,
    agent: Agent,
}

/// What an agent sends while a capture runs.
#[derive(Debug, Clone, PartialEq)]
pub enum CaptureEvent {
    /// Whole pcapng blocks. All of them in order make a pcapng file.
    Packets(Bytes),
    /// The agent's figures. They count the packets that came before this event.
    Statistics(CaptureStatistics),
    /// The totals. Nothing follows.
    Ended(CaptureEnded),
}

impl Agent {
    /// Starts a capture. It runs until it reaches a limit of the request or of the agent, the
    /// interface or container disappears, or the [`Capture`] is dropped. The request timeout limits
    /// only the start. Use a connection from [`Fleet::connect_bulk`](super::Fleet::connect_bulk),
    /// which is tuned for streams.
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

    /// Compiles a filter on the agent and returns the program, without capturing.
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

    /// Lists the interfaces of a pod on which packets can be captured. `container` has the meaning
    /// that `capture.proto` gives it.
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

    /// Makes a call that older agents do not implement, and says so if this agent is one of them.
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
    /// What the agent captures, and the limits in force.
    #[must_use]
    pub fn started(&self) -> &CaptureStarted {
        &self.started
    }

    /// Waits for the next event. Dropping the future before it is ready loses nothing.
    ///
    /// # Errors
    /// `CONNECTION_LOST`, `PROTOCOL`, and the error with which the agent ended the capture.
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
