//! `podsonde extcap`: pods as capture interfaces of Wireshark, by the protocol of extcap(4).
//!
//! Wireshark executes every program in its extcap directories, asks it for its interfaces and for
//! the fields of their dialogs, and has it write pcapng into a pipe. It does so whenever it starts,
//! so nothing here waits long for a cluster.

use std::{fmt::Write, path::PathBuf, time::Duration};

use clap::{ArgGroup, Args};
use kube::Client;

use super::{
    capture::{self, Choice, Job, PodTarget, targets},
    context::{Context, Exit, Failed, Scope},
    options::TEMPLATE,
    values::{self, Named},
};
use crate::{client::Error, kube::workloads, proto::v1::CaptureStartRequest};

/// How long a cluster may take to list its pods before Wireshark goes on without them.
const PATIENCE: Duration = Duration::from_secs(4);
/// Most pods that are listed: Wireshark shows them all on its first page, and executes podsonde for
/// each when it starts.
const MOST_PODS: usize = 100;
/// The interface whose dialog asks for the pod.
const ANY_POD: &str = "podsonde";
/// What the others begin with; namespace and pod follow.
const OF_POD: &str = "podsonde:";

/// `podsonde extcap`.
#[derive(Debug, Clone, Args)]
#[command(
    help_template = TEMPLATE,
    after_help = "Wireshark and tshark then list pods as interfaces, and capture from them by podsonde. The dialog of such an \
interface has fields for the container, the pod's interface, the filter and the kubeconfig. It needs what `podsonde capture` needs: \
a kubeconfig, and the ClusterRole podsonde-capturer.

Installation: a link to podsonde in Wireshark's personal extcap directory, which Help › About › Folders shows:

  mkdir -p ~/.local/lib/wireshark/extcap
  ln -s \"$(command -v podsonde)\" ~/.local/lib/wireshark/extcap/podsonde-extcap

Wireshark 4.0 has no personal directory yet: use the global one, such as /usr/lib/x86_64-linux-gnu/wireshark/extcap, or name one \
with WIRESHARK_EXTCAP_DIR, which is ignored for root. On Windows write a file podsonde-extcap.bat with: @podsonde extcap %*

A script instead of the link can choose cluster and namespace:

  #!/bin/sh
  exec podsonde extcap --context staging -n shop \"$@\"

