//! The layer's formulas in f64, for a few elements at a time: what large results are held against.
//!
//! SwiGLU experts behind a softmax router, scores after the experts, nothing dropped. Ids and weights of the routing are given,
//! so that a selection that rounding decides is no difference.

use moe_core::{MoeConfig, Scalar};

/// All that a step computes from, and its routing.
pub(crate) struct Exact<T> {
    pub(crate) config: MoeConfig,
    /// (T, D)
    pub(crate) x: Vec<T>,
    /// (T, D)
    pub(crate) dy: Vec<T>,
    /// (E, D)
    pub(crate) gate: Vec<T>,
    /// (E)
    pub(crate) selection_bias: Vec<f32>,
    /// (E, 2F, D)
    pub(crate) w13: Vec<T>,
    /// (E, 2F), or empty
    pub(crate) b13: Vec<T>,
    /// (E, D, F)
    pub(crate) w2: Vec<T>,
    /// (E, D), or empty
    pub(crate) b2: Vec<T>,
    /// (T, K)
    pub(crate) ids: Vec<u32>,
    /// (T, K)
    pub(crate) weights: Vec<f32>,
    /// (T, K): their gradients; for [`dgate`](Exact::dgate) alone
    pub(crate) dweights: Vec<f32>,
    /// (T, E); for [`dgate`](Exact::dgate) alone
    pub(crate) logits: Vec<f32>,
}

/// What a token gives.
pub(crate) struct Token {
    /// (K)
    pub(crate) weights: Vec<f64>,
    /// (K)
    pub(crate) dweights: Vec<f64>,
    /// at the wanted columns
    pub(crate) y: Vec<f64>,
    /// at the wanted columns
    pub(crate) dx: Vec<f64>,
    /// how far the best expert that was not chosen lies above the worst that was
    pub(crate) regret: f64,
}

/// What an expert's gradients are in hidden columns `lines` and columns `columns`.
pub(crate) struct Expert {
    /// (lines, columns): the gate half of dw13
    pub(crate) gate_half: Vec<f64>,
    /// (lines, columns): the up half of dw13
    pub(crate) up_half: Vec<f64>,
    /// (lines, columns), dw2 turned
    pub(crate) down: Vec<f64>,
    /// (lines), both halves of db13
    pub(crate) b13: [Vec<f64>; 2],
    /// (columns)
    pub(crate) b2: Vec<f64>,
}

/// SwiGLU and its slopes: value, slope along g, slope along u.
fn swiglu(g: f64, u: f64) -> [f64; 3] {
    let sigmoid = 1.0 / (1.0 + (-g).exp());
    [g * sigmoid * u, u * sigmoid * (1.0 + g * (1.0 - sigmoid)), g * sigmoid]
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|logit| (logit - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(l, r)| l * r).sum()
}

fn wide<T: Scalar<Acc = f32>>(values: &[T]) -> Vec<f64> {
    values.iter().map(|value| f64::from(value.widen())).collect()
}

impl<T: Scalar<Acc = f32>> Exact<T> {
    fn line(&self, matrix: &[T], at: usize, len: usize) -> Vec<f64> {
        wide(&matrix[at * len..][..len])
    }

    fn bias(bias: &[T], at: usize) -> f64 {
        bias.get(at).map_or(0.0, |bias| f64::from(bias.widen()))
    }

    fn chosen(&self, token: usize) -> Vec<usize> {
        let k = self.config.top_k;
        self.ids[token * k..][..k].iter().map(|id| *id as usize).collect()
    }

    /// The weights of the chosen experts, and the gradient of all logits.
    fn router(&self, logits: &[f64], chosen: &[usize], dweights: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let scores = softmax(logits);
        let picked: Vec<f64> = chosen.iter().map(|id| scores[*id]).collect();
        // Normalised weights are the softmax over the chosen ones alone.
        let sum = if self.config.rule.normalize { picked.iter().sum() } else { 1.0 };
        let weights: Vec<f64> = picked.iter().map(|score| score / sum).collect();
        let mean = dot(&weights, dweights);
        let mut dlogits = vec![0.0; logits.len()];
        if !self.config.rule.normalize {
            dlogits.iter_mut().zip(&scores).for_each(|(out, score)| *out = -score * mean);
        }
        for ((id, weight), dweight) in chosen.iter().zip(&weights).zip(dweights) {
            dlogits[*id] +=
                if self.config.rule.normalize { weight * (dweight - mean) } else { weight * dweight };
        }
        (weights, dlogits)
    }

    /// The two halves of an expert's up-projection of `x`, in hidden column `f`.
    fn halves(&self, expert: usize, f: usize, x: &[f64]) -> [f64; 2] {
        let MoeConfig { width, hidden, .. } = self.config;
        [f, hidden + f].map(|column| {
            let at = expert * 2 * hidden + column;
            dot(&self.line(&self.w13, at, width), x) + Self::bias(&self.b13, at)
        })
    }

