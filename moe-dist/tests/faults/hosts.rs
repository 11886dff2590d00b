//! Ranks on several hosts. Skipped, and said so, where there can be none.

use crate::network::{Hosts, MISSING, ip};
use crate::{SLACK, lines};
use std::io::Write;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// A rank on each host.
fn start(hosts: &Hosts, timeout: Duration, times: usize) -> Vec<Child> {
    hosts.start(env!("CARGO_BIN_EXE_rank"), |command| {
        command.env("MOE_TEST_TIMEOUT", timeout.as_millis().to_string());
        command.env("MOE_TEST_TIMES", times.to_string()).stdout(Stdio::piped());
    })
}

/// The hosts, or a line in the list of what was skipped.
fn hosts(test: &str, count: usize) -> Option<Hosts> {
    let hosts = Hosts::new(test, count);
    if hosts.is_none() {
        let line = format!("moe-dist hosts {test}: {MISSING}");
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
    for rank in start(&hosts, Duration::from_secs(30), 2) {
        assert_eq!(lines(rank, Duration::from_secs(60)), ["done"]);
    }
}

#[test]
fn a_host_that_is_cut_off_is_named_at_the_deadline() {
    let Some(hosts) = hosts("cut", 3) else { return };
    let timeout = Duration::from_secs(4);
    let mut ranks = start(&hosts, timeout, 1_000_000);
    sleep(Duration::from_secs(3));
    assert!(ip(&format!("-n {} link set port2 down", hosts.switch)));
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
