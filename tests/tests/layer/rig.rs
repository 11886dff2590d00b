//! A layer with everything that a step needs, and the errors that a mistake must give.

use crate::devices::HOST;
use crate::step::{layer, tokens};
use crate::variants::WIDTH;
use moe_core::{Batch, Error, Grads, Host, HostError, MoeConfig, MoeLayer, Rows, Runner, Saved, ShapeError};

pub(crate) type Failed = Error<HostError>;

/// A layer with everything that a step needs, for calls of 4 tokens.
pub(crate) struct Setup {
    pub(crate) layer: MoeLayer<Host, f32>,
    pub(crate) runner: Runner<Host, f32>,
    pub(crate) saved: Saved<Host, f32>,
    pub(crate) grads: Grads<Host, f32>,
    pub(crate) x: Rows<Host, f32>,
    pub(crate) y: Rows<Host, f32>,
}

impl Setup {
    pub(crate) fn new(config: &MoeConfig) -> Self {
        let layer = layer(&HOST, config);
        let runner = Runner::new(&HOST, config, 4).expect("a runner");
        Self {
            saved: runner.saved(config).expect("room"),
            grads: layer.grads().expect("gradients"),
            x: runner.upload(tokens(1, 4, config.width).view()).expect("x"),
            y: runner.rows(4, config.width).expect("y"),
            layer,
            runner,
        }
    }

    pub(crate) fn rows(&self, rows: usize, width: usize) -> Rows<Host, f32> {
        self.runner.rows(rows, width).expect("rows")
    }

    pub(crate) fn train(&mut self) -> Result<(), Failed> {
        self.runner.forward_train(&self.layer, &self.x, &mut self.saved, &mut self.y)
    }

    pub(crate) fn backward(&mut self, dy: &Rows<Host, f32>, dx: &mut Rows<Host, f32>) -> Result<(), Failed> {
        self.runner.backward(&self.layer, &self.x, &mut self.saved, dy, dx, &mut self.grads)
    }

    /// A mistake must not spoil what comes after it.
    pub(crate) fn still_works(&mut self) {
        self.runner.set_batch(&Batch::default()).expect("the default batch");
        self.train().expect("forward");
        let (dy, mut dx) = (self.rows(4, WIDTH), self.rows(4, WIDTH));
        self.backward(&dy, &mut dx).expect("backward");
    }
}

#[track_caller]
pub(crate) fn is_length(result: Result<(), Failed>, name: &str) {
    match result {
        Err(Error::Shape(ShapeError::Length { what, .. })) if what == name => {}
        other => panic!("wanted the length of {name}, got {other:?}"),
    }
}

#[track_caller]
pub(crate) fn is_limit<R>(result: Result<R, Failed>, name: &str) {
    match result {
        Err(Error::Limit { what, got, limit }) if what == name && got > limit => {}
        Err(other) => panic!("wanted the limit of {name}, got {other}"),
        Ok(_) => panic!("wanted the limit of {name}"),
    }
}

#[track_caller]
pub(crate) fn is_state<R>(result: Result<R, Failed>, part: &str) {
    match result {
        Err(Error::State(why)) if why.contains(part) => {}
        Err(other) => panic!("wanted a word on {part}, got {other}"),
        Ok(_) => panic!("wanted a word on {part}"),
    }
}