Examples:
  # Whether Wireshark will see the pods
  tshark -D
  podsonde extcap --extcap-interfaces

  # Capture by tshark
  tshark -i podsonde:default/web -f 'port 80'"
)]
#[command(group = ArgGroup::new("step").required(true).args(["extcap_interfaces", "extcap_dlts", "extcap_config", "capture", "extcap_version"]).multiple(true))]
pub(super) struct ExtcapArgs {
    /// List interfaces
    #[arg(long, help_heading = "Asked by Wireshark")]
    extcap_interfaces: bool,
    /// Name the link types of an interface
    #[arg(long, requires = "extcap_interface", help_heading = "Asked by Wireshark")]
    extcap_dlts: bool,
    /// Describe the dialog of an interface
    #[arg(long, requires = "extcap_interface", help_heading = "Asked by Wireshark")]
    extcap_config: bool,
    /// Capture on an interface
    #[arg(long, requires_all = ["extcap_interface", "fifo"], help_heading = "Asked by Wireshark")]
    capture: bool,
    /// Name the version; Wireshark says its own
    #[arg(long, value_name = "VERSION", num_args = 0..=1, require_equals = true, default_missing_value = "", help_heading = "Asked by Wireshark")]
    extcap_version: Option<String>,
    /// The interface: podsonde:NAMESPACE/POD, or podsonde
    #[arg(long, value_name = "NAME", help_heading = "Asked by Wireshark")]
    extcap_interface: Option<String>,
    /// The field of the dialog whose values are wanted anew
    #[arg(long, value_name = "FIELD", help_heading = "Asked by Wireshark")]
    extcap_reload_option: Option<String>,
    /// Wireshark's capture filter
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "",
        hide_default_value = true,
        help_heading = "Asked by Wireshark"
    )]
    extcap_capture_filter: String,
    /// The pipe to write packets to
    #[arg(long, value_name = "FILE", help_heading = "Asked by Wireshark")]
    fifo: Option<PathBuf>,
    /// Unused
    #[arg(long, value_name = "FILE", hide = true)]
    extcap_control_in: Option<PathBuf>,
    /// Unused
    #[arg(long, value_name = "FILE", hide = true)]
    extcap_control_out: Option<PathBuf>,

    /// Pods, as POD or TYPE/NAME, separated by spaces (only for the interface podsonde)
    #[arg(
        long,
        value_name = "PODS",
        default_value = "",
        hide_default_value = true,
        help_heading = "Fields of the dialog"
    )]
    pods: String,
    /// Label selector of the pods (only for the interface podsonde)
    #[arg(
        long,
        value_name = "SELECTOR",
        default_value = "",
        hide_default_value = true,
        help_heading = "Fields of the dialog"
    )]
    selector: String,
    /// Container by whose process the network namespace is found
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true,
        help_heading = "Fields of the dialog"
    )]
    container: String,
    /// Interface to capture on, or any
    #[arg(long, value_name = "NAME", default_value = "any", help_heading = "Fields of the dialog")]
    interface: String,
    /// Filter in addition to Wireshark's own
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "",
        hide_default_value = true,
        help_heading = "Fields of the dialog"
    )]
    filter: String,
    /// Bytes of each packet to capture at most; 0: 262144, the maximum
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 0,
        hide_default_value = true,
        help_heading = "Fields of the dialog"
    )]
    snapshot_length: u32,
}

pub(super) async fn run(context: &Context, args: &ExtcapArgs) -> Result<Exit, Failed> {
    let interface = args.extcap_interface.as_deref().unwrap_or_default();
    let mut text = String::new();
    if args.capture {
        return capture(context, args, interface).await;
    } else if args.extcap_config {
        text = config(context, pod_of(interface)?, args.extcap_reload_option.as_deref()).await;
    } else if args.extcap_dlts {
        pod_of(interface)?;
        for linktype in [276, 1] {
            let (name, display) = capture::link(linktype);
            let _ = writeln!(text, "dlt {{number={linktype}}}{{name={name}}}{{display={display}}}");
        }
    } else {
        let (version, home) = (env!("CARGO_PKG_VERSION"), env!("CARGO_PKG_REPOSITORY"));
        let _ = writeln!(text, "extcap {{version={version}}}{{help={home}}}{{display=podsonde}}");
        if args.extcap_interfaces {
            let _ = writeln!(
                text,
                "interface {{value={ANY_POD}}}{{display=Kubernetes: pods by name or label}}"
            );
            for PodTarget { namespace, pod } in pods(context).await {
                let _ = writeln!(
                    text,
                    "interface {{value={OF_POD}{namespace}/{pod}}}{{display=Kubernetes pod {namespace}/{pod}}}"
                );
            }
        }
    }
    context.terminal.print(&text)?;
    Ok(Exit::Ok)
}

/// The pod whose interface that is; none for the interface that asks for pods.
fn pod_of(interface: &str) -> Result<Option<PodTarget>, Failed> {
    if interface == ANY_POD {
        return Ok(None);
    }
    let names = interface.strip_prefix(OF_POD).and_then(|names| names.split_once('/'));
    let target = names.and_then(|(namespace, pod)| {
        Some(PodTarget {
            namespace: values::label(namespace).ok()?,
            pod: values::object_name(pod).ok()?,
        })
    });
    let invalid = || {
        Failed::Usage(format!(
            "{interface:?} is not an interface of podsonde; see --extcap-interfaces"
        ))
    };
    target.map(Some).ok_or_else(invalid)
}

