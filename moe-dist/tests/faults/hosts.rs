//! Ranks on several hosts: network namespaces with a switch between them. Needs root and iproute2; skipped, and said so, without.

use crate::{SLACK, lines};
use moe_dist::{Key, Launch};
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

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
    fn new(test: &str, count: usize) -> Option<Self> {
        let own = format!("moe-{}-{test}", std::process::id());
        let hosts = Self {
            names: (0..count).map(|host| format!("{own}-{host}")).collect(),
            switch: format!("{own}-s"),
        };
        let switch = &hosts.switch;
        let switched = ip(&format!("netns add {switch}"))
            && ip(&format!("-n {switch} link add name bridge type bridge"))
            && ip(&format!("-n {switch} link set bridge up"));
        let connected = |(host, name): (usize, &String)| {
            ip(&format!("netns add {name}"))
                && ip(&format!("-n {switch} link add port{host} type veth peer name eth0 netns {name}"))
                && ip(&format!("-n {switch} link set port{host} master bridge up"))
                && ip(&format!("-n {name} address add 10.77.0.{}/24 dev eth0", host + 1))
                && ip(&format!("-n {name} link set eth0 up"))
                && ip(&format!("-n {name} link set lo up"))
        };
        (switched && hosts.names.iter().enumerate().all(connected)).then_some(hosts)
    }

    fn cut_off(&self, host: usize) {
        assert!(ip(&format!("-n {} link set port{host} down", self.switch)));
    }

    /// A rank on each host.
    fn start(&self, timeout: Duration, times: usize) -> Vec<Child> {
        let key = Key::random().unwrap();
        let start = |(rank, name)| {
            let launch = Launch {
                rank,
                size: self.names.len(),
                local_rank: 0,
                address: "10.77.0.1".into(),
                port: 7000,
                run: "hosts".into(),
                key: Some(key.clone()),
                encrypt: false,
            };
            let mut command = Command::new("ip");
            command.args(["netns", "exec", name, env!("CARGO_BIN_EXE_rank")]).envs(launch.variables());
            command.env("MOE_TEST_TIMEOUT", timeout.as_millis().to_string());
            command.env("MOE_TEST_TIMES", times.to_string()).stdout(Stdio::piped()).spawn().unwrap()
        };
        self.names.iter().map(String::as_str).enumerate().map(start).collect()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in self.names.iter().chain([&self.switch]) {
            ip(&format!("netns delete {name}"));
        }
    }
}

/// The hosts, or a line in the list of what was skipped.
fn hosts(test: &str, count: usize) -> Option<Hosts> {
    let hosts = Hosts::new(test, count);
    if hosts.is_none() {
        let line = format!("moe-dist hosts {test}: network namespaces need root and iproute2");
        eprintln!("skipped: {line}");
        if let Some(file) = std::env::var_os("MOE_SKIPPED") {
            let file = std::fs::OpenOptions::new().append(true).create(true).open(file);
            file.unwrap().write_all((line + "\n").as_bytes()).unwrap();
        }
    }
    hosts
}

#[test]
fn ranks_on_four_hosts_come_to_the_end_with_a_key() {
    let Some(hosts) = hosts("end", 4) else { return };
    for rank in hosts.start(Duration::from_secs(30), 2) {
        assert_eq!(lines(rank, Duration::from_secs(60)), ["done"]);
    }
}

#[test]
fn a_host_that_is_cut_off_is_named_at_the_deadline() {
    let Some(hosts) = hosts("cut", 3) else { return };
    let timeout = Duration::from_secs(4);
    let mut ranks = hosts.start(timeout, 1_000_000);
    sleep(Duration::from_secs(3));
    hosts.cut_off(2);
    let cut = ranks.remove(2);
    for rank in ranks {
        let said = lines(rank, 2 * timeout + SLACK);
        assert!(said[0].starts_with("rank 2 did not answer in time, in "), "{said:?}");
        let took: u64 = said[2].parse().unwrap();
        assert!(Duration::from_millis(took) < timeout + SLACK, "{said:?}");
        assert_eq!(said[3], "0 0", "threads and sockets left");
    }
    // The one cut off cannot know which side the fault is on.
    let said = lines(cut, 2 * timeout + SLACK);
    assert!(said[0].contains("did not answer in time"), "{said:?}");
}
