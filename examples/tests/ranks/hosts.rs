//! Training across hosts. Skipped, and said so, where there can be none.

use crate::network::{Hosts, MISSING};
use crate::processes::{good, losses, text, train};
use crate::rig::Folder;
use moe_tests::skipped;
use std::process::{Child, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

const LONG: &str =
    "--device host --width 16 --hidden 16 --experts 3 --batch 3 --seq 16 --steps 120 --save-every 30";

/// A rank of the program on each host.
fn start(hosts: &Hosts, line: &str) -> Vec<Child> {
    hosts.start(env!("CARGO_BIN_EXE_train"), |command| {
        command.args(line.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped());
    })
}

fn ends(ranks: Vec<Child>) -> Vec<Output> {
    ranks.into_iter().map(|rank| rank.wait_with_output().expect("a process")).collect()
}

#[test]
fn training_goes_across_hosts_with_a_key_and_on_from_its_last_checkpoint_after_a_host_is_lost() {
    let Some(hosts) = Hosts::new("train", 3) else {
        skipped("train across hosts", MISSING);
        return;
    };
    let folder = Folder::new("hosts");
    let text = text(&folder.0);
    let common = format!("{LONG} --threads 1 {text} --fsdp");
    let out = |name: &str| format!("--out {}", folder.0.join(name).display());
    let unbroken = ends(start(&hosts, &format!("{common} {}", out("unbroken"))));
    let printed = losses(&good(&unbroken[0]));
    assert_eq!(printed.len(), 120);
    let here = train(&format!("{common} --ranks 3 {}", out("here"))).output().expect("processes");
    assert_eq!(losses(&good(&here)), printed, "processes of one host have the same bits");

    let mut ranks = start(&hosts, &format!("{common} {}", out("broken")));
    let checkpoint = folder.0.join("broken/step-000030");
    while !checkpoint.join("manifest.json").exists() {
        assert!(
            ranks[0].try_wait().expect("a process").is_none(),
            "the run ended before its first checkpoint"
        );
        sleep(Duration::from_millis(5));
    }
    ranks[2].kill().expect("it is running");
    for survivor in &ends(ranks)[..2] {
        let said = String::from_utf8_lossy(&survivor.stderr);
        assert!(!survivor.status.success() && said.contains("rank 2 is gone"), "{said}");
    }
    let resume =
        format!("--device host --threads 1 --save-every 30 {text} --fsdp --resume {}", checkpoint.display());
    good(&ends(start(&hosts, &format!("{resume} {}", out("resumed"))))[0]);
    for rank in 0..3 {
        let file = format!("step-000120/rank-{rank:05}.safetensors");
        let read = |name: &str| std::fs::read(folder.0.join(name).join(&file)).expect("a file");
        assert!(
            read("resumed") == read("unbroken"),
            "a resumed run has the bits of an unbroken one: rank {rank}"
        );
    }
}
