//! Hosts for tests: network namespaces with a switch between them. Need root and iproute2.

use moe_dist::{Key, Launch};
use std::process::{Child, Command, Stdio};

/// Hosts on one switch. They are gone when this is dropped.
pub(crate) struct Hosts {
    names: Vec<String>,
    pub(crate) switch: String,
}

/// Why there are none.
pub(crate) const MISSING: &str = "network namespaces need root and iproute2";

/// Whether `ip` did that.
pub(crate) fn ip(arguments: &str) -> bool {
    let run = Command::new("ip").args(arguments.split(' ')).stderr(Stdio::null()).status();
    run.is_ok_and(|status| status.success())
}

impl Hosts {
    /// `None` where this process may not make any.
    pub(crate) fn new(test: &str, count: usize) -> Option<Self> {
        let own = format!("moe-{}-{test}", std::process::id());
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
                && ip(&format!("-n {name} address add 10.77.0.{}/24 dev eth0", host + 1))
                && ip(&format!("-n {name} link set eth0 up"))
                && ip(&format!("-n {name} link set lo up"))
        };
        (switched && hosts.names.iter().enumerate().all(connected)).then_some(hosts)
    }

    /// A rank of a program on each host, with a key that they share; `set` adds arguments and variables.
    pub(crate) fn start(&self, program: &str, set: impl Fn(&mut Command)) -> Vec<Child> {
        let key = Key::random().expect("randomness");
        let start = |(rank, name): (usize, &String)| {
            let launch = Launch {
                rank,
                size: self.names.len(),
                local_rank: 0,
                address: "10.77.0.1".to_owned(),
                port: 7000,
                run: "hosts".to_owned(),
                key: Some(key.clone()),
                encrypt: false,
                tcp: false,
            };
            let mut command = Command::new("ip");
            command.args(["netns", "exec", name, program]).envs(launch.variables());
            set(&mut command);
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
