//! What each process may do and has open.

use std::{fs::File, process::Command};

use podsonde::proto::v1::{self, evidence::Kind};
use serde_json::Value;

use crate::{
    agent::{Agent, possible},
    proc::{
        CAP_DAC_READ_SEARCH, CAP_KILL, CAP_NET_RAW, CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN,
        CAP_SYS_PTRACE, Descriptor, capabilities, descriptors, status, threads,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn each_process_has_only_what_it_needs() {
    if !possible() {
        return;
    }
    let leak = File::open("/proc").unwrap();
    let agent = Agent::start(&[], Some(leak.into())).await;
    // So that every thread there will be has been started: the blocking ones too.
    agent.verify().await;
    // Of what this machine lets a root have.
    let all = capabilities(&status("/proc/self/status"), "CapEff");
    assert_ne!(all & CAP_SYS_ADMIN, 0, "the test itself must have what the agent gives up");

    let of_agent = threads(agent.pid);
    assert!(of_agent.len() > 2, "{of_agent:?}");
    let expected = [
        (of_agent, CAP_KILL | CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH | CAP_SETGID | CAP_SETUID),
        (threads(agent.broker), CAP_SYS_ADMIN | CAP_SYS_PTRACE | CAP_NET_RAW, 0),
    ];
    for (threads, kept, at_hand) in expected {
        for thread in threads {
            for (set, expected) in
                [("CapEff", kept), ("CapPrm", kept | at_hand), ("CapBnd", kept | at_hand)]
            {
                assert_eq!(
                    capabilities(&thread, set),
                    expected & all,
                    "{set} of {}",
                    thread["Name"]
                );
            }
            for set in ["CapInh", "CapAmb"] {
                assert_eq!(capabilities(&thread, set), 0, "{set} of {}", thread["Name"]);
            }
            assert_eq!(
                (&*thread["NoNewPrivs"], &*thread["Seccomp"]),
                ("1", "2"),
                "{}",
                thread["Name"]
            );
        }
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_process_has_open_only_what_it_needs_and_hands_nothing_down() {
    if !possible() {
        return;
    }
    let agent = Agent::start(&[], Some(File::open("/proc").unwrap().into())).await;
    agent.verify().await;
    let broker = descriptors(agent.broker);
    let links: Vec<_> =
        broker.iter().map(|d| (d.number, d.link.split(':').next().unwrap())).collect();
    assert_eq!(links, [(0, "socket"), (1, "/dev/null"), (2, "pipe")], "{broker:?}");
    assert_eq!(broker.iter().map(|d| d.inherited).collect::<Vec<_>>(), [false, true, true]);

    let own = descriptors(agent.pid);
    let inherited: Vec<_> = own.iter().filter(|d| d.inherited).map(|d| d.number).collect();
    assert_eq!(inherited, [0, 1, 2], "{own:?}");
    // What the runtime left open is there, if only for the agent itself: the broker and other
    // children do not get it.
    assert!(own.iter().any(|d| d.number == 77 && d.link == "/proc"), "{own:?}");
    agent.stop().await;

    let agent = Agent::start(&[], None).await;
    agent.verify().await;
    // What any child of this test gets from whoever runs it.
    let mut child = Command::new("sleep").arg("infinity").spawn().unwrap();
    let given = descriptors(child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    let known = [
        "socket:",
        "/proc",
        "anon_inode:[eventpoll]",
        "anon_inode:[eventfd]",
        "anon_inode:[pidfd]",
    ];
    let is_known = |d: &Descriptor| {
        // The audit log is a descriptor of its own, to where stdout goes.
        given.iter().any(|g| g.number == d.number || g.link == d.link)
            || known.iter().any(|link| d.link.starts_with(link))
    };
    let unknown: Vec<_> = descriptors(agent.pid).into_iter().filter(|d| !is_known(d)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_through_the_broker_is_what_nsenter_sees() {
    if !possible() {
        return;
    }
    let agent = Agent::start(&[], None).await;
    let verification = agent.verify().await;
    let pid = verification.container.as_ref().unwrap().host_pid.to_string();
    let inside = |args: &[&str]| {
        let output = Command::new("nsenter").args(["-t", &pid]).args(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    // Something to be seen, made from outside.
    inside(&["-n", "ip", "addr", "add", "192.0.2.7/30", "dev", "lo"]);
    inside(&["-n", "ip", "addr", "add", "2001:db8::7/64", "dev", "lo"]);
    inside(&["-i", "ipcmk", "-M", "4096"]);
    inside(&["-i", "ipcmk", "-Q"]);

    let verification = agent.verify().await;
    let evidence: Vec<&Kind> =
        verification.namespaces.iter().filter_map(|n| n.evidence.as_ref()?.kind.as_ref()).collect();
    let find = |find: fn(&Kind) -> bool| *evidence.iter().find(|k| find(k)).expect("evidence");
    let Kind::Uts(uts) = find(|k| matches!(k, Kind::Uts(_))) else { unreachable!() };
    assert_eq!(uts.hostname, inside(&["-u", "uname", "-n"]).trim().as_bytes());
    assert_eq!(uts.hostname, b"evidence");

    let Kind::Net(net) = find(|k| matches!(k, Kind::Net(_))) else { unreachable!() };
    let links: Vec<Value> = serde_json::from_str(&inside(&["-n", "ip", "-j", "addr"])).unwrap();
    let theirs: Vec<(String, Vec<String>)> = links
        .iter()
        .map(|link| {
            let addresses = link["addr_info"].as_array().unwrap().iter();
            let addresses =
                addresses.map(|a| format!("{}/{}", a["local"].as_str().unwrap(), a["prefixlen"]));
            (link["ifname"].as_str().unwrap().to_owned(), addresses.collect())
        })
        .collect();
    let ours: Vec<_> = net
        .interfaces
        .iter()
        .map(|i: &v1::NetInterface| {
            (String::from_utf8(i.name.clone()).unwrap(), i.addresses.clone())
        })
        .collect();
    assert_eq!(ours, theirs);
    assert!(
        ours.iter().any(|(_, addresses)| addresses.contains(&"192.0.2.7/30".to_owned())),
        "{ours:?}"
    );

    let Kind::Ipc(ipc) = find(|k| matches!(k, Kind::Ipc(_))) else { unreachable!() };
    let ids = |what| -> Vec<i32> {
        let table = inside(&["-i", "ipcs", what]);
        table
            .lines()
            .filter(|l| l.starts_with("0x"))
            .map(|l| l.split_whitespace().nth(1).unwrap().parse().unwrap())
            .collect()
    };
    assert_eq!((&ipc.shared_memory_ids, &ipc.message_queue_ids), (&ids("-m"), &ids("-q")));
    assert_eq!((ipc.shared_memory_ids.len(), ipc.message_queue_ids.len()), (1, 1));
    agent.stop().await;
}
