//! Training across hosts, which are network namespaces with a switch between them. Needs root and iproute2; skipped, and said so,
//! without.

use crate::processes::{good, losses, text, train};
use crate::rig::Folder;
use moe_dist::{Key, Launch};
use moe_tests::skipped;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

const LONG: &str =
    "--device host --width 16 --hidden 16 --experts 3 --batch 3 --seq 16 --steps 120 --save-every 30";

/// Hosts on one switch. They are gone when this is dropped.
struct Hosts {
    names: Vec<String>,
    switch: String,
}

fn ip(arguments: &str) -> bool {
    let run = Command::new("ip").args(arguments.split(' ')).stderr(Stdio::null()).status();
    run.is_ok_and(|status| status.success())
}

impl Hosts {
    /// `None` where this process may not make any.
    fn new(count: usize) -> Option<Self> {
        let own = format!("moe-train-{}", std::process::id());
        let names = (0..count).map(|host| format!("{own}-{host}")).collect();
        let hosts = Self { names, switch: format!("{own}-s") };
        let switch = &hosts.switch;
        let switched = ip(&format!("netns add {switch}"))
            && ip(&format!("-n {switch} link add name bridge type bridge"))
            && ip(&format!("-n {switch} link set bridge up"));
        let connected = |(host, name): (usize, &String)| {
            ip(&format!("netns add {name}"))
                && ip(&format!("-n {switch} link add port{host} type veth peer name eth0 netns {name}"))
                && ip(&format!("-n {switch} link set port{host} master bridge up"))
                && ip(&format!("-n {name} address add 10.78.0.{}/24 dev eth0", host + 1))
                && ip(&format!("-n {name} link set eth0 up"))
                && ip(&format!("-n {name} link set lo up"))
        };
        (switched && hosts.names.iter().enumerate().all(connected)).then_some(hosts)
    }

    /// A rank of the program on each host.
    fn start(&self, line: &str) -> Vec<Child> {
        let key = Key::random().expect("randomness");
        let start = |(rank, name): (usize, &String)| {
            let launch = Launch {
                rank,
                size: self.names.len(),
                local_rank: 0,
                address: "10.78.0.1".to_owned(),
                port: 7000,
                run: "train".to_owned(),
                key: Some(key.clone()),
                encrypt: false,
            };
            let mut command = Command::new("ip");
            command.args(["netns", "exec", name, env!("CARGO_BIN_EXE_train")]).args(line.split_whitespace());
            command.envs(launch.variables()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().expect("a process")
        };
        self.names.iter().enumerate().map(start).collect()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in self.names.iter().chain([&self.switch]) {
            ip(&format!("netns delete {name}"));
        }
    }
}

fn ends(ranks: Vec<Child>) -> Vec<Output> {
    ranks.into_iter().map(|rank| rank.wait_with_output().expect("a process")).collect()
}

#[test]
fn training_goes_across_hosts_with_a_key_and_on_from_its_last_checkpoint_after_a_host_is_lost() {
    let Some(hosts) = Hosts::new(3) else {
        skipped("train across hosts", "network namespaces need root and iproute2");
        return;
    };
    let folder = Folder::new("hosts");
    let text = text(&folder.0);
    let common = format!("{LONG} --threads 1 {text} --fsdp");
    let out = |name: &str| format!("--out {}", folder.0.join(name).display());
    let unbroken = ends(hosts.start(&format!("{common} {}", out("unbroken"))));
    let printed = losses(&good(&unbroken[0]));
    assert_eq!(printed.len(), 120);
    let here = train(&format!("{common} --ranks 3 {}", out("here"))).output().expect("processes");
    assert_eq!(losses(&good(&here)), printed, "processes of one host have the same bits");

    let mut ranks = hosts.start(&format!("{common} {}", out("broken")));
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
    good(&ends(hosts.start(&format!("{resume} {}", out("resumed"))))[0]);
    for rank in 0..3 {
        let file = format!("step-000120/rank-{rank:05}.safetensors");
        let read = |name: &str| std::fs::read(folder.0.join(name).join(&file)).expect("a file");
        assert!(
            read("resumed") == read("unbroken"),
            "a resumed run has the bits of an unbroken one: rank {rank}"
        );
    }
}
