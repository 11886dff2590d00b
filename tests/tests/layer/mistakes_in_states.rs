//! Every wrong checkpoint is an error that names the tensor.

use crate::devices::HOST;
use crate::step::{layer, tensor};
use crate::variants::{changed, plain};
use moe_core::{
    AdamW, AdamWOptions, DType, Error, Host, HostError, MoeConfig, MoeLayer, SharedExperts, StateTensor,
};

fn config() -> MoeConfig {
    changed(plain(), |c| {
        c.gate_bias = true;
        c.selection_bias = true;
        c.expert_bias = true;
        c.shared = Some(SharedExperts { hidden: 4, gated: true });
    })
}

fn problem<R>(result: Result<R, Error<HostError>>) -> (String, String) {
    match result {
        Err(Error::Checkpoint { name, problem }) => (name, problem),
        Err(other) => panic!("another error: {other}"),
        Ok(_) => (String::new(), "it was taken".into()),
    }
}

/// Ways to spoil a tensor.
const SPOILS: [fn(&mut StateTensor); 5] = [
    |tensor| tensor.dtype = DType::F16,
    |tensor| tensor.shape.push(1),
    |tensor| tensor.shape[0] += 1,
    |tensor| tensor.bytes.truncate(tensor.bytes.len() - 1),
    |tensor| tensor.bytes.push(0),
];

/// Removes, doubles and spoils every tensor; `load` must name it each time.
fn every_tensor_matters(state: &[StateTensor], load: impl Fn(Vec<StateTensor>) -> (String, String)) {
    for at in 0..state.len() {
        let name = state[at].name.clone();
        let mut missing = state.to_vec();
        missing.remove(at);
        assert_eq!(load(missing), (name.clone(), "is missing".into()));
        let mut doubled = state.to_vec();
        doubled.push(state[at].clone());
        assert_eq!(load(doubled).0, name);
        for (nth, spoil) in SPOILS.into_iter().enumerate() {
            let mut spoiled = state.to_vec();
            spoil(&mut spoiled[at]);
            let (named, problem) = load(spoiled);
            assert_eq!(named, name, "spoiled in way {nth}: {problem}");
            assert!(problem.contains("wanted"), "{name}, spoiled in way {nth}: {problem}");
        }
    }
    let mut surplus = state.to_vec();
    surplus.push(StateTensor { name: "w4".into(), ..state[0].clone() });
    assert_eq!(load(surplus).0, "w4");
}

#[test]
fn a_layer_names_the_tensor_that_is_wrong() {
    let state = layer::<f32, _>(&HOST, &config()).state().expect("a state");
    assert_eq!(state.len(), 10);
    every_tensor_matters(&state, |state| problem(MoeLayer::<Host, f32>::from_state(&HOST, &config(), state)));
}

#[test]
fn a_checkpoint_of_another_storage_type_is_refused() {
    let state = layer::<half::bf16, _>(&HOST, &config()).state().expect("a state");
    let (name, problem) = problem(MoeLayer::<Host, f32>::from_state(&HOST, &config(), state));
    assert_eq!(name, "gate");
    assert!(problem.contains("wanted f32") && problem.contains("got bf16"), "{problem}");
}

#[test]
fn the_order_of_tensors_does_not_matter() {
    let mut state = layer::<f32, _>(&HOST, &config()).state().expect("a state");
    let kept = tensor(&mut state, "w2").clone();
    state.reverse();
    let loaded = MoeLayer::<Host, f32>::from_state(&HOST, &config(), state).expect("every tensor is there");
    assert_eq!(*tensor(&mut loaded.state().expect("a state"), "w2"), kept);
}

#[test]
fn an_optimizer_names_the_tensor_that_is_wrong() {
    let layer: MoeLayer<_, half::bf16> = layer(&HOST, &config());
    let state = AdamW::new(&layer).and_then(|adam| adam.state(&layer)).expect("a state");
    assert_eq!(state.len(), 1 + 3 * 9);
    let options = AdamWOptions::default();
    every_tensor_matters(&state, |state| problem(AdamW::from_state(&layer, options, state)));
}
