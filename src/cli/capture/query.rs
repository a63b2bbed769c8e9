//! `podsonde capture -D` and `-d`: lists interfaces, and prints a filter's program.

use super::{
    args::{CaptureArgs, CaptureOutput},
    report::link,
    targets::PodTarget,
};
use crate::{
    cli::{
        context::{Context, Exit, Failed, Scope},
        table::{Cell, Table},
    },
    client::Error,
    proto::v1::{CaptureCompileRequest, CaptureInterface, CaptureStartRequest, PodRef},
};

/// Lists the interfaces of the pods.
pub(super) async fn interfaces(
    context: &Context,
    scope: &Scope,
    args: &CaptureArgs,
    targets: &[PodTarget],
) -> Result<Exit, Failed> {
    let mut answers = Vec::new();
    for target in targets {
        let PodTarget { namespace, pod } = target;
        let container = args.container.as_deref().unwrap_or_default();
        let answer = async {
            let place = scope.fleet.place_of_pod(namespace, pod).await?;
            scope.fleet.connect(&place).await?.interfaces(namespace, pod, container).await
        };
        let about = |error: Error| error.about("namespace", namespace).about("pod", pod);
        answers.push((target, answer.await.map_err(about)?.interfaces));
    }
    if args.output == CaptureOutput::Json {
        let interfaces: Vec<_> = answers
            .iter()
            .flat_map(|(target, all)| all.iter().map(|one| json(target, one)))
            .collect();
        context.terminal.json(&serde_json::json!({"interfaces": interfaces}))?;
        return Ok(Exit::Ok);
    }
    let several = targets.len() > 1;
    let mut header = vec!["INTERFACE", "STATE", "LINK-TYPE", "MTU", "ADDRESSES"];
    if several {
        header.insert(0, "POD");
    }
    let mut table = Table::new(&header);
    for (PodTarget { namespace, pod }, interfaces) in &answers {
        for interface in interfaces {
            let mut row = vec![Cell::from(format!("{namespace}/{pod}"))];
            if !several {
                row.clear();
            }
            let is_any = interface.index == 0;
            let mtu = if is_any { "-".to_owned() } else { interface.mtu.to_string() };
            let addresses = match interface.addresses.as_slice() {
                [] => "-".to_owned(),
                addresses => addresses.join(","),
            };
            row.extend(
                [
                    name(interface),
                    state(interface).to_owned(),
                    link(interface.linktype).0,
                    mtu,
                    addresses,
                ]
                .map(Cell::from),
            );
            table.row(row);
        }
    }
    context.terminal.print(&table.render(context.terminal.colour))?;
    Ok(Exit::Ok)
}

/// Prints the program that the filter compiles to for the pod's interface.
pub(super) async fn program(
    context: &Context,
    scope: &Scope,
    targets: &[PodTarget],
    request: CaptureStartRequest,
) -> Result<Exit, Failed> {
    let [PodTarget { namespace, pod }] = targets else {
        return Err(Failed::Usage("-d compiles the filter for one pod".to_owned()));
    };
    let request = CaptureCompileRequest {
        pod: Some(PodRef { namespace: namespace.clone(), name: pod.clone(), uid: String::new() }),
        interface: request.interface,
        filter: request.filter,
        snaplen: request.snaplen,
    };
    let place = scope.fleet.place_of_pod(namespace, pod).await?;
    let compiled = scope.fleet.connect(&place).await?.compile_filter(request).await;
    let compiled =
        compiled.map_err(|error| error.about("namespace", namespace).about("pod", pod))?;
    context.terminal.print(&format!("{}\n", compiled.program.trim_end()))?;
    Ok(Exit::Ok)
}

fn name(interface: &CaptureInterface) -> String {
    String::from_utf8_lossy(&interface.name).into_owned()
}

fn state(interface: &CaptureInterface) -> &'static str {
    match (interface.up, interface.loopback) {
        (true, true) => "up,loopback",
        (true, false) => "up",
        (false, true) => "down,loopback",
        (false, false) => "down",
    }
}

fn json(
    PodTarget { namespace, pod }: &PodTarget,
    interface: &CaptureInterface,
) -> serde_json::Value {
    serde_json::json!({
        "namespace": namespace,
        "pod": pod,
        "name": name(interface),
        "index": interface.index,
        "up": interface.up,
        "loopback": interface.loopback,
        "linkType": link(interface.linktype).0,
        "mtu": interface.mtu,
        "addresses": interface.addresses,
    })
}
