//! One of the two processes ends before its time.

use podsonde::proto::v1::Outcome;
use rustix::process::Signal;

use crate::{
    agent::{Agent, kill, possible, wait_for},
    proc::{descriptors, runs, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn without_its_broker_the_agent_goes_on_and_says_so() {
    if !possible() {
        return;
    }
    let agent = Agent::start(&[], None).await;
    let before = agent.verify().await;
    assert!(before.namespaces.iter().any(|n| n.evidence.is_some()));
    assert!(agent.feature("broker").await.available);
    assert!(agent.feature("cap-sys-admin").await.available);
    assert_eq!(agent.metric("podsonde_broker_up"), "1");

    kill(agent.broker, Signal::KILL);
    let line = wait_for(&agent.log, "the broker has ended");
    assert!(line.contains("ERROR"), "{line}");
    let broker = agent.feature("broker").await;
    assert!(!broker.available && broker.message.contains("has ended"), "{broker:?}");
    assert_eq!(agent.metric("podsonde_broker_up"), "0");
    // The same verdict, with no evidence.
    let after = agent.verify().await;
    assert_eq!((after.outcome(), after.message), (Outcome::Ok, before.message));
    let ids =
        |v: &[podsonde::proto::v1::NamespaceVerdict]| v.iter().map(|n| n.id).collect::<Vec<_>>();
    assert_eq!(ids(&after.namespaces), ids(&before.namespaces));
    let kinds = after.namespaces.iter().filter_map(|n| n.evidence.as_ref()?.kind.as_ref());
    assert!(
        kinds.clone().all(|k| matches!(k, podsonde::proto::v1::evidence::Kind::Pid(_))),
        "{kinds:?}"
    );
    // No zombie, and no second start.
    until("the broker is reaped", || {
        !std::path::Path::new(&format!("/proc/{}", agent.broker)).exists()
    });
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_broker_the_agent_ends_if_told_to() {
    if !possible() {
        return;
    }
    let mut agent = Agent::start(&["--broker-loss=exit"], None).await;
    kill(agent.broker, Signal::KILL);
    wait_for(&agent.log, "draining");
    assert_eq!(agent.ended().code(), Some(1));
    agent.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_ends_with_a_killed_agent() {
    if !possible() {
        return;
    }
    let mut agent = Agent::start(&[], None).await;
    agent.signal(Signal::KILL);
    assert!(!agent.ended().success());
    until("the broker ends", || !runs(agent.broker));
    agent.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_the_agent_before_the_broker_ends() {
    if !possible() {
        return;
    }
    let mut agent = Agent::start(&[], None).await;
    // As a terminal or a runtime sends it to both: the broker is not to go first.
    kill(agent.broker, Signal::TERM);
    kill(agent.broker, Signal::INT);
    assert!(agent.verify().await.namespaces.iter().any(|n| n.evidence.is_some()));
    let open = descriptors(agent.broker).len();
    agent.verify().await;
    assert_eq!(descriptors(agent.broker).len(), open);
    agent.signal(Signal::TERM);
    assert!(agent.ended().success());
    wait_for(&agent.log, "stopped");
    until("the broker ends", || !runs(agent.broker));
    agent.clean_up().await;
}
