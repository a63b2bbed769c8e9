//! Any bytes as a request of any method: decoded, asked what it is about, written to the audit log,
//! bound to a pod, and its texts parsed. The first byte chooses the method.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podsonde::{
    agent::rpc::operation::Operation,
    domain::{filter, selector::LabelSelector},
    proto::v1,
};
use prost::Message;

/// What the gate does with a request before its handler sees it.
fn pass<Q: Operation + Message + Default>(data: &[u8]) -> Option<Q> {
    let mut request = Q::decode(data).ok()?;
    for (name, value) in request.parameters() {
        assert!(!name.is_empty() && value.len() <= 8 * data.len() + 64, "{name}");
    }
    let subject = request.subject();
    let is_root = subject.as_root();
    let object = subject.object().ok()?;
    assert_eq!(request.subject().as_root(), is_root);
    // Bound to a pod, it is about that pod and no other.
    if request.subject().bind("8f7bd3c4-7a5b-4c1e-9d6a-0e2f6d1c5b3a") {
        let bound = request.subject().object().expect("it was about a pod");
        assert_eq!(bound.names(), object.names());
    }
    Some(request)
}

fuzz_target!(|data: &[u8]| {
    let Some((method, data)) = data.split_first() else { return };
    match method % 15 {
        0 => drop(pass::<v1::DebugCreateRequest>(data)),
        1 => drop(pass::<v1::DebugGetRequest>(data)),
        2 => drop(pass::<v1::DebugListRequest>(data)),
        3 => drop(pass::<v1::DebugEndRequest>(data)),
        4 => drop(pass::<v1::NamespacesVerifyRequest>(data)),
        5 => {
            if let Some(request) = pass::<v1::NamespacesVerifyNodeRequest>(data)
                && let Ok(selector) = LabelSelector::parse(&request.label_selector)
            {
                let _ = selector.matches(|_| Some("web"));
            }
        }
        6 => {
            if let Some(request) = pass::<v1::CaptureStartRequest>(data) {
                let _ = filter::wants_vlan_tags(&request.filter);
                let _ = filter::with_number(&request.filter, "unknown port 'http'");
            }
        }
        7 => drop(pass::<v1::CaptureCompileRequest>(data)),
        8 => drop(pass::<v1::CaptureListInterfacesRequest>(data)),
        9 => drop(pass::<v1::NodeGetRequest>(data)),
        10 => drop(pass::<v1::FilesStatRequest>(data)),
        11 => drop(pass::<v1::FilesListRequest>(data)),
        12 => drop(pass::<v1::FilesReadRequest>(data)),
        13 => drop(pass::<v1::FilesWalkRequest>(data)),
        _ => {
            drop(pass::<v1::FilesChecksumRequest>(data));
            drop(pass::<v1::FilesWriteStart>(data));
        }
    }
});
