//! Medians and tables.

use std::time::Duration;

/// What was measured in several rounds.
#[derive(Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    pub(crate) fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn add_time(&mut self, time: Duration) {
        self.add(time.as_secs_f64() * 1e3);
    }

    /// The one in the middle, or the mean of the two.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let (lower, upper) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        (lower + upper) / 2.0
    }

    pub(crate) fn slowest(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }

    /// The median of the ratios of each round.
    pub(crate) fn ratio_to(&self, other: &Self) -> f64 {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect()).median()
    }
}

/// Prints rows below a head, as Markdown.
pub(crate) fn table(title: &str, head: &[&str], rows: &[Vec<String>]) {
    println!("\n{title}\n\n| {} |", head.join(" | "));
    println!("|{}", " ---: |".repeat(head.len()));
    for row in rows {
        println!("| {} |", row.join(" | "));
    }
}
