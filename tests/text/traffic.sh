#!/bin/bash
# Makes traffic between two network namespaces and records it: any.pcap of all interfaces, veth.pcap
# of one, in the directory $1. Run in namespaces of its own, which end everything that it starts:
#   unshare --net --pid --fork --kill-child --mount-proc traffic.sh DIRECTORY
set -euo pipefail
cd "$1"

ip link set lo up
unshare --net sleep infinity &
peer=$!
until [ "$(readlink /proc/$peer/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
peer() { nsenter --target $peer --net "$@"; }
ip link add veth0 type veth peer name veth1 netns $peer
ip address add 10.99.0.1/24 dev veth0
ip address add fd99::1/64 dev veth0 nodad
ip link set veth0 up
peer ip address add 10.99.0.2/24 dev veth1
peer ip address add fd99::2/64 dev veth1 nodad
peer ip link set lo up
peer ip link set veth1 up

# In this mode each packet takes a quarter of a MiB, so that the buffer of 2 MiB would lose some.
tcpdump --immediate-mode -U -B 65536 -i any -y LINUX_SLL2 -w any.pcap 2>any.log &
tcpdump --immediate-mode -U -B 65536 -i veth0 -w veth.pcap 2>veth.log &
for log in any.log veth.log; do
    until grep -q 'listening on' $log; do sleep 0.01; done
done

mkdir www
head -c 200000 /dev/zero >www/zeros
echo hello >www/index.html
peer python3 -m http.server --bind :: --directory www 80 >/dev/null 2>&1 &
until peer python3 -c 'import socket; socket.create_connection(("::1", 80))' 2>/dev/null; do sleep 0.05; done
for address in 10.99.0.2 '[fd99::2]'; do
    python3 - "$address" <<'END'
import sys, urllib.request, urllib.error
for path in ["/", "/zeros", "/missing"]:
    try:
        urllib.request.urlopen(f"http://{sys.argv[1]}{path}").read()
    except urllib.error.HTTPError:
        pass
END
done
/bin/busybox ping -c 2 -i 0.1 10.99.0.2
/bin/busybox ping -c 2 -i 0.1 127.0.0.1
/bin/busybox ping -6 -c 2 -i 0.1 fd99::2
# Larger than the link takes: fragments.
/bin/busybox ping -c 1 -s 4000 10.99.0.2
/bin/busybox ping -6 -c 1 -s 4000 fd99::2
python3 - <<'END'
import socket, struct

# Ports where nobody listens, over UDP and TCP, both families, and on loopback.
for family, address in [(socket.AF_INET, "10.99.0.2"), (socket.AF_INET6, "fd99::2"), (socket.AF_INET, "127.0.0.1")]:
    udp = socket.socket(family, socket.SOCK_DGRAM)
    udp.sendto(b"is anybody there?", (address, 4001))
    tcp = socket.socket(family, socket.SOCK_STREAM)
    assert tcp.connect_ex((address, 4002)) != 0

# A DNS query and its answer, on loopback.
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
question = b"\x07example\x03com\x00\x00\x01\x00\x01"
client.sendto(struct.pack("!6H", 4711, 0x0100, 1, 0, 0, 0) + question, ("127.0.0.1", 53))
_, sender = server.recvfrom(512)
answer = b"\xc0\x0c" + struct.pack("!HHIH4B", 1, 1, 300, 4, 192, 0, 2, 1)
server.sendto(struct.pack("!6H", 4711, 0x8180, 1, 1, 0, 0) + question + answer, sender)
client.recv(512)

# Frames with one and with two VLAN tags.
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(("veth0", 0))
arp = bytes.fromhex("0001080006040001020000000001") + bytes([10, 99, 0, 1]) + bytes(6) + bytes([10, 99, 0, 9])
ends = b"\xff" * 6 + b"\x02\0\0\0\0\x01"
raw.send(ends + bytes.fromhex("8100" "0064" "0806") + arp)
raw.send(ends + bytes.fromhex("88a8" "0064" "8100" "20c8" "0806") + arp)
END

# The last one: again and again, should a file miss it.
last() {
    python3 -c 'import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b"the-end-of-it", ("10.99.0.2", 4003))'
}
for file in any.pcap veth.pcap; do
    until grep -q the-end-of-it $file; do
        last
        sleep 0.05
    done
done