    /// Output, input gradient and routing of a token.
    pub(crate) fn token(&self, token: usize, columns: &[usize]) -> Token {
        let MoeConfig { width, hidden, experts, top_k, .. } = self.config;
        let (x, dy) = (self.line(&self.x, token, width), self.line(&self.dy, token, width));
        let (mut y, mut dx) = (vec![0.0; columns.len()], vec![0.0; columns.len()]);
        let (chosen, mut dweights) = (self.chosen(token), Vec::new());
        for (k, &expert) in chosen.iter().enumerate() {
            let weight = f64::from(self.weights[token * top_k + k]);
            let mut da = vec![0.0; hidden];
            let mut dweight = 0.0;
            for (d, dy) in dy.iter().enumerate() {
                let line = &self.w2[(expert * width + d) * hidden..][..hidden];
                da.iter_mut().zip(line).for_each(|(da, w2)| *da += dy * f64::from(w2.widen()));
                dweight += dy * Self::bias(&self.b2, expert * width + d);
            }
            let (mut a, mut dz) = (vec![0.0; hidden], vec![0.0; 2 * hidden]);
            for f in 0..hidden {
                let [g, u] = self.halves(expert, f, &x);
                let [value, along_g, along_u] = swiglu(g, u);
                a[f] = value;
                dz[f] = weight * da[f] * along_g;
                dz[hidden + f] = weight * da[f] * along_u;
            }
            dweights.push(dweight + dot(&da, &a));
            for ((column, y), dx) in columns.iter().zip(&mut y).zip(&mut dx) {
                let at = expert * width + column;
                *y += weight * (dot(&self.line(&self.w2, at, hidden), &a) + Self::bias(&self.b2, at));
                let w13 = |n: usize| self.w13[(expert * 2 * hidden + n) * width + column];
                *dx += dz.iter().enumerate().map(|(n, dz)| dz * f64::from(w13(n).widen())).sum::<f64>();
            }
        }
        let logits: Vec<f64> = (0..experts).map(|e| dot(&self.line(&self.gate, e, width), &x)).collect();
        let (weights, dlogits) = self.router(&logits, &chosen, &dweights);
        for (column, dx) in columns.iter().zip(&mut dx) {
            let gate = |e: usize| f64::from(self.gate[e * width + column].widen());
            *dx += dlogits.iter().enumerate().map(|(e, dlogit)| dlogit * gate(e)).sum::<f64>();
        }
        let choice = softmax(&logits).into_iter().zip(&self.selection_bias).map(|(s, b)| s + f64::from(*b));
        let (mut worst, mut best) = (f64::INFINITY, f64::NEG_INFINITY);
        for (expert, choice) in choice.enumerate() {
            if chosen.contains(&expert) { worst = worst.min(choice) } else { best = best.max(choice) }
        }
        Token { weights, dweights, y, dx, regret: best - worst }
    }

    /// An expert's gradients.
    pub(crate) fn expert(&self, expert: usize, lines: &[usize], columns: &[usize]) -> Expert {
        let MoeConfig { width, hidden, top_k, .. } = self.config;
        let up = |column: usize| self.line(&self.w13, expert * 2 * hidden + column, width);
        let down = |f: usize| (0..width).map(move |d| self.w2[(expert * width + d) * hidden + f]).collect();
        let weights: Vec<[Vec<f64>; 3]> = lines
            .iter()
            .map(|&f| [up(f), up(hidden + f), wide::<T>(&Vec::from_iter::<Vec<T>>(down(f)))])
            .collect();
        let zeros = || vec![0.0; lines.len() * columns.len()];
        let line_zeros = || vec![0.0; lines.len()];
        let mut sums = Expert {
            gate_half: zeros(),
            up_half: zeros(),
            down: zeros(),
            b13: [line_zeros(), line_zeros()],
            b2: vec![0.0; columns.len()],
        };
        let slots = self.ids.iter().enumerate().filter(|(_, id)| **id as usize == expert);
        for (slot, _) in slots {
            let weight = f64::from(self.weights[slot]);
            let x = self.line(&self.x, slot / top_k, width);
            let dy = self.line(&self.dy, slot / top_k, width);
            for (n, (&f, [gate, up, down])) in lines.iter().zip(&weights).enumerate() {
                let bias = |half: usize| Self::bias(&self.b13, (2 * expert + half) * hidden + f);
                let [value, along_g, along_u] = swiglu(dot(gate, &x) + bias(0), dot(up, &x) + bias(1));
                let da = weight * dot(down, &dy);
                for (c, &column) in columns.iter().enumerate() {
                    let at = n * columns.len() + c;
                    sums.gate_half[at] += da * along_g * x[column];
                    sums.up_half[at] += da * along_u * x[column];
                    sums.down[at] += weight * value * dy[column];
                }
                sums.b13[0][n] += da * along_g;
                sums.b13[1][n] += da * along_u;
            }
            for (sum, &column) in sums.b2.iter_mut().zip(columns) {
                *sum += weight * dy[column];
            }
        }
        sums
    }

    /// Lines `lines` of the gate's gradient in columns `columns`, from `logits` and `dweights`.
    pub(crate) fn dgate(&self, lines: &[usize], columns: &[usize]) -> Vec<f64> {
        let MoeConfig { width, experts, top_k, .. } = self.config;
        let mut sums = vec![0.0; lines.len() * columns.len()];
        for token in 0..self.x.len() / width {
            let logits = wide(&self.logits[token * experts..][..experts]);
            let dweights = wide(&self.dweights[token * top_k..][..top_k]);
            let (_, dlogits) = self.router(&logits, &self.chosen(token), &dweights);
            for (n, &line) in lines.iter().enumerate() {
                for (c, &column) in columns.iter().enumerate() {
                    let x = f64::from(self.x[token * width + column].widen());
                    sums[n * columns.len() + c] += dlogits[line] * x;
                }
            }
        }
        sums
    }
}
