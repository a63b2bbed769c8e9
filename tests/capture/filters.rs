//! Filters: compiled as libpcap compiles them, and nothing is looked up.

use std::process::Command;

use podsonde::{
    domain::{Reason, filter::MAX_TEXT},
    sys::capture::compiler::{Compiled, Compiler},
};

use crate::possible;

const ETHERNET: u32 = 1;
const RAW: u32 = 12;
const SLL2: u32 = 276;

pub(crate) fn compiler() -> Compiler {
    Compiler::by(env!("CARGO_BIN_EXE_podsonde-agent").into())
}

fn compile(dlt: u32, filter: &str) -> Result<Compiled, podsonde::domain::Error> {
    compiler().compile(dlt, 262_144, filter)
}

/// What `tcpdump -d` prints.
fn tcpdump(linktype: &str, filter: &str) -> String {
    let output = Command::new("tcpdump").args(["-y", linktype, "-d", filter]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn programs_are_those_of_tcpdump() {
    let filters = [
        "",
        "ip",
        "tcp port 80",
        "host 192.0.2.1 and not icmp",
        "ip6 and portrange 1-1024",
        "net 10.0.0.0/8",
        "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0 and not dst net 10.0.0.0/8",
        "icmp or icmp6",
        "greater 1000",
        "ip multicast",
    ];
    for (dlt, name) in [(ETHERNET, "EN10MB"), (RAW, "RAW"), (SLL2, "LINUX_SLL2")] {
        for filter in filters {
            // The listing, and the program itself: as numbers.
            let compiled = compile(dlt, filter).unwrap_or_else(|e| panic!("{name}: {filter}: {e}"));
            assert_eq!(compiled.listing, tcpdump(name, filter), "{name}: {filter}");
            let numbers =
                Command::new("tcpdump").args(["-y", name, "-ddd", filter]).output().unwrap();
            let numbers = String::from_utf8(numbers.stdout).unwrap();
            let ours: Vec<String> = compiled
                .program
                .instructions()
                .iter()
                .map(|i| format!("{} {} {} {}", i.code, i.jt, i.jf, i.k))
                .collect();
            assert_eq!(ours, numbers.lines().skip(1).collect::<Vec<_>>(), "{name}: {filter}");
        }
    }
    // Names of ports stand for their numbers, of whatever protocol.
    let named = compile(ETHERNET, "tcp port http or https or port domain").unwrap();
    assert_eq!(named.listing, tcpdump("EN10MB", "tcp port 80 or 443 or port 53"));
    assert_eq!(
        compile(ETHERNET, "vlan 7 and ip").unwrap().listing,
        tcpdump("EN10MB", "vlan 7 and ip")
    );
}

#[test]
fn what_does_not_compile_is_refused_in_libpcap_s_words() {
    let refused = |dlt, filter: &str| {
        let error = compile(dlt, filter).unwrap_err();
        assert_eq!(
            (error.reason, error.context.field.as_str()),
            (Reason::InvalidField, "filter"),
            "{filter}"
        );
        error.message
    };
    assert_eq!(refused(ETHERNET, "tcp prot 80"), "can't parse filter expression: syntax error");
    for host in ["localhost", "example.com", "ip6-localhost", "kubernetes.default"] {
        let message = refused(ETHERNET, &format!("host {host}"));
        assert!(
            message.starts_with(&format!("unknown host '{host}'"))
                && message.contains("write the address"),
            "{message}"
        );
    }
    assert!(refused(ETHERNET, "net loopback").contains("unknown network 'loopback'"));
    assert!(refused(ETHERNET, "ether host router").contains("unknown ether host 'router'"));
    assert!(refused(ETHERNET, "port nonesuch").contains("write the number"));
    assert!(refused(SLL2, "vlan 7").contains("VLAN"));
    assert!(refused(ETHERNET, "\0ip").contains("NUL"));
    assert!(refused(ETHERNET, &" ".repeat(MAX_TEXT + 1)).contains("16384"));
}

#[test]
fn a_filter_that_takes_for_ever_is_given_up() {
    if !possible() {
        return;
    }
    // Hosts, whose tests the optimiser goes over again and again.
    let mut filter = "host 10.0.0.1".to_owned();
    let mut number = 0_u32;
    while filter.len() < MAX_TEXT - 30 {
        number += 1;
        filter += &format!(" or host 10.{}.{}.{}", number % 7, number % 250, number % 199);
    }
    let began = std::time::Instant::now();
    let result = compile(ETHERNET, &filter);
    println!(
        "{} bytes: {:?} after {:?}",
        filter.len(),
        result.as_ref().map(|_| ()),
        began.elapsed()
    );
    match result {
        Ok(compiled) => assert!(compiled.program.instructions().len() <= 4096),
        Err(error) => assert!(error.message.contains("is too "), "{error}"),
    }
}

#[test]
fn a_filter_that_takes_much_memory_is_refused_and_ordinary_ones_are_not() {
    if !possible() {
        return;
    }
    // 16 KiB for which libpcap 1.10 takes 350 MiB within half a second, more than the agent's pod
    // has.
    let filter = "net 1 or ".repeat(MAX_TEXT / 9 - 1) + "ip";
    let error = compile(ETHERNET, &filter).unwrap_err();
    assert_eq!((error.reason, error.context.field.as_str()), (Reason::InvalidField, "filter"));
    assert!(error.message.contains("too large") && error.message.contains("48 MiB"), "{error}");
    // Lists as people write them, each as long as the kernel takes its program.
    let list = |count: u32, term: &dyn Fn(u32) -> String| {
        (0..count).map(term).collect::<Vec<_>>().join(" or ")
    };
    for filter in [
        list(200, &|i| format!("host 10.{}.{}.1", i / 100, i % 100)),
        list(400, &|i| format!("src host 10.{}.{}.1", i / 100, i % 100)),
        list(200, &|i| format!("net 10.{i}.0.0/24")),
        list(250, &|i| format!("(host 10.0.{}.{} and tcp port {})", i / 100, i % 100, 80 + i)),
        list(200, &|i| format!("host fd00::{i:x}")),
    ] {
        let compiled = compile(ETHERNET, &filter);
        assert!(compiled.is_ok(), "{} bytes: {}", filter.len(), compiled.unwrap_err());
    }
}
