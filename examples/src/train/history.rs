//! What a run has seen so far, step by step, for the picture and for resuming.

/// The course of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// training loss of each step, in nats
    pub loss: Vec<f32>,
    /// tokens of each expert of each layer in each step: (steps, layers, experts), row-major
    pub load: Vec<u32>,
    /// number of layers
    pub layers: usize,
    /// number of experts of a layer
    pub experts: usize,
}

impl History {
    /// Nothing seen yet.
    pub fn new(layers: usize, experts: usize) -> Self {
        Self {
            layers,
            experts,
            ..Self::default()
        }
    }

    /// Appends a step.
    pub fn push(&mut self, loss: f64, load: &[Vec<u32>]) {
        self.loss.push(loss as f32);
        self.load.extend(load.iter().flatten());
    }

    /// Steps seen.
    pub fn steps(&self) -> usize {
        self.loss.len()
    }

    /// An expert's share of a layer's load over the steps `from..to`, as a multiple of the even share.
    pub fn relative_load(&self, layer: usize, expert: usize, from: usize, to: usize) -> f64 {
        let tokens = |step: usize, expert: usize| {
            f64::from(self.load[(step * self.layers + layer) * self.experts + expert])
        };
        let own: f64 = (from..to).map(|step| tokens(step, expert)).sum();
        let all: f64 = (from..to)
            .flat_map(|step| (0..self.experts).map(move |e| tokens(step, e)))
            .sum();
        if all > 0.0 {
            own * self.experts as f64 / all
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_even_share_is_1() {
        let mut history = History::new(2, 4);
        history.push(3.0, &[vec![5, 5, 5, 5], vec![20, 0, 0, 0]]);
        history.push(2.0, &[vec![5, 5, 5, 5], vec![0, 20, 0, 0]]);
        assert_eq!(history.steps(), 2);
        assert_eq!(history.relative_load(0, 3, 0, 2), 1.0);
        assert_eq!(history.relative_load(1, 0, 0, 1), 4.0);
        assert_eq!(history.relative_load(1, 0, 0, 2), 2.0);
    }
}
