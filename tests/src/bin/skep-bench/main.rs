//! `skep-bench`: the figures of `cargo xtask bench`, printed as a table and written as JSON.
//!
//! Every figure is the median of interleaved rounds, with the smallest and the largest beside it: on a shared machine one
//! number says nothing.
#![forbid(unsafe_code)]

mod api;
mod crash;
mod datapath;
mod memory;
mod node;
mod programming;
mod scratch;
mod takeover;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use serde::Serialize;
use xtask::cluster::Store;

#[derive(Parser)]
struct Options {
    #[arg(value_enum)]
    area: Area,
    /// Where to write the figures
    #[arg(long)]
    json: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "redb")]
    store: Store,
    /// Binaries of another build, which the bench of the datapath upgrades to and from
    #[arg(long, value_name = "DIR")]
    other_binaries: Option<PathBuf>,
    /// How often each figure is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Area {
    Api,
    Crash,
    Datapath,
    Node,
    Programming,
}

/// One figure of several rounds.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Figure {
    name: String,
    unit: &'static str,
    median: f64,
    min: f64,
    max: f64,
    rounds: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Target>,
}

/// What the median is to reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Figure {
    fn of(name: impl Into<String>, unit: &'static str, mut samples: Vec<f64>) -> Result<Self> {
        let name = name.into();
        samples.sort_by(f64::total_cmp);
        let (min, max) = samples
            .first()
            .zip(samples.last())
            .with_context(|| format!("{name} was not measured"))?;
        // The mean of the two in the middle where there are two.
        let median = (samples[(samples.len() - 1) / 2] + samples[samples.len() / 2]) / 2.0;
        Ok(Self {
            name,
            unit,
            median,
            min: *min,
            max: *max,
            rounds: samples.len(),
            target: None,
        })
    }

    /// One figure as a multiple of another, round by round: what disturbs one disturbs the other.
    fn ratio(name: impl Into<String>, samples: &[f64], to: &[f64], target: Target) -> Result<Self> {
        let ratios = samples.iter().zip(to).map(|(sample, to)| sample / to);
        Ok(Self::of(name, "x", ratios.collect())?.wanted(target))
    }

    fn wanted(self, target: Target) -> Self {
        Self {
            target: Some(target),
            ..self
        }
    }

    /// Empty without a target.
    fn judgement(&self) -> String {
        let (wanted, met) = match self.target {
            None => return String::new(),
            Some(Target::AtLeast(least)) => (format!(">= {least:.2}"), self.median >= least),
            Some(Target::AtMost(most)) => (format!("<= {most:.2}"), self.median <= most),
        };
        format!("  {wanted} {}", if met { "met" } else { "missed" })
    }
}

fn main() -> Result<()> {
    // Parts of a measurement that need a process of their own.
    for part in [programming::stub_if_asked, programming::round_if_asked] {
        if let Some(done) = part() {
            return done;
        }
    }
    let options = Options::parse();
    let figures = match options.area {
        Area::Api => api::measure(options.store, options.rounds)?,
        Area::Crash => crash::measure(options.rounds)?,
        Area::Datapath => {
            let other = options.other_binaries.as_deref();
            datapath::measure(options.store, options.rounds, other)?
        }
        Area::Node => node::measure(options.store, options.rounds)?,
        Area::Programming => programming::measure(options.rounds)?,
    };
    println!(
        "{:<58} {:>12} {:>12} {:>12}  unit",
        "", "median", "min", "max"
    );
    for figure in &figures {
        println!(
            "{:<58} {:>12} {:>12} {:>12}  {}{}",
            figure.name,
            shown(figure.median),
            shown(figure.min),
            shown(figure.max),
            figure.unit,
            figure.judgement()
        );
    }
    if let Some(file) = options.json {
        let report = serde_json::json!({
            "store": options.store,
            "cpus": std::thread::available_parallelism()?.get(),
            "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
            "figures": figures,
        });
        std::fs::write(&file, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

fn shown(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::Figure;

    #[test]
    fn medians() {
        let figure = |samples: &[f64]| Figure::of("x", "s", samples.to_vec());
        assert_eq!(figure(&[3.0, 1.0, 2.0]).unwrap().median, 2.0);
        let even = figure(&[4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((even.median, even.min, even.max), (2.5, 1.0, 4.0));
        assert!(figure(&[]).is_err());
    }
}
