//! What podsonde is for, from end to end: nginx, a debug container that targets it, and what each
//! of the two sees.

use std::collections::BTreeMap;

use crate::{
    fixture::{Fixture, assert_ids, nginx, running},
    support::node,
};

/// Namespace links as `ls -l /proc/self/ns` prints them, executed in a container.
fn ls(container_id: &str) -> BTreeMap<String, String> {
    let listed = node::exec(container_id, &["ls", "-l", "/proc/self/ns"]);
    println!("{listed}");
    let links = listed.lines().filter_map(|line| line.split_once(" -> "));
    links
        .map(|(line, link)| (line.rsplit(' ').next().unwrap().to_owned(), link.trim().to_owned()))
        .collect()
}

/// Two columns of a table on stdout: of each line's namespace this column.
fn column(table: &str, name: &str) -> BTreeMap<String, String> {
    let lines = table.lines().skip_while(|line| !line.starts_with("NAMESPACE"));
    let mut lines = lines.take_while(|line| !line.is_empty());
    let start =
        lines.next().and_then(|header| header.find(&format!(" {name} "))).expect("the column") + 1;
    lines
        .map(|line| {
            let kind = line.split_whitespace().next().expect("a kind").to_owned();
            let cell = line[start..].split_whitespace().next().expect("a cell");
            let link = format!("{kind}:[{cell}]");
            (kind, link)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debug_container_is_where_the_table_says_it_is() {
    let Some(fixture) = Fixture::start().await else { return };
    fixture.pod("web", nginx()).await;
    let args = [
        "debug",
        "web",
        "--image=busybox",
        "--image-pull-policy=IfNotPresent",
        "--target=nginx",
        "-c",
        "debugger",
        "--",
        "sleep",
        "infinity",
    ];
    let debug = fixture.podsonde(&args).await.expect(0);
    println!("{}{}", debug.stderr, debug.stdout);
    assert!(
        debug
            .stdout
            .starts_with("container debugger: OK, compared with its target, container nginx\n")
    );
    assert!(
        debug
            .stderr
            .contains("container debugger in pod default/web on node node runs, verdict OK"),
        "{}",
        debug.stderr
    );

    let pod = fixture.wait("web", |pod| running(pod, "debugger").is_some()).await;
    let [nginx, debugger] = ["nginx", "debugger"].map(|name| running(&pod, name).expect("runs"));
    assert_ids("debugger", &column(&debug.stdout, "ID"), ls(&debugger));
    let wide =
        fixture.podsonde(&["verify", "web", "-c", "debugger", "-o", "wide"]).await.expect(0).stdout;
    println!("{wide}");
    assert_ids("debugger", &column(&wide, "ID"), ls(&debugger));
    assert_ids("nginx", &column(&wide, "REFERENCE"), ls(&nginx));

    // The evidence, as it is seen from inside.
    let hostname = node::exec(&debugger, &["hostname"]);
    assert!(wide.contains(&format!("hostname {}", hostname.trim())), "{wide}");
    let address = node::exec(&debugger, &["ip", "-o", "-4", "addr", "show", "eth0"]);
    let address = address.split_whitespace().nth(3).expect("an address");
    assert!(wide.contains(&format!("eth0 {address}")), "{address}: {wide}");

    // The target's root, its server, and its first process.
    let root = node::exec(&debugger, &["ls", "/proc/1/root/"]);
    assert_eq!(root, node::exec(&nginx, &["ls", "/"]));
    assert!(node::exec(&debugger, &["ls", "/proc/1/root/etc"]).contains("nginx"));
    assert!(!node::exec(&debugger, &["ls", "/etc"]).contains("nginx"));
    let page = node::exec(&debugger, &["wget", "-qO-", "http://localhost:80"]);
    assert!(page.contains("Welcome to nginx!"), "{page}");
    assert_eq!(node::exec(&debugger, &["cat", "/proc/1/comm"]).trim(), "nginx");
    fixture.end().await;
}
