//! Figures of many rounds, and what the datapath is to reach.

/// What [`Table::print`] compares with.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Default)]
pub(crate) struct Table {
    figures: Vec<(String, &'static str, Vec<f64>)>,
    targets: Vec<(String, &'static str, Vec<f64>, Target)>,
}

impl Table {
    pub(crate) fn add(&mut self, name: &str, unit: &'static str, sample: f64) {
        match self.figures.iter_mut().find(|(known, _, _)| known == name) {
            Some((_, _, samples)) => samples.push(sample),
            None => self.figures.push((name.into(), unit, vec![sample])),
        }
    }

    fn samples(&self, name: &str) -> &[f64] {
        self.figures
            .iter()
            .find(|(known, _, _)| known == name)
            .map_or(&[], |(_, _, samples)| samples)
    }

    /// A figure that has a target of its own.
    pub(crate) fn target(&mut self, name: &str, figure: &str, unit: &'static str, target: Target) {
        let samples = self.samples(figure).to_vec();
        self.targets.push((name.into(), unit, samples, target));
    }

    /// One figure as a multiple of another, round by round: what disturbs one disturbs the other.
    pub(crate) fn ratio(&mut self, name: &str, figure: &str, to: &str, target: Target) {
        let samples = self
            .samples(figure)
            .iter()
            .zip(self.samples(to))
            .map(|(figure, to)| figure / to)
            .collect();
        self.targets.push((name.into(), "x", samples, target));
    }

    pub(crate) fn print(mut self) {
        println!("{:<78} {:>8} {:>8} {:>8}", "", "median", "min", "max");
        for (name, unit, samples) in &mut self.figures {
            let [median, min, max] = spread(samples);
            println!("{name:<78} {median:>8.2} {min:>8.2} {max:>8.2} {unit}");
        }
        println!();
        println!(
            "{:<78} {:>8} {:>8} {:>8} {:>10}",
            "target", "median", "min", "max", "wanted"
        );
        for (name, unit, samples, target) in &mut self.targets {
            if samples.is_empty() {
                println!("{name:<78} not measured");
                continue;
            }
            let [median, min, max] = spread(samples);
            let (wanted, met) = match *target {
                Target::AtLeast(least) => (format!(">= {least}"), median >= least),
                Target::AtMost(most) => (format!("<= {most}"), median <= most),
            };
            let met = if met { "met" } else { "missed" };
            println!("{name:<78} {median:>8.2} {min:>8.2} {max:>8.2} {wanted:>10} {unit} {met}");
        }
    }
}

pub(crate) fn median(samples: &mut [f64]) -> f64 {
    spread(samples)[0]
}

fn spread(samples: &mut [f64]) -> [f64; 3] {
    samples.sort_by(f64::total_cmp);
    [
        samples[samples.len() / 2],
        samples[0],
        samples[samples.len() - 1],
    ]
}
