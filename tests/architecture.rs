//! The house rules that neither the compiler nor a linter checks: layers, `unsafe`, import circles,
//! widths, lengths and wording.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "architecture/circles.rs"]
mod circles;
#[path = "architecture/foreign.rs"]
mod foreign;
#[path = "architecture/layers.rs"]
mod layers;
#[path = "architecture/source.rs"]
mod source;
#[path = "architecture/text.rs"]
mod text;
