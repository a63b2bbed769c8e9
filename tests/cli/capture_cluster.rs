//! Captures through an API server, by people and by Wireshark.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use crate::{capture::has, podsonde_ended, through_the_api_server::Cluster};

#[test]
fn captures_find_their_pods_by_label_and_workload() {
    let cluster = Cluster::new();
    let ended =
        cluster.run(&["capture", "-l", "app=both", "--count", "10", "port", "80"]).expect(0);
    assert_eq!(ended.stdout.lines().filter(|line| line.starts_with("[web] ")).count(), 5);
    assert_eq!(ended.stdout.lines().filter(|line| line.starts_with("[replacing] ")).count(), 5);
    ended.says("listening on any in pod default/replacing");
    let requests = cluster.0.captures();
    assert!(requests.len() == 2 && requests.iter().all(|request| request.filter == "port 80"));

    cluster.run(&["capture", "deploy/web", "--count", "5"]).expect(0).says("pod default/web ");
    cluster.run(&["capture", "-A", "--count", "5"]).expect(0).says("pod default/web ");
    cluster
        .run(&["capture", "-l", "app=nothing"])
        .expect(1)
        .says("error: no pod with labels app=nothing runs in namespace default\nhint: ");
    cluster
        .run(&["capture", "deploy/nope"])
        .expect(1)
        .says("error: there is no deploy/nope in namespace default");
    cluster
        .run(&["capture", "lonely"])
        .expect(1)
        .says("error: there is no podsonde agent on node n4");
    cluster
        .run(&["capture", "-l", "app=both", "--max-pods", "1"])
        .expect(2)
        .says("2 captures at once");
}

/// tshark with podsonde in its extcap directory. It looks there for ordinary users only.
struct Tshark<'a>(&'a Cluster);

impl Tshark<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let home = self.0.0.directory.path();
        let directory = home.join("extcap");
        if !directory.exists() {
            fs::create_dir(&directory).unwrap();
            let program = directory.join("podsonde-extcap");
            // Not a link: an ordinary user may not see where this was built.
            fs::copy(env!("CARGO_BIN_EXE_podsonde"), &program).unwrap();
            for path in [home, &directory, &program] {
                fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
            }
            fs::set_permissions(&self.0.1, fs::Permissions::from_mode(0o644)).unwrap();
        }
        let mut command = Command::new("setpriv");
        if nix::unistd::geteuid().is_root() {
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        }
        command.arg("tshark").args(arguments).stdin(Stdio::null());
        command
            .env("HOME", "/nonexistent")
            .env("WIRESHARK_EXTCAP_DIR", directory)
            .env("KUBECONFIG", &self.0.1);
        command.env_remove("PODSONDE_AGENT").env("PODSONDE_INSECURE_AGENT", "true");
        command
    }
}

#[test]
fn wireshark_lists_pods_and_captures_from_them() {
    if !has("tshark") {
        return;
    }
    let cluster = Cluster::new();
    let tshark = Tshark(&cluster);
    let listed = podsonde_ended(&mut tshark.command(&["-D"])).expect(0);
    let names: Vec<&str> = listed
        .stdout
        .lines()
        .filter_map(|line| line.split_once(". "))
        .map(|(_, name)| name)
        .collect();
    assert!(names.contains(&"podsonde (Kubernetes: pods by name or label)"), "{}", listed.stdout);
    assert!(
        names.contains(&"podsonde:default/web (Kubernetes pod default/web)"),
        "{}",
        listed.stdout
    );
    assert!(!listed.stdout.contains("pending"));
    let links =
        podsonde_ended(&mut tshark.command(&["-i", "podsonde:default/web", "-L"])).expect(0);
    assert!(links.stdout.contains("LINUX_SLL2 (Linux cooked v2)"), "{}", links.stdout);

    let captured = tshark.command(&[
        "-i",
        "podsonde:default/web",
        "-f",
        "not arp",
        "-c",
        "5",
        "-o",
        "extcap.podsonde_default_web.container:app",
        "-T",
        "fields",
        "-e",
        "frame.interface_name",
        "-e",
        "frame.len",
    ]);
    let mut captured = captured;
    let captured = podsonde_ended(&mut captured).expect(0);
    let lengths: Vec<&str> =
        captured.stdout.lines().map(|line| line.split_once('\t').unwrap().1).collect();
    assert_eq!(lengths, ["60", "68", "54", "83", "47"], "{}", captured.stdout);
    let request = cluster.0.captures().remove(0);
    assert_eq!((request.filter.as_str(), request.container.as_str()), ("not arp", "app"));
}
