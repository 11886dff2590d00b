//! The program itself, as real processes over TCP.

use crate::rig::Folder;
use std::path::Path;
use std::process::{Command, Output};

pub(crate) const SMALL: &str =
    "--device host --width 16 --hidden 16 --experts 4 --batch 4 --seq 16 --steps 6 --save-every 3";

/// A text that is short, so that the held-out part is evaluated quickly.
pub(crate) fn text(folder: &Path) -> String {
    let path = folder.join("text");
    std::fs::write(&path, b"It is a truth universally acknowledged. ".repeat(20)).expect("a text");
    format!("--text {}", path.display())
}

pub(crate) fn train(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
    command.args(line.split_whitespace());
    // A launcher that these tests were started by is not theirs.
    for name in ["RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"] {
        command.env_remove(name);
    }
    command
}

#[track_caller]
pub(crate) fn good(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// The losses that were printed.
pub(crate) fn losses(printed: &str) -> Vec<f64> {
    let word = |line: &str| line.split_whitespace().nth(3).and_then(|word| word.parse().ok());
    printed.lines().filter(|line| line.starts_with("step ")).filter_map(word).collect()
}

#[test]
fn ranks_that_are_processes_print_once_and_learn_as_one_does() {
    let folder = Folder::new("processes");
    let common = format!("{SMALL} {}", text(&folder.0));
    let out = |name: &str| format!("--out {}", folder.0.join(name).display());
    let alone = losses(&good(&train(&format!("{common} {}", out("alone"))).output().expect("a process")));
    assert_eq!(alone.len(), 6);
    let layout = "--ranks 4 --ep 2 --tp 2";
    let four = format!("{common} {layout} {}", out("four"));
    let printed = losses(&good(&train(&four).output().expect("processes")));
    assert_eq!(printed.len(), 6, "one rank prints");
    for (got, want) in printed.iter().zip(&alone) {
        assert!((got - want).abs() < 2e-4, "{printed:?}, wanted {alone:?}");
    }
    let parts = format!("{common} --ranks 4 --cp 2 --tp 2 --ep 2 --sequence-parallel {}", out("parts"));
    let printed = losses(&good(&train(&parts).output().expect("processes")));
    for (got, want) in printed.iter().zip(&alone) {
        assert!((got - want).abs() < 2e-4, "{printed:?}, wanted {alone:?}");
    }
    let half = folder.0.join("four/step-000003");
    let rest = format!("{} --resume {}", text(&folder.0), half.display());
    let again = format!("--device host {layout} {rest} {}", out("again"));
    good(&train(&again).output().expect("processes"));
    for rank in 0..4 {
        let file = format!("step-000006/rank-{rank:05}.safetensors");
        let read = |name: &str| std::fs::read(folder.0.join(name).join(&file)).expect("a file");
        assert!(read("four") == read("again"), "a resumed run has the bits of an unbroken one: rank {rank}");
    }
    let sharded = format!("--device host --ranks 2 --fsdp {rest} {}", out("sharded"));
    let printed = losses(&good(&train(&sharded).output().expect("processes")));
    assert!(printed.iter().zip(&alone[3..]).all(|(got, want)| (got - want).abs() < 2e-4), "{printed:?}");
}

#[test]
fn a_rank_that_fails_ends_the_run_with_its_reason() {
    let folder = Folder::new("failing");
    let bad = format!("{SMALL} {} --ranks 2 --ep 3 --out {}", text(&folder.0), folder.0.display());
    let output = train(&bad).output().expect("processes");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(errors.contains("ep has to divide 2") && errors.contains("failed first"), "{errors}");
}
