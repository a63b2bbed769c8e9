//! Compares packet text and capture files with what tcpdump, tshark and capinfos make of the same
//! bytes.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(clippy::print_stdout, reason = "how much was compared")]

mod cases;
mod frames;
mod oracle;
mod packets;
mod pcapng;
mod traffic;
