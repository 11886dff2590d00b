//! Starting ranks on this machine: the same program again, once per rank, told by the environment which rank it is.

use anyhow::{Context, Result, bail, ensure};
use moe_dist::Launch;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// How long ranks may take to see that one has failed, before they are stopped.
const GRACE: Duration = Duration::from_secs(20);
/// Between two looks at the ranks.
const LOOK: Duration = Duration::from_millis(20);
/// More processes than this are a slip of the finger.
const MOST: usize = 256;

/// Runs this program as `ranks` processes with the same arguments, and waits for all.
///
/// # Errors
/// If a process cannot be started, or a rank fails; the others then end as well.
pub fn local(ranks: usize) -> Result<()> {
    ensure!((1..=MOST).contains(&ranks), "--ranks is {ranks}, but must be 1 to {MOST}");
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut running = Running(Vec::new());
    for launch in Launch::local(ranks)? {
        let child = Command::new(&program)
            .args(std::env::args_os().skip(1))
            .envs(launch.variables())
            .spawn()
            .with_context(|| format!("cannot start rank {}", launch.rank))?;
        running.0.push((launch.rank, child));
    }
    running.wait()
}

/// Processes that do not outlive this value.
struct Running(Vec<(usize, Child)>);

impl Running {
    fn wait(mut self) -> Result<()> {
        let mut failed: Option<(usize, ExitStatus, Instant)> = None;
        while !self.0.is_empty() {
            let mut left = Vec::new();
            for (rank, mut child) in std::mem::take(&mut self.0) {
                match child.try_wait().with_context(|| format!("cannot wait for rank {rank}"))? {
                    None => left.push((rank, child)),
                    Some(status) if !status.success() && failed.is_none() => {
                        failed = Some((rank, status, Instant::now()));
                    }
                    Some(_) => {}
                }
            }
            self.0 = left;
            if failed.is_some_and(|(_, _, since)| since.elapsed() > GRACE) {
                break;
            }
            std::thread::sleep(LOOK);
        }
        match failed {
            Some((rank, status, _)) => bail!("rank {rank} failed first ({status}): the run has ended"),
            None => Ok(()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for (_, child) in &mut self.0 {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