/// The pods that run: of the namespace that was named, else of all if they may be listed, else of
/// the kubeconfig's. None where there is no cluster: Wireshark has interfaces of others, too.
async fn pods(context: &Context) -> Vec<PodTarget> {
    let listed = tokio::time::timeout(PATIENCE, async {
        let scope = context.scope().await?;
        let client = context.api_client(&scope).await?;
        let named = context.global.namespace.as_deref();
        let found = match workloads::running(&client, named, "").await {
            Err(kube::Error::Api(status)) if status.code == 403 && named.is_none() => {
                workloads::running(&client, Some(&scope.namespace), "").await
            }
            found => found,
        };
        found.map_err(|error| Error::from_kube(&error, "list pods"))
    });
    let found = said(context, listed.await);
    found.into_iter().map(|(namespace, pod)| PodTarget { namespace, pod }).take(MOST_PODS).collect()
}

/// One field of a dialog.
struct Field<'a> {
    call: &'a str,
    display: &'a str,
    kind: &'a str,
    more: &'a str,
    tooltip: &'a str,
    values: Vec<String>,
}

/// The fields of an interface's dialog, or the values of the one that is reloaded.
async fn config(context: &Context, pod: Option<PodTarget>, reload: Option<&str>) -> String {
    let mut fields = Vec::new();
    let field = |call, display, kind, more, tooltip| Field {
        call,
        display,
        kind,
        more,
        tooltip,
        values: Vec::new(),
    };
    if pod.is_none() {
        fields.push(field(
            "--pods",
            "Pods",
            "string",
            "{placeholder=web deploy/shop}",
            "POD or TYPE/NAME, with spaces between them",
        ));
        fields.push(field(
            "--selector",
            "Labels",
            "string",
            "{placeholder=app=web}",
            "Besides, all pods with these labels",
        ));
        fields.push(field("--namespace", "Namespace", "string", "", "Empty for the kubeconfig's"));
    }
    let reloads = if pod.is_some() { "{reload=true}" } else { "" };
    let mut container = field(
        "--container",
        "Container",
        "selector",
        reloads,
        "By whose process the network namespace is found; all of a pod's containers share it",
    );
    let mut interface = field(
        "--interface",
        "Interface of the pod",
        "selector",
        reloads,
        "any for all of them, loopback among them",
    );
    container.values.push(String::new());
    interface.values.extend(["any", "eth0", "lo"].map(str::to_owned));
    // Only when asked: Wireshark wants the fields of all interfaces when it starts.
    match (&pod, reload) {
        (Some(pod), Some("container")) => container.values.extend(containers(context, pod).await),
        (Some(pod), Some("interface")) => {
            let found = interfaces(context, pod).await;
            if !found.is_empty() {
                interface.values = found;
            }
        }
        _ => {}
    }
    fields.push(container);
    fields.push(interface);
    fields.push(field(
        "--filter",
        "Filter",
        "string",
        "{placeholder=tcp port 80}",
        "As in pcap-filter(7); besides Wireshark's own capture filter",
    ));
    fields.push(field(
        "--snapshot-length",
        "Snapshot length",
        "unsigned",
        "{default=0}{range=0,262144}",
        "Bytes of each packet; 0 for all",
    ));
    let cluster = "{group=Cluster}";
    fields.push(field(
        "--context",
        "Context",
        "string",
        cluster,
        "Context of the kubeconfig; empty for the current one",
    ));
    fields.push(field(
        "--kubeconfig",
        "Kubeconfig",
        "fileselect",
        "{group=Cluster}{mustexist=true}",
        "Empty for $KUBECONFIG or ~/.kube/config",
    ));
    let mut text = String::new();
    for (number, Field { call, display, kind, more, tooltip, values }) in
        fields.into_iter().enumerate()
    {
        if reload.is_some_and(|reload| reload != call.trim_start_matches('-')) {
            continue;
        }
        // Who reloads a field wants its values only.
        if reload.is_none() {
            let _ = writeln!(
                text,
                "arg {{number={number}}}{{call={call}}}{{display={display}}}{{type={kind}}}{more}{{tooltip={tooltip}}}"
            );
        }
        for (index, value) in values.iter().enumerate() {
            let display = if value.is_empty() { "any that runs" } else { value };
            let is_default = index == 0;
            let _ = writeln!(
                text,
                "value {{arg={number}}}{{value={value}}}{{display={display}}}{{default={is_default}}}"
            );
        }
    }
    text
}

