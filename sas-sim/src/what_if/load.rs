//! How many requests arrive, and for which revision.

use crate::draw::Draw;

/// How many arrive when `mean` are expected (Knuth for few, the normal approximation for many).
pub(crate) fn poisson(draw: &mut Draw, mean: f64) -> u32 {
    if mean <= 0.0 {
        return 0;
    }
    if mean > 30.0 {
        let normal = (-2.0 * (1.0 - draw.unit()).ln()).sqrt() * (std::f64::consts::TAU * draw.unit()).cos();
        return mean.sqrt().mul_add(normal, mean).round().max(0.0) as u32;
    }
    let limit = (-mean).exp();
    let (mut count, mut product) = (0, draw.unit());
    while product > limit {
        count += 1;
        product *= draw.unit();
    }
    count
}

/// Zipf's law by its inverse, approximated as continuous.
#[derive(Debug)]
pub(crate) struct Popularity {
    revisions: f64,
    exponent: f64,
}

impl Popularity {
    pub(crate) fn new(revisions: u32, exponent: f64) -> Self {
        Self { revisions: f64::from(revisions), exponent }
    }

    pub(crate) fn pick(&self, draw: &mut Draw) -> usize {
        let u = draw.unit();
        let n = self.revisions;
        let rank = if (self.exponent - 1.0).abs() < 1e-9 {
            (n + 1.0).powf(u)
        } else {
            let power = 1.0 - self.exponent;
            u.mul_add((n + 1.0).powf(power) - 1.0, 1.0).powf(1.0 / power)
        };
        (rank.floor() as usize).clamp(1, n as usize) - 1
    }
}
