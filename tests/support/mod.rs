//! What several test programs share. Each uses only a part of it.
#![allow(dead_code)]

pub mod node;