/// The names of a pod's containers. None where they cannot be known.
async fn containers(context: &Context, pod: &PodTarget) -> Vec<String> {
    let listed = async {
        let scope = context.scope().await?;
        let client: Client = context.api_client(&scope).await?;
        let names = workloads::containers(&client, &pod.namespace, &pod.pod).await;
        names.map_err(|error| Error::from_kube(&error, "get the pod"))
    };
    said(context, tokio::time::timeout(PATIENCE, listed).await)
}

/// The names of a pod's interfaces, `any` first. None where they cannot be known.
async fn interfaces(context: &Context, pod: &PodTarget) -> Vec<String> {
    let listed = async {
        let scope = context.scope().await?;
        let place = scope.fleet.place_of_pod(&pod.namespace, &pod.pod).await?;
        let listed =
            scope.fleet.connect(&place).await?.interfaces(&pod.namespace, &pod.pod, "").await?;
        // What a container may call its interfaces must not end a sentence of Wireshark's.
        let name = |name: Vec<u8>| {
            String::from_utf8(name).ok().filter(|name| !name.contains(['{', '}', '\n']))
        };
        Ok(listed.interfaces.into_iter().filter_map(|interface| name(interface.name)).collect())
    };
    said(context, tokio::time::timeout(PATIENCE, listed).await)
}

fn said<T: Default>(
    context: &Context,
    result: Result<Result<T, Error>, tokio::time::error::Elapsed>,
) -> T {
    match result {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            context.explain(&error.message, &error);
            T::default()
        }
        Err(_) => {
            context.terminal.error(&format!("no answer within {PATIENCE:?}"));
            T::default()
        }
    }
}

/// Captures into Wireshark's pipe.
async fn capture(context: &Context, args: &ExtcapArgs, interface: &str) -> Result<Exit, Failed> {
    let scope = context.scope().await?;
    let targets = match pod_of(interface)? {
        Some(target) => vec![target],
        None => chosen(context, &scope, args).await?,
    };
    let filter = match (args.filter.trim(), args.extcap_capture_filter.trim()) {
        ("", filter) | (filter, "") => filter.to_owned(),
        (own, theirs) => format!("({own}) and ({theirs})"),
    };
    let request = CaptureStartRequest {
        container: args.container.clone(),
        interface: args.interface.clone(),
        filter,
        snaplen: args.snapshot_length,
        ..capture::request_for_files()?
    };
    let file = args.fifo.clone().map(capture::Savefiles::one);
    let job = Job { targets, request, count: None, file, lines: None, json: false, quiet: true };
    capture::capture(context, &scope, job).await
}

/// The pods that the dialog names.
async fn chosen(
    context: &Context,
    scope: &Scope,
    args: &ExtcapArgs,
) -> Result<Vec<PodTarget>, Failed> {
    let pods: Result<Vec<Named>, String> =
        args.pods.split_whitespace().map(values::named).collect();
    let pods = pods.map_err(Failed::Usage)?;
    let labels = Some(args.selector.trim()).filter(|labels| !labels.is_empty());
    if pods.is_empty() && labels.is_none() {
        return Err(Failed::Usage("name pods or labels in the interface's options".to_owned()));
    }
    targets(context, scope, Choice { pods, labels, all_namespaces: false, most: 50 }).await
}
