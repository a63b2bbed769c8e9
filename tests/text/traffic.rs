//! Real traffic between two network namespaces, recorded by tcpdump.

use std::{fs::File, process::Command};

use podsonde::domain::pcapng::Reader;

use crate::oracle::{Captured, Tally, compare};

#[test]
fn real_traffic() {
    let directory = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/text/traffic.sh");
    let output = Command::new("unshare")
        .args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", script])
        .arg(directory.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let mut tally = Tally::default();
    for name in ["any.pcap", "veth.pcap"] {
        let mut reader = Reader::new(File::open(directory.path().join(name)).unwrap());
        let mut packets = Vec::new();
        let mut linktype = 0;
        // The last block may be incomplete, because tcpdump was killed.
        while let Ok(Some(packet)) = reader.next() {
            linktype = packet.linktype;
            packets.push(Captured { data: packet.data.to_vec(), length: packet.original_length });
        }
        assert!(packets.len() > 60, "{name}: only {} packets", packets.len());
        for flags in [
            &[][..],
            &["-v"],
            &["-vv"],
            &["-vvv", "-e"],
            &["-q"],
            &["-S", "-e"],
            &["-X"],
            &["-xx"],
            &["-A"],
        ] {
            compare(&mut tally, linktype, &packets, flags, "Europe/Berlin");
        }
    }
    tally.finish("real traffic");
}
