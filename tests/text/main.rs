//! Capture files and packet text, against what tcpdump, tshark and capinfos make of the same bytes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod pcapng;
