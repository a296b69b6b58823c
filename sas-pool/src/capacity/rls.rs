use serde::{Deserialize, Serialize};

/// Recursive least squares with forgetting: a linear model that is refitted after each sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Rls {
    forgetting: f64,
    weights: Vec<f64>,
    /// The inverse of the weighted correlation matrix, row by row.
    inverse: Vec<f64>,
    /// Scratch, kept so that a step allocates nothing.
    #[serde(skip)]
    projected: Vec<f64>,
}

/// Where features stop to vary, forgetting alone would blow the inverse up without bound (wind-up): above this mean
/// of its diagonal nothing is forgotten.
const WIND_UP: f64 = 1e4;

impl Rls {
    pub(super) fn new(weights: Vec<f64>, forgetting: f64) -> Self {
        let n = weights.len();
        let mut inverse = vec![0.0; n * n];
        for at in 0..n {
            inverse[at * n + at] = 1.0;
        }
        Self { forgetting, weights, inverse, projected: Vec::new() }
    }

    pub(super) fn predict(&self, x: &[f64]) -> f64 {
        self.weights.iter().zip(x).map(|(w, x)| w * x).sum()
    }

    /// Learns that for `x` the prediction was `error` too low. A step that would leave the finite numbers is undone
    /// by forgetting what was learnt about the correlations; the weights stay.
    #[allow(clippy::cast_precision_loss, reason = "a dozen or two features")]
    pub(super) fn learn(&mut self, x: &[f64], error: f64) {
        let n = self.weights.len();
        self.projected.clear();
        self.projected.extend(self.inverse.chunks_exact(n).map(|row| dot(row, x)));
        let trace: f64 = (0..n).map(|at| self.inverse[at * n + at]).sum();
        let forgetting = if trace > WIND_UP * n as f64 { 1.0 } else { self.forgetting };
        let gain = 1.0 / (forgetting + dot(&self.projected, x));
        if !(gain.is_finite() && gain > 0.0 && error.is_finite() && trace.is_finite()) {
            *self = Self::new(std::mem::take(&mut self.weights), self.forgetting);
            return;
        }
        for (weight, p) in self.weights.iter_mut().zip(&self.projected) {
            *weight += p * gain * error;
        }
        let grow = 1.0 / forgetting;
        for (row, &left) in self.inverse.chunks_exact_mut(n).zip(&self.projected) {
            for (cell, &right) in row.iter_mut().zip(&self.projected) {
                // The product first, so that the matrix stays symmetric to the last bit.
                *cell = (*cell - left * right * gain) * grow;
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        (self.weights.capacity() + self.inverse.capacity() + self.projected.capacity()) * size_of::<f64>()
    }
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(l, r)| l * r).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_the_weights_of_a_linear_series() {
        let mut model = Rls::new(vec![0.0; 3], 0.999);
        for t in 0..500 {
            let x = [1.0, f64::from(t % 7), f64::from(t % 11)];
            let y = 3.0 + 0.5 * x[1] - 2.0 * x[2];
            let error = y - model.predict(&x);
            model.learn(&x, error);
        }
        for (found, true_weight) in model.weights.iter().zip([3.0, 0.5, -2.0]) {
            assert!((found - true_weight).abs() < 0.05, "{:?}", model.weights);
        }
    }

    #[test]
    fn a_million_equal_samples_do_not_wind_it_up() {
        let mut model = Rls::new(vec![0.0; 3], 0.99);
        for _ in 0..1_000_000 {
            let error = 6.0 - model.predict(&[1.0, 1.0, 1.0]);
            model.learn(&[1.0, 1.0, 1.0], error);
        }
        assert!(model.inverse.iter().all(|cell| cell.abs() < 10.0 * WIND_UP));
        assert!((model.predict(&[1.0, 1.0, 1.0]) - 6.0).abs() < 1e-6);
    }
}
